use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::breaker::{BreakerConfig, BreakerState, Why, Window};
use super::breakers::{Breakers, BreakersConfig, EVENTS_MAX, Event};

const TOOK: Duration = Duration::from_millis(20);
const SECOND: Duration = Duration::from_secs(1);

fn config() -> BreakersConfig {
    let breaker = BreakerConfig { window: Window::Calls(4), least_calls: 2, ..BreakerConfig::default() };
    BreakersConfig { breaker, ..BreakersConfig::default() }
}

/// No self-outage, so that what is looked at is the rest.
fn without_outage() -> BreakersConfig {
    BreakersConfig { outage_share: 2.0, ..config() }
}

fn fail(breakers: &Breakers<u32>, key: u32, now: Instant) {
    breakers.ask(&key, now).unwrap().failed(TOOK);
}

fn succeed(breakers: &Breakers<u32>, key: u32, now: Instant) {
    breakers.ask(&key, now).unwrap().succeeded(TOOK);
}

fn count(breakers: &Breakers<u32>, state: BreakerState) -> usize {
    breakers.numbers().states.get(&state).copied().unwrap_or_default()
}

#[test]
fn at_most_a_share_of_the_peers_is_left_alone_and_always_one_may_be() {
    for (peers, open) in [(3, 1), (10, 1), (30, 3), (100, 10)] {
        let (breakers, now) = (Breakers::new(without_outage()), Instant::now());
        (0..peers).for_each(|key| succeed(&breakers, key, now));
        for key in 0..peers {
            (0..8).take_while(|_| breakers.ask(&key, now).map(|permit| permit.failed(TOOK)).is_ok()).for_each(drop);
        }
        assert_eq!(count(&breakers, BreakerState::Open), open, "of {peers}");
        let events = breakers.take_events();
        let capped = events.iter().filter(|event| matches!(event, Event::Capped { .. })).count();
        assert_eq!(capped, peers as usize - open, "each is told once");
        assert!(breakers.numbers().capped >= capped as u64);
    }
}

#[test]
fn a_breaker_that_closes_makes_room_for_the_next() {
    let (breakers, now) = (Breakers::new(without_outage()), Instant::now());
    (0..4).for_each(|n| fail(&breakers, n % 2, now));
    assert!(breakers.ask(&0, now).is_err());
    fail(&breakers, 1, now);
    let later = now + TOOK + config().breaker.open;
    succeed(&breakers, 0, later);
    fail(&breakers, 1, later);
    assert!(breakers.ask(&1, later).is_err());
    assert!(breakers.ask(&0, later).is_ok());
}

#[test]
fn a_hand_needs_no_room_and_takes_none() {
    let (breakers, now) = (Breakers::new(without_outage()), Instant::now());
    (0..5).for_each(|key| breakers.force_open(&key, now));
    assert_eq!(count(&breakers, BreakerState::ForcedOpen), 5);
    (0..2).for_each(|_| fail(&breakers, 7, now));
    assert_eq!(count(&breakers, BreakerState::Open), 1);
    breakers.reset(&0, now);
    succeed(&breakers, 0, now);
}

/// The outcome of a whole fleet at once: nobody is left alone, it says "it is us", and it ends by itself.
#[test]
fn when_most_fail_at_once_it_is_us() {
    let (breakers, start) = (Breakers::new(config()), Instant::now());
    let mut now = start;
    (0..300).for_each(|n| succeed(&breakers, n % 100, now));
    now += 60 * SECOND;
    for round in 0..20 {
        // All are asked before the first has failed.
        let permits: Vec<_> = (0..100).filter_map(|key| breakers.ask(&key, now).ok()).collect();
        assert_eq!(permits.len(), 100, "round {round}");
        permits.into_iter().for_each(|permit| permit.failed(TOOK));
        now += SECOND;
    }
    let outage = breakers.outage(now).expect("it is us");
    assert_eq!((outage.failing, outage.called, outage.since), (80, 100, start + 60 * SECOND + TOOK));
    assert_eq!(count(&breakers, BreakerState::Closed), 100);
    let events = breakers.take_events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0].to_string(), "it is us: 80 of 100 peers fail at once");

    // One answer among failures is no end; a share is.
    now += SECOND;
    succeed(&breakers, 0, now);
    assert!(breakers.outage(now).is_some());
    (1..25).for_each(|key| succeed(&breakers, key, now));
    assert!(breakers.outage(now).is_none());
    let events = breakers.take_events();
    assert!(matches!(events[..], [Event::OutageEnded { .. }]), "{events:?}");
    // What failed in it is forgotten: it takes as many failures as ever.
    fail(&breakers, 50, now);
    assert!(breakers.outage(now).is_none() && breakers.refuses(&50, now).is_none());
    fail(&breakers, 50, now);
    assert!(breakers.ask(&50, now).is_err());
    assert_eq!(breakers.numbers().outages, 1);
}

#[test]
fn breakers_that_opened_as_it_began_are_closed_and_older_ones_are_not() {
    let (breakers, start) = (Breakers::new(BreakersConfig { open_share: 1.0, ..config() }), Instant::now());
    (0..20).for_each(|key| succeed(&breakers, key, start));
    let bad = start + SECOND;
    for _ in 0..4 {
        let _refused = breakers.ask(&0, bad).map(|permit| permit.failed(TOOK));
    }
    assert!(breakers.ask(&0, bad).is_err());
    // Its probe comes when everybody fails.
    let now = bad + config().breaker.open + 5 * SECOND;
    let permits: Vec<_> =
        (0..20).flat_map(|key| [breakers.ask(&key, now), breakers.ask(&key, now)]).flatten().collect();
    assert_eq!(permits.len(), 39);
    permits.into_iter().for_each(|permit| permit.failed(TOOK));
    assert!(breakers.outage(now).is_some());
    assert_eq!(count(&breakers, BreakerState::Closed), 19);
    assert!(breakers.ask(&0, now).is_err(), "it was bad before");
    let events = breakers.take_events();
    let of_us = |event: &&Event<u32>| matches!(event, Event::Changed { change, .. } if change.why == Why::SelfOutage);
    assert!(events.iter().filter(of_us).count() >= 10, "those that had opened: {events:?}");
}

#[test]
fn many_quick_refusals_before_the_first_answer_are_no_outage() {
    let (breakers, now) = (Breakers::new(config()), Instant::now());
    let mut permits: Vec<_> = (0..100).map(|key| breakers.ask(&key, now).unwrap()).collect();
    permits.drain(..30).for_each(|permit| permit.failed(TOOK));
    assert!(breakers.outage(now + TOOK).is_none());
    permits.into_iter().for_each(|permit| permit.succeeded(2 * SECOND));
    assert_eq!(breakers.numbers().outages, 0);
}

#[test]
fn the_first_peer_that_answers_ends_no_outage() {
    let (breakers, now) = (Breakers::new(config()), Instant::now());
    (0..10).for_each(|key| fail(&breakers, key, now + key * TOOK));
    // Since then only those that are near were heard of.
    let later = breakers.outage(now + 10 * TOOK).expect("it is us").since + SECOND;
    (10..18).for_each(|key| succeed(&breakers, key, later));
    assert!(breakers.outage(later).is_some());
    succeed(&breakers, 18, later);
    assert!(breakers.outage(later).is_none(), "ten are heard of, and nine of them answer");
}

#[test]
fn one_dead_peer_that_is_called_again_and_again_keeps_no_outage_on() {
    let (breakers, now) = (Breakers::new(config()), Instant::now());
    (0..10).for_each(|key| fail(&breakers, key, now));
    assert!(breakers.outage(now + TOOK).is_some());
    // The others are not called any more.
    for second in 1..=30 {
        fail(&breakers, 0, now + second * SECOND);
    }
    let end = now + TOOK + config().outage_window;
    assert!(breakers.outage(end).is_none());
    fail(&breakers, 0, end);
    fail(&breakers, 0, end);
    assert!(breakers.ask(&0, end).is_err(), "what it does counts again");
}

#[test]
fn few_peers_are_no_crowd() {
    let (breakers, now) = (Breakers::new(config()), Instant::now());
    (0..9).for_each(|key| fail(&breakers, key, now));
    assert!(breakers.outage(now).is_none());
    fail(&breakers, 9, now);
    assert!(breakers.outage(now).is_some());
    // Nobody calls any more: it does not last for ever.
    assert!(breakers.outage(now + TOOK + config().outage_window).is_none());
}

#[test]
fn a_permit_that_is_dropped_or_lost_in_a_panic_frees_its_probe() {
    let (breakers, now) = (Breakers::new(without_outage()), Instant::now());
    (0..2).for_each(|_| fail(&breakers, 1, now));
    let later = now + TOOK + config().breaker.open;
    drop(breakers.ask(&1, later).unwrap());
    breakers.ask(&1, later).unwrap().ignored();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _probe = breakers.ask(&1, later).unwrap();
        panic!("boom");
    }));
    assert!(caught.is_err());
    let probe = breakers.ask(&1, later).unwrap();
    assert_eq!(breakers.refuses(&1, later).unwrap().probes_out, 1);
    probe.succeeded(TOOK);
    assert!(breakers.refuses(&1, later).is_none());
}

#[test]
fn peers_are_bounded_and_who_was_not_called_for_longest_goes() {
    let (breakers, now) = (Breakers::new(BreakersConfig { peers_max: 3, ..without_outage() }), Instant::now());
    (0..2).for_each(|_| fail(&breakers, 0, now));
    let late = breakers.ask(&1, now).unwrap();
    for key in 2..10 {
        succeed(&breakers, key, now + key * SECOND);
    }
    let known: Vec<u32> = breakers.explain_all(now + 9 * SECOND).into_iter().map(|(key, _)| key).collect();
    assert_eq!(known, [0, 1, 9], "the open one and the one that is called stay");
    breakers.retain(|key| *key == 9);
    // Another peer of the same key, whose breaker a late permit of the first does not touch.
    let again = breakers.ask(&1, now).unwrap();
    late.failed(TOOK);
    assert_eq!(breakers.explain(&1, now).unwrap().numbers.calls, 0);
    again.succeeded(TOOK);
    assert_eq!(breakers.explain(&1, now).unwrap().numbers.calls, 1);
}

#[test]
fn events_that_nobody_takes_are_bounded() {
    let (breakers, now) = (Breakers::new(config()), Instant::now());
    (0..EVENTS_MAX + 5).for_each(|_| breakers.reset(&1, now));
    assert_eq!((breakers.take_events().len(), breakers.numbers().events_lost), (EVENTS_MAX, 5));
}

#[test]
fn numbers_that_are_no_good_are_all_named() {
    let config = BreakersConfig { peers_max: 0, open_share: 2.0, outage_share: 0.2, outage_least: 0, ..config() };
    assert_eq!(config.problems().len(), 4, "{:?}", config.problems());
    assert!(BreakersConfig::default().problems().is_empty());
}
