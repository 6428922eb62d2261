//! All decisions of a miner. Pure: no thread, channel, socket or clock; it takes what happened and says what to do.
//!
//! * `io`: what goes in and what comes out.
//! * `state`: what is known of connections and jobs.
//! * `job`: one job, what is kept of it for its validator, and its deadlines.
//! * `validators`: who is connected, authentication, what validators say.
//! * `host`: what executors run on; `hosts`: what happens to them, and which of them takes a job.
//! * `executors`: whose executor is connected, what executors say, how they end.
//! * `jobs`: a job from its request to its end.
//! * `saved`: a job as it is on disk; `restart`: which of them are to be written, and taking them back.
//!
//! The order of the actions is the order in which they must be done.

mod executors;
mod host;
mod hosts;
mod io;
mod job;
mod jobs;
mod restart;
mod saved;
mod state;
mod validators;

pub use host::{HostState, HostStatus};
pub use io::{
    Action, CLOSE_NORMAL, CLOSE_POLICY, Counted, ExecutorFrame, HostPlan, Input, Peer, Settings, TraceEvent,
    ValidatorFrame,
};
pub use job::JobKey;
pub use state::{MinerStatus, QuarantinedSlot, Router};

use crate::base::ids::SessionId;
use crate::base::now::Now;
use crate::link::said::{CLOSE_OVER_RATE, OverRate};
use crate::ops::errors::ErrorClass;

use state::{Validator, ValidatorState};

impl Router {
    /// Takes in what happened and says what to do.
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Action> {
        match input {
            Input::Opened { id, peer: Peer::Validator(hotkey), .. } => self.validator_opened(id, hotkey, now),
            Input::Opened { id, peer: Peer::Executor(token), address } => self.executor_opened(id, token, address, now),
            Input::FromValidator(id, frame) => self.validator_message(id, *frame, now),
            Input::FromExecutor(id, frame) => self.executor_message(id, *frame, now),
            Input::Spooled { token, frames } => self.spooled(&token, frames, now),
            Input::OverRate(id, over) => self.over_rate(id, over),
            Input::Closed(id) => self.closed(id, now),
            Input::Stored { job, number, result } => self.stored(job, number, result, now),
            Input::ExecutorEnded { token, end } => self.executor_ended(token, end, now),
            Input::Checked { host, found, images, due } => self.checked(host, found, images, due),
            Input::Reaped { host, trouble, due } => self.reaped(host, trouble, due),
            Input::ExecutorLeft { token, left } => self.executor_left(&token, left),
            Input::SlotReturned { token, clean } => self.slot_returned(token, clean, now),
            Input::Stop(level) => self.stop(level, now),
            Input::Paused(why) => self.paused = why,
            Input::Settings(settings) => self.set(*settings),
            Input::Tick => {}
        }
        self.tick(now);
        let mut actions = self.changes(now);
        actions.append(&mut self.out);
        actions
    }

    fn tick(&mut self, now: Now) {
        self.expire_checks(now);
        self.quarantine_overdue(now);
        self.expire_validators(now);
        self.expire_jobs(now);
        if !self.pool.take_back().is_empty() {
            self.release_drained();
        }
        self.serve_waiting(now);
        self.expire_waiting(now);
        if self.breach.is_none()
            && let Some(breach) = self.pool.breach()
        {
            let what = format!("slots were lost or made, which is a mistake in this program: {breach}");
            self.trouble(ErrorClass::Fatal, "slots", what);
            self.out.push(Action::Count(Counted::SlotBreach));
            self.breach = Some(breach);
        }
    }

    /// Ends the connection of a peer that says too much; its job, if it has one, waits for it as after a cut.
    fn over_rate(&mut self, id: SessionId, over: OverRate) {
        let who = match self.validators.get_mut(&id) {
            Some(Validator { state: ValidatorState::Refused, .. }) => return,
            Some(validator) => {
                validator.state = ValidatorState::Refused;
                format!("validator {}", validator.hotkey)
            }
            None if self.executors.contains_key(&id) => "an executor".to_owned(),
            None => return,
        };
        self.error("over-rate", format!("{id}: {who} is turned away: {over}"));
        self.out.push(Action::Count(Counted::OverRate(over.what)));
        self.complain(id, format!("Too much: {over}"));
        self.out.push(Action::Close(id, CLOSE_OVER_RATE, "you say too much"));
        self.validator_gone(id);
    }

    /// A peer does what it may not: this piece of its work is given up.
    fn error(&mut self, place: &'static str, what: String) {
        self.trouble(ErrorClass::Rejected, place, what);
    }

    /// The error handler is told.
    fn trouble(&mut self, class: ErrorClass, place: &'static str, what: String) {
        self.out.push(Action::Error(class, place, None, what));
    }

    fn closed(&mut self, id: SessionId, now: Now) {
        if self.validators.remove(&id).is_some() {
            self.validator_gone(id);
        } else if let Some(connected) = self.executors.remove(&id)
            && !connected.replaced
        {
            self.executor_gone(&connected.token, now);
        }
    }
}
