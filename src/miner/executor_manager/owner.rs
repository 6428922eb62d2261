//! Whose things are, and for which of them somebody answers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use crate::base::lock::lock;
use crate::proc::docker::labels;

/// Whose an executor is. All that is made for it is marked with this, and a miner touches nothing that is marked
/// otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The miner's hotkey (SS58).
    pub miner: String,
    /// The miner's state folder: two miners with one hotkey differ in it.
    pub instance: String,
    /// The miner's process: each that opens the state folder has a higher one.
    pub epoch: u64,
}

impl Owner {
    /// The labels of what this miner has made for an executor or a probe.
    pub(super) fn labels(&self, run: &str) -> [(&'static str, String); 4] {
        let Self { miner, instance, epoch } = self;
        [
            (labels::MINER, miner.clone()),
            (labels::INSTANCE, instance.clone()),
            (labels::EPOCH, epoch.to_string()),
            (labels::EXECUTOR, run.to_owned()),
        ]
    }
}

/// For which executors somebody answers; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Answered(Arc<Mutex<BTreeSet<String>>>);

impl Answered {
    /// The executors of which something may be there, and somebody removes it when they end.
    pub fn living(&self) -> BTreeSet<String> {
        lock(&self.0).clone()
    }

    /// Somebody answers for this executor from now on.
    pub fn answer_for(&self, run: &str) {
        lock(&self.0).insert(run.to_owned());
    }

    /// Nothing of it is left.
    pub(super) fn forget(&self, run: &str) {
        lock(&self.0).remove(run);
    }
}
