//! The settings of a worker.

use std::time::Duration;

use super::policy::Policies;
use crate::base::limits::CELERY_PREFETCH;
use crate::celery::app_config::AppConfig;
use crate::redis::RedisConfig;

/// The settings of a worker.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The Redis that is broker and, unless `app` says where results are, result store.
    pub redis: RedisConfig,
    /// The settings of the application.
    pub app: AppConfig,
    /// The queues that it takes from: none for the application's own, which is `celery` unless set.
    pub queues: Vec<String>,
    /// Tasks that run at a time, each on a thread of its own.
    pub concurrency: usize,
    /// Messages that are held for each thread, with those that run: 4, as with Celery, unless `app` has another number.
    pub prefetch_multiplier: usize,
    /// How long a worker of ours may be silent before the others put back what it holds: 30 s.
    pub liveness: Duration,
    /// The name that Celery's tools see: `phalanx@<host>`.
    pub hostname: String,
    /// Whether it publishes events about tasks, for Flower and `celery events`: no, as with Celery, unless `app` says
    /// so (`worker_send_task_events`). `celery control enable_events` changes it while it runs.
    pub send_task_events: bool,
    /// How often it publishes `worker-heartbeat`: 2 s, as with Celery; zero for no events about itself.
    pub heartbeat_interval: Duration,
}

impl WorkerConfig {
    /// The settings that Celery has, for the queue `celery`; see [`AppConfig`].
    pub fn new(redis: RedisConfig) -> Self {
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        Self {
            redis,
            app: AppConfig::default(),
            queues: Vec::new(),
            concurrency: 4,
            prefetch_multiplier: 4,
            liveness: Duration::from_secs(30),
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
        match self.multiplier() {
            // As many as may be.
            0 => CELERY_PREFETCH,
            multiplier => concurrency.saturating_mul(multiplier).min(CELERY_PREFETCH),
        }
    }

    /// Messages that are held for each thread, as the application has it, or else as the worker is set.
    pub(super) fn multiplier(&self) -> usize {
        self.app.worker_prefetch_multiplier.unwrap_or(self.prefetch_multiplier.max(1))
    }

    /// How often a worker says that it lives: three times within the shorter of the two times after which it would lose
    /// what it holds.
    pub fn beat(&self) -> Duration {
        self.liveness.min(self.app.broker_transport_options.visibility_timeout) / 3
    }

    /// Why these settings are of no use.
    pub fn problem(&self) -> Option<String> {
        if let problems @ [_, ..] = &self.app.problems()[..] {
            return Some(problems.join("; "));
        }
        let sep = &self.app.broker_transport_options.sep;
        // Other separators may be in names, as kombu has it too; its own are control characters.
        if self.queues().iter().any(|queue| queue.is_empty() || (queue.contains(&**sep) && sep.len() > 1)) {
            return Some(format!("a queue needs a name without {sep:?}"));
        }
        if self.concurrency == 0 {
            return Some("a worker needs at least one thread".to_owned());
        }
        if let Err(problem) = Policies::new(std::iter::empty(), &self.app) {
            return Some(problem);
        }
        if self.beat() < Duration::from_millis(50) {
            return Some("liveness and visibility time-out must be 150 ms or more".to_owned());
        }
        None
    }

    /// The queues that it takes from.
    pub(super) fn queues(&self) -> Vec<String> {
        if self.queues.is_empty() { vec![self.app.task_default_queue.clone()] } else { self.queues.clone() }
    }

    pub(super) fn expires_seconds(&self) -> u64 {
        // What is written in a fraction of a second does not stay for ever.
        self.app.result_expires.as_secs() + u64::from(self.app.result_expires.subsec_nanos() > 0)
    }
}
