//! Tasks that belong together: wait for all, wait for any, the first failure cancels the rest.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::context::TaskContext;
use super::error::TaskError;
use super::handle::TaskHandle;
use super::manager::{SubmitError, Tasks};
use super::options::TaskOptions;
use super::state::{CancelReason, TaskState};
use super::store::TaskId;
use crate::base::lock::{lock, wait_timeout};
use crate::base::waits::waiting_unless_noted;

/// Tasks of one kind of result. Dropping the group cancels those of its tasks that have not ended.
pub struct Group<T: 'static, E: 'static> {
    tasks: Tasks,
    members: Vec<Option<TaskHandle<T, E>>>,
    meeting: Arc<Meeting>,
}

/// Where the ends of the members are reported.
#[derive(Default)]
struct Meeting {
    state: Mutex<GroupState>,
    changed: Condvar,
}

#[derive(Default)]
struct GroupState {
    ids: Vec<TaskId>,
    /// In the order of their ends.
    ended: VecDeque<usize>,
    failed: bool,
}

/// Not all of a group completed.
#[derive(Debug, thiserror::Error)]
#[error("task {index} of the group: {error}")]
pub struct GroupError<E> {
    /// Which failed first, in the order of submission; the rest was cancelled. If the time was over: one that still
    /// runs.
    pub index: usize,
    /// What became of it.
    pub error: TaskError<E>,
}

impl<T, E> fmt::Debug for Group<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({} tasks)", self.members.len())
    }
}

impl<T: Send + 'static, E: fmt::Display + Send + 'static> Group<T, E> {
    /// An empty group, whose tasks are run by this manager.
    pub fn new(tasks: &Tasks) -> Self {
        Self { tasks: tasks.clone(), members: Vec::new(), meeting: Arc::default() }
    }

    /// Adds a task; as [`Tasks::submit`]. In a group of which one has failed it is cancelled at once.
    ///
    /// # Errors
    /// [`SubmitError`], with the work.
    pub fn submit<F>(&mut self, options: impl Into<TaskOptions>, work: F) -> Result<(), SubmitError<F>>
    where
        F: FnOnce(&TaskContext<'_>) -> Result<T, E> + Send + 'static,
    {
        let index = self.members.len();
        let (meeting, tasks) = (self.meeting.clone(), self.tasks.clone());
        let options = options.into().and_on_end(move |_, state| meeting.ended(&tasks, index, state));
        let handle = self.tasks.submit(options, work)?;
        let failed = {
            let mut state = lock(&self.meeting.state);
            state.ids.push(handle.id());
            state.failed
        };
        if failed {
            handle.cancel_for(&CancelReason::Group);
        }
        self.members.push(Some(handle));
        Ok(())
    }

    /// Blocks until all have completed, `timeout` at most, and gives the results in the order of submission. The first
    /// failure cancels the rest.
    ///
    /// # Errors
    /// [`GroupError`] of the first that failed, or that still runs when the time is over; the rest is cancelled.
    pub fn wait_all(mut self, timeout: Duration) -> Result<Vec<T>, GroupError<E>> {
        let deadline = Instant::now() + timeout;
        let mut results: Vec<Option<T>> = self.members.iter().map(|_| None).collect();
        for _ in 0..self.members.len() {
            let (index, result) = self.next(deadline);
            results[index] = Some(result.map_err(|error| GroupError { index, error })?);
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Blocks until one more of the tasks has ended, `timeout` at most: which, in the order of submission, and how.
    /// [`TaskError::StillRunning`] of the first open one when the time is over; `None` when none is left.
    pub fn wait_any(&mut self, timeout: Duration) -> Option<(usize, Result<T, TaskError<E>>)> {
        self.members.iter().any(Option::is_some).then(|| self.next(Instant::now() + timeout))
    }

    fn next(&mut self, deadline: Instant) -> (usize, Result<T, TaskError<E>>) {
        let Some(index) = self.meeting.next(deadline) else {
            let open = self.members.iter().position(Option::is_some).unwrap_or_default();
            return (open, Err(TaskError::StillRunning));
        };
        let handle = self.members[index].take().expect("a task ends once");
        (index, handle.wait())
    }
}

impl<T, E> Group<T, E> {
    /// Tells all to end, and why, as [`TaskHandle::cancel`]. If one has failed, that is the reason.
    pub fn cancel(&self, reason: impl Into<String>) {
        let failed = lock(&self.meeting.state).failed;
        let reason = if failed { CancelReason::Group } else { CancelReason::requested(reason) };
        for handle in self.members.iter().flatten() {
            handle.cancel_for(&reason);
        }
    }
}

impl<T, E> Drop for Group<T, E> {
    fn drop(&mut self) {
        self.cancel("its group was dropped");
    }
}

impl Meeting {
    fn ended(&self, tasks: &Tasks, index: usize, end: TaskState) {
        let rest = {
            let mut state = lock(&self.state);
            state.ended.push_back(index);
            let first = end != TaskState::Completed && !state.failed;
            state.failed |= first;
            if first { state.ids.clone() } else { Vec::new() }
        };
        self.changed.notify_all();
        rest.into_iter().for_each(|id| _ = tasks.cancel_for(id, &CancelReason::Group));
    }

    fn next(&self, deadline: Instant) -> Option<usize> {
        let mut state = lock(&self.state);
        loop {
            if let Some(index) = state.ended.pop_front() {
                return Some(index);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let _waiting = waiting_unless_noted("a task of a group", Some(deadline));
            state = wait_timeout(&self.changed, state, left);
        }
    }
}
