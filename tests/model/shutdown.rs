//! Models of the shutdown latch.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use shuttle::thread::{JoinHandle, current, spawn};

use crate::base::shutdown::{Level, Shutdown};
use crate::base::sync::Arc;
use crate::seed::Seed;
use crate::{explore, failure};

const SCHEDULES: usize = 10_000;

fn join<T>(threads: impl IntoIterator<Item = JoinHandle<T>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Whoever waits, in whichever way, learns of the level; and a level comes with all that is below it.
fn wake_ups() {
    let parent = Shutdown::new();
    let waits: [fn(Shutdown); 4] = [
        |shutdown| assert!(shutdown.wait(Duration::MAX) && shutdown.is_set()),
        |shutdown| assert!(shutdown.wait_for(Level::Cancel, Duration::MAX) && shutdown.is_cancelled()),
        |shutdown| assert!(shutdown.drain_receiver().recv().is_err() && shutdown.is_set()),
        |shutdown| {
            assert!(shutdown.cancel_receiver().recv().is_err() && shutdown.is_cancelled());
            assert!(shutdown.drain_receiver().try_recv().is_err_and(|e| e.is_disconnected()));
        },
    ];
    let mut threads = Vec::new();
    for (number, wait) in waits.into_iter().enumerate() {
        let shutdown = if number % 2 == 0 { parent.clone() } else { parent.child() };
        threads.push(spawn(move || wait(shutdown)));
    }
    let drainer = parent.clone();
    threads.push(spawn(move || drainer.drain()));
    parent.cancel();
    join(threads);
}

#[test]
fn no_wake_up_is_lost() {
    explore(SCHEDULES, wake_ups);
}

#[test]
fn a_wait_that_lets_go_of_the_lock_is_found() {
    let found = failure(Seed::GapBeforeWait, SCHEDULES, wake_ups);
    assert!(found.contains("deadlock"), "{found}");
}

/// A child is never behind its parent, however late it is born, and never ahead of it by its own doing.
#[test]
fn children_rise_with_their_parent() {
    explore(SCHEDULES, || {
        let parent = Shutdown::new();
        let threads = [0, 1].map(|_| {
            let parent = parent.clone();
            spawn(move || {
                let before = parent.level();
                let child = parent.child();
                assert!(child.level() >= before);
                let grandchild = child.child();
                assert!(grandchild.wait_for(Level::Cancel, Duration::MAX) && parent.is_cancelled());
            })
        });
        let alone = parent.child();
        let kicks = Arc::new(AtomicUsize::new(0));
        let counted = kicks.clone();
        let _kick = alone.on(Level::Drain, move || _ = counted.fetch_add(1, SeqCst));
        let raised = alone.clone();
        let raiser = spawn(move || raised.cancel());
        parent.drain();
        parent.cancel();
        join(threads);
        join([raiser]);
        assert_eq!((alone.level(), kicks.load(SeqCst)), (Level::Cancel, 1));
    });
}

/// A kick runs once, at its level or above, whether it is registered before, while or after the level is reached; and
/// it may use the signal that runs it.
#[test]
fn kicks_run_exactly_once() {
    static AT_ONCE: AtomicUsize = AtomicUsize::new(0);
    static LATER: AtomicUsize = AtomicUsize::new(0);
    explore(SCHEDULES, || {
        let shutdown = Shutdown::new();
        let threads = [Level::Drain, Level::Cancel].map(|level| {
            let shutdown = shutdown.clone();
            spawn(move || {
                let count = Arc::new(AtomicUsize::new(0));
                let (counted, seen, me) = (count.clone(), shutdown.clone(), current().id());
                let registration = shutdown.on(level, move || {
                    assert!(seen.level() >= level);
                    seen.cancel();
                    counted.fetch_add(1, SeqCst);
                    if current().id() == me { &AT_ONCE } else { &LATER }.fetch_add(1, SeqCst);
                });
                (registration, count)
            })
        });
        let raiser = shutdown.clone();
        let raiser = spawn(move || raiser.cancel());
        shutdown.drain();
        let kicks = threads.map(|thread| thread.join().unwrap());
        join([raiser]);
        for (_registration, count) in kicks {
            assert_eq!(count.load(SeqCst), 1);
        }
    });
    assert!(AT_ONCE.load(SeqCst) > 0 && LATER.load(SeqCst) > 0, "both orders occur");
}

/// A kick whose registration is dropped while the level rises runs once or not at all, and not if it was dropped
/// before.
#[test]
fn a_dropped_registration_is_taken_back() {
    static RAN: AtomicUsize = AtomicUsize::new(0);
    static TAKEN_BACK: AtomicUsize = AtomicUsize::new(0);
    explore(SCHEDULES, || {
        let shutdown = Shutdown::new();
        let (count, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counted = count.clone();
        let registration = shutdown.on(Level::Drain, move || _ = counted.fetch_add(1, SeqCst));
        let is_dropped = dropped.clone();
        let dropper = spawn(move || {
            drop(registration);
            is_dropped.store(1, SeqCst);
        });
        let at_most = 1 - dropped.load(SeqCst);
        shutdown.drain();
        join([dropper]);
        let count = count.load(SeqCst);
        assert!(count <= at_most, "ran {count} times");
        if count == 1 { &RAN } else { &TAKEN_BACK }.fetch_add(1, SeqCst);
    });
    assert!(RAN.load(SeqCst) > 0 && TAKEN_BACK.load(SeqCst) > 0, "both orders occur");
}
