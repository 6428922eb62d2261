//! Keeps a list of miners as its source has it.
//!
//! Owner: [`MinerFeed`]. Its thread `miners` blocks in the wait for the next look, and in the look, which has a limit.
//! Kick: its signal, which interrupts both. Ends: after the kick.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use serde::Serialize;

use super::source::{MinerSource, MinersError};
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{Step, StopReport, stop_alone, stop_dropped};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::redact::OneLine;
use crate::validator::routing::MinerAddress;

/// What is known of a list of miners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeedStatus {
    /// Where it comes from.
    pub origin: String,
    /// Miners of the last good list.
    pub miners: usize,
    /// When that came.
    pub seconds_ago: u64,
    /// Why a later one is not used; `None` if there is none that is not used.
    pub last_error: Option<String>,
}

#[derive(Debug)]
struct FeedState {
    origin: String,
    miners: usize,
    at: Instant,
    last_error: Option<String>,
}

/// Looks at a source of miners at its interval, and at once when asked.
#[must_use = "stop joins its thread"]
pub struct MinerFeed {
    /// Taken by the stop.
    thread: Option<Thread<()>>,
    handle: FeedHandle,
}

/// What looks at a feed and asks it for a look; clones are the same. It may outlive its feed.
#[derive(Clone)]
pub struct FeedHandle {
    ask: Sender<()>,
    state: Arc<Mutex<FeedState>>,
}

impl fmt::Debug for MinerFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MinerFeed({:?})", lock(&self.handle.state))
    }
}

impl fmt::Debug for FeedHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FeedHandle({:?})", lock(&self.state))
    }
}

impl MinerFeed {
    /// Keeps `set` informed of each new list of `source`, of which `known` miners are known already. `stop` is the
    /// signal that interrupts the source: it is the feed's own, which it cancels.
    ///
    /// A list that cannot be used, or names nobody, changes nothing; `errors` and [`FeedHandle::status`] say why.
    pub fn start(
        mut source: Box<dyn MinerSource>,
        known: usize,
        stop: Shutdown,
        set: impl Fn(Vec<MinerAddress>) + Send + 'static,
        errors: &ErrorHandler,
    ) -> Self {
        let state = FeedState { origin: source.origin(), miners: known, at: Instant::now(), last_error: None };
        // One question waits; another would be answered by the same look.
        let (ask, asked) = bounded(1);
        let handle = FeedHandle { ask, state: Arc::new(Mutex::new(state)) };
        let (state, kicked, errors) = (handle.state.clone(), stop.clone(), errors.clone());
        let kick = Kick::new("its signal", move || kicked.cancel());
        let thread = spawn("miners", kick, move || {
            while let Some(by_signal) = next(&asked, source.as_mut(), &stop) {
                let look = source.look(by_signal);
                if stop.is_set() {
                    return;
                }
                note(&state, look, by_signal, &set, &errors);
            }
        });
        Self { thread: Some(thread), handle }
    }

    /// What looks at it.
    pub fn handle(&self) -> FeedHandle {
        self.handle.clone()
    }

    /// Stops it alone, within `budget`, as [`MinerFeed::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("list of miners", budget, |step| self.stop_in(step))
    }

    /// Ends the thread, also in the middle of a look.
    pub fn stop_in(mut self, step: &mut Step) {
        self.end(step);
    }

    fn end(&mut self, step: &mut Step) {
        if let Some(thread) = self.thread.take() {
            thread.kick();
            step.join(thread);
        }
    }
}

impl Drop for MinerFeed {
    fn drop(&mut self) {
        if self.thread.is_some() {
            stop_dropped(|step| self.end(step));
        }
    }
}

impl FeedHandle {
    /// Has the source read as a whole, at once. Never blocks.
    pub fn reload(&self) {
        // If it is full, a look is due already.
        let _full = self.ask.try_send(());
    }

    /// How the list is.
    pub fn status(&self) -> FeedStatus {
        let FeedState { origin, miners, at, last_error } = &*lock(&self.state);
        FeedStatus {
            origin: origin.clone(),
            miners: *miners,
            seconds_ago: at.elapsed().as_secs(),
            last_error: last_error.clone(),
        }
    }
}

/// Waits for the next look: whether somebody has asked for it; `None` at the end.
fn next(asked: &Receiver<()>, source: &mut dyn MinerSource, stop: &Shutdown) -> Option<bool> {
    let pause = source.next_look();
    let _waiting = waiting("the next look at the miners", Some(Instant::now() + pause));
    select! {
        recv(asked) -> asked => asked.ok().map(|()| true),
        recv(stop.drain_receiver()) -> _ => None,
        default(pause) => Some(false),
    }
}

fn note(
    state: &Mutex<FeedState>,
    look: Result<Option<Vec<MinerAddress>>, MinersError>,
    by_signal: bool,
    set: &dyn Fn(Vec<MinerAddress>),
    errors: &ErrorHandler,
) {
    let why = if by_signal { "SIGHUP: " } else { "" };
    match look {
        Ok(None) => {
            let mut state = lock(state);
            if state.last_error.take().is_some() {
                log::info!("{why}{} can be read again, with the same {} miners", state.origin, state.miners);
            }
        }
        Ok(Some(miners)) => {
            let mut state = lock(state);
            (state.miners, state.at, state.last_error) = (miners.len(), Instant::now(), None);
            log::info!("{why}{} miners from {}", miners.len(), state.origin);
            drop(state);
            set(miners);
        }
        Err(error) => {
            let error = error.to_string();
            let mut state = lock(state);
            if by_signal || state.last_error.as_ref() != Some(&error) {
                let what = format_args!("{why}the miners stay as they are: {}", OneLine(&error));
                errors.report_of(ErrorClass::Reconnect, "miner-list", why, &what);
            }
            state.last_error = Some(error);
        }
    }
}
