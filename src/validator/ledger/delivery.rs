//! The ledger at work: updates come from jobs, go to disk, leave by the link, and end with the facilitator's answer.
//!
//! [`Delivery`] has no thread of its own: it runs on those of the jobs, of the link, of the timer, and of
//! [`disk`](super::disk).

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::cheats::ReportSigned;
use super::queue::{Counts, Ledger, NotAdmitted, Reply, UpdateError, specs_message};
use crate::base::clock::now;
use crate::base::drained::Drained;
use crate::base::limits::MACHINE_SPECS_BYTES;
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::text::truncated;
use crate::base::timer::{Alarm, TimerHandle};
use crate::base::waits::waiting;
use crate::identity::PublicKey;
use crate::link::{Answered, Kind, LinkHandle, Outgoing};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::jobs::Jobs;
use crate::ops::metrics::{Counter, Metrics};
use crate::ops::status::Board;
use crate::protocol::{JobStatus, V0MachineSpecsUpdate, ValidatorToFacilitator};
use crate::transport::Utf8Bytes;
use crate::validator::authorization::Authorized;
use crate::validator::status::EndMessage;

/// Bytes of what surrounds the machine specs in their message: two hotkeys and a uuid.
const ENVELOPE_BYTES: usize = 1 << 10;

/// As much of a message as a log line bears.
const SHOWN_BYTES: usize = 200;

/// What becomes of the updates, counted since the start.
#[derive(Debug)]
pub struct Totals {
    /// Accepted from jobs.
    pub accepted: Counter,
    /// Stored by the facilitator.
    pub stored: Counter,
    /// Of those, answered as stored before: repeats after a reconnect or a restart.
    pub repeated: Counter,
    /// Refusals, each followed by another try or a dead letter.
    pub refused: Counter,
    /// Given up.
    pub dead: Counter,
    /// Jobs that have ended, by outcome.
    pub ended: Ended,
    /// Transactions.
    pub commits: Counter,
}

/// Jobs that have ended, by outcome, counted since the start.
#[derive(Debug)]
pub struct Ended {
    /// The results are in.
    pub completed: Counter,
    /// The job itself failed.
    pub failed: Counter,
    /// Nobody took it.
    pub rejected: Counter,
    /// The horde failed it.
    pub horde_failed: Counter,
}

impl Ended {
    fn new(metrics: &Metrics) -> Self {
        let counter = |outcome| {
            let help = "Jobs that have ended, by outcome.";
            metrics.counter("phalanx_validator_jobs_ended_total", help, &[("outcome", outcome)])
        };
        Self {
            completed: counter("completed"),
            failed: counter("failed"),
            rejected: counter("rejected"),
            horde_failed: counter("horde_failed"),
        }
    }
}

impl Totals {
    fn new(metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help, &[]);
        Self {
            accepted: counter("phalanx_validator_updates_accepted_total", "Status updates taken from jobs."),
            stored: counter("phalanx_validator_updates_stored_total", "Status updates stored by the facilitator."),
            repeated: counter("phalanx_validator_updates_repeated_total", "Of those, the ones stored before."),
            refused: counter("phalanx_validator_updates_refused_total", "Refusals of status updates."),
            dead: counter("phalanx_validator_updates_dead_total", "Status updates that were given up."),
            ended: Ended::new(metrics),
            commits: counter("phalanx_validator_commits_total", "Transactions of the state folder."),
        }
    }
}

/// An update was given up; it is kept as a dead letter, see `phalanx outbox`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// The message.
    pub text: Utf8Bytes,
    /// The last answer of the facilitator.
    pub reason: String,
}

/// The ledger with its link; clones are the same.
#[derive(Clone)]
pub struct Delivery(pub(super) Arc<DeliveryShared>);

pub(super) struct DeliveryShared {
    pub(super) state: Mutex<DeliveryState>,
    /// The store thread waits here for changes.
    pub(super) changed: Condvar,
    /// Producers wait here for the disk.
    pub(super) safe: Condvar,
    /// Producers wait here for room.
    room: Condvar,
    link: LinkHandle,
    timer: TimerHandle,
    retry_alarm: Mutex<Option<Alarm>>,
    totals: Totals,
    pub(super) errors: ErrorHandler,
    jobs: Jobs,
    on_dead: Box<dyn Fn(GivenUp) + Send + Sync>,
}

pub(super) struct DeliveryState {
    pub(super) ledger: Ledger,
    pub(super) closed: bool,
    /// The store thread has ended.
    pub(super) store_ended: bool,
    pub(super) store_waits: bool,
    pub(super) producers_wait: usize,
    room_wanted: usize,
    /// Nobody waits for room any more.
    waits_cancelled: bool,
    /// Why the last write to the disk failed.
    pub(super) broken: Option<String>,
    /// Notified when nothing waits for the facilitator.
    drained: Drained,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Delivery({:?})", self.counts())
    }
}

/// The promise that an update is kept as [`Delivery`] says; waiting for it is a choice.
#[derive(Debug, Clone)]
pub struct Ticket {
    delivery: Delivery,
    version: u64,
}

/// An update is in memory, and on its way, but not on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the update is on its way, but not on disk: {0}")]
pub struct NotOnDisk(pub String);

impl Ticket {
    /// Blocks until the update is on disk (at once without a state folder), the disk fails, or the deadline has passed.
    ///
    /// # Errors
    /// [`NotOnDisk`]; the update leaves all the same, only a crash would lose it.
    pub fn wait(&self, deadline: Instant) -> Result<(), NotOnDisk> {
        self.wait_by(deadline, None)
    }

    /// As [`Ticket::wait`]; a stop of any level ends the wait.
    ///
    /// # Errors
    /// As [`Ticket::wait`].
    pub fn wait_unless(&self, stop: &Shutdown, deadline: Instant) -> Result<(), NotOnDisk> {
        let woken = self.delivery.clone();
        let _kick = stop.on(Level::Drain, move || {
            // Whoever has looked at the signal before it rose waits by then.
            drop(lock(&woken.0.state));
            woken.0.safe.notify_all();
        });
        self.wait_by(deadline, Some(stop))
    }

    fn wait_by(&self, deadline: Instant, stop: Option<&Shutdown>) -> Result<(), NotOnDisk> {
        let inner = &self.delivery.0;
        let mut state = lock(&inner.state);
        loop {
            if let Some(broken) = &state.broken {
                return Err(NotOnDisk(broken.clone()));
            }
            if state.ledger.is_safe(self.version) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NotOnDisk("the disk is too slow".to_owned()));
            }
            if state.store_ended {
                return Err(NotOnDisk("the client has stopped".to_owned()));
            }
            if stop.is_some_and(Shutdown::is_set) {
                return Err(NotOnDisk("a stop came first".to_owned()));
            }
            state.producers_wait += 1;
            let _waiting = waiting("the disk to have an update", Some(deadline));
            state = inner.safe.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.producers_wait -= 1;
        }
    }
}

impl Delivery {
    /// A ledger whose updates leave by `link`. It begins with what is in it already.
    pub(super) fn new(
        ledger: Ledger,
        link: LinkHandle,
        timer: TimerHandle,
        board: &Board,
        on_dead: impl Fn(GivenUp) + Send + Sync + 'static,
    ) -> Self {
        let state = DeliveryState {
            ledger,
            closed: false,
            store_ended: false,
            store_waits: false,
            producers_wait: 0,
            room_wanted: 0,
            waits_cancelled: false,
            broken: None,
            drained: Drained::default(),
        };
        Self(Arc::new(DeliveryShared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            safe: Condvar::new(),
            room: Condvar::new(),
            link,
            timer,
            retry_alarm: Mutex::new(None),
            totals: Totals::new(&board.metrics),
            errors: board.errors.clone(),
            jobs: board.jobs.clone(),
            on_dead: Box::new(on_dead),
        }))
    }

    /// The jobs that have not ended, oldest first: number and uuid.
    pub fn open_jobs(&self) -> Vec<(u64, Arc<str>)> {
        lock(&self.0.state).ledger.open_jobs()
    }

    /// Registers a job, which may ask for a trusted miner; `None` if its uuid came before.
    pub fn take(&self, uuid: &str, on_trusted: bool) -> Option<u64> {
        lock(&self.0.state).ledger.take(uuid, on_trusted, now())
    }

    /// Accepts a status of a job. Blocks on no disk and no peer; the ticket can be waited for.
    ///
    /// # Errors
    /// [`UpdateError`]; then nothing was accepted.
    pub fn update(&self, job: u64, status: JobStatus, text: impl Into<Utf8Bytes>) -> Result<Ticket, UpdateError> {
        self.update_by(job, status, text, Instant::now())
    }

    /// As [`Delivery::update`], but waits for room until `deadline`: the facilitator makes some by answering others. A
    /// stop that cancels the jobs ends the wait.
    ///
    /// # Errors
    /// [`UpdateError`]; then nothing was accepted.
    pub fn update_by(
        &self,
        job: u64,
        status: JobStatus,
        text: impl Into<Utf8Bytes>,
        deadline: Instant,
    ) -> Result<Ticket, UpdateError> {
        let text = text.into();
        let mut state = lock(&self.0.state);
        loop {
            match state.ledger.accept(job, status, text.clone(), now()) {
                Err(UpdateError::Full { .. }) if !state.waits_cancelled && Instant::now() < deadline => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    state.room_wanted += 1;
                    let _waiting = waiting("room for an update", Some(deadline));
                    state = self.0.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                    state.room_wanted -= 1;
                }
                Err(error) => return Err(error),
                Ok((version, ready)) => {
                    self.0.totals.accepted.inc();
                    let told = state.ledger.told(job);
                    self.wake_store(state);
                    self.send(ready);
                    if let Some((uuid, ..)) = told.filter(|_| !status.is_terminal()) {
                        self.0.jobs.step(&*uuid, status.as_str());
                    }
                    return Ok(Ticket { delivery: self.clone(), version });
                }
            }
        }
    }

    /// The promise about everything accepted so far.
    pub fn last_ticket(&self) -> Ticket {
        Ticket { delivery: self.clone(), version: lock(&self.0.state).ledger.version() }
    }

    /// Tells the error handler of an update of a job that is not passed on, or not on disk.
    pub(in crate::validator) fn trouble(&self, class: ErrorClass, uuid: &str, what: &dyn fmt::Display) {
        self.0.errors.report_of(class, "job-update", uuid, &format_args!("job {uuid}: {what}"));
    }

    /// Notes which miner has a job.
    pub fn ran_on(&self, job: u64, miner: PublicKey) {
        let mut state = lock(&self.0.state);
        state.ledger.ran_on(job, miner);
        let told = state.ledger.told(job);
        self.wake_store(state);
        if let Some((uuid, ..)) = told {
            self.0.jobs.peer(&*uuid, &miner.to_ss58());
        }
    }

    /// Notes by which signature a job runs, see [`Ledger::admit`].
    ///
    /// # Errors
    /// [`NotAdmitted`].
    pub fn admit(&self, job: u64, authorized: &Authorized) -> Result<(), NotAdmitted> {
        // The job's next update wakes the store thread.
        let admitted = lock(&self.0.state).ledger.admit(job, authorized, now());
        if let Err(full @ NotAdmitted::Full(_)) = &admitted {
            self.0.errors.report(ErrorClass::Rejected, "job-signatures", full);
        }
        admitted
    }

    /// Accepts the end of a job, counts it and logs it. Blocks on no disk and no peer.
    ///
    /// # Errors
    /// [`UpdateError`]; then nothing was accepted.
    pub(in crate::validator) fn end(&self, job: u64, end: EndMessage) -> Result<Ticket, UpdateError> {
        let EndMessage { status, reason, text } = end;
        let ticket = self.update(job, status, text)?;
        let told = lock(&self.0.state).ledger.told(job);
        let ended = &self.0.totals.ended;
        match status {
            JobStatus::Completed => ended.completed.inc(),
            JobStatus::Failed => ended.failed.inc(),
            JobStatus::Rejected => ended.rejected.inc(),
            _ => ended.horde_failed.inc(),
        }
        if let Some((uuid, taken_at, miner)) = told {
            self.0.jobs.end(&*uuid, status.as_str(), reason);
            let seconds = Duration::from_millis(now().unix_millis().saturating_sub(taken_at)).as_secs_f64();
            let reason = reason.unwrap_or("none");
            let miner = miner.map_or_else(|| "none".to_owned(), |miner| miner.to_string());
            log::info!("job {uuid}: ended as {status}, reason {reason}, after {seconds:.3} s, miner {miner}");
        }
        Ok(ticket)
    }

    /// See [`Ledger::did_not_run_on`].
    pub fn did_not_run_on(&self, uuid: &str, miner: &PublicKey) -> bool {
        lock(&self.0.state).ledger.did_not_run_on(uuid, miner)
    }

    /// See [`Ledger::cheated`].
    ///
    /// # Errors
    /// Why the report changes nothing.
    pub fn cheated(&self, uuid: &str, trusted: &str, report: ReportSigned) -> Result<PublicKey, &'static str> {
        let mut state = lock(&self.0.state);
        let miner = state.ledger.cheated(uuid, trusted, report, now());
        self.wake_store(state);
        miner
    }

    /// The miners that were reported, each with the age of its newest report.
    pub fn cheaters(&self) -> Vec<(PublicKey, Duration)> {
        let now = now().unix_millis();
        let cheaters = lock(&self.0.state).ledger.cheaters();
        cheaters.into_iter().map(|(miner, at)| (miner, Duration::from_millis(now.saturating_sub(at)))).collect()
    }

    /// Sends the specs of a miner's machine, in place of older ones of that miner that still wait. The facilitator does
    /// not answer them, so they are kept until they are written, and not over a restart.
    pub fn machine_specs(&self, specs: V0MachineSpecsUpdate) {
        let mut slot = DefaultHasher::new();
        specs.miner_hotkey.hash(&mut slot);
        let text = ValidatorToFacilitator::from(specs).encode();
        if text.len() > MACHINE_SPECS_BYTES + ENVELOPE_BYTES {
            let what =
                format!("machine specs of {} bytes, not at most {MACHINE_SPECS_BYTES}, are left out", text.len());
            return self.0.errors.report(ErrorClass::Rejected, "machine-specs", &what);
        }
        self.send([specs_message(slot.finish(), text, now())]);
    }

    /// The facilitator answered, in this order. Runs on the link's thread; blocks on no disk and no peer.
    pub fn answered(&self, answers: Vec<Answered<Reply>>) {
        let totals = &self.0.totals;
        let now = now();
        let mut next = Vec::with_capacity(answers.len());
        let (mut refused, mut unmatched) = (Vec::new(), Vec::new());
        let mut state = lock(&self.0.state);
        for answered in answers {
            let (message, reply) = match answered {
                Answered::Message(message, reply) => (message, reply),
                Answered::Nothing(reply) => {
                    unmatched.push((ErrorClass::Rejected, "an answer without a question", reply));
                    continue;
                }
                Answered::Unclear(reply) => {
                    unmatched.push((ErrorClass::Reconnect, "an answer of which nobody knows what it answers", reply));
                    continue;
                }
            };
            let Kind::Kept { tag: job } = message.kind else { continue };
            let settled = state.ledger.settle(job, &reply, now);
            next.extend(settled.next);
            match reply {
                Reply::Stored => totals.stored.inc(),
                Reply::StoredBefore => {
                    totals.stored.inc();
                    totals.repeated.inc();
                }
                Reply::NotFound(reason) | Reply::Refused(reason) => {
                    totals.refused.inc();
                    refused.push((message.text, reason, settled.dead));
                }
            }
        }
        if state.ledger.counts().unsent == 0 {
            state.drained.notify();
        }
        let room_wanted = state.room_wanted > 0;
        self.wake_store(state);
        if room_wanted {
            self.0.room.notify_all();
        }
        self.send(next);
        for (class, what, reply) in unmatched {
            self.0.errors.report(class, "facilitator-answer", &format!("{what}: {reply}"));
        }
        if refused.is_empty() {
            return;
        }
        self.arm_retry();
        for (text, reason, dead) in refused {
            let class = if dead { ErrorClass::Rejected } else { ErrorClass::Retry };
            let what = format!("{reason}: {}", truncated(&text, SHOWN_BYTES));
            self.0.errors.report(class, "status-update", &what);
            if dead {
                totals.dead.inc();
                (self.0.on_dead)(GivenUp { text, reason });
            }
        }
    }

    /// One alarm, for the update that is due first.
    fn arm_retry(&self) {
        // Held until the alarm is in its place: of two that arm at a time, the later look must be the one that stays.
        let mut slot = lock(&self.0.retry_alarm);
        let Some(when) = lock(&self.0.state).ledger.next_retry() else { return };
        let weak = Arc::downgrade(&self.0);
        let alarm = self.0.timer.at(when, move || {
            let Some(inner) = weak.upgrade() else { return };
            let delivery = Delivery(inner);
            let again = lock(&delivery.0.state).ledger.retry(Instant::now());
            delivery.send(again);
            delivery.arm_retry();
        });
        let old = slot.replace(alarm);
        drop(slot);
        drop(old);
    }

    /// Wakes the store thread if it waits and there is something to write.
    fn wake_store(&self, mut state: MutexGuard<'_, DeliveryState>) {
        if state.ledger.is_dirty() && std::mem::take(&mut state.store_waits) {
            drop(state);
            self.0.changed.notify_one();
        }
    }

    pub(super) fn send(&self, messages: impl IntoIterator<Item = Outgoing>) {
        let mut messages = messages.into_iter().peekable();
        if messages.peek().is_none() {
            return;
        }
        let refused = self.0.link.send_all(messages);
        if !refused.is_empty() {
            // The link has room for one message of each job, so it refuses only what it cannot send any more.
            let mut state = lock(&self.0.state);
            for full in refused {
                log::debug!("facilitator: {full}");
                if let Kind::Kept { tag: job } = full.into_message().kind {
                    state.ledger.not_sent(job, Instant::now());
                }
            }
            drop(state);
            self.arm_retry();
        }
    }

    pub(super) fn close(&self) {
        let mut state = lock(&self.0.state);
        state.closed = true;
        // Whoever waits for the facilitator's answers waits for nothing now.
        state.drained.notify();
        drop(state);
        self.0.changed.notify_all();
    }

    /// The jobs are to end: nobody waits for room any more.
    pub fn cancel_waits(&self) {
        lock(&self.0.state).waits_cancelled = true;
        self.0.room.notify_all();
    }

    /// Disconnects when nothing waits for the facilitator, or when the queue is closed.
    pub fn drained(&self) -> Receiver<()> {
        let mut state = lock(&self.0.state);
        let empty = state.ledger.counts().unsent == 0 || state.closed;
        state.drained.watch(empty)
    }

    /// How much is inside.
    pub fn counts(&self) -> Counts {
        lock(&self.0.state).ledger.counts()
    }

    /// How long the oldest update has waited.
    pub fn oldest(&self) -> Option<Duration> {
        let oldest = lock(&self.0.state).ledger.oldest()?;
        Some(Duration::from_millis(now().unix_millis().saturating_sub(oldest)))
    }

    /// Why updates are not on disk at the moment, if so.
    pub fn broken(&self) -> Option<String> {
        lock(&self.0.state).broken.clone()
    }

    /// What became of the updates so far.
    pub fn totals(&self) -> &Totals {
        &self.0.totals
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LedgerLimits, RetryPolicies};
    use super::*;
    use crate::base::thread::{Group, Kick, spawn};
    use crate::base::timer::Timer;
    use crate::base::wait::{far, until_some};
    use crate::link::{Link, LinkConfig};
    use crate::transport::ws::WsDialer;

    #[test]
    fn a_stop_ends_the_wait_for_a_disk_that_hangs() {
        let timer = Timer::start();
        let (link, _idle) =
            Link::new(LinkConfig::new("t", "ws://nobody"), Arc::new(WsDialer::default()), timer.handle());
        // Durable, and nobody writes.
        let ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
        let delivery = Delivery::new(ledger, link, timer.handle(), &Board::new(), drop);
        let job = delivery.take("a", false).unwrap();
        let ticket = delivery.update(job, JobStatus::Received, "received").unwrap();
        let stop = Shutdown::new();
        let group = Group::enter();
        let (again, signal) = (ticket.clone(), stop.clone());
        let kick = Kick::dropped("the signal");
        let waits = spawn("t-ticket", kick, move || again.wait_unless(&signal, far()));
        let what = "the disk to have an update";
        until_some(what, || group.live().iter().find(|thread| thread.activity.waits_for == Some(what)).map(drop));
        stop.drain();
        let stopped = Err(NotOnDisk("a stop came first".to_owned()));
        assert_eq!(waits.join_by(far()).unwrap(), stopped);
        assert_eq!(ticket.wait_unless(&stop, far()), stopped, "nor does one begin");
        assert_eq!(ticket.wait(Instant::now()), Err(NotOnDisk("the disk is too slow".to_owned())));
    }
}
