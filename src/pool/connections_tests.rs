use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::config::{PoolConfig, PoolNumbers};
use super::connections::{Connections, Lease};
use super::connector::Connector;
use super::error::AcquireError;
use super::keeper::Pool;

use super::until::Until;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::Stopping;
use crate::base::thread::{Group, Kick, Thread, spawn};
use crate::base::wait::{LONG, far, until as until_seen};

/// What the peers do, and what was done to them.
#[derive(Default)]
struct Peers {
    made: AtomicU32,
    refuses: AtomicBool,
    /// Validations wait for their deadline.
    silent: AtomicBool,
    /// Validations fail at once.
    invalid: AtomicBool,
    panics: AtomicBool,
    panics_at_return: AtomicBool,
    broken: Mutex<Vec<u32>>,
    closed: Mutex<Vec<u32>>,
    /// The pool whose lock no call may be under.
    pool: Mutex<Option<Connections<Fake>>>,
    /// A connect says that it has begun, and waits until it may go on.
    gate: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl Peers {
    /// Would wait for ever under the pool's lock.
    fn not_under_the_lock(&self) {
        let pool = lock(&self.pool).clone();
        let _numbers = pool.map(|pool| pool.numbers());
    }

    fn closed(&self) -> Vec<u32> {
        lock(&self.closed).clone()
    }
}

#[derive(Clone, Default)]
struct Fake(Arc<Peers>);

impl Connector for Fake {
    type Key = u8;
    type Connection = u32;
    type Error = String;

    fn connect(&self, _: &u8, until: Until<'_>) -> Result<u32, String> {
        self.0.not_under_the_lock();
        assert!(!self.0.panics.load(SeqCst), "boom");
        let gate = lock(&self.0.gate).clone();
        if let Some((began, go)) = gate {
            began.send(()).unwrap();
            go.recv_deadline(far()).unwrap();
        }
        match self.0.refuses.load(SeqCst) || until.left().is_zero() {
            true => Err("refused".to_owned()),
            false => Ok(self.0.made.fetch_add(1, SeqCst) + 1),
        }
    }

    fn validate(&self, _: &mut u32, until: Until<'_>) -> Result<(), String> {
        self.0.not_under_the_lock();
        if self.0.silent.load(SeqCst) {
            // Until the deadline or a stop, and then as if all were well.
            until.shutdown.wait_for(until.level, until.left());
        }
        if self.0.invalid.load(SeqCst) { Err("not the answer".to_owned()) } else { Ok(()) }
    }

    fn is_broken(&self, connection: &mut u32) -> bool {
        self.0.not_under_the_lock();
        assert!(!self.0.panics_at_return.load(SeqCst), "boom");
        lock(&self.0.broken).contains(connection)
    }

    fn close(&self, connection: u32) {
        self.0.not_under_the_lock();
        assert!(!self.0.panics_at_return.load(SeqCst), "boom");
        lock(&self.0.closed).push(connection);
    }
}

struct Scene {
    peers: Arc<Peers>,
    /// Ends when it is dropped.
    _pool: Pool<Fake>,
    connections: Connections<Fake>,
    shutdown: Shutdown,
}

impl Scene {
    fn new(config: PoolConfig) -> Self {
        let fake = Fake::default();
        let peers = fake.0.clone();
        let pool = Pool::start(config, fake);
        let connections = pool.connections();
        *lock(&peers.pool) = Some(connections.clone());
        Self { peers, _pool: pool, connections, shutdown: Shutdown::new() }
    }

    fn until(&self) -> Until<'_> {
        Until::new(far(), &self.shutdown)
    }

    fn lease(&self, key: u8) -> Lease<Fake> {
        self.connections.acquire(&key, self.until()).unwrap()
    }

    /// A thread that acquires, and gives back what it has got at once.
    fn waiter(&self, key: u8) -> Thread<Result<u32, AcquireError<String>>> {
        let (connections, shutdown) = (self.connections.clone(), self.shutdown.clone());
        spawn("t-acquire", Kick::dropped("the lease"), move || {
            connections.acquire(&key, Until::new(far(), &shutdown)).map(|lease| *lease)
        })
    }

    fn waits(&self, number: usize) {
        until_seen("callers wait", || self.connections.numbers().waiting == number);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Else the peers and the pool hold each other.
        *lock(&self.peers.pool) = None;
    }
}

fn one() -> PoolConfig {
    PoolConfig { connections_max: 1, per_key_max: 1, ..PoolConfig::default() }
}

fn in_use(numbers: PoolNumbers) -> (usize, usize, usize, usize) {
    (numbers.leased, numbers.idle, numbers.connecting, numbers.waiting)
}

#[test]
fn a_connection_is_used_again_and_callers_are_served_in_their_order() {
    let scene = Scene::new(one());
    let lease = scene.lease(1);
    let (tx, rx) = bounded(8);
    let mut threads = Vec::new();
    for number in 0..5 {
        let (connections, shutdown, tx) = (scene.connections.clone(), scene.shutdown.clone(), tx.clone());
        threads.push(spawn("t-acquire", Kick::dropped("the lease"), move || {
            let lease = connections.acquire(&1, Until::new(far(), &shutdown)).unwrap();
            tx.send((number, *lease)).unwrap();
        }));
        scene.waits(number + 1);
    }
    drop(lease);
    let order: Vec<_> = (0..5).map(|_| rx.recv_deadline(far()).unwrap()).collect();
    assert_eq!(order, [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]);
    threads.into_iter().for_each(|thread| thread.join_by(far()).unwrap());
    assert_eq!(in_use(scene.connections.numbers()), (0, 1, 0, 0));
}

#[test]
fn a_timed_out_caller_learns_of_the_pool_and_of_the_last_error() {
    let scene = Scene::new(PoolConfig { connections_max: 1, ..PoolConfig::default() });
    scene.peers.refuses.store(true, SeqCst);
    let error = scene.connections.acquire(&2, scene.until()).unwrap_err();
    assert_eq!(error.to_string(), "cannot connect: refused (0 leased, 0 idle, 0 connecting, 0 waiting)");
    scene.peers.refuses.store(false, SeqCst);
    let _lease = scene.lease(1);
    let soon = Until::new(Instant::now() + Duration::from_millis(1), &scene.shutdown);
    let error = scene.connections.acquire(&2, soon).unwrap_err();
    let AcquireError::TimedOut { numbers, last_error } = &error else { panic!("{error:?}") };
    assert_eq!((in_use(**numbers), last_error.as_ref().unwrap().error.as_str()), ((1, 0, 0, 0), "refused"));
    let text = error.to_string();
    let start = "no connection in time (1 leased, 0 idle, 0 connecting, 0 waiting); the last connect failed: refused, ";
    assert!(text.starts_with(start) && text.ends_with(" ago"), "{text}");
}

#[test]
fn a_stop_ends_the_wait_and_the_next_one_is_served() {
    let scene = Scene::new(one());
    let lease = scene.lease(1);
    let thread = scene.waiter(1);
    scene.waits(1);
    scene.shutdown.drain();
    let error = thread.join_by(far()).unwrap().unwrap_err();
    assert!(matches!(error, AcquireError::Stopped { .. }), "{error}");
    drop(lease);
    assert_eq!(in_use(scene.connections.numbers()), (0, 1, 0, 0));
}

#[test]
fn an_invalid_one_is_closed_and_another_is_made_in_its_place() {
    let scene = Scene::new(PoolConfig { validate_after: Duration::ZERO, ..one() });
    drop(scene.lease(1));
    assert_eq!(*scene.lease(1), 1);
    scene.peers.invalid.store(true, SeqCst);
    assert_eq!(*scene.lease(1), 2);
    assert_eq!((scene.peers.closed(), scene.connections.numbers().invalid), (vec![1], 1));
}

#[test]
fn one_whose_validation_took_too_long_is_closed_also_if_it_says_that_all_is_well() {
    let quick = Duration::from_millis(1);
    let scene = Scene::new(PoolConfig { validate_after: Duration::ZERO, validate_time: quick, ..one() });
    drop(scene.lease(1));
    scene.peers.silent.store(true, SeqCst);
    assert_eq!(*scene.lease(1), 2);
    assert_eq!(scene.peers.closed(), [1]);
}

#[test]
fn a_broken_one_is_not_kept_and_not_given_out() {
    let scene = Scene::new(one());
    let lease = scene.lease(1);
    lock(&scene.peers.broken).push(*lease);
    drop(lease);
    assert_eq!(scene.peers.closed(), [1]);
    drop(scene.lease(1));
    // It breaks while it is idle.
    lock(&scene.peers.broken).push(2);
    assert_eq!((*scene.lease(1), scene.peers.closed()), (3, vec![1, 2]));
    scene.lease(1).discard();
    assert_eq!(scene.peers.closed(), [1, 2, 3]);
    let taken = scene.lease(1).take_out();
    assert_eq!((taken, *scene.lease(1), scene.peers.closed()), (4, 5, vec![1, 2, 3]));
}

#[test]
fn a_panic_of_its_holder_or_of_the_connector_loses_no_place() {
    let scene = Scene::new(one());
    let of_holder = catch_unwind(AssertUnwindSafe(|| {
        let _lease = scene.lease(1);
        panic!("boom");
    }));
    assert!(of_holder.is_err());
    assert_eq!(scene.peers.closed(), [1], "it may be half-way through an exchange");
    scene.peers.panics.store(true, SeqCst);
    assert!(catch_unwind(AssertUnwindSafe(|| scene.lease(1))).is_err());
    scene.peers.panics.store(false, SeqCst);
    assert_eq!(*scene.lease(1), 2);

    // While it looks at one that comes back, and while it closes it.
    let held = scene.lease(1);
    scene.peers.panics_at_return.store(true, SeqCst);
    drop(held);
    scene.peers.panics_at_return.store(false, SeqCst);
    assert_eq!(*scene.lease(1), 3);
    let numbers = scene.connections.numbers();
    assert_eq!((numbers.leased, numbers.idle, numbers.closing, numbers.discarded), (0, 1, 0, 2));
}

#[test]
fn many_threads_never_have_more_than_may_be() {
    const KEYS: u8 = 6;
    let config = PoolConfig { connections_max: 4, per_key_max: 2, validate_after: Duration::ZERO, ..one() };
    let scene = Scene::new(config);
    let live = Arc::new(Mutex::new(BTreeMap::<u8, usize>::new()));
    let threads: Vec<_> = (0..16)
        .map(|number| {
            let (connections, shutdown, live) = (scene.connections.clone(), scene.shutdown.clone(), live.clone());
            spawn("t-acquire", Kick::dropped("the leases"), move || {
                for round in 0..200_u32 {
                    let key = ((number * 7 + round) % u32::from(KEYS)) as u8;
                    let lease = connections.acquire(&key, Until::new(far(), &shutdown)).unwrap();
                    let now = {
                        let mut live = lock(&live);
                        *live.entry(key).or_default() += 1;
                        (live[&key], live.values().sum::<usize>())
                    };
                    assert!(now.0 <= 2 && now.1 <= 4, "{now:?}");
                    *lock(&live).get_mut(&key).unwrap() -= 1;
                    if round % 13 == 0 { lease.discard() } else { drop(lease) }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join_by(far()).unwrap());
    let numbers = scene.connections.numbers();
    assert_eq!((numbers.leased, numbers.connecting, numbers.waiting), (0, 0, 0));
    let made = scene.peers.made.load(SeqCst) as usize;
    assert_eq!(made, scene.peers.closed().len() + numbers.idle, "each is idle or closed");
}

#[test]
fn the_keeper_closes_what_is_idle_and_looks_at_what_is_silent() {
    let (idle_time, keepalive) = (Duration::from_millis(50), Some(Duration::from_millis(5)));
    let scene = Scene::new(PoolConfig { idle_time, ..one() });
    drop(scene.lease(1));
    until_seen("it is closed", || scene.peers.closed() == [1]);
    let scene = Scene::new(PoolConfig { keepalive, ..one() });
    drop(scene.lease(1));
    scene.peers.invalid.store(true, SeqCst);
    until_seen("it is closed", || scene.peers.closed() == [1]);
    assert_eq!(scene.connections.numbers().invalid, 1);
}

#[test]
fn a_leak_is_reported_once_with_who_has_it() {
    let scene =
        Scene::new(PoolConfig { leak_after: Duration::from_millis(1), per_key_max: 2, connections_max: 2, ..one() });
    let connections = scene.connections.clone();
    let (tx, rx) = bounded(1);
    let holder = spawn("t-holder", Kick::dropped("tx"), move || {
        let shutdown = Shutdown::new();
        let lease = connections.acquire(&1, Until::new(far(), &shutdown)).unwrap();
        (lease, rx.recv_deadline(far())).1
    });
    until_seen("it is reported", || scene.connections.numbers().leaked == 1);
    let leases = scene.connections.leases();
    let (thread, file) = (leases[0].thread.as_str(), leases[0].at.file());
    assert_eq!((leases.len(), thread, leases[0].key), (1, "t-holder", 1));
    assert!(file.ends_with("connections_tests.rs"), "{file}");
    let line = leases[0].line(leases[0].since + LONG);
    assert!(line.starts_with("a connection of 1 is held for 60.0s by thread t-holder, acquired at "), "{line}");
    // The next one is reported, and the first not again.
    let _second = scene.lease(1);
    until_seen("it is reported", || scene.connections.numbers().leaked == 2);
    tx.send(()).unwrap();
    holder.join_by(far()).unwrap().unwrap();
    assert_eq!((scene.connections.leases().len(), scene.connections.numbers().leaked), (1, 2));
}

#[test]
fn a_stop_that_is_over_leaves_leases_behind_and_closes_them_later() {
    let group = Group::enter();
    let fake = Fake::default();
    let peers = fake.0.clone();
    let pool = Pool::start(PoolConfig::default(), fake);
    let (connections, shutdown) = (pool.connections(), Shutdown::new());
    let until = || Until::new(far(), &shutdown);
    drop(connections.acquire(&1, until()).unwrap());
    let lease = connections.acquire(&2, until()).unwrap();
    let mut stopping = Stopping::alone();
    stopping.step("connections", Duration::from_millis(1), |step| pool.stop_in(step));
    assert!(stopping.finish().is_clean(), "the thread has ended");
    assert!(group.live().is_empty());
    assert_eq!(peers.closed(), [1]);
    drop(lease);
    assert_eq!(peers.closed(), [1, 2]);
    assert_eq!(connections.acquire(&1, until()).unwrap_err(), AcquireError::PoolStopped);
}

#[test]
fn a_connect_that_ends_after_the_stop_is_waited_for() {
    let group = Group::enter();
    let fake = Fake::default();
    let peers = fake.0.clone();
    let ((began, has_begun), (go, may_go)) = (bounded(1), bounded(1));
    *lock(&peers.gate) = Some((began, may_go));
    let pool = Pool::start(one(), fake);
    let (acquiring, connections) = (pool.connections(), pool.connections());
    let waiting = pool.connections();
    let caller = spawn("t-acquire", Kick::dropped("go"), move || {
        acquiring.acquire(&1, Until::new(far(), &Shutdown::new())).map(|lease| *lease)
    });
    has_begun.recv_deadline(far()).unwrap();
    let waiter = spawn("t-waiter", Kick::dropped("the pool"), move || {
        waiting.acquire(&1, Until::new(far(), &Shutdown::new())).map(|lease| *lease)
    });
    until_seen("a caller waits", || connections.numbers().waiting == 1);
    let stopper = spawn("t-stop", Kick::dropped("go"), move || {
        let mut stopping = Stopping::alone();
        stopping.step("connections", LONG, |step| pool.stop_in(step));
        stopping.finish()
    });
    assert_eq!(waiter.join_by(far()).unwrap(), Err(AcquireError::PoolStopped));
    assert!(!stopper.is_finished());
    go.send(()).unwrap();
    assert_eq!(caller.join_by(far()).unwrap(), Ok(1));
    assert!(stopper.join_by(far()).unwrap().is_clean());
    assert_eq!((peers.closed(), group.live().len()), (vec![1], 0));
}

#[test]
fn dropping_a_pool_stops_it() {
    let group = Group::enter();
    let fake = Fake::default();
    let peers = fake.0.clone();
    let pool = Pool::start(PoolConfig::default(), fake);
    let (connections, shutdown) = (pool.connections(), Shutdown::new());
    let lease = connections.acquire(&1, Until::new(far(), &shutdown)).unwrap();
    drop(connections.acquire(&2, Until::new(far(), &shutdown)).unwrap());
    drop(pool);
    assert_eq!((group.live().len(), peers.closed()), (0, vec![2]));
    drop(lease);
    assert_eq!(peers.closed(), [2, 1]);
}
