//! The settings of a worker.

use std::time::Duration;

use crate::base::limits::CELERY_PREFETCH;
use crate::celery::keys::DEFAULT_QUEUE;
use crate::redis::RedisConfig;

/// The settings of a worker.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The Redis that is broker and result store.
    pub redis: RedisConfig,
    /// The queues that it takes from, in turn; `celery` by default.
    pub queues: Vec<String>,
    /// The queue of callbacks and chain steps whose signature names none.
    pub default_queue: String,
    /// Tasks that run at a time, each on a thread of its own.
    pub concurrency: usize,
    /// Messages that are held for each thread, with those that run: 4, as with Celery.
    pub prefetch_multiplier: usize,
    /// The age after which what a worker of Celery has taken and not acknowledged is put back: 1 hour, as with kombu.
    /// All workers of a broker need the same.
    pub visibility_timeout: Duration,
    /// How long a worker of ours may be silent before the others put back what it holds: 30 s.
    pub liveness: Duration,
    /// How long a result is kept: 1 day, as with Celery; zero for ever.
    pub result_expires: Duration,
    /// Whether the state `STARTED` is stored: no, as with Celery.
    pub track_started: bool,
    /// The name that Celery's tools see: `phalanx@<host>`.
    pub hostname: String,
    /// Whether it publishes events about tasks, for Flower and `celery events`: no, as with Celery
    /// (`worker_send_task_events`). `celery control enable_events` changes it while it runs.
    pub send_task_events: bool,
    /// How often it publishes `worker-heartbeat`: 2 s, as with Celery; zero for no events about itself.
    pub heartbeat_interval: Duration,
}

impl WorkerConfig {
    /// The settings that Celery has, for the queue `celery`.
    pub fn new(redis: RedisConfig) -> Self {
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        Self {
            redis,
            queues: vec![DEFAULT_QUEUE.to_owned()],
            default_queue: DEFAULT_QUEUE.to_owned(),
            concurrency: 4,
            prefetch_multiplier: 4,
            visibility_timeout: Duration::from_secs(3600),
            liveness: Duration::from_secs(30),
            result_expires: Duration::from_secs(86_400),
            track_started: false,
            hostname: format!("phalanx@{host}"),
            send_task_events: false,
            heartbeat_interval: Duration::from_secs(2),
        }
    }

    /// Messages that are held at a time whose time has come, at most [`CELERY_PREFETCH`].
    pub fn prefetch(&self) -> usize {
        self.prefetch_of(self.concurrency)
    }

    /// The same with so many threads.
    pub(super) fn prefetch_of(&self, concurrency: usize) -> usize {
        let concurrency = concurrency.clamp(1, CELERY_PREFETCH);
        concurrency.saturating_mul(self.prefetch_multiplier.max(1)).min(CELERY_PREFETCH)
    }

    /// How often a worker says that it lives: three times within the shorter of the two times after which it would lose
    /// what it holds.
    pub fn beat(&self) -> Duration {
        self.liveness.min(self.visibility_timeout) / 3
    }

    /// Why these settings are of no use.
    pub fn problem(&self) -> Option<String> {
        if self.queues.is_empty() || self.queues.iter().any(|queue| queue.is_empty() || queue.contains('\x06')) {
            return Some("a worker needs at least one queue, each with a name".to_owned());
        }
        if self.concurrency == 0 {
            return Some("a worker needs at least one thread".to_owned());
        }
        if self.beat() < Duration::from_millis(50) {
            return Some("liveness and visibility time-out must be 150 ms or more".to_owned());
        }
        None
    }

    pub(super) fn expires_seconds(&self) -> u64 {
        self.result_expires.as_secs()
    }
}
