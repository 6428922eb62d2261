//! Models of the end of a task: its worker, a cancel, a limit and those who wait for it.
//!
//! The cell is the shipped file, and the states are the library's. Who calls it is this file's: it follows
//! `tasks::scheduler` and `tasks::task`, and says how those have to use the cell, not that they do.

#[path = "../../src/tasks/cell.rs"]
mod cell;

use std::collections::BTreeSet;
use std::sync::Mutex as Plain;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use phalanx::tasks::TaskState;
use shuttle::sync::{Arc, Mutex};
use shuttle::thread::spawn;

use crate::seed::{Seed, quietly};
use crate::{explore, failure};
use cell::{Cell, Waited};

const SCHEDULES: usize = 10_000;

/// One task, as the manager knows it.
struct Task {
    cell: Cell<(), TaskState>,
    /// Stands for the table under its lock.
    state: Mutex<TaskState>,
    /// Stands for the cancel token.
    cancelled: Mutex<bool>,
}

impl Task {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            cell: Cell::new((), false),
            state: Mutex::new(TaskState::Pending),
            cancelled: Mutex::new(false),
        })
    }

    fn state(&self) -> TaskState {
        *self.state.lock().unwrap()
    }

    fn step(&self, to: TaskState) {
        let mut state = self.state.lock().unwrap();
        assert!(state.may_become(to), "from {state} to {to}");
        *state = to;
    }

    /// Whoever has settled it enters it in the table first, and then wakes those who wait.
    fn end(&self, end: TaskState) {
        let show = || assert_eq!(self.cell.publish(end), None, "somebody wants it");
        match () {
            () if Seed::ShownBeforeKnown.is_planted() => {
                show();
                self.step(end);
            }
            () if Seed::NoWakeOnEnd.is_planted() => {
                self.step(end);
                quietly(show);
            }
            () => {
                self.step(end);
                show();
            }
        }
    }

    /// As a worker: `attempts` of which all but the last fail.
    fn work(&self, attempts: usize) {
        for left in (0..attempts).rev() {
            {
                let mut state = self.state.lock().unwrap();
                if *state != TaskState::Pending {
                    return;
                }
                *state = TaskState::Running;
            }
            if !self.cell.begin() {
                return;
            }
            self.cell.note();
            let cancelled = *self.cancelled.lock().unwrap();
            if left > 0 && !cancelled && self.cell.again() {
                let mut state = self.state.lock().unwrap();
                if *state != TaskState::Running {
                    return;
                }
                *state = TaskState::Pending;
                continue;
            }
            if self.cell.settle_running() {
                self.end(if cancelled { TaskState::Cancelled } else { TaskState::Completed });
            }
            return;
        }
    }

    /// As `Scheduler::cancel`.
    fn cancel(&self) {
        if self.cancel_pending() {
            return;
        }
        *self.cancelled.lock().unwrap() = true;
        self.cancel_pending();
    }

    fn cancel_pending(&self) -> bool {
        let mine = self.cell.settle_pending();
        if mine {
            self.end(TaskState::Cancelled);
        }
        mine
    }

    /// As `Scheduler::give_up`, of a cancelled task.
    fn give_up(&self) {
        if *self.cancelled.lock().unwrap() && self.cell.settle_running() {
            self.end(TaskState::Failed);
        }
    }

    /// What a waiter that returns has to find.
    fn ended_as(&self) -> TaskState {
        let state = self.state();
        assert!(state.is_terminal() && self.cell.has_ended(), "a waiter returns, and the task is {state}");
        state
    }
}

static ENDS: Plain<BTreeSet<(TaskState, bool)>> = Plain::new(BTreeSet::new());

/// Every waiter of every kind sees the end, finds the table up to date, and all see the same end, which stays.
fn ends() {
    let far = Instant::now() + Duration::from_secs(3600);
    let task = Task::new();
    let mut waiters = Vec::new();
    for number in 0..4 {
        let task = task.clone();
        waiters.push(spawn(move || {
            let taken = match number {
                // Two want the outcome: one without a limit, one that first looks whether it is there.
                0 => task.cell.wait(None),
                1 => match task.cell.wait(Some(Instant::now())) {
                    Waited::Still => task.cell.wait(Some(far)),
                    ended => ended,
                },
                // Two follow it, one from its beginning and one from what is there.
                _ => {
                    let (mut seen, mut ended) =
                        (if number == 2 { 0 } else { task.cell.watch(0, Instant::now()).0 }, false);
                    while !ended {
                        let (version, over) = task.cell.watch(seen, far);
                        assert!(version >= seen);
                        (seen, ended) = (version, over);
                    }
                    Waited::Taken
                }
            };
            let state = task.ended_as();
            match taken {
                Waited::Ended(outcome) => assert_eq!(outcome, state),
                Waited::Taken => {}
                Waited::Still => panic!("nobody waited for so long"),
            }
            (state, matches!(taken, Waited::Ended(_)))
        }));
    }
    let enders: [fn(&Task); 3] = [|task| task.work(2), Task::cancel, Task::give_up];
    let enders = enders.map(|end| {
        let task = task.clone();
        spawn(move || end(&task))
    });
    for ender in enders {
        ender.join().unwrap();
    }
    // A worker of the pool would take it again.
    task.work(1);
    let seen: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect();
    let end = task.ended_as();
    assert!(seen.iter().all(|(state, _)| *state == end), "{seen:?}, and it is {end}");
    assert_eq!(seen.iter().filter(|(_, taken)| *taken).count(), 1, "the outcome is for one");
    assert!(!task.cell.begin() && !task.cell.again() && !task.cell.settle_pending() && !task.cell.settle_running());
    ENDS.lock().unwrap().insert((end, *task.cancelled.lock().unwrap()));
}

#[test]
fn no_waiter_misses_the_end_and_the_end_is_final() {
    explore(SCHEDULES, ends);
    use TaskState::*;
    let all = [(Completed, true), (Failed, true), (Cancelled, false), (Cancelled, true)];
    assert_eq!(*ENDS.lock().unwrap(), BTreeSet::from(all), "all orders occur");
}

#[test]
fn an_end_that_wakes_nobody_is_found() {
    let found = failure(Seed::NoWakeOnEnd, SCHEDULES, ends);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn a_wait_for_an_end_that_lets_go_of_the_lock_is_found() {
    let found = failure(Seed::GapBeforeWait, SCHEDULES, ends);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn an_end_that_is_shown_before_the_table_knows_it_is_found() {
    let found = failure(Seed::ShownBeforeKnown, SCHEDULES, ends);
    assert!(found.contains("a waiter returns, and the task is"), "{found}");
}

/// A result is dropped by exactly one: by whoever waited, by whoever does not want it, or by whoever shows it to
/// nobody.
#[test]
fn a_result_that_nobody_wants_is_dropped_once_by_one_of_its_users() {
    static BY: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
    explore(SCHEDULES, || {
        let cell = Arc::new(Cell::<(), u32>::new((), false));
        let (published, waited, watched) = (cell.clone(), cell.clone(), cell.clone());
        let watcher = spawn(move || {
            let (far, mut seen) = (Instant::now() + Duration::from_secs(3600), (0, false));
            while !seen.1 {
                seen = watched.watch(seen.0, far);
            }
        });
        let publisher = spawn(move || published.publish(7));
        let waiter = spawn(move || waited.wait(Some(Instant::now())) == Waited::Ended(7));
        let at_abandon = cell.abandon().is_some();
        let whose = [publisher.join().unwrap().is_some(), waiter.join().unwrap(), at_abandon];
        assert_eq!(whose.iter().filter(|had| **had).count(), 1, "{whose:?}");
        let by = whose.iter().position(|had| *had).unwrap();
        BY[by].fetch_add(1, SeqCst);
        // Those who only follow it see the end all the same.
        watcher.join().unwrap();
        assert!(cell.abandon().is_none() && cell.has_ended());
    });
    assert!(BY.iter().all(|by| by.load(SeqCst) > 0), "all orders occur");
}
