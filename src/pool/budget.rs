//! How many second tries all calls together may make, so that a fleet that fails is not asked three times as often as
//! one that works. The numbers change under one lock; time is an argument.

use std::time::{Duration, Instant};

use crate::base::lock::lock;
use crate::base::sync::{Arc, Mutex};

/// The numbers of a [`RetryBudget`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetConfig {
    /// Second tries that one success pays for: 0.2 is one for five successes.
    pub per_success: f64,
    /// Second tries for each second that passes, so that a program that calls rarely may try again at all.
    pub per_second: f64,
    /// The most that is saved up, in second tries. It is what a new budget has.
    pub most: f64,
}

impl Default for BudgetConfig {
    /// One for five successes, one each second, at most 100 saved up.
    fn default() -> Self {
        Self { per_success: 0.2, per_second: 1.0, most: 100.0 }
    }
}

impl BudgetConfig {
    /// What is wrong with the numbers, all at once.
    pub fn problems(&self) -> Vec<String> {
        let numbers =
            [("per_success", self.per_success, 0.0), ("per_second", self.per_second, 0.0), ("most", self.most, 1.0)];
        let wrong = numbers.into_iter().filter(|(_, value, least)| !value.is_finite() || value < least);
        wrong.map(|(name, value, least)| format!("{name} is {value}, it must be at least {least}")).collect()
    }
}

/// A bounded number of second tries, paid for by successes and by time; clones are the same budget.
///
/// In any time `t` with `s` successes it grants at most `most + per_second × t + per_success × s`.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use phalanx::pool::{BudgetConfig, RetryBudget};
///
/// let now = Instant::now();
/// let budget = RetryBudget::new(BudgetConfig { per_success: 0.5, per_second: 0.1, most: 1.0 }, now);
/// assert!(budget.withdraw(now));
/// assert!(!budget.withdraw(now), "it is spent");
/// budget.succeeded(now);
/// budget.succeeded(now);
/// assert!(budget.withdraw(now), "two successes have paid for it");
/// assert!(budget.withdraw(now + Duration::from_secs(10)), "and ten seconds for another");
/// ```
#[derive(Debug, Clone)]
pub struct RetryBudget {
    config: BudgetConfig,
    account: Arc<Mutex<Account>>,
}

#[derive(Debug)]
struct Account {
    tokens: f64,
    /// Until when time has been paid out. It never goes back, so no second is paid for twice.
    paid_until: Instant,
    numbers: BudgetNumbers,
}

/// What a [`RetryBudget`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BudgetNumbers {
    /// Second tries that it would grant now.
    pub left: f64,
    /// Second tries that it has granted.
    pub granted: u64,
    /// Second tries that it has refused.
    pub refused: u64,
}

/// What is taken for one second try, less what adding fractions may have lost: ten times 0.1 is not quite one.
const ONE: f64 = 1.0 - 1e-9;

impl RetryBudget {
    /// A full budget. Numbers that are no good ([`BudgetConfig::problems`]) count as the nearest that are.
    pub fn new(config: BudgetConfig, now: Instant) -> Self {
        let at_least = |value: f64, least: f64| if value.is_finite() { value.max(least) } else { least };
        let config = BudgetConfig {
            per_success: at_least(config.per_success, 0.0),
            per_second: at_least(config.per_second, 0.0),
            most: at_least(config.most, 1.0),
        };
        let account = Account { tokens: config.most, paid_until: now, numbers: BudgetNumbers::default() };
        Self { config, account: Arc::new(Mutex::new(account)) }
    }

    /// A call has succeeded, at its first try or a later one.
    pub fn succeeded(&self, now: Instant) {
        let mut account = lock(&self.account);
        account.pay_time(&self.config, now);
        account.tokens = (account.tokens + self.config.per_success).min(self.config.most);
    }

    /// Takes one second try, if there is one. Looking and taking is one step: no two callers get the same one.
    #[must_use = "without a grant there is no second try"]
    pub fn withdraw(&self, now: Instant) -> bool {
        let mut account = lock(&self.account);
        account.pay_time(&self.config, now);
        if account.tokens < ONE {
            account.numbers.refused += 1;
            return false;
        }
        account.tokens = (account.tokens - 1.0).max(0.0);
        account.numbers.granted += 1;
        true
    }

    /// What it has done. What is left may be gone when the caller looks at it: [`RetryBudget::withdraw`] decides.
    pub fn numbers(&self, now: Instant) -> BudgetNumbers {
        let mut account = lock(&self.account);
        account.pay_time(&self.config, now);
        BudgetNumbers { left: account.tokens, ..account.numbers }
    }
}

impl Account {
    fn pay_time(&mut self, config: &BudgetConfig, now: Instant) {
        let passed = now.saturating_duration_since(self.paid_until);
        if passed > Duration::ZERO {
            self.tokens = (self.tokens + config.per_second * passed.as_secs_f64()).min(config.most);
            self.paid_until = now;
        }
    }
}
