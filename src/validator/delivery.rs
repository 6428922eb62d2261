//! The message queue at work: updates come from jobs, go to disk, leave by the link, and end with the facilitator's answer.
//!
//! Owner: [`super::FacilitatorClient`]. Its thread `val-store` writes what has changed since it last looked, all in one
//! transaction (group commit), then lets those updates leave. Blocks in: its condition, and the disk. Kick:
//! closing the queue. Ends: when closed and everything is written.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded};
use tungstenite::Utf8Bytes;

use super::ledger::{Batch, Counts, Ledger, LedgerLimits, Moment, Reply, RetryPolicies, UpdateError};
use super::record::JobRecord;
use super::status::Outcome;
use crate::base::ids::Epoch;
use crate::base::lock::lock;
use crate::base::stop::Step;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::timer::{Alarm, TimerHandle};
use crate::base::waits::waiting;
use crate::identity::PublicKey;
use crate::link::{Answer, Answered, LinkHandle, Outgoing};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::metrics::{Counter, Metrics};
use crate::ops::status::Board;
use crate::protocol::{
    JobStatus, Response, ResponseStatus, V0JobStatusUpdate, V0MachineSpecsUpdate, ValidatorToFacilitator,
};
use crate::store::StoreError;
use crate::store::journal::{Change, Journal};

/// The pause before a failed write to the disk is tried again.
const WRITE_RETRY: Duration = Duration::from_secs(1);

/// How long the newest machine specs of a miner may be passed by other messages, in milliseconds.
const SPECS_PATIENCE: u64 = 10_000;

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
    /// Transactions.
    pub commits: Counter,
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
            commits: counter("phalanx_validator_commits_total", "Transactions of the state folder."),
        }
    }
}

/// An update was given up; it is kept, see `phalanx outbox`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// What was to be said, in its own words.
    pub text: Utf8Bytes,
    /// What the facilitator said to it.
    pub reason: String,
}

/// The queue; clones are the same.
#[derive(Clone)]
pub struct Delivery(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// The store thread waits here for changes.
    changed: Condvar,
    /// Producers wait here for the disk.
    safe: Condvar,
    /// Producers wait here for room.
    room: Condvar,
    link: OnceLock<LinkHandle>,
    timer: TimerHandle,
    retry_alarm: Mutex<Option<Alarm>>,
    totals: Totals,
    errors: ErrorHandler,
    on_dead: Box<dyn Fn(GivenUp) + Send + Sync>,
}

struct State {
    ledger: Ledger,
    /// What may leave as soon as there is a link.
    restored: Vec<Outgoing>,
    closed: bool,
    /// The store thread has ended.
    ended: bool,
    store_waits: bool,
    producers_wait: usize,
    room_wanted: usize,
    /// Nobody waits for room any more.
    hurried: bool,
    /// Why the last write to the disk failed.
    broken: Option<String>,
    /// Dropped when nothing waits for the facilitator.
    drained: Vec<Sender<()>>,
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
            if state.ended {
                return Err(NotOnDisk("the client has stopped".to_owned()));
            }
            state.producers_wait += 1;
            let _waiting = waiting("the disk to have an update", Some(deadline));
            state = inner.safe.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.producers_wait -= 1;
        }
    }
}

/// The store thread, to be joined by [`StoreThread::stop`].
#[derive(Debug)]
pub struct StoreThread {
    thread: Option<Thread<()>>,
    delivery: Delivery,
}

impl StoreThread {
    /// Writes what is left, and joins.
    pub fn stop(self, step: &mut Step) {
        self.delivery.close();
        if let Some(thread) = self.thread {
            step.join(thread);
        }
    }
}

/// Tells the producers that the store thread has ended.
struct Ended(Delivery);

impl Drop for Ended {
    fn drop(&mut self) {
        lock(&self.0.0.state).ended = true;
        self.0.0.safe.notify_all();
    }
}

impl Delivery {
    /// A queue that keeps its updates under `folder`, or in memory only. What an earlier process left there is taken
    /// over; what becomes of a job that it had begun and not ended is the caller's to say, see [`Delivery::open_jobs`].
    ///
    /// # Errors
    /// [`StoreError`], if the folder cannot be used.
    pub fn open(
        folder: Option<&Path>,
        limits: LedgerLimits,
        retries: RetryPolicies,
        timer: TimerHandle,
        board: &Board,
        on_dead: impl Fn(GivenUp) + Send + Sync + 'static,
    ) -> Result<(Self, StoreThread), StoreError> {
        let opened = folder.map(Journal::open).transpose()?;
        let mut ledger = Ledger::new(limits, retries, opened.is_some());
        let mut restored = Vec::new();
        let mut journal = None;
        if let Some((opened, recovered)) = opened {
            if let Some(damage) = &recovered.damage {
                let (what, aside) = (&damage.what, damage.kept_aside.display());
                log::error!(
                    "state folder: {what}; at least {} records are lost, the files are kept: {aside}",
                    damage.lost
                );
            }
            restored = ledger.restore(recovered.records.iter().filter_map(|(number, bytes)| {
                let record = JobRecord::decode(bytes);
                if let Err(error) = &record {
                    log::error!("state folder: row {number} is ignored: {error}");
                }
                Some((*number, record.ok()?))
            }));
            journal = Some(opened);
        }
        let state = State {
            ledger,
            restored,
            closed: false,
            ended: false,
            store_waits: false,
            producers_wait: 0,
            room_wanted: 0,
            hurried: false,
            broken: None,
            drained: Vec::new(),
        };
        let delivery = Self(Arc::new(Inner {
            state: Mutex::new(state),
            changed: Condvar::new(),
            safe: Condvar::new(),
            room: Condvar::new(),
            link: OnceLock::new(),
            timer,
            retry_alarm: Mutex::new(None),
            totals: Totals::new(&board.metrics),
            errors: board.errors.clone(),
            on_dead: Box::new(on_dead),
        }));
        let thread = journal.map(|journal| {
            let (writer, kick) = (delivery.clone(), delivery.clone());
            spawn("val-store", Kick::new("close the queue", move || kick.close()), move || {
                // Also when it panics, so that nobody waits for it.
                let _ended = Ended(writer.clone());
                writer.write_loop(journal);
            })
        });
        Ok((delivery.clone(), StoreThread { thread, delivery }))
    }

    /// The link by which updates leave; those of an earlier process leave first.
    pub fn attach(&self, link: LinkHandle) {
        if self.0.link.set(link).is_err() {
            log::error!("the queue has a link already");
        }
        // Only now, so that what others keep for the link meanwhile is not left behind; see `send`.
        let restored = std::mem::take(&mut lock(&self.0.state).restored);
        self.send(restored);
    }

    /// The jobs that have not ended, oldest first: number and uuid.
    pub fn open_jobs(&self) -> Vec<(u64, Arc<str>)> {
        lock(&self.0.state).ledger.open_jobs()
    }

    /// Registers a job; `None` if its uuid came before.
    pub fn take(&self, uuid: &str) -> Option<u64> {
        lock(&self.0.state).ledger.take(uuid, now())
    }

    /// Accepts a status of a job. Blocks on no disk and no peer; the ticket can be waited for.
    ///
    /// # Errors
    /// [`UpdateError`]; then nothing was accepted.
    pub fn update(&self, job: u64, status: JobStatus, text: impl Into<Utf8Bytes>) -> Result<Ticket, UpdateError> {
        self.update_by(job, status, text, Instant::now())
    }

    /// As [`Delivery::update`], but waits for room until `deadline`: the facilitator makes some by answering others. A stop
    /// that cancels the jobs ends the wait.
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
                Err(UpdateError::Full { .. }) if !state.hurried && Instant::now() < deadline => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    state.room_wanted += 1;
                    let _waiting = waiting("room for an update", Some(deadline));
                    state = self.0.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                    state.room_wanted -= 1;
                }
                Err(error) => return Err(error),
                Ok((version, ready)) => {
                    self.0.totals.accepted.inc();
                    self.wake_store(state);
                    self.send(ready);
                    return Ok(Ticket { delivery: self.clone(), version });
                }
            }
        }
    }

    /// The promise about everything accepted so far.
    pub fn last_ticket(&self) -> Ticket {
        Ticket { delivery: self.clone(), version: lock(&self.0.state).ledger.version() }
    }

    /// Notes which miner has a job.
    pub fn ran_on(&self, job: u64, miner: PublicKey) {
        let mut state = lock(&self.0.state);
        state.ledger.ran_on(job, miner);
        self.wake_store(state);
    }

    /// See [`Ledger::cheated`].
    ///
    /// # Errors
    /// Why the report changes nothing.
    pub fn cheated(&self, uuid: &str) -> Result<PublicKey, &'static str> {
        let mut state = lock(&self.0.state);
        let miner = state.ledger.cheated(uuid, now());
        self.wake_store(state);
        miner
    }

    /// The miners that were reported, each with the age of its newest report.
    pub fn cheaters(&self) -> Vec<(PublicKey, Duration)> {
        let now = now().wall;
        let cheaters = lock(&self.0.state).ledger.cheaters();
        cheaters.into_iter().map(|(miner, at)| (miner, Duration::from_millis(now.saturating_sub(at)))).collect()
    }

    /// Sends the specs of a miner's machine, in place of older ones of that miner that still wait. The facilitator does
    /// not answer them, so they are kept until they are written, and not over a restart.
    pub fn machine_specs(&self, specs: V0MachineSpecsUpdate) {
        let mut slot = DefaultHasher::new();
        specs.miner_hotkey.hash(&mut slot);
        let message = Outgoing {
            answer: Answer::OnError,
            rank: now().wall + SPECS_PATIENCE,
            slot: Some(slot.finish()),
            ..Outgoing::once(ValidatorToFacilitator::from(specs).encode())
        };
        self.send(Some(message));
    }

    /// The facilitator answered on the connection of `epoch`, in this order. Runs on the link's thread; blocks on no disk
    /// and no peer. After `false` it is not clear what further answers on this connection are about: it is given up, and
    /// they do not count.
    #[must_use]
    pub fn answered(&self, epoch: Epoch, responses: &[Response]) -> bool {
        let Some(link) = self.0.link.get() else { return true };
        if let Some(response) = responses.iter().find(|response| has(response, "auth.")) {
            self.0.errors.report(ErrorClass::Reconnect, "facilitator answer", &describe(response));
            link.kick();
            return false;
        }
        let is_certain = |response: &Response| response.status == ResponseStatus::Success || has(response, "job.");
        let answered = link.answered_all(epoch, responses.iter().map(is_certain));
        let mut settled = Vec::with_capacity(answered.len());
        let mut clear = true;
        for (response, answered) in responses.iter().zip(answered) {
            match answered {
                Answered::Message(message) => settled.push((message, response)),
                Answered::Nothing => {
                    let what = format!("an answer without a question: {}", describe(response));
                    self.0.errors.report(ErrorClass::Rejected, "facilitator answer", &what);
                }
                Answered::Unclear => {
                    let what = format!("it may be about machine specs or a status: {}", describe(response));
                    self.0.errors.report(ErrorClass::Reconnect, "facilitator answer", &what);
                    link.kick();
                    clear = false;
                    break;
                }
            }
        }
        self.settle(settled);
        clear
    }

    fn settle(&self, answered: Vec<(Outgoing, &Response)>) {
        let totals = &self.0.totals;
        let now = now();
        let mut next = Vec::with_capacity(answered.len());
        let mut refused = Vec::new();
        let mut state = lock(&self.0.state);
        for (message, response) in answered {
            let known = response.status == ResponseStatus::Error && !response.errors.is_empty();
            let repeated = known && response.errors.iter().all(|error| error.kind == "job.integrity_error");
            if repeated || response.status == ResponseStatus::Success {
                totals.stored.inc();
                totals.repeated.add(u64::from(repeated));
                next.extend(state.ledger.settle(message.tag, Reply::Stored, now).next);
                continue;
            }
            totals.refused.inc();
            let reason = describe(response);
            let not_found = has(response, "job.not_found");
            let reply = if not_found { Reply::NotFound(&reason) } else { Reply::Refused(&reason) };
            let settled = state.ledger.settle(message.tag, reply, now);
            next.extend(settled.next);
            refused.push((message.text, reason, settled.dead));
        }
        if state.ledger.counts().unsent == 0 {
            state.drained.clear();
        }
        let room_wanted = state.room_wanted > 0;
        self.wake_store(state);
        if room_wanted {
            self.0.room.notify_all();
        }
        self.send(next);
        if refused.is_empty() {
            return;
        }
        self.arm_retry();
        for (text, reason, dead) in refused {
            let class = if dead { ErrorClass::Rejected } else { ErrorClass::Retry };
            self.0.errors.report(class, "status update", &format!("{reason}: {}", shorten(&text)));
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
    fn wake_store(&self, mut state: std::sync::MutexGuard<'_, State>) {
        if state.ledger.is_dirty() && std::mem::take(&mut state.store_waits) {
            drop(state);
            self.0.changed.notify_one();
        }
    }

    fn send(&self, messages: impl IntoIterator<Item = Outgoing>) {
        let mut messages = messages.into_iter().peekable();
        if messages.peek().is_none() {
            return;
        }
        let link = match self.0.link.get() {
            Some(link) => link,
            None => {
                let mut state = lock(&self.0.state);
                match self.0.link.get() {
                    Some(link) => link,
                    None => return state.restored.extend(messages),
                }
            }
        };
        let refused = link.send_all(messages);
        if !refused.is_empty() {
            // The link has room for one message of each job, so it refuses only what it cannot send any more.
            let mut state = lock(&self.0.state);
            for full in refused {
                log::debug!("facilitator: {full}");
                state.ledger.not_sent(full.into_message().tag, now().mono);
            }
            drop(state);
            self.arm_retry();
        }
    }

    fn write_loop(&self, mut journal: Journal) {
        loop {
            let batch = {
                let mut state = lock(&self.0.state);
                loop {
                    if state.ledger.is_dirty() {
                        break state.ledger.batch();
                    }
                    if state.closed {
                        return;
                    }
                    state.store_waits = true;
                    let _waiting = waiting("updates to store", None);
                    state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            if let Err(error) = self.write(&mut journal, &batch) {
                let what = format!("{error}; updates leave without being on disk");
                self.0.errors.report(ErrorClass::Retry, "state folder", &what);
                let mut state = lock(&self.0.state);
                state.broken = Some(error.to_string());
                let ready = state.ledger.unwritten(&batch);
                let last_try = state.closed;
                self.0.safe.notify_all();
                drop(state);
                self.send(ready);
                if last_try {
                    return;
                }
                let mut state = lock(&self.0.state);
                let until = Instant::now() + WRITE_RETRY;
                let _waiting = waiting("its next try of the disk", Some(until));
                while !state.closed && Instant::now() < until {
                    let left = until.saturating_duration_since(Instant::now());
                    state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Steps leave when the system has them, terminal statuses when the disk has them.
    fn write(&self, journal: &mut Journal, batch: &Batch) -> Result<(), StoreError> {
        let changes = batch.rows.iter().map(|(id, row)| match row {
            Some(body) => Change::Put { id: *id, body },
            None => Change::Delete { id: *id },
        });
        journal.write(changes)?;
        self.0.totals.commits.inc();
        let ready = lock(&self.0.state).ledger.written(batch);
        self.send(ready);
        if batch.needs_sync {
            journal.sync()?;
        }
        let mut state = lock(&self.0.state);
        state.broken = None;
        let ready = state.ledger.synced(batch);
        let waiting = state.producers_wait > 0;
        drop(state);
        if waiting {
            self.0.safe.notify_all();
        }
        self.send(ready);
        Ok(())
    }

    fn close(&self) {
        let mut state = lock(&self.0.state);
        state.closed = true;
        // Whoever waits for the facilitator's answers waits for nothing now.
        state.drained.clear();
        drop(state);
        self.0.changed.notify_all();
    }

    /// The jobs are to end: nobody waits for room any more.
    pub fn hurry(&self) {
        lock(&self.0.state).hurried = true;
        self.0.room.notify_all();
    }

    /// Disconnects when nothing waits for the facilitator, or when the queue is closed.
    pub fn drained(&self) -> Receiver<()> {
        let (sender, receiver) = bounded(0);
        let mut state = lock(&self.0.state);
        if state.ledger.counts().unsent > 0 && !state.closed {
            state.drained.push(sender);
        }
        receiver
    }

    /// How much is inside.
    pub fn counts(&self) -> Counts {
        lock(&self.0.state).ledger.counts()
    }

    /// How long the oldest update has waited.
    pub fn oldest(&self) -> Option<Duration> {
        let oldest = lock(&self.0.state).ledger.oldest()?;
        Some(Duration::from_millis(now().wall.saturating_sub(oldest)))
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

/// The message that tells how a job ended.
pub(super) fn update_text(uuid: &str, outcome: Outcome) -> (JobStatus, Utf8Bytes) {
    let (status, metadata) = outcome.into_update();
    let update = V0JobStatusUpdate { uuid: uuid.to_owned(), status, metadata: Some(metadata) };
    (status, ValidatorToFacilitator::from(update).encode().into())
}

pub(super) fn describe(response: &Response) -> String {
    let errors: Vec<String> = response.errors.iter().map(|e| format!("{}: {}", e.kind, e.msg)).collect();
    format!("{} {}", response.status, errors.join("; "))
}

fn has(response: &Response, prefix: &str) -> bool {
    response.status == ResponseStatus::Error && response.errors.iter().any(|error| error.kind.starts_with(prefix))
}

/// The beginning of a message, as much as a log line bears.
fn shorten(text: &str) -> &str {
    let end = (0..=200.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

fn now() -> Moment {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment { mono: Instant::now(), wall: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
}
