//! The manifests of many miners, over loopback: each conduct has its outcome, and none costs the others anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::thread::Group;
use phalanx::identity::PublicKey;
use phalanx::pool::{BreakerConfig, Breakers, BreakersConfig};
use phalanx::protocol::ExecutorClass;
use phalanx::transport::ws::WsDialer;
use phalanx::validator::MinerAddress;
use phalanx::validator::manifests::{AskOutcome, Fetched, Fetcher, MinerDialer};

use crate::testkit::fleet::{Conduct, Fleet, validator};
use crate::testkit::roles::World;
use crate::testkit::wait::{LONG, until};

use AskOutcome as O;
use Conduct as C;

const SECOND: Duration = Duration::from_secs(1);

fn dialer(world: &World) -> MinerDialer {
    MinerDialer { key: validator(), dialer: Arc::new(WsDialer::default()), timer: world.timer() }
}

/// Asks each on a connection of its own.
fn fetcher(world: &World, threads: usize) -> Fetcher {
    let dialer = dialer(world);
    Fetcher::new(threads, move |miner, until, stop| dialer.manifest(miner, until, stop, Level::Cancel))
}

fn fetch(fetcher: &mut Fetcher, miners: &[MinerAddress], time: Duration) -> Vec<Fetched> {
    fetcher.fetch(miners, Instant::now() + time, &Shutdown::new())
}

fn expected(conduct: Conduct) -> AskOutcome {
    match conduct {
        C::Offers(_) | C::Slow(..) | C::CutsFirst(_) => O::Ok,
        C::BlackHole | C::Silent => O::Timeout,
        C::Refuses | C::Cuts => O::Refused,
        C::Garbage | C::Wrong | C::Absurd | C::Large => O::ProtocolError,
        C::Unknown => O::Unauthorized,
    }
}

#[test]
fn each_conduct_has_its_outcome() {
    let world = World::new();
    let fleet = Fleet::start(world.timer());
    let conducts = [
        C::Offers(3),
        C::BlackHole,
        C::Silent,
        C::Refuses,
        C::Garbage,
        C::Wrong,
        C::Absurd,
        C::Unknown,
        C::Cuts,
        C::CutsFirst(1),
        C::Slow(SECOND / 4, 2),
        C::Large,
    ];
    let miners: Vec<_> = conducts.iter().map(|conduct| fleet.add(*conduct)).collect();
    let fetched = fetch(&mut fetcher(&world, 16), &miners, 3 * SECOND);
    for ((conduct, miner), fetched) in conducts.iter().zip(&miners).zip(&fetched) {
        assert_eq!((fetched.outcome, &fetched.miner), (expected(*conduct), miner), "{conduct:?}: {:?}", fetched.error);
        assert_eq!(fetched.manifest.is_some(), fetched.error.is_none());
        assert!(!fetched.error.as_deref().unwrap_or_default().contains('\n'), "{:?}", fetched.error);
    }
    let offers = |index: usize| fetched[index].manifest.as_ref().unwrap().executors[&ExecutorClass::AlwaysOnTest];
    assert_eq!((offers(0), offers(9), offers(10)), (3, 1, 2));
    assert_eq!(fetched[7].error.as_deref(), Some("refused: Unknown\\nvalidator"));
    assert_eq!(fetched[6].error.as_deref().map(|why| why.starts_with("its manifest names -1 executors")), Some(true));
    let why = fetched[11].error.as_deref().unwrap();
    assert!(why.contains("65536"), "no more is received: {why}");
    // What passes is tried again, what does not is not.
    assert_eq!([0, 4, 5, 6, 7].map(|index| fleet.asked(&miners[index])), [1; 5]);
    assert_eq!((fetched[9].tries, fleet.asked(&miners[9])), (2, 2));
    assert_eq!((fetched[8].tries, fetched[3].tries), (3, 3));
    fleet.stop();
}

#[test]
fn black_holes_cost_their_deadline_and_nothing_else() {
    const THREADS: usize = 64;
    let group = Group::enter();
    let world = World::new();
    let fleet = Fleet::start(world.timer());
    let conduct = |n: usize| match n % 20 {
        0 | 1 => C::BlackHole,
        2 | 3 => C::Refuses,
        4 => C::Garbage,
        _ => C::Offers(n as u32),
    };
    let miners: Vec<_> = (0..256).map(|n| fleet.add(conduct(n))).collect();
    let (now_asked, most_asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, most, dialer) = (now_asked.clone(), most_asked.clone(), dialer(&world));
    let mut fetcher = Fetcher::new(THREADS, move |miner, until, stop| {
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let open = dialer.open(miner, until, stop, Level::Cancel);
        now.fetch_sub(1, Ordering::SeqCst);
        Ok(open?.manifest)
    });
    let time = 6 * SECOND;
    let begun = Instant::now();
    let fetched = fetch(&mut fetcher, &miners, time);
    let wall = begun.elapsed();
    for (n, fetched) in fetched.iter().enumerate() {
        assert_eq!(fetched.outcome, expected(conduct(n)), "{n}: {:?}", fetched.error);
    }
    let slowest = fetched.iter().filter(|f| f.outcome == O::Ok).map(|f| f.took).max().unwrap();
    println!("256 miners: {wall:.3?} for a deadline of {time:?}, the slowest that answered took {slowest:.3?}");
    assert!(wall >= time && wall < time + 2 * SECOND, "{wall:?}");
    assert!(most_asked.load(Ordering::SeqCst) <= THREADS);
    assert!(!group.live().iter().any(|thread| thread.name.starts_with("val-man-")), "all are joined");
    fleet.stop();
}

#[test]
fn more_black_holes_than_threads_take_nobodys_time() {
    let world = World::new();
    let fleet = Fleet::start(world.timer());
    let miners: Vec<_> = (0..24).map(|n| fleet.add(if n < 20 { C::Silent } else { C::Offers(1) })).collect();
    let fetched = fetch(&mut fetcher(&world, 4), &miners, 5 * SECOND);
    let outcomes: Vec<_> = fetched.iter().map(|fetched| fetched.outcome).collect();
    assert_eq!((&outcomes[..20], &outcomes[20..]), (&[O::Timeout; 20][..], &[O::Ok; 4][..]), "{fetched:#?}");
    fleet.stop();
}

#[test]
fn a_cancel_gives_what_is_there() {
    let world = World::new();
    let fleet = Fleet::start(world.timer());
    let miners: Vec<_> = (0..12).map(|n| fleet.add(if n < 2 { C::Offers(1) } else { C::Silent })).collect();
    // Two threads answer for the first two, and hang then; the cancel comes when both hang.
    let (dialer, stop) = (dialer(&world), Shutdown::new());
    let (cancel, asked) = (stop.clone(), AtomicUsize::new(0));
    let mut fetcher = Fetcher::new(2, move |miner, until, stop| {
        if asked.fetch_add(1, Ordering::SeqCst) == 3 {
            cancel.cancel();
        }
        dialer.open(miner, until, stop, Level::Cancel).map(|open| open.manifest)
    });
    let fetched = fetcher.fetch(&miners, Instant::now() + LONG, &stop);
    let outcomes: Vec<_> = fetched.iter().map(|fetched| fetched.outcome).collect();
    assert_eq!((&outcomes[..2], &outcomes[2..]), (&[O::Ok; 2][..], &[O::Skipped; 10][..]));
    assert_eq!(fetched[11].error.as_deref(), Some("stopped before it was asked"));
    fleet.stop();
}

#[test]
fn a_miner_whose_exchange_does_not_end_was_asked_and_is_late() {
    let world = World::new();
    let group = Group::enter();
    let fleet = Fleet::start(world.timer());
    let miners: Vec<_> = (0..3).map(|_| fleet.add(C::Offers(1))).collect();
    let (dialer, stuck) = (dialer(&world), miners[1].hotkey);
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    let mut fetcher = Fetcher::new(4, move |miner, until, stop| {
        if miner.hotkey == stuck {
            // Neither the deadline nor the kick reaches it.
            let _ = held.recv();
        }
        dialer.open(miner, until, stop, Level::Cancel).map(|open| open.manifest)
    });
    let fetched = fetch(&mut fetcher, &miners, SECOND);
    assert_eq!(fetched.iter().map(|f| f.outcome).collect::<Vec<_>>(), [O::Ok, O::Timeout, O::Ok]);
    assert_eq!(fetched[1].error.as_deref(), Some("asking it had not ended in time"));
    assert!(fetched[1].took >= SECOND, "{:?}", fetched[1].took);
    drop(release);
    until("its thread has ended", || !group.live().iter().any(|thread| thread.name.starts_with("val-man-")));
    fleet.stop();
}

#[test]
fn an_exchange_that_panics_ends_its_turn_and_is_not_the_miners_fault() {
    let world = World::new();
    let fleet = Fleet::start(world.timer());
    let miners: Vec<_> = (0..8).map(|_| fleet.add(C::Offers(1))).collect();
    let (dialer, bad) = (dialer(&world), miners[0].hotkey);
    let mut fetcher = Fetcher::new(2, move |miner, until, stop| {
        assert!(miner.hotkey != bad, "boom");
        dialer.open(miner, until, stop, Level::Cancel).map(|open| open.manifest)
    });
    let began = Instant::now();
    let fetched = fetch(&mut fetcher, &miners, 2 * LONG);
    assert!(began.elapsed() < LONG, "nobody waits for it");
    let outcomes: Vec<_> = fetched.iter().map(|fetched| fetched.outcome).collect();
    assert_eq!((outcomes[0], &outcomes[1..]), (O::Skipped, &[O::Ok; 7][..]));
    assert_eq!(fetched[0].error.as_deref(), Some("asking it panicked: boom"));
    let breaker = fetcher.breakers().explain(&bad, Instant::now()).unwrap();
    assert_eq!(breaker.numbers.failed, 0, "{breaker:?}");
    fleet.stop();
}

#[test]
fn a_miner_that_is_named_twice_is_asked_once() {
    let world = World::new();
    let fleet = Fleet::start(world.timer());
    let (one, two) = (fleet.add(C::Offers(1)), fleet.add(C::Offers(2)));
    let fetched = fetch(&mut fetcher(&world, 8), &[one.clone(), two.clone(), one.clone()], LONG);
    assert_eq!((fleet.asked(&one), fleet.asked(&two), fetched.len()), (1, 1, 3));
    assert_eq!(fetched[0], fetched[2]);
    fleet.stop();
}

#[test]
fn who_never_answers_is_left_alone_and_who_does_not_want_us_is_not_blamed() {
    let world = World::new();
    let fleet = Fleet::start(world.timer());
    let miners = [C::Refuses, C::Unknown, C::Offers(1)].map(|conduct| fleet.add(conduct));
    let breaker = BreakerConfig::default();
    let breakers: Breakers<PublicKey> = Breakers::new(BreakersConfig { breaker, ..BreakersConfig::default() });
    let mut fetcher = fetcher(&world, 4).with_breakers(breakers.clone());
    let mut seen = BTreeMap::new();
    for _ in 0..6 {
        for fetched in fetch(&mut fetcher, &miners, 5 * SECOND) {
            *seen.entry((fetched.miner.hotkey, fetched.outcome)).or_insert(0) += 1;
        }
    }
    assert!(seen[&(miners[0].hotkey, O::Skipped)] >= 3, "{seen:?}");
    assert_eq!((seen[&(miners[1].hotkey, O::Unauthorized)], seen[&(miners[2].hotkey, O::Ok)]), (6, 6));
    breakers.force_close(&miners[0].hotkey, Instant::now());
    assert_eq!(fetch(&mut fetcher, &miners[..1], 5 * SECOND)[0].outcome, O::Refused, "asked by hand again");
    fleet.stop();
}
