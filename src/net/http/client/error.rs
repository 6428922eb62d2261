//! Why a request has no answer, and what follows from it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::content::Shortened;
use super::proxied::ProxyFailed;
use crate::net::dial::DialError;
use crate::net::tls::explain;
use crate::ops::cause::Cause;

/// Why a request has no answer, or not the one that was wanted. Addresses in the texts have no user, password and
/// query, because that is where secrets are.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The address or a header cannot be used.
    #[error("bad request to {url}: {why}")]
    Request {
        /// The address.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The shutdown signal cancelled it.
    #[error("cancelled while talking to {url}")]
    Cancelled {
        /// The address.
        url: String,
    },
    /// It is no address that jobs may reach.
    #[error("{source}")]
    OutOfReach {
        /// [`DialError::OutOfReach`].
        source: DialError,
    },
    /// The deadline passed.
    #[error("no answer from {url} before the deadline")]
    TimedOut {
        /// The address.
        url: String,
    },
    /// The connection failed.
    #[error("cannot talk to {url}: {source}")]
    Connection {
        /// The address.
        url: String,
        /// The answer.
        source: Box<ureq::Error>,
    },
    /// The server's certificate is not good, or TLS fails.
    #[error("cannot talk to {url}: {}", explain(source))]
    Tls {
        /// The address.
        url: String,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The proxy on the way cannot be used.
    #[error("cannot talk to {url}: {why}")]
    Proxy {
        /// The address.
        url: String,
        /// The proxy, without its password, and what is wrong.
        why: String,
    },
    /// The server refused.
    #[error("{url} answered {status}{}{excerpt}", retry_after.map(come_again).unwrap_or_default())]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of its text, after a colon; or nothing.
        excerpt: String,
        /// How long to wait before the next try, if the server says so.
        retry_after: Option<Duration>,
    },
    /// The server sends on to where this client does not go.
    #[error("{url} answered {status}, a redirect that cannot be followed: {why}")]
    Redirect {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What is wrong.
        why: String,
    },
    /// The answer is longer than it may be.
    #[error("the answer of {url} is larger than the allowed {max} bytes")]
    TooLarge {
        /// The address.
        url: String,
        /// The limit in bytes.
        max: u64,
    },
    /// The answer is complete and not what it should be.
    #[error("the answer of {url} cannot be read: {why}")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The local file had fewer bytes than were announced.
    #[error("the file became shorter while it was sent to {url}")]
    Shortened {
        /// The address.
        url: String,
    },
    /// The local file could not be read or written.
    #[error("cannot use file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

fn come_again(after: Duration) -> String {
    format!(" and asks to come again after {} s", after.as_secs())
}

impl HttpError {
    /// What an error of a request is.
    pub(super) fn of(url: String, error: ureq::Error) -> Self {
        match error {
            ureq::Error::Timeout(_) => Self::TimedOut { url },
            ureq::Error::BadUri(why) => Self::Request { url, why },
            ureq::Error::Http(why) => Self::Request { url, why: why.to_string() },
            ureq::Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Shortened>()) => {
                Self::Shortened { url }
            }
            ureq::Error::Io(error) if is_out_of_reach(&error) => match error.downcast() {
                Ok(source) => Self::OutOfReach { source },
                Err(error) => Self::Connection { url, source: Box::new(error.into()) },
            },
            ureq::Error::Io(error) => match error.downcast::<rustls::Error>() {
                Ok(source) => Self::Tls { url, source },
                Err(error) => match error.downcast::<ProxyFailed>() {
                    Ok(failed) => Self::Proxy { url, why: failed.to_string() },
                    Err(error) => Self::Connection { url, source: Box::new(error.into()) },
                },
            },
            source => Self::Connection { url, source: Box::new(source) },
        }
    }

    /// Whose fault it is, when somebody else has named the address, and whether the same request may succeed later.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Request { .. }
            | Self::OutOfReach { .. }
            | Self::Redirect { .. }
            | Self::TooLarge { .. }
            | Self::Shortened { .. }
            | Self::Answer { .. } => Cause::JOB,
            // Whoever says when to come again will say something else then.
            Self::Status { retry_after: Some(_), .. } => Cause::NETWORK_PASSING,
            Self::Status { status, .. } => Cause::of_status(*status),
            Self::Cancelled { .. } | Self::TimedOut { .. } => Cause::NETWORK,
            Self::File { source, .. } => Cause::of_io(source),
            Self::Tls { source: rustls::Error::InvalidCertificate(_), .. } => Cause::CERTIFICATE,
            Self::Tls { .. } => Cause::NETWORK,
            Self::Proxy { .. } => Cause::NETWORK_PASSING,
            Self::Connection { source, .. } => match &**source {
                ureq::Error::Io(error) => Cause::of_io(error),
                _ => Cause::NETWORK_PASSING,
            },
        }
    }

    /// How long the server asks to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

fn is_out_of_reach(error: &io::Error) -> bool {
    let dial = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(dial, Some(DialError::OutOfReach { .. }))
}
