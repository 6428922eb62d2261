//! A task as Celery's message protocol 2 says it: read from an [`Envelope`] and written into one. Pure.

use serde_json::{Map, Value, json};

use super::envelope::{Compression, Envelope, MessageError};
use super::moment::{Moment, Zone};

/// Headers that have a field of their own in [`TaskMessage`].
const KNOWN_HEADERS: [&str; 21] = [
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    "compression",
    "redelivered",
];

/// Properties that have a field of their own in [`TaskMessage`].
const KNOWN_PROPERTIES: [&str; 7] =
    ["correlation_id", "reply_to", "delivery_mode", "delivery_info", "priority", "body_encoding", "delivery_tag"];

/// What follows a task: signatures, as Celery wrote them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embed {
    /// Called with the result.
    pub callbacks: Value,
    /// Called after a failure.
    pub errbacks: Value,
    /// The rest of a chain, its next task last.
    pub chain: Value,
    /// Called once the whole group is done.
    pub chord: Value,
    /// What this program does not know.
    pub other: Map<String, Value>,
}

/// A task in a queue.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskMessage {
    /// The task's id, under which its result is stored.
    pub id: String,
    /// The name under which workers know it.
    pub task: String,
    /// Positional arguments.
    pub args: Vec<Value>,
    /// Keyword arguments.
    pub kwargs: Map<String, Value>,
    /// What follows it.
    pub embed: Embed,
    /// Not to be run before this moment.
    pub eta: Option<Moment>,
    /// Not to be run after this moment.
    pub expires: Option<Moment>,
    /// How often it was retried already.
    pub retries: u32,
    /// Seconds after which it is ended.
    pub time_limit: Option<f64>,
    /// Seconds after which it is asked to end.
    pub soft_time_limit: Option<f64>,
    /// The first task of the tree it belongs to; itself if it has no parent.
    pub root_id: String,
    /// The task that sent it.
    pub parent_id: Option<String>,
    /// The group it belongs to.
    pub group: Option<String>,
    /// Its place in the group.
    pub group_index: Option<i64>,
    /// A name for logs in place of the task's.
    pub shadow: Option<String>,
    /// The language of the sender, as `py`.
    pub lang: String,
    /// Its arguments as logs and tools show them.
    pub argsrepr: Option<String>,
    /// Its keyword arguments as logs and tools show them.
    pub kwargsrepr: Option<String>,
    /// Who sent it, as `gen1@host`.
    pub origin: Option<String>,
    /// Whether nobody wants its result; `None` leaves that to the worker.
    pub ignore_result: Option<bool>,
    /// How often a task has replaced itself by another.
    pub replaced_task_nesting: i64,
    /// Names of headers that were stamped by the sender.
    pub stamped_headers: Value,
    /// Their values.
    pub stamps: Value,
    /// Headers of other meaning, in their order.
    pub headers: Map<String, Value>,
    /// Mostly the task's id.
    pub correlation_id: Option<String>,
    /// A queue for the answer; Celery's Redis back end does not use it.
    pub reply_to: String,
    /// 2 for messages that should outlive a restart of the broker.
    pub delivery_mode: i64,
    /// The exchange; empty for a message sent straight to a queue.
    pub exchange: String,
    /// The routing key; the queue's name if the exchange is empty.
    pub routing_key: String,
    /// From 0, which goes first, to 9.
    pub priority: u8,
    /// What tells this delivery from every other.
    pub delivery_tag: String,
    /// Whether it was delivered before and not acknowledged.
    pub redelivered: bool,
    /// Properties of other meaning, in their order.
    pub properties: Map<String, Value>,
    /// How the body is packed.
    pub compression: Option<Compression>,
}

impl TaskMessage {
    /// A message with these and otherwise with what Celery writes when nothing was asked for.
    pub fn new(id: impl Into<String>, task: impl Into<String>) -> Self {
        let id = id.into();
        Self {
            task: task.into(),
            args: Vec::new(),
            kwargs: Map::new(),
            embed: Embed::default(),
            eta: None,
            expires: None,
            retries: 0,
            time_limit: None,
            soft_time_limit: None,
            root_id: id.clone(),
            parent_id: None,
            group: None,
            group_index: None,
            shadow: None,
            lang: "py".to_owned(),
            argsrepr: None,
            kwargsrepr: None,
            origin: None,
            ignore_result: None,
            replaced_task_nesting: 0,
            stamped_headers: Value::Null,
            stamps: json!({}),
            headers: Map::new(),
            correlation_id: Some(id.clone()),
            reply_to: String::new(),
            delivery_mode: 2,
            exchange: String::new(),
            routing_key: super::DEFAULT_QUEUE.to_owned(),
            priority: 0,
            delivery_tag: String::new(),
            redelivered: false,
            properties: Map::new(),
            compression: None,
            id,
        }
    }

    /// As [`TaskMessage::read_in`], with times that have no offset in UTC.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn read(envelope: &Envelope) -> Result<Self, MessageError> {
        Self::read_in(envelope, &Zone::utc())
    }

    /// Reads a task; times without an offset are in `zone`. What the headers say wrongly but a task can be run without
    /// is taken as absent, as Celery does.
    ///
    /// # Errors
    /// [`MessageError`]. The id and the name are then still to be had from the envelope, if it has any.
    pub fn read_in(envelope: &Envelope, zone: &Zone) -> Result<Self, MessageError> {
        let headers = Fields(&envelope.headers);
        let properties = Fields(&envelope.properties);
        let task = headers.text("task").filter(|task| !task.is_empty()).ok_or_else(|| not("no header \"task\""))?;
        let id = headers.text("id").filter(|id| !id.is_empty()).ok_or_else(|| not("no header \"id\""))?;
        let (args, kwargs, embed) = body(envelope.payload()?)?;
        let limits = envelope.headers.get("timelimit").and_then(Value::as_array);
        let limit = |at: usize| limits.and_then(|limits| limits.get(at)).and_then(Value::as_f64);
        Ok(Self {
            args,
            kwargs,
            embed,
            eta: headers.moment("eta", zone)?,
            expires: headers.moment("expires", zone)?,
            retries: headers.int("retries").and_then(|retries| u32::try_from(retries).ok()).unwrap_or(0),
            time_limit: limit(0),
            soft_time_limit: limit(1),
            root_id: headers.text("root_id").unwrap_or_else(|| id.clone()),
            parent_id: headers.text("parent_id"),
            group: headers.text("group"),
            group_index: headers.int("group_index"),
            shadow: headers.text("shadow"),
            lang: headers.text("lang").unwrap_or_else(|| "py".to_owned()),
            argsrepr: headers.text("argsrepr"),
            kwargsrepr: headers.text("kwargsrepr"),
            origin: headers.text("origin"),
            ignore_result: envelope.headers.get("ignore_result").and_then(Value::as_bool),
            replaced_task_nesting: headers.int("replaced_task_nesting").unwrap_or(0),
            stamped_headers: headers.value("stamped_headers"),
            stamps: headers.value("stamps"),
            headers: headers.but(&KNOWN_HEADERS),
            correlation_id: properties.text("correlation_id"),
            reply_to: properties.text("reply_to").unwrap_or_default(),
            delivery_mode: properties.int("delivery_mode").unwrap_or(2),
            exchange: envelope.exchange().to_owned(),
            routing_key: envelope.routing_key().to_owned(),
            priority: envelope.priority(),
            delivery_tag: envelope.delivery_tag().unwrap_or("").to_owned(),
            redelivered: envelope.is_redelivered(),
            properties: properties.but(&KNOWN_PROPERTIES),
            compression: envelope.headers.contains_key("compression").then_some(Compression::Zlib),
            task,
            id,
        })
    }

    /// Writes it as Celery's producer does, field for field.
    pub fn write(&self) -> Envelope {
        let mut embed = json!({
            "callbacks": self.embed.callbacks, "errbacks": self.embed.errbacks,
            "chain": self.embed.chain, "chord": self.embed.chord,
        });
        extend(&mut embed, &self.embed.other);
        let mut envelope = Envelope::json(&json!([self.args, self.kwargs, embed]));
        let mut headers = json!({
            "lang": self.lang,
            "task": self.task,
            "id": self.id,
            "shadow": self.shadow,
            "eta": self.eta.map(|eta| eta.to_string()),
            "expires": self.expires.map(|expires| expires.to_string()),
            "group": self.group,
            "group_index": self.group_index,
            "retries": self.retries,
            "timelimit": [number(self.time_limit), number(self.soft_time_limit)],
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "argsrepr": self.argsrepr,
            "kwargsrepr": self.kwargsrepr,
            "origin": self.origin,
            "ignore_result": self.ignore_result,
            "replaced_task_nesting": self.replaced_task_nesting,
            "stamped_headers": self.stamped_headers,
            "stamps": self.stamps,
        });
        extend(&mut headers, &self.headers);
        let mut info = json!({"exchange": self.exchange, "routing_key": self.routing_key});
        if self.redelivered {
            headers["redelivered"] = true.into();
            info["redelivered"] = true.into();
        }
        if let Some(compression) = self.compression {
            headers["compression"] = Compression::HEADER.into();
            envelope.body = compression.pack(&envelope.body);
        }
        let mut properties = json!({
            "correlation_id": self.correlation_id,
            "reply_to": self.reply_to,
            "delivery_mode": self.delivery_mode,
        });
        extend(&mut properties, &self.properties);
        properties["delivery_info"] = info;
        properties["priority"] = self.priority.into();
        properties["body_encoding"] = "base64".into();
        properties["delivery_tag"] = self.delivery_tag.clone().into();
        envelope.headers = object(headers);
        envelope.properties = object(properties);
        envelope
    }

    /// The same task once more, not before `eta`, as Celery's `Task.retry` sends it; whatever else it carried it keeps.
    ///
    /// The new message needs a delivery tag of its own.
    pub fn retry(&self, eta: Option<Moment>, delivery_tag: impl Into<String>) -> Self {
        let mut next = self.clone();
        next.retries = self.retries.saturating_add(1);
        next.eta = eta;
        next.delivery_tag = delivery_tag.into();
        next.redelivered = false;
        next
    }
}

type Body = (Vec<Value>, Map<String, Value>, Embed);

/// The three parts of a body.
fn body(payload: Value) -> Result<Body, MessageError> {
    let Value::Array(parts) = payload else { return Err(not("the body is not a list")) };
    let Ok([args, kwargs, embed]) = <[Value; 3]>::try_from(parts) else {
        return Err(not("the body is not a list of three"));
    };
    let Value::Array(args) = args else { return Err(not("the arguments are not a list")) };
    let Value::Object(kwargs) = kwargs else { return Err(not("the keyword arguments are not a mapping")) };
    let mut other = match embed {
        Value::Object(embed) => embed,
        Value::Null => Map::new(),
        _ => return Err(not("the third part of the body is not a mapping")),
    };
    let mut take = |key: &str| other.shift_remove(key).unwrap_or(Value::Null);
    let (callbacks, errbacks, chain, chord) = (take("callbacks"), take("errbacks"), take("chain"), take("chord"));
    Ok((args, kwargs, Embed { callbacks, errbacks, chain, chord, other }))
}

fn not(why: &str) -> MessageError {
    MessageError::NotATask(why.to_owned())
}

/// Seconds as Python writes a number: without a fraction if there is none.
fn number(seconds: Option<f64>) -> Value {
    match seconds {
        Some(seconds) if seconds.fract() == 0.0 && seconds.abs() < 1e15 => json!(seconds as i64),
        seconds => json!(seconds),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn extend(value: &mut Value, more: &Map<String, Value>) {
    if let Some(map) = value.as_object_mut() {
        map.extend(more.clone());
    }
}

/// Reads fields that may be absent, null or of another type.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn value(&self, key: &str) -> Value {
        self.0.get(key).cloned().unwrap_or(Value::Null)
    }

    fn text(&self, key: &str) -> Option<String> {
        self.0.get(key)?.as_str().map(str::to_owned)
    }

    fn int(&self, key: &str) -> Option<i64> {
        self.0.get(key)?.as_i64()
    }

    /// A moment, also one that kombu marked as such. Celery refuses a task whose time it cannot read, and so must we:
    /// it would run at the wrong time.
    fn moment(&self, key: &str, zone: &Zone) -> Result<Option<Moment>, MessageError> {
        let value = super::value::plain(self.value(key));
        match value {
            Value::Null => Ok(None),
            Value::String(text) if text.is_empty() => Ok(None),
            Value::String(text) => match Moment::read(&text, zone) {
                Ok(moment) => Ok(Some(moment)),
                Err(error) => Err(MessageError::NotATask(format!("{key} is {error}"))),
            },
            _ => Err(MessageError::NotATask(format!("{key} is not a text"))),
        }
    }

    fn but(&self, known: &[&str]) -> Map<String, Value> {
        self.0.iter().filter(|(key, _)| !known.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> TaskMessage {
        let mut task = TaskMessage::new("id-1", "t.add");
        task.args = vec![json!(1), json!("ü")];
        task.kwargs = object(json!({"deep": {"er": [1.5, null]}}));
        task.embed.other = object(json!({"future": 1}));
        task.embed.callbacks = json!([{"task": "t.next"}]);
        task.headers = object(json!({"custom": {"a": 1}, "x": null}));
        task.properties = object(json!({"expiration": "5000"}));
        task.eta = Some(Moment::from_unix_micros(1_800_000_000_000_000));
        task.expires = Some(Moment::from_unix_micros(1_800_000_000_500_000));
        task.time_limit = Some(30.0);
        task.soft_time_limit = Some(2.5);
        task.argsrepr = Some("(1, 'ü')".to_owned());
        task.kwargsrepr = Some("{…}".to_owned());
        task.origin = Some("gen1@host".to_owned());
        (task.group, task.group_index, task.parent_id) = (Some("g".to_owned()), Some(3), Some("p".to_owned()));
        (task.priority, task.delivery_tag) = (7, "tag".to_owned());
        task
    }

    #[test]
    fn a_task_survives_a_write_and_a_read_packed_or_not() {
        for compression in [None, Some(Compression::Zlib)] {
            let task = TaskMessage { compression, ..full() };
            let text = task.write().write();
            let read = TaskMessage::read(&Envelope::read(text.as_bytes()).unwrap()).unwrap();
            assert_eq!(read, task);
            assert_eq!(read.write().write(), text);
        }
        let headers = full().write().headers;
        assert_eq!(headers["timelimit"], json!([30, 2.5]));
        assert_eq!(headers["eta"], json!("2027-01-15T08:00:00+00:00"));
    }

    #[test]
    fn a_retry_keeps_all_but_its_count_its_time_and_its_delivery() {
        let mut task = full();
        task.redelivered = true;
        let next = task.retry(None, "tag-2");
        assert_eq!((next.retries, next.eta, next.delivery_tag.as_str(), next.redelivered), (1, None, "tag-2", false));
        let same = TaskMessage { retries: 0, eta: task.eta, delivery_tag: "tag".to_owned(), redelivered: true, ..next };
        assert_eq!(same, task);
    }

    #[test]
    fn a_body_or_a_time_that_is_none_is_refused_and_the_id_is_still_known() {
        let with = |change: &dyn Fn(&mut Envelope)| {
            let mut envelope = full().write();
            change(&mut envelope);
            let error = TaskMessage::read(&envelope).unwrap_err();
            (error, envelope)
        };
        for bad in ["{}", "[]", "[[], {}]", "[{}, {}, {}]", "[[], [], {}]", "[[], {}, 1]", "[[], {}, {}, 1]"] {
            let (error, envelope) = with(&|envelope| envelope.body = bad.as_bytes().to_vec());
            assert!(matches!(error, MessageError::NotATask(_)), "{bad}: {error}");
            assert_eq!((envelope.task_id(), envelope.task_name()), (Some("id-1"), Some("t.add")));
        }
        let (error, _) = with(&|envelope| envelope.body = b"not json".to_vec());
        assert!(matches!(error, MessageError::Body(_)), "{error}");
        for (key, bad) in [("eta", json!("soon")), ("expires", json!(5)), ("task", json!(null)), ("id", json!(""))] {
            let (error, _) = with(&|envelope| envelope.headers[key] = bad.clone());
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn what_celery_can_do_without_may_be_absent_or_odd() {
        let mut envelope = Envelope::json(&json!([[], {}, null]));
        envelope.headers = object(json!({"id": "i", "task": "t", "retries": -1, "timelimit": "x",
            "eta": {"__type__": "datetime", "__value__": "1970-01-01T00:00:01"}}));
        let task = TaskMessage::read(&envelope).unwrap();
        assert_eq!((task.retries, task.time_limit, task.root_id.as_str()), (0, None, "i"));
        assert_eq!((task.eta, task.ignore_result), (Some(Moment::from_unix_micros(1_000_000)), None));
    }
}
