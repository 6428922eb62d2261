//! Connections to other programs: dialling, accepting, TLS, addresses, HTTP.
//!
//! * `address`, `percent`: hosts, ports and percent-encoded texts. Pure.
//! * [`dial`]: the only place that connects.
//! * [`reach`]: which addresses a job may name. Pure.
//! * `admission`: who has a place at a server. Pure.
//! * [`rate`]: how often somebody may do something. Pure.
//! * `accept`: a listener that can be kicked, and the one loop that admits connections and joins their threads.
//! * `deadline`: socket calls that end by a deadline.
//! * `poller`: waits for many sockets at once.
//! * [`tls`]: certificates, keys and roots, and the configuration of rustls.
//! * `proxy`: an HTTP proxy, and which addresses go through it.
//! * [`wake`]: an event that a wait for sockets listens to as well.
//! * [`http`]: the head of a message, the server with the pages that every role has, the client.

pub(crate) mod accept;
pub(crate) mod address;
pub(crate) mod admission;
pub(crate) mod deadline;
pub mod dial;
pub mod http;
pub(crate) mod percent;
pub(crate) mod poller;
#[cfg(feature = "client")]
pub mod proxy;
pub mod rate;
pub mod reach;
pub mod tls;
pub mod wake;

/// What a client calls itself in every request, unless its caller gives another `User-Agent`.
pub const USER_AGENT: &str = concat!("phalanx/", env!("CARGO_PKG_VERSION"));
