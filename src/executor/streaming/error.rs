//! Why a streaming job cannot be served.

use std::io;

use super::ports::PortRange;

/// Why a job cannot be served to clients.
#[derive(Debug, thiserror::Error)]
pub(in crate::executor) enum StreamingError {
    /// The request's certificate cannot be used.
    #[error("streaming_details.public_key is no certificate of a client: {0}")]
    ClientCertificate(String),
    /// The miner has not said under which address we are reached.
    #[error("streaming_details.executor_ip is missing; the miner should have set it")]
    NoAddress,
    /// No certificate can be made for our address.
    #[error("no certificate can be made for the address {address:?}: {why}")]
    Certificate { address: String, why: String },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up for clients: {0}")]
    Tls(String),
    /// No port can be listened on.
    #[error("no port of {ports} can be listened on: {source}")]
    Port { ports: PortRange, source: io::Error },
}
