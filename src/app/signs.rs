//! Whether a process that its service manager watches gives a sign of life, and what it says of itself. Pure.

use crate::ops::part::{Part, PartState};

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Signs {
    stuck: Vec<String>,
    status: String,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// All loops make progress.
    pub(super) is_alive: bool,
    /// A new text for people.
    pub(super) status: Option<String>,
    /// Loops that hang, where they were not known to do so before.
    pub(super) newly_stuck: Vec<String>,
    /// What has hung goes on.
    pub(super) has_recovered: bool,
}

impl Signs {
    /// How the parts are now; a process that stops says itself what it does.
    pub(super) fn look(&mut self, parts: &[Part], is_stopping: bool) -> Look {
        let named = |wanted: PartState| parts.iter().filter(move |part| part.state == wanted);
        let stuck: Vec<_> = named(PartState::Stuck).map(|part| part.name.clone()).collect();
        let told = |part: &Part| !self.stuck.contains(&part.name);
        let newly_stuck = named(PartState::Stuck).filter(|part| told(part)).map(Part::to_string).collect();
        let has_recovered = stuck.is_empty() && !self.stuck.is_empty();
        let text = |what: &str, state| {
            let parts: Vec<_> = named(state).map(Part::to_string).collect();
            format!("{what}: {}", parts.join("; "))
        };
        let status = match (stuck.is_empty(), named(PartState::Down).next()) {
            (false, _) => text("stuck", PartState::Stuck),
            (true, Some(_)) => text("running, not ready", PartState::Down),
            (true, None) => "running".to_owned(),
        };
        let is_alive = stuck.is_empty();
        self.stuck = stuck;
        let is_new = !is_stopping && self.status != status;
        if is_new {
            self.status.clone_from(&status);
        }
        Look { is_alive, status: is_new.then_some(status), newly_stuck, has_recovered }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, state: PartState, why: &str) -> Part {
        Part { name: name.to_owned(), state, why: Some(why.to_owned()).filter(|why| !why.is_empty()) }
    }

    #[test]
    fn a_loop_that_hangs_takes_the_signs_of_life_away_and_is_told_of_once() {
        let mut signs = Signs::default();
        let well = [part("loop", PartState::Up, ""), part("link", PartState::Up, "")];
        let quiet = Look { is_alive: true, ..Look::default() };
        assert_eq!(
            signs.look(&well, false),
            Look { status: Some("running".to_owned()), is_alive: true, ..Look::default() }
        );
        assert_eq!(signs.look(&well, false), quiet);
        let hangs = [part("loop", PartState::Stuck, "late"), part("link", PartState::Down, "no")];
        let said = Look {
            status: Some("stuck: loop: late".to_owned()),
            newly_stuck: vec!["loop: late".to_owned()],
            ..Look::default()
        };
        assert_eq!(signs.look(&hangs, false), said);
        assert_eq!(signs.look(&hangs, false), Look::default());
        let more = [part("loop", PartState::Stuck, "late"), part("store", PartState::Stuck, "later")];
        assert_eq!(signs.look(&more, false).newly_stuck, ["store: later"]);
        let again = signs.look(&well, false);
        assert!(again.is_alive && again.has_recovered && again.status.as_deref() == Some("running"));
        assert_eq!(signs.look(&well, false), quiet);
    }

    #[test]
    fn what_is_down_is_said_and_is_alive() {
        let mut signs = Signs::default();
        let down = [part("facilitator", PartState::Down, "connecting")];
        let said = signs.look(&down, false);
        assert!(said.is_alive);
        assert_eq!(said.status.as_deref(), Some("running, not ready: facilitator: connecting"));
        // A stop says itself what it does.
        assert_eq!(signs.look(&[], true), Look { is_alive: true, ..Look::default() });
    }
}
