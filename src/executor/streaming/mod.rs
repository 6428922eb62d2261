//! Streaming jobs: a user's client talks to the job's server while the job runs.
//!
//! The job's container is on an internal network of its own and listens on [`JOB_PORT`]. In front of it, in this
//! process, is a proxy that speaks TLS and lets in only clients with the certificate of the job's request.
//!
//! ```text
//! client ── TLS, a port of `--streaming-ports` ── exe-st-n ── TCP ── container, port 8000
//! ```
//!
//! * `server`: the job's run with the proxy in front: readiness, limits, the end.
//! * `certificate`: the server's certificate, and the check of the client's. `ports`: where it listens.
//! * `probe`: when the job's server is ready.
//! * `proxy`: the threads that accept and serve clients; `tunnel`: one client's connection.

mod certificate;
mod error;
mod ports;
mod probe;
mod proxy;
mod server;
mod tunnel;

pub(super) use error::StreamingError;
pub use ports::PortRange;
pub use server::{JOB_PORT, Serving, StreamingLimits};
pub(super) use server::{StreamingServer, Watched};

#[cfg(test)]
mod tests;
