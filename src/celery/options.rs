//! The options of one task, by the names that they have as attributes of a task of Celery. Pure.

use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::keys::PRIORITY_MAX;
use super::meta::Exception;
use super::seconds;

/// The name of the exception that a panic of a handler is.
pub const PANICKED: &str = "Panicked";

/// What each exception of Python's own is a kind of, if that is not `Exception`.
const KINDS: [(&str, &str); 28] = [
    ("BlockingIOError", "OSError"),
    ("BrokenPipeError", "ConnectionError"),
    ("ChildProcessError", "OSError"),
    ("ConnectionAbortedError", "ConnectionError"),
    ("ConnectionError", "OSError"),
    ("ConnectionRefusedError", "ConnectionError"),
    ("ConnectionResetError", "ConnectionError"),
    ("FileExistsError", "OSError"),
    ("FileNotFoundError", "OSError"),
    ("FloatingPointError", "ArithmeticError"),
    ("IndexError", "LookupError"),
    ("InterruptedError", "OSError"),
    ("IsADirectoryError", "OSError"),
    ("KeyError", "LookupError"),
    ("ModuleNotFoundError", "ImportError"),
    ("NotADirectoryError", "OSError"),
    ("NotImplementedError", "RuntimeError"),
    ("OverflowError", "ArithmeticError"),
    ("PermissionError", "OSError"),
    ("ProcessLookupError", "OSError"),
    ("RecursionError", "RuntimeError"),
    ("TimeoutError", "OSError"),
    ("UnboundLocalError", "NameError"),
    ("UnicodeDecodeError", "UnicodeError"),
    ("UnicodeEncodeError", "UnicodeError"),
    ("UnicodeError", "ValueError"),
    ("UnicodeTranslateError", "UnicodeError"),
    ("ZeroDivisionError", "ArithmeticError"),
];

/// The options of one task, by Celery's names. What a message says itself goes first; what is `None` here is as the
/// settings of the application have it, see [`AppConfig`](super::AppConfig).
///
/// Exceptions are named as they are thrown, `OSError` or `requests.exceptions.Timeout`; those of Python's own stand for
/// their kinds too, and `Exception` for all but a panic, which is `Panicked`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TaskOptions {
    /// Exceptions after which the task is tried again by itself; none unless named.
    pub autoretry_for: Vec<String>,
    /// Of these, those after which it is not.
    pub dont_autoretry_for: Vec<String>,
    /// Such a retry waits this many seconds, twice as many each time; without, `default_retry_delay`.
    #[serde(deserialize_with = "backoff")]
    pub retry_backoff: Option<u32>,
    /// The most seconds that it waits then: 600.
    pub retry_backoff_max: u32,
    /// Whether it waits a random part of them, so that those that failed together are not tried together: yes.
    pub retry_jitter: bool,
    /// How often it is tried again at most, if its handler says nothing else: 3; `None` for no limit.
    pub max_retries: Option<u32>,
    /// How long a retry waits, if nothing else is said: 3 min.
    #[serde(with = "seconds")]
    pub default_retry_delay: Duration,
    /// When it is asked to end.
    #[serde(with = "seconds::optional")]
    pub soft_time_limit: Option<Duration>,
    /// When it is ended.
    #[serde(with = "seconds::optional")]
    pub time_limit: Option<Duration>,
    /// How many may begin in a time on one worker, as `10/m`; `0` for any number.
    #[serde(deserialize_with = "rate")]
    pub rate_limit: Option<String>,
    /// Whether its message is acknowledged when it has ended, or else before it begins.
    pub acks_late: Option<bool>,
    /// With late acknowledgement, whether one that failed or was over its time limit is done with.
    pub acks_on_failure_or_timeout: Option<bool>,
    /// The same for a failure alone.
    pub acks_on_failure: Option<bool>,
    /// The same for the time limit alone.
    pub acks_on_timeout: Option<bool>,
    /// With late acknowledgement, whether a task that had begun on a worker that is lost is run again, marked as
    /// delivered before; if not, it has failed with a `WorkerLostError`.
    pub reject_on_worker_lost: Option<bool>,
    /// Whether no result is stored.
    pub ignore_result: Option<bool>,
    /// Whether a failure is stored all the same.
    pub store_errors_even_if_ignored: Option<bool>,
    /// Whether the state `STARTED` is stored.
    pub track_started: Option<bool>,
    /// Whether events tell of it, if the worker publishes any: yes.
    pub send_events: bool,
    /// Exceptions that are to be expected: such a failure is logged as information, not as an error.
    pub throws: Vec<String>,
    /// How long after it was sent it may begin, if this worker sends it: as a callback or the next of a chain. A retry
    /// keeps what its message has.
    #[serde(with = "seconds::optional")]
    pub expires: Option<Duration>,
    /// Its priority, if this worker sends it.
    pub priority: Option<u8>,
    /// Its queue, if this worker sends it.
    pub queue: Option<String>,
}

impl Default for TaskOptions {
    fn default() -> Self {
        Self {
            autoretry_for: Vec::new(),
            dont_autoretry_for: Vec::new(),
            retry_backoff: None,
            retry_backoff_max: 600,
            retry_jitter: true,
            max_retries: Some(3),
            default_retry_delay: Duration::from_secs(180),
            soft_time_limit: None,
            time_limit: None,
            rate_limit: None,
            acks_late: None,
            acks_on_failure_or_timeout: None,
            acks_on_failure: None,
            acks_on_timeout: None,
            reject_on_worker_lost: None,
            ignore_result: None,
            store_errors_even_if_ignored: None,
            track_started: None,
            send_events: true,
            throws: Vec::new(),
            expires: None,
            priority: None,
            queue: None,
        }
    }
}

/// As Celery has it: a number, `true` for 1.
fn backoff<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Whether(bool),
        Factor(f64),
    }
    Ok(match Option::<Written>::deserialize(deserializer)? {
        None | Some(Written::Whether(false)) => None,
        Some(Written::Whether(true)) => Some(1),
        Some(Written::Factor(factor)) if (0.0..f64::from(u32::MAX)).contains(&factor) => {
            // As with Celery, less than a second is one.
            (factor > 0.0).then_some((factor as u32).max(1))
        }
        Some(Written::Factor(factor)) => return Err(D::Error::custom(format!("retry_backoff is {factor}"))),
    })
}

/// As Celery has it: a text, or a number for so many a second.
fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    })
}

impl TaskOptions {
    /// These options with others in the place of some, as `task_annotations` has them.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub(super) fn patched(&self, annotation: &Map<String, Value>) -> Result<Self, String> {
        let mut all = self.attributes();
        all.extend(annotation.clone());
        serde_json::from_value(Value::Object(all)).map_err(|error| error.to_string())
    }

    /// Each of them by its name, as `celery inspect registered` may ask for it.
    pub(super) fn attributes(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(all)) => all,
            // A struct of such fields is an object.
            _ => Map::new(),
        }
    }

    /// What is of no use in them, but for the rate.
    pub(super) fn problem(&self) -> Option<String> {
        if self.priority.is_some_and(|priority| priority > PRIORITY_MAX) {
            return Some(format!("priority is above {PRIORITY_MAX}"));
        }
        if self.queue.as_deref() == Some("") {
            return Some("queue is empty".to_owned());
        }
        match (self.soft_time_limit, self.time_limit) {
            (Some(soft), Some(hard)) if soft > hard && !hard.is_zero() => {
                Some("soft_time_limit is longer than time_limit".to_owned())
            }
            _ => None,
        }
    }

    /// Whether the task is tried again by itself after this exception.
    pub(super) fn retries_after(&self, exception: &Exception) -> bool {
        is_among(exception, &self.autoretry_for) && !is_among(exception, &self.dont_autoretry_for)
    }

    /// Whether this exception is to be expected.
    pub(super) fn expects(&self, exception: &Exception) -> bool {
        is_among(exception, &self.throws)
    }

    /// How long the retry after this many waits; `below` gives a random number below another.
    pub(super) fn retry_delay(&self, retries: u32, below: impl FnOnce(u64) -> u64) -> Duration {
        let Some(factor) = self.retry_backoff else { return self.default_retry_delay };
        let doubled = 2u64.checked_pow(retries).and_then(|times| times.checked_mul(factor.into())).unwrap_or(u64::MAX);
        let most = doubled.min(self.retry_backoff_max.into());
        Duration::from_secs(if self.retry_jitter { below(most + 1) } else { most })
    }
}

/// Whether one of these names stands for the exception.
fn is_among(exception: &Exception, names: &[String]) -> bool {
    let own = exception.exc_type.as_str();
    let is_pythons = exception.exc_module.as_deref().is_none_or(|module| module == "builtins");
    let whole = exception.exc_module.as_ref().map(|module| format!("{module}.{own}"));
    let stands_for = |name: &String| match name.strip_prefix("builtins.").unwrap_or(name) {
        "Exception" | "BaseException" => own != PANICKED,
        name if name == own || whole.as_deref() == Some(name) => true,
        name => {
            let name = if ["IOError", "EnvironmentError"].contains(&name) { "OSError" } else { name };
            is_pythons && (own == name || kinds(own).any(|kind| kind == name))
        }
    };
    names.iter().any(stands_for)
}

/// What an exception of Python's own is a kind of, the nearest first.
fn kinds(name: &str) -> impl Iterator<Item = &'static str> {
    let above = |name: &str| KINDS.iter().find(|(kind, _)| *kind == name).map(|(_, of)| *of);
    std::iter::successors(above(name), move |name| above(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use serde_json::json;

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_exception_is_named_by_its_name_or_its_kind() {
        let retries = |module: &str, kind: &str, names: &[&str], but: &[&str]| {
            let options =
                TaskOptions { autoretry_for: named(names), dont_autoretry_for: named(but), ..Default::default() };
            options.retries_after(&Exception::new(module, kind, "x"))
        };
        assert!(retries("builtins", "ConnectionResetError", &["ConnectionResetError"], &[]));
        assert!(retries("builtins", "ConnectionResetError", &["OSError"], &[]), "it is one of its kind");
        assert!(retries("builtins", "OSError", &["IOError"], &[]), "another name of it");
        assert!(!retries("builtins", "OSError", &["ConnectionResetError"], &[]));
        assert!(!retries("mine", "KeyError", &["LookupError"], &[]), "it is not Python's");
        assert!(retries("requests.exceptions", "Timeout", &["requests.exceptions.Timeout"], &[]));
        assert!(!retries("other", "Timeout", &["requests.exceptions.Timeout"], &[]));
        assert!(retries("phalanx", "Broken", &["Exception"], &[]));
        assert!(!retries("builtins", "KeyError", &["Exception"], &["LookupError"]));
        assert!(!retries("phalanx", PANICKED, &["Exception"], &[]) && retries("phalanx", PANICKED, &[PANICKED], &[]));
        assert!(!retries("builtins", "KeyError", &[], &[]));
    }

    #[test]
    fn the_delay_of_a_retry_is_counted_as_celery_counts_it() {
        let delays = |options: TaskOptions| -> Vec<u64> {
            let of = |retries| options.retry_delay(retries, |_| unreachable!("there is no jitter")).as_secs();
            [0, 1, 2, 9, 70].into_iter().map(of).collect()
        };
        let exact = TaskOptions { retry_backoff: Some(3), retry_jitter: false, ..Default::default() };
        assert_eq!(delays(exact.clone()), [3, 6, 12, 600, 600]);
        assert_eq!(delays(TaskOptions { retry_backoff_max: 7, ..exact }), [3, 6, 7, 7, 7]);
        assert_eq!(delays(TaskOptions::default()), [180; 5]);
        // From nothing up to the whole of it, each as likely as the others.
        let (options, mut rng) = (TaskOptions { retry_backoff: Some(1), ..Default::default() }, Rng::new(7));
        let mut times = [0; 5];
        for _ in 0..5000 {
            times[usize::try_from(options.retry_delay(2, |most| rng.below(most)).as_secs()).unwrap()] += 1;
        }
        assert!(times.iter().all(|times| (900..1100).contains(times)), "{times:?}");
    }

    #[test]
    fn annotations_are_read_as_celery_writes_them() {
        let annotation = json!({
            "rate_limit": 10, "retry_backoff": true, "max_retries": null, "default_retry_delay": 0.5, "time_limit": 30,
            "autoretry_for": ["OSError"], "acks_late": false,
        });
        let options = TaskOptions { retry_jitter: false, ..Default::default() };
        let options = options.patched(annotation.as_object().unwrap()).unwrap();
        let expected = TaskOptions {
            rate_limit: Some("10".to_owned()),
            retry_backoff: Some(1),
            max_retries: None,
            default_retry_delay: Duration::from_millis(500),
            time_limit: Some(Duration::from_secs(30)),
            autoretry_for: named(&["OSError"]),
            acks_late: Some(false),
            retry_jitter: false,
            ..Default::default()
        };
        assert_eq!(options, expected);
        assert_eq!(options.attributes()["time_limit"], json!(30));
        for (wrong, why) in [
            (json!({"serializer": "pickle"}), "unknown field `serializer`"),
            (json!({"time_limit": -1}), "it is -1; give seconds"),
            (json!({"retry_backoff": -1}), "retry_backoff is -1"),
        ] {
            let error = TaskOptions::default().patched(wrong.as_object().unwrap()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn options_of_no_use_are_told() {
        let seconds = |n| Some(Duration::from_secs(n));
        for (options, why) in [
            (TaskOptions { priority: Some(10), ..Default::default() }, "priority"),
            (TaskOptions { queue: Some(String::new()), ..Default::default() }, "queue"),
            (TaskOptions { soft_time_limit: seconds(3), time_limit: seconds(2), ..Default::default() }, "longer"),
        ] {
            assert!(options.problem().unwrap().contains(why));
        }
        assert_eq!(TaskOptions { soft_time_limit: seconds(3), ..Default::default() }.problem(), None);
    }
}
