//! Models of the pool kit: connections that go from caller to caller, places of a bulkhead, probes of a breaker, second
//! tries of a budget.
//!
//! The files are the shipped ones. The policy of the pool and the breaker are wrapped, so that bugs can be planted in
//! them.

#[path = "../../src/pool/breakers.rs"]
mod breakers;
#[path = "../../src/pool/budget.rs"]
mod budget;
#[path = "../../src/pool/bulkhead.rs"]
mod bulkhead;
#[path = "../../src/pool/config.rs"]
mod config;
#[path = "../../src/pool/connections.rs"]
mod connections;
#[path = "../../src/pool/connector.rs"]
mod connector;
#[path = "../../src/pool/error.rs"]
mod error;
#[path = "../../src/pool/events.rs"]
mod events;
#[path = "../../src/pool/breaker.rs"]
mod real_breaker;
#[path = "../../src/pool/policy.rs"]
mod real_policy;
#[path = "../../src/pool/state.rs"]
mod state;
#[path = "../../src/pool/until.rs"]
mod until;
#[path = "../../src/pool/window.rs"]
mod window;

/// The pool's policy, but for what can be planted.
mod policy {
    use std::ops::{Deref, DerefMut};

    use super::config::PoolConfig;
    pub(super) use super::real_policy::{Grant, Kept, Opened};
    use crate::base::rng::Rng;
    use crate::seed::Seed;

    pub(super) struct Policy<K, C, E>(super::real_policy::Policy<K, C, E>);

    impl<K: Ord + Clone, C, E: Clone> Policy<K, C, E> {
        pub(super) fn new(config: PoolConfig, rng: Rng) -> Self {
            let one_more = usize::from(Seed::PlaceUncounted.is_planted());
            let connections_max = config.connections_max + one_more;
            Self(super::real_policy::Policy::new(PoolConfig { connections_max, ..config }, rng))
        }

        pub(super) fn not_opened(&mut self, key: &K) {
            if !Seed::PlaceLost.is_planted() {
                self.0.not_opened(key);
            }
        }
    }

    impl<K, C, E> Deref for Policy<K, C, E> {
        type Target = super::real_policy::Policy<K, C, E>;
        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl<K, C, E> DerefMut for Policy<K, C, E> {
        fn deref_mut(&mut self) -> &mut Self::Target {
            &mut self.0
        }
    }
}

/// The breaker, but for what can be planted.
mod breaker {
    use std::ops::{Deref, DerefMut};
    use std::time::Instant;

    pub use super::real_breaker::*;
    use crate::seed::Seed;

    #[derive(Debug)]
    pub struct Breaker(super::real_breaker::Breaker);

    impl Breaker {
        pub fn new(config: BreakerConfig, now: Instant) -> Self {
            Self(super::real_breaker::Breaker::new(config, now))
        }

        pub fn ignored(&mut self, ticket: Ticket) {
            if !Seed::ProbeKept.is_planted() {
                self.0.ignored(ticket);
            }
        }

        pub fn force_open(&mut self, now: Instant) {
            self.0.force_open(now);
        }

        pub fn force_close(&mut self, now: Instant) {
            self.0.force_close(now);
        }

        pub fn reset(&mut self, now: Instant) {
            self.0.reset(now);
        }
    }

    impl Deref for Breaker {
        type Target = super::real_breaker::Breaker;
        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl DerefMut for Breaker {
        fn deref_mut(&mut self) -> &mut Self::Target {
            &mut self.0
        }
    }
}

use std::collections::BTreeSet;
use std::mem::forget;
use std::sync::Mutex as Plain;
use std::time::{Duration, Instant};

use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::{Arc, Mutex};
use shuttle::thread::{JoinHandle, spawn};

use crate::base::shutdown::Shutdown;
use crate::seed::{Seed, quietly};
use crate::{explore, failure};
use breaker::{BreakerConfig, BreakerState, Window};
use breakers::{Breakers, BreakersConfig};
use budget::{BudgetConfig, RetryBudget};
use bulkhead::{Bulkhead, BulkheadError};
use config::PoolConfig;
use connections::Connections;
use connector::Connector;
use error::AcquireError;
use until::Until;

const SCHEDULES: usize = 10_000;
const TOOK: Duration = Duration::from_millis(1);

fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

fn join<T>(threads: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Gives something back, with what is planted.
fn give_back<T>(value: T) {
    match () {
        () if Seed::PermitForgotten.is_planted() => forget(value),
        () if Seed::NoWakeOnReturn.is_planted() => quietly(|| drop(value)),
        () => drop(value),
    }
}

const CONNECTIONS: usize = 2;

/// Connections that are numbers; some cannot be made, and some are no good after a while.
#[derive(Clone)]
struct Peers(Arc<Mutex<PeersState>>);

#[derive(Default)]
struct PeersState {
    live: usize,
    made: usize,
}

impl Connector for Peers {
    type Key = u8;
    type Connection = usize;
    type Error = String;

    fn connect(&self, _: &u8, _: Until<'_>) -> Result<usize, String> {
        if thread_rng().gen_ratio(1, 4) {
            return Err("refused".to_owned());
        }
        let mut peers = self.0.lock().unwrap();
        peers.live += 1;
        peers.made += 1;
        let live = peers.live;
        drop(peers);
        // Without the lock: poisoned, it would be what is found.
        assert!(live <= CONNECTIONS, "over the limit: {live} connections");
        Ok(live)
    }

    fn validate(&self, _: &mut usize, _: Until<'_>) -> Result<(), String> {
        if thread_rng().gen_ratio(1, 4) { Err("no answer".to_owned()) } else { Ok(()) }
    }

    fn is_broken(&self, _: &mut usize) -> bool {
        thread_rng().gen_ratio(1, 8)
    }

    fn close(&self, _: usize) {
        self.0.lock().unwrap().live -= 1;
    }
}

/// How callers ended.
static ENDS: Plain<BTreeSet<&str>> = Plain::new(BTreeSet::new());

/// Every caller ends, whatever its peers do: with a connection, with their error, or stopped. There are never more
/// connections than may be, and in the end none is lost.
fn connections() {
    let peers = Peers(Arc::new(Mutex::new(PeersState::default())));
    let config = PoolConfig {
        connections_max: CONNECTIONS,
        per_key_max: CONNECTIONS,
        validate_after: Duration::ZERO,
        ..PoolConfig::default()
    };
    let pool = Connections::new(config, peers.clone());
    let stop = Shutdown::new();
    let callers: Vec<_> = (0..4)
        .map(|number: u8| {
            let pool = pool.clone();
            // One that may be stopped while it waits, and three that may not.
            let shutdown = if number == 0 { stop.clone() } else { Shutdown::new() };
            spawn(move || {
                let end = match pool.acquire(&(number % 2), Until::new(far(), &shutdown)) {
                    Ok(lease) => {
                        match thread_rng().gen_range(0..3) {
                            0 => lease.discard(),
                            _ => give_back(lease),
                        }
                        "served"
                    }
                    Err(AcquireError::Stopped { .. }) => "stopped",
                    Err(AcquireError::ConnectFailed { .. }) => "refused",
                    Err(error) => panic!("{error}"),
                };
                ENDS.lock().unwrap().insert(end);
            })
        })
        .collect();
    stop.drain();
    join(callers);
    let numbers = pool.numbers();
    let idle = numbers.idle;
    assert_eq!((numbers.leased, numbers.connecting, numbers.waiting), (0, 0, 0), "a place is lost: {numbers:?}");
    assert_eq!(peers.0.lock().unwrap().live, idle, "a connection is lost: {numbers:?}");
    pool.stop();
    assert!(pool.drained().recv().is_err());
    assert_eq!(peers.0.lock().unwrap().live, 0);
}

#[test]
fn every_caller_of_a_pool_ends_and_no_place_is_lost() {
    explore(SCHEDULES, connections);
    assert_eq!(*ENDS.lock().unwrap(), BTreeSet::from(["refused", "served", "stopped"]), "all ends occur");
}

#[test]
fn a_pool_wait_that_lets_go_of_the_lock_is_found() {
    let found = failure(Seed::GapBeforeWait, SCHEDULES, connections);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn a_connection_that_comes_back_in_silence_is_found() {
    let found = failure(Seed::NoWakeOnReturn, SCHEDULES, connections);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn a_lease_of_a_connection_that_is_never_dropped_is_found() {
    let found = failure(Seed::PermitForgotten, SCHEDULES, connections);
    assert!(found.contains("deadlock") || found.contains("a place is lost"), "{found}");
}

#[test]
fn a_place_that_a_failed_connect_keeps_is_found() {
    let found = failure(Seed::PlaceLost, SCHEDULES, connections);
    assert!(found.contains("deadlock") || found.contains("a place is lost"), "{found}");
}

#[test]
fn a_connection_too_many_is_found() {
    let found = failure(Seed::PlaceUncounted, SCHEDULES, connections);
    assert!(found.contains("over the limit"), "{found}");
}

/// Never more callers inside than there are places; whoever waits gets one, or is stopped.
fn places() {
    const PLACES: usize = 2;
    let bulkhead = Bulkhead::new(PLACES, 8);
    let stop = Shutdown::new();
    let inside = Arc::new(Mutex::new(0));
    let callers: Vec<_> = (0..4)
        .map(|number| {
            let (bulkhead, inside) = (bulkhead.clone(), inside.clone());
            let shutdown = if number == 0 { stop.clone() } else { Shutdown::new() };
            spawn(move || match bulkhead.acquire(Until::new(far(), &shutdown)) {
                Ok(permit) => {
                    let now = {
                        let mut inside = inside.lock().unwrap();
                        *inside += 1;
                        *inside
                    };
                    assert!(now <= PLACES, "{now} inside");
                    *inside.lock().unwrap() -= 1;
                    give_back(permit);
                    STOPPED.lock().unwrap().insert(false);
                }
                Err(BulkheadError::Stopped) => {
                    STOPPED.lock().unwrap().insert(true);
                }
                Err(error) => panic!("{error}"),
            })
        })
        .collect();
    stop.drain();
    join(callers);
    let numbers = bulkhead.numbers();
    assert_eq!((numbers.taken, numbers.waiting), (0, 0), "a place is lost");
}

static STOPPED: Plain<BTreeSet<bool>> = Plain::new(BTreeSet::new());

#[test]
fn every_caller_of_a_bulkhead_gets_a_place_or_is_stopped() {
    explore(SCHEDULES, places);
    assert_eq!(STOPPED.lock().unwrap().len(), 2, "both ends occur");
}

#[test]
fn a_place_that_is_never_given_back_is_found() {
    let found = failure(Seed::PermitForgotten, SCHEDULES, places);
    assert!(found.contains("deadlock") || found.contains("a place is lost"), "{found}");
}

#[test]
fn a_place_that_is_given_back_in_silence_is_found() {
    let found = failure(Seed::NoWakeOnReturn, SCHEDULES, places);
    assert!(found.contains("deadlock"), "{found}");
}

#[test]
fn a_bulkhead_wait_that_lets_go_of_the_lock_is_found() {
    let found = failure(Seed::GapBeforeWait, SCHEDULES, places);
    assert!(found.contains("deadlock"), "{found}");
}

/// Never more probes out than may be; and when all who had one are gone, however they went, another may try and closes
/// the breaker.
fn probes() {
    const PROBES: usize = 2;
    let breaker =
        BreakerConfig { window: Window::Calls(2), least_calls: 1, half_open_calls: PROBES, ..BreakerConfig::default() };
    let breakers = Breakers::new(BreakersConfig { breaker, ..BreakersConfig::default() });
    let start = Instant::now();
    breakers.ask(&0, start).unwrap().failed(TOOK);
    let now = start + TOOK + breaker.open;
    let out = Arc::new(Mutex::new(0));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (breakers, out) = (breakers.clone(), out.clone());
            spawn(move || {
                let Ok(permit) = breakers.ask(&0, now) else { return REFUSED.lock().unwrap().insert(true) };
                // While there is no outcome the breaker is half-open; after that more than the probes may be out.
                let half_open = breakers.explain(&0, now).unwrap().state == BreakerState::HalfOpen;
                let count = {
                    let mut out = out.lock().unwrap();
                    *out += 1;
                    *out
                };
                assert!(count <= PROBES || !half_open, "{count} probes are out");
                *out.lock().unwrap() -= 1;
                match thread_rng().gen_range(0..3) {
                    0 => permit.succeeded(TOOK),
                    1 => permit.ignored(),
                    _ => give_back(permit),
                }
                REFUSED.lock().unwrap().insert(false)
            })
        })
        .collect();
    join(callers);
    for _ in 0..PROBES {
        let state = breakers.explain(&0, now).unwrap();
        match breakers.ask(&0, now) {
            Ok(permit) => permit.succeeded(TOOK),
            Err(_) => panic!("stuck: {}", state.line(now)),
        }
    }
    assert_eq!(breakers.explain(&0, now).unwrap().state, BreakerState::Closed);
}

static REFUSED: Plain<BTreeSet<bool>> = Plain::new(BTreeSet::new());

#[test]
fn a_half_open_breaker_lets_so_many_probes_out_and_never_sticks() {
    explore(SCHEDULES, probes);
    assert_eq!(REFUSED.lock().unwrap().len(), 2, "some are refused, some are not");
}

#[test]
fn a_probe_that_is_never_given_back_is_found() {
    let found = failure(Seed::PermitForgotten, SCHEDULES, probes);
    assert!(found.contains("stuck"), "{found}");
}

#[test]
fn a_probe_that_keeps_its_place_is_found() {
    let found = failure(Seed::ProbeKept, SCHEDULES, probes);
    assert!(found.contains("stuck"), "{found}");
}

/// However many try at once: no more second tries than were saved up and paid for.
fn second_tries() {
    const SAVED: usize = 2;
    let now = Instant::now();
    let budget = RetryBudget::new(BudgetConfig { per_success: 0.5, per_second: 0.0, most: SAVED as f64 }, now);
    let callers: Vec<_> = (0..3)
        .map(|number| {
            let budget = budget.clone();
            spawn(move || {
                if number == 0 {
                    budget.succeeded(now);
                    budget.succeeded(now);
                }
                let mut granted = 0;
                for _ in 0..2 {
                    let looks_good = Seed::LookThenTake.is_planted() && budget.numbers(now).left >= 1.0;
                    granted += usize::from(budget.withdraw(now) || looks_good);
                }
                granted
            })
        })
        .collect();
    let granted: usize = join(callers).into_iter().sum();
    GRANTED.lock().unwrap().insert(granted);
    assert!((SAVED..=SAVED + 1).contains(&granted), "{granted} granted");
}

static GRANTED: Plain<BTreeSet<usize>> = Plain::new(BTreeSet::new());

#[test]
fn no_second_try_is_granted_twice() {
    explore(SCHEDULES, second_tries);
    assert!(GRANTED.lock().unwrap().is_superset(&BTreeSet::from([2, 3])), "the successes come early or late");
}

#[test]
fn a_caller_that_looks_before_it_takes_is_found() {
    let found = failure(Seed::LookThenTake, SCHEDULES, second_tries);
    assert!(found.contains("4 granted") || found.contains("5 granted"), "{found}");
}
