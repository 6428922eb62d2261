//! What is up, what is not, and why. Pure apart from one lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::base::lock::lock;

/// The parts of a process that must be up for it to be ready; clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

impl Health {
    /// No parts: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// The part works.
    pub fn up(&self, part: &'static str) {
        lock(&self.0).insert(part, None);
    }

    /// The part does not work; `why` is shown to the operator.
    pub fn down(&self, part: &'static str, why: impl Into<String>) {
        lock(&self.0).insert(part, Some(why.into()));
    }

    /// Why the process is not ready, a line for each part; empty if it is.
    pub fn problems(&self) -> Vec<String> {
        let parts = lock(&self.0);
        parts.iter().filter_map(|(part, why)| Some(format!("{part}: {}", why.as_ref()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_no_part_is_down() {
        let health = Health::new();
        assert!(health.problems().is_empty());
        health.down("store", "disk full");
        health.clone().up("link");
        assert_eq!(health.problems(), ["store: disk full"]);
        health.up("store");
        assert!(health.problems().is_empty());
    }
}
