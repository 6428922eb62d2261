use std::time::{Duration, Instant};

use super::config::{PoolConfig, PoolNumbers};
use super::policy::{Grant, Kept, Opened, Policy};
use crate::base::rng::Rng;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A policy with connections that are numbers, and its hand on the clock.
struct Scene {
    policy: Policy<&'static str, u32, &'static str>,
    now: Instant,
    made: u32,
    first_closed: Vec<u32>,
}

impl Scene {
    fn new(config: PoolConfig) -> Self {
        assert_eq!(config.problems(), [] as [String; 0]);
        Self { policy: Policy::new(config, Rng::new(7)), now: Instant::now(), made: 0, first_closed: Vec::new() }
    }

    /// Joins the queue and asks for what can be given.
    fn ask(&mut self, key: &'static str) -> u64 {
        let ticket = self.policy.join(&key).expect("there is room in the queue");
        self.policy.assign(self.now);
        ticket
    }

    /// What the caller with the ticket may do, done: the number of its connection.
    fn got(&mut self, ticket: u64) -> Option<Kept<u32>> {
        let opened = match self.policy.take_grant(ticket)? {
            Grant::Use { kept, .. } => Opened::Again(kept),
            Grant::Connect { first_close } => {
                self.first_closed.extend(first_close);
                self.made += 1;
                Opened::New(self.made)
            }
        };
        Some(self.policy.lease(opened, self.now))
    }

    fn lease(&mut self, key: &'static str) -> Kept<u32> {
        let ticket = self.ask(key);
        self.got(ticket).expect("a connection")
    }

    fn put_back(&mut self, key: &'static str, kept: Kept<u32>) {
        self.policy.put_back(&key, kept, true, self.now);
        self.policy.assign(self.now);
    }

    /// Closes what is to be closed. What made room for another was closed by whoever got that.
    fn closed(&mut self) -> Vec<u32> {
        let closing: Vec<_> = std::iter::from_fn(|| self.policy.next_to_close()).collect();
        closing.iter().for_each(|(key, _)| self.policy.closed(key));
        self.policy.assign(self.now);
        self.first_closed.drain(..).chain(closing.into_iter().map(|(_, connection)| connection)).collect()
    }

    fn numbers(&self) -> PoolNumbers {
        self.policy.numbers()
    }
}

fn config() -> PoolConfig {
    PoolConfig { connections_max: 4, per_key_max: 3, ..PoolConfig::default() }
}

#[test]
fn the_newest_idle_one_is_used_first() {
    let mut scene = Scene::new(config());
    let leases: Vec<_> = (0..3).map(|_| scene.lease("a")).collect();
    for kept in leases {
        scene.now += SECOND;
        scene.put_back("a", kept);
    }
    assert_eq!((scene.lease("a").connection, scene.lease("a").connection), (3, 2));
    let numbers = scene.numbers();
    assert_eq!((numbers.leased, numbers.idle, numbers.connected, numbers.reused), (2, 1, 3, 2));
}

#[test]
fn the_longest_idle_one_of_another_key_makes_room() {
    let mut scene = Scene::new(config());
    let (first, second) = (scene.lease("a"), scene.lease("b"));
    let _others = [scene.lease("c"), scene.lease("c")];
    let waits = scene.ask("d");
    assert!(scene.got(waits).is_none(), "all are leased");
    scene.put_back("a", first);
    let fifth = scene.got(waits).expect("the room of the idle one");
    assert_eq!(scene.closed(), [1]);
    scene.now += SECOND;
    scene.put_back("b", second);
    scene.now += SECOND;
    scene.put_back("d", fifth);
    scene.lease("a");
    assert_eq!((scene.closed(), scene.numbers().evicted), (vec![2], 2));
}

#[test]
fn who_comes_first_is_served_first_whatever_its_key() {
    let mut scene = Scene::new(PoolConfig { connections_max: 2, per_key_max: 1, ..PoolConfig::default() });
    let (a, b) = (scene.lease("a"), scene.lease("b"));
    let (second_a, c, third_a, second_b) = (scene.ask("a"), scene.ask("c"), scene.ask("a"), scene.ask("b"));
    scene.put_back("b", b);
    assert!(scene.got(second_b).is_none(), "c came before the second of b, and needs its room");
    let c = scene.got(c).expect("room");
    scene.put_back("a", a);
    let a = scene.got(second_a).expect("the first of a");
    assert!(scene.got(third_a).is_none());
    // The third of a came before the second of b: both have to wait for its connection.
    scene.put_back("c", c);
    scene.got(second_b).expect("the room of c, which nobody before it can use");
    scene.put_back("a", a);
    scene.got(third_a).expect("its turn");
}

#[test]
fn the_limit_of_one_key_keeps_nobody_else_waiting() {
    let mut scene = Scene::new(config());
    let _own: Vec<_> = (0..3).map(|_| scene.lease("a")).collect();
    let waits = scene.ask("a");
    assert!(scene.got(waits).is_none());
    scene.lease("b");
    assert_eq!(scene.numbers().waiting, 1);
}

#[test]
fn what_is_too_old_or_idle_for_too_long_is_closed() {
    let mut scene = Scene::new(PoolConfig { idle_time: MINUTE, life_time: 10 * MINUTE, ..config() });
    let kept = scene.lease("a");
    scene.now += 2 * MINUTE;
    scene.put_back("a", kept);
    assert_eq!(scene.numbers().idle, 1, "what is used is not idle");
    assert_eq!(scene.policy.next_due(), Some(scene.now + MINUTE));
    scene.now += MINUTE;
    scene.policy.sweep(scene.now);
    assert_eq!((scene.closed(), scene.numbers().idled, scene.policy.next_due()), (vec![1], 1, None));

    // Leased while it becomes too old: it may be used to the end, and is closed when it comes back.
    let kept = scene.lease("a");
    scene.now += 10 * MINUTE;
    scene.policy.sweep(scene.now);
    assert_eq!(scene.closed(), [0_u32; 0]);
    scene.put_back("a", kept);
    assert_eq!((scene.closed(), scene.numbers().retired), (vec![2], 1));

    // Without a sweep in between they are not given out either.
    let kept = scene.lease("a");
    scene.put_back("a", kept);
    scene.now += MINUTE;
    assert_eq!(scene.lease("a").connection, 4);
    assert_eq!(scene.closed(), [3]);
}

#[test]
fn those_that_were_made_together_do_not_end_together() {
    let config = PoolConfig { connections_max: 100, per_key_max: 100, life_time: 1000 * SECOND, ..config() };
    let mut scene = Scene::new(PoolConfig { idle_time: 10_000 * SECOND, ..config });
    let leases: Vec<_> = (0..100).map(|_| scene.lease("a")).collect();
    leases.into_iter().for_each(|kept| scene.put_back("a", kept));
    scene.now += 899 * SECOND;
    let left = [0, 50, 101].map(|seconds| {
        scene.policy.sweep(scene.now + seconds * SECOND);
        scene.numbers().idle
    });
    assert!(left[0] == 100 && (20..80).contains(&left[1]) && left[2] == 0, "{left:?}");
}

#[test]
fn only_what_was_idle_for_a_while_is_validated() {
    let mut scene = Scene::new(config());
    for (idle, expected) in [(0, false), (499, false), (500, true)] {
        let kept = scene.lease("a");
        scene.put_back("a", kept);
        scene.now += Duration::from_millis(idle);
        let ticket = scene.ask("a");
        let Some(Grant::Use { kept, validate }) = scene.policy.take_grant(ticket) else { panic!("an idle one") };
        assert_eq!(validate, expected, "after {idle} ms");
        let kept = scene.policy.lease(Opened::Again(kept), scene.now);
        scene.put_back("a", kept);
    }
}

#[test]
fn a_silent_one_is_looked_at_and_stays_as_idle_as_it_was() {
    let mut scene = Scene::new(PoolConfig { keepalive: Some(10 * SECOND), idle_time: 25 * SECOND, ..config() });
    let kept = scene.lease("a");
    scene.put_back("a", kept);
    let start = scene.now;
    assert_eq!(scene.policy.next_due(), Some(start + 10 * SECOND));
    for seconds in [10, 20] {
        scene.now = start + seconds * SECOND;
        let (key, kept) = scene.policy.take_silent(scene.now).expect("it is due");
        assert!(scene.policy.take_silent(scene.now).is_none());
        assert_eq!(scene.numbers().connecting, 1);
        scene.policy.kept_alive(&key, kept, true, scene.now);
    }
    scene.policy.sweep(start + 25 * SECOND);
    assert_eq!((scene.closed(), scene.numbers().idled), (vec![1], 1));
    let kept = scene.lease("a");
    scene.put_back("a", kept);
    let (key, kept) = scene.policy.take_silent(scene.now + 10 * SECOND).expect("it is due");
    scene.policy.kept_alive(&key, kept, false, scene.now);
    assert_eq!((scene.closed(), scene.numbers().invalid, scene.numbers().idle), (vec![2], 1, 0));
}

#[test]
fn a_place_is_free_again_whatever_became_of_it() {
    let mut scene = Scene::new(PoolConfig { connections_max: 1, per_key_max: 1, ..config() });
    for round in 0..6 {
        let ticket = scene.ask("a");
        let next = scene.ask("a");
        let grant = scene.policy.take_grant(ticket).expect("the only place");
        match round {
            0 => scene.policy.undo(&"a", grant, scene.now),
            1 => {
                scene.policy.connect_failed(&"a", "refused", scene.now);
                scene.policy.not_opened(&"a");
            }
            _ => {
                let kept = scene.policy.lease(Opened::New(round), scene.now);
                match round {
                    2 => scene.policy.put_back(&"a", kept, false, scene.now),
                    3 => scene.policy.taken_out(&"a"),
                    _ => {
                        scene.policy.put_back(&"a", kept, true, scene.now);
                        scene.now += MINUTE * 60;
                    }
                }
            }
        }
        // What is being closed still has its place; the last ones are too old when they are wanted.
        let closes = round == 2 || round >= 4;
        assert_eq!(scene.policy.assign(scene.now), !closes, "round {round}");
        assert_eq!(scene.closed().len(), usize::from(closes), "round {round}");
        assert!(scene.policy.take_grant(next).is_some(), "round {round}");
        scene.policy.not_opened(&"a");
        let numbers = scene.numbers();
        assert_eq!((numbers.leased, numbers.connecting, numbers.waiting), (0, 0, 0), "round {round}");
    }
    let last = scene.policy.last_error(&"a", scene.now + SECOND).unwrap();
    assert_eq!(last.error, "refused");
}

#[test]
fn the_queue_and_the_errors_are_bounded() {
    let mut scene = Scene::new(PoolConfig { connections_max: 1, waiting_max: 2, ..config() });
    let _all = scene.lease("a");
    let (first, second) = (scene.ask("a"), scene.ask("b"));
    assert_eq!(scene.policy.join(&"c"), None);
    scene.policy.leave(first);
    scene.policy.leave(second);
    let numbers = scene.numbers();
    assert_eq!((numbers.full, numbers.gave_up, numbers.waiting), (1, 2, 0));
    for n in 0..2000_u32 {
        let key: &'static str = n.to_string().leak();
        scene.policy.connect_failed(&key, "refused", scene.now + n * SECOND);
    }
    assert!(scene.policy.last_error(&"975", scene.now).is_none());
    assert!(scene.policy.last_error(&"976", scene.now).is_some());
}

#[test]
fn a_stop_closes_what_is_idle_and_what_comes_back() {
    let mut scene = Scene::new(config());
    let (kept, idle) = (scene.lease("a"), scene.lease("b"));
    scene.put_back("b", idle);
    scene.policy.stop();
    assert_eq!(scene.closed(), [2]);
    assert!(!scene.policy.is_drained());
    let ticket = scene.ask("b");
    assert!(scene.got(ticket).is_none());
    scene.put_back("a", kept);
    assert_eq!(scene.closed(), [1]);
    assert!(scene.policy.is_drained());
}

#[test]
fn numbers_that_are_no_good_are_all_named() {
    let none = Duration::ZERO;
    let config =
        PoolConfig { connections_max: 0, life_time: none, keepalive: Some(2 * SECOND), idle_time: SECOND, ..config() };
    let problems = config.problems();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert_eq!(problems[2], "keepalive is 2s, it must be less than idle_time 1s");
    assert!(PoolConfig::default().problems().is_empty());
}
