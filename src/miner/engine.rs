//! The thread that asks what jobs run on whether it answers, so that the miner offers executors only while it does.
//!
//! Owner: the [`Miner`](super::Miner). Blocks in: a check, or the wait for the next. Kick: the miner's stop signal.
//! Ends: with the kick.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, select};

use super::check::Gate;
use super::executor_manager::ExecutorBackend;
use super::images::Floor;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;

/// What a check shows: how jobs run, or why none can.
pub(super) type Engine = Result<String, String>;

/// Asks once, now; gives what is news.
pub(super) fn check(
    gate: &mut Gate,
    backend: &dyn ExecutorBackend,
    floor: Option<&Floor>,
    stop: &Shutdown,
) -> Option<Engine> {
    let limit = gate.limit(Instant::now());
    let has_room = || floor.map_or(Ok(()), |floor| floor.check(stop, limit));
    let found = backend.check(stop, limit).and_then(|what| has_room().map(|()| what));
    if stop.is_cancelled() {
        return None;
    }
    let news = gate.checked(found, Instant::now());
    match &news {
        Some(Ok(what)) => log::info!("jobs run {what}"),
        Some(Err(why)) => log::error!("no job can run, and none is taken until that is over: {why}"),
        None => {}
    }
    news
}

/// Asks until `stop`; a back end that comes from `backends` takes the place of the one before and is asked at once.
pub(super) fn run(
    mut gate: Gate,
    mut backend: Arc<dyn ExecutorBackend>,
    floor: Option<&Floor>,
    backends: &Receiver<Arc<dyn ExecutorBackend>>,
    stop: &Shutdown,
    report: impl Fn(Engine),
) {
    // A stop of any level ends what is being asked.
    let asking = stop.child();
    let cancel = asking.clone();
    let _at_once = stop.on(Level::Drain, move || cancel.cancel());
    loop {
        let wait = gate.next_check().saturating_duration_since(Instant::now());
        let waits = waiting("the next check of the engine", Some(gate.next_check()));
        select! {
            recv(stop.drain_receiver()) -> _ => return,
            recv(backends) -> other => match other {
                Ok(other) => backend = other,
                // The router has ended.
                Err(_) => return,
            },
            default(wait) => {}
        }
        drop(waits);
        if let Some(news) = check(&mut gate, backend.as_ref(), floor, &asking) {
            report(news);
        }
    }
}
