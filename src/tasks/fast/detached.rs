//! Detached tasks, inline tasks that nobody has a handle of: work in a box, and no other memory of their own.
//!
//! What one thread allocates and another frees costs both of them more than a short task does. So a worker runs each of
//! them in the same memory ([`LocalFreeList`]), and the boxes of those that were called go back to the submitters
//! ([`FreeList`]), who fill them again with work of the same type.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of_val;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::base::lock::lock;
use crate::tasks::context::{Attempt, TaskContext, TaskEnv};
use crate::tasks::guard::{error_text, tolerated};
use crate::tasks::store::TaskId;
use crate::tasks::table::drop_all;
use crate::tasks::task::{AnyTask, AttemptEnd, OnceWork, Task, TaskRef, Work};

/// Boxes that are kept to be filled again: some batches.
const KEPT: usize = 1024;

/// Larger ones are freed.
const KEPT_BYTES: usize = 128;

/// Work of which only the end counts, whatever its types.
pub(in crate::tasks) trait DetachedWork: Any + Send {
    /// Called once, and leaves the box empty; an error in its words.
    fn call(&mut self, cx: &TaskContext<'_>) -> Result<(), String>;

    /// Whether it is still to be called.
    fn is_full(&self) -> bool;
}

pub(in crate::tasks) struct Boxed<F, T, E> {
    work: OnceWork<F>,
    result: PhantomData<fn() -> (T, E)>,
}

impl<F, T, E> Boxed<F, T, E> {
    pub(super) fn into_inner(self) -> F {
        self.work.0.expect("it was not called")
    }
}

impl<F, T, E> DetachedWork for Boxed<F, T, E>
where
    F: FnOnce(&TaskContext<'_>) -> Result<T, E> + Send + 'static,
    T: 'static,
    E: fmt::Display + 'static,
{
    fn call(&mut self, cx: &TaskContext<'_>) -> Result<(), String> {
        match self.work.call(cx) {
            Ok(value) => {
                tolerated("dropping a result", || drop(value));
                Ok(())
            }
            Err(error) => Err(error_text(&error)),
        }
    }

    fn is_full(&self) -> bool {
        self.work.0.is_some()
    }
}

/// Boxes of work that was called.
#[derive(Default)]
pub(super) struct FreeList(Mutex<Vec<Box<dyn DetachedWork>>>);

impl FreeList {
    /// Puts work into a box.
    pub(super) fn fill<F, T, E>(&self, work: F) -> Box<Boxed<F, T, E>>
    where
        Boxed<F, T, E>: DetachedWork,
    {
        let last = lock(&self.0).pop();
        let last: Option<Box<dyn Any>> = last.map(|last| last as _);
        let work = OnceWork(Some(work));
        match last.map(Box::<dyn Any>::downcast::<Boxed<F, T, E>>) {
            Some(Ok(mut last)) => {
                last.work = work;
                last
            }
            _ => Box::new(Boxed { work, result: PhantomData }),
        }
    }

    fn give(&self, empty: &mut Vec<Box<dyn DetachedWork>>) {
        let mut all = lock(&self.0);
        let room = KEPT.saturating_sub(all.len());
        all.extend(empty.drain(..room.min(empty.len())));
        drop(all);
        empty.clear();
    }
}

/// A detached task that waits.
pub(super) struct Detached {
    pub(super) id: TaskId,
    pub(super) submitted: u64,
    pub(super) name: &'static str,
    pub(super) work: Box<dyn DetachedWork>,
}

/// What becomes of a detached task when it is begun, or entered in the table.
pub(in crate::tasks) type DetachedTask = Task<OnceBoxed, (), String>;

pub(in crate::tasks) struct OnceBoxed(Box<dyn DetachedWork>);

impl Work<(), String> for OnceBoxed {
    fn call(&mut self, cx: &TaskContext<'_>) -> Result<(), String> {
        self.0.call(cx)
    }

    fn again(&mut self, _: Option<&String>, _: Instant, _: f64) -> Option<Duration> {
        None
    }
}

/// What a worker is about to run.
pub(in crate::tasks) enum Begun {
    Task(TaskRef, Attempt),
    Detached(Arc<DetachedTask>, Box<dyn DetachedWork>, Attempt),
}

/// For the table.
pub(super) fn waiting(Detached { id, submitted, name, work }: Detached) -> TaskRef {
    let task = Arc::new(DetachedTask::new(name.into(), OnceBoxed(work), true));
    task.head().accept(id, submitted);
    task
}

/// A worker's memory for one detached task after the other.
#[derive(Default)]
pub(in crate::tasks) struct LocalFreeList {
    last: Option<Arc<DetachedTask>>,
    empty: Vec<Box<dyn DetachedWork>>,
}

impl LocalFreeList {
    /// A task whose work the worker has.
    pub(super) fn task(&mut self, detached: Detached) -> (Arc<DetachedTask>, Box<dyn DetachedWork>) {
        let Detached { id, submitted, name, work } = detached;
        if let Some(mut last) = self.last.take()
            && let Some(task) = Arc::get_mut(&mut last)
        {
            task.lend_again(name, id, submitted);
            return (last, work);
        }
        (Arc::new(DetachedTask::lent(name, id, submitted)), work)
    }

    /// Runs what the worker has begun, as [`AnyTask::run`] does.
    pub(in crate::tasks) fn run(
        &mut self,
        begun: Begun,
        env: &TaskEnv,
        mut ended: impl FnMut(&dyn AnyTask, AttemptEnd),
    ) {
        match begun {
            Begun::Task(task, attempt) => {
                if task.begin() {
                    task.run(env, attempt, &mut |end| ended(&*task, end));
                } else {
                    ended(&*task, AttemptEnd::Late);
                }
                drop_all([task]);
            }
            Begun::Detached(task, work, attempt) if task.begin() => self.run_detached(task, work, env, attempt, ended),
            Begun::Detached(task, work, _) => {
                ended(&*task, AttemptEnd::Late);
                tolerated("dropping a task's work", || drop(work));
            }
        }
    }

    fn run_detached(
        &mut self,
        task: Arc<DetachedTask>,
        work: Box<dyn DetachedWork>,
        env: &TaskEnv,
        attempt: Attempt,
        mut ended: impl FnMut(&dyn AnyTask, AttemptEnd),
    ) {
        let mut work = OnceBoxed(work);
        let shown = task.run_lent(&mut work, env, attempt, &mut |end| ended(&*task, end));
        let OnceBoxed(empty) = work;
        debug_assert!(!empty.is_full(), "it was called");
        if size_of_val(&*empty) <= KEPT_BYTES {
            self.empty.push(empty);
        }
        // Nobody else has it, so that nobody can come to see its end.
        if Arc::strong_count(&task) == 1 && !task.head().has_grown() {
            self.last = Some(task);
        } else if let Some((state, outcome)) = shown {
            task.publish(state, outcome);
        }
    }

    /// Between two batches: passes the boxes on to the submitters.
    pub(super) fn pass_on(&mut self, free: &FreeList) {
        if !self.empty.is_empty() {
            free.give(&mut self.empty);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::from_ref;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::tasks::tests::{LONG, Text, begin, fixture};
    use crate::tasks::{CancelReason, Progress, TaskState};

    /// Work that holds `what` and fails; of one type for each type of that.
    fn holds<T: Send + 'static>(what: T) -> impl FnOnce(&TaskContext<'_>) -> Result<(), Text> + Send {
        move |_| {
            drop(what);
            Err("planned".to_owned())
        }
    }

    fn place(work: &dyn DetachedWork) -> *const () {
        from_ref(work).cast()
    }

    fn emptied<F, T, E>(mut work: Box<Boxed<F, T, E>>) -> Box<dyn DetachedWork>
    where
        Boxed<F, T, E>: DetachedWork,
    {
        assert!(work.is_full());
        drop(work.work.0.take());
        assert!(!work.is_full());
        work
    }

    #[test]
    fn a_box_is_filled_again_with_work_of_its_own_type() {
        let free = FreeList::default();
        let boxed = free.fill(holds(1u8));
        let first = place(&*boxed);
        free.give(&mut vec![emptied(boxed)]);
        let again = free.fill(holds(2u8));
        assert_eq!((place(&*again), again.is_full()), (first, true));
        free.give(&mut vec![emptied(again)]);
        assert!(free.fill(holds("another type")).is_full());
        assert!(lock(&free.0).is_empty(), "a box of a type that is not submitted any more goes");
        let mut many: Vec<_> = (0..KEPT + 10).map(|_| emptied(free.fill(holds(3u8)))).collect();
        free.give(&mut many);
        assert_eq!((lock(&free.0).len(), many.len()), (KEPT, 0));
    }

    #[test]
    fn a_task_has_the_memory_of_the_last_one_unless_somebody_has_that() {
        let fixture = fixture(|c| c);
        let (mut local, free, mut ends) = (LocalFreeList::default(), FreeList::default(), Vec::new());
        let env = &fixture.tasks.scheduler().env;
        let attempt = Attempt { number: 1, started: env.start };
        let begin = |local: &mut LocalFreeList, name, id, submitted| {
            local.task(Detached { id: TaskId::from_u64(id), submitted, name, work: free.fill(holds(1u8)) })
        };
        let mut run = |local: &mut LocalFreeList, (task, work)| {
            let end = |_: &dyn AnyTask, end| match end {
                AttemptEnd::Ended(state, Some(why)) => ends.push((state, why)),
                _ => panic!("another end"),
            };
            local.run(Begun::Detached(task, work, attempt), env, end);
        };
        let first = begin(&mut local, "first", 1, 10);
        let memory = Arc::as_ptr(&first.0);
        first.0.head().cancel(&CancelReason::Requested(String::new()));
        run(&mut local, first);
        let second = begin(&mut local, "second", 2, 20);
        let head = second.0.head();
        assert_eq!((head.name(), head.id().as_u64(), head.submitted(), head.cancelled()), ("second", 2, 20, None));
        assert_eq!(Arc::as_ptr(&second.0), memory);
        let held = second.0.clone();
        run(&mut local, second);
        assert_eq!(held.watch(0, Instant::now() + LONG), (1, true), "whoever has it sees its end");
        let third = begin(&mut local, "third", 3, 30);
        assert_ne!(Arc::as_ptr(&third.0), memory);
        third.0.head().set_progress(Progress { percent: 1, message: String::new() });
        run(&mut local, third);
        assert!(local.last.is_none(), "what it has grown goes with it");
        let ended = ends.iter().map(|(state, why)| (*state, why.as_str()));
        let failed = (TaskState::Failed, "the task failed: planned");
        let cancelled = (TaskState::Cancelled, "the task was cancelled on request");
        assert!(ended.eq([cancelled, failed, failed]), "{ends:?}");
    }

    #[test]
    fn nothing_of_a_task_is_left_to_the_next_one() {
        let fixture = fixture(|c| c.workers(1));
        let captured = Arc::new(());
        for n in 0..300 {
            let captured = captured.clone();
            let work = move |_: &TaskContext<'_>| {
                let _captured = captured;
                match n % 3 {
                    0 => Ok(()),
                    1 => Err("planned"),
                    _ => panic!("planned"),
                }
            };
            fixture.tasks.spawn("captures", work).unwrap();
        }
        let (begun, began) = bounded(1);
        let first = fixture.tasks.spawn("first", move |cx| {
            cx.progress(50, "half");
            begun.send(()).unwrap();
            assert!(cx.signal().cancel_receiver().recv_timeout(LONG).is_err_and(|error| error.is_disconnected()));
            cx.check()
        });
        let (tell, seen) = bounded(1);
        let second = fixture.tasks.spawn("second", move |cx| {
            tell.send((cx.id(), cx.is_cancelled(), cx.signal().is_cancelled(), cx.attempt())).unwrap();
            Ok::<_, Text>(())
        });
        let (first, second) = (first.unwrap(), second.unwrap());
        begin(&began);
        assert_eq!(Arc::strong_count(&captured), 1, "boxes are kept empty");
        assert!(fixture.tasks.cancel(first, ""));
        assert_eq!(seen.recv_timeout(LONG).unwrap(), (second, false, false, 1));
        fixture.tasks.submit("last", |_| Ok::<_, Text>(())).unwrap().wait().unwrap();
        let [first, second] = [first, second].map(|id| fixture.tasks.info(id).unwrap());
        assert_eq!((first.state, first.progress.unwrap().percent), (TaskState::Cancelled, 50));
        assert_eq!((second.state, second.progress), (TaskState::Completed, None));
        let counts = fixture.tasks.counts();
        assert_eq!((counts.completed, counts.failed, counts.cancelled), (102, 200, 1));
    }
}
