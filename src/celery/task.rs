//! A task to be sent. Pure.

use std::time::Duration;

use serde_json::{Map, Value};

use super::app_config::AppConfig;
use super::envelope::Compression;
use super::keys::{DEFAULT_QUEUE, PRIORITY_MAX};
use super::message::TaskMessage;
use super::moment::Moment;
use super::repr;

/// A task to be sent, with the options of Celery's `apply_async`.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a task does nothing before it is sent"]
pub struct Task {
    id: Option<String>,
    queue: Option<String>,
    priority: Option<u8>,
    countdown: Option<Duration>,
    expires_in: Option<Duration>,
    message: TaskMessage,
}

impl Task {
    /// A task without arguments for the application's queue: `celery`, unless set.
    pub fn new(name: impl Into<String>) -> Self {
        let message = TaskMessage::new("", name);
        Self { id: None, queue: None, priority: None, countdown: None, expires_in: None, message }
    }

    /// Positional arguments: those of a JSON list, or one that is anything else.
    pub fn args(mut self, args: impl Into<Value>) -> Self {
        self.message.args = match args.into() {
            Value::Array(args) => args,
            Value::Null => Vec::new(),
            one => vec![one],
        };
        self
    }

    /// Keyword arguments.
    pub fn kwargs(mut self, kwargs: Map<String, Value>) -> Self {
        self.message.kwargs = kwargs;
        self
    }

    /// One keyword argument more.
    pub fn kwarg(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.message.kwargs.insert(name.into(), value.into());
        self
    }

    /// The queue, in place of the application's.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// With what the application's settings say where the task says nothing.
    pub(super) fn of(mut self, app: &AppConfig) -> Self {
        let (queue, priority) = app.route(&self.message.task);
        self.queue.get_or_insert_with(|| queue.to_owned());
        self.priority.get_or_insert(priority);
        if app.task_ignore_result {
            self.message.ignore_result.get_or_insert(true);
        }
        self
    }

    /// Its id, so that the same task sent twice by different programs is the same; a random one by default.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Not before this long after it was sent.
    pub fn countdown(mut self, countdown: Duration) -> Self {
        (self.countdown, self.message.eta) = (Some(countdown), None);
        self
    }

    /// Not before this moment.
    pub fn eta(mut self, eta: Moment) -> Self {
        (self.countdown, self.message.eta) = (None, Some(eta));
        self
    }

    /// Not later than this long after it was sent.
    pub fn expires(mut self, expires: Duration) -> Self {
        (self.expires_in, self.message.expires) = (Some(expires), None);
        self
    }

    /// Not later than this moment.
    pub fn expires_at(mut self, expires: Moment) -> Self {
        (self.expires_in, self.message.expires) = (None, Some(expires));
        self
    }

    /// From 0, which goes first and is the default, unless the application has another, to 9; more is 9.
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority.min(PRIORITY_MAX));
        self
    }

    /// What ties it to something of the sender's; the task's id by default.
    pub fn correlation_id(mut self, correlation_id: impl Into<String>) -> Self {
        self.message.correlation_id = Some(correlation_id.into());
        self
    }

    /// When the worker asks it to end (an exception in it), and when it ends it for good.
    pub fn time_limits(mut self, soft: Option<Duration>, hard: Option<Duration>) -> Self {
        self.message.soft_time_limit = soft.map(|limit| limit.as_secs_f64());
        self.message.time_limit = hard.map(|limit| limit.as_secs_f64());
        self
    }

    /// Nobody will ask for the result, so none is stored.
    pub fn ignore_result(mut self) -> Self {
        self.message.ignore_result = Some(true);
        self
    }

    /// The task that sends it, and the first one of its tree.
    pub fn parent(mut self, parent_id: impl Into<String>, root_id: impl Into<String>) -> Self {
        self.message.parent_id = Some(parent_id.into());
        self.message.root_id = root_id.into();
        self
    }

    /// A header of the embedder's.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.message.headers.insert(name.into(), value.into());
        self
    }

    /// Packs the body, for large arguments.
    pub fn compress(mut self) -> Self {
        self.message.compression = Some(Compression::Zlib);
        self
    }

    /// What it is shown as in logs and tools in place of its arguments, which may be secret.
    pub fn shown_as(mut self, args: impl Into<String>, kwargs: impl Into<String>) -> Self {
        (self.message.argsrepr, self.message.kwargsrepr) = (Some(args.into()), Some(kwargs.into()));
        self
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        &self.message.task
    }

    /// Its name and arguments, and the options of Celery's `apply_async` that it is sent with.
    pub(super) fn into_options(self) -> (TaskMessage, Map<String, Value>) {
        let Self { id, queue, priority, countdown, expires_in, message } = self;
        let seconds = |time: Duration| Value::from(time.as_secs_f64());
        let text = |text: &str| (!text.is_empty()).then(|| Value::from(text));
        let options = [
            ("task_id", id.map(Value::from)),
            ("queue", queue.map(Value::from)),
            ("countdown", countdown.map(seconds)),
            ("eta", message.eta.map(|eta| eta.to_string().into())),
            ("expires", expires_in.map(seconds).or_else(|| message.expires.map(|at| at.to_string().into()))),
            ("priority", priority.map(Value::from)),
            ("time_limit", message.time_limit.map(Value::from)),
            ("soft_time_limit", message.soft_time_limit.map(Value::from)),
            ("ignore_result", message.ignore_result.map(Value::from)),
            ("root_id", text(&message.root_id)),
            ("parent_id", message.parent_id.as_deref().and_then(text)),
            ("headers", (!message.headers.is_empty()).then(|| message.headers.clone().into())),
            ("compression", message.compression.map(|_| "zlib".into())),
            ("argsrepr", message.argsrepr.clone().map(Value::from)),
            ("kwargsrepr", message.kwargsrepr.clone().map(Value::from)),
        ];
        let options = options.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let options = options.collect();
        (message, options)
    }

    /// The message to send at `now`: `fresh` gives new unique ids, `origin` names the sender as `gen<pid>@<host>`.
    pub fn message(self, now: Moment, origin: &str, mut fresh: impl FnMut() -> String) -> TaskMessage {
        let mut message = self.message;
        message.id = self.id.unwrap_or_else(&mut fresh);
        if message.root_id.is_empty() {
            message.root_id.clone_from(&message.id);
        }
        if message.correlation_id.as_deref().is_none_or(str::is_empty) {
            message.correlation_id = Some(message.id.clone());
        }
        message.eta = self.countdown.map_or(message.eta, |countdown| Some(now.plus(countdown)));
        message.expires = self.expires_in.map_or(message.expires, |expires| Some(now.plus(expires)));
        if let Some(expires) = message.expires {
            // For brokers that know of it; a worker on Redis looks at the header.
            let left = expires.since(now).as_millis().to_string();
            message.properties.insert("expiration".to_owned(), left.into());
        }
        message.delivery_tag = fresh();
        message.priority = self.priority.unwrap_or(0);
        message.routing_key = self.queue.unwrap_or_else(|| DEFAULT_QUEUE.to_owned());
        message.origin = Some(origin.to_owned());
        message.argsrepr = message.argsrepr.or_else(|| Some(repr::args(&message.args)));
        message.kwargsrepr = message.kwargsrepr.or_else(|| Some(repr::kwargs(&message.kwargs)));
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_count_from_the_moment_of_sending_and_the_last_word_counts() {
        let now = Moment::from_unix_micros(1_000_000);
        let mut next = 0;
        let mut fresh = || {
            next += 1;
            format!("fresh-{next}")
        };
        let task =
            Task::new("t").eta(now).countdown(Duration::from_secs(2)).expires(Duration::from_secs(3)).priority(12);
        let message = task.message(now, "gen1@h", &mut fresh);
        assert_eq!(message.eta, Some(Moment::from_unix_micros(3_000_000)));
        assert_eq!(message.expires, Some(Moment::from_unix_micros(4_000_000)));
        assert_eq!(
            (message.id.as_str(), message.root_id.as_str(), message.delivery_tag.as_str()),
            ("fresh-1", "fresh-1", "fresh-2")
        );
        assert_eq!((message.correlation_id.as_deref(), message.priority), (Some("fresh-1"), 9));
        let task = Task::new("t").countdown(Duration::from_secs(2)).eta(now).id("mine").args(json!("one")).queue("q");
        let message = task.message(now, "gen1@h", &mut fresh);
        assert_eq!((message.eta, message.id.as_str(), message.routing_key.as_str()), (Some(now), "mine", "q"));
        assert_eq!(message.args, [json!("one")]);
    }
}
