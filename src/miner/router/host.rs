//! What is known of a host that executors run on. Pure.

use std::collections::BTreeSet;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::io::HostPlan;
use crate::miner::check::{Room, Trials};
use crate::miner::executor_pool::SlotCounts;
use crate::miner::host::HostName;
use crate::proc::docker::EngineAddress;
use crate::protocol::ExecutorClass;

/// How a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// Jobs can run there.
    Up,
    /// They cannot.
    Down,
    /// It is not in the settings any more; what runs there goes on to its end.
    Draining,
}

impl HostState {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
        }
    }
}

/// A host at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStatus {
    /// Its name.
    pub name: HostName,
    /// What it is, for people.
    pub address: String,
    /// How it is.
    pub state: HostState,
    /// Why it is down.
    pub why: Option<String>,
    /// How jobs run there, as it was last told; empty while none can.
    pub jobs_run: String,
    /// What was wrong with it at the last job, if no job there has come further since: a full disk, for example.
    pub trouble: Option<String>,
    /// Why it is not known what executors have left there, if that is so.
    pub reaper_trouble: Option<String>,
    /// How the slots of each class are used there.
    pub executors: Vec<(ExecutorClass, SlotCounts)>,
}

/// What is known of a host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) address: String,
    pub(super) place: EngineAddress,
    /// It is not in the settings any more.
    pub(super) removed: bool,
    /// How jobs run there, or why none can.
    pub(super) engine: Result<String, String>,
    /// When the next check must have ended.
    pub(super) check_due: Option<Instant>,
    pub(super) trials: Trials,
    /// What was wrong with it at the last job.
    pub(super) trouble: Option<String>,
    pub(super) images: BTreeSet<String>,
    pub(super) reaper_trouble: Option<String>,
    pub(super) reaper_due: Option<Instant>,
}

impl Host {
    pub(super) fn new(plan: HostPlan, engine: Result<String, String>) -> Self {
        Self {
            address: plan.address,
            place: plan.engine,
            removed: false,
            engine,
            check_due: None,
            trials: Trials::default(),
            trouble: None,
            images: BTreeSet::new(),
            reaper_trouble: None,
            reaper_due: None,
        }
    }

    pub(super) fn room(&self, now: Instant) -> Room {
        match &self.engine {
            Ok(_) if !self.removed => self.trials.room(now),
            _ => Room::Nothing,
        }
    }

    /// Why no job can run there.
    pub(super) fn why(&self) -> Option<&str> {
        self.engine.as_ref().err().map(String::as_str).or(self.trials.why())
    }

    pub(super) fn state(&self) -> HostState {
        match (self.removed, self.why()) {
            (true, _) => HostState::Draining,
            (false, Some(_)) => HostState::Down,
            (false, None) => HostState::Up,
        }
    }
}

/// The slots of all these hosts.
pub(super) fn slots(plans: &[HostPlan]) -> Vec<(HostName, ExecutorClass, u32)> {
    let of_host = |plan: &HostPlan| {
        let name = plan.name;
        plan.executors.clone().into_iter().map(move |(class, count)| (name, class, count))
    };
    plans.iter().flat_map(of_host).collect()
}
