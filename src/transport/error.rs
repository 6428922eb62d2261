//! What can go wrong with a connection, and what the caller may still do.

use std::io;
use std::time::Duration;

use crate::net::dial::DialError;
use crate::net::tls::explain;
use crate::ops::errors::ErrorClass;

/// Bytes that are shown of the address to which a server has moved.
pub(super) const MOVED_BYTES: usize = 300;

/// An error of the transport. None leaves the connection usable; which may be tried anew the predicates answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A kick or the shutdown signal ended the call. Do not try again.
    #[error("stopped")]
    Stopped,
    /// The deadline passed first. May be tried again.
    #[error("{doing} with {peer} did not end within {after:.1?}")]
    Timeout {
        /// What was under way.
        doing: &'static str,
        /// With whom.
        peer: String,
        /// How long it was tried.
        after: Duration,
    },
    /// Look-up or TCP connect failed. May be tried again.
    #[error(transparent)]
    Dial(DialError),
    /// The URL cannot be dialled. Trying again does not help.
    #[error("bad url {url:?}: {problem}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// A header of the caller cannot be sent. Trying again does not help.
    #[error("bad header {name:?}: {problem}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The TLS handshake or a TLS record failed.
    #[error("tls with {peer}: {}", explain(source))]
    Tls {
        /// With whom.
        peer: String,
        /// What rustls says.
        source: rustls::Error,
    },
    /// A listener cannot have its address.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// As given.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
    /// The server refused the upgrade; on the server, its own check did.
    #[error("upgrade refused with status {status}{}{body}", if body.is_empty() { "" } else { ": " })]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What came with it, shortened to some 200 bytes in one line; or nothing.
        body: String,
        /// Its `Retry-After`: how long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The server has another address, which is not followed: what we sign goes only where we were told to.
    #[error("the server answered with status {status}: it has moved to \"{to}\"; give that address, if it is right")]
    Moved {
        /// The HTTP status.
        status: u16,
        /// Its `Location`, at most 300 bytes of it, in one line.
        to: String,
    },
    /// The HTTP proxy, before anything of the connection itself. May be tried again.
    #[error("proxy {proxy}: {problem}")]
    Proxy {
        /// Its URL without user and password.
        proxy: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The peer's side of the upgrade is not as it should be.
    #[error("upgrade with {peer}: {problem}")]
    Handshake {
        /// With whom.
        peer: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// The peer sent a message over the limit, and gets Close 1009.
    #[error("message of {size} bytes, over the limit of {limit}")]
    TooLarge {
        /// Bytes announced or received so far.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// All peers together send more than there is memory for, and the message of this one is the oldest that has not
    /// ended; it gets Close 1013.
    #[error("too much is being received from all peers, and this message is the oldest")]
    Crowded,
    /// The peer broke the WebSocket protocol, and gets Close 1002.
    #[error("protocol error: {problem}")]
    Protocol {
        /// How.
        problem: String,
    },
    /// The peer sent text that is not UTF-8, and gets Close 1007.
    #[error("text message that is not utf-8: {problem}")]
    Utf8 {
        /// Where.
        problem: String,
    },
    /// The caller's close code must not be sent; 1000 and 3000 to 4999 are among those that may.
    #[error("close code {code} must not be sent; use 1000, or 3000 to 4999")]
    CloseCode {
        /// As given.
        code: u16,
    },
    /// The connection was closed before this call.
    #[error("connection is closed")]
    Closed,
    /// The connection broke.
    #[error("{doing}: {source}")]
    Io {
        /// What was under way.
        doing: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

impl TransportError {
    /// Whether a kick or the shutdown signal was the cause.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped)
    }

    /// Whether a deadline was the cause.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Dial(DialError::Timeout { .. }))
    }

    /// Whether the connection is gone, rather than misused by either end.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed | Self::Io { .. })
    }

    /// Whether the same dial may succeed later: everything but a stop and what the caller must change first.
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self,
            Self::Stopped | Self::Url { .. } | Self::Header { .. } | Self::Bind { .. } | Self::CloseCode { .. }
        )
    }

    /// What a loop does about it. A redirect, or a status 4xx that no waiting changes, is
    /// [`ErrorClass::Rejected`].
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Stopped => ErrorClass::Cancelled,
            Self::Refused { status: 408 | 425 | 429, .. } => ErrorClass::Reconnect,
            Self::Refused { status: 400..=499, .. } | Self::Moved { .. } => ErrorClass::Rejected,
            error if error.is_retryable() => ErrorClass::Reconnect,
            _ => ErrorClass::Fatal,
        }
    }

    /// The HTTP status of a refused upgrade; that of a proxy is none.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } | Self::Moved { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// How long a server that refused the upgrade wants to be left alone. It is the peer's word: bound it.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The code of the Close that the peer gets for this error.
    pub fn close_code(&self) -> Option<u16> {
        match self {
            Self::Protocol { .. } => Some(1002),
            Self::Utf8 { .. } => Some(1007),
            Self::TooLarge { .. } => Some(1009),
            Self::Crowded => Some(1013),
            _ => None,
        }
    }

    pub(super) fn refused(status: u16, body: String) -> Self {
        Self::Refused { status, body, retry_after: None }
    }

    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

impl From<DialError> for TransportError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Cancelled => Self::Stopped,
            other => Self::Dial(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_class() {
        let refused = |status| TransportError::refused(status, String::new());
        let proxy = TransportError::Proxy { proxy: String::new(), problem: String::new() };
        let url = TransportError::Url { url: String::new(), problem: String::new() };
        for (error, class) in [
            (TransportError::Stopped, ErrorClass::Cancelled),
            (DialError::Cancelled.into(), ErrorClass::Cancelled),
            (DialError::Connect { failures: Vec::new() }.into(), ErrorClass::Reconnect),
            (refused(403), ErrorClass::Rejected),
            (TransportError::Moved { status: 301, to: String::new() }, ErrorClass::Rejected),
            (refused(429), ErrorClass::Reconnect),
            (refused(503), ErrorClass::Reconnect),
            (proxy, ErrorClass::Reconnect),
            (TransportError::Closed, ErrorClass::Reconnect),
            (url, ErrorClass::Fatal),
            (TransportError::CloseCode { code: 1 }, ErrorClass::Fatal),
        ] {
            assert_eq!(error.class(), class, "{error:?}");
        }
    }
}
