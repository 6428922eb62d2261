//! Messages and results beside those of real Celery, field for field and in both directions.
//!
//! `tests/vectors/celery/wire.jsonl` is what Celery 5.7 wrote; where Celery and Redis are installed it writes it anew.

use crate::testkit::python;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use std::time::Duration;

use phalanx::celery::envelope::Envelope;
use phalanx::celery::message::TaskMessage;
use phalanx::celery::meta::{Exception, Meta, ResultState};
use phalanx::celery::moment::Moment;
use phalanx::celery::task::Task;
use phalanx::celery::{meta_key, queue_key, value};
use redis_kit::RedisServer;
use serde_json::{Value, json};

const RECORDED: &str = include_str!("../vectors/celery/wire.jsonl");

/// Runs the script against a server; each line that it prints.
fn celery(server: &RedisServer, arguments: &[&str]) -> Option<Vec<Value>> {
    let output = python::script("celery_wire.py", "celery")?.arg(server.url()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(lines(&String::from_utf8(output.stdout).unwrap()))
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The task that asks for the same as the options of an `apply_async`; what is random or of the moment is the
/// original's.
fn same_task(options: &Value, original: &TaskMessage) -> TaskMessage {
    let seconds = |value: &Value| Duration::from_secs_f64(value.as_f64().unwrap());
    let mut task = Task::new("t.add").id(&original.id);
    let (mut soft, mut hard) = (None, None);
    for (name, value) in options.as_object().unwrap() {
        let text = || value.as_str().unwrap();
        task = match name.as_str() {
            "args" => task.args(value.clone()),
            "kwargs" => task.kwargs(value.as_object().unwrap().clone()),
            "queue" => task.queue(text()),
            "countdown" => task.countdown(seconds(value)),
            "eta" => task.eta(text().parse().unwrap()),
            "expires" if value.is_string() => task.expires_at(text().parse().unwrap()),
            "expires" => task.expires(seconds(value)),
            "priority" => task.priority(u8::try_from(value.as_u64().unwrap()).unwrap()),
            "compression" => task.compress(),
            "ignore_result" => task.ignore_result(),
            "headers" => task.header("mine", value["mine"].clone()),
            "parent_id" => task.parent(text(), options["root_id"].as_str().unwrap()),
            "argsrepr" => task.shown_as(text(), options["kwargsrepr"].as_str().unwrap()),
            "correlation_id" => task.correlation_id(text()),
            "time_limit" => {
                hard = Some(seconds(value));
                task
            }
            "soft_time_limit" => {
                soft = Some(seconds(value));
                task
            }
            // Set in the message below, or together with another one above.
            "retries" | "link" | "typed" | "root_id" | "kwargsrepr" => task,
            other => panic!("the script asks for {other}, this test does not"),
        };
    }
    let mut made = original.clone();
    // The moment of sending is known only where the message says it.
    let now = match (original.eta, options.get("countdown"), original.expires, options.get("expires")) {
        (Some(eta), Some(wait), _, _) => back(eta, seconds(wait)),
        (_, _, Some(end), Some(wait)) if wait.is_number() => back(end, seconds(wait)),
        _ => Moment::from_unix_micros(0),
    };
    let mut tags = [original.delivery_tag.clone()].into_iter();
    if options.get("link").is_some() || options.get("typed").is_some() {
        (made.embed.callbacks, made.args) = (original.embed.callbacks.clone(), original.args.clone());
        assert!(options.get("link").is_none() || made.embed.callbacks[0]["task"] == "t.next");
        return made;
    }
    let origin = original.origin.as_deref().unwrap();
    made = task.time_limits(soft, hard).message(now, origin, || tags.next().unwrap());
    made.retries = options.get("retries").map_or(0, |n| u32::try_from(n.as_u64().unwrap()).unwrap());
    // Celery names a queue for answers that this back end does not use.
    made.reply_to.clone_from(&original.reply_to);
    if options.get("argsrepr").is_some() {
        // Celery repeats these among the properties, where nobody looks.
        made.properties.clone_from(&original.properties);
    }
    if let Some(left) = original.properties.get("expiration") {
        // Celery counts from a moment of its own when it is given a date; of a span both make the same.
        assert!(options["expires"].is_string() || made.properties["expiration"] == *left);
        made.properties.insert("expiration".to_owned(), left.clone());
    }
    made
}

fn back(moment: Moment, by: Duration) -> Moment {
    Moment::from_unix_micros(moment.unix_micros() - i64::try_from(by.as_micros()).unwrap())
}

/// The message with its body unpacked, in the order of its fields.
fn shown(raw: &str) -> String {
    let envelope = Envelope::read(raw.as_bytes()).unwrap();
    let mut message: Value = serde_json::from_str(raw).unwrap();
    message["body"] = envelope.payload().unwrap();
    format!("{message:#}")
}

fn check_message(line: &Value) {
    let (raw, options) = (line["raw"].as_str().unwrap(), &line["options"]);
    let envelope = Envelope::read(raw.as_bytes()).unwrap();
    let original = TaskMessage::read(&envelope).unwrap();
    assert_eq!(original.id, line["id"].as_str().unwrap());
    assert_eq!(line["key"], queue_key(&original.routing_key, original.priority), "{options}");
    let made = same_task(options, &original);
    assert_eq!(made, original, "{options}");
    if options.get("argsrepr").is_none() {
        // Also in the order of the fields, but for what only Celery repeats.
        assert_eq!(shown(&made.write().write()), shown(raw), "{options}");
    }
    // As it goes through a restore: nothing is lost.
    assert_eq!(shown(&envelope.write()), shown(raw));
    if options.get("typed").is_some() {
        let args = value::plain(Value::Array(original.args.clone()));
        assert_eq!(args, json!(["2026-11-21T12:00:00+00:00", "/w==", 0.5]), "a time, bytes and a number");
    }
}

fn check_meta(line: &Value) {
    let raw = hex::decode(line["hex"].as_str().unwrap()).unwrap();
    let meta = Meta::read(&raw).unwrap();
    assert_eq!((line["id"].as_str().unwrap(), line["state"].as_str().unwrap()), (&*meta.task_id, meta.state.as_str()));
    let ended = meta.date_done.as_deref().map(|text| text.parse::<Moment>().unwrap());
    assert_eq!((meta.state.is_ready(), meta.state.is_exception()), (ended.is_some(), meta.exception().is_some()));
    // Its own constructors make the same.
    let (id, done) = (meta.task_id.clone(), ended.unwrap_or(Moment::from_unix_micros(0)));
    let exception = meta.exception();
    let mut made = match (&meta.state, exception) {
        (ResultState::Started, _) => Meta::started(id, 7, "w@h"),
        (ResultState::Progress, _) => Meta::progress(id, json!({"percent": 5})),
        (ResultState::Success, _) => Meta::success(id, meta.result.clone(), done),
        (ResultState::Failure, Some(exception)) => Meta::failure(id, &exception, meta.traceback.clone(), done),
        (ResultState::Retry, Some(exception)) => Meta::retry(id, &exception, meta.traceback.clone()),
        (ResultState::Revoked, _) => Meta::revoked(id, "expired", done),
        (state, _) => Meta::new(id, state.clone(), json!(1)),
    };
    // Outside a worker's task nobody counts its children.
    made.children = Value::Null;
    assert_eq!(made, meta);
    if !raw.starts_with(b"\0") {
        let written: Value = serde_json::from_str(&made.write()).unwrap();
        let original: Value = serde_json::from_slice(&raw).unwrap();
        assert_eq!(format!("{written:#}"), format!("{original:#}"));
    }
}

fn check(recorded: &[Value]) {
    for line in recorded {
        match line["what"].as_str().unwrap() {
            "message" => check_message(line),
            _ => check_meta(line),
        }
    }
    let messages = recorded.iter().filter(|line| line["what"] == "message").count();
    assert!(messages >= 20 && recorded.len() - messages >= 20, "{messages} of {}", recorded.len());
}

#[test]
fn what_celery_has_written_is_read_and_written_the_same() {
    check(&lines(RECORDED));
}

#[test]
fn what_celery_writes_today_is_read_and_written_the_same() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(recorded) = celery(&server, &["record"]) else { return };
    check(&recorded);
}

#[test]
fn celery_reads_our_results_in_every_state() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let done: Moment = "2026-11-21T12:00:00.250000+00:00".parse().unwrap();
    let exception = Exception { exc_message: json!(["no", 3]), ..Exception::new("builtins", "ValueError", "") };
    let unknown = Exception::new("phalanx", "JobFailed", "it broke");
    let mut child = Meta::success("c", json!({"a": [1, null, "ü"]}), done);
    child.parent_id = Some("the-parent".to_owned());
    let metas = [
        Meta::started("a", 7, "w@h"),
        Meta::progress("b", json!({"percent": 5})),
        child,
        Meta::failure("d", &exception, Some("Traceback…".to_owned()), done),
        Meta::failure("e", &unknown, None, done),
        Meta::retry("f", &unknown, None),
        Meta::revoked("g", "expired", done),
    ];
    for meta in &metas {
        server.cli::<()>(&["SET", &meta_key(&meta.task_id), &meta.write()]);
    }
    let Some(read) = celery(&server, &["read", "a", "b", "c", "d", "e", "f", "g", "absent"]) else { return };
    let error = |kind: &str, module: &str, text: &str| json!({"type": kind, "module": module, "str": text});
    let expected = [
        ("STARTED", json!({"pid": 7, "hostname": "w@h"})),
        ("PROGRESS", json!({"percent": 5})),
        ("SUCCESS", json!({"a": [1, null, "ü"]})),
        ("FAILURE", error("ValueError", "builtins", "('no', 3)")),
        ("FAILURE", error("JobFailed", "celery.exceptions", "it broke")),
        ("RETRY", error("JobFailed", "celery.exceptions", "it broke")),
        ("REVOKED", error("TaskRevokedError", "celery.exceptions", "expired")),
        ("PENDING", Value::Null),
    ];
    assert_eq!(read.len(), expected.len());
    for (line, (state, value)) in read.iter().zip(expected) {
        assert_eq!((&line["state"], &line["value"]), (&json!(state), &value));
        let ready = ["SUCCESS", "FAILURE", "REVOKED"].contains(&state);
        let date_done = if ready { json!("2026-11-21T12:00:00.250000+00:00") } else { Value::Null };
        assert_eq!((&line["ready"], &line["date_done"]), (&json!(ready), &date_done));
    }
    assert_eq!((&read[3]["traceback"], &read[2]["parent"]), (&json!("Traceback…"), &json!("the-parent")));
}

#[test]
fn celery_reads_our_messages_as_we_meant_them() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let eta: Moment = "2030-01-02T03:04:05.678900+00:00".parse().unwrap();
    let kwargs = json!({"name": "ü", "deep": {"er": [1, null]}});
    let seconds = Duration::from_secs;
    let plain = || Task::new("t.add").args(json!([1, "it's", 2.5])).queue("q");
    let tasks = [
        plain(),
        plain().compress().kwargs(kwargs.as_object().unwrap().clone()),
        plain().eta(eta).expires_at(eta.plus(seconds(5))).priority(7),
        plain().time_limits(Some(Duration::from_millis(2500)), Some(seconds(30))).ignore_result(),
        plain().parent("the-parent", "the-root").header("mine", json!({"a": 1})).correlation_id("mine"),
    ];
    let mut next = 0;
    for task in tasks {
        let fresh = || {
            next += 1;
            format!("fresh-{next}")
        };
        let message = task.message(Moment::from_unix_micros(0), "gen1@h", fresh);
        let key = queue_key(&message.routing_key, message.priority);
        server.cli::<()>(&["LPUSH", &key, &message.write().write()]);
    }
    let Some(read) = celery(&server, &["take", "q", "5"]) else { return };
    // The one with a priority of 7 comes last.
    let (first, packed, limited, child, timed) = (&read[0], &read[1], &read[2], &read[3], &read[4]);
    for line in &read {
        assert_eq!((&line["task"], &line["args"]), (&json!("t.add"), &json!([1, "it's", 2.5])));
        assert_eq!((&line["argsrepr"], &line["info"]["routing_key"]), (&json!(r"(1, 'it\'s', 2.5)"), &json!("q")));
    }
    assert_eq!(
        (&first["id"], &first["root"], &first["correlation_id"]),
        (&json!("fresh-1"), &json!("fresh-1"), &json!("fresh-1"))
    );
    assert_eq!(
        (&first["eta"], &first["expires"], &first["limits"]),
        (&Value::Null, &Value::Null, &json!([null, null]))
    );
    assert_eq!((&first["ignore_result"], &first["parent"]), (&json!(false), &Value::Null));
    assert_eq!(
        (&packed["kwargs"], &packed["kwargsrepr"]),
        (&kwargs, &json!("{'name': 'ü', 'deep': {'er': [1, None]}}"))
    );
    assert_eq!((&limited["limits"], &limited["ignore_result"]), (&json!([30, 2.5]), &json!(true)));
    assert_eq!(
        (&child["parent"], &child["root"], &child["correlation_id"]),
        (&json!("the-parent"), &json!("the-root"), &json!("mine"))
    );
    assert_eq!(child["headers"], json!({"mine": {"a": 1}}));
    assert_eq!(
        (&timed["eta"], &timed["expires"]),
        (&json!("2030-01-02T03:04:05.678900+00:00"), &json!("2030-01-02T03:04:10.678900+00:00"))
    );
    assert_eq!(timed["info"]["priority"], json!(7));
}
