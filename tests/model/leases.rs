//! Models of a miner's slots: a router that reserves, and the threads of executors that have the leases.
//!
//! The pool is the shipped file. Who calls it is this file's: it follows `miner::router` and
//! `miner::executor_manager`, and says how those have to use the pool, not that they do.

#[path = "../../src/miner/executor_pool.rs"]
mod executor_pool;
#[path = "../../src/miner/host.rs"]
mod host;

use std::collections::BTreeSet;
use std::mem::forget;
use std::sync::Mutex as Plain;
use std::time::Instant;

use phalanx::protocol::ExecutorClass;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread::{JoinHandle, spawn};

use crate::seed::Seed;
use crate::{explore, failure};
use executor_pool::{ExecutorPool, Lease, Quarantine, SlotId};
use host::HostName;

const SCHEDULES: usize = 10_000;
const CLASS: ExecutorClass = ExecutorClass::AlwaysOnTest;
const SLOTS: usize = 2;
const JOBS: usize = 4;
const HOST: HostName = HostName::LOCAL;

/// What a thread tells the router.
enum Event {
    Ended(SlotId),
    Left(SlotId),
    Returned(SlotId),
}

#[derive(Default)]
struct Miner {
    events: Mutex<Vec<Event>>,
    told: Condvar,
    /// Executors of which something is there.
    living: Mutex<usize>,
}

impl Miner {
    fn tell(&self, event: Event) {
        self.events.lock().unwrap().push(event);
        self.told.notify_all();
    }

    fn next(&self) -> Event {
        let mut events = self.events.lock().unwrap();
        while events.is_empty() {
            events = self.told.wait(events).unwrap();
        }
        events.remove(0)
    }

    /// The thread of an executor, which may be tidy, untidy for a while, or panic with the lease.
    fn run(&self, lease: Lease) {
        let slot = lease.slot();
        let living = {
            let mut living = self.living.lock().unwrap();
            *living += 1;
            *living
        };
        // Without the lock: poisoned, it would be what is found.
        assert!(living <= SLOTS, "over-committed: {living} executors for {SLOTS} slots");
        let how = thread_rng().gen_range(0..3);
        ENDS.lock().unwrap().insert(how);
        self.tell(Event::Ended(slot));
        if how == 1 {
            self.tell(Event::Left(slot));
        }
        if Seed::DroppedWhileThere.is_planted() {
            drop(lease);
            self.tell(Event::Returned(slot));
            *self.living.lock().unwrap() -= 1;
            return;
        }
        *self.living.lock().unwrap() -= 1;
        match how {
            2 if Seed::LeaseForgotten.is_planted() => forget(lease),
            _ if Seed::ToldBeforeReturned.is_planted() => {
                self.tell(Event::Returned(slot));
                return drop(lease);
            }
            _ => drop(lease),
        }
        self.tell(Event::Returned(slot));
    }
}

static ENDS: Plain<BTreeSet<usize>> = Plain::new(BTreeSet::new());

/// Other settings come while jobs run: no slots, or fewer, or as many as before.
fn reload(pool: &mut ExecutorPool) {
    let declared = thread_rng().gen_range(0..=SLOTS);
    RELOADS.lock().unwrap().insert(declared);
    let slots = [(HOST, CLASS, declared as u32)];
    match Seed::PoolReplaced.is_planted() {
        true => *pool = ExecutorPool::new(slots),
        false => pool.declare(slots),
    }
}

static RELOADS: Plain<BTreeSet<usize>> = Plain::new(BTreeSet::new());

/// Every job gets a slot although there are fewer slots, no two executors have one, and in the end all are free; the
/// law holds at every step, also while a reload takes slots away and gives them back.
fn slots() {
    let miner = Arc::new(Miner::default());
    let mut pool = ExecutorPool::new([(HOST, CLASS, SLOTS as u32)]);
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    let (mut waiting, mut running) = (JOBS, 0);
    while waiting + running > 0 {
        if running == 0 {
            pool.declare([(HOST, CLASS, SLOTS as u32)]);
        }
        while waiting > 0
            && let Ok(lease) = pool.reserve(HOST, CLASS, Instant::now())
        {
            (waiting, running) = (waiting - 1, running + 1);
            pool.ready(lease.slot());
            let miner = miner.clone();
            threads.push(spawn(move || miner.run(lease)));
        }
        reload(&mut pool);
        assert_eq!(pool.breach(), None, "the law is broken by a reload");
        match miner.next() {
            Event::Ended(slot) => pool.ending(slot, Instant::now()),
            Event::Left(slot) => {
                let why = Quarantine { what: "folder", reason: String::new() };
                pool.quarantine(slot, why);
            }
            Event::Returned(_) => running -= 1,
        }
        pool.take_back();
        assert_eq!(pool.breach(), None, "the law is broken");
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    pool.declare([(HOST, CLASS, SLOTS as u32)]);
    let counts = pool.counts(HOST, CLASS);
    assert_eq!(counts.free, SLOTS, "a slot is lost: {counts:?}");
}

#[test]
fn every_job_gets_a_slot_and_every_slot_comes_back_once() {
    explore(SCHEDULES, slots);
    assert_eq!(*ENDS.lock().unwrap(), BTreeSet::from([0, 1, 2]), "all ways to end occur");
    assert_eq!(RELOADS.lock().unwrap().len(), SLOTS + 1, "all settings occur");
}

#[test]
fn a_reload_that_forgets_what_is_leased_is_found() {
    let found = failure(Seed::PoolReplaced, SCHEDULES, slots);
    assert!(found.contains("over-committed"), "{found}");
}

#[test]
fn a_report_before_the_return_is_found() {
    let found = failure(Seed::ToldBeforeReturned, SCHEDULES, slots);
    assert!(found.contains("deadlock") || found.contains("a slot is lost"), "{found}");
}

#[test]
fn a_lease_that_is_never_dropped_is_found() {
    let found = failure(Seed::LeaseForgotten, SCHEDULES, slots);
    assert!(found.contains("deadlock") || found.contains("a slot is lost"), "{found}");
}

#[test]
fn a_lease_that_is_dropped_too_early_is_found() {
    let found = failure(Seed::DroppedWhileThere, SCHEDULES, slots);
    assert!(found.contains("over-committed"), "{found}");
}
