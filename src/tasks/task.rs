//! One task: its work, its head that everybody may look at, and its cell.

use std::any::{Any, TypeId};
use std::backtrace::Backtrace;
use std::cell::{Cell as ThreadCell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::cell::{Cell, Waited};
use super::context::TaskContext;
use super::options::{Extras, Grown, TaskOptions};
use super::retry::Retries;
use super::state::{CancelReason, Limit, TaskError, TaskState};
use super::store::TaskId;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::thread::panic_message;

/// How far a task has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100.
    pub percent: u8,
    /// What it does just now.
    pub message: String,
}

/// A panic of a task's work.
#[derive(Clone)]
pub struct Panic(Arc<(String, Option<Backtrace>)>);

impl Panic {
    /// What the panic said.
    pub fn message(&self) -> &str {
        &self.0.0
    }

    /// From where; showing it looks the symbols up, which takes milliseconds. `None` only if the program has put a panic
    /// hook of its own in place of the one that keeps it.
    pub fn backtrace(&self) -> Option<&Backtrace> {
        self.0.1.as_ref()
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl fmt::Debug for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Panic").field("message", &self.message()).finish_non_exhaustive()
    }
}

thread_local! {
    static AT_WORK: ThreadCell<bool> = const { ThreadCell::new(false) };
    static BACKTRACE: RefCell<Option<Backtrace>> = const { RefCell::new(None) };
}

/// Only the hook sees the stack of a panic, so it is put before the program's own; it acts on threads that run a task, and
/// then calls the one before.
pub(super) fn keep_backtraces() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if AT_WORK.try_with(ThreadCell::get).unwrap_or(false) {
                // It fails only while the thread's own values are being dropped, and then no task runs.
                let _ = BACKTRACE.try_with(|kept| kept.replace(Some(Backtrace::force_capture())));
            }
            before(info);
        }));
    });
}

/// Runs the user's code: a panic of it becomes a value.
pub(super) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, Panic> {
    let outer = AT_WORK.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    AT_WORK.set(outer);
    result.map_err(|payload| {
        let message = panic_message(payload.as_ref());
        // A payload may panic when it is dropped; it is leaked rather than dropped a second time.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(again);
        }
        Panic(Arc::new((message, BACKTRACE.take())))
    })
}

/// As [`guarded`], for what may panic and nobody waits for.
pub(super) fn tolerated(what: &str, f: impl FnOnce()) {
    if let Err(panic) = guarded(f) {
        log::error!("{what} panicked: {panic}");
    }
}

/// What everybody may know of a task.
pub(super) struct Head {
    name: &'static str,
    /// Given with the task, or made when something first grows.
    extras: OnceLock<Box<Extras>>,
    id: AtomicU64,
    /// In nanoseconds since the manager's start.
    submitted: AtomicU64,
    cancel: AtomicU8,
    /// Its name is all that it was given.
    light: bool,
}

const REASONS: [CancelReason; 7] = [
    CancelReason::Requested,
    CancelReason::Group,
    CancelReason::Stopping,
    CancelReason::Limit(Limit::Queue),
    CancelReason::Limit(Limit::Run),
    CancelReason::Limit(Limit::Total),
    CancelReason::Limit(Limit::Silence),
];

impl Head {
    fn new(options: TaskOptions) -> Self {
        let TaskOptions { name, extras } = options;
        let light = extras.is_none();
        let extras = extras.map_or_else(OnceLock::new, OnceLock::from);
        let (id, submitted, cancel) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU8::new(0));
        Self { name, extras, id, submitted, cancel, light }
    }

    /// What it was given beside its name; nothing for a light task.
    pub(super) fn extras(&self) -> Option<&Extras> {
        if self.light { None } else { self.extras.get().map(Box::as_ref) }
    }

    pub(super) fn name(&self) -> &str {
        self.extras().and_then(|extras| extras.name.as_deref()).unwrap_or(self.name)
    }

    /// The name, if that is all there is to tell.
    pub(super) fn only_name(&self) -> Option<&'static str> {
        (self.light && self.progress().is_none()).then_some(self.name)
    }

    /// Whether it has more than its name, from the start or since.
    pub(super) fn has_grown(&self) -> bool {
        self.extras.get().is_some()
    }

    fn grown(&self) -> &Grown {
        &self.extras.get_or_init(Box::default).grown
    }

    /// How far the task has come; nothing before its first word.
    pub(super) fn progress(&self) -> Option<Progress> {
        lock(&self.extras.get()?.grown.progress).clone()
    }

    pub(super) fn set_progress(&self, progress: Progress) {
        *lock(&self.grown().progress) = Some(progress);
    }

    /// A sign of life, in nanoseconds since the manager's start.
    pub(super) fn show_life(&self, at: u64) {
        self.grown().alive.store(at, Ordering::Relaxed);
    }

    /// The last sign of life.
    pub(super) fn alive(&self) -> u64 {
        self.grown().alive.load(Ordering::Relaxed)
    }

    pub(super) fn id(&self) -> TaskId {
        TaskId::from_u64(self.id.load(Ordering::Relaxed))
    }

    /// In nanoseconds since the manager's start.
    pub(super) fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }

    /// It is accepted; before others can see it.
    pub(super) fn accept(&self, id: TaskId, submitted: u64) {
        self.id.store(id.as_u64(), Ordering::Relaxed);
        self.submitted.store(submitted, Ordering::Relaxed);
    }

    /// Why it was told to end, if it was.
    pub(super) fn cancelled(&self) -> Option<CancelReason> {
        match self.cancel.load(Ordering::SeqCst) {
            0 => None,
            n => REASONS.get(usize::from(n) - 1).copied(),
        }
    }

    /// Tells it to end; the first reason stays.
    pub(super) fn cancel(&self, reason: CancelReason) {
        let code = REASONS.iter().position(|r| *r == reason).map_or(1, |n| n as u8 + 1);
        // A second reason changes nothing, so its failure is of no interest.
        let _ = self.cancel.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
        if let Some(signal) = self.extras.get().and_then(|extras| extras.grown.signal.get()) {
            signal.cancel();
        }
    }

    /// Made when first asked for, because most tasks never do.
    pub(super) fn signal(&self, parent: &Shutdown) -> &Shutdown {
        let signal = self.grown().signal.get_or_init(|| parent.child());
        // Whoever cancelled before the signal was there could not raise it.
        if self.cancelled().is_some() {
            signal.cancel();
        }
        signal
    }
}

/// How an attempt ended.
pub(super) enum End {
    /// It is tried again after a delay.
    Again(Duration),
    /// For good; why there is no result, in words.
    Ended(TaskState, Option<String>),
    /// It had been ended by others before.
    Late,
}

/// A task whose types do not matter.
pub(super) trait Job: Send + Sync {
    fn head(&self) -> &Head;

    /// Runs one attempt on the calling thread, says how it ended, and then shows it to the waiters.
    fn run(&self, cx: &TaskContext<'_>, ended: &mut dyn FnMut(End));

    /// See [`Cell`].
    fn begin(&self) -> bool;
    fn settle_pending(&self) -> bool;
    fn settle_running(&self) -> bool;
    fn note(&self);
    fn watch(&self, seen: u32, deadline: Instant) -> (u32, bool);

    /// Shows the waiters an end without a result, for `reason`; drops the work if nobody runs it.
    fn publish_cut(&self, reason: CancelReason);
}

/// The end that a reason leads to.
pub(super) fn state_of(reason: CancelReason) -> TaskState {
    match reason {
        CancelReason::Limit(_) => TaskState::Failed,
        _ => TaskState::Cancelled,
    }
}

/// What a task does.
pub(super) trait Work<T, E>: Send {
    fn call(&mut self, cx: &TaskContext<'_>) -> Result<T, E>;

    /// The delay before the next attempt, if there is one.
    fn again(&mut self, error: Option<&E>, now: Instant, unit: f64) -> Option<Duration>;
}

/// Work that can be done once.
pub(super) struct OnceWork<F>(pub(super) Option<F>);

impl<T, E, F: FnOnce(&TaskContext<'_>) -> Result<T, E> + Send> Work<T, E> for OnceWork<F> {
    fn call(&mut self, cx: &TaskContext<'_>) -> Result<T, E> {
        let work = self.0.take().expect("work of this kind is called once, because it is never tried again");
        work(cx)
    }

    fn again(&mut self, _: Option<&E>, _: Instant, _: f64) -> Option<Duration> {
        None
    }
}

/// What the user's code says of an error.
pub(super) fn words(error: &impl fmt::Display) -> String {
    guarded(|| error.to_string()).unwrap_or_else(|panic| format!("it failed, and its error panicked: {panic}"))
}

/// Work that can be tried again.
pub(super) struct RetriedWork<F, E>(pub(super) F, pub(super) Retries<E>);

impl<T, E: Send, F: FnMut(&TaskContext<'_>) -> Result<T, E> + Send> Work<T, E> for RetriedWork<F, E> {
    fn call(&mut self, cx: &TaskContext<'_>) -> Result<T, E> {
        (self.0)(cx)
    }

    fn again(&mut self, error: Option<&E>, now: Instant, unit: f64) -> Option<Duration> {
        // The predicate is the user's code.
        guarded(|| self.1.next(error, now, unit)).unwrap_or_else(|panic| {
            log::error!("the predicate of a retry policy panicked: {panic}");
            None
        })
    }
}

/// Why a task has no result, without what can be told later.
pub(super) enum Failure<E> {
    Failed(E),
    Panicked(Panic),
    Cut(CancelReason),
    /// So many bytes.
    TooLarge(usize),
}

pub(super) type Outcome<T, E> = Result<T, Failure<E>>;

impl<E> Failure<E> {
    /// In the words of the task's submitter.
    pub(super) fn told(self, head: &Head, result_bytes: usize) -> TaskError<E> {
        match self {
            Self::Failed(error) => TaskError::Failed(error),
            Self::Panicked(panic) => TaskError::Panicked(panic),
            Self::Cut(CancelReason::Limit(limit)) => {
                let after = head.extras().and_then(|extras| extras.limits.of(limit)).unwrap_or_default();
                TaskError::TimedOut { limit, after }
            }
            Self::Cut(reason) => TaskError::Cancelled(reason),
            Self::TooLarge(bytes) => TaskError::TooLarge { bytes, limit: result_bytes },
        }
    }

    fn as_ref(&self) -> Failure<&E> {
        match self {
            Self::Failed(error) => Failure::Failed(error),
            Self::Panicked(panic) => Failure::Panicked(panic.clone()),
            Self::Cut(reason) => Failure::Cut(*reason),
            Self::TooLarge(bytes) => Failure::TooLarge(*bytes),
        }
    }
}

/// What a handle holds: a task whose work does not matter.
pub(super) trait Typed<T, E>: Job {
    /// See [`Cell`].
    fn wait(&self, deadline: Option<Instant>) -> Waited<Outcome<T, E>>;
    fn abandon(&self) -> Option<Outcome<T, E>>;
    fn has_ended(&self) -> bool;
}

/// A task.
pub(super) struct Task<W, T, E> {
    head: Head,
    cell: Cell<W, Outcome<T, E>>,
}

impl<W: Work<T, E>, T: Send + 'static, E: fmt::Display + Send + 'static> Task<W, T, E> {
    /// # Panics
    /// If the options weigh results of another type.
    pub(super) fn new(options: TaskOptions, work: W, unwanted: bool) -> Self {
        if let Some((weighed, _)) = options.extras.as_ref().and_then(|extras| extras.weigh.as_ref()) {
            assert_eq!(*weighed, TypeId::of::<T>(), "the options of {} weigh another type of result", options.name());
        }
        Self { head: Head::new(options), cell: Cell::new(work, unwanted) }
    }

    /// One whose work its worker has, and that may be begun at once.
    pub(super) fn lent(name: &'static str, id: TaskId, submitted: u64) -> Self {
        let task = Self { head: Head::new(name.into()), cell: Cell::lent() };
        task.head.accept(id, submitted);
        task
    }

    /// As [`Task::lent`], in the memory of one that has not grown.
    pub(super) fn lend_again(&mut self, name: &'static str, id: TaskId, submitted: u64) {
        debug_assert!(self.head.light && !self.head.has_grown(), "it is as small as a new one");
        self.head.name = name;
        self.head.cancel = AtomicU8::new(0);
        self.head.accept(id, submitted);
        self.cell = Cell::lent();
    }

    /// The work of a task that nobody has accepted.
    pub(super) fn into_work(self: Arc<Self>) -> Option<W> {
        self.cell.take_work()
    }

    /// Runs the work once.
    pub(super) fn call(&self, work: &mut W, cx: &TaskContext<'_>) -> Result<Result<T, E>, Panic> {
        let result = guarded(|| work.call(cx));
        if let Err(panic) = &result {
            log::error!("task {} ({}) panicked: {panic}", self.head.id(), self.head.name());
        }
        result
    }

    /// Says how the task ended; what its waiters are then to be shown, unless others have ended it before.
    pub(super) fn end(
        &self,
        result: Result<Result<T, E>, Panic>,
        cx: &TaskContext<'_>,
        ended: &mut dyn FnMut(End),
    ) -> Option<(TaskState, Outcome<T, E>)> {
        let (state, outcome) = self.conclude(result, cx.result_bytes());
        if !self.cell.settle_running() {
            tolerated("dropping a result", || drop(outcome));
            ended(End::Late);
            return None;
        }
        // The text is made by the user's code, too.
        let failure = outcome.as_ref().err();
        let told = failure.map(|failure| words(&failure.as_ref().told(&self.head, cx.result_bytes())));
        ended(End::Ended(state, told));
        Some((state, outcome))
    }

    fn conclude(&self, result: Result<Result<T, E>, Panic>, result_bytes: usize) -> (TaskState, Outcome<T, E>) {
        let cancelled = self.head.cancelled();
        match (result, cancelled) {
            (Ok(Ok(value)), _) => {
                let weigh = self.head.extras().and_then(|extras| extras.weigh.as_ref());
                match weigh.map(|(_, weigh)| guarded(|| weigh(&value as &dyn Any))) {
                    Some(Ok(bytes)) if bytes > result_bytes => (TaskState::Failed, Err(Failure::TooLarge(bytes))),
                    Some(Err(panic)) => (TaskState::Failed, Err(Failure::Panicked(panic))),
                    _ => (TaskState::Completed, Ok(value)),
                }
            }
            (Err(panic), _) => (TaskState::Failed, Err(Failure::Panicked(panic))),
            (Ok(Err(_)), Some(reason)) => (state_of(reason), Err(Failure::Cut(reason))),
            (Ok(Err(error)), None) => (TaskState::Failed, Err(Failure::Failed(error))),
        }
    }

    pub(super) fn publish(&self, state: TaskState, outcome: Outcome<T, E>) {
        if let Some(unwanted) = self.cell.publish(outcome) {
            tolerated("dropping a result", || drop(unwanted));
        }
        let on_end = self.head.extras().and_then(|extras| lock(&extras.on_end).take());
        if let Some(on_end) = on_end {
            tolerated("what follows a task's end", || on_end(self.head.id(), state));
        }
    }
}

impl<W, T, E> Job for Task<W, T, E>
where
    W: Work<T, E>,
    T: Send + 'static,
    E: fmt::Display + Send + 'static,
{
    fn head(&self) -> &Head {
        &self.head
    }

    fn run(&self, cx: &TaskContext<'_>, ended: &mut dyn FnMut(End)) {
        let mut work = self.cell.take_work().expect("whoever begins a task is the only one to have its work");
        let result = self.call(&mut work, cx);
        let error = match &result {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Some(error)),
            Err(_) => Some(None),
        };
        if let Some(error) = error
            && self.head.cancelled().is_none()
            && let Some(delay) = work.again(error, cx.now(), cx.random())
        {
            self.cell.put_work_back(work);
            if self.cell.again() {
                return ended(End::Again(delay));
            }
            let work = self.cell.take_work();
            tolerated("dropping a task's work", || drop(work));
        } else {
            // Before the end is shown: what the work has captured is free when its waiters wake.
            tolerated("dropping a task's work", || drop(work));
        }
        if let Some((state, outcome)) = self.end(result, cx, ended) {
            self.publish(state, outcome);
        }
    }

    fn begin(&self) -> bool {
        self.cell.begin()
    }

    fn settle_pending(&self) -> bool {
        self.cell.settle_pending()
    }

    fn settle_running(&self) -> bool {
        self.cell.settle_running()
    }

    fn note(&self) {
        self.cell.note();
    }

    fn watch(&self, seen: u32, deadline: Instant) -> (u32, bool) {
        self.cell.watch(seen, deadline)
    }

    fn publish_cut(&self, reason: CancelReason) {
        let work = self.cell.take_work();
        tolerated("dropping a task's work", || drop(work));
        self.publish(state_of(reason), Err(Failure::Cut(reason)));
    }
}

impl<W, T, E> Typed<T, E> for Task<W, T, E>
where
    W: Work<T, E>,
    T: Send + 'static,
    E: fmt::Display + Send + 'static,
{
    fn wait(&self, deadline: Option<Instant>) -> Waited<Outcome<T, E>> {
        self.cell.wait(deadline)
    }

    fn abandon(&self) -> Option<Outcome<T, E>> {
        self.cell.abandon()
    }

    fn has_ended(&self) -> bool {
        self.cell.has_ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_light_task_is_small_enough_not_to_cost_the_allocators_lock() {
        fn size<F: FnOnce(&TaskContext<'_>) -> Result<(), String> + Send>(_: F) -> usize {
            // With the two counts of its `Arc`.
            size_of::<Task<OnceWork<F>, (), String>>() + 2 * size_of::<usize>()
        }
        let captured = Arc::new(());
        let bytes = size(move |_| {
            drop(captured);
            Ok(())
        });
        assert!(bytes <= 120, "{bytes} bytes");
    }
}
