//! The ids of revoked tasks, as every worker remembers them, and the stamps by which tasks were revoked. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::base::limits::{CELERY_REVOKED, CELERY_REVOKED_ID_BYTES};

/// How long an id is remembered; Celery's own number.
const REMEMBERED: Duration = Duration::from_secs(3 * 3600);

/// The stamps of an object of headers, each with one or a list of them, as texts that tell each from all others.
pub(super) fn stamps(headers: &Map<String, Value>) -> Vec<String> {
    let each = |(header, stamp): (&String, &Value)| {
        let stamps = stamp.as_array().map_or_else(|| std::slice::from_ref(stamp), Vec::as_slice);
        stamps.iter().map(|stamp| format!("{header}\0{stamp}")).collect::<Vec<_>>()
    };
    headers.iter().flat_map(each).collect()
}

/// Ids of revoked tasks: the newest [`CELERY_REVOKED`] of the last three hours.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    since: HashMap<String, Instant>,
    order: VecDeque<(Instant, String)>,
}

impl Revoked {
    /// Remembers an id, unless it is too long for one: whoever can speak to the workers may say anything.
    pub(super) fn add(&mut self, id: &str, now: Instant) {
        if id.len() > CELERY_REVOKED_ID_BYTES {
            return;
        }
        self.since.insert(id.to_owned(), now);
        self.order.push_back((now, id.to_owned()));
        self.purge(now);
    }

    /// Whether the id was revoked.
    pub(super) fn contains(&mut self, id: &str, now: Instant) -> bool {
        if self.is_empty() {
            return false;
        }
        self.purge(now);
        self.since.contains_key(id)
    }

    /// Whether none is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// The ids, the oldest first.
    pub(super) fn ids(&mut self, now: Instant) -> Vec<String> {
        self.purge(now);
        let newest = |(at, id): &&(Instant, String)| self.since.get(id) == Some(at);
        self.order.iter().filter(newest).map(|(_, id)| id.clone()).collect()
    }

    fn purge(&mut self, now: Instant) {
        while let Some((at, id)) = self.order.front() {
            let old = now.saturating_duration_since(*at) > REMEMBERED;
            if !old && self.order.len() <= CELERY_REVOKED {
                return;
            }
            // It may have been revoked again since.
            if self.since.get(id) == Some(at) {
                self.since.remove(id);
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_forgotten_by_age_and_by_number_but_not_if_revoked_again() {
        let start = Instant::now();
        let mut revoked = Revoked::default();
        revoked.add("a", start);
        revoked.add("b", start);
        let longest = "c".repeat(CELERY_REVOKED_ID_BYTES);
        revoked.add(&longest, start);
        revoked.add(&format!("{longest}c"), start);
        assert_eq!(revoked.ids(start), ["a", "b", &longest]);
        let later = start + REMEMBERED;
        revoked.add("a", later);
        assert!(revoked.contains("b", later));
        let end = later + Duration::from_secs(1);
        assert!(revoked.contains("a", end) && !revoked.contains("b", end));
        assert_eq!(revoked.ids(end), ["a"]);
        for n in 0..CELERY_REVOKED {
            revoked.add(&n.to_string(), end);
        }
        assert!(!revoked.contains("a", end));
        assert_eq!(
            (revoked.ids(end).len(), revoked.since.len(), revoked.order.len()),
            (CELERY_REVOKED, CELERY_REVOKED, CELERY_REVOKED)
        );
    }
}
