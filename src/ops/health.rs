//! What is up, what is not, what is stuck, and why. Pure apart from one lock.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::redact;
use crate::base::lock::lock;

/// The parts of a process that must be up for it to be ready; clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, PartEntry>>>);

#[derive(Debug, Default)]
struct PartEntry {
    down: Option<String>,
    was_up: bool,
    due: Option<Instant>,
}

/// How one part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PartState {
    /// It works.
    Up,
    /// It does not work now, and goes on trying: the process is not ready.
    Down,
    /// It has not made the progress that it had promised: the process is not alive.
    Stuck,
}

impl fmt::Display for PartState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Stuck => "stuck",
        })
    }
}

/// One part at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: PartState,
    /// Why it is not up.
    pub why: Option<String>,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.why.as_deref().unwrap_or("up"))
    }
}

impl Health {
    /// No parts: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// The part works.
    pub fn up(&self, part: &'static str) {
        let mut parts = lock(&self.0);
        let entry = parts.entry(part).or_default();
        entry.down = None;
        entry.was_up = true;
    }

    /// The part does not work; `why` is shown to the operator, without passwords.
    pub fn down(&self, part: &'static str, why: impl Into<String>) {
        lock(&self.0).entry(part).or_default().down = Some(redact::secrets(&why.into()).into_owned());
    }

    /// The watch over a part that promises progress; it is up unless reported otherwise.
    pub fn pulse(&self, part: &'static str) -> Pulse {
        lock(&self.0).entry(part).or_default().was_up = true;
        Pulse { health: self.clone(), part }
    }

    /// All parts by name.
    pub fn parts(&self, now: Instant) -> Vec<Part> {
        let parts = lock(&self.0);
        let part = |(name, entry): (&&'static str, &PartEntry)| {
            let late = entry.due.filter(|due| *due <= now).map(|due| (now - due).as_secs());
            let (state, why) = match (late, &entry.down) {
                (Some(seconds), _) => (PartState::Stuck, Some(format!("should have made progress {seconds} s ago"))),
                (None, Some(why)) => (PartState::Down, Some(why.clone())),
                (None, None) => (PartState::Up, None),
            };
            Part { name: (*name).to_owned(), state, why }
        };
        parts.iter().map(part).collect()
    }

    /// Whether each part has been up at least once.
    pub fn has_started(&self) -> bool {
        lock(&self.0).values().all(|entry| entry.was_up)
    }
}

/// The watch over one part. It needs no wake-ups: an idle part promises nothing, and one that works promises to be done
/// by a deadline, which is looked at when somebody asks for the process' health.
#[derive(Debug, Clone)]
pub struct Pulse {
    health: Health,
    part: &'static str,
}

impl Pulse {
    /// The part has something to do and is done by `deadline`; if it has promised something already, the earlier
    /// promise stands until [`Pulse::done`].
    pub fn begin(&self, deadline: Instant) {
        lock(&self.health.0).entry(self.part).or_default().due.get_or_insert(deadline);
    }

    /// The part has made progress; it waits for something to do, for ever if need be.
    pub fn done(&self) {
        lock(&self.health.0).entry(self.part).or_default().due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn problems(health: &Health, now: Instant) -> Vec<String> {
        let parts = health.parts(now);
        parts.iter().filter(|part| part.state != PartState::Up).map(Part::to_string).collect()
    }

    #[test]
    fn it_is_ready_when_no_part_is_down() {
        let (health, now) = (Health::new(), Instant::now());
        assert!(problems(&health, now).is_empty() && health.has_started());
        health.down("store", "disk full");
        health.clone().up("link");
        assert_eq!(problems(&health, now), ["store: disk full"]);
        assert!(!health.has_started());
        health.up("store");
        assert!(problems(&health, now).is_empty());
        health.down("store", "disk full");
        assert!(health.has_started(), "it has been up once");
    }

    #[test]
    fn who_promises_progress_and_makes_none_is_stuck() {
        let (health, start) = (Health::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let pulse = health.pulse("loop");
        assert!(problems(&health, at(1_000_000)).is_empty(), "an idle part is well");
        pulse.begin(at(5));
        assert!(problems(&health, at(4)).is_empty());
        // A later promise does not hide the broken one.
        pulse.begin(at(100));
        assert_eq!(problems(&health, at(7)), ["loop: should have made progress 2 s ago"]);
        health.down("loop", "x");
        assert_eq!(health.parts(at(7))[0].state, PartState::Stuck, "worse than down");
        health.up("loop");
        pulse.done();
        assert!(problems(&health, at(7)).is_empty());
        pulse.begin(at(8));
        assert_eq!(problems(&health, at(8)).len(), 1);
    }
}
