//! Events as Celery publishes them for those who watch: `celery events`, Flower. Pure.

use serde_json::{Map, Value, json};

use super::envelope::Envelope;
use super::json;
use super::keys::EVENT_EXCHANGE;
use super::message::TaskMessage;
use super::meta::Exception;
use super::moment::Moment;
use crate::base::text::truncated;

/// Bytes of one text of an event: what Celery shows of arguments and results has at most 1,024 characters.
const TEXT_BYTES: usize = 4 << 10;

/// Bytes of a traceback: its end is left out.
const TRACEBACK_BYTES: usize = 16 << 10;

/// Something that happened to a task or a worker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    /// What happened, as `task-received`.
    kind: &'static str,
    fields: Map<String, Value>,
}

/// Who tells it.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The worker, or the producer as `gen<pid>@<host>`.
    pub hostname: String,
    /// Its process.
    pub pid: u32,
}

/// When it happened, by the clocks of its source.
#[derive(Debug, Clone, Copy)]
pub(super) struct When {
    /// The logical clock.
    pub clock: u64,
    /// The time of the day.
    pub now: Moment,
    /// Hours that the source's zone is behind UTC, as Celery counts them; negative in the east.
    pub behind_utc: f64,
}

/// How a worker is, for its heartbeat.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vitals {
    /// Seconds from one heartbeat to the next.
    pub freq: f64,
    /// Handlers that run.
    pub active: usize,
    /// Tasks that have begun since the start.
    pub processed: u64,
    /// The load of the machine in the last 1, 5 and 15 minutes.
    pub load: [f64; 3],
}

impl Event {
    fn new(kind: &'static str, fields: Value) -> Self {
        let Value::Object(fields) = fields else { unreachable!("the callers give objects") };
        Self { kind, fields }
    }

    /// `worker-online`, `worker-heartbeat` or `worker-offline`.
    pub(super) fn worker(kind: &'static str, vitals: &Vitals) -> Self {
        let Vitals { freq, active, processed, load } = vitals;
        let load = load.map(|load| (load * 100.0).round() / 100.0);
        Self::new(
            kind,
            json!({
                "freq": freq, "active": active, "processed": processed, "loadavg": load,
                "sw_ident": "phalanx", "sw_ver": env!("CARGO_PKG_VERSION"), "sw_sys": "Linux",
            }),
        )
    }

    /// A producer has put the task into its queue.
    pub(super) fn sent(message: &TaskMessage) -> Self {
        let mut event = Self { kind: "task-sent", ..Self::received(message) };
        for (key, value) in
            [("queue", &message.routing_key), ("exchange", &message.exchange), ("routing_key", &message.routing_key)]
        {
            event.fields.insert(key.to_owned(), text(value).into());
        }
        event
    }

    /// A worker has taken the task.
    pub(super) fn received(message: &TaskMessage) -> Self {
        Self::new(
            "task-received",
            json!({
                "uuid": text(&message.id), "name": text(message.shadow.as_ref().unwrap_or(&message.task)),
                "args": shown(&message.argsrepr), "kwargs": shown(&message.kwargsrepr),
                "root_id": text(&message.root_id), "parent_id": shown(&message.parent_id), "retries": message.retries,
                "eta": message.eta.map(|at| at.to_string()), "expires": message.expires.map(|at| at.to_string()),
            }),
        )
    }

    /// Its handler runs.
    pub(super) fn started(id: &str) -> Self {
        Self::new("task-started", json!({"uuid": text(id)}))
    }

    /// It has returned a value that is shown so, after so many seconds.
    pub(super) fn succeeded(id: &str, shown: &str, runtime: Option<f64>) -> Self {
        Self::new("task-succeeded", json!({"uuid": text(id), "result": text(shown), "runtime": runtime}))
    }

    /// It has failed.
    pub(super) fn failed(id: &str, exception: &Exception, traceback: Option<&str>) -> Self {
        Self::new("task-failed", thrown(id, exception, traceback))
    }

    /// It has failed and will be tried again.
    pub(super) fn retried(id: &str, exception: &Exception) -> Self {
        Self::new("task-retried", thrown(id, exception, None))
    }

    /// It was called off: `revoked`, `terminated` while it ran, or `expired`.
    pub(super) fn revoked(id: &str, reason: &str) -> Self {
        let terminated = reason == "terminated";
        Self::new(
            "task-revoked",
            // As if the signal that Celery sends by default had ended it.
            json!({
                "uuid": text(id), "terminated": terminated, "signum": terminated.then_some(15),
                "expired": reason == "expired",
            }),
        )
    }

    /// Its handler has refused it.
    pub(super) fn rejected(id: &str, requeue: bool) -> Self {
        Self::new("task-rejected", json!({"uuid": text(id), "requeue": requeue}))
    }

    /// Its JSON, with what every event has.
    pub(super) fn write(self, source: &Source, when: When) -> String {
        let mut event = Map::new();
        event.insert("hostname".to_owned(), source.hostname.clone().into());
        event.insert("utcoffset".to_owned(), when.behind_utc.into());
        event.insert("pid".to_owned(), source.pid.into());
        event.insert("clock".to_owned(), when.clock.into());
        event.extend(self.fields);
        event.insert("timestamp".to_owned(), (when.now.unix_micros() as f64 / 1e6).into());
        event.insert("type".to_owned(), self.kind.into());
        json::write(&Value::Object(event))
    }

    /// The routing key under which it is published alone.
    pub(super) fn routing_key(&self) -> String {
        self.kind.replace('-', ".")
    }
}

fn shown(value: &Option<String>) -> Option<&str> {
    value.as_deref().map(text)
}

fn text(text: &str) -> &str {
    truncated(text, TEXT_BYTES)
}

fn thrown(id: &str, exception: &Exception, traceback: Option<&str>) -> Value {
    let traceback = traceback.map(|traceback| truncated(traceback, TRACEBACK_BYTES));
    json!({"uuid": text(id), "exception": text(&exception.shown()), "traceback": traceback})
}

/// The message that carries one event, or several as a list: their JSON is `body`.
pub(super) fn message(hostname: &str, body: String, routing_key: &str, tag: String) -> String {
    let mut envelope = Envelope::json(&Value::Null);
    envelope.body = body.into_bytes();
    envelope.headers.insert("hostname".to_owned(), hostname.into());
    let properties = json!({
        "delivery_mode": 1, "delivery_info": {"exchange": EVENT_EXCHANGE, "routing_key": routing_key}, "priority": 0,
        "body_encoding": "base64", "delivery_tag": tag,
    });
    if let Value::Object(properties) = properties {
        envelope.properties = properties;
    }
    envelope.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(event: Event) -> Value {
        let source = Source { hostname: "w1@h".to_owned(), pid: 7 };
        let when = When { clock: 6, now: Moment::from_unix_micros(1_796_132_640_526_198), behind_utc: -5.5 };
        serde_json::from_str(&event.write(&source, when)).unwrap()
    }

    fn common() -> Value {
        json!({"hostname": "w1@h", "utcoffset": -5.5, "pid": 7, "clock": 6, "timestamp": 1_796_132_640.526_198})
    }

    /// An event with these fields beside those that all have.
    fn of(kind: &str, fields: &Value) -> Value {
        let mut event = common();
        let map = event.as_object_mut().unwrap();
        map.insert("type".to_owned(), kind.into());
        map.extend(fields.as_object().unwrap().clone());
        event
    }

    #[test]
    fn events_are_those_of_celery() {
        let mut message = TaskMessage::new("id", "t.add");
        message.argsrepr = Some("(1,)".to_owned());
        message.parent_id = Some("p".to_owned());
        message.routing_key = "q".to_owned();
        message.eta = Some(Moment::from_unix_micros(0));
        let received = json!({
            "uuid": "id", "name": "t.add", "args": "(1,)", "kwargs": null, "root_id": "id", "parent_id": "p",
            "retries": 0, "eta": "1970-01-01T00:00:00+00:00", "expires": null,
        });
        assert_eq!(written(Event::received(&message)), of("task-received", &received));
        let mut sent = of("task-sent", &received);
        for (key, value) in [("queue", "q"), ("exchange", ""), ("routing_key", "q")] {
            sent[key] = value.into();
        }
        assert_eq!(written(Event::sent(&message)), sent);
        assert_eq!(written(Event::started("id")), of("task-started", &json!({"uuid": "id"})));
        let done = json!({"uuid": "id", "result": "{'a': [1, None]}", "runtime": 0.5});
        assert_eq!(written(Event::succeeded("id", "{'a': [1, None]}", Some(0.5))), of("task-succeeded", &done));
        let exception = Exception { exc_message: json!(["no", 7]), ..Exception::new("builtins", "ValueError", "") };
        let failed = json!({"uuid": "id", "exception": "ValueError('no', 7)", "traceback": "tb"});
        assert_eq!(written(Event::failed("id", &exception, Some("tb"))), of("task-failed", &failed));
        let retried = json!({"uuid": "id", "exception": "ValueError('no', 7)", "traceback": null});
        assert_eq!(written(Event::retried("id", &exception)), of("task-retried", &retried));
        for (reason, terminated, signum, expired) in [
            ("revoked", false, Value::Null, false),
            ("terminated", true, json!(15), false),
            ("expired", false, Value::Null, true),
        ] {
            let revoked = json!({"uuid": "id", "terminated": terminated, "signum": signum, "expired": expired});
            assert_eq!(written(Event::revoked("id", reason)), of("task-revoked", &revoked));
        }
        assert_eq!(written(Event::rejected("id", true)), of("task-rejected", &json!({"uuid": "id", "requeue": true})));
        let vitals = Vitals { freq: 2.0, active: 1, processed: 4, load: [0.123, 1.0, 2.0] };
        let beat = json!({
            "freq": 2.0, "active": 1, "processed": 4, "loadavg": [0.12, 1.0, 2.0], "sw_ident": "phalanx",
            "sw_ver": env!("CARGO_PKG_VERSION"), "sw_sys": "Linux",
        });
        let event = Event::worker("worker-heartbeat", &vitals);
        assert_eq!(event.routing_key(), "worker.heartbeat");
        assert_eq!(written(event), of("worker-heartbeat", &beat));
    }

    #[test]
    fn what_others_wrote_is_bounded() {
        let mut message = TaskMessage::new("i".repeat(1 << 20), "n".repeat(1 << 20));
        (message.argsrepr, message.kwargsrepr) = (Some("ä".repeat(1 << 20)), Some("k".repeat(1 << 20)));
        message.parent_id = Some("p".repeat(1 << 20));
        let received = written(Event::received(&message)).to_string();
        assert!(received.len() < 8 * TEXT_BYTES, "{}", received.len());
        let long = Exception::new("m".repeat(1 << 20), "E".repeat(1 << 20), "t".repeat(1 << 20));
        let failed = written(Event::failed("id", &long, Some(&"t".repeat(1 << 20)))).to_string();
        assert!(failed.len() < TEXT_BYTES + TRACEBACK_BYTES + 1024, "{}", failed.len());
    }

    #[test]
    fn a_message_of_events_is_read_as_kombu_writes_it() {
        let text = message("w1@h", "[{\"type\":\"task-started\"}]".to_owned(), "task.multi", "tag".to_owned());
        let envelope = Envelope::read(text.as_bytes()).unwrap();
        assert_eq!(envelope.payload().unwrap(), json!([{"type": "task-started"}]));
        assert_eq!((envelope.exchange(), envelope.routing_key()), ("celeryev", "task.multi"));
        assert_eq!(envelope.headers["hostname"], "w1@h", "a worker knows its own events by it");
    }
}
