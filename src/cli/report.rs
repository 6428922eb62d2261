//! What a check finds, line by line.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{ErrorKind, Write};

use crate::app::settings::Sources;
use crate::ops::redact::{self, OneLine};

/// How good a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// The role starts, and something does not work then, or not for long.
    Warn,
    /// The role does not start.
    Wrong,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Wrong => "wrong",
        }
    }
}

/// What has been found, shown line by line.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) worst: Level,
    sources: Sources,
    /// Flags whose form is wrong: what stands in their place says nothing of what is outside.
    pub(super) wrong: BTreeSet<String>,
    /// Why not all lines could be shown.
    pub(super) unshown: Option<std::io::Error>,
}

impl Report {
    /// Nothing has been found yet.
    pub(super) fn new(sources: Sources) -> Self {
        Self { worst: Level::Ok, sources, wrong: BTreeSet::new(), unshown: None }
    }

    fn say(&mut self, level: Level, text: &dyn Display) {
        self.worst = self.worst.max(level);
        let text = text.to_string();
        // As the role says it at its start.
        let text = if level == Level::Wrong { self.sources.named(&text) } else { text };
        let line = format!("{:<5}  {}\n", level.name(), OneLine(&redact::secrets(&text)));
        match std::io::stdout().write_all(line.as_bytes()) {
            // A reader that has gone wants no more; the exit code says the rest.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => self.unshown = Some(error),
            _ => {}
        }
    }

    /// A thing is as it should be.
    pub(super) fn ok(&mut self, text: impl Display) {
        self.say(Level::Ok, &text);
    }

    /// The role starts, and this does not work then.
    pub(super) fn warn(&mut self, text: impl Display) {
        self.say(Level::Warn, &text);
    }

    /// The role does not start, and says this.
    pub(super) fn wrong(&mut self, problem: impl Display) {
        self.say(Level::Wrong, &problem);
    }

    /// A line for each: the role says them in one.
    pub(super) fn all_wrong(&mut self, problems: &[String]) {
        for problem in problems {
            self.wrong(problem);
        }
    }

    /// Whether the form of a flag is right, so that what it names can be tried.
    pub(super) fn has(&self, long: &str) -> bool {
        !self.wrong.contains(long)
    }
}
