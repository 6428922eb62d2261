use std::time::{Duration, Instant};

use super::budget::{BudgetConfig, RetryBudget};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_fleet_that_only_fails_is_asked_again_at_the_minimum_rate() {
    let start = Instant::now();
    let config = BudgetConfig { per_success: 0.2, per_second: 2.0, most: 10.0 };
    let budget = RetryBudget::new(config, start);
    // 1,000 failures in each of 60 seconds.
    let moments = (0..60_000).map(|n| start + Duration::from_millis(n));
    let granted = moments.filter(|now| budget.withdraw(*now)).count();
    assert!((10 + 2 * 59..=10 + 2 * 60).contains(&granted), "{granted}");
    let numbers = budget.numbers(start + 60 * SECOND);
    assert_eq!((numbers.granted, numbers.granted + numbers.refused), (granted as u64, 60_000));
}

#[test]
fn successes_pay_for_second_tries_up_to_the_most() {
    let now = Instant::now();
    let budget = RetryBudget::new(BudgetConfig { per_success: 0.1, per_second: 0.0, most: 2.0 }, now);
    let taken = || std::iter::from_fn(|| budget.withdraw(now).then_some(())).count();
    assert_eq!(taken(), 2);
    (0..10).for_each(|_| budget.succeeded(now));
    assert_eq!(taken(), 1);
    (0..1000).for_each(|_| budget.succeeded(now));
    assert_eq!(taken(), 2, "no more than the most is saved up");
    assert_eq!(budget.numbers(now + 3600 * SECOND).left, 0.0, "time pays nothing here");
}

#[test]
fn a_moment_that_comes_late_is_not_paid_twice() {
    let start = Instant::now();
    let budget = RetryBudget::new(BudgetConfig { per_success: 0.0, per_second: 1.0, most: 1.0 }, start);
    assert!(budget.withdraw(start));
    assert!(budget.withdraw(start + SECOND));
    // A thread that took its `now` before the other one.
    assert!(!budget.withdraw(start + SECOND / 2));
    assert!(!budget.withdraw(start + SECOND));
    assert!(budget.withdraw(start + 2 * SECOND));
}

#[test]
fn numbers_that_are_no_good_are_named_and_do_no_harm() {
    let config = BudgetConfig { per_success: f64::NAN, per_second: -1.0, most: 0.0 };
    let problems = config.problems();
    assert_eq!(problems.len(), 3);
    assert_eq!(problems[1], "per_second is -1, it must be at least 0");
    assert!(BudgetConfig::default().problems().is_empty());
    let now = Instant::now();
    let budget = RetryBudget::new(config, now);
    assert!(budget.withdraw(now) && !budget.withdraw(now + 3600 * SECOND));
}
