//! What Celery writes and strict JSON has no form for, from Celery to us and back and from us to Celery; and messages
//! that nobody can read, which are answered.

use crate::example;
use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, until};

use celery_kit::{Client, Feed, Ours, Worker, settings};
use phalanx::base::limits::CELERY_JSON_LEVELS;
use phalanx::celery::worker::Registry;
use phalanx::celery::{Task, TaskError, json as python, value};
use redis_kit::RedisServer;
use serde_json::{Value, json};

/// What Python writes although it is not JSON.
const ODD: &str =
    r#"{"nan":NaN,"inf":[Infinity,-Infinity],"file":"caf\udce9 \\","\udce9":{"big":1180591620717411303424}}"#;

fn odd() -> Value {
    python::read(ODD.as_bytes()).unwrap()
}

#[test]
fn what_python_writes_beside_json_goes_through_our_worker_unchanged() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let registry = example::registry()
        .register("infinite", |_, args| Ok(json!(args.get::<f64>(0, "x")?.is_infinite())))
        .register("make", |_, _| Ok(json!([value::float(f64::NAN), value::float(f64::NEG_INFINITY)])))
        .register("length", |_, args| Ok(json!(args.get::<String>(0, "text")?.len())));
    let worker = Ours::ready(settings(server.config()), registry);
    // As argument by place and by name, in a header, through a callback, and in the result.
    let echoed = feed.ask("odd_echo", json!({"levels": 190}));
    assert_eq!(echoed["same"], true, "{echoed}");
    assert_eq!(feed.ask("odd_call", json!({"task": "infinite", "what": "inf"}))["result"], true);
    let made = feed.ask("odd_call", json!({"task": "make", "what": "nan"}));
    assert_eq!(made["shown"], "[nan, -inf]", "{made}");
    let refused = feed.ask("odd_call", json!({"task": "length", "what": "file"}));
    let why = refused["raised"]["args"][0].as_str().unwrap();
    assert!(why.contains(r"a lone surrogate, 'caf\udce9'"), "{refused}");
    let deep = feed.ask("odd_call", json!({"task": "length", "what": "deep", "levels": CELERY_JSON_LEVELS}));
    let why = deep["raised"]["args"][0].as_str().unwrap();
    assert!(why.contains(&format!("deeper than {CELERY_JSON_LEVELS} levels")), "{deep}");
    until("everything is settled", || worker.state().counts.total() == 0);
    assert_eq!(server.cli::<usize>(&["HLEN", "unacked"]), 0);
}

#[test]
fn what_python_writes_beside_json_goes_to_a_worker_of_celery_and_comes_back() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(_worker) = Worker::start(&server.url(), &["--pool", "solo"]) else { return };
    let client = Client::start(server.config());
    let task = Task::new("t.echo").args(json!([odd()])).kwarg("x", odd()).header("odd", odd());
    let echoed = client.handle().send(task).unwrap().wait(LONG).unwrap();
    assert_eq!(echoed, json!({"args": [odd()], "kwargs": {"x": odd()}}));
    let text = python::read(br#""caf\udce9""#).unwrap();
    let failed = client.handle().send(Task::new("t.fail").args(json!([text]))).unwrap().wait(LONG).unwrap_err();
    let TaskError::Failed { exception, traceback } = failed else { panic!("{failed}") };
    assert_eq!((exception.message().as_str(), exception.exc_message), (r"('caf\udce9', 7)", json!([text, 7])));
    assert!(traceback.unwrap().contains("ValueError: ("));
}

#[test]
fn a_message_that_cannot_be_read_is_answered_if_an_id_is_found_in_it() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let worker = Ours::ready(settings(server.config()), example::registry());
    let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
    let huge = " ".repeat(phalanx::base::limits::CELERY_MESSAGE_BYTES);
    for (id, message, why) in [
        ("cut", r#"{"body": "W10=", "headers": {"task": "add", "id": "cut", "re"#.to_owned(), "does not end"),
        ("tagless", r#"{"headers": {"task": "add", "id": "tagless"}}"#.to_owned(), "no delivery tag"),
        ("late", format!(r#"{{"body": "W10=", "headers": {{"x": {deep}, "id": "late"}}}}"#), "deeper than"),
        (
            "first",
            r#"{"body": "{\"id\": \"first\", \"task\": \"add\"}", "properties": {"delivery_tag": "1"},
            "content-type": "application/json"}"#
                .to_owned(),
            "protocol 2",
        ),
        ("huge", format!(r#"{{"body": "{huge}", "headers": {{"id": "huge"}}}}"#), "more than"),
    ] {
        server.cli::<usize>(&["LPUSH", "celery", &message]);
        let done = feed.wait(id);
        assert_eq!((&done["state"], &done["raised"]["type"]), (&json!("FAILURE"), &json!("DecodeError")), "{done}");
        assert!(done["raised"]["args"][0].as_str().unwrap().contains(why), "{id}: {done}");
    }
    assert_eq!((worker.state().aside, server.cli::<usize>(&["LLEN", "phalanx.aside"])), (5, 5));
    assert_eq!(feed.run("add", json!({"args": [1, 1]}))["result"], 2, "the queue flows on");
}

/// What another program has taken from `queue` an hour and more ago: its delivery tag.
fn taken_long_ago(server: &RedisServer, tag: &str, exchange: &str, queue: &str) {
    let message = json!({"body": "W1tdLCB7fSwge31d", "content-type": "application/json", "content-encoding": "utf-8",
        "headers": {"id": tag, "task": "noop"}, "properties": {"delivery_tag": tag, "body_encoding": "base64"}});
    server.cli::<usize>(&["HSET", "unacked", tag, &json!([message, exchange, queue]).to_string()]);
    server.cli::<usize>(&["ZADD", "unacked_index", "5", tag]);
}

#[test]
fn what_belongs_to_queues_that_it_does_not_serve_is_left_alone() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    // More than one look takes in, and older ones first.
    for n in 0..1100 {
        taken_long_ago(&server, &format!("{n:04}"), "", if n == 0 { "celery2" } else { "other" });
    }
    for (queue, key) in [("other", "a"), ("celery", "b")] {
        server.cli::<usize>(&["SADD", "_kombu.binding.routed", &format!("{key}\x06\x16\x06\x16{queue}")]);
    }
    taken_long_ago(&server, "bound to other", "routed", "a");
    taken_long_ago(&server, "mine", "", "celery");
    taken_long_ago(&server, "mine as well", "routed", "b");
    for (tag, list) in [("held", "other"), ("mine of a dead one", "celery\x06\x163")] {
        taken_long_ago(&server, tag, "", list);
        server.cli::<usize>(&["ZREM", "unacked_index", tag]);
        server.cli::<usize>(&["HSET", "phalanx.worker.gone.held", tag, list]);
    }
    server.cli::<usize>(&["SADD", "phalanx.workers", "gone"]);
    let mut config = settings(server.config());
    config.liveness = std::time::Duration::from_millis(600);
    let worker = Ours::ready(config, Registry::new().register("noop", |_, _| Ok(Value::Null)));
    until("what is its own is put back and run", || worker.state().restored == 3);
    until("everything is settled", || {
        worker.state().counts.total() == 0 && server.cli::<usize>(&["HLEN", "unacked"]) == 1102
    });
    for id in ["mine", "mine as well", "mine of a dead one"] {
        let stored: String = server.cli(&["GET", &format!("celery-task-meta-{id}")]);
        assert!(stored.contains("SUCCESS"), "{id}: {stored}");
    }
    assert_eq!(server.cli::<usize>(&["ZCARD", "unacked_index"]), 1101);
    assert_eq!(server.cli::<usize>(&["EXISTS", "other", "celery2"]), 0);
    assert!(server.cli::<bool>(&["HEXISTS", "phalanx.worker.gone.held", "held"]));
}
