//! One part of a process, and how it is. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

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
