//! The thread of a pool: closes what is idle for too long or too old, validates what is silent, reports leaks.
//!
//! Owner: [`Pool`]. Blocks in: a condition variable, until the next of these is due, and in the connector's `validate`.
//! Kick: the pool's own stop signal, which `validate` is given too. Ends: when the pool stops or is dropped.

use std::time::{Duration, Instant};

use super::config::PoolConfig;
use super::connections::Connections;
use super::connector::Connector;
use super::until::Until;
use crate::base::lock::{lock, wait, wait_timeout};
use crate::base::stop::{Step, StopReport, stop_alone, stop_dropped};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;

/// Owns the connections of one connector, and the thread that looks after them. Dropping it is a stop that waits for no
/// lease; what is leased then is closed when it comes back.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use phalanx::base::shutdown::Shutdown;
/// use phalanx::pool::{AcquireError, Connector, Pool, PoolConfig, Until};
///
/// /// Connections that are numbers.
/// struct Numbers;
///
/// impl Connector for Numbers {
///     type Key = &'static str;
///     type Connection = u32;
///     type Error = String;
///
///     fn connect(&self, key: &&'static str, _: Until<'_>) -> Result<u32, String> {
///         key.parse().map_err(|_| format!("{key} is no number"))
///     }
///
///     fn validate(&self, _: &mut u32, _: Until<'_>) -> Result<(), String> {
///         Ok(())
///     }
/// }
///
/// let shutdown = Shutdown::new();
/// let until = || Until::new(Instant::now() + Duration::from_secs(5), &shutdown);
/// let pool = Pool::start(PoolConfig::default(), Numbers);
/// let connections = pool.connections();
///
/// let mut lease = connections.acquire(&"7", until())?;
/// assert_eq!(*lease, 7);
/// *lease = 8;
/// drop(lease);
/// assert_eq!(*connections.acquire(&"7", until())?, 8, "the same connection again");
/// let error = connections.acquire(&"x", until()).unwrap_err();
/// assert_eq!(error.to_string(), "cannot connect: x is no number (0 leased, 1 idle, 0 connecting, 0 waiting)");
///
/// assert!(pool.stop(Duration::from_secs(5)).is_clean());
/// assert_eq!(connections.acquire(&"7", until()).unwrap_err(), AcquireError::PoolStopped);
/// # Ok::<(), AcquireError<String>>(())
/// ```
pub struct Pool<C: Connector> {
    connections: Connections<C>,
    /// `None` once it is joined.
    thread: Option<Thread<()>>,
}

impl<C: Connector> std::fmt::Debug for Pool<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pool").field(&self.connections).finish()
    }
}

impl<C: Connector> Pool<C> {
    /// Starts a pool without connections; they are made when they are asked for. Its numbers should have no
    /// [`PoolConfig::problems`].
    pub fn start(config: PoolConfig, connector: C) -> Self {
        let connections = Connections::new(config, connector);
        let (kept, stopped) = (connections.clone(), connections.clone());
        let kick = Kick::new("the pool's stop", move || stopped.stop_keeper());
        let thread = spawn("pool", kick, move || run(&kept));
        Self { connections, thread: Some(thread) }
    }

    /// Where the connections are had.
    pub fn connections(&self) -> Connections<C> {
        self.connections.clone()
    }

    /// Stops it alone, within `budget`, as [`Pool::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("connections", budget, |step| self.stop_in(step))
    }

    /// Gives nothing out any more, closes what is idle, and waits for the leases until the step's deadline. Then it
    /// ends the thread. Leases that are left are logged, and closed when they come back.
    pub fn stop_in(mut self, step: &mut Step) {
        self.connections.stop();
        if !step.wait(&self.connections.drained()) {
            for lease in self.connections.leases() {
                log::warn!("the pool stops without it: {}", lease.line(Instant::now()));
            }
        }
        self.end(step);
    }

    fn end(&mut self, step: &mut Step) {
        self.connections.stop();
        self.connections.stop_keeper();
        if let Some(thread) = self.thread.take() {
            step.join(thread);
        }
    }
}

impl<C: Connector> Drop for Pool<C> {
    fn drop(&mut self) {
        if self.thread.is_some() {
            stop_dropped(|step| self.end(step));
        }
    }
}

fn run<C: Connector>(pool: &Connections<C>) {
    let shared = &pool.0;
    let mut state = lock(&shared.state);
    while !shared.stopping.is_set() {
        let now = Instant::now();
        state.policy.sweep(now);
        let silent = state.policy.take_silent(now);
        let (leaks, next_leak) = pool.leaks(&mut state, now);
        if silent.is_some() || !leaks.is_empty() || state.policy.has_to_close() {
            // Closes what is over.
            pool.let_go(state);
            for leak in leaks {
                log::warn!("{}", leak.line(now));
            }
            if let Some((key, mut kept)) = silent {
                let good =
                    pool.is_good(&mut kept, true, Until::new(now + shared.config.validate_time, &shared.stopping));
                pool.kept_alive(&key, kept, good);
            }
            state = lock(&shared.state);
            continue;
        }
        let due = [state.policy.next_due(), next_leak].into_iter().flatten().min();
        state.sleeps_until = due;
        state = match due {
            Some(due) => {
                let _waiting = waiting("a connection that is over", Some(due));
                wait_timeout(&shared.due, state, due.saturating_duration_since(now))
            }
            None => {
                let _waiting = waiting("a connection", None);
                wait(&shared.due, state)
            }
        };
    }
}
