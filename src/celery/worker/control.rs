//! Remote control: what Celery's tools ask of a worker, and what it answers. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::base::glob;
use crate::celery::envelope::{Envelope, MessageError};

/// A command that is meant for this worker.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Command {
    /// What is asked.
    pub method: String,
    /// With which arguments.
    pub arguments: Map<String, Value>,
    /// Where the answer is waited for, if it is.
    pub reply: Option<ReplyTo>,
    /// The sender's logical clock.
    pub clock: u64,
}

/// Where an answer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplyTo {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// What the asker knows its answers by.
    pub ticket: String,
}

/// What a command changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// These tasks are revoked; with the second, those that run are ended.
    Revoke(Vec<String>, bool),
    /// Events about tasks are published, or not any more.
    Events(bool),
    /// A heartbeat is published now.
    Heartbeat,
    /// The worker is asked to stop.
    Shutdown,
}

/// What a worker knows of itself. Each list is made only when it is asked for.
pub(super) trait Node {
    /// Its name, as `phalanx@host`.
    fn hostname(&self) -> &str;
    /// Names of the tasks that it runs.
    fn registered(&self) -> Vec<String>;
    /// Tasks whose handler runs.
    fn active(&self) -> Vec<Value>;
    /// Tasks that wait for a thread.
    fn reserved(&self) -> Vec<Value>;
    /// Tasks whose time has not come.
    fn scheduled(&self) -> Vec<Value>;
    /// A task by its id: its stage and what is known of it.
    fn find(&self, id: &str) -> Option<(&'static str, Value)>;
    /// Ids that were revoked.
    fn revoked(&self) -> Vec<String>;
    /// The queues that it takes from.
    fn queues(&self) -> Vec<String>;
    /// Its numbers.
    fn stats(&self) -> Value;
    /// The logical clock, moved on.
    fn clock(&self) -> u64;
    /// Whether it publishes events about tasks.
    fn task_events(&self) -> bool;
}

/// Reads a command; `None` if it is for others.
///
/// # Errors
/// [`MessageError`] if it is none.
pub(super) fn read(text: &[u8], hostname: &str) -> Result<Option<Command>, MessageError> {
    let envelope = Envelope::read(text)?;
    let clock = envelope.headers.get("clock").and_then(Value::as_u64).unwrap_or(0);
    let mut body = envelope.payload()?;
    if !is_for(&body, hostname) {
        return Ok(None);
    }
    let text_of = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let method = text_of(body.get("method"))
        .ok_or_else(|| MessageError::NotAMessage("a command without a method".to_owned()))?;
    let reply = body.get("reply_to").filter(|to| to.is_object()).and_then(|to| {
        Some(ReplyTo {
            exchange: text_of(to.get("exchange"))?,
            routing_key: text_of(to.get("routing_key"))?,
            ticket: text_of(body.get("ticket"))?,
        })
    });
    let arguments = match body.get_mut("arguments").map(Value::take) {
        Some(Value::Object(arguments)) => arguments,
        _ => Map::new(),
    };
    Ok(Some(Command { method, arguments, reply, clock }))
}

fn is_for(body: &Value, hostname: &str) -> bool {
    let text = |key: &str| body.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    match (body.get("destination"), text("pattern"), text("matcher")) {
        (Some(Value::Array(names)), ..) if !names.is_empty() => names.iter().any(|name| name == hostname),
        (Some(Value::String(names)), ..) if !names.is_empty() => names.contains(hostname),
        (_, Some(pattern), Some("glob")) => glob::matches(pattern, hostname),
        // Another kind of pattern is not understood, and a command for others is worse than none.
        (_, Some(_), Some(_)) => false,
        _ => true,
    }
}

/// The answer to a command, and what it changes.
pub(super) fn answer(command: &Command, node: &dyn Node) -> (Value, Effect) {
    let arguments = &command.arguments;
    let known = match command.method.as_str() {
        "ping" => json!({"ok": "pong"}),
        "active" | "dump_active" => node.active().into(),
        "reserved" | "dump_reserved" => node.reserved().into(),
        "scheduled" | "dump_schedule" => node.scheduled().into(),
        "revoked" | "dump_revoked" => node.revoked().into(),
        "registered" | "dump_tasks" => node.registered().into(),
        "stats" => node.stats(),
        "active_queues" => node.queues().iter().map(|queue| shown_queue(queue)).collect(),
        "clock" => json!({"clock": node.clock()}),
        "report" => json!({"ok": format!("phalanx {} on {}", env!("CARGO_PKG_VERSION"), node.hostname())}),
        "query_task" => {
            let found = ids(arguments, "ids").into_iter().filter_map(|id| {
                let (stage, info) = node.find(&id)?;
                Some((id, json!([stage, info])))
            });
            Value::Object(found.collect())
        }
        // A Celery worker that starts asks its neighbours what was revoked before it came.
        "hello" => {
            let from = arguments.get("from_node").and_then(Value::as_str).unwrap_or("");
            if from == node.hostname() {
                return (Value::Null, Effect::None);
            }
            let theirs = arguments.get("revoked").map(id_list).unwrap_or_default();
            let answer = json!({"revoked": node.revoked(), "clock": node.clock()});
            return (answer, if theirs.is_empty() { Effect::None } else { Effect::Revoke(theirs, false) });
        }
        "revoke" | "terminate" => return revoke(command, node),
        "shutdown" => return (json!({"ok": "shutting down"}), Effect::Shutdown),
        // Nobody waits for the outcome of an election here.
        "election" => Value::Null,
        "heartbeat" => return (Value::Null, Effect::Heartbeat),
        "enable_events" | "disable_events" => return events(command.method == "enable_events", node),
        "pool_grow"
        | "pool_shrink"
        | "pool_restart"
        | "autoscale"
        | "add_consumer"
        | "cancel_consumer"
        | "rate_limit"
        | "time_limit"
        | "revoke_by_stamped_headers"
        | "conf"
        | "dump_conf"
        | "objgraph"
        | "memsample"
        | "memdump" => {
            json!({"error": format!("{} is not supported by phalanx", command.method)})
        }
        method => json!({"error": format!("KeyError('{method}')")}),
    };
    (known, Effect::None)
}

fn events(wanted: bool, node: &dyn Node) -> (Value, Effect) {
    let word = if wanted { "enabled" } else { "disabled" };
    match node.task_events() == wanted {
        true => (json!({"ok": format!("task events already {word}")}), Effect::None),
        false => (json!({"ok": format!("task events {word}")}), Effect::Events(wanted)),
    }
}

fn revoke(command: &Command, node: &dyn Node) -> (Value, Effect) {
    let truthy = |value: Option<&Value>| !matches!(value, None | Some(Value::Null | Value::Bool(false)));
    let terminate = command.method == "terminate" || truthy(command.arguments.get("terminate"));
    let ids = ids(&command.arguments, "task_id");
    let answer = if terminate {
        let known: Vec<_> = ids.iter().filter(|id| node.find(id).is_some()).cloned().collect();
        match known.is_empty() {
            true => json!({"ok": "terminate: tasks unknown"}),
            false => json!({"ok": format!("terminate: {}", known.join(", "))}),
        }
    } else {
        json!({"ok": format!("tasks {} flagged as revoked", ids.join(", "))})
    };
    (answer, Effect::Revoke(ids, terminate))
}

/// One id or a list of them, each once.
fn ids(arguments: &Map<String, Value>, key: &str) -> Vec<String> {
    arguments.get(key).map(id_list).unwrap_or_default()
}

fn id_list(value: &Value) -> Vec<String> {
    let all: BTreeSet<String> = match value {
        Value::String(id) => [id.clone()].into(),
        Value::Array(ids) => ids.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        // Older workers sent a map of ids to times.
        Value::Object(ids) => ids.keys().cloned().collect(),
        _ => BTreeSet::new(),
    };
    all.into_iter().collect()
}

/// A queue as kombu shows it.
fn shown_queue(name: &str) -> Value {
    json!({
        "name": name,
        "exchange": {
            "name": name, "type": "direct", "arguments": null, "durable": true, "passive": false, "auto_delete": false,
            "delivery_mode": null, "no_declare": false,
        },
        "routing_key": name, "queue_arguments": null, "binding_arguments": null, "consumer_arguments": null,
        "durable": true, "exclusive": false, "auto_delete": false, "no_ack": false, "alias": null, "bindings": [],
        "no_declare": null, "expires": null, "message_ttl": null, "max_length": null, "max_length_bytes": null,
        "max_priority": null,
    })
}

/// The message that carries an answer.
pub(super) fn reply(hostname: &str, answer: Value, to: &ReplyTo, clock: u64, tag: &str) -> String {
    let mut envelope = Envelope::json(&json!({ hostname: answer }));
    envelope.headers.insert("ticket".to_owned(), to.ticket.clone().into());
    envelope.headers.insert("clock".to_owned(), clock.into());
    let properties = json!({
        "delivery_mode": 1, "priority": 0, "delivery_tag": tag,
        "delivery_info": {"exchange": to.exchange, "routing_key": to.routing_key},
    });
    if let Value::Object(properties) = properties {
        envelope.properties = properties;
    }
    envelope.write()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;

    impl Node for Fake {
        fn hostname(&self) -> &str {
            "phalanx@here"
        }
        fn registered(&self) -> Vec<String> {
            vec!["add".to_owned()]
        }
        fn active(&self) -> Vec<Value> {
            vec![json!({"id": "a"})]
        }
        fn reserved(&self) -> Vec<Value> {
            Vec::new()
        }
        fn scheduled(&self) -> Vec<Value> {
            Vec::new()
        }
        fn find(&self, id: &str) -> Option<(&'static str, Value)> {
            (id == "a").then(|| ("active", json!({"id": "a"})))
        }
        fn revoked(&self) -> Vec<String> {
            vec!["r".to_owned()]
        }
        fn queues(&self) -> Vec<String> {
            vec!["celery".to_owned()]
        }
        fn stats(&self) -> Value {
            json!({})
        }
        fn clock(&self) -> u64 {
            7
        }
        fn task_events(&self) -> bool {
            true
        }
    }

    fn ask(method: &str, arguments: Value) -> (Value, Effect) {
        let Value::Object(arguments) = arguments else { unreachable!() };
        answer(&Command { method: method.to_owned(), arguments, reply: None, clock: 0 }, &Fake)
    }

    fn command(more: Value) -> Option<Command> {
        let mut body =
            json!({"method": "ping", "arguments": {}, "destination": null, "pattern": null, "matcher": null});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(Envelope::json(&body).write().as_bytes(), "phalanx@here").unwrap()
    }

    #[test]
    fn a_command_is_for_all_for_the_named_or_for_those_of_a_pattern() {
        assert_eq!(command(json!({})).unwrap().method, "ping");
        assert!(command(json!({"destination": ["phalanx@here", "x"]})).is_some());
        assert!(command(json!({"destination": ["x"]})).is_none());
        assert!(command(json!({"pattern": "pha*@h?r[a-e]", "matcher": "glob"})).is_some());
        assert!(command(json!({"pattern": "x*", "matcher": "glob"})).is_none());
        assert!(command(json!({"pattern": ".*", "matcher": "pcre"})).is_none());
        let asked = command(json!({"ticket": "t", "reply_to": {"exchange": "e", "routing_key": "k"}})).unwrap();
        assert_eq!(asked.reply.unwrap(), ReplyTo { exchange: "e".into(), routing_key: "k".into(), ticket: "t".into() });
        assert!(read(b"x", "h").is_err() && read(Envelope::json(&json!({})).write().as_bytes(), "h").is_err());
    }

    #[test]
    fn answers_are_those_of_celery() {
        assert_eq!(ask("ping", json!({})).0, json!({"ok": "pong"}));
        assert_eq!(ask("registered", json!({"x": 1})).0, json!(["add"]));
        assert_eq!(ask("query_task", json!({"ids": ["a", "b"]})).0, json!({"a": ["active", {"id": "a"}]}));
        assert_eq!(ask("nonsense", json!({})).0, json!({"error": "KeyError('nonsense')"}));
        assert_eq!(ask("rate_limit", json!({})).0, json!({"error": "rate_limit is not supported by phalanx"}));
        assert_eq!(ask("hello", json!({"from_node": "phalanx@here"})).0, Value::Null);
        let hello = ask("hello", json!({"from_node": "x", "revoked": {"z": 1}}));
        assert_eq!(hello, (json!({"revoked": ["r"], "clock": 7}), Effect::Revoke(vec!["z".into()], false)));
    }

    #[test]
    fn a_revoke_names_its_tasks_once_and_says_which_it_ends() {
        let plain = ask("revoke", json!({"task_id": ["b", "a", "a"]}));
        assert_eq!(plain.0, json!({"ok": "tasks a, b flagged as revoked"}));
        assert_eq!(plain.1, Effect::Revoke(vec!["a".into(), "b".into()], false));
        let hard = ask("revoke", json!({"task_id": ["b", "a"], "terminate": true, "signal": "SIGKILL"}));
        assert_eq!(hard.0, json!({"ok": "terminate: a"}));
        assert_eq!(ask("terminate", json!({"task_id": "z"})).0, json!({"ok": "terminate: tasks unknown"}));
        assert_eq!(ask("shutdown", json!({})).1, Effect::Shutdown);
    }
}
