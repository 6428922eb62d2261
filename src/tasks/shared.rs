//! What the threads of a manager share: the table, the queue and the deadlines under one lock, and the moves of a task.
//!
//! One lock, because each move touches all three. No code of a user runs under it, nothing is dropped under it that could,
//! and nobody blocks while he holds it. Tasks with nothing but a name go past it: [`super::light`].

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::bare::{Bare, BareTask, Empties, Spare};
use super::context::TaskContext;
use super::deadlines::Deadlines;
use super::light::{Apart, Hand, Intake, Queue, Queued, ended};
use super::options::{Extras, TaskConfig, WhenFull};
use super::queue::{Priority, Ready};
use super::state::{CancelReason, Limit, TaskState};
use super::store::{Entry, Record, Store, TaskId};
use super::task::{End, Job, Panic, guarded, state_of, tolerated};
use crate::base::lock::{lock, wait, wait_timeout};
use crate::base::rng::Rng;
use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;

/// How often somebody who finds nothing gives the processor away before he sleeps: under load something comes within that
/// time, and a sleep and a wake-up cost more.
pub(super) const YIELDS: usize = 8;

/// Ended tasks whose time is over that one move takes out of the table.
const FORGOTTEN_AT_ONCE: usize = 64;

/// Something that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    /// A delayed task may start.
    Start(TaskId),
    /// A task has exceeded a limit, unless it has moved on.
    Limit(TaskId, Limit),
    /// A task that was told to end should have.
    Grace(TaskId),
    /// A periodic task is due.
    Period(u64),
    /// The oldest ended task is to be forgotten.
    Forget,
}

impl Alarm {
    fn task(&self) -> Option<TaskId> {
        match *self {
            Self::Start(id) | Self::Limit(id, _) | Self::Grace(id) => Some(id),
            Self::Period(_) | Self::Forget => None,
        }
    }
}

/// How far the manager's stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Open,
    /// Takes no more tasks.
    Draining,
    /// Its threads end when they have nothing in hand.
    Closed,
}

/// Why a task was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The queue is full, and stayed so for as long as the submitter would wait.
    #[error("the queue is full")]
    Full,
    /// The manager stops.
    #[error("the task manager takes no more tasks: it stops")]
    Stopping,
    /// A task with the same unique key waits already; it will do what this one would.
    #[error("a task with the same unique key waits already")]
    Duplicate,
}

pub(super) struct Shared {
    pub(super) config: TaskConfig,
    /// Drain when the manager stops; cancel when it cannot wait any longer.
    pub(super) stop: Shutdown,
    pub(super) since: Instant,
    pub(super) sched: Apart<Mutex<Sched>>,
    pub(super) intake: Apart<Mutex<Intake>>,
    /// By [`Queue`]: places that are taken, as far as was told. More are taken only by whoever has the intake.
    pub(super) used: [Apart<AtomicUsize>; 2],
    /// A submitter waits for room: whoever makes some is to say so.
    pub(super) room_wanted: Apart<AtomicBool>,
    /// By [`Queue`], with the intake.
    pub(super) room: [Condvar; 2],
    pub(super) empties: Apart<Empties>,
    work: Condvar,
    time: Condvar,
}

pub(super) struct Sched {
    pub(super) store: Store<Arc<dyn Job>>,
    pub(super) ready: Ready<Arc<dyn Job>>,
    due: Deadlines<Alarm>,
    pub(super) phase: Phase,
    /// Pending tasks whose time has not come.
    pub(super) delayed: usize,
    /// Light tasks that were taken from the intake, the oldest first; none while something can start from `ready`.
    pub(super) light: VecDeque<Queued>,
    /// There may be light tasks in hands that the table does not know of.
    pub(super) in_hands: bool,
    /// By [`Queue`]: what the intake was told to be in use here.
    pub(super) shown: [usize; 2],
    /// To be dropped outside the lock.
    pub(super) gone: Vec<Arc<dyn Job>>,
    /// Workers without a task.
    idle: Sleepers,
    /// Those of them that are awake and look for one.
    looking: usize,
    crew: Vec<Worker>,
    /// Workers that take tasks.
    pub(super) workers: usize,
    /// Workers that were written off and still run.
    pub(super) written_off: usize,
    pub(super) periods: HashMap<u64, Period>,
    next_period: u64,
    forget_armed: bool,
    reaper_sleeps: bool,
    rng: Rng,
    /// Dropped when no task is left.
    emptied: Vec<Sender<()>>,
}

/// Threads that sleep on one condition: one that was woken is not woken again before it knows.
#[derive(Default)]
pub(super) struct Sleepers {
    pub(super) asleep: usize,
    woken: usize,
}

impl Sleepers {
    /// Whether there is one to notify; it counts as woken from now on.
    pub(super) fn wake_one(&mut self) -> bool {
        let any = self.asleep > 0;
        if any {
            self.asleep -= 1;
            self.woken += 1;
        }
        any
    }

    /// The caller has slept; if nobody was woken, it woke by itself.
    pub(super) fn has_slept(&mut self) {
        match self.woken.checked_sub(1) {
            Some(woken) => self.woken = woken,
            None => self.asleep -= 1,
        }
    }
}

struct Worker {
    thread: Thread<()>,
    written_off: bool,
    /// Since when there may be more than its next task in its hand.
    filled: Option<Instant>,
}

/// A task that is submitted again and again.
pub(super) struct Period {
    every: Duration,
    next: Instant,
    make: Arc<dyn Fn() -> Arc<dyn Job> + Send + Sync>,
    last: Option<TaskId>,
    /// Times at which the one before still ran, or the queue had no room.
    pub(super) skipped: u64,
}

/// What a worker is about to run.
pub(super) enum InHand {
    Job(Arc<dyn Job>),
    Bare(Arc<BareTask>, Box<dyn Bare>),
}

impl InHand {
    pub(super) fn job(&self) -> Arc<dyn Job> {
        match self {
            Self::Job(job) => job.clone(),
            Self::Bare(task, _) => task.clone(),
        }
    }
}

/// The table under its lock, with all tasks in it.
pub(super) struct Table<'a> {
    shared: &'a Shared,
    /// There until it is dropped.
    sched: Option<MutexGuard<'a, Sched>>,
}

impl Deref for Table<'_> {
    type Target = Sched;

    fn deref(&self) -> &Sched {
        self.sched.as_ref().expect("the lock is held")
    }
}

impl DerefMut for Table<'_> {
    fn deref_mut(&mut self) -> &mut Sched {
        self.sched.as_mut().expect("the lock is held")
    }
}

impl<'a> Table<'a> {
    /// The lock alone; what is gone stays to be dropped.
    fn into_guard(mut self) -> MutexGuard<'a, Sched> {
        let mut sched = self.sched.take().expect("the lock is held");
        self.shared.show_places(&mut sched);
        sched
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        let Some(mut sched) = self.sched.take() else { return };
        self.shared.show_places(&mut sched);
        let gone = std::mem::take(&mut sched.gone);
        drop(sched);
        drop_all(gone);
    }
}

impl Sched {
    fn pending(&self) -> usize {
        self.store.count(TaskState::Pending)
    }

    pub(super) fn queued(&self) -> usize {
        self.pending() - self.delayed
    }

    pub(super) fn idle(&self) -> usize {
        self.idle.asleep
    }

    /// Workers that are on their way to a task.
    fn coming(&self) -> usize {
        self.idle.woken + self.looking
    }

    /// Whether no worker can be had for another task.
    pub(super) fn is_busy(&self, most: usize) -> bool {
        self.idle.asleep == 0 && self.workers >= most
    }

    /// Since when there may be more than the next task in a worker's hand.
    pub(super) fn set_filled(&mut self, worker: usize, since: Option<Instant>) {
        if let Some(worker) = self.crew.get_mut(worker) {
            worker.filled = since;
        }
    }

    /// Of the others, the worker whose hand has been filled for longest.
    pub(super) fn oldest_filled(&self, me: usize) -> Option<(usize, Instant)> {
        let others = self.crew.iter().enumerate().filter(|(worker, _)| *worker != me);
        others.filter_map(|(worker, filled)| Some((worker, filled.filled?))).min_by_key(|(_, since)| *since)
    }

    /// Whether this worker's place was given to another; the list is empty once the manager is about to join them.
    fn is_written_off(&self, worker: usize) -> bool {
        self.crew.get(worker).is_some_and(|worker| worker.written_off)
    }

    fn is_empty(&self) -> bool {
        self.pending() + self.store.count(TaskState::Running) == 0
    }
}

fn extras(job: &Arc<dyn Job>) -> Option<&Extras> {
    job.head().extras()
}

fn release_key(sched: &mut Sched, job: &dyn Job) {
    if let Some(key) = job.head().extras().and_then(|extras| extras.key.as_ref()) {
        sched.ready.release(key);
    }
}

/// Drops what the lock was not to see dropped.
fn drop_all(jobs: impl IntoIterator<Item = Arc<dyn Job>>) {
    for job in jobs {
        tolerated("dropping a task", || drop(job));
    }
}

fn text(reason: CancelReason) -> String {
    match reason {
        CancelReason::Limit(limit) => format!("took too long {limit}"),
        reason => format!("cancelled {reason}"),
    }
}

impl Shared {
    pub(super) fn new(config: TaskConfig) -> Self {
        let sched = Sched {
            store: Store::new(config.keep, config.keep_max),
            ready: Ready::new(),
            due: Deadlines::new(),
            phase: Phase::Open,
            delayed: 0,
            light: VecDeque::new(),
            in_hands: false,
            shown: [0; 2],
            gone: Vec::new(),
            idle: Sleepers::default(),
            looking: 0,
            crew: Vec::new(),
            workers: 0,
            written_off: 0,
            periods: HashMap::new(),
            next_period: 0,
            forget_armed: false,
            reaper_sleeps: false,
            rng: Rng::from_entropy(),
            emptied: Vec::new(),
        };
        Self {
            stop: Shutdown::new(),
            since: config.clock.now(),
            sched: Apart(Mutex::new(sched)),
            intake: Apart(Mutex::new(Intake::new())),
            used: [Apart(AtomicUsize::new(0)), Apart(AtomicUsize::new(0))],
            room_wanted: Apart(AtomicBool::new(false)),
            room: [Condvar::new(), Condvar::new()],
            empties: Apart(Empties::default()),
            work: Condvar::new(),
            time: Condvar::new(),
            config,
        }
    }

    /// The table; what was changed is made known when this is dropped.
    pub(super) fn lock(&self) -> Table<'_> {
        self.table(lock(&self.sched.0))
    }

    fn table<'a>(&'a self, mut sched: MutexGuard<'a, Sched>) -> Table<'a> {
        self.gather(&mut sched);
        Table { shared: self, sched: Some(sched) }
    }

    /// Tells the intake how many places of its queues the table uses.
    fn show_places(&self, sched: &mut Sched) {
        let places = [sched.queued(), sched.delayed];
        if places != sched.shown {
            self.move_places(sched.shown, places);
            sched.shown = places;
        }
    }

    pub(super) fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.since).as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn random(&self) -> f64 {
        lock(&self.sched.0).rng.unit()
    }

    pub(super) fn attempt(&self, job: &dyn Job) -> u32 {
        // A light task has but one.
        let Some(_) = job.head().extras() else { return 1 };
        lock(&self.sched.0).store.get(job.head().id()).map_or(0, |entry| entry.attempts)
    }

    pub(super) fn deadline(&self, job: &dyn Job) -> Option<Instant> {
        let limits = job.head().extras()?.limits;
        let started = lock(&self.sched.0).store.get(job.head().id())?.started;
        let run = started.zip(limits.run).and_then(|(started, limit)| started.checked_add(limit));
        let submitted = self.since + Duration::from_nanos(job.head().submitted());
        let total = limits.total.and_then(|limit| submitted.checked_add(limit));
        run.into_iter().chain(total).min()
    }

    // ---- submitting ----

    /// Has a task done; blocks for room as its options, or else `when_full`, say.
    pub(super) fn accept(self: &Arc<Self>, job: Arc<dyn Job>, when_full: WhenFull) -> Result<TaskId, Refusal> {
        match extras(&job) {
            None => self.accept_light(job, when_full),
            Some(extras) => self.accept_heavy(&job, extras, extras.when_full.unwrap_or(when_full)),
        }
    }

    fn accept_heavy(
        self: &Arc<Self>,
        job: &Arc<dyn Job>,
        extras: &Extras,
        when_full: WhenFull,
    ) -> Result<TaskId, Refusal> {
        // Before a wait for room that it does not need, and once more when it has it.
        if extras.key.as_ref().is_some_and(|key| lock(&self.sched.0).ready.is_duplicate(key)) {
            return Err(Refusal::Duplicate);
        }
        let queue = if extras.delay.is_some() { Queue::Delayed } else { Queue::Waiting };
        let now = self.config.clock.now();
        let (id, intake) = self.admit(queue, when_full)?;
        drop(intake);
        job.head().accept(id, self.nanos(now));
        let mut sched = self.lock();
        // The place that it has counts as the table's from here on, and goes back with it.
        sched.shown[queue as usize] += 1;
        if sched.phase != Phase::Open {
            return Err(Refusal::Stopping);
        }
        if let Some(key) = &extras.key {
            if sched.ready.is_duplicate(key) {
                return Err(Refusal::Duplicate);
            }
            sched.ready.note_unique(key);
        }
        sched.store.insert(id, job.clone());
        if let Some(limit) = extras.limits.total {
            self.arm(&mut sched, now, limit, Alarm::Limit(id, Limit::Total));
        }
        match extras.delay {
            Some(delay) => self.start_later(&mut sched, id, delay, now),
            None => self.enqueue(&mut sched, job.clone(), true, now),
        }
        self.wake_worker_for(sched);
        Ok(id)
    }

    /// The task may start from now on; `first` unless an attempt was made before.
    fn enqueue(&self, sched: &mut Sched, job: Arc<dyn Job>, first: bool, now: Instant) {
        let Some(extras) = extras(&job) else { return sched.ready.push(job, Priority::default(), None) };
        if first && let Some(limit) = extras.limits.queue {
            self.arm(sched, now, limit, Alarm::Limit(job.head().id(), Limit::Queue));
        }
        // A task between two attempts has kept its place among those of its key.
        let (priority, key) = (extras.priority, extras.key.clone().filter(|_| first));
        sched.ready.push(job, priority, key.as_ref());
    }

    fn start_later(&self, sched: &mut Sched, id: TaskId, delay: Duration, now: Instant) {
        sched.delayed += 1;
        if let Some(entry) = sched.store.get_mut(id) {
            entry.delayed = true;
        }
        self.arm(sched, now, delay, Alarm::Start(id));
    }

    fn arm(&self, sched: &mut Sched, now: Instant, after: Duration, alarm: Alarm) {
        // What is due after the end of time is never due.
        let Some(at) = now.checked_add(after) else { return };
        if let Some(entry) = alarm.task().and_then(|id| sched.store.get_mut(id)) {
            entry.armed += 1;
        }
        if sched.due.arm(at, alarm) && sched.reaper_sleeps {
            self.time.notify_one();
        }
    }

    /// Lets go of the table, and wakes or starts a worker if a task waits and one can be had.
    fn wake_worker_for(self: &Arc<Self>, mut table: Table<'_>) {
        let wake = self.find_worker(&mut table);
        drop(table);
        if wake {
            self.work.notify_one();
        }
    }

    /// The same for whoever has only the lock.
    pub(super) fn wake_worker(self: &Arc<Self>, mut sched: MutexGuard<'_, Sched>) {
        let wake = self.find_worker(&mut sched);
        drop(sched);
        if wake {
            self.work.notify_one();
        }
    }

    /// Whether a worker is to be woken for a task; starts one if none is there to be woken.
    fn find_worker(self: &Arc<Self>, sched: &mut Sched) -> bool {
        if sched.is_busy(self.config.workers) {
            return false;
        }
        let mut intake = lock(&self.intake.0);
        let waiting = sched.ready.startable() + sched.light.len() + intake.waiting();
        let needed = waiting > sched.coming();
        let wake = needed && sched.idle.wake_one();
        if needed && !wake && sched.workers < self.config.workers && sched.phase != Phase::Closed {
            self.start_worker(sched, &mut intake);
        }
        // Who is coming sees to it that the next one comes, too.
        intake.rouse = sched.coming() == 0 && !sched.is_busy(self.config.workers);
        wake
    }

    fn start_worker(self: &Arc<Self>, sched: &mut Sched, intake: &mut Intake) {
        let number = sched.crew.len();
        let hand = intake.new_hand(self.config.clock.now());
        let shared = self.clone();
        let weak = Arc::downgrade(self);
        let kick = Kick::new("the task queue, and the signals of its tasks", move || {
            if let Some(shared) = weak.upgrade() {
                shared.close();
            }
        });
        let name = format!("{}-{number}", self.config.name);
        let thread = spawn(name, kick, move || work_loop(&shared, number, &hand));
        sched.workers += 1;
        sched.crew.push(Worker { thread, written_off: false, filled: None });
    }

    // ---- working ----

    /// The next task of the table for worker `me`.
    fn pop(&self, sched: &mut Sched, me: usize, now: Instant) -> Option<InHand> {
        loop {
            let job = sched.ready.pop()?;
            let id = job.head().id();
            if sched.store.get(id).is_none_or(|entry| entry.state != TaskState::Pending) {
                // It was cancelled in the queue; with it goes its place among those of its key.
                sched.ready.popped_stale();
                release_key(sched, &*job);
                sched.gone.push(job);
                continue;
            }
            sched.store.start(id, me, now);
            if let Some(extras) = extras(&job) {
                let first = sched.store.get(id).is_some_and(|entry| entry.attempts == 1);
                if let Some(key) = extras.key.as_ref().filter(|_| first) {
                    sched.ready.clear_unique(key);
                }
                if let Some(limit) = extras.limits.run {
                    self.arm(sched, now, limit, Alarm::Limit(id, Limit::Run));
                }
                if let Some(limit) = extras.limits.silence {
                    job.head().show_life(self.nanos(now));
                    self.arm(sched, now, limit, Alarm::Limit(id, Limit::Silence));
                }
            }
            return Some(InHand::Job(job));
        }
    }

    /// Blocks until there is a task for this worker; `None` when it is to end.
    fn take(self: &Arc<Self>, me: usize, hand: &Hand, spare: &mut Spare) -> Option<InHand> {
        spare.pass_on(&self.empties.0);
        let mut sched = lock(&self.sched.0);
        if sched.is_written_off(me) {
            return None;
        }
        sched.looking += 1;
        let mut yields = 0;
        loop {
            let mut filled = false;
            if sched.phase == Phase::Open && sched.ready.startable() == 0 {
                filled = self.refill(&mut sched, me, hand);
            } else {
                let mut table = self.table(sched);
                let next = self.pop(&mut table, me, self.config.clock.now());
                if next.is_some() || table.phase == Phase::Closed {
                    table.looking -= 1;
                    self.wake_worker_for(table);
                    return next;
                }
                sched = table.into_guard();
            }
            if filled || !sched.gone.is_empty() {
                let gone = std::mem::take(&mut sched.gone);
                sched.looking -= 1;
                self.wake_worker(sched);
                drop_all(gone);
                if let Some(next) = self.next_in_hand(hand, spare) {
                    return Some(next);
                }
                sched = lock(&self.sched.0);
                sched.looking += 1;
            } else if yields < YIELDS {
                yields += 1;
                drop(sched);
                std::thread::yield_now();
                sched = lock(&self.sched.0);
            } else if self.may_sleep() {
                // Still under the lock of the look at the hands, so that nobody has filled one since.
                sched.looking -= 1;
                sched.idle.asleep += 1;
                let _waiting = waiting("a task to run", None);
                sched = wait(&self.work, sched);
                sched.idle.has_slept();
                sched.looking += 1;
            }
        }
    }

    /// An attempt has ended: moves the task on, and gives the worker its next one if the table has any.
    fn returned(self: &Arc<Self>, me: usize, hand: &Hand, job: &dyn Job, mut end: End) -> Option<InHand> {
        let id = job.head().id();
        let now = self.config.clock.now();
        if let End::Ended(state, error) = &mut end
            && hand.note(*state, error, now)
        {
            return None;
        }
        let mut sched = self.lock();
        let mut again = false;
        match end {
            End::Again(delay) => {
                if sched.store.get(id).is_some_and(|entry| entry.state == TaskState::Running) {
                    sched.store.wait_again(id);
                    self.start_later(&mut sched, id, delay, now);
                    again = true;
                }
            }
            End::Ended(state, error) => self.ended(&mut sched, id, state, error, now, false),
            End::Late => {
                hand.clear();
                if let Some(record) = sched.store.record(id) {
                    record.unresponsive = false;
                }
            }
        }
        if !again {
            release_key(&mut sched, job);
        }
        self.forget(&mut sched, now);
        let next = if sched.is_written_off(me) { None } else { self.pop(&mut sched, me, now) };
        // A worker that was written off leaves; what its task's key lets start now is for another.
        self.wake_worker_for(sched);
        next
    }

    pub(super) fn forget(&self, sched: &mut Sched, now: Instant) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some(forgotten) = sched.store.forget(now) else { break };
            sched.gone.extend(forgotten);
        }
        if !sched.forget_armed
            && let Some(at) = sched.store.next_forgotten()
        {
            sched.forget_armed = true;
            self.arm(sched, now, at.saturating_duration_since(now), Alarm::Forget);
        }
    }

    /// The task is in its terminal state from now on; the caller has settled its cell.
    fn ended(
        &self,
        sched: &mut Sched,
        id: TaskId,
        state: TaskState,
        error: Option<String>,
        now: Instant,
        unresponsive: bool,
    ) {
        let Some(entry) = sched.store.take_out(id) else { return };
        let record = ended(&entry.job, state, entry.started, entry.attempts, error, now);
        let forgotten = sched.store.keep(Record { unresponsive, ..record });
        sched.gone.extend(forgotten);
        sched.gone.push(entry.job);
        if entry.armed > 0 {
            let Sched { due, store, .. } = sched;
            due.disarm(entry.armed, |alarm| alarm.task().is_none_or(|id| store.get(id).is_some()));
        }
        if sched.is_empty() {
            sched.emptied.clear();
        }
    }

    // ---- cutting short ----

    /// Tells a task to end; false if it has ended already, or is just about to.
    pub(super) fn cut(self: &Arc<Self>, id: TaskId, job: &Arc<dyn Job>, reason: CancelReason) -> bool {
        let now = self.config.clock.now();
        if self.cut_pending(id, job, reason, now) {
            return true;
        }
        {
            let mut sched = self.lock();
            if sched.store.get(id).is_none_or(|entry| entry.state != TaskState::Running) {
                return false;
            }
            if job.head().cancelled().is_none() {
                self.arm(&mut sched, now, self.config.cancel_grace, Alarm::Grace(id));
            }
        }
        // Outside the lock, because a kick of the user's may hang on the signal.
        tolerated("the kick of a task's signal", || job.head().cancel(reason));
        // It may have gone to wait for its next attempt before it could see the reason.
        self.cut_pending(id, job, reason, now);
        true
    }

    /// Ends a task that no worker has begun; false if one has, or if it has ended.
    fn cut_pending(self: &Arc<Self>, id: TaskId, job: &Arc<dyn Job>, reason: CancelReason, now: Instant) -> bool {
        if !job.settle_pending() {
            return false;
        }
        let mut sched = self.lock();
        if let Some(entry) = sched.store.get(id) {
            let (state, delayed, first) = (entry.state, entry.delayed, entry.attempts == 0);
            self.ended(&mut sched, id, state_of(reason), Some(text(reason)), now, false);
            // A worker that has just taken it gives it back unbegun, with its key.
            if state == TaskState::Pending {
                if first && let Some(key) = extras(job).and_then(|extras| extras.key.as_ref()) {
                    sched.ready.clear_unique(key);
                }
                if delayed {
                    sched.delayed -= 1;
                    // Between two attempts it has a place among those of its key.
                    if !first {
                        release_key(&mut sched, &**job);
                    }
                } else if sched.ready.note_stale() {
                    let Sched { ready, store, .. } = &mut *sched;
                    let pending = |id| store.get(id).is_some_and(|entry| entry.state == TaskState::Pending);
                    let (held_places, waited) = ready.purge(|job| pending(job.head().id()));
                    held_places.iter().for_each(|job| release_key(&mut sched, &**job));
                    sched.gone.extend(held_places.into_iter().chain(waited));
                }
            }
        }
        self.wake_worker_for(sched);
        job.publish_cut(reason);
        true
    }

    // ---- what is due ----

    /// The reaper: waits for the next moment at which something is due, and sees to it. Ends when the manager is closed.
    pub(super) fn reap(self: &Arc<Self>) {
        let mut sched = lock(&self.sched.0);
        while sched.phase != Phase::Closed {
            let now = self.config.clock.now();
            if let Some(alarm) = sched.due.pop_due(now) {
                self.ring(self.table(sched), alarm, now);
                sched = lock(&self.sched.0);
                continue;
            }
            let left = sched.due.next().filter(|_| !self.config.clock.is_manual());
            sched.reaper_sleeps = true;
            let _waiting = waiting("its next deadline", left);
            sched = match left {
                None => wait(&self.time, sched),
                Some(at) => wait_timeout(&self.time, sched, at - now),
            };
            sched.reaper_sleeps = false;
        }
    }

    /// Has the reaper look at the clock.
    pub(super) fn tick(&self) {
        // Under the lock, so that it is not between its look at the clock and its sleep.
        let _sched = lock(&self.sched.0);
        self.time.notify_one();
    }

    fn ring(self: &Arc<Self>, mut sched: Table<'_>, alarm: Alarm, now: Instant) {
        let id = match alarm {
            Alarm::Forget => return self.forget_old(sched, now),
            Alarm::Period(number) => return self.repeat(sched, number, now),
            Alarm::Start(id) | Alarm::Limit(id, _) | Alarm::Grace(id) => id,
        };
        let Some(entry) = sched.store.get_mut(id) else { return sched.due.popped_stale() };
        entry.armed -= 1;
        let (state, attempts, job) = (entry.state, entry.attempts, entry.job.clone());
        match alarm {
            Alarm::Start(_) => {
                entry.delayed = false;
                sched.delayed -= 1;
                self.enqueue(&mut sched, job, attempts == 0, now);
                self.wake_worker_for(sched);
            }
            Alarm::Limit(_, limit) => {
                let exceeded = match (limit, state) {
                    (Limit::Total, _) => true,
                    (Limit::Queue, state) => state == TaskState::Pending && attempts == 0,
                    (Limit::Run, TaskState::Running) => {
                        let started = entry.started;
                        let limit = extras(&job).and_then(|extras| extras.limits.run);
                        // A later attempt has a limit of its own.
                        started.zip(limit).is_some_and(|(started, limit)| started + limit <= now)
                    }
                    (Limit::Silence, TaskState::Running) => match self.silence_left(&job, now) {
                        Some(left) if !left.is_zero() => {
                            self.arm(&mut sched, now, left, alarm);
                            false
                        }
                        left => left.is_some(),
                    },
                    _ => false,
                };
                drop(sched);
                if exceeded {
                    self.cut(id, &job, CancelReason::Limit(limit));
                }
                drop_all([job]);
            }
            Alarm::Grace(_) => self.give_up(sched, id, &job, now),
            Alarm::Forget | Alarm::Period(_) => {}
        }
    }

    fn silence_left(&self, job: &Arc<dyn Job>, now: Instant) -> Option<Duration> {
        let limit = extras(job)?.limits.silence?;
        let since = self.nanos(now).saturating_sub(job.head().alive());
        Some(limit.saturating_sub(Duration::from_nanos(since)))
    }

    /// The task has not ended although it was told to: its waiters are, and its worker is replaced.
    fn give_up(self: &Arc<Self>, mut sched: Table<'_>, id: TaskId, job: &Arc<dyn Job>, now: Instant) {
        let Some(reason) = job.head().cancelled() else { return };
        if !job.settle_running() {
            return;
        }
        let error = format!("{}, and goes on although it was told to end", text(reason));
        let worker = sched.store.get(id).and_then(|entry| entry.worker);
        self.ended(&mut sched, id, state_of(reason), Some(error), now, true);
        if sched.written_off < self.config.unresponsive
            && let Some(worker) = worker.and_then(|worker| sched.crew.get_mut(worker))
        {
            worker.written_off = true;
            sched.written_off += 1;
            sched.workers -= 1;
        }
        self.wake_worker_for(sched);
        log::warn!("task {id} ({}) does not end although it was told to: {}", job.head().name(), text(reason));
        job.publish_cut(reason);
    }

    fn forget_old(&self, mut sched: Table<'_>, now: Instant) {
        sched.forget_armed = false;
        self.forget(&mut sched, now);
    }

    // ---- again and again ----

    pub(super) fn add_period(
        &self,
        every: Duration,
        make: Arc<dyn Fn() -> Arc<dyn Job> + Send + Sync>,
    ) -> Result<u64, Refusal> {
        let now = self.config.clock.now();
        let mut sched = lock(&self.sched.0);
        if sched.phase != Phase::Open {
            return Err(Refusal::Stopping);
        }
        let number = sched.next_period;
        sched.next_period += 1;
        sched.periods.insert(number, Period { every, next: now, make, last: None, skipped: 0 });
        self.next_period(&mut sched, number, now);
        Ok(number)
    }

    fn next_period(&self, sched: &mut Sched, number: u64, now: Instant) {
        let Some(period) = sched.periods.get_mut(&number) else { return };
        // Missed times are not made up for, and the beat is kept.
        while period.next <= now {
            let Some(next) = period.next.checked_add(period.every) else { return };
            period.next = next;
        }
        let after = period.next - now;
        self.arm(sched, now, after, Alarm::Period(number));
    }

    fn repeat(self: &Arc<Self>, mut sched: Table<'_>, number: u64, now: Instant) {
        let Some(period) = sched.periods.get(&number) else { return };
        let (make, last) = (period.make.clone(), period.last);
        let runs = last.is_some_and(|id| sched.store.get(id).is_some());
        self.next_period(&mut sched, number, now);
        drop(sched);
        let job = if runs { None } else { guarded(|| make()).inspect_err(report_make).ok() };
        let accepted = job.and_then(|job| {
            let accepted = self.accept(job.clone(), WhenFull::Refuse).ok();
            drop_all([job]);
            accepted
        });
        drop_make(make);
        if let Some(period) = lock(&self.sched.0).periods.get_mut(&number) {
            match accepted {
                Some(id) => period.last = Some(id),
                None => period.skipped += 1,
            }
        }
    }

    pub(super) fn remove_period(&self, number: u64) {
        let period = lock(&self.sched.0).periods.remove(&number);
        if let Some(period) = period {
            drop_make(period.make);
        }
    }

    // ---- stopping ----

    /// Takes no more tasks; those whose time has not come are cancelled. `Receiver` disconnects when no task is left.
    pub(super) fn drain(self: &Arc<Self>) -> Receiver<()> {
        let (sender, receiver) = bounded(0);
        let (periods, later) = {
            let mut sched = lock(&self.sched.0);
            sched.phase = sched.phase.max(Phase::Draining);
            // Nothing comes in any more, so that what is gathered now is all.
            lock(&self.intake.0).open = false;
            let mut sched = self.table(sched);
            let later = jobs(&sched, |entry| entry.delayed);
            (std::mem::take(&mut sched.periods), later)
        };
        self.room.iter().for_each(Condvar::notify_all);
        periods.into_values().for_each(|period| drop_make(period.make));
        for (id, job) in later {
            self.cut(id, &job, CancelReason::Stopping);
            drop_all([job]);
        }
        let mut sched = self.lock();
        if !sched.is_empty() {
            sched.emptied.push(sender);
        }
        receiver
    }

    /// Tells every task to end; gives how many there were.
    pub(super) fn cancel_all(self: &Arc<Self>) -> usize {
        // First what waits, so that it does not start on the workers that become free.
        let (waiting, running) = {
            let sched = self.lock();
            let in_state = |state| jobs(&sched, move |entry| entry.state == state);
            (in_state(TaskState::Pending), in_state(TaskState::Running))
        };
        let count = waiting.len() + running.len();
        for (id, job) in waiting.into_iter().chain(running) {
            self.cut(id, &job, CancelReason::Stopping);
            drop_all([job]);
        }
        self.stop.cancel();
        count
    }

    /// The threads end as soon as they have nothing in hand; what still waits is cancelled.
    pub(super) fn close(self: &Arc<Self>) {
        self.drain();
        self.cancel_all();
        self.lock().phase = Phase::Closed;
        self.work.notify_all();
        self.time.notify_all();
    }

    /// Ends what does not end by itself, for its waiters.
    pub(super) fn give_up_all(self: &Arc<Self>) {
        let now = self.config.clock.now();
        let running = jobs(&self.lock(), |entry| entry.state == TaskState::Running);
        for (id, job) in running {
            self.give_up(self.lock(), id, &job, now);
            drop_all([job]);
        }
    }

    /// The workers, for whoever joins them.
    pub(super) fn crew(&self) -> Vec<Thread<()>> {
        let mut sched = lock(&self.sched.0);
        std::mem::take(&mut sched.crew).into_iter().map(|worker| worker.thread).collect()
    }
}

fn report_make(panic: &Panic) {
    log::error!("the options of a periodic task panicked: {panic}");
}

fn drop_make(make: Arc<dyn Fn() -> Arc<dyn Job> + Send + Sync>) {
    tolerated("dropping the work of a periodic task", || drop(make));
}

fn jobs(sched: &Sched, which: impl Fn(&Entry<Arc<dyn Job>>) -> bool) -> Vec<(TaskId, Arc<dyn Job>)> {
    sched.store.open().filter(|(_, entry)| which(entry)).map(|(id, entry)| (id, entry.job.clone())).collect()
}

fn work_loop(shared: &Arc<Shared>, me: usize, hand: &Hand) {
    // It works for whoever comes, not only for the submitter whose task it was started for.
    let _nobody = scope::enter(None);
    let (mut next, mut spare) = (None, Spare::default());
    loop {
        let in_hand = match next.take().or_else(|| shared.next_in_hand(hand, &mut spare)) {
            Some(next) => Some(next),
            None => shared.take(me, hand, &mut spare),
        };
        match in_hand {
            None => break,
            Some(InHand::Job(job)) => {
                let mut ended = |end| next = shared.returned(me, hand, &*job, end);
                if job.begin() {
                    job.run(&TaskContext::new(shared, &*job), &mut ended);
                } else {
                    ended(End::Late);
                }
                drop_all([job]);
            }
            Some(InHand::Bare(task, work)) => {
                let mut ended = |job: &dyn Job, end| next = shared.returned(me, hand, job, end);
                if task.begin() {
                    spare.run(task, work, shared, ended);
                } else {
                    ended(&*task, End::Late);
                    tolerated("dropping a task's work", || drop(work));
                }
            }
        }
    }
    hand.leave();
    let mut sched = lock(&shared.sched.0);
    if sched.is_written_off(me) {
        sched.written_off -= 1;
    }
}
