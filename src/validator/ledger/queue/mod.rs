//! The message queue towards the facilitator: which updates of which jobs wait, in what order they may leave, and what
//! becomes of them. Pure: no thread, no lock, no clock.
//!
//! * Inside a job the order is strict: an update leaves when the one before it was accepted (or given up), through
//!   retries, reconnects and restarts. Across jobs, terminal statuses go first; the rest ages, so that nothing starves.
//! * An update leaves only when it is on disk: with the operating system for a step, with the disk for a terminal
//!   status.
//! * An update is deleted when the facilitator has answered it. One that is refused is tried again for a while, alone:
//!   only its own job waits for it. Then it is a dead letter, kept with the reason.
//! * A job moves forward only, and ends once.
//! * A signature runs one job: it is remembered with its job until it is too old to be taken.
//! * Nothing is kept that the link to the facilitator cannot carry.
//!
//! Its parts: `bounds`, `refused`, and `remembered`: what is known of jobs beside their updates, and for how long.

mod bounds;
mod refused;
mod remembered;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::bounds::{LedgerLimits, RetryPolicies, RetryPolicy};
pub use self::refused::{NotAdmitted, UpdateError};
use super::record::{DeadLetter, JobRecord, Update};
use crate::base::limits::{FACILITATOR_LINK_MESSAGE_BYTES, STATUS_STEP_BYTES};
use crate::base::now::Now;
use crate::identity::PublicKey;
use crate::link::{Outgoing, Rank};
use crate::protocol::{HordeFailureReason, JobStatus};
use crate::transport::Utf8Bytes;
use crate::validator::authorization::{MAX_SIGNATURE_AGE, SignatureId, latest_signed_at};
use crate::validator::status::Outcome;

/// How long a step may be passed by the terminal statuses of other jobs.
const STEP_PATIENCE: Duration = Duration::from_secs(1);

/// How long the newest machine specs of a miner may be passed by other messages.
const SPECS_PATIENCE: Duration = Duration::from_secs(10);

/// What the facilitator answers to an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It is stored.
    Stored,
    /// It was stored before: a repeat after a reconnect or a restart.
    StoredBefore,
    /// The job is not known there, perhaps not yet.
    NotFound(String),
    /// Anything else.
    Refused(String),
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored => f.write_str("success"),
            Self::StoredBefore => f.write_str("stored before"),
            Self::NotFound(reason) | Self::Refused(reason) => f.write_str(reason),
        }
    }
}

/// What follows from a reply.
#[derive(Debug, Default, PartialEq)]
pub struct Settled {
    /// The next update of the job.
    pub next: Option<Outgoing>,
    /// When the same update is tried again.
    pub retry_at: Option<Instant>,
    /// The update was given up.
    pub dead: bool,
}

/// Rows to write in one transaction.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    /// Jobs with their new record; `None` for a row to delete.
    pub rows: Vec<(u64, Option<Vec<u8>>)>,
    /// All updates up to this one are in here or were before.
    version: u64,
    /// A terminal status is among them.
    pub needs_sync: bool,
}

/// How much is in a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counts {
    /// Updates that wait for the facilitator.
    pub unsent: usize,
    /// Their bytes.
    pub unsent_bytes: usize,
    /// Jobs that have not ended.
    pub open_jobs: usize,
    /// Updates that were given up and are kept.
    pub dead: usize,
}

/// The queue itself.
#[derive(Debug)]
pub struct Ledger {
    limits: LedgerLimits,
    retries: RetryPolicies,
    /// How old a signature may be.
    signature_age: Duration,
    /// A signature of then or before may be one that is lost.
    signatures_lost_until: u64,
    jobs: HashMap<u64, JobEntry>,
    by_uuid: HashMap<Arc<str>, u64>,
    /// The job of each signature.
    by_signature: HashMap<SignatureId, u64>,
    /// Jobs that are over, oldest first.
    over: VecDeque<u64>,
    /// Of these, those beyond what is remembered whose signature could still be used: at most as many as signatures.
    over_signed: VecDeque<u64>,
    /// Of these, those beyond what is remembered on which a miner cheated, see `cheats`.
    over_cheated: VecDeque<u64>,
    /// Jobs whose first update waits for its next try.
    held: BTreeSet<(Instant, u64)>,
    /// The job of each dead letter, oldest first.
    dead_letters: VecDeque<u64>,
    dirty: Vec<u64>,
    forgotten: Vec<u64>,
    next_job: u64,
    version: u64,
    written: u64,
    synced: u64,
    counts: Counts,
    dead_bytes: usize,
}

#[derive(Debug)]
struct JobEntry {
    record: JobRecord,
    first: FirstUpdate,
    dirty: bool,
    refusals: u32,
    first_refusal: Option<Instant>,
}

/// Where the first update of a job is; those behind it wait here for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstUpdate {
    /// Here, until it is safe.
    Here,
    /// Here, until the time for another try; the job is in [`Ledger::held`].
    Held,
    /// With the link, until it is answered.
    WithLink,
}

impl JobEntry {
    fn new(record: JobRecord) -> Self {
        Self { record, first: FirstUpdate::Here, dirty: false, refusals: 0, first_refusal: None }
    }
}

/// The newest machine specs of a miner, in place of older ones of the same `slot` that still wait.
pub fn specs_message(slot: u64, text: impl Into<Utf8Bytes>, now: Now) -> Outgoing {
    Outgoing { rank: Rank::new(now.unix_millis(), SPECS_PATIENCE), ..Outgoing::newest(slot, text) }
}

impl Ledger {
    /// An empty ledger; `durable` says that updates leave only after [`Ledger::written`] and [`Ledger::synced`].
    pub fn new(limits: LedgerLimits, retries: RetryPolicies, durable: bool) -> Self {
        let watermark = if durable { 0 } else { u64::MAX };
        Self {
            limits,
            retries,
            signature_age: MAX_SIGNATURE_AGE,
            signatures_lost_until: 0,
            jobs: HashMap::new(),
            by_uuid: HashMap::new(),
            by_signature: HashMap::new(),
            over: VecDeque::new(),
            over_signed: VecDeque::new(),
            over_cheated: VecDeque::new(),
            held: BTreeSet::new(),
            dead_letters: VecDeque::new(),
            dirty: Vec::new(),
            forgotten: Vec::new(),
            next_job: 1,
            version: 0,
            written: watermark,
            synced: watermark,
            counts: Counts::default(),
            dead_bytes: 0,
        }
    }

    /// Signatures may be so old, and are remembered until then: [`MAX_SIGNATURE_AGE`], unless set.
    #[must_use]
    pub fn with_signature_age(self, signature_age: Duration) -> Self {
        Self { signature_age, ..self }
    }

    fn is_durable(&self) -> bool {
        self.written != u64::MAX
    }

    /// Takes over what an earlier process left, by job number; what it had not sent may leave at once. An update that
    /// the link cannot carry, as earlier releases kept them, is given up: an end is replaced by a failure that says so.
    pub fn restore(&mut self, records: impl IntoIterator<Item = (u64, JobRecord)>, now: Now) -> Vec<Outgoing> {
        let mut ready = Vec::new();
        for (number, mut record) in records {
            let changed = give_up_too_large(&mut record);
            self.next_job = self.next_job.max(number + 1);
            self.counts.unsent += record.updates.len();
            self.counts.unsent_bytes += record.updates.iter().map(|u| u.text.len()).sum::<usize>();
            self.counts.open_jobs += usize::from(!record.ended);
            self.counts.dead += record.dead.len();
            self.dead_bytes += record.dead.iter().map(|d| d.update.text.len()).sum::<usize>();
            self.dead_letters.extend(record.dead.iter().map(|_| number));
            self.by_uuid.insert(record.uuid.clone(), number);
            if let Some(signed) = &record.signed {
                self.by_signature.insert(signed.signature, number);
            }
            if record.signature_lost {
                self.signatures_lost_until = self.signatures_lost_until.max(latest_signed_at(record.taken_at));
            }
            if record.ended && record.updates.is_empty() {
                self.over.push_back(number);
            }
            self.jobs.insert(number, JobEntry::new(record));
            if changed {
                self.touch(number);
            }
            ready.extend(self.ready(number));
        }
        self.forget_old(now);
        ready
    }

    /// The jobs that have not ended, oldest first: number and uuid.
    pub fn open_jobs(&self) -> Vec<(u64, Arc<str>)> {
        let open = self.jobs.iter().filter(|(_, entry)| !entry.record.ended);
        let mut open: Vec<_> = open.map(|(number, entry)| (*number, entry.record.uuid.clone())).collect();
        open.sort_unstable_by_key(|(number, _)| *number);
        open
    }

    /// Registers a job, which may ask for a trusted miner; `None` if its uuid came before: a facilitator repeats
    /// requests for each of its open connections.
    pub fn take(&mut self, uuid: &str, on_trusted: bool, now: Now) -> Option<u64> {
        if self.by_uuid.contains_key(uuid) {
            return None;
        }
        let number = self.next_job;
        self.next_job += 1;
        let uuid: Arc<str> = uuid.into();
        self.by_uuid.insert(uuid.clone(), number);
        let record = JobRecord { on_trusted, ..JobRecord::new(uuid, now.unix_millis()) };
        self.jobs.insert(number, JobEntry::new(record));
        self.counts.open_jobs += 1;
        Some(number)
    }

    /// What there is to tell of a job when it ends: its uuid, when it was taken, and its miner.
    pub fn told(&self, job: u64) -> Option<(Arc<str>, u64, Option<PublicKey>)> {
        let record = &self.jobs.get(&job)?.record;
        Some((record.uuid.clone(), record.taken_at, record.miner))
    }

    /// Accepts an update of a job; gives its version, and the message if it may leave at once.
    ///
    /// # Errors
    /// [`UpdateError`]; then nothing has changed.
    pub fn accept(
        &mut self,
        job: u64,
        status: JobStatus,
        text: Utf8Bytes,
        now: Now,
    ) -> Result<(u64, Option<Outgoing>), UpdateError> {
        let entry = self.jobs.get_mut(&job).ok_or(UpdateError::NoSuchJob)?;
        let record = &mut entry.record;
        if record.ended {
            return Err(UpdateError::Ended { uuid: record.uuid.clone(), status });
        }
        if let Some(last) = record.last
            && !last.may_become(status)
        {
            return Err(UpdateError::Backwards { uuid: record.uuid.clone(), last, status });
        }
        let Counts { unsent, unsent_bytes, .. } = self.counts;
        let terminal = status.is_terminal();
        let most = if terminal { FACILITATOR_LINK_MESSAGE_BYTES } else { STATUS_STEP_BYTES };
        if text.len() > most {
            return Err(UpdateError::TooLarge { uuid: record.uuid.clone(), status, bytes: text.len(), most });
        }
        if !terminal && (unsent >= self.limits.updates || unsent_bytes + text.len() > self.limits.bytes) {
            return Err(UpdateError::Full { updates: unsent, bytes: unsent_bytes });
        }
        self.version += 1;
        self.counts.unsent += 1;
        self.counts.unsent_bytes += text.len();
        self.counts.open_jobs -= usize::from(terminal);
        record.last = Some(status);
        record.ended = terminal;
        record.updates.push_back(Update { status, queued_at: now.unix_millis(), text, version: self.version });
        self.touch(job);
        Ok((self.version, self.ready(job)))
    }

    /// Notes which miner has a job.
    pub fn ran_on(&mut self, job: u64, miner: PublicKey) {
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.record.miner = Some(miner);
            self.touch(job);
        }
    }

    /// The facilitator answered the update of `job` that was with the link.
    pub fn settle(&mut self, job: u64, reply: &Reply, now: Now) -> Settled {
        let Some(entry) = self.jobs.get_mut(&job) else { return Settled::default() };
        let Some(update) = entry.record.updates.front() else { return Settled::default() };
        entry.first = FirstUpdate::Here;
        let (policy, reason) = match reply {
            Reply::Stored | Reply::StoredBefore => {
                self.first_is_done(job, now);
                return Settled { next: self.ready(job), ..Settled::default() };
            }
            Reply::NotFound(reason) => (&self.retries.not_found, reason),
            Reply::Refused(reason) if update.status.is_terminal() => (&self.retries.terminal, reason),
            Reply::Refused(reason) => (&self.retries.step, reason),
        };
        entry.refusals += 1;
        let first = *entry.first_refusal.get_or_insert(now.mono);
        let again = now.mono + policy.delay(entry.refusals);
        if again <= first + policy.give_up_after {
            self.hold(job, again);
            return Settled { retry_at: Some(again), ..Settled::default() };
        }
        let reason = format!("refused {} times, last: {reason}", entry.refusals);
        self.give_up(job, reason, now);
        Settled { next: self.ready(job), dead: true, ..Settled::default() }
    }

    /// The link did not take the update of `job` that it was given: it is tried again after the pause of a refusal.
    pub fn not_sent(&mut self, job: u64, now: Instant) {
        if self.jobs.get(&job).is_some_and(|entry| entry.first == FirstUpdate::WithLink) {
            self.hold(job, now + self.retries.step.base);
        }
    }

    fn hold(&mut self, job: u64, until: Instant) {
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.first = FirstUpdate::Held;
            self.held.insert((until, job));
        }
    }

    /// The updates whose time for another try has come.
    pub fn retry(&mut self, now: Instant) -> Vec<Outgoing> {
        let mut again = Vec::new();
        while let Some((when, job)) = self.held.first().copied()
            && when <= now
        {
            self.held.pop_first();
            if let Some(entry) = self.jobs.get_mut(&job) {
                entry.first = FirstUpdate::Here;
            }
            again.extend(self.ready(job));
        }
        again
    }

    /// When [`Ledger::retry`] has something next.
    pub fn next_retry(&self) -> Option<Instant> {
        self.held.first().map(|(when, _)| *when)
    }

    /// Whether [`Ledger::batch`] would give rows.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.forgotten.is_empty()
    }

    /// The rows that have changed. The caller writes them, then calls [`Ledger::written`], and [`Ledger::synced`] if
    /// the batch asks for it; or [`Ledger::unwritten`] if that fails.
    pub fn batch(&mut self) -> Batch {
        let mut batch = Batch { version: self.version, ..Batch::default() };
        for number in std::mem::take(&mut self.dirty) {
            let Some(entry) = self.jobs.get_mut(&number) else { continue };
            entry.dirty = false;
            let last = entry.record.updates.back();
            batch.needs_sync |= last.is_some_and(|u| u.status.is_terminal() && u.version > self.synced);
            batch.rows.push((number, Some(entry.record.encode())));
        }
        batch.rows.extend(self.forgotten.drain(..).map(|number| (number, None)));
        batch
    }

    /// The batch could not be written: its rows will be in the next one. Its updates may leave all the same, since a
    /// facilitator that gets nothing is worse off than one that may get a job's end twice after a crash.
    pub fn unwritten(&mut self, batch: &Batch) -> Vec<Outgoing> {
        for (job, row) in &batch.rows {
            match row {
                Some(_) => self.touch(*job),
                None => self.forgotten.push(*job),
            }
        }
        let mut ready = self.written(batch);
        ready.extend(self.synced(batch));
        ready
    }

    /// The batch is with the operating system: gives the steps that may leave now.
    pub fn written(&mut self, batch: &Batch) -> Vec<Outgoing> {
        self.written = self.written.max(batch.version);
        if !batch.needs_sync {
            self.synced = self.synced.max(batch.version);
        }
        batch.rows.iter().filter_map(|(job, _)| self.ready(*job)).collect()
    }

    /// The batch is on disk: gives the terminal statuses that may leave now.
    pub fn synced(&mut self, batch: &Batch) -> Vec<Outgoing> {
        self.synced = self.synced.max(batch.version);
        batch.rows.iter().filter_map(|(job, _)| self.ready(*job)).collect()
    }

    /// Whether the update of this version is as safe as it was promised to be.
    pub fn is_safe(&self, version: u64) -> bool {
        version <= self.synced
    }

    /// The version of the newest update.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How much is inside.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// When the oldest update that waits was accepted from its job.
    pub fn oldest(&self) -> Option<u64> {
        self.jobs.values().filter_map(|entry| entry.record.updates.front()).map(|update| update.queued_at).min()
    }

    /// The first update of a job, if it may leave; then it counts as with the link.
    fn ready(&mut self, job: u64) -> Option<Outgoing> {
        let entry = self.jobs.get_mut(&job)?;
        let first = entry.record.updates.front()?;
        let safe = if first.status.is_terminal() { self.synced } else { self.written };
        if entry.first != FirstUpdate::Here || first.version > safe {
            return None;
        }
        entry.first = FirstUpdate::WithLink;
        let rank = Rank::new(first.queued_at, STEP_PATIENCE);
        // What stands before an end is as urgent as the end.
        let end = entry.record.updates.back().filter(|update| update.status.is_terminal());
        let rank = end.map_or(rank, |end| rank.min(Rank::new(end.queued_at, Duration::ZERO)));
        Some(Outgoing { rank, ..Outgoing::kept(job, first.text.clone()) })
    }

    fn touch(&mut self, job: u64) {
        if self.is_durable()
            && let Some(entry) = self.jobs.get_mut(&job)
            && !std::mem::replace(&mut entry.dirty, true)
        {
            self.dirty.push(job);
        }
    }

    /// The first update of a job has left for good.
    fn first_is_done(&mut self, job: u64, now: Now) -> Option<Update> {
        let entry = self.jobs.get_mut(&job)?;
        let update = entry.record.updates.pop_front()?;
        (entry.refusals, entry.first_refusal) = (0, None);
        self.counts.unsent -= 1;
        self.counts.unsent_bytes -= update.text.len();
        // Only the end is written at once: a step that a restart repeats is answered as stored already.
        if entry.record.ended && entry.record.updates.is_empty() {
            self.touch(job);
            self.over.push_back(job);
            self.forget_old(now);
        }
        Some(update)
    }

    fn give_up(&mut self, job: u64, reason: String, now: Now) {
        let Some(update) = self.first_is_done(job, now) else { return };
        self.counts.dead += 1;
        self.dead_bytes += update.text.len();
        self.dead_letters.push_back(job);
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.record.dead.push(DeadLetter { update, reason, at: now.unix_millis() });
            self.touch(job);
        }
        while self.counts.dead > self.limits.dead || self.dead_bytes > self.limits.dead_bytes {
            let Some(oldest) = self.dead_letters.pop_front() else { break };
            if let Some(entry) = self.jobs.get_mut(&oldest) {
                let dead = entry.record.dead.remove(0);
                self.counts.dead -= 1;
                self.dead_bytes -= dead.update.text.len();
                self.touch(oldest);
            }
        }
    }
}

/// Gives up the updates of a record that the link cannot carry; says whether there were any.
fn give_up_too_large(record: &mut JobRecord) -> bool {
    let is_too_large = |update: &Update| update.text.len() > FACILITATOR_LINK_MESSAGE_BYTES;
    let uuid = record.uuid.clone();
    let mut changed = false;
    for update in record.updates.iter_mut().filter(|update| is_too_large(update)) {
        changed = true;
        let (status, bytes) = (update.status, update.text.len());
        log::error!(
            "job {uuid}: {status}, kept by an earlier release, has {bytes} bytes and cannot be passed on: given up"
        );
        if status.is_terminal() {
            let why = format!("the job ended as {status}, but its message has {bytes} bytes and cannot be passed on");
            let end = Outcome::horde_failed(HordeFailureReason::GenericError, why).into_message(&uuid);
            (update.status, update.text) = (end.status, end.text);
            record.last = Some(end.status);
        }
    }
    record.updates.retain(|update| !is_too_large(update));
    changed
}

#[cfg(test)]
mod tests;
