//! Why a caller has no connection, and who has the ones that there are. Pure.

use std::fmt;
use std::panic::Location;
use std::time::Instant;

use super::config::{LastConnectError, PoolNumbers};

/// Who has a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInfo<K> {
    /// Of which peer.
    pub key: K,
    /// The name of the thread that acquired it.
    pub thread: String,
    /// The call that acquired it.
    pub at: &'static Location<'static>,
    /// When.
    pub since: Instant,
}

impl<K: fmt::Debug> LeaseInfo<K> {
    /// As a line.
    pub fn line(&self, now: Instant) -> String {
        let held = now.saturating_duration_since(self.since);
        format!(
            "a connection of {:?} is held for {held:.1?} by thread {}, acquired at {}",
            self.key, self.thread, self.at
        )
    }
}

/// Why a caller has no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError<E: fmt::Display> {
    /// None was free, and none could be made, by the deadline.
    #[error("no connection in time ({numbers}){}", shown(.last_error))]
    TimedOut {
        /// The pool, then.
        numbers: Box<PoolNumbers>,
        /// The last failure to connect to this peer, if there was any.
        last_error: Option<LastConnectError<E>>,
    },
    /// As many callers wait as may. The caller has not waited; it may try again later.
    #[error("no connection: as many wait as may ({numbers}){}", shown(.last_error))]
    Full {
        /// The pool, then.
        numbers: Box<PoolNumbers>,
        /// The last failure to connect to this peer, if there was any.
        last_error: Option<LastConnectError<E>>,
    },
    /// The caller's signal was raised.
    #[error("stopped while waiting for a connection ({numbers})")]
    Stopped {
        /// The pool, then.
        numbers: Box<PoolNumbers>,
    },
    /// The pool has stopped; it gives no connection any more.
    #[error("the pool of connections has stopped")]
    PoolStopped,
    /// One could not be made.
    #[error("cannot connect: {error} ({numbers})")]
    ConnectFailed {
        /// What was wrong.
        error: E,
        /// The pool, then.
        numbers: Box<PoolNumbers>,
    },
}

fn shown<E: fmt::Display>(last: &Option<LastConnectError<E>>) -> String {
    last.as_ref().map(|last| format!("; the last connect failed: {last}")).unwrap_or_default()
}
