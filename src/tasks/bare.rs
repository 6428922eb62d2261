//! Light tasks that nobody has a handle of: work in a box, and no other memory of its own.
//!
//! What one thread allocates and another frees costs both of them more than a short task does. So a worker makes each of
//! them a job in the same memory ([`Spare`]), and the boxes of those that were called go back to the submitters
//! ([`Empties`]), who fill them again with work of the same type.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of_val;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::context::TaskContext;
use super::shared::Shared;
use super::store::TaskId;
use super::task::{End, Job, OnceWork, Task, Work, tolerated, words};
use crate::base::lock::lock;

/// Boxes that are kept to be filled again: some batches.
const KEPT: usize = 1024;

/// Larger ones are freed.
const KEPT_BYTES: usize = 128;

/// Work of which only the end counts, whatever its types.
pub(super) trait Bare: Any + Send {
    /// Called once, and leaves the box empty; an error in its words.
    fn call(&mut self, cx: &TaskContext<'_>) -> Result<(), String>;

    /// Whether it is still to be called.
    fn is_full(&self) -> bool;
}

pub(super) struct BareWork<F, T, E> {
    work: OnceWork<F>,
    result: PhantomData<fn() -> (T, E)>,
}

impl<F, T, E> BareWork<F, T, E> {
    pub(super) fn into_inner(self) -> F {
        self.work.0.expect("it was not called")
    }
}

impl<F, T, E> Bare for BareWork<F, T, E>
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
            Err(error) => Err(words(&error)),
        }
    }

    fn is_full(&self) -> bool {
        self.work.0.is_some()
    }
}

/// Boxes of work that was called.
#[derive(Default)]
pub(super) struct Empties(Mutex<Vec<Box<dyn Bare>>>);

impl Empties {
    /// Puts work into a box.
    pub(super) fn fill<F, T, E>(&self, work: F) -> Box<BareWork<F, T, E>>
    where
        BareWork<F, T, E>: Bare,
    {
        let last = lock(&self.0).pop();
        let last: Option<Box<dyn Any>> = last.map(|last| last as _);
        let work = OnceWork(Some(work));
        match last.map(Box::<dyn Any>::downcast::<BareWork<F, T, E>>) {
            Some(Ok(mut last)) => {
                // It is empty, so that there is nothing to drop, nor to look at.
                std::mem::forget(std::mem::replace(&mut last.work, work));
                last
            }
            _ => Box::new(BareWork { work, result: PhantomData }),
        }
    }

    fn give(&self, empty: &mut Vec<Box<dyn Bare>>) {
        let mut all = lock(&self.0);
        let room = KEPT.saturating_sub(all.len());
        all.extend(empty.drain(..room.min(empty.len())));
        drop(all);
        empty.clear();
    }
}

/// What becomes of bare work when it is begun, or entered in the table.
pub(super) type BareTask = Task<OnceBare, (), String>;

pub(super) struct OnceBare(Box<dyn Bare>);

impl Work<(), String> for OnceBare {
    fn call(&mut self, cx: &TaskContext<'_>) -> Result<(), String> {
        self.0.call(cx)
    }

    fn again(&mut self, _: Option<&String>, _: Instant, _: f64) -> Option<Duration> {
        None
    }
}

/// One that waits.
pub(super) fn waiting(name: &'static str, work: Box<dyn Bare>) -> Arc<dyn Job> {
    Arc::new(BareTask::new(name.into(), OnceBare(work), true))
}

/// A worker's memory for one bare task after the other.
#[derive(Default)]
pub(super) struct Spare {
    last: Option<Arc<BareTask>>,
    empty: Vec<Box<dyn Bare>>,
}

impl Spare {
    /// A task whose work the worker has in hand.
    pub(super) fn task(&mut self, name: &'static str, id: TaskId, submitted: u64) -> Arc<BareTask> {
        if let Some(mut last) = self.last.take()
            && let Some(task) = Arc::get_mut(&mut last)
        {
            task.lend_again(name, id, submitted);
            return last;
        }
        Arc::new(BareTask::lent(name, id, submitted))
    }

    /// Runs such a task as [`Job::run`] does.
    pub(super) fn run(
        &mut self,
        task: Arc<BareTask>,
        work: Box<dyn Bare>,
        shared: &Arc<Shared>,
        mut ended: impl FnMut(&dyn Job, End),
    ) {
        let mut work = OnceBare(work);
        let cx = TaskContext::new(shared, &*task);
        let result = task.call(&mut work, &cx);
        let shown = task.end(result, &cx, &mut |end| ended(&*task, end));
        let OnceBare(empty) = work;
        debug_assert!(!empty.is_full(), "what is in it would be forgotten");
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
    pub(super) fn pass_on(&mut self, empties: &Empties) {
        if !self.empty.is_empty() {
            empties.give(&mut self.empty);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::from_ref;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::tasks::tests::{LONG, Text, begin, house};
    use crate::tasks::{CancelReason, Progress, TaskState};

    /// Work that holds `what` and fails; of one type for each type of that.
    fn holds<T: Send + 'static>(what: T) -> impl FnOnce(&TaskContext<'_>) -> Result<(), Text> + Send {
        move |_| {
            drop(what);
            Err("planned".to_owned())
        }
    }

    fn place(work: &dyn Bare) -> *const () {
        from_ref(work).cast()
    }

    fn emptied<F, T, E>(mut work: Box<BareWork<F, T, E>>) -> Box<dyn Bare>
    where
        BareWork<F, T, E>: Bare,
    {
        assert!(work.is_full());
        drop(work.work.0.take());
        assert!(!work.is_full());
        work
    }

    #[test]
    fn a_box_is_filled_again_with_work_of_its_own_type() {
        let empties = Empties::default();
        let boxed = empties.fill(holds(1u8));
        let first = place(&*boxed);
        empties.give(&mut vec![emptied(boxed)]);
        let again = empties.fill(holds(2u8));
        assert_eq!((place(&*again), again.is_full()), (first, true));
        empties.give(&mut vec![emptied(again)]);
        assert!(empties.fill(holds("another type")).is_full());
        assert!(lock(&empties.0).is_empty(), "a box of a type that is not submitted any more goes");
        let mut many: Vec<_> = (0..KEPT + 10).map(|_| emptied(empties.fill(holds(3u8)))).collect();
        empties.give(&mut many);
        assert_eq!((lock(&empties.0).len(), many.len()), (KEPT, 0));
    }

    #[test]
    fn a_task_has_the_memory_of_the_last_one_unless_somebody_has_that() {
        let house = house(|c| c);
        let (mut spare, empties, mut ends) = (Spare::default(), Empties::default(), Vec::new());
        let mut run = |spare: &mut Spare, task: Arc<BareTask>| {
            assert!(task.begin());
            let end = |_: &dyn Job, end| match end {
                End::Ended(state, Some(why)) => ends.push((state, why)),
                _ => panic!("another end"),
            };
            spare.run(task, empties.fill(holds(1u8)), house.tasks.shared(), end);
        };
        let first = spare.task("first", TaskId::from_u64(1), 10);
        let memory = Arc::as_ptr(&first);
        first.head().cancel(CancelReason::Requested);
        run(&mut spare, first);
        let second = spare.task("second", TaskId::from_u64(2), 20);
        let head = second.head();
        assert_eq!((head.name(), head.id().as_u64(), head.submitted(), head.cancelled()), ("second", 2, 20, None));
        assert_eq!(Arc::as_ptr(&second), memory);
        let held = second.clone();
        run(&mut spare, second);
        assert_eq!(held.watch(0, Instant::now() + LONG), (1, true), "whoever has it sees its end");
        let third = spare.task("third", TaskId::from_u64(3), 30);
        assert_ne!(Arc::as_ptr(&third), memory);
        third.head().set_progress(Progress { percent: 1, message: String::new() });
        run(&mut spare, third);
        assert!(spare.last.is_none(), "what it has grown goes with it");
        let told = ends.iter().map(|(state, why)| (*state, why.as_str()));
        let failed = (TaskState::Failed, "the task failed: planned");
        let cancelled = (TaskState::Cancelled, "the task was cancelled on request");
        assert!(told.eq([cancelled, failed, failed]), "{ends:?}");
    }

    #[test]
    fn nothing_of_a_task_is_left_to_the_next_one() {
        let house = house(|c| c.workers(1));
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
            house.tasks.spawn("captures", work).unwrap();
        }
        let (begun, began) = bounded(1);
        let first = house.tasks.spawn("first", move |cx| {
            cx.progress(50, "half");
            begun.send(()).unwrap();
            assert!(cx.signal().cancel_receiver().recv_timeout(LONG).is_err_and(|error| error.is_disconnected()));
            cx.check()
        });
        let (tell, told) = bounded(1);
        let second = house.tasks.spawn("second", move |cx| {
            tell.send((cx.id(), cx.is_cancelled(), cx.signal().is_cancelled(), cx.attempt())).unwrap();
            Ok::<_, Text>(())
        });
        let (first, second) = (first.unwrap(), second.unwrap());
        begin(&began);
        assert_eq!(Arc::strong_count(&captured), 1, "boxes are kept empty");
        assert!(house.tasks.cancel(first));
        assert_eq!(told.recv_timeout(LONG).unwrap(), (second, false, false, 1));
        house.tasks.submit("last", |_| Ok::<_, Text>(())).unwrap().wait().unwrap();
        let [first, second] = [first, second].map(|id| house.tasks.info(id).unwrap());
        assert_eq!((first.state, first.progress.unwrap().percent), (TaskState::Cancelled, 50));
        assert_eq!((second.state, second.progress), (TaskState::Completed, None));
        let counts = house.tasks.counts();
        assert_eq!((counts.completed, counts.failed, counts.cancelled), (102, 200, 1));
    }
}
