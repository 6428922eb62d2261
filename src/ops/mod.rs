//! What operators look at: metrics, health, and the small HTTP server that serves them.
//!
//! * [`http`]: an HTTP/1.1 server on our own threads, also under the facilitator's job API.
//! * [`metrics`]: counters, gauges and histograms with Prometheus text.
//! * [`health`]: what is up, what is not, and why.
//! * [`status`]: the pages that every role serves.
//! * [`date`]: the date of an HTTP header. Pure.

pub mod date;
pub mod errors;
pub mod health;
pub mod http;
pub mod metrics;
pub mod status;
