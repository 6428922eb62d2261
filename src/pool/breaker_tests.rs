use std::time::{Duration, Instant};

use super::breaker::{Breaker, BreakerConfig, BreakerState, CallNumbers, TRANSITIONS, Why, Window};
use super::window::{Calls, PARTS};

const TOOK: Duration = Duration::from_millis(20);
const SECOND: Duration = Duration::from_secs(1);

fn config() -> BreakerConfig {
    BreakerConfig { window: Window::Calls(4), least_calls: 3, ..BreakerConfig::default() }
}

/// A breaker, and its hand on the clock.
struct Scene {
    breaker: Breaker,
    config: BreakerConfig,
    now: Instant,
}

impl Scene {
    fn new(config: BreakerConfig) -> Self {
        assert_eq!(config.problems(), [] as [String; 0]);
        let now = Instant::now();
        Self { breaker: Breaker::new(config, now), config, now }
    }

    /// One call for each letter: `s`ucceeds, `f`ails, s`l`owly succeeds, `d`ropped. Gives the state after each.
    fn calls(&mut self, calls: &str) -> Vec<&'static str> {
        let mut states = Vec::new();
        for call in calls.chars() {
            let ticket = self.breaker.ask(self.now).unwrap();
            match call {
                's' => self.breaker.succeeded(ticket, self.now, TOOK),
                'f' => self.breaker.failed(ticket, self.now, TOOK),
                'l' => self.breaker.succeeded(ticket, self.now, self.config.slow_call),
                _ => self.breaker.ignored(ticket),
            }
            states.push(self.breaker.state().name());
        }
        states
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn state(&mut self) -> &'static str {
        self.breaker.explain(self.now).state.name()
    }

    fn changes(&mut self) -> Vec<(&'static str, Why)> {
        self.breaker.take_transitions().map(|change| (change.to.name(), change.why)).collect()
    }
}

#[test]
fn a_window_of_calls_opens_at_the_rate_and_not_before_the_least() {
    for (calls, opens_at) in
        [("ff", None), ("sff", Some(3)), ("ssfsf", Some(5)), ("ssfssssfsss", None), ("ddddff", None)]
    {
        let mut scene = Scene::new(config());
        let states = scene.calls(calls);
        assert_eq!(states.iter().position(|state| *state == "open").map(|at| at + 1), opens_at, "{calls}: {states:?}");
    }
}

#[test]
fn slow_calls_open_it_although_they_succeed() {
    let mut scene = Scene::new(BreakerConfig { slow_rate: 0.5, failure_rate: 2.0, ..config() });
    assert_eq!(scene.calls("ffslsl").last(), Some(&"open"));
    assert_eq!(scene.changes(), [("open", Why::SlowCalls)]);
    let mut never = Scene::new(BreakerConfig { slow_rate: 2.0, failure_rate: 2.0, ..config() });
    assert_eq!(never.calls("lfllfl").last(), Some(&"closed"));
}

#[test]
fn a_window_of_time_forgets_what_is_over() {
    let window = Window::Time(10 * SECOND);
    let mut scene = Scene::new(BreakerConfig { window, least_calls: 3, failure_rate: 0.5, ..config() });
    scene.calls("ff");
    scene.pass(11 * SECOND);
    assert_eq!(scene.calls("ff").last(), Some(&"closed"), "two are over, so there are fewer than the least");
    scene.pass(5 * SECOND);
    assert_eq!(scene.breaker.explain(scene.now).numbers, CallNumbers { calls: 2, failed: 2, slow: 0 });
    assert_eq!(scene.calls("s").last(), Some(&"open"), "a success may make the least number full");
}

#[test]
fn a_window_of_time_holds_a_bounded_number_of_parts() {
    let mut scene = Scene::new(BreakerConfig { window: Window::Time(10 * SECOND), failure_rate: 2.0, ..config() });
    for _ in 0..10_000 {
        scene.calls("fs");
        scene.pass(Duration::from_millis(7));
    }
    let Calls::Recent { parts, .. } = &scene.breaker.calls else { panic!("a window of time") };
    assert!(parts.len() <= PARTS as usize + 1, "{}", parts.len());
    let numbers = scene.breaker.explain(scene.now).numbers;
    // 10 s of two calls each 7 ms, less a tenth at most.
    assert!((2571..=2858).contains(&numbers.calls) && numbers.failed * 2 == numbers.calls, "{numbers:?}");
}

#[test]
fn openings_in_a_row_take_longer_up_to_the_most() {
    let (open, open_max) = (10 * SECOND, 60 * SECOND);
    let mut scene = Scene::new(BreakerConfig { open, open_max, ..config() });
    scene.calls("fff");
    let mut times = Vec::new();
    for _ in 0..5 {
        let refused = scene.breaker.ask(scene.now).unwrap_err();
        let time = refused.until.unwrap() - scene.now;
        times.push(time.as_secs());
        scene.pass(time - SECOND);
        assert_eq!(scene.state(), "open");
        scene.pass(SECOND);
        scene.calls("f");
    }
    assert_eq!(times, [10, 20, 40, 60, 60]);
    scene.pass(open_max);
    assert_eq!(scene.calls("s"), ["closed"]);
    assert_eq!(scene.calls("fff").last(), Some(&"open"));
    assert_eq!(scene.breaker.ask(scene.now).unwrap_err().until, Some(scene.now + open), "it begins anew");
}

#[test]
fn half_open_lets_so_many_through_and_is_decided_by_them() {
    for (outcomes, state) in
        [("sss", "closed"), ("ssl", "closed"), ("sff", "open"), ("ff", "open"), ("ss", "half_open")]
    {
        let mut scene = Scene::new(BreakerConfig { half_open_calls: 3, ..config() });
        scene.calls("fff");
        scene.pass(scene.config.open);
        let tickets: Vec<_> = (0..3).map(|_| scene.breaker.ask(scene.now).unwrap()).collect();
        let refused = scene.breaker.ask(scene.now).unwrap_err();
        assert_eq!((refused.state, refused.until), (BreakerState::HalfOpen, None));
        for (ticket, outcome) in tickets.into_iter().zip(outcomes.chars()) {
            let took = if outcome == 'l' { scene.config.slow_call } else { TOOK };
            match outcome {
                'f' => scene.breaker.failed(ticket, scene.now, took),
                _ => scene.breaker.succeeded(ticket, scene.now, took),
            }
        }
        assert_eq!(scene.state(), state, "{outcomes}");
    }
}

#[test]
fn a_probe_that_is_given_back_is_free_for_another() {
    let mut scene = Scene::new(config());
    scene.calls("fff");
    scene.pass(scene.config.open);
    for _ in 0..100 {
        assert_eq!(scene.calls("d"), ["half_open"]);
    }
    // However long nobody asked, a new probe has its whole time.
    scene.pass(10 * scene.config.half_open_max);
    let probe = scene.breaker.ask(scene.now).unwrap();
    scene.pass(scene.config.half_open_max - SECOND);
    scene.breaker.succeeded(probe, scene.now, TOOK);
    assert_eq!(scene.state(), "closed");
}

#[test]
fn a_probe_that_is_lost_opens_it_again_for_as_long_as_before() {
    let mut scene = Scene::new(config());
    scene.calls("fff");
    scene.pass(scene.config.open);
    let lost = scene.breaker.ask(scene.now).unwrap();
    assert_eq!(scene.breaker.explain(scene.now).until, Some(scene.now + scene.config.half_open_max));
    scene.pass(scene.config.half_open_max);
    let refused = scene.breaker.ask(scene.now).unwrap_err();
    assert_eq!((refused.until, refused.why), (Some(scene.now + scene.config.open), Some(Why::ProbesLost)));
    // What it says after that is of the past.
    scene.breaker.succeeded(lost, scene.now, TOOK);
    assert_eq!(scene.state(), "open");
    scene.pass(scene.config.open);
    assert_eq!(scene.calls("s"), ["closed"]);
}

#[test]
fn an_answer_from_before_it_opened_tells_nothing_new() {
    let mut scene = Scene::new(config());
    let late: Vec<_> = (0..5).map(|_| scene.breaker.ask(scene.now).unwrap()).collect();
    scene.calls("fff");
    scene.pass(scene.config.open);
    let probe = scene.breaker.ask(scene.now).unwrap();
    for ticket in late {
        scene.breaker.succeeded(ticket, scene.now, TOOK);
    }
    assert_eq!(scene.state(), "half_open");
    scene.breaker.failed(probe, scene.now, TOOK);
    assert_eq!(scene.state(), "open");
}

#[test]
fn a_hand_overrules_the_calls_until_it_lets_go() {
    let mut scene = Scene::new(config());
    scene.breaker.force_open(scene.now);
    scene.pass(3600 * SECOND);
    let refused = scene.breaker.ask(scene.now).unwrap_err();
    assert_eq!(refused.to_string(), "its breaker is forced_open: by hand");
    scene.breaker.force_close(scene.now);
    assert_eq!(scene.calls("ffffffff").last(), Some(&"forced_closed"));
    scene.breaker.reset(scene.now);
    assert_eq!(scene.calls("fff").last(), Some(&"open"));
    scene.breaker.reset(scene.now);
    assert_eq!(scene.calls("ff").last(), Some(&"closed"));
    let states: Vec<_> = scene.changes().into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, ["forced_open", "forced_closed", "closed", "open", "closed"]);
}

#[test]
fn it_explains_itself_with_its_numbers() {
    let mut scene = Scene::new(config());
    assert_eq!(scene.breaker.explain(scene.now).line(scene.now), "closed for 0.0ns (0 of 0 calls failed, 0 slow)");
    scene.calls("sff");
    scene.pass(10 * SECOND);
    assert_eq!(
        scene.breaker.explain(scene.now).line(scene.now),
        "open for 10.0s, 20.0s left: too many calls failed (2 of 3 calls failed, 0 slow)"
    );
    scene.pass(20 * SECOND);
    scene.calls("f");
    assert_eq!(
        scene.breaker.explain(scene.now).line(scene.now),
        "open for 0.0ns, 60.0s left: too many calls failed (1 of 1 calls failed, 0 slow), opened 2 times in a row"
    );
    let change = scene.breaker.take_transitions().next().unwrap().to_string();
    assert_eq!(change, "closed -> open: too many calls failed (2 of 3 calls failed, 0 slow), for 30.0s");
}

#[test]
fn transitions_that_nobody_takes_are_bounded() {
    let mut scene = Scene::new(config());
    (0..1000).for_each(|_| scene.breaker.reset(scene.now));
    assert_eq!(scene.breaker.take_transitions().count(), TRANSITIONS);
}

#[test]
fn numbers_that_are_no_good_are_all_named() {
    let config = BreakerConfig {
        window: Window::Calls(5),
        least_calls: 6,
        failure_rate: 0.0,
        slow_rate: f64::NAN,
        open: 2 * SECOND,
        open_max: SECOND,
        half_open_calls: 0,
        ..BreakerConfig::default()
    };
    let problems = config.problems();
    assert_eq!(problems.len(), 5, "{problems:?}");
    assert_eq!(problems[0], "least_calls is 6, more than the window of 5 calls");
    assert!(BreakerConfig::default().problems().is_empty());
}
