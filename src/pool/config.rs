//! The numbers of a pool: what it is told, and what it tells. Pure.

use std::fmt;
use std::time::Duration;

use crate::base::limits::LONGEST_TIME;

/// The numbers of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Connections in all, of every key, leased, idle or being made.
    pub connections_max: usize,
    /// Connections of one key.
    pub per_key_max: usize,
    /// Callers that wait at most, each a thread; one more is refused at once.
    pub waiting_max: usize,
    /// An idle connection is closed after this.
    pub idle_time: Duration,
    /// A connection is not used for longer than this after it was made, less up to a tenth, at random, so that those
    /// that were made together do not end together. One that is leased then is closed when it comes back.
    pub life_time: Duration,
    /// A connection that was idle for this long is validated before it is given out.
    pub validate_after: Duration,
    /// How long a validation may take.
    pub validate_time: Duration,
    /// An idle connection is validated this often while it is idle.
    pub keepalive: Option<Duration>,
    /// How long making a connection may take, if the caller has more time.
    pub connect_time: Duration,
    /// A connection that is leased for this long is reported, once, with who has it.
    pub leak_after: Duration,
}

impl Default for PoolConfig {
    /// 256 connections, 1 for each key, 1,024 callers; idle for 10 min, 30 min in all; validated after 0.5 s within
    /// 5 s; no keepalive; connects within 15 s; reported after 5 min.
    fn default() -> Self {
        Self {
            connections_max: 256,
            per_key_max: 1,
            waiting_max: 1024,
            idle_time: Duration::from_secs(600),
            life_time: Duration::from_secs(1800),
            validate_after: Duration::from_millis(500),
            validate_time: Duration::from_secs(5),
            keepalive: None,
            connect_time: Duration::from_secs(15),
            leak_after: Duration::from_secs(300),
        }
    }
}

impl PoolConfig {
    /// What is wrong with the numbers, all at once.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, value) in [("connections_max", self.connections_max), ("per_key_max", self.per_key_max)] {
            if value == 0 {
                problems.push(format!("{name} is 0, it must be at least 1"));
            }
        }
        let times = [
            ("idle_time", self.idle_time),
            ("life_time", self.life_time),
            ("validate_time", self.validate_time),
            ("connect_time", self.connect_time),
            ("leak_after", self.leak_after),
            ("keepalive", self.keepalive.unwrap_or(LONGEST_TIME)),
        ];
        let zero = times.into_iter().filter(|(_, time)| time.is_zero());
        problems.extend(zero.map(|(name, _)| format!("{name} is nothing, it must be more")));
        if let Some(keepalive) = self.keepalive.filter(|keepalive| *keepalive >= self.idle_time) {
            let idle_time = self.idle_time;
            problems.push(format!("keepalive is {keepalive:?}, it must be less than idle_time {idle_time:?}"));
        }
        problems
    }
}

/// What a pool has and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PoolNumbers {
    /// Connections that callers have.
    pub leased: usize,
    /// Connections that wait for a caller.
    pub idle: usize,
    /// Connections that are being made or looked at, for a caller or by the pool.
    pub connecting: usize,
    /// Connections that are being closed; they count until they are.
    pub closing: usize,
    /// Callers that wait.
    pub waiting: usize,
    /// Connections made.
    pub connected: u64,
    /// Connections that could not be made.
    pub connect_failed: u64,
    /// Connections that were given out again.
    pub reused: u64,
    /// Connections whose validation failed, or took too long.
    pub invalid: u64,
    /// Connections that were idle for too long.
    pub idled: u64,
    /// Connections that were too old.
    pub retired: u64,
    /// Idle connections that made room for another key.
    pub evicted: u64,
    /// Connections that came back broken, were discarded, or were lost in a panic.
    pub discarded: u64,
    /// Connections that their holders have taken out of the pool.
    pub taken_out: u64,
    /// Leases that were reported as leaks.
    pub leaked: u64,
    /// Callers that gave up waiting.
    pub gave_up: u64,
    /// Callers that were refused because too many wait.
    pub full: u64,
}

impl fmt::Display for PoolNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { leased, idle, connecting, waiting, .. } = self;
        write!(f, "{leased} leased, {idle} idle, {connecting} connecting, {waiting} waiting")
    }
}

/// The last failure to connect to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastConnectError<E> {
    /// What was wrong.
    pub error: E,
    /// How long ago that was.
    pub age: Duration,
}

impl<E: fmt::Display> fmt::Display for LastConnectError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {:.1?} ago", self.error, self.age)
    }
}
