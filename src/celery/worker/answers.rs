//! What a worker answers to remote control. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::changes;
use super::control::Command;
use super::node::{Effect, Node};
use crate::celery::repr;

/// The answer to a command, and what it changes.
pub(super) fn answer(command: &Command, node: &dyn Node) -> (Value, Effect) {
    let arguments = &command.arguments;
    let known = match command.method.as_str() {
        "ping" => json!({"ok": "pong"}),
        "active" | "dump_active" => node.active().into(),
        "reserved" | "dump_reserved" => node.reserved().into(),
        "scheduled" | "dump_schedule" => node.scheduled().into(),
        "revoked" | "dump_revoked" => node.revoked().into(),
        "registered" | "dump_tasks" => registered(arguments, node),
        "stats" => node.stats(),
        "active_queues" => node.queues().iter().map(|queue| shown_queue(queue)).collect(),
        "clock" => json!({"clock": node.clock()}),
        "report" => json!({"ok": report(node)}),
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
        "conf" | "dump_conf" => node.conf(),
        "memsample" => match node.memory() {
            Some(bytes) => format!("{:.2}MB", bytes as f64 / 1e6).into(),
            None => json!({"error": "the system does not tell how much memory the process uses"}),
        },
        _ => return changes::change(command, node),
    };
    (known, Effect::None)
}

/// The names, each with what is asked of it and set, as Celery shows it: the rate, unless something else is asked.
fn registered(arguments: &Map<String, Value>, node: &dyn Node) -> Value {
    let asked = arguments.get("taskinfoitems").and_then(Value::as_array).filter(|asked| !asked.is_empty());
    let asked: Vec<&str> = match asked {
        Some(asked) => asked.iter().filter_map(Value::as_str).collect(),
        None => vec!["rate_limit"],
    };
    let shown = |task: String| {
        let mut all = node.attributes_of(&task);
        all.insert("name".to_owned(), task.as_str().into());
        let of = |name: &&str| {
            let value = all.get(*name).filter(|value| !value.is_null())?;
            Some(format!("{name}={}", plain(value)))
        };
        let set: Vec<_> = asked.iter().filter_map(of).collect();
        if set.is_empty() { task } else { format!("{task} [{}]", set.join(" ")) }
    };
    node.registered().into_iter().map(shown).collect()
}

/// As Python's `str` shows it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| repr::value(value), str::to_owned)
}

/// What to write into a report of a fault: the software, and the settings one a line.
fn report(node: &dyn Node) -> String {
    let mut text = format!("software -> phalanx:{}\nworker -> {}\n", env!("CARGO_PKG_VERSION"), node.hostname());
    for (name, value) in node.conf().as_object().into_iter().flatten() {
        text.push_str(&format!("{name}: {value}\n"));
    }
    text
}

fn events(wanted: bool, node: &dyn Node) -> (Value, Effect) {
    let word = if wanted { "enabled" } else { "disabled" };
    match node.task_events() == wanted {
        true => (json!({"ok": format!("task events already {word}")}), Effect::None),
        false => (json!({"ok": format!("task events {word}")}), Effect::Events(wanted)),
    }
}

fn revoke(command: &Command, node: &dyn Node) -> (Value, Effect) {
    let terminate = command.method == "terminate" || changes::terminates(&command.arguments);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::worker::rate::Rate;

    struct Fake;

    impl Node for Fake {
        fn hostname(&self) -> &str {
            "phalanx@here"
        }
        fn registered(&self) -> Vec<String> {
            vec!["add".to_owned(), "mul".to_owned()]
        }
        fn attributes_of(&self, task: &str) -> Map<String, Value> {
            let rate = (task == "mul").then_some("10/m");
            let all = json!({"rate_limit": rate, "acks_late": true, "time_limit": 5, "throws": ["KeyError"]});
            all.as_object().cloned().unwrap()
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
        fn runs_stamped(&self, stamps: &[String]) -> bool {
            stamps == ["a\0\"x\""]
        }
        fn concurrency(&self) -> usize {
            4
        }
        fn conf(&self) -> Value {
            json!({"worker_concurrency": 4})
        }
        fn memory(&self) -> Option<usize> {
            Some(12_345_678)
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

    #[test]
    fn answers_are_those_of_celery() {
        assert_eq!(ask("ping", json!({})).0, json!({"ok": "pong"}));
        assert_eq!(ask("registered", json!({"x": 1})).0, json!(["add", "mul [rate_limit=10/m]"]));
        let asked = json!({"taskinfoitems": ["acks_late", "rate_limit", "time_limit", "throws", "nothing"]});
        let rest = "time_limit=5 throws=['KeyError']]";
        let shown = [format!("add [acks_late=True {rest}"), format!("mul [acks_late=True rate_limit=10/m {rest}")];
        assert_eq!(ask("registered", asked).0, json!(shown));
        assert_eq!(ask("conf", json!({"with_defaults": true})).0, json!({"worker_concurrency": 4}));
        assert_eq!(ask("memsample", json!({})).0, json!("12.35MB"));
        let report = ask("report", json!({})).0;
        assert!(
            report["ok"].as_str().unwrap().ends_with("worker -> phalanx@here\nworker_concurrency: 4\n"),
            "{report}"
        );
        assert_eq!(ask("query_task", json!({"ids": ["a", "b"]})).0, json!({"a": ["active", {"id": "a"}]}));
        assert_eq!(ask("nonsense", json!({})).0, json!({"error": "KeyError('nonsense')"}));
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

    #[test]
    fn a_change_is_checked_and_says_what_will_be() {
        let ok = |method: &str, arguments: Value, said: &str, effect: Effect| {
            assert_eq!(ask(method, arguments), (json!({"ok": said}), effect), "{method}");
        };
        let rate = |text: &str| Rate::read(&json!(text)).unwrap();
        let set = json!({"task_name": "add", "rate_limit": "10/m"});
        let said = "new rate limit set successfully";
        ok("rate_limit", set, said, Effect::LimitRate("add".into(), rate("10/m")));
        let none = json!({"task_name": "add", "rate_limit": 0});
        ok("rate_limit", none, "rate limit disabled successfully", Effect::LimitRate("add".into(), None));
        let limits = json!({"task_name": "add", "soft": 1, "hard": 2.5});
        let said = "time limits set successfully";
        ok("time_limit", limits, said, Effect::LimitTime("add".into(), Some(1.0), Some(2.5)));
        ok("time_limit", json!({"task_name": "add"}), said, Effect::LimitTime("add".into(), None, None));
        let queue = json!({"queue": "q", "exchange": null, "exchange_type": "direct", "routing_key": "q"});
        ok("add_consumer", queue, "add consumer q", Effect::AddQueue("q".into()));
        ok("cancel_consumer", json!({"queue": "q"}), "no longer consuming from q", Effect::RemoveQueue("q".into()));
        ok("pool_grow", json!({}), "pool will grow", Effect::Resize(5));
        ok("pool_shrink", json!({"n": 3}), "pool will shrink", Effect::Resize(1));
        let stamps = |stamps: &[&str]| stamps.iter().map(|stamp| (*stamp).to_owned()).collect::<Vec<_>>();
        let said = "headers {'a': ['x', 7], 'b': 'y'} flagged as revoked, but not terminated";
        let effect = Effect::RevokeStamped(stamps(&["a\0\"x\"", "a\x007", "b\0\"y\""]), false);
        ok("revoke_by_stamped_headers", json!({"headers": {"a": ["x", 7], "b": "y"}}), said, effect);
        let hard = json!({"headers": ["a=x"], "terminate": true, "signal": "SIGTERM"});
        let effect = Effect::RevokeStamped(stamps(&["a\0\"x\""]), true);
        ok("revoke_by_stamped_headers", hard, "headers {'a': 'x'} revoked", effect);
    }

    #[test]
    fn a_change_that_cannot_be_is_refused_in_words() {
        for (method, arguments, why) in [
            ("rate_limit", json!({"task_name": "x", "rate_limit": "1/s"}), "unknown task"),
            ("rate_limit", json!({"task_name": "add", "rate_limit": "1/d"}), "\"1/d\" is no rate"),
            ("time_limit", json!({"task_name": "x", "soft": 1}), "unknown task"),
            ("time_limit", json!({"task_name": "add", "soft": -1}), "soft"),
            ("add_consumer", json!({"queue": "q", "exchange": "e", "exchange_type": "topic"}), "by their names"),
            ("add_consumer", json!({"queue": ""}), "needs a name"),
            ("cancel_consumer", json!({}), "needs a name"),
            ("pool_shrink", json!({"n": 4}), "at least one thread"),
            ("pool_grow", json!({"n": 1_000_000}), "at most"),
            ("pool_grow", json!({"n": "many"}), "whole number"),
            ("revoke_by_stamped_headers", json!({"headers": 1}), "headers"),
            ("autoscale", json!({"max": 2}), "pool_grow"),
            ("pool_restart", json!({}), "not supported by phalanx"),
            ("objgraph", json!({}), "not supported by phalanx"),
            ("memdump", json!({}), "not supported by phalanx"),
        ] {
            let (answer, effect) = ask(method, arguments);
            let said = answer["error"].as_str().unwrap_or_default();
            assert!(said.contains(why) && effect == Effect::None, "{method}: {answer}");
        }
    }
}
