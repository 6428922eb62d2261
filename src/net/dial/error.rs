//! Why no connection came about.

use std::io;
use std::time::Duration;

/// Why no connection came about. Each may be tried again, except [`DialError::Cancelled`] and
/// [`DialError::OutOfReach`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The name did not resolve.
    #[error("cannot look up {host}: {source}")]
    LookUp {
        /// The name as given.
        host: String,
        /// The error of the resolver.
        source: io::Error,
    },
    /// No address accepted the connection.
    #[error("cannot connect to {}", listed(failures))]
    Connect {
        /// Each address and its error, in the order of the answers.
        failures: Vec<(String, io::Error)>,
    },
    /// The deadline passed first.
    #[error("no connection to {address} within {after:.1?}")]
    Timeout {
        /// Host and port as given.
        address: String,
        /// How long it was tried.
        after: Duration,
    },
    /// The shutdown signal came first.
    #[error("cancelled while connecting")]
    Cancelled,
    /// The host has no address that may be dialled. The text names none, because who asks may not know them.
    #[error(
        "jobs may not reach {host}: they reach global unicast addresses, and what the operator opens by --reach CIDR"
    )]
    OutOfReach {
        /// The host as given.
        host: String,
    },
}

fn listed(failures: &[(String, io::Error)]) -> String {
    let each: Vec<_> = failures.iter().map(|(address, error)| format!("{address}: {error}")).collect();
    each.join(", nor to ")
}
