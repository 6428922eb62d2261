//! The settings of a Celery application that change what is in Redis, by Celery's names: one value for clients and
//! workers. It reads the rules of a time zone and the files of TLS.

mod others;
mod routes;
mod written;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

pub use routes::{Route, Routes};

use super::keys::{DEFAULT_QUEUE, Keyspace, PRIORITY_MAX, PRIORITY_STEPS, SEPARATOR};
use super::moment::Zone;
use super::options::TaskOptions;
use super::seconds::number;
use crate::net::tls::ClientTls;
use crate::redis::{RedisConfig, SentinelLogin};

/// The settings of a Celery application, as its `app.conf` has them; those that are missing change nothing in Redis.
/// All clients and workers of an application need the same. What a message says itself goes first, then the options of
/// its task ([`TaskOptions`]), then these, then the settings of the worker.
#[derive(Debug, Clone)]
pub struct AppConfig {
    /// Where messages are.
    pub broker_transport_options: TransportOptions,
    /// Where results are: `None` for where the messages are.
    pub result_backend: Option<RedisConfig>,
    /// Where results are.
    pub result_backend_transport_options: ResultOptions,
    /// TLS of the broker, in place of what its address says: `broker_use_ssl`.
    pub broker_use_ssl: Option<ClientTls>,
    /// TLS of the results: `redis_backend_use_ssl`.
    pub redis_backend_use_ssl: Option<ClientTls>,
    /// How long a result is kept: 1 day, as with Celery; zero for ever.
    pub result_expires: Duration,
    /// Whether times without an offset are in UTC, as with Celery; else they are in `timezone`.
    pub enable_utc: bool,
    /// The zone of times without an offset, where UTC is not enabled: that of the system, as with Celery.
    pub timezone: Zone,
    /// The queue of tasks, callbacks and chain steps that name none: `celery`.
    pub task_default_queue: String,
    /// The queue and the priority of tasks that name none, by the names of the tasks.
    pub task_routes: Routes,
    /// The priority of tasks that have none: 0.
    pub task_default_priority: Option<u8>,
    /// Options of tasks by their names, `*` for all, in place of those that they were registered with; each an object
    /// as [`TaskOptions`] is read from.
    pub task_annotations: BTreeMap<String, Map<String, Value>>,
    /// Whether no result is stored of a task that does not say whether it wants one.
    pub task_ignore_result: bool,
    /// Whether the failure of such a task is stored all the same.
    pub task_store_errors_even_if_ignored: bool,
    /// Whether a result also has the name of its task, the arguments, the worker, the number of retries and the queue:
    /// no, as with Celery.
    pub result_extended: bool,
    /// Whether the state `STARTED` is stored: no, as with Celery.
    pub task_track_started: bool,
    /// Whether a message is acknowledged when its task has ended. Yes, other than with Celery: no task is lost with its
    /// worker then. If not, one that has begun is never begun again.
    pub task_acks_late: bool,
    /// With late acknowledgement, whether a task that fails is done with, as with Celery. If not, its message is put
    /// aside, and one that is over its time limit goes back to its queue.
    pub task_acks_on_failure_or_timeout: bool,
    /// The same for a failure alone.
    pub task_acks_on_failure: Option<bool>,
    /// The same for the time limit alone.
    pub task_acks_on_timeout: Option<bool>,
    /// With late acknowledgement, whether a task that had begun on a worker that is lost is run again, marked. Yes,
    /// other than with Celery; if not, it has failed.
    pub task_reject_on_worker_lost: bool,
    /// When a task is asked to end.
    pub task_soft_time_limit: Option<Duration>,
    /// When a task is ended.
    pub task_time_limit: Option<Duration>,
    /// How many of each task may begin in a time on one worker, as `10/m`.
    pub task_default_rate_limit: Option<String>,
    /// Whether no rate counts.
    pub worker_disable_rate_limits: bool,
    /// Messages that a worker holds for each thread; without, as the worker is set. 0 for as many as it may.
    pub worker_prefetch_multiplier: Option<usize>,
    /// Whether workers publish events about tasks. One whose own settings say so does in any case.
    pub worker_send_task_events: bool,
    /// Whether clients publish `task-sent`, and workers for the tasks that they send.
    pub task_send_sent_event: bool,
    /// Names of settings that were given and have no effect here; clients and workers log them at their start.
    pub without_effect: Vec<String>,
}

/// `broker_transport_options`.
#[derive(Debug, Clone)]
pub struct TransportOptions {
    /// Priorities that have a list of their own, rising, from 0 to 9: 0, 3, 6 and 9.
    pub priority_steps: Vec<u8>,
    /// What stands between a queue's name and its priority.
    pub sep: String,
    /// In which order queues are emptied.
    pub queue_order_strategy: QueueOrder,
    /// What stands in front of all keys; also of our own, but those of jobs.
    pub global_keyprefix: String,
    /// The age after which what a worker of Celery has taken from our queues and not acknowledged is put back: 1 hour.
    pub visibility_timeout: Duration,
    /// What Sentinel calls the master of the broker; see [`RedisConfig::parse`].
    pub master_name: Option<String>,
    /// How to get in at the Sentinels.
    pub sentinel_kwargs: SentinelLogin,
}

/// `result_backend_transport_options`.
#[derive(Debug, Clone)]
pub struct ResultOptions {
    /// What stands in front of the keys of results, with a `_` behind it if it ends with none of `:_-.`.
    pub global_keyprefix: String,
    /// What Sentinel calls the master of the results.
    pub master_name: Option<String>,
    /// How to get in at the Sentinels.
    pub sentinel_kwargs: SentinelLogin,
    /// Whether a chord's body gets the results in the order of the header, as with Celery, or as they come.
    pub result_chord_ordered: bool,
}

impl Default for ResultOptions {
    fn default() -> Self {
        Self {
            global_keyprefix: String::new(),
            master_name: None,
            sentinel_kwargs: SentinelLogin::default(),
            result_chord_ordered: true,
        }
    }
}

/// In which order queues are emptied; of each queue the first priority first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueOrder {
    /// In turn.
    #[default]
    RoundRobin,
    /// As they are named: a queue is served when those before it are empty.
    Priority,
    /// The same by their names.
    Sorted,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            priority_steps: PRIORITY_STEPS.to_vec(),
            sep: SEPARATOR.to_owned(),
            queue_order_strategy: QueueOrder::RoundRobin,
            global_keyprefix: String::new(),
            visibility_timeout: Duration::from_secs(3600),
            master_name: None,
            sentinel_kwargs: SentinelLogin::default(),
        }
    }
}

impl Default for AppConfig {
    fn default() -> Self {
        Self {
            broker_transport_options: TransportOptions::default(),
            result_backend: None,
            result_backend_transport_options: ResultOptions::default(),
            broker_use_ssl: None,
            redis_backend_use_ssl: None,
            result_expires: Duration::from_secs(86_400),
            enable_utc: true,
            timezone: Zone::system(),
            task_default_queue: DEFAULT_QUEUE.to_owned(),
            task_routes: Routes::default(),
            task_default_priority: None,
            task_annotations: BTreeMap::new(),
            task_ignore_result: false,
            task_store_errors_even_if_ignored: false,
            result_extended: false,
            task_track_started: false,
            task_acks_late: true,
            task_acks_on_failure_or_timeout: true,
            task_acks_on_failure: None,
            task_acks_on_timeout: None,
            task_reject_on_worker_lost: true,
            task_soft_time_limit: None,
            task_time_limit: None,
            task_default_rate_limit: None,
            worker_disable_rate_limits: false,
            worker_prefetch_multiplier: None,
            worker_send_task_events: false,
            task_send_sent_event: false,
            without_effect: Vec::new(),
        }
    }
}

impl AppConfig {
    /// What is of no use in these settings.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let options = &self.broker_transport_options;
        let steps = &options.priority_steps;
        if steps.is_empty() || steps.iter().any(|step| *step > PRIORITY_MAX) || !steps.is_sorted_by(|a, b| a < b) {
            problems.push(format!(
                "broker_transport_options.priority_steps is {steps:?}; give rising numbers from 0 to {PRIORITY_MAX}"
            ));
        }
        if options.sep.is_empty() {
            problems.push(
                "broker_transport_options.sep is empty; give what stands between a queue and its priority, as \":\""
                    .to_owned(),
            );
        }
        if self.task_default_queue.is_empty() {
            problems.push("task_default_queue is empty; give the name of a queue".to_owned());
        }
        if self.task_default_priority.is_some_and(|priority| priority > PRIORITY_MAX) {
            problems.push(format!("task_default_priority is above {PRIORITY_MAX}"));
        }
        problems.extend(self.task_routes.problem().map(|problem| format!("task_routes: {problem}")));
        for (name, annotation) in &self.task_annotations {
            if let Err(why) = TaskOptions::default().patched(annotation) {
                problems.push(format!("task_annotations of {name:?}: {why}"));
            }
        }
        problems
    }

    /// The names of keys that follow from these settings.
    pub fn keyspace(&self) -> Keyspace {
        let options = &self.broker_transport_options;
        let mut results = self.result_backend_transport_options.global_keyprefix.clone();
        if results.ends_with(|last: char| !":_-.".contains(last)) {
            results.push('_');
        }
        Keyspace {
            prefix: options.global_keyprefix.clone(),
            separator: options.sep.clone(),
            steps: options.priority_steps.clone(),
            results,
        }
    }

    /// The zone of times without an offset.
    pub fn zone(&self) -> Zone {
        if self.enable_utc { Zone::utc() } else { self.timezone.clone() }
    }

    /// Where a task goes that does not say it itself: a queue, and a priority.
    pub(super) fn route(&self, task: &str) -> (&str, u8) {
        let route = self.task_routes.of(task);
        let queue = route.and_then(|route| route.queue.as_deref()).unwrap_or(&self.task_default_queue);
        (queue, route.and_then(|route| route.priority).or(self.task_default_priority).unwrap_or(0))
    }

    /// The broker, with what the settings say of it.
    pub(crate) fn broker(&self, redis: &RedisConfig) -> RedisConfig {
        let options = &self.broker_transport_options;
        let broker = redis.clone().with_sentinel(options.master_name.as_deref(), &options.sentinel_kwargs);
        with_tls(broker, self.broker_use_ssl.as_ref())
    }

    /// Where results are, if that is not the broker.
    pub(super) fn results(&self, redis: &RedisConfig) -> Option<RedisConfig> {
        let (results, options) = (self.result_backend.clone()?, &self.result_backend_transport_options);
        let results = results.with_sentinel(options.master_name.as_deref(), &options.sentinel_kwargs);
        let is_same = results.place() == self.broker(redis).place();
        // How patient it is and how it is called is the same for both.
        (!is_same).then(|| RedisConfig {
            operation_time: redis.operation_time,
            stall_after: redis.stall_after,
            backoff: redis.backoff,
            ..with_tls(results, self.redis_backend_use_ssl.as_ref())
        })
    }

    /// The settings by Celery's names, as `celery inspect conf` shows them.
    pub(super) fn shown(&self) -> Map<String, Value> {
        let options = &self.broker_transport_options;
        let seconds = |duration: Option<Duration>| duration.map(|duration| number(duration.as_secs_f64()));
        let mut shown = json!({
            "broker_transport_options": {
                "visibility_timeout": options.visibility_timeout.as_secs_f64(), "sep": options.sep,
                "priority_steps": options.priority_steps, "global_keyprefix": options.global_keyprefix,
                "queue_order_strategy": options.queue_order_strategy.name(), "master_name": options.master_name,
            },
            "result_backend_transport_options": {
                "global_keyprefix": self.result_backend_transport_options.global_keyprefix,
                "master_name": self.result_backend_transport_options.master_name,
                "result_chord_ordered": self.result_backend_transport_options.result_chord_ordered,
            },
            "result_expires": number(self.result_expires.as_secs_f64()),
            "result_extended": self.result_extended,
            "enable_utc": self.enable_utc,
            "timezone": self.timezone.name(),
            "task_default_queue": self.task_default_queue,
            "task_routes": self.task_routes.shown(),
            "task_default_priority": self.task_default_priority,
            "task_annotations": self.task_annotations,
            "task_ignore_result": self.task_ignore_result,
            "task_store_errors_even_if_ignored": self.task_store_errors_even_if_ignored,
            "task_track_started": self.task_track_started,
            "task_acks_late": self.task_acks_late,
            "task_acks_on_failure_or_timeout": self.task_acks_on_failure_or_timeout,
            "task_acks_on_failure": self.task_acks_on_failure,
            "task_acks_on_timeout": self.task_acks_on_timeout,
            "task_reject_on_worker_lost": self.task_reject_on_worker_lost,
            "task_soft_time_limit": seconds(self.task_soft_time_limit),
            "task_time_limit": seconds(self.task_time_limit),
            "task_default_rate_limit": self.task_default_rate_limit,
            "task_send_sent_event": self.task_send_sent_event,
            "worker_disable_rate_limits": self.worker_disable_rate_limits,
            "accept_content": ["json"],
            "task_serializer": "json",
            "result_serializer": "json",
            "worker_enable_remote_control": true,
        });
        shown.as_object_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Logs the settings without effect.
    pub(super) fn tell_of_idle(&self) {
        if !self.without_effect.is_empty() {
            log::info!("settings of Celery without effect here: {}", self.without_effect.join(", "));
        }
    }
}

fn with_tls(redis: RedisConfig, tls: Option<&ClientTls>) -> RedisConfig {
    RedisConfig { tls: tls.cloned().or(redis.tls), ..redis }
}

impl QueueOrder {
    fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Priority => "priority",
            Self::Sorted => "sorted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_by_celerys_names() {
        let app = AppConfig::parse(
            r#"{"broker_transport_options": {"priority_steps": [0,1,2,3,4,5,6,7,8,9], "sep": ":",
                "queue_order_strategy": "priority", "global_keyprefix": "x:", "visibility_timeout": 43200},
                "result_backend": "redis://h/1", "result_backend_transport_options": {"global_keyprefix": "mine"},
                "result_expires": 60.5, "enable_utc": false, "timezone": "Asia/Tokyo", "task_ignore_result": true,
                "task_acks_late": false, "task_reject_on_worker_lost": true, "task_default_queue": "d"}"#,
        )
        .unwrap();
        assert_eq!(app.keyspace().queue("q", 5), "x:q:5");
        assert_eq!(app.keyspace().meta("1"), "mine_celery-task-meta-1");
        assert_eq!(app.broker_transport_options.queue_order_strategy, QueueOrder::Priority);
        assert_eq!(app.broker_transport_options.visibility_timeout, Duration::from_secs(12 * 3600));
        assert_eq!((app.result_expires, app.task_acks_late), (Duration::from_millis(60_500), false));
        let broker = RedisConfig::parse("redis://h/0").unwrap();
        assert_eq!(app.results(&broker).unwrap().db, 1);
        assert!(app.results(&RedisConfig::parse("redis://h/1").unwrap()).is_none(), "it is the broker");
        let defaults = AppConfig::parse("{}").unwrap();
        assert_eq!(defaults.keyspace(), Keyspace::default());
        assert_eq!(format!("{:?}", defaults), format!("{:?}", AppConfig::default()));
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let wrong = AppConfig::parse(
            r#"{"broker_transport_options": {"priority_steps": [3, 0], "sep": "", "visibility_timeout": -1,
                    "sentinel_kwargs": {"password": "s3cret", "ssl_ca_certs": "/x"}},
                "result_backend": "amqp://h", "timezone": "Mars/Base", "task_serializer": "pickle",
                "broker_use_ssl": {"ssl_cert_reqs": "none"}, "redis_backend_use_ssl": {"ssl_certfile": "/x"},
                "task_default_priority": 12, "task_routes": {"a": {"exchange": "x"}}, "task_time_limit": -2,
                "task_annotations": {"a": {"serializer": "pickle"}}}"#,
        )
        .unwrap_err();
        for part in [
            "visibility_timeout is -1; give seconds",
            "timezone: \"Mars/Base\" is not known to this system",
            "result_backend: bad Redis URL: its scheme",
            "task_serializer is not supported: only JSON is read and written",
            "sentinel_kwargs: ssl_ca_certs goes with \"ssl\": true",
            "broker_use_ssl: certificates and names are always checked",
            "redis_backend_use_ssl: ssl_certfile goes with ssl_keyfile",
            "task_default_priority is above 9",
            "task_routes: the route of \"a\" has exchange",
            "task_time_limit is -2; give seconds",
            "task_annotations of \"a\": unknown field `serializer`",
            "priority_steps is [3, 0]; give rising numbers from 0 to 9",
            "sep is empty",
        ] {
            assert!(wrong.contains(part), "{part}: {wrong}");
        }
        assert!(!wrong.contains("s3cret"), "{wrong}");
        let unknown = AppConfig::parse(r#"{"enable_UTC": true}"#).unwrap_err();
        assert!(unknown.contains("unknown field `enable_UTC`, expected one of"), "{unknown}");
    }
}
