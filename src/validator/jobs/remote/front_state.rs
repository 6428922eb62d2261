//! What a front is given and what it keeps: its settings, and the jobs that others run for it. Only data.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::drained::Drained;
use crate::base::timer::Alarm;
use crate::celery::{AppConfig, PendingResult, Task};
use crate::identity::PublicKey;
use crate::redis::RedisConfig;
use crate::validator::client::job::Line;
use crate::validator::job_messages::JobTimes;
use crate::validator::ledger::Ticket;

/// What a front needs.
pub(in crate::validator) struct FrontConfig {
    pub redis: RedisConfig,
    pub celery: AppConfig,
    pub queue: String,
    /// How long a job waits for a worker.
    pub queue_time: Duration,
    /// Jobs at a time.
    pub limit: usize,
    /// The validator's hotkey, by which the events find their way.
    pub name: String,
    pub job_times: JobTimes,
}

/// What changes while it runs.
#[derive(Default)]
pub(super) struct FrontState {
    pub jobs: HashMap<Arc<str>, RemoteJob>,
    /// Takes no more jobs.
    pub stopped: bool,
    /// Jobs of an earlier process of which Redis is to be asked.
    pub left: Vec<Arc<str>>,
    pub avoid: HashMap<PublicKey, Instant>,
    /// Notified when no job is left.
    pub drained: Drained,
}

/// A job on its way to the workers, once it is known whatever happens.
#[derive(Clone)]
pub(super) struct HandedOver {
    pub uuid: Arc<str>,
    pub task: Task,
    /// How long it is wanted.
    pub wanted_for: Duration,
    /// When it is to be in Redis.
    pub deadline: Instant,
    pub known: Ticket,
}

/// A job that others run.
pub(super) struct RemoteJob {
    pub line: Arc<Line>,
    pub begun: u32,
    /// How long it may take from its beginning.
    pub longest: Duration,
    /// Ends it if nothing more is received.
    pub alarm: Option<Alarm>,
    /// Gives it to Redis once more, which would not have it.
    pub again: Option<Alarm>,
    pub result: Option<PendingResult>,
}
