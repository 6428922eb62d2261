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

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cheats;
use super::record::{DeadLetter, JobRecord, Signed, Update};
use crate::base::backoff::exponential;
use crate::base::limits::{
    DEAD_BYTES, DEAD_LETTERS, FACILITATOR_LINK_MESSAGE_BYTES, SEEN_JOBS, SIGNED_JOBS, STATUS_BYTES, STATUS_MESSAGES,
    STATUS_STEP_BYTES,
};
use crate::base::now::Now;
use crate::identity::PublicKey;
use crate::link::{Outgoing, Rank};
use crate::ops::errors::ErrorClass;
use crate::protocol::{HordeFailureReason, JobStatus};
use crate::transport::Utf8Bytes;
use crate::validator::authorization::{Authorized, MAX_SIGNATURE_AGE, SignatureId, counts_until};
use crate::validator::status::Outcome;

/// How long a step may be passed by the terminal statuses of other jobs.
const STEP_PATIENCE: Duration = Duration::from_secs(1);

/// How long the newest machine specs of a miner may be passed by other messages.
const SPECS_PATIENCE: Duration = Duration::from_secs(10);

/// When a refused update is tried again, and when it is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The pause after the first refusal; it doubles with each.
    pub base: Duration,
    /// The longest pause.
    pub cap: Duration,
    /// How long after the first refusal it is given up.
    pub give_up_after: Duration,
}

impl RetryPolicy {
    fn delay(&self, refusals: u32) -> Duration {
        exponential(self.base, self.cap, refusals.saturating_sub(1))
    }
}

/// The retry policies by kind of refusal and class of update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicies {
    /// `job.not_found`: the facilitator may not have stored its own job yet.
    pub not_found: RetryPolicy,
    /// Any other error about a step.
    pub step: RetryPolicy,
    /// Any other error about a terminal status.
    pub terminal: RetryPolicy,
}

impl Default for RetryPolicies {
    /// Not found: 0.5 s to 10 s, for 2 minutes. Steps: 1 s to 10 s, for 15 s. Terminal statuses: 1 s to 60 s, for 10
    /// minutes.
    fn default() -> Self {
        let policy = |base, cap, give_up_after| RetryPolicy {
            base: Duration::from_millis(base),
            cap: Duration::from_secs(cap),
            give_up_after: Duration::from_secs(give_up_after),
        };
        Self { not_found: policy(500, 10, 120), step: policy(1000, 10, 15), terminal: policy(1000, 60, 600) }
    }
}

/// Bounds of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLimits {
    /// Updates that wait.
    pub updates: usize,
    /// Bytes of their texts.
    pub bytes: usize,
    /// Jobs whose uuid is remembered after their end was accepted, those not counted whose signature is not too old.
    pub remembered: usize,
    /// Jobs that are remembered with their signature; another is turned away.
    pub signed: usize,
    /// Dead letters.
    pub dead: usize,
    /// Bytes of their texts.
    pub dead_bytes: usize,
}

impl Default for LedgerLimits {
    /// See [`crate::base::limits`].
    fn default() -> Self {
        Self {
            updates: STATUS_MESSAGES,
            bytes: STATUS_BYTES,
            remembered: SEEN_JOBS,
            signed: SIGNED_JOBS,
            dead: DEAD_LETTERS,
            dead_bytes: DEAD_BYTES,
        }
    }
}

/// An update was not accepted from its job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The job has its terminal status; it takes no more updates.
    #[error("job {uuid} has ended: {status} comes too late")]
    Ended {
        /// The job.
        uuid: Arc<str>,
        /// The status that was refused.
        status: JobStatus,
    },
    /// The job was further already.
    #[error("job {uuid} is {last}: it cannot go back to {status}")]
    Backwards {
        /// The job.
        uuid: Arc<str>,
        /// Where it is.
        last: JobStatus,
        /// The status that was refused.
        status: JobStatus,
    },
    /// Too many updates wait for the facilitator. Only steps meet this; a terminal status is always taken.
    #[error("too many updates wait for the facilitator: {updates}, {bytes} bytes")]
    Full {
        /// Updates that wait.
        updates: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// The link to the facilitator does not carry an update of this kind that is so large.
    #[error("job {uuid}: {status} has {bytes} bytes, at most {most} can be passed on")]
    TooLarge {
        /// The job.
        uuid: Arc<str>,
        /// The status that was refused.
        status: JobStatus,
        /// Bytes of its message.
        bytes: usize,
        /// Bytes that such a message may have.
        most: usize,
    },
    /// Nobody knows this job, or it was forgotten long after its end.
    #[error("there is no such job")]
    NoSuchJob,
}

impl UpdateError {
    /// What a loop does about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Full { .. } => ErrorClass::Retry,
            Self::Ended { .. } | Self::Backwards { .. } | Self::TooLarge { .. } | Self::NoSuchJob => {
                ErrorClass::Rejected
            }
        }
    }
}

/// A job may not run by its signature, although that is good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAdmitted {
    /// The signature has come with another job.
    #[error("its signature came with job {0} before; each job needs a signature of its own")]
    SignatureUsed(Arc<str>),
    /// As many signatures as can be remembered are not too old yet.
    #[error(
        "{0} jobs have signatures that could be used again, more cannot be remembered; submit it again later, or let \
         signatures be less old"
    )]
    Full(usize),
    /// It is not newer than the jobs of a release that kept no signatures, and may have run one of them.
    #[error("it was signed before this validator's release began to remember signatures; sign and submit it again")]
    SignedBefore,
}

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
    /// The newest job of which a signature is lost was taken then.
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
                self.signatures_lost_until = self.signatures_lost_until.max(record.taken_at);
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

    /// Notes by which signature a job runs. It is on disk with the job's next update. What would run a second job by a
    /// signature is refused, also where nobody can tell any more: nothing is forgotten for it to get in.
    ///
    /// # Errors
    /// [`NotAdmitted`]; then nothing has changed.
    pub fn admit(&mut self, job: u64, authorized: &Authorized, now: Now) -> Result<(), NotAdmitted> {
        let signature = *authorized.signature();
        if let Some(other) = self.by_signature.get(&signature).filter(|other| **other != job) {
            let uuid =
                self.jobs.get(other).map_or_else(|| Arc::from("that is not known"), |entry| entry.record.uuid.clone());
            return Err(NotAdmitted::SignatureUsed(uuid));
        }
        if authorized.signed_at() <= self.signatures_lost_until {
            return Err(NotAdmitted::SignedBefore);
        }
        if self.by_signature.len() >= self.limits.signed {
            self.forget_old(now);
        }
        if self.by_signature.len() >= self.limits.signed {
            return Err(NotAdmitted::Full(self.by_signature.len()));
        }
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.record.signed =
                Some(Signed { by: authorized.signer(), signature, signed_at: authorized.signed_at() });
            self.by_signature.insert(signature, job);
            self.touch(job);
        }
        Ok(())
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

    /// A report that the miner of a job cheated, as the comparison with a job on a trusted miner shows: the miner, if
    /// the report counts, see `cheats`. It counts once for a job, because its signature does not age and whoever has
    /// seen it could punish the miner with it for ever.
    ///
    /// # Errors
    /// Why the report changes nothing, in words.
    pub fn cheated(
        &mut self,
        uuid: &str,
        trusted: &str,
        signer: PublicKey,
        now: Now,
    ) -> Result<PublicKey, &'static str> {
        let since = now.unix_millis().saturating_sub(cheats::DAY_MS);
        let counts = |record: &JobRecord| {
            record.cheated_at.is_some_and(|at| at > since) && record.signed.is_some_and(|signed| signed.by == signer)
        };
        let counted = self.jobs.values().filter(|entry| counts(&entry.record)).count();
        let record = |uuid: &str| Some(&self.jobs.get(self.by_uuid.get(uuid)?)?.record);
        let miner = cheats::judge(record(uuid), record(trusted), signer, counted)?;
        let job = self.by_uuid[uuid];
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.record.cheated_at = Some(now.unix_millis());
        }
        self.touch(job);
        Ok(miner)
    }

    /// The miners that were reported, each with the time of its newest report.
    pub fn cheaters(&self) -> HashMap<PublicKey, u64> {
        let mut cheaters = HashMap::new();
        for record in self.jobs.values().map(|entry| &entry.record) {
            if let (Some(miner), Some(at)) = (record.miner, record.cheated_at) {
                let newest = cheaters.entry(miner).or_insert(at);
                *newest = at.max(*newest);
            }
        }
        cheaters
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
        self.written(batch);
        self.synced(batch)
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

    /// Forgets the jobs that were over first; those with dead letters go when their letters have gone, those whose
    /// signature could be used again when that is too old, those on which a miner cheated later still.
    fn forget_old(&mut self, now: Now) {
        while let Some(job) = self.over_signed.front().copied()
            && !self.is_signature_live(job, now)
        {
            self.over_signed.pop_front();
            self.over.push_front(job);
        }
        while let Some(job) = self.over_cheated.front().copied()
            && !self.is_cheat_kept(job, now)
        {
            self.over_cheated.pop_front();
            self.over.push_front(job);
        }
        while self.over.len() > self.limits.remembered {
            let Some(job) = self.over.pop_front() else { return };
            let Some(entry) = self.jobs.get(&job) else { continue };
            if !entry.record.dead.is_empty() {
                self.over.push_back(job);
                return;
            }
            if self.is_signature_live(job, now) {
                self.over_signed.push_back(job);
                continue;
            }
            if self.is_cheat_kept(job, now) {
                self.over_cheated.push_back(job);
                continue;
            }
            if let Some(signed) = entry.record.signed {
                self.by_signature.remove(&signed.signature);
            }
            self.by_uuid.remove(&entry.record.uuid);
            self.jobs.remove(&job);
            if self.is_durable() {
                self.forgotten.push(job);
            }
        }
    }

    /// Whether the miner of a job cheated on it, not too long ago.
    fn is_cheat_kept(&self, job: u64, now: Now) -> bool {
        let cheated_at = self.jobs.get(&job).and_then(|entry| entry.record.cheated_at);
        cheated_at.is_some_and(|at| now.unix_millis().saturating_sub(at) < cheats::KEPT_MS)
    }

    /// Whether the signature of a job could be used again.
    fn is_signature_live(&self, job: u64, now: Now) -> bool {
        let Some(JobEntry { record, .. }) = self.jobs.get(&job) else { return false };
        let lost = record.signature_lost.then_some(record.taken_at);
        let signed_at = record.signed.map(|signed| signed.signed_at).or(lost);
        signed_at.is_some_and(|at| counts_until(at, self.signature_age) >= now.unix_millis())
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
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use crate::link::Kind;

    fn moment(ms: u64) -> Now {
        thread_local!(static START: Instant = Instant::now());
        let wall = Duration::from_millis(1_000_000 + ms);
        Now { mono: START.with(|start| *start) + Duration::from_millis(ms), wall }
    }

    fn tag(message: &Outgoing) -> u64 {
        match message.kind {
            Kind::Kept { tag } => tag,
            other => panic!("an update is {other:?}"),
        }
    }

    fn ledger() -> Ledger {
        Ledger::new(LedgerLimits::default(), RetryPolicies::default(), false)
    }

    fn accept(ledger: &mut Ledger, job: u64, status: JobStatus) -> Option<Outgoing> {
        ledger.accept(job, status, status.as_str().into(), moment(0)).unwrap().1
    }

    fn text(message: Option<Outgoing>) -> Option<String> {
        Some(message?.text.to_string())
    }

    #[test]
    fn inside_a_job_each_update_waits_for_the_answer_to_the_one_before() {
        let mut ledger = ledger();
        let job = ledger.take("a", false, moment(0)).unwrap();
        assert_eq!(text(accept(&mut ledger, job, JobStatus::Received)).unwrap(), "received");
        assert_eq!(accept(&mut ledger, job, JobStatus::Accepted), None);
        assert_eq!(accept(&mut ledger, job, JobStatus::Completed), None);
        let settled = ledger.settle(job, &Reply::Stored, moment(1));
        assert_eq!(text(settled.next).unwrap(), "accepted");
        assert_eq!(text(ledger.settle(job, &Reply::Stored, moment(1)).next).unwrap(), "completed");
        assert_eq!(ledger.settle(job, &Reply::Stored, moment(1)), Settled::default());
        assert_eq!(ledger.counts(), Counts::default());
        assert_eq!(ledger.settle(job, &Reply::Stored, moment(1)), Settled::default(), "one answer too many");
    }

    #[test]
    fn a_job_moves_forward_only_and_ends_once() {
        let mut ledger = ledger();
        let job = ledger.take("a", false, moment(0)).unwrap();
        accept(&mut ledger, job, JobStatus::VolumesReady);
        let mut refused = |status| ledger.accept(job, status, "".into(), moment(0)).unwrap_err().to_string();
        assert_eq!(refused(JobStatus::Accepted), "job a is volumes_ready: it cannot go back to accepted");
        assert_eq!(refused(JobStatus::VolumesReady), "job a is volumes_ready: it cannot go back to volumes_ready");
        accept(&mut ledger, job, JobStatus::StreamingReady);
        accept(&mut ledger, job, JobStatus::Failed);
        let late = ledger.accept(job, JobStatus::Completed, "".into(), moment(0)).unwrap_err();
        assert_eq!(late.to_string(), "job a has ended: completed comes too late");
        assert_eq!(ledger.accept(99, JobStatus::Failed, "".into(), moment(0)).unwrap_err(), UpdateError::NoSuchJob);
    }

    #[test]
    fn a_uuid_is_taken_once_until_it_is_forgotten() {
        let limits = LedgerLimits { remembered: 2, ..LedgerLimits::default() };
        let mut ledger = Ledger::new(limits, RetryPolicies::default(), true);
        for uuid in ["a", "b", "c"] {
            let job = ledger.take(uuid, false, moment(0)).unwrap();
            assert_eq!(ledger.take(uuid, false, moment(0)), None);
            accept(&mut ledger, job, JobStatus::Rejected);
            let batch = ledger.batch();
            assert_eq!(ledger.synced(&batch).len(), 1);
            ledger.settle(job, &Reply::Stored, moment(0));
        }
        assert_eq!(ledger.take("b", false, moment(0)), None);
        assert!(ledger.take("a", false, moment(0)).is_some(), "two ended after it");
        assert!(ledger.batch().rows.contains(&(1, None)), "its row goes too");
    }

    #[test]
    fn steps_are_refused_beyond_the_bounds_and_ends_never() {
        let limits = LedgerLimits { updates: 2, bytes: 20, ..LedgerLimits::default() };
        let mut ledger = Ledger::new(limits, RetryPolicies::default(), false);
        let jobs: Vec<u64> =
            ["a", "b", "c"].into_iter().map(|uuid| ledger.take(uuid, false, moment(0)).unwrap()).collect();
        accept(&mut ledger, jobs[0], JobStatus::Received);
        let full = ledger.accept(jobs[1], JobStatus::Received, "x".repeat(13).into(), moment(0));
        assert_eq!(full.unwrap_err(), UpdateError::Full { updates: 1, bytes: 8 });
        accept(&mut ledger, jobs[1], JobStatus::Received);
        let full = ledger.accept(jobs[2], JobStatus::Received, "".into(), moment(0));
        assert_eq!(full.unwrap_err().to_string(), "too many updates wait for the facilitator: 2, 16 bytes");
        accept(&mut ledger, jobs[2], JobStatus::Completed);
        assert_eq!(ledger.counts().unsent, 3);
    }

    #[test]
    fn ends_pass_the_steps_of_other_jobs_and_steps_age() {
        let mut ledger = ledger();
        let jobs: Vec<u64> =
            ["a", "b", "c"].into_iter().map(|uuid| ledger.take(uuid, false, moment(0)).unwrap()).collect();
        let mut accept = |job, status, ms| ledger.accept(job, status, "".into(), moment(ms)).unwrap().1.unwrap();
        let step = accept(jobs[0], JobStatus::Received, 0);
        let end = accept(jobs[1], JobStatus::Rejected, 999);
        let late_end = accept(jobs[2], JobStatus::Rejected, 1001);
        assert!(end.rank < step.rank && step.rank < late_end.rank);
        assert_eq!((tag(&end), tag(&step)), (jobs[1], jobs[0]));
    }

    #[test]
    fn a_step_before_an_end_is_as_urgent_as_the_end() {
        let mut ledger = ledger();
        let job = ledger.take("a", false, moment(0)).unwrap();
        accept(&mut ledger, job, JobStatus::Received);
        accept(&mut ledger, job, JobStatus::Accepted);
        accept(&mut ledger, job, JobStatus::Completed);
        let step = ledger.settle(job, &Reply::Stored, moment(5)).next.unwrap();
        assert_eq!((step.text.as_str(), step.rank), ("accepted", Rank::new(moment(0).unix_millis(), Duration::ZERO)));
    }

    #[test]
    fn a_poison_update_is_given_up_and_blocks_only_its_own_job() {
        let mut ledger = ledger();
        let jobs: Vec<u64> = ["a", "b"].into_iter().map(|uuid| ledger.take(uuid, false, moment(0)).unwrap()).collect();
        accept(&mut ledger, jobs[0], JobStatus::Received);
        accept(&mut ledger, jobs[0], JobStatus::Completed);
        let mut now = 0;
        let mut tries = 1;
        let dead = loop {
            let settled = ledger.settle(jobs[0], &Reply::Refused("no".to_owned()), moment(now));
            let Some(at) = settled.retry_at else { break settled };
            assert_eq!(ledger.next_retry(), Some(at));
            assert!(ledger.retry(at - Duration::from_millis(1)).is_empty());
            now = u64::try_from((at - moment(0).mono).as_millis()).unwrap();
            assert_eq!(ledger.retry(at)[0].text.as_str(), "received");
            tries += 1;
        };
        assert!(dead.dead && tries == 5 && now == 15_000, "{tries} tries, {now} ms");
        assert_eq!(text(dead.next).unwrap(), "completed");
        assert!(accept(&mut ledger, jobs[1], JobStatus::Received).is_some());
        assert_eq!(ledger.counts().dead, 1);
        let letter = &ledger.jobs[&jobs[0]].record.dead[0];
        assert_eq!((letter.update.status, letter.reason.as_str()), (JobStatus::Received, "refused 5 times, last: no"));
    }

    #[test]
    fn dead_letters_are_bounded_and_the_oldest_go() {
        let limits = LedgerLimits { dead: 2, remembered: 1, ..LedgerLimits::default() };
        let none =
            RetryPolicy { base: Duration::from_secs(1), cap: Duration::from_secs(1), give_up_after: Duration::ZERO };
        let retries = RetryPolicies { not_found: none, step: none, terminal: none };
        let mut ledger = Ledger::new(limits, retries, true);
        for n in 0..5 {
            let job = ledger.take(&n.to_string(), false, moment(0)).unwrap();
            accept(&mut ledger, job, JobStatus::Rejected);
            let batch = ledger.batch();
            ledger.synced(&batch);
            assert!(ledger.settle(job, &Reply::NotFound("no".to_owned()), moment(1)).dead);
        }
        assert_eq!(ledger.counts().dead, 2);
        let kept: Vec<&str> =
            ledger.jobs.values().filter(|e| !e.record.dead.is_empty()).map(|e| &*e.record.uuid).collect();
        assert!(kept.len() == 2 && kept.contains(&"3") && kept.contains(&"4"), "{kept:?}");
    }

    fn signer() -> PublicKey {
        PublicKey::from_bytes([9; 32])
    }

    /// A job with the signature of this number, made then.
    fn signed(uuid: &str, number: u8, ms: u64) -> Authorized {
        Authorized::sample(uuid, signer(), [number; 64], moment(ms).unix_millis())
    }

    fn cheated(ledger: &mut Ledger, uuid: &str, trusted: &str, ms: u64) -> Result<PublicKey, &'static str> {
        ledger.cheated(uuid, trusted, signer(), moment(ms))
    }

    #[test]
    fn a_signature_runs_one_job_also_after_a_restart_and_is_remembered_until_it_is_too_old() {
        let limits = LedgerLimits { remembered: 1, signed: 3, ..LedgerLimits::default() };
        let fresh = |age| Ledger::new(limits, RetryPolicies::default(), true).with_signature_age(age);
        let (short, long) = (Duration::from_millis(500), Duration::from_millis(1_000));
        let mut ledger = fresh(short);
        let mut disk: HashMap<u64, Vec<u8>> = HashMap::new();
        fn write(ledger: &mut Ledger, disk: &mut HashMap<u64, Vec<u8>>) {
            let batch = ledger.batch();
            for (job, row) in &batch.rows {
                match row {
                    Some(row) => disk.insert(*job, row.clone()),
                    None => disk.remove(job),
                };
            }
            ledger.written(&batch);
            ledger.synced(&batch);
        }
        let run = |ledger: &mut Ledger, disk: &mut HashMap<u64, Vec<u8>>, uuid: &str, number, ms| {
            let job = ledger.take(uuid, false, moment(ms)).unwrap();
            let admitted = ledger.admit(job, &signed(uuid, number, 0), moment(ms));
            ledger.accept(job, JobStatus::Rejected, "".into(), moment(ms)).unwrap();
            write(ledger, disk);
            ledger.settle(job, &Reply::Stored, moment(ms));
            write(ledger, disk);
            admitted.map_err(|why| why.to_string())
        };
        let used =
            |by: &str| Err(format!("its signature came with job {by} before; each job needs a signature of its own"));
        assert_eq!(run(&mut ledger, &mut disk, "a", 1, 0), Ok(()));
        for n in 0..24 {
            assert_eq!(run(&mut ledger, &mut disk, &format!("again-{n}"), 1, 1), used("a"));
        }
        assert_eq!(run(&mut ledger, &mut disk, "b", 2, 2), Ok(()));
        // Beyond what is remembered for its uuid, and after a restart.
        let mut ledger = fresh(long);
        let mut rows: Vec<_> = disk.iter().map(|(n, row)| (*n, JobRecord::decode(row).unwrap())).collect();
        rows.sort_by_key(|(number, _)| *number);
        ledger.restore(rows, moment(3));
        assert_eq!(run(&mut ledger, &mut disk, "c", 1, 4), used("a"));
        assert_eq!(ledger.take("a", false, moment(4)), None, "a repeat, as before");
        assert_eq!(run(&mut ledger, &mut disk, "d", 3, 5), Ok(()));
        let full = Err(NotAdmitted::Full(3).to_string());
        assert_eq!(run(&mut ledger, &mut disk, "e", 4, 6), full);
        // What was written down under a shorter age is remembered for the present one.
        assert_eq!(run(&mut ledger, &mut disk, "late", 1, 1_001), used("a"));
        assert_eq!(run(&mut ledger, &mut disk, "late-full", 4, 1_001), full);
        // A job without a signature of its own is remembered no longer for those that have one.
        for n in 0..50 {
            assert_eq!(run(&mut ledger, &mut disk, &format!("forged-{n}"), 1, 7), used("a"));
        }
        assert!(ledger.jobs.len() <= 4 && disk.len() <= 4, "{} jobs, {} rows", ledger.jobs.len(), disk.len());
        // Too old to be taken, so nothing is lost with it.
        assert_eq!(run(&mut ledger, &mut disk, "f", 4, 1_002), Ok(()));
        assert!(ledger.jobs.len() <= 2 && disk.len() <= 2, "{} jobs, {} rows", ledger.jobs.len(), disk.len());
    }

    #[test]
    fn after_a_release_without_signatures_what_may_have_run_a_job_of_its_is_signed_again() {
        let limits = LedgerLimits { remembered: 0, ..LedgerLimits::default() };
        let age = Duration::from_millis(1_000);
        let fresh = || Ledger::new(limits, RetryPolicies::default(), true).with_signature_age(age);
        let mut ledger = fresh();
        let of_before = |uuid: &str, taken_at| JobRecord {
            ended: true,
            signature_lost: true,
            ..JobRecord::new(uuid.into(), moment(taken_at).unix_millis())
        };
        ledger.restore([(1, of_before("a", 20)), (2, of_before("b", 10))], moment(30));
        let mut admit = |uuid: &str, signed_at| {
            let job = ledger.take(uuid, false, moment(30)).unwrap();
            ledger.admit(job, &signed(uuid, signed_at as u8, signed_at), moment(30))
        };
        assert_eq!(admit("c", 20), Err(NotAdmitted::SignedBefore), "it may be that of either");
        assert_eq!(admit("d", 21), Ok(()));
        // Also after one more restart, for as long as such a signature counts.
        let rows = |ledger: &mut Ledger| {
            ["a", "b"].into_iter().filter(|uuid| ledger.by_uuid.contains_key(*uuid)).collect::<Vec<_>>()
        };
        let record = JobRecord::decode(&of_before("a", 20).encode()).unwrap();
        let mut ledger = fresh();
        ledger.restore([(1, record), (2, of_before("b", 10))], moment(1_021));
        assert_eq!(rows(&mut ledger), ["a"]);
        ledger.forget_old(moment(1_022));
        assert!(rows(&mut ledger).is_empty());
    }

    #[test]
    fn what_the_link_cannot_carry_is_not_kept_and_what_was_kept_is_given_up_at_the_start() {
        let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
        let job = ledger.take("a", false, moment(0)).unwrap();
        let large = |bytes: usize| Utf8Bytes::from("x".repeat(bytes));
        let mut refused = |status, bytes| ledger.accept(job, status, large(bytes), moment(0)).unwrap_err().to_string();
        let step = refused(JobStatus::StreamingReady, STATUS_STEP_BYTES + 1);
        assert_eq!(step, "job a: streaming_ready has 131073 bytes, at most 131072 can be passed on");
        let end = refused(JobStatus::Completed, FACILITATOR_LINK_MESSAGE_BYTES + 1);
        assert_eq!(end, "job a: completed has 33554433 bytes, at most 33554432 can be passed on");
        assert_eq!(ledger.counts().unsent_bytes, 0);

        let update = |status, bytes| Update { status, queued_at: 1, text: large(bytes), version: 0 };
        let record = |uuid: &str, updates: Vec<Update>| {
            let last = updates.last().map(|update| update.status);
            let ended = last.is_some_and(JobStatus::is_terminal);
            JobRecord { last, ended, updates: updates.into(), ..JobRecord::new(uuid.into(), 1) }
        };
        let too_large = FACILITATOR_LINK_MESSAGE_BYTES + 1;
        let records = [
            record("step", vec![update(JobStatus::StreamingReady, too_large), update(JobStatus::Completed, 10)]),
            record("end", vec![update(JobStatus::Received, 10), update(JobStatus::Completed, too_large)]),
            record("open", vec![update(JobStatus::StreamingReady, too_large)]),
        ];
        let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
        let records = records.into_iter().enumerate().map(|(number, record)| (number as u64 + 1, record));
        let leaving: Vec<u64> = ledger.restore(records, moment(2)).iter().map(tag).collect();
        assert_eq!(leaving, [1, 2], "the end of the first, and the step of the second");
        let end = ledger.settle(2, &Reply::Stored, moment(3)).next.unwrap();
        assert!(
            end.text.contains("\"horde_failed\"") && end.text.contains("the job ended as completed, but"),
            "{}",
            end.text
        );
        assert_eq!(ledger.open_jobs().len(), 1, "it ends as any that was left");
        assert_eq!(ledger.batch().rows.len(), 3, "the disk has them no more");
    }

    #[test]
    fn a_report_of_cheating_counts_once_for_each_job() {
        let miner = PublicKey::from_bytes([1; 32]);
        let mut ledger = ledger();
        let job = ledger.take("a", false, moment(0)).unwrap();
        let trusted = ledger.take("t", true, moment(0)).unwrap();
        assert_eq!(cheated(&mut ledger, "a", "t", 0), Err("the signer of the report has not signed the job"));
        assert!(ledger.admit(job, &signed("a", 1, 9), moment(0)).is_ok());
        assert_eq!(cheated(&mut ledger, "a", "t", 0), Err("no miner took the job"));
        ledger.ran_on(job, miner);
        ledger.ran_on(trusted, PublicKey::from_bytes([2; 32]));
        assert!(ledger.admit(trusted, &signed("t", 2, 9), moment(0)).is_ok());
        accept(&mut ledger, job, JobStatus::Completed);
        accept(&mut ledger, trusted, JobStatus::Completed);
        assert_eq!(cheated(&mut ledger, "a", "x", 0), Err("the trusted job that it is compared with is not known"));
        assert_eq!(cheated(&mut ledger, "t", "t", 0), Err("the job was for a trusted miner"));
        assert_eq!(cheated(&mut ledger, "a", "t", 7), Ok(miner));
        assert_eq!(cheated(&mut ledger, "a", "t", 8), Err("the job was reported before"));
        assert_eq!(cheated(&mut ledger, "b", "t", 0), Err("the job is not known"));
        assert_eq!(ledger.cheaters(), HashMap::from([(miner, moment(7).unix_millis())]));
    }

    #[test]
    fn who_cheated_is_known_however_many_jobs_come_after_it() {
        let limits = LedgerLimits { remembered: 2, ..LedgerLimits::default() };
        let mut ledger = Ledger::new(limits, RetryPolicies::default(), true).with_signature_age(Duration::from_secs(1));
        let miner = PublicKey::from_bytes([1; 32]);
        let run = |ledger: &mut Ledger, uuid: &str, trusted, number: u8, ms| {
            let job = ledger.take(uuid, trusted, moment(ms)).unwrap();
            ledger.admit(job, &signed(uuid, number, ms), moment(ms)).unwrap();
            ledger.ran_on(job, PublicKey::from_bytes([1 + u8::from(trusted); 32]));
            ledger.accept(job, JobStatus::Completed, "".into(), moment(ms)).unwrap();
            let batch = ledger.batch();
            ledger.synced(&batch);
            ledger.settle(job, &Reply::Stored, moment(ms));
        };
        run(&mut ledger, "a", false, 1, 0);
        run(&mut ledger, "t", true, 2, 0);
        assert_eq!(cheated(&mut ledger, "a", "t", 7), Ok(miner));
        for n in 0..100 {
            run(&mut ledger, &format!("later-{n}"), false, 3 + n, 2_000 + u64::from(n) * 2_000);
        }
        assert_eq!(ledger.jobs.len(), 2 + 1, "those remembered, and the one of the report");
        assert_eq!(ledger.cheaters(), HashMap::from([(miner, moment(7).unix_millis())]));
        assert_eq!(cheated(&mut ledger, "a", "later-99", 300_000), Err("the job was reported before"));
        let kept = 7 + cheats::KEPT_MS;
        run(&mut ledger, "last", false, 120, kept - 1);
        assert_eq!(ledger.cheaters().len(), 1);
        run(&mut ledger, "last-2", false, 121, kept);
        assert!(ledger.cheaters().is_empty());
    }

    /// Nothing leaves before it is as safe as it must be, also when updates come while a batch is being written.
    #[test]
    fn updates_leave_when_they_are_safe() {
        let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
        let jobs: Vec<u64> = ["a", "b"].into_iter().map(|uuid| ledger.take(uuid, false, moment(0)).unwrap()).collect();
        assert_eq!(accept(&mut ledger, jobs[0], JobStatus::Received), None);
        assert_eq!(accept(&mut ledger, jobs[1], JobStatus::Rejected), None);
        let batch = ledger.batch();
        assert!(batch.needs_sync);
        assert_eq!(accept(&mut ledger, jobs[0], JobStatus::Completed), None);
        assert_eq!(text(ledger.written(&batch).pop()).unwrap(), "received");
        assert!(!ledger.is_safe(2));
        assert_eq!(text(ledger.synced(&batch).pop()).unwrap(), "rejected");
        assert!(ledger.is_safe(2) && !ledger.is_safe(3));
        assert_eq!(ledger.settle(jobs[0], &Reply::Stored, moment(0)).next, None, "completed is not on disk");
        let batch = ledger.batch();
        assert!(ledger.written(&batch).is_empty());
        assert_eq!(text(ledger.synced(&batch).pop()).unwrap(), "completed");
    }

    #[test]
    fn what_cannot_be_written_leaves_all_the_same_and_is_written_later() {
        let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
        let job = ledger.take("a", false, moment(0)).unwrap();
        accept(&mut ledger, job, JobStatus::Rejected);
        let batch = ledger.batch();
        assert!(!ledger.is_dirty());
        assert_eq!(text(ledger.unwritten(&batch).pop()).unwrap(), "rejected");
        assert!(ledger.is_dirty());
        assert_eq!(ledger.batch().rows.len(), 1);
    }

    /// A facilitator that stores what it does not know yet, and disks, links and processes that break at random: in the
    /// end every job that was ever heard of has one terminal status, and its statuses came in order.
    #[test]
    fn nothing_is_lost_or_reordered_over_random_losses_refusals_and_crashes() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for round in 0..150 {
            let mut disk: HashMap<u64, Vec<u8>> = HashMap::new();
            let mut stored: HashMap<u64, Vec<JobStatus>> = HashMap::new();
            let mut wire: VecDeque<(u64, String)> = VecDeque::new();
            let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
            let (mut now, mut begun, mut known) = (0, 0, Vec::new());
            let steps = [JobStatus::Received, JobStatus::Accepted, JobStatus::ExecutionDone, JobStatus::Completed];
            loop {
                now += 1;
                let settled_down = begun == 12 && ledger.open_jobs().is_empty() && ledger.counts().unsent == 0;
                if settled_down && !ledger.is_dirty() {
                    break;
                }
                match rng.next_u64() % 12 {
                    0 if begun < 12 => {
                        begun += 1;
                        known.push(ledger.take(&format!("{round}-{begun}"), false, moment(now)).unwrap());
                    }
                    0..4 => {
                        let open = ledger.open_jobs();
                        if !open.is_empty() {
                            let job = open[(rng.next_u64() % open.len() as u64) as usize].0;
                            let reported = ledger.jobs[&job]
                                .record
                                .last
                                .map_or(0, |last| steps.iter().position(|status| *status == last).unwrap() + 1);
                            let sent = accept_at(&mut ledger, job, steps[reported], now);
                            wire.extend(sent);
                        }
                    }
                    4..6 => {
                        let batch = ledger.batch();
                        for (job, row) in &batch.rows {
                            match row {
                                Some(row) => disk.insert(*job, row.clone()),
                                None => disk.remove(job),
                            };
                        }
                        wire.extend(ledger.written(&batch).into_iter().map(on_wire));
                        wire.extend(ledger.synced(&batch).into_iter().map(on_wire));
                    }
                    6..9 => {
                        if let Some((job, status)) = wire.pop_front() {
                            let reply = if rng.next_u64().is_multiple_of(5) {
                                Reply::NotFound("not yet".to_owned())
                            } else {
                                store(&mut stored, job, &status, seed);
                                Reply::Stored
                            };
                            wire.extend(ledger.settle(job, &reply, moment(now)).next.map(on_wire));
                        }
                    }
                    9 => {
                        now += 500;
                        wire.extend(ledger.retry(moment(now).mono).into_iter().map(on_wire));
                    }
                    10 => {
                        // The connection is lost: what was on its way may have arrived, but the answer has not; it goes
                        // again.
                        for (job, status) in wire.iter().take((rng.next_u64() % 3) as usize) {
                            store(&mut stored, *job, status, seed);
                        }
                    }
                    _ if rng.next_u64().is_multiple_of(4) => {
                        // The process is killed.
                        wire.clear();
                        ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
                        let mut rows: Vec<_> =
                            disk.iter().map(|(n, row)| (*n, JobRecord::decode(row).unwrap())).collect();
                        rows.sort_by_key(|(number, _)| *number);
                        wire.extend(ledger.restore(rows, moment(now)).into_iter().map(on_wire));
                        for (job, _) in ledger.open_jobs() {
                            wire.extend(accept_at(&mut ledger, job, JobStatus::HordeFailed, now));
                        }
                    }
                    _ => {}
                }
            }
            for job in &known {
                let ends = stored.get(job).map_or(0, |s| s.iter().filter(|s| s.is_terminal()).count());
                assert_eq!(ends, usize::from(stored.contains_key(job)), "seed {seed}, job {job}: {stored:?}");
            }
        }
    }

    fn on_wire(message: Outgoing) -> (u64, String) {
        (tag(&message), message.text.to_string())
    }

    fn accept_at(ledger: &mut Ledger, job: u64, status: JobStatus, now: u64) -> Option<(u64, String)> {
        ledger.accept(job, status, status.as_str().into(), moment(now)).unwrap().1.map(on_wire)
    }

    fn store(stored: &mut HashMap<u64, Vec<JobStatus>>, job: u64, status: &str, seed: u64) {
        let status = *JobStatus::ALL.iter().find(|s| s.as_str() == status).unwrap();
        let history = stored.entry(job).or_default();
        if !history.contains(&status) {
            assert!(
                history.last().is_none_or(|last| last.may_become(status)),
                "seed {seed}, job {job}: {status} after {history:?}"
            );
            history.push(status);
        }
    }
}
