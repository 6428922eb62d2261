//! How often tasks of one name may begin: `10/m`, and those that wait for their turn. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;

/// So many in a time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rate {
    /// As it was given.
    pub text: String,
    /// From one to the next.
    interval: Duration,
}

impl Rate {
    /// A rate as Celery has it: `10/s`, `10/m`, `10/h` or a number each second; zero and nothing are no limit.
    ///
    /// # Errors
    /// What it is and what would be right.
    pub(super) fn read(value: &Value) -> Result<Option<Self>, String> {
        let text = match value {
            Value::Null => return Ok(None),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let (number, seconds) = match text.split_once('/') {
            None if text.is_empty() => return Ok(None),
            None | Some((_, "s")) => (text.split('/').next().unwrap_or(""), 1.0),
            Some((number, "m")) => (number, 60.0),
            Some((number, "h")) => (number, 3600.0),
            Some(_) => ("", 0.0),
        };
        let number = number.trim().parse::<f64>().ok().filter(|number| *number >= 0.0);
        let shown: String = text.chars().take(32).collect();
        let Some(number) = number else {
            return Err(format!("{shown:?} is no rate; use 10/s, 10/m or 10/h"));
        };
        if number == 0.0 {
            return Ok(None);
        }
        // Less often than each 30 years is never.
        let interval = Duration::try_from_secs_f64(seconds / number).unwrap_or(FAR).min(FAR);
        Ok(Some(Self { text: shown, interval }))
    }
}

const FAR: Duration = Duration::from_secs(1_000_000_000);

/// The turns of the tasks of one name.
#[derive(Debug, Default)]
pub(super) struct Turns {
    rate: Option<Rate>,
    /// When the next may begin, if not now.
    next: Option<Instant>,
    /// Delivery tags of those that wait, the first in front.
    waiting: VecDeque<String>,
}

impl Turns {
    pub(super) fn rate(&self) -> Option<&Rate> {
        self.rate.as_ref()
    }

    /// Sets another rate. Those that wait keep their order.
    pub(super) fn set(&mut self, rate: Option<Rate>, now: Instant) {
        // Whoever begins next will have waited as long as the new rate asks.
        let (old, new) = (interval(&self.rate), interval(&rate));
        self.next = self.next.map(|next| next.checked_sub(old).unwrap_or(now) + new);
        self.rate = rate;
    }

    /// Whether a task may begin now; else it waits.
    pub(super) fn offer(&mut self, tag: &str, now: Instant) -> bool {
        if self.waiting.is_empty() && self.is_open(now) {
            self.begin(now);
            return true;
        }
        self.waiting.push_back(tag.to_owned());
        false
    }

    /// The next one that may begin now, of those that still want to.
    pub(super) fn take(&mut self, now: Instant, wants: impl Fn(&str) -> bool) -> Option<String> {
        while self.waiting.front().is_some_and(|tag| !wants(tag)) {
            self.waiting.pop_front();
        }
        if !self.is_open(now) {
            return None;
        }
        let tag = self.waiting.pop_front()?;
        self.begin(now);
        Some(tag)
    }

    /// When the first of those that wait may begin.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.next.unwrap_or(now))
    }

    fn is_open(&self, now: Instant) -> bool {
        self.rate.is_none() || self.next.is_none_or(|next| next <= now)
    }

    fn begin(&mut self, now: Instant) {
        let interval = interval(&self.rate);
        // Whoever begins a little late, because a timer is not exact, does not put off those behind.
        let base = self.next.filter(|next| now.saturating_duration_since(*next) < interval).unwrap_or(now);
        self.next = self.rate.is_some().then(|| base + interval);
    }
}

fn interval(rate: &Option<Rate>) -> Duration {
    rate.as_ref().map_or(Duration::ZERO, |rate| rate.interval)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rate_is_read_as_celery_reads_it() {
        let interval = |value: Value| Rate::read(&value).unwrap().map(|rate| rate.interval.as_secs_f64());
        for (value, expected) in [
            (json!("10/s"), Some(0.1)),
            (json!("30/m"), Some(2.0)),
            (json!("2/h"), Some(1800.0)),
            (json!("0.5"), Some(2.0)),
            (json!(4), Some(0.25)),
            (json!("1e-300/h"), Some(1e9)),
            (json!(null), None),
            (json!(""), None),
            (json!("0/m"), None),
            (json!(0), None),
        ] {
            assert_eq!(interval(value.clone()), expected, "{value}");
        }
        for bad in [json!("10/d"), json!("x/s"), json!("-1/s"), json!("nan"), json!([1]), json!("/")] {
            let why = Rate::read(&bad).unwrap_err();
            assert!(why.contains("is no rate; use 10/s, 10/m or 10/h"), "{why}");
        }
    }

    #[test]
    fn tasks_begin_one_by_one_in_their_order() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut turns = Turns::default();
        assert!(turns.offer("a", start) && turns.offer("b", start), "there is no limit");
        turns.set(Rate::read(&json!("1/s")).unwrap(), start);
        assert!(turns.offer("c", start), "nothing has begun under the limit");
        assert!(!turns.offer("d", start) && !turns.offer("e", start) && !turns.offer("f", start));
        assert_eq!(turns.next(start), Some(start + second));
        assert_eq!(turns.take(start, |_| true), None);
        let late = start + second + Duration::from_millis(5);
        assert_eq!(turns.take(late, |tag| tag != "d").as_deref(), Some("e"), "one that is gone takes no turn");
        assert_eq!(turns.next(late), Some(start + 2 * second), "lateness does not add up");
        turns.set(Rate::read(&json!("2/s")).unwrap(), late);
        assert_eq!(turns.next(late), Some(start + second + second / 2), "a higher rate counts at once");
        turns.set(None, late);
        assert_eq!(turns.take(late, |_| true).as_deref(), Some("f"));
        assert_eq!((turns.next(late), turns.offer("g", late)), (None, true));
    }

    #[test]
    fn an_hour_without_a_task_does_not_let_many_begin_at_once() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut turns = Turns::default();
        turns.set(Rate::read(&json!("1/s")).unwrap(), start);
        assert!(turns.offer("a", start));
        let later = start + 3600 * second;
        assert!(turns.offer("b", later) && !turns.offer("c", later));
        assert_eq!(turns.next(later), Some(later + second));
    }
}
