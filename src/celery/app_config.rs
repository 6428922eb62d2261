//! The settings of a Celery application that change what is in Redis, by Celery's names: one value for clients and
//! workers. It reads the rules of a time zone and the files of TLS.

use std::time::Duration;

use serde::Deserialize;

use super::keys::{DEFAULT_QUEUE, Keyspace, PRIORITY_MAX, PRIORITY_STEPS, SEPARATOR};
use super::moment::Zone;
use crate::redis::RedisConfig;

/// The settings of a Celery application, as its `app.conf` has them; those that are missing change nothing in Redis.
/// All clients and workers of an application need the same.
#[derive(Debug, Clone)]
pub struct AppConfig {
    /// Where messages are.
    pub broker_transport_options: TransportOptions,
    /// Where results are: `None` for where the messages are.
    pub result_backend: Option<RedisConfig>,
    /// Where results are.
    pub result_backend_transport_options: ResultOptions,
    /// How long a result is kept: 1 day, as with Celery; zero for ever.
    pub result_expires: Duration,
    /// Whether times without an offset are in UTC, as with Celery; else they are in `timezone`.
    pub enable_utc: bool,
    /// The zone of times without an offset, where UTC is not enabled: that of the system, as with Celery.
    pub timezone: Zone,
    /// The queue of tasks, callbacks and chain steps that name none: `celery`.
    pub task_default_queue: String,
    /// Whether no result is stored of a task that does not say whether it wants one.
    pub task_ignore_result: bool,
    /// Whether the state `STARTED` is stored: no, as with Celery.
    pub task_track_started: bool,
    /// Whether a message is acknowledged when its task has ended. Yes, other than with Celery: no task is lost with its
    /// worker then. If not, one that has begun is never begun again.
    pub task_acks_late: bool,
    /// With late acknowledgement, whether a task that fails is done with, as with Celery. If not, its message is put
    /// aside, and one that is over its time limit goes back to its queue.
    pub task_acks_on_failure_or_timeout: bool,
}

/// `broker_transport_options`.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// `result_backend_transport_options`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResultOptions {
    /// What stands in front of the keys of results, with a `_` behind it if it ends with none of `:_-.`.
    pub global_keyprefix: String,
    /// What Sentinel calls the master of the results.
    pub master_name: Option<String>,
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
        }
    }
}

impl Default for AppConfig {
    fn default() -> Self {
        Self {
            broker_transport_options: TransportOptions::default(),
            result_backend: None,
            result_backend_transport_options: ResultOptions::default(),
            result_expires: Duration::from_secs(86_400),
            enable_utc: true,
            timezone: Zone::system(),
            task_default_queue: DEFAULT_QUEUE.to_owned(),
            task_ignore_result: false,
            task_track_started: false,
            task_acks_late: true,
            task_acks_on_failure_or_timeout: true,
        }
    }
}

/// The settings as they are written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    broker_transport_options: WrittenOptions,
    result_backend: Option<String>,
    result_backend_transport_options: ResultOptions,
    result_expires: Option<f64>,
    enable_utc: Option<bool>,
    timezone: Option<String>,
    task_default_queue: Option<String>,
    task_ignore_result: bool,
    task_track_started: bool,
    task_acks_late: Option<bool>,
    task_acks_on_failure_or_timeout: Option<bool>,
    task_reject_on_worker_lost: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenOptions {
    priority_steps: Option<Vec<u8>>,
    sep: Option<String>,
    queue_order_strategy: QueueOrder,
    global_keyprefix: String,
    visibility_timeout: Option<f64>,
    master_name: Option<String>,
}

impl AppConfig {
    /// Reads the settings from a JSON object with Celery's names, as `{"enable_utc": false, "timezone": "Asia/Tokyo",
    /// "broker_transport_options": {"sep": ":"}}`; times are in seconds. Blocks on the disk.
    ///
    /// # Errors
    /// All that is wrong, in words.
    pub fn parse(json: &str) -> Result<Self, String> {
        let written: Written = serde_json::from_str(json).map_err(|e| format!("not Celery settings in JSON: {e}"))?;
        let (mut problems, defaults) = (Vec::new(), Self::default());
        let mut seconds = |name: &str, value: Option<f64>, default: Duration| match value {
            None => default,
            Some(value) => Duration::try_from_secs_f64(value).unwrap_or_else(|_| {
                problems.push(format!("{name} is {value}; give seconds"));
                default
            }),
        };
        let result_expires = seconds("result_expires", written.result_expires, defaults.result_expires);
        let (options, usual) = (written.broker_transport_options, defaults.broker_transport_options);
        let visibility_timeout = seconds(
            "broker_transport_options.visibility_timeout",
            options.visibility_timeout,
            usual.visibility_timeout,
        );
        let timezone = match written.timezone.as_deref().map(Zone::named) {
            None => defaults.timezone,
            Some(zone) => zone.unwrap_or_else(|error| {
                problems.push(format!("timezone: {error}"));
                defaults.timezone
            }),
        };
        let result_backend = written.result_backend.as_deref().map(RedisConfig::parse).transpose();
        let result_backend = result_backend.unwrap_or_else(|error| {
            problems.push(format!("result_backend: {error}"));
            None
        });
        if written.task_reject_on_worker_lost == Some(false) {
            problems.push(
                "task_reject_on_worker_lost is false; what a lost worker held is run again here, marked, unless \
                 task_acks_late is false"
                    .to_owned(),
            );
        }
        let app = Self {
            broker_transport_options: TransportOptions {
                priority_steps: options.priority_steps.unwrap_or(usual.priority_steps),
                sep: options.sep.unwrap_or(usual.sep),
                queue_order_strategy: options.queue_order_strategy,
                global_keyprefix: options.global_keyprefix,
                visibility_timeout,
                master_name: options.master_name,
            },
            result_backend,
            result_backend_transport_options: written.result_backend_transport_options,
            result_expires,
            enable_utc: written.enable_utc.unwrap_or(defaults.enable_utc),
            timezone,
            task_default_queue: written.task_default_queue.unwrap_or(defaults.task_default_queue),
            task_ignore_result: written.task_ignore_result,
            task_track_started: written.task_track_started,
            task_acks_late: written.task_acks_late.unwrap_or(defaults.task_acks_late),
            task_acks_on_failure_or_timeout: written
                .task_acks_on_failure_or_timeout
                .unwrap_or(defaults.task_acks_on_failure_or_timeout),
        };
        problems.extend(app.problems());
        if problems.is_empty() { Ok(app) } else { Err(problems.join("; ")) }
    }

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

    /// The broker, with what the settings say of it.
    pub(crate) fn broker(&self, redis: &RedisConfig) -> RedisConfig {
        redis.clone().with_master(self.broker_transport_options.master_name.as_deref())
    }

    /// Where results are, if that is not the broker.
    pub(super) fn results(&self, redis: &RedisConfig) -> Option<RedisConfig> {
        let results = self.result_backend.clone()?;
        let results = results.with_master(self.result_backend_transport_options.master_name.as_deref());
        let is_same = results.place() == self.broker(redis).place();
        // How patient it is and how it is called is the same for both.
        (!is_same).then(|| RedisConfig {
            operation_time: redis.operation_time,
            stall_after: redis.stall_after,
            backoff: redis.backoff,
            ..results
        })
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
        assert_eq!(defaults.broker_transport_options, TransportOptions::default());
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let wrong = AppConfig::parse(
            r#"{"broker_transport_options": {"priority_steps": [3, 0], "sep": "", "visibility_timeout": -1},
                "result_backend": "amqp://h", "timezone": "Mars/Base", "task_reject_on_worker_lost": false}"#,
        )
        .unwrap_err();
        for part in [
            "visibility_timeout is -1; give seconds",
            "timezone: \"Mars/Base\" is not known to this system",
            "result_backend: bad Redis URL: its scheme",
            "task_reject_on_worker_lost is false",
            "priority_steps is [3, 0]; give rising numbers from 0 to 9",
            "sep is empty",
        ] {
            assert!(wrong.contains(part), "{part}: {wrong}");
        }
        let unknown = AppConfig::parse(r#"{"enable_UTC": true}"#).unwrap_err();
        assert!(unknown.contains("unknown field `enable_UTC`, expected one of"), "{unknown}");
    }
}
