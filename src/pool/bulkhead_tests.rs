use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::bulkhead::{Bulkhead, BulkheadError, BulkheadNumbers, BulkheadPermit};
use super::until::Until;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::wait::{far, until as until_seen};

fn waits(bulkhead: &Bulkhead, number: usize) {
    until_seen("callers wait", || bulkhead.numbers().waiting == number);
}

fn waiter(
    bulkhead: &Bulkhead,
    shutdown: &Shutdown,
    then: impl FnOnce(BulkheadPermit) + Send + 'static,
) -> Thread<Result<(), BulkheadError>> {
    let (bulkhead, shutdown) = (bulkhead.clone(), shutdown.clone());
    spawn("t-waiter", Kick::dropped("the place"), move || bulkhead.acquire(Until::new(far(), &shutdown)).map(then))
}

#[test]
fn those_who_wait_are_served_in_their_order() {
    let (bulkhead, shutdown) = (Bulkhead::new(1, 10), Shutdown::new());
    let first = bulkhead.try_acquire().unwrap();
    let (tx, rx) = bounded(10);
    let mut threads = Vec::new();
    for number in 0..5 {
        let tx = tx.clone();
        threads.push(waiter(&bulkhead, &shutdown, move |permit| {
            tx.send(number).unwrap();
            drop(permit);
        }));
        waits(&bulkhead, number + 1);
    }
    assert!(bulkhead.try_acquire().is_none());
    drop(first);
    let order: Vec<usize> = (0..5).map(|_| rx.recv_deadline(far()).unwrap()).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    threads.into_iter().for_each(|thread| assert_eq!(thread.join_by(far()).unwrap(), Ok(())));
    assert_eq!(bulkhead.numbers(), BulkheadNumbers { places: 1, taken: 0, waiting: 0 });
}

#[test]
fn the_room_to_wait_is_bounded_and_nobody_waits_beyond_it() {
    let (bulkhead, shutdown) = (Bulkhead::new(1, 1), Shutdown::new());
    let place = bulkhead.try_acquire().unwrap();
    let thread = waiter(&bulkhead, &shutdown, drop);
    waits(&bulkhead, 1);
    let error = bulkhead.acquire(Until::new(far(), &shutdown)).unwrap_err();
    assert_eq!(error.to_string(), "no place, and no room to wait for one: 1 of 1 places taken, 1 waiting");
    drop(place);
    assert_eq!(thread.join_by(far()).unwrap(), Ok(()));
}

#[test]
fn a_deadline_or_a_stop_ends_the_wait_and_makes_room() {
    let (bulkhead, shutdown) = (Bulkhead::new(1, 10), Shutdown::new());
    let place = bulkhead.try_acquire().unwrap();
    let past = Until::new(Instant::now(), &shutdown);
    assert!(matches!(bulkhead.acquire(past), Err(BulkheadError::TimedOut { .. })));
    let thread = waiter(&bulkhead, &shutdown, drop);
    waits(&bulkhead, 1);
    shutdown.drain();
    assert_eq!(thread.join_by(far()).unwrap(), Err(BulkheadError::Stopped));
    assert!(matches!(bulkhead.acquire(Until::new(far(), &shutdown)), Err(BulkheadError::Stopped)));
    let soon = Until::new(Instant::now() + Duration::from_millis(1), &shutdown).at_level(Level::Cancel);
    assert!(matches!(bulkhead.acquire(soon), Err(BulkheadError::TimedOut { .. })), "a drain leaves it waiting");
    assert_eq!(bulkhead.numbers().waiting, 0);
    drop(place);
}

#[test]
fn a_panic_gives_the_place_back() {
    let bulkhead = Bulkhead::new(1, 0);
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _place = bulkhead.try_acquire().unwrap();
        panic!("boom");
    }));
    assert!(caught.is_err());
    assert_eq!(bulkhead.numbers().taken, 0);
}
