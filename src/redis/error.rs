//! What can go wrong between us and a Redis. Pure.

use std::sync::Arc;
use std::time::Duration;

use redis::ServerError;

use crate::net::dial::DialError;
use crate::ops::errors::ErrorClass;

/// Why a Redis did not do what was asked. No text of it holds a password.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RedisError {
    /// The URL is not one of Redis; the text says what is wrong, and what would be right.
    #[error("bad Redis URL: {0}")]
    Url(String),
    /// No connection came about. It may be tried again.
    #[error("Redis: {0}")]
    Dial(Arc<DialError>),
    /// The TLS handshake failed, or a file that it needs is of no use.
    #[error("Redis at {peer}: TLS: {problem}")]
    Tls {
        /// Host and port.
        peer: String,
        /// What is wrong.
        problem: String,
    },
    /// The server does not speak RESP3.
    #[error("Redis at {peer} is too old: it does not know HELLO 3 ({reason}); version 6 or later is needed")]
    TooOld {
        /// Host and port.
        peer: String,
        /// Its answer.
        reason: String,
    },
    /// It is not the kind of Redis that can be used: a Redis Cluster, or a Sentinel.
    #[error("Redis at {peer}: {problem}")]
    Mode {
        /// Host and port.
        peer: String,
        /// What it is, and what would be right.
        problem: String,
    },
    /// No Sentinel says where the master is. It may be tried again.
    #[error("Redis: no Sentinel tells the master {master:?}: {problem}")]
    Sentinel {
        /// What the master is called.
        master: String,
        /// What each says.
        problem: String,
    },
    /// It does not let us in.
    #[error("Redis at {peer} refuses the log-in: {reason}")]
    Auth {
        /// Host and port.
        peer: String,
        /// Its answer.
        reason: String,
    },
    /// No answer in time. What was sent may have been done.
    #[error("Redis: {doing} took longer than {after:.1?}{}", because(last))]
    Timeout {
        /// What was waited for.
        doing: &'static str,
        /// For how long.
        after: Duration,
        /// Why there was no connection, if that was the reason.
        last: Option<Arc<RedisError>>,
    },
    /// The connection ended.
    #[error(
        "the connection to Redis at {peer} was lost: {why}{}",
        if *.unknown { "; what was sent may have been done" } else { "" }
    )]
    Closed {
        /// Host and port.
        peer: String,
        /// What the system says.
        why: String,
        /// Whether a request had been sent whose answer is lost: its outcome is unknown.
        unknown: bool,
    },
    /// Redis answered with an error.
    #[error("Redis says {code} {message}")]
    Server {
        /// The first word: `ERR`, `OOM`, `READONLY`, `LOADING`, `WRONGTYPE`, …
        code: String,
        /// The rest.
        message: String,
    },
    /// What came is not Redis's protocol, or too large. The connection cannot be used any more.
    #[error("Redis at {peer}: {problem}")]
    Protocol {
        /// Host and port.
        peer: String,
        /// What came.
        problem: String,
    },
    /// The reply is not of the type that was asked for.
    #[error("Redis: unexpected reply: {0}")]
    Reply(String),
    /// Too much waits already; nothing was sent.
    #[error("too much waits for Redis already ({requests} requests, {bytes} bytes)")]
    Full {
        /// Requests that wait or have been sent.
        requests: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// The system has no file descriptor left.
    #[error("Redis: {0}")]
    System(String),
    /// A stop ended it.
    #[error("stopped")]
    Stopped,
}

fn because(last: &Option<Arc<RedisError>>) -> String {
    last.as_ref().map(|last| format!(" ({last})")).unwrap_or_default()
}

impl RedisError {
    /// What a loop does about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Dial(_)
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Closed { .. }
            | Self::Protocol { .. }
            | Self::Sentinel { .. } => ErrorClass::Reconnect,
            Self::Server { code, .. } => match code.as_str() {
                "BUSY" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN" | "MISCONF" | "NOREPLICAS" | "NOSCRIPT" | "OOM"
                | "TRYAGAIN" => ErrorClass::Retry,
                // After a fail-over the name may lead to the new master.
                "READONLY" => ErrorClass::Reconnect,
                "NOAUTH" | "NOPERM" | "WRONGPASS" => ErrorClass::Fatal,
                _ => ErrorClass::Rejected,
            },
            Self::Full { .. } | Self::System(_) => ErrorClass::Retry,
            Self::Reply(_) => ErrorClass::Rejected,
            Self::Stopped => ErrorClass::Cancelled,
            Self::Url(_) | Self::TooOld { .. } | Self::Mode { .. } | Self::Auth { .. } => ErrorClass::Fatal,
        }
    }

    /// What the operator can do about it, if it does not pass by itself.
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            Self::Dial(_) => "see that Redis runs and that host and port of its URL are right",
            Self::Tls { .. } => "see that the port is Redis's TLS port and that its certificate's authority is trusted",
            Self::TooOld { .. } => "use Redis 6 or later",
            Self::Auth { .. } => "put the user and the password into the URL: redis://user:password@host:port/0",
            Self::Sentinel { .. } => "see that the Sentinels run, and that master_name is what they call the master",
            Self::Protocol { .. } => {
                "see that the port is Redis's own, without TLS for redis:// and with TLS for rediss://"
            }
            Self::Server { code, .. } => match code.as_str() {
                "OOM" => "give Redis more memory (maxmemory) or empty its queues",
                "READONLY" => "this Redis is a replica: use the address of the master",
                "MISCONF" => "Redis cannot save to its disk and refuses to write: see its log",
                "NOPERM" => "let the user run that command (ACL SETUSER)",
                "WRONGTYPE" => "something else uses that key: rename or remove it, or use another prefix or database",
                "BUSY" => "a script runs for long in this Redis: SCRIPT KILL ends it",
                _ => return None,
            },
            _ => return None,
        })
    }

    /// Whether the connection that it happened on is of no use any more.
    pub fn connection_lost(&self) -> bool {
        self.class() == ErrorClass::Reconnect || matches!(self, Self::Stopped)
    }

    /// Whether Redis answered with an error of this code.
    pub fn is_server(&self, wanted: &str) -> bool {
        matches!(self, Self::Server { code, .. } if code == wanted)
    }

    /// The error as `phalanx_redis_requests_total` counts it.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            Self::Closed { .. } | Self::Dial(_) | Self::Tls { .. } | Self::Protocol { .. } | Self::Sentinel { .. } => {
                "lost"
            }
            Self::Stopped => "stopped",
            _ => "refused",
        }
    }
}

impl From<DialError> for RedisError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Cancelled => Self::Stopped,
            other => Self::Dial(Arc::new(other)),
        }
    }
}

impl From<&ServerError> for RedisError {
    fn from(error: &ServerError) -> Self {
        Self::Server { code: error.code().to_owned(), message: error.details().unwrap_or_default().to_owned() }
    }
}

impl From<RedisError> for redis::RedisError {
    fn from(error: RedisError) -> Self {
        std::io::Error::other(error).into()
    }
}

impl From<redis::RedisError> for RedisError {
    /// Gives back what went through the crate unchanged, and calls the crate's own errors by our names.
    fn from(error: redis::RedisError) -> Self {
        let source = std::error::Error::source(&error);
        if let Some(ours) = source
            .and_then(|source| source.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>())
            .and_then(|inner| inner.downcast_ref::<std::io::Error>())
            .or_else(|| source.and_then(|source| source.downcast_ref::<std::io::Error>()))
            .and_then(|io| io.get_ref())
            .and_then(|inner| inner.downcast_ref::<Self>())
        {
            return ours.clone();
        }
        match error.code() {
            Some(code) => {
                Self::Server { code: code.to_owned(), message: error.detail().unwrap_or_default().to_owned() }
            }
            None => Self::Reply(error.to_string()),
        }
    }
}

impl From<redis::ParsingError> for RedisError {
    fn from(error: redis::ParsingError) -> Self {
        Self::Reply(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_errors_come_back_from_the_crate_unchanged() {
        let ours = RedisError::Timeout { doing: "an answer", after: Duration::from_secs(5), last: None };
        let through: RedisError = redis::RedisError::from(ours.clone()).into();
        assert!(matches!(through, RedisError::Timeout { doing: "an answer", .. }), "{through:?}");
        let server = redis::parse_redis_value(b"-OOM command not allowed\r\n").unwrap().extract_error().unwrap_err();
        let server = RedisError::from(server);
        assert!(server.is_server("OOM") && server.class() == ErrorClass::Retry, "{server:?}");
        assert_eq!(server.to_string(), "Redis says OOM command not allowed");
        assert!(server.advice().is_some());
    }

    #[test]
    fn a_lost_answer_says_that_its_request_may_have_been_done() {
        let lost = |unknown| RedisError::Closed { peer: "h:1".to_owned(), why: "end of stream".to_owned(), unknown };
        assert_eq!(lost(false).to_string(), "the connection to Redis at h:1 was lost: end of stream");
        assert!(lost(true).to_string().ends_with("; what was sent may have been done"));
        assert!(lost(true).connection_lost());
    }
}
