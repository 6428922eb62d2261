//! Other workers that have our name: what remote control asks of it, all of them answer. Pure.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Workers that were seen under our name.
#[derive(Debug, Default)]
pub(super) struct Namesakes {
    /// Since when each is seen without a break.
    since: HashMap<String, Instant>,
    /// Those that are known to live.
    told: BTreeSet<String>,
}

impl Namesakes {
    /// Takes in the ids that a look has found, and gives those that are news. One that has died is seen no longer than
    /// for the time to live, so the worker that was here before is none.
    pub(super) fn seen(&mut self, ids: Vec<String>, lifetime: Duration, now: Instant) -> Vec<String> {
        self.since.retain(|id, _| ids.contains(id));
        self.told.retain(|id| ids.contains(id));
        let mut new = Vec::new();
        for id in ids {
            let since = *self.since.entry(id.clone()).or_insert(now);
            if now.saturating_duration_since(since) > lifetime && self.told.insert(id.clone()) {
                new.push(id);
            }
        }
        new
    }

    /// Those that live.
    pub(super) fn told(&self) -> Vec<String> {
        self.told.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_outlives_its_time_is_told_once_and_forgotten_when_it_has_gone() {
        let (start, lifetime) = (Instant::now(), Duration::from_secs(30));
        let at = |seconds| start + Duration::from_secs(seconds);
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let mut namesakes = Namesakes::default();
        assert!(namesakes.seen(ids(&["dead", "other"]), lifetime, at(0)).is_empty());
        assert!(namesakes.seen(ids(&["dead", "other"]), lifetime, at(30)).is_empty());
        assert_eq!(namesakes.seen(ids(&["other"]), lifetime, at(40)), ["other"]);
        assert!(namesakes.seen(ids(&["other"]), lifetime, at(50)).is_empty());
        assert_eq!(namesakes.told(), ["other"]);
        assert!(namesakes.seen(ids(&["dead"]), lifetime, at(60)).is_empty() && namesakes.told().is_empty());
    }
}
