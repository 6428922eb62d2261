//! Light tasks: those that have a name and nothing else go to the workers, and out of the table again, by the batch.
//!
//! A task that each side takes through the table by itself makes the table's cache lines go to and fro between the
//! processors, and that costs more than all the rest of a short task. So a submitter puts a light task into the *intake*, a
//! worker takes a batch of them into its *hand*, begins one after the other, and notes there which have ended; the table
//! hears of the ended ones with the next batch. Whoever needs the table itself takes it by [`Shared::lock`], which first
//! *gathers*: it enters in the table what is in the intake and in the hands. So nothing else need know of light tasks, and
//! while others wait in the table, light tasks go through it, too, which keeps the order of all.
//!
//! No task waits in the hand of a worker that is stuck while another could have it: there is more than the next task in a
//! hand only while no worker is idle, a worker that finds nothing takes from the hands of others, and one whose hand is
//! empty looks first for what has been in another's hand for too long.
//!
//! Locks are taken in this order: the table, the intake, a hand.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use super::bare::{self, Bare, Spare};
use super::options::WhenFull;
use super::queue::Priority;
use super::shared::{InHand, Refusal, Sched, Shared, Sleepers};
use super::state::TaskState;
use super::store::{Record, TaskId, What};
use super::task::Job;
use crate::base::lock::{lock, wait, wait_timeout};
use crate::base::waits::waiting;

/// Tasks in a hand: so many share what a visit to the table and the intake costs, some microseconds.
const BATCH: usize = 64;

/// How often a submitter that finds no room gives the processor away before he sleeps: about the time of a batch.
const ROOM_YIELDS: usize = 64;

/// What has been in a hand for so long is taken by a worker that has room: by then a batch of short tasks has ended.
const STRANDED: Duration = Duration::from_millis(1);

/// In cache lines of its own, because those who use it are not those who use its neighbours.
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);

/// Which of the two queues a task needs a place in.
#[derive(Clone, Copy)]
pub(super) enum Queue {
    Waiting,
    Delayed,
}

/// A light task that has not begun.
pub(super) enum Queued {
    /// Somebody has a handle of it.
    Job(Arc<dyn Job>),
    /// Nobody has, so that it is made a job by whoever runs it, in memory that each task of that thread uses in turn.
    Bare { id: TaskId, submitted: u64, name: &'static str, work: Box<dyn Bare> },
}

impl Queued {
    fn id(&self) -> TaskId {
        match self {
            Self::Job(job) => job.head().id(),
            Self::Bare { id, .. } => *id,
        }
    }

    /// For the table.
    fn into_job(self) -> Arc<dyn Job> {
        match self {
            Self::Job(job) => job,
            Self::Bare { id, submitted, name, work } => {
                let job = bare::waiting(name, work);
                job.head().accept(id, submitted);
                job
            }
        }
    }
}

/// Where tasks are accepted.
pub(super) struct Intake {
    /// Until the manager stops.
    pub(super) open: bool,
    /// Tasks that were accepted so far.
    accepted: u64,
    /// Light tasks, the oldest first.
    queue: VecDeque<Queued>,
    /// By [`Queue`]: submitters that sleep until there is room.
    submitters: [Sleepers; 2],
    /// A worker can be woken or started for the next task.
    pub(super) rouse: bool,
    /// Of each worker, by its number.
    hands: Vec<Arc<Hand>>,
}

/// What a worker holds.
pub(super) struct Hand {
    holding: Apart<Mutex<Holding>>,
    /// Tasks that it has begun and whose places in the queue were not given back.
    begun: Apart<AtomicUsize>,
}

struct Holding {
    /// Not begun.
    reserve: VecDeque<Queued>,
    running: Option<Running>,
    /// When it took the batch, or its last task ended.
    since: Instant,
    /// Ended ones that the table has not heard of.
    ended: Vec<Record<Arc<dyn Job>>>,
}

struct Running {
    job: Arc<dyn Job>,
    started: Instant,
    /// The table knows of it, and is to hear of its end at once.
    entered: bool,
}

impl Hand {
    fn new(since: Instant) -> Arc<Self> {
        let (reserve, ended) = (VecDeque::with_capacity(BATCH), Vec::with_capacity(BATCH));
        let holding = Apart(Mutex::new(Holding { reserve, running: None, since, ended }));
        Arc::new(Self { holding, begun: Apart(AtomicUsize::new(0)) })
    }

    fn lock(&self) -> MutexGuard<'_, Holding> {
        lock(&self.holding.0)
    }

    fn take_begun(&self) -> usize {
        self.begun.0.swap(0, Ordering::SeqCst)
    }

    /// Its task has ended: true if that is all there is to it, because the table does not know of the task.
    pub(super) fn note(&self, state: TaskState, error: &mut Option<String>, now: Instant) -> bool {
        let mut holding = self.lock();
        let Some(Running { job, started, entered: false }) = holding.running.take() else { return false };
        holding.since = now;
        let record = ended(&job, state, Some(started), 1, error.take(), now);
        holding.ended.push(record);
        drop(holding);
        // The worker still holds it, so nothing of the user's is dropped here.
        drop(job);
        true
    }

    /// Its task was ended by others.
    pub(super) fn clear(&self) {
        self.lock().running = None;
    }

    /// The worker leaves with nothing in it.
    pub(super) fn leave(&self) {
        let mut holding = self.lock();
        debug_assert!(holding.reserve.is_empty() && holding.ended.is_empty(), "it was gathered");
        (holding.reserve, holding.ended) = (VecDeque::new(), Vec::new());
    }
}

/// What is kept of a task that has ended: of most only the name.
pub(super) fn ended(
    job: &Arc<dyn Job>,
    state: TaskState,
    started: Option<Instant>,
    attempts: u32,
    error: Option<String>,
    ended: Instant,
) -> Record<Arc<dyn Job>> {
    let head = job.head();
    let what = head.only_name().map_or_else(|| What::Job(job.clone()), What::Name);
    let error = error.map(String::into_boxed_str);
    let (id, submitted) = (head.id(), head.submitted());
    Record { id, what, state, submitted, started, ended, attempts, unresponsive: false, error }
}

impl Intake {
    pub(super) fn new() -> Self {
        let (queue, submitters) = (VecDeque::new(), Default::default());
        Self { open: true, accepted: 0, queue, submitters, rouse: true, hands: Vec::new() }
    }

    pub(super) fn new_hand(&mut self, now: Instant) -> Arc<Hand> {
        let hand = Hand::new(now);
        self.hands.push(hand.clone());
        hand
    }

    /// Light tasks that wait here.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Tells of the light tasks that the table does not know of: so many in a state.
    fn look(&self, count: &mut impl FnMut(TaskState, usize)) {
        count(TaskState::Pending, self.queue.len());
        for hand in &self.hands {
            let holding = hand.lock();
            count(TaskState::Pending, holding.reserve.len());
            count(TaskState::Running, usize::from(holding.running.as_ref().is_some_and(|running| !running.entered)));
            holding.ended.iter().for_each(|record| count(record.state, 1));
        }
    }

    /// Places that became free in the hands.
    fn begun(&self) -> usize {
        self.hands.iter().map(|hand| hand.take_begun()).sum()
    }
}

/// A submitter's wait for room.
struct Patience {
    when_full: WhenFull,
    until: Option<Instant>,
    yielded: bool,
}

impl Shared {
    // ---- submitting ----

    /// Takes a place in a queue and gives the task its number; blocks for room as `when_full` says.
    pub(super) fn admit(&self, queue: Queue, when_full: WhenFull) -> Result<(TaskId, MutexGuard<'_, Intake>), Refusal> {
        let mut intake = lock(&self.intake.0);
        let mut patience = Patience { when_full, until: None, yielded: false };
        loop {
            if !intake.open {
                return Err(Refusal::Stopping);
            }
            if self.has_room(&intake, queue) {
                break;
            }
            intake = self.wait_for_room(intake, queue, &mut patience)?;
        }
        self.used[queue as usize].0.fetch_add(1, Ordering::SeqCst);
        intake.accepted += 1;
        // Whoever was woken for the first of several places wakes the next one.
        self.show_room(&mut intake, queue);
        Ok((TaskId::from_u64(intake.accepted), intake))
    }

    fn wait_for_room<'a>(
        &'a self,
        mut intake: MutexGuard<'a, Intake>,
        queue: Queue,
        patience: &mut Patience,
    ) -> Result<MutexGuard<'a, Intake>, Refusal> {
        let left = match patience.when_full {
            WhenFull::Refuse => return Err(Refusal::Full),
            WhenFull::Block => None,
            WhenFull::Timeout(timeout) => {
                let until = *patience.until.get_or_insert_with(|| Instant::now() + timeout);
                Some(until.saturating_duration_since(Instant::now()))
            }
        };
        if left == Some(Duration::ZERO) {
            return Err(Refusal::Full);
        }
        if !patience.yielded {
            patience.yielded = true;
            drop(intake);
            // Without a look into the hands, which would disturb the workers: soon one gives the places of a batch back.
            for _ in 0..ROOM_YIELDS {
                yield_now();
                if self.room_told(queue) {
                    break;
                }
            }
            return Ok(lock(&self.intake.0));
        }
        // Whoever makes room after this look at it sees the mark.
        self.room_wanted.0.store(true, Ordering::SeqCst);
        if self.has_room(&intake, queue) {
            return Ok(intake);
        }
        intake.submitters[queue as usize].asleep += 1;
        let _waiting = waiting("room in the task queue", left.and_then(|left| Instant::now().checked_add(left)));
        let room = &self.room[queue as usize];
        intake = match left {
            None => wait(room, intake),
            Some(left) => wait_timeout(room, intake, left),
        };
        intake.submitters[queue as usize].has_slept();
        Ok(intake)
    }

    /// Whether there is a place; nobody else takes one while the caller has the intake.
    fn has_room(&self, intake: &Intake, queue: Queue) -> bool {
        self.room_told(queue) || {
            self.used[Queue::Waiting as usize].0.fetch_sub(intake.begun(), Ordering::SeqCst);
            self.room_told(queue)
        }
    }

    /// Whether there is a place, as far as was told.
    fn room_told(&self, queue: Queue) -> bool {
        self.used[queue as usize].0.load(Ordering::SeqCst) < self.most(queue)
    }

    fn most(&self, queue: Queue) -> usize {
        match queue {
            Queue::Waiting => self.config.queue,
            Queue::Delayed => self.config.delayed,
        }
    }

    /// Wakes a submitter if there is room for it.
    fn show_room(&self, intake: &mut Intake, queue: Queue) {
        if self.room_told(queue) && intake.submitters[queue as usize].wake_one() {
            self.room[queue as usize].notify_one();
        }
    }

    /// Wakes those who have waited for the room that there may be now.
    fn answer_submitters(&self) {
        if !self.room_wanted.0.load(Ordering::SeqCst) {
            return;
        }
        let mut intake = lock(&self.intake.0);
        self.used[Queue::Waiting as usize].0.fetch_sub(intake.begun(), Ordering::SeqCst);
        self.show_room(&mut intake, Queue::Waiting);
        self.show_room(&mut intake, Queue::Delayed);
        let wanted = intake.submitters.iter().any(|submitters| submitters.asleep > 0);
        self.room_wanted.0.store(wanted, Ordering::SeqCst);
    }

    /// The table uses other numbers of places than before; more than there are, if what was delayed is due.
    pub(super) fn move_places(&self, from: [usize; 2], to: [usize; 2]) {
        for queue in [Queue::Waiting as usize, Queue::Delayed as usize] {
            self.used[queue].0.fetch_add(to[queue].wrapping_sub(from[queue]), Ordering::SeqCst);
        }
        self.answer_submitters();
    }

    pub(super) fn accept_light(self: &Arc<Self>, job: Arc<dyn Job>, when_full: WhenFull) -> Result<TaskId, Refusal> {
        let submitted = self.nanos(self.config.clock.now());
        let (id, intake) = self.admit(Queue::Waiting, when_full)?;
        job.head().accept(id, submitted);
        self.queue(intake, Queued::Job(job));
        Ok(id)
    }

    /// As [`Shared::accept_light`], of a task that nobody has a handle of.
    pub(super) fn accept_bare<B: Bare + 'static>(
        self: &Arc<Self>,
        name: &'static str,
        work: Box<B>,
        when_full: WhenFull,
    ) -> Result<TaskId, (Refusal, Box<B>)> {
        let submitted = self.nanos(self.config.clock.now());
        match self.admit(Queue::Waiting, when_full) {
            Ok((id, intake)) => {
                self.queue(intake, Queued::Bare { id, submitted, name, work });
                Ok(id)
            }
            Err(refusal) => Err((refusal, work)),
        }
    }

    fn queue(self: &Arc<Self>, mut intake: MutexGuard<'_, Intake>, task: Queued) {
        intake.queue.push_back(task);
        let rouse = intake.rouse;
        drop(intake);
        if rouse {
            self.wake_worker(lock(&self.sched.0));
        }
    }

    // ---- working ----

    /// The next task in the worker's hand; it begins now.
    pub(super) fn next_in_hand(&self, hand: &Hand, spare: &mut Spare) -> Option<InHand> {
        let mut holding = hand.lock();
        let next = match holding.reserve.pop_front()? {
            Queued::Job(job) => InHand::Job(job),
            Queued::Bare { id, submitted, name, work } => InHand::Bare(spare.task(name, id, submitted), work),
        };
        let started = holding.since;
        holding.running = Some(Running { job: next.job(), started, entered: false });
        drop(holding);
        hand.begun.0.fetch_add(1, Ordering::SeqCst);
        self.answer_submitters();
        Some(next)
    }

    /// Fills the empty hand of worker `me` with light tasks, and tells the table which of its last ones have ended; false if
    /// there are no tasks.
    pub(super) fn refill(&self, sched: &mut Sched, me: usize, hand: &Hand) -> bool {
        self.move_places([hand.take_begun(), 0], [0, 0]);
        if sched.light.is_empty() {
            std::mem::swap(&mut sched.light, &mut lock(&self.intake.0).queue);
        }
        let (now, real) = (self.config.clock.now(), Instant::now());
        let stolen = self.steal(sched, me, real);
        let mut holding = hand.lock();
        holding.since = now;
        self.keep_ended(sched, &mut holding, now);
        if stolen.is_empty() {
            let several = sched.is_busy(self.config.workers);
            let fair = if several { sched.light.len().div_ceil(self.config.workers).min(BATCH) } else { 1 };
            let count = fair.min(sched.light.len());
            holding.reserve.extend(sched.light.drain(..count));
        } else {
            holding.reserve.extend(stolen);
        }
        // The submitters have just written the boxes: to fetch them side by side is cheaper than one after the other.
        for task in &holding.reserve {
            if let Queued::Bare { work, .. } = task {
                black_box(work.is_full());
            }
        }
        let filled = !holding.reserve.is_empty();
        sched.in_hands |= filled;
        sched.set_filled(me, (holding.reserve.len() > 1).then_some(real));
        filled
    }

    /// The older half of what waits in the hand of another worker, if it has been there for too long or there is nothing else.
    fn steal(&self, sched: &mut Sched, me: usize, now: Instant) -> Vec<Queued> {
        while let Some((other, since)) = sched.oldest_filled(me) {
            if !sched.light.is_empty() && now.saturating_duration_since(since) < STRANDED {
                break;
            }
            let hand = lock(&self.intake.0).hands[other].clone();
            let mut holding = hand.lock();
            let half = holding.reserve.len().div_ceil(2);
            let stolen: Vec<_> = holding.reserve.drain(..half).collect();
            if holding.reserve.is_empty() {
                sched.set_filled(other, None);
            }
            if !stolen.is_empty() {
                return stolen;
            }
        }
        Vec::new()
    }

    fn keep_ended(&self, sched: &mut Sched, holding: &mut Holding, now: Instant) {
        for record in holding.ended.drain(..) {
            let forgotten = sched.store.keep(record);
            sched.gone.extend(forgotten);
        }
        self.forget(sched, now);
    }

    /// Whether a worker that finds nothing may sleep: from now on it is woken for what comes.
    pub(super) fn may_sleep(&self) -> bool {
        let mut intake = lock(&self.intake.0);
        intake.rouse = true;
        intake.queue.is_empty()
    }

    // ---- the table ----

    /// Enters in the table whatever is on its way past it.
    pub(super) fn gather(&self, sched: &mut Sched) {
        let mut intake = lock(&self.intake.0);
        let mut waiting: Vec<Queued> = Vec::new();
        if std::mem::take(&mut sched.in_hands) {
            self.used[Queue::Waiting as usize].0.fetch_sub(intake.begun(), Ordering::SeqCst);
            let now = self.config.clock.now();
            for (worker, hand) in intake.hands.iter().enumerate() {
                let mut holding = hand.lock();
                self.keep_ended(sched, &mut holding, now);
                waiting.extend(holding.reserve.drain(..));
                sched.set_filled(worker, None);
                if let Some(running) = holding.running.as_mut().filter(|running| !running.entered) {
                    running.entered = true;
                    let id = running.job.head().id();
                    sched.store.insert(id, running.job.clone());
                    sched.store.start(id, worker, running.started);
                }
            }
            waiting.sort_unstable_by_key(Queued::id);
            self.show_room(&mut intake, Queue::Waiting);
        }
        waiting.extend(sched.light.drain(..));
        waiting.extend(intake.queue.drain(..));
        // Their places go with them.
        sched.shown[Queue::Waiting as usize] += waiting.len();
        for job in waiting.into_iter().map(Queued::into_job) {
            sched.store.insert(job.head().id(), job.clone());
            sched.ready.push(job, Priority::default(), None);
        }
    }

    /// How many tasks are in each state, wherever they are.
    pub(super) fn count(&self) -> [usize; 5] {
        let sched = lock(&self.sched.0);
        let mut counts = TaskState::ALL.map(|state| sched.store.count(state));
        counts[TaskState::Pending as usize] += sched.light.len();
        lock(&self.intake.0).look(&mut |state, more| counts[state as usize] += more);
        counts
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use crossbeam_channel::bounded;

    use super::*;
    use crate::base::clock::Clock;
    use crate::base::rng::Rng;
    use crate::base::thread::{Kick, spawn};
    use crate::tasks::tests::{HOUR, LONG, Text, begin, gated, house, quick};
    use crate::tasks::{
        CancelReason, Counts, Filter, Priority, Refusal, TaskConfig, TaskContext, TaskError, TaskOptions, Tasks,
        TasksReport, WhenFull,
    };

    #[test]
    fn tasks_of_one_submitter_begin_in_their_order_whether_light_or_not() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let house = house(|c| c.workers(1));
        let (order, starts) = bounded(5000);
        let mut last = None;
        for n in 0..5000 {
            let order = order.clone();
            let work = move |_: &TaskContext<'_>| order.send(n).map_err(|error| error.to_string());
            match rng.next_u64() % 100 {
                0 => drop(house.tasks.submit(TaskOptions::new("heavy").total_limit(HOUR), work).unwrap()),
                1 => drop(house.tasks.submit(TaskOptions::new(format!("named {n}")), work).unwrap()),
                2 => {
                    last = Some(house.tasks.spawn("light", work).unwrap());
                    // Whoever looks enters all in the table.
                    assert!(house.tasks.info(last.unwrap()).is_some());
                }
                _ => last = Some(house.tasks.spawn("light", work).unwrap()),
            }
        }
        house.tasks.submit("last", |_| Ok::<_, Text>(())).unwrap().wait().unwrap();
        assert!(starts.try_iter().eq(0..5000));
        assert!(house.tasks.info(last.unwrap()).is_some_and(|info| info.name == "light" && info.attempts == 1));
    }

    #[test]
    fn what_is_in_a_hand_waits_is_counted_and_can_be_cancelled() {
        let house = house(|c| c.workers(1));
        let (first, begun, open) = gated(&house.tasks, "first");
        begin(&begun);
        let (second, begun, then) = gated(&house.tasks, "second");
        let rest: Vec<_> = (0..8).map(|_| quick(&house.tasks, "rest")).collect();
        open.send(()).unwrap();
        first.wait().unwrap();
        begin(&begun);
        let counts = Counts { pending: 8, running: 1, completed: 1, ..Counts::default() };
        assert_eq!(house.tasks.counts(), counts);
        let waits = house.tasks.info(rest[3].id()).unwrap();
        assert_eq!((waits.state, waits.attempts, waits.started), (TaskState::Pending, 0, None));
        assert!(rest[3].cancel() && !rest[3].cancel());
        assert!(matches!(rest[3].wait_timeout(LONG), Err(TaskError::Cancelled(CancelReason::Requested))));
        assert_eq!(house.tasks.counts(), Counts { pending: 7, cancelled: 1, ..counts });
        let running = house.tasks.list(&Filter::state(TaskState::Running));
        assert_eq!(running.iter().map(|info| info.id).collect::<Vec<_>>(), [second.id()]);
        house.clock.advance(HOUR / 2);
        then.send(()).unwrap();
        second.wait_timeout(LONG).unwrap();
        let ended: Vec<_> = rest.iter().map(|handle| handle.wait_timeout(LONG).is_ok()).collect();
        assert_eq!(ended, [true, true, true, false, true, true, true, true]);
        assert_eq!(house.tasks.counts(), Counts { completed: 9, cancelled: 1, ..Counts::default() });
        let times = house.tasks.info(second.id()).unwrap();
        assert_eq!((times.age, times.started, times.ended), (Some(HOUR / 2), Some(HOUR / 2), Some(Duration::ZERO)));
    }

    #[test]
    fn a_task_that_begins_from_the_hand_makes_room_at_once() {
        let house = house(|c| TaskConfig { queue: 10, when_full: WhenFull::Refuse, ..c.workers(1) });
        let mut gates: Vec<_> = (0..11)
            .map(|n| {
                let gate = gated(&house.tasks, "gated");
                if n == 0 {
                    begin(&gate.1);
                }
                gate
            })
            .collect();
        for n in 0..20 {
            let refused = house.tasks.submit("more", |_| Ok::<_, Text>(())).unwrap_err();
            assert_eq!(refused.refusal, Refusal::Full, "after {n}");
            gates[n].2.send(()).unwrap();
            begin(&gates[n + 1].1);
            gates.push(gated(&house.tasks, "one more"));
        }
        // The same for one that sleeps until then.
        let tasks = house.tasks.clone();
        let sleeper = spawn("t-submit", Kick::dropped("room"), move || {
            let options = TaskOptions::new("blocks").when_full(WhenFull::Block);
            tasks.spawn(options, |_| Ok::<_, Text>(())).unwrap();
        });
        while lock(&house.tasks.shared().intake.0).submitters[0].asleep == 0 {
            yield_now();
        }
        gates[20].2.send(()).unwrap();
        begin(&gates[21].1);
        sleeper.join_by(Instant::now() + LONG).unwrap();
        gates.iter().for_each(|(handle, ..)| assert!(handle.cancel() || handle.has_ended()));
    }

    #[test]
    fn submitters_that_wait_for_room_all_get_it() {
        for queue in [1, 7, 100] {
            let mut house = house(|c| TaskConfig { queue, clock: Clock::system(), ..c.workers(2) });
            let ran = Arc::new(AtomicUsize::new(0));
            let submitters: Vec<_> = (0..4)
                .map(|n| {
                    let (tasks, ran) = (house.tasks.clone(), ran.clone());
                    spawn(format!("t-submit-{n}"), Kick::dropped("room"), move || {
                        for m in 0..3000 {
                            let ran = ran.clone();
                            let options = TaskOptions::new("counts");
                            let options = if m % 50 == n { options.priority(Priority::High) } else { options };
                            let work = move |_: &TaskContext<'_>| {
                                ran.fetch_add(1, SeqCst);
                                Ok::<_, Text>(())
                            };
                            tasks.spawn(options, work).unwrap();
                        }
                    })
                })
                .collect();
            for submitter in submitters {
                submitter.join_by(Instant::now() + LONG).unwrap();
            }
            assert!(house.stop(LONG).1.is_clean());
            assert_eq!(ran.load(SeqCst), 12_000, "with a queue of {queue}");
        }
    }

    #[test]
    fn no_task_is_left_to_a_worker_that_falls_asleep() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for workers in [1, 2] {
            let house = house(|c| TaskConfig { clock: Clock::system(), ..c.workers(workers) });
            for _ in 0..10_000 {
                // Some of these moments are those in which a worker gives up looking.
                for _ in 0..rng.next_u64() % 3000 {
                    std::hint::spin_loop();
                }
                quick(&house.tasks, "now").wait_timeout(LONG).unwrap();
            }
        }
    }

    /// Submits itself again and again, so that there is always something to do, until it is over.
    fn chain(tasks: &Tasks, over: Arc<AtomicBool>) {
        let work = move |cx: &TaskContext<'_>| {
            if !over.load(SeqCst) {
                chain(&cx.tasks(), over.clone());
            }
            Ok::<_, Text>(())
        };
        drop(tasks.spawn("chain", work));
    }

    #[test]
    fn a_worker_that_is_stuck_keeps_no_task_from_the_others() {
        let house = house(|c| TaskConfig { clock: Clock::system(), ..c.workers(2) });
        let busy = [0, 1].map(|_| gated(&house.tasks, "busy"));
        busy.iter().for_each(|(_, begun, _)| begin(begun));
        let before: Vec<_> = (0..3).map(|_| quick(&house.tasks, "before")).collect();
        let (stuck, begun, open) = gated(&house.tasks, "stuck");
        let behind: Vec<_> = (0..100).map(|_| quick(&house.tasks, "behind")).collect();
        let over = Arc::new(AtomicBool::new(false));
        (0..8).for_each(|_| chain(&house.tasks, over.clone()));
        // One comes to be stuck with a full hand while the other is busy, and goes on while there is always more to do.
        busy[0].2.send(()).unwrap();
        begin(&begun);
        assert!(before.into_iter().all(|handle| handle.wait_timeout(LONG).is_ok()));
        busy[1].2.send(()).unwrap();
        for handle in behind {
            handle.wait_timeout(LONG).unwrap();
        }
        assert!(!stuck.has_ended());
        over.store(true, SeqCst);
        open.send(()).unwrap();
        stuck.wait().unwrap();
    }

    #[test]
    fn a_stop_cancels_what_is_in_the_hands() {
        let mut house = house(|c| c.workers(1));
        let (first, begun, open) = gated(&house.tasks, "first");
        begin(&begun);
        let (second, begun, _closed) = gated(&house.tasks, "second");
        let rest: Vec<_> = (0..8).map(|_| quick(&house.tasks, "rest")).collect();
        open.send(()).unwrap();
        first.wait().unwrap();
        begin(&begun);
        let (report, stop) = house.stop(Duration::from_millis(1));
        assert_eq!((report.cancelled, stop.is_clean()), (9, true));
        for handle in rest {
            assert!(matches!(handle.wait(), Err(TaskError::Cancelled(CancelReason::Stopping))));
        }
        assert!(matches!(second.wait(), Err(TaskError::Cancelled(CancelReason::Stopping))));
    }

    #[test]
    fn whatever_happens_every_light_task_runs_once_or_is_cancelled_and_the_counts_agree() {
        const EACH: usize = 5000;
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut house = house(|c| TaskConfig { queue: 300, keep_max: 100_000, clock: Clock::system(), ..c.workers(3) });
        let ran = Arc::new(AtomicUsize::new(0));
        let submitters: Vec<_> = (0..4)
            .map(|n| {
                let (tasks, ran) = (house.tasks.clone(), ran.clone());
                let mut rng = Rng::new(seed + n);
                spawn(format!("t-light-{n}"), Kick::dropped("room"), move || {
                    let (mut handles, mut cancelled) = (Vec::new(), 0);
                    for _ in 0..EACH {
                        let (ran, what) = (ran.clone(), rng.next_u64() % 50);
                        let work = move |_: &TaskContext<'_>| {
                            ran.fetch_add(1, SeqCst);
                            match what {
                                0 => panic!("planned"),
                                1 => {
                                    yield_now();
                                    Ok::<_, Text>(())
                                }
                                _ => Ok(()),
                            }
                        };
                        let options = TaskOptions::new("random");
                        let options = match rng.next_u64() % 200 {
                            0 => options.priority(Priority::High),
                            1 => options.priority(Priority::Low),
                            2 => options.total_limit(HOUR),
                            _ => options,
                        };
                        let handle = tasks.submit(options, work).unwrap();
                        match rng.next_u64() % 300 {
                            0..10 => drop(handle.cancel()),
                            10 => drop(tasks.info(handle.id()).expect("it is known")),
                            11 => drop(tasks.list(&Filter::state(TaskState::Running))),
                            12 => assert!(tasks.open() <= 4 * EACH),
                            _ => {}
                        }
                        handles.push(handle);
                    }
                    for handle in handles {
                        match handle.wait_timeout(LONG) {
                            Err(TaskError::StillRunning) => panic!("a task has not ended"),
                            Err(TaskError::Cancelled(_)) => cancelled += 1,
                            _ => {}
                        }
                    }
                    cancelled
                })
            })
            .collect();
        let cancelled: usize =
            submitters.into_iter().map(|submitter| submitter.join_by(Instant::now() + LONG).unwrap()).sum();
        let (report, stop) = house.stop(LONG);
        assert_eq!((report, stop.is_clean()), (TasksReport::default(), true));
        let counts = house.tasks.counts();
        assert_eq!((counts.pending, counts.running), (0, 0));
        assert_eq!(counts.completed + counts.failed + counts.cancelled, 4 * EACH);
        assert_eq!(house.tasks.list(&Filter::default()).len(), 4 * EACH);
        // One that was told to end while it ran has run, and ended as if it had not been told.
        assert_eq!((ran.load(SeqCst) + counts.cancelled, counts.cancelled), (4 * EACH, cancelled));
        assert!(cancelled > 0);
    }
}
