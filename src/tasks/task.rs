//! One task: its work, its head that everybody may look at, and its cell.

use std::any::{Any, TypeId};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cell::{Cell, Waited};
use super::context::{Attempt, TaskContext, TaskEnv};
use super::error::{Panic, TaskError};
use super::guard::{error_text, guarded, tolerated};
use super::head::Head;
use super::options::TaskOptions;
use super::retry::Retries;
use super::state::{CancelReason, TaskState};
use super::store::TaskId;
use crate::base::lock::lock;

/// How an attempt ended.
pub(super) enum AttemptEnd {
    /// It is tried again after a delay.
    Again(Duration),
    /// For good; why there is no result, in words.
    Ended(TaskState, Option<String>),
    /// It had been ended by others before.
    Late,
}

/// A task of any type, shared by the table, its worker and its handle.
pub(super) type TaskRef = Arc<dyn AnyTask>;

/// A task whose types do not matter.
pub(super) trait AnyTask: Send + Sync {
    fn head(&self) -> &Head;

    /// Runs one attempt on the calling thread, says how it ended, and then shows it to the waiters.
    fn run(&self, env: &TaskEnv, attempt: Attempt, ended: &mut dyn FnMut(AttemptEnd));

    /// See [`Cell`].
    fn begin(&self) -> bool;
    fn settle_pending(&self) -> bool;
    fn settle_running(&self) -> bool;
    fn watch(&self, seen: u32, deadline: Instant) -> (u32, bool);

    /// Takes the outcome, if it is there, into `place`: an `Option<Waited<Outcome<T, E>>>` of the task's own types.
    /// Of other types nothing is put in it.
    fn take_outcome(&self, place: &mut dyn Any);

    /// Shows the waiters an end without a result, for the `reason` that its head has; drops the work if nobody runs it.
    fn publish_cancelled(&self, reason: &CancelReason);
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

/// Why a task has no result, without what the task's submitter knows.
pub(super) enum Failure<E> {
    Failed(E),
    Panicked(Panic),
    /// Its head knows why.
    Cancelled,
    /// So many bytes.
    TooLarge(usize),
}

pub(super) type Outcome<T, E> = Result<T, Failure<E>>;

impl<E> Failure<E> {
    /// In the words of the task's submitter.
    pub(super) fn into_error(self, head: &Head, result_bytes: usize) -> TaskError<E> {
        match self {
            Self::Failed(error) => TaskError::Failed(error),
            Self::Panicked(panic) => TaskError::Panicked(panic),
            Self::Cancelled => match head.cancelled().expect("the reason is noted before its end is shown") {
                CancelReason::Limit(limit) => {
                    let after = head.extras().and_then(|extras| extras.limits.of(limit)).unwrap_or_default();
                    TaskError::TimedOut { limit, after }
                }
                reason => TaskError::Cancelled(reason),
            },
            Self::TooLarge(bytes) => TaskError::TooLarge { bytes, limit: result_bytes },
        }
    }

    fn as_ref(&self) -> Failure<&E> {
        match self {
            Self::Failed(error) => Failure::Failed(error),
            Self::Panicked(panic) => Failure::Panicked(panic.clone()),
            Self::Cancelled => Failure::Cancelled,
            Self::TooLarge(bytes) => Failure::TooLarge(*bytes),
        }
    }
}

impl<T, E> Waited<Outcome<T, E>> {
    /// In the words of the task's submitter.
    pub(super) fn into_result(self, head: &Head, result_bytes: usize) -> Result<T, TaskError<E>> {
        match self {
            Self::Ended(outcome) => outcome.map_err(|failure| failure.into_error(head, result_bytes)),
            Self::Taken => Err(TaskError::Taken),
            Self::Still => Err(TaskError::StillRunning),
        }
    }
}

/// What a handle holds: a task whose work does not matter.
pub(super) trait TypedTask<T, E>: AnyTask {
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
        let head = Head::new(options);
        let unwanted = unwanted && !head.keeps_result();
        Self { head, cell: Cell::new(work, unwanted) }
    }

    /// One whose work its worker has, and that may be begun at once.
    pub(super) fn lent(name: &'static str, id: TaskId, submitted: u64) -> Self {
        let task = Self { head: Head::new(name.into()), cell: Cell::lent() };
        task.head.accept(id, submitted);
        task
    }

    /// As [`Task::lent`], in the memory of one that has not grown.
    pub(super) fn lend_again(&mut self, name: &'static str, id: TaskId, submitted: u64) {
        self.head.reuse(name, id, submitted);
        self.cell = Cell::lent();
    }

    /// The work of a task that nobody has accepted.
    pub(super) fn into_work(self: Arc<Self>) -> Option<W> {
        self.cell.take_work()
    }

    /// Runs the work once.
    fn call(&self, work: &mut W, env: &TaskEnv, attempt: Attempt) -> Result<Result<T, E>, Panic> {
        let changed = || self.cell.note();
        let cx = TaskContext::new(env, &self.head, attempt, &changed);
        let result = guarded(|| work.call(&cx));
        if let Err(panic) = &result {
            log::error!("task {} ({}) panicked: {panic}", self.head.id(), self.head.name());
        }
        result
    }

    /// As [`AnyTask::run`], with work that is not tried again and that the caller keeps. What the waiters are then to
    /// be shown, for [`Task::publish`], if anybody can come to see it.
    pub(super) fn run_lent(
        &self,
        work: &mut W,
        env: &TaskEnv,
        attempt: Attempt,
        ended: &mut dyn FnMut(AttemptEnd),
    ) -> Option<(TaskState, Outcome<T, E>)> {
        let result = self.call(work, env, attempt);
        self.end(result, env, ended)
    }

    /// Says how the task ended; what its waiters are then to be shown, unless others have ended it before.
    fn end(
        &self,
        result: Result<Result<T, E>, Panic>,
        env: &TaskEnv,
        ended: &mut dyn FnMut(AttemptEnd),
    ) -> Option<(TaskState, Outcome<T, E>)> {
        let (state, outcome) = self.conclude(result, env.result_bytes);
        if !self.cell.settle_running() {
            tolerated("dropping a result", || drop(outcome));
            ended(AttemptEnd::Late);
            return None;
        }
        // The text is made by the user's code, too.
        let failure = outcome.as_ref().err();
        let error = failure.map(|failure| error_text(&failure.as_ref().into_error(&self.head, env.result_bytes)));
        ended(AttemptEnd::Ended(state, error));
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
            (Ok(Err(_)), Some(reason)) => (reason.end_state(), Err(Failure::Cancelled)),
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

impl<W, T, E> AnyTask for Task<W, T, E>
where
    W: Work<T, E>,
    T: Send + 'static,
    E: fmt::Display + Send + 'static,
{
    fn head(&self) -> &Head {
        &self.head
    }

    fn run(&self, env: &TaskEnv, attempt: Attempt, ended: &mut dyn FnMut(AttemptEnd)) {
        let mut work = self.cell.take_work().expect("whoever begins a task is the only one to have its work");
        let result = self.call(&mut work, env, attempt);
        let error = match &result {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Some(error)),
            Err(_) => Some(None),
        };
        if let Some(error) = error
            && !self.head.is_cancelled()
            && let Some(delay) = work.again(error, env.now(), env.random())
        {
            self.cell.put_work_back(work);
            if self.cell.again() {
                return ended(AttemptEnd::Again(delay));
            }
            let work = self.cell.take_work();
            tolerated("dropping a task's work", || drop(work));
        } else {
            // Before the end is shown: what the work has captured is free when its waiters wake.
            tolerated("dropping a task's work", || drop(work));
        }
        if let Some((state, outcome)) = self.end(result, env, ended) {
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

    fn watch(&self, seen: u32, deadline: Instant) -> (u32, bool) {
        self.cell.watch(seen, deadline)
    }

    fn take_outcome(&self, place: &mut dyn Any) {
        if let Some(place) = place.downcast_mut::<Option<Waited<Outcome<T, E>>>>() {
            *place = Some(self.cell.wait(Some(Instant::now())));
        }
    }

    fn publish_cancelled(&self, reason: &CancelReason) {
        let work = self.cell.take_work();
        tolerated("dropping a task's work", || drop(work));
        self.publish(reason.end_state(), Err(Failure::Cancelled));
    }
}

impl<W, T, E> TypedTask<T, E> for Task<W, T, E>
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
    fn an_inline_task_is_small_enough_not_to_cost_the_allocators_lock() {
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
