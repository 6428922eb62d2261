use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::shutdown::{Level, Shutdown};
use super::thread::{Kick, spawn};

#[test]
fn it_latches_and_only_rises() {
    let shutdown = Shutdown::new();
    assert!(!shutdown.wait(Duration::ZERO));
    shutdown.drain();
    assert!(shutdown.is_set() && !shutdown.is_cancelled());
    assert!(shutdown.drain_receiver().recv().is_err());
    assert!(shutdown.cancel_receiver().try_recv().is_err_and(|e| e.is_empty()));
    shutdown.cancel();
    shutdown.drain();
    assert_eq!(shutdown.level(), Level::Cancel);
    assert!(shutdown.cancel_receiver().recv().is_err());
    assert!(shutdown.wait(Duration::MAX));
}

#[test]
fn a_waiter_wakes_and_a_late_receiver_sees_it_too() {
    let shutdown = Shutdown::new();
    let waiter = shutdown.clone();
    let thread = spawn("t-wait", Kick::dropped("shutdown"), move || waiter.wait(Duration::from_secs(60)));
    shutdown.drain();
    assert!(thread.join_by(Instant::now() + Duration::from_secs(30)).unwrap());
    assert!(shutdown.clone().drain_receiver().recv().is_err());
}

#[test]
fn kicks_run_once_at_their_level() {
    let shutdown = Shutdown::new();
    let count = Arc::new(AtomicUsize::new(0));
    let bump = |by: usize| {
        let count = count.clone();
        move || {
            count.fetch_add(by, Ordering::SeqCst);
        }
    };
    let _drain = shutdown.on(Level::Drain, bump(1));
    let _cancel = shutdown.on(Level::Cancel, bump(100));
    drop(shutdown.on(Level::Drain, bump(10_000)));
    shutdown.drain();
    shutdown.drain();
    assert_eq!(count.load(Ordering::SeqCst), 1);
    shutdown.cancel();
    assert_eq!(count.load(Ordering::SeqCst), 101);
    let _late = shutdown.on(Level::Drain, bump(1000));
    assert_eq!(count.load(Ordering::SeqCst), 1101);
}

#[test]
fn a_child_rises_with_its_parent_but_not_the_other_way() {
    let parent = Shutdown::new();
    let child = parent.child();
    let other = parent.child();
    child.cancel();
    assert!(!parent.is_set() && !other.is_set());
    parent.drain();
    assert_eq!(other.level(), Level::Drain);
    assert_eq!(parent.child().level(), Level::Drain);
}
