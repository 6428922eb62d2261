//! The script that ends a message, called as it is on a real Redis: what no worker can bring about at will.

use crate::testkit::redis::RedisServer;
use crate::testkit::threads::NoThreads;

use redis::Value;

/// The text of the script, behind what asks for rights: here there are all.
fn settle() -> String {
    let source = include_str!("../../src/celery/worker/scripts.rs");
    let (_, behind) = source.split_once("static SETTLE: Script = Script::new(concat!(").unwrap();
    let (_, behind) = behind.split_once("r#\"").unwrap();
    let (text, _) = behind.split_once("\"#").unwrap();
    format!("local function may() end\n{text}")
}

const KEYS: [&str; 4] = ["w.held", "unacked", "unacked_index", "w.alive"];

fn call(server: &RedisServer, keys: &[&str], args: &[&str]) -> Value {
    let (script, count) = (settle(), keys.len().to_string());
    server.cli(&[&["EVAL", &script, &count], keys, args].concat())
}

#[test]
fn nothing_is_settled_in_the_name_of_a_worker_that_has_come_back() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    for (key, value) in [("w.held", "celery"), ("unacked", "[]")] {
        server.cli::<()>(&["HSET", key, "tag", value]);
    }
    server.cli::<()>(&["SET", "w.alive", "w"]);
    let result = ["tag", "1000", "result", "meta", "{\"status\": \"FAILURE\"}", "0"];
    assert_eq!(call(&server, &KEYS, &result), Value::Int(0));
    assert_eq!((server.cli(&["EXISTS", "meta"]), server.cli(&["HLEN", "unacked"])), (0, 1));
    server.cli::<()>(&["DEL", "w.alive"]);
    assert_eq!(call(&server, &KEYS, &result), Value::Int(1));
    assert_eq!((server.cli(&["EXISTS", "meta"]), server.cli(&["HLEN", "unacked"])), (1, 0));
    // Of a worker's own message nobody asks.
    server.cli::<()>(&["SET", "w.alive", "w"]);
    server.cli::<()>(&["HSET", "w.held", "tag", "celery"]);
    assert_eq!(call(&server, &KEYS[..3], &result), Value::Int(1));
}

#[test]
fn a_chord_is_given_back_whole_or_not_at_all_and_what_only_we_keep_of_it_expires() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    const PARTS: usize = 250;
    for ordered in ["ordered", "as they come"] {
        server.cli::<()>(&["FLUSHALL"]);
        server.cli::<()>(&["SET", "g.s", &PARTS.to_string()]);
        let part = |n: usize, most: &str| {
            server.cli::<()>(&["HSET", "w.held", "tag", "celery"]);
            let (entry, member) = (format!("entry-{n:03}"), format!("id:{n}"));
            let part = ["part", "g", &entry, "0", &member, &n.to_string(), ordered, &member];
            call(&server, &KEYS[..3], &[&["tag", most], &part[..]].concat())
        };
        for n in 0..PARTS - 1 {
            assert_eq!(part(n, "1000"), Value::Int(1));
        }
        let day = server.cli::<i64>(&["TTL", "g.d"]);
        assert!((1..=86_400).contains(&day), "{day}");
        assert_eq!((server.cli(&["TTL", "g.j"]), server.cli(&["TTL", "g.s"])), (-1, -1), "these stay for ever");
        let answer = |most: &str| {
            let Value::Array(mut ended) = part(PARTS - 1, most) else { panic!("it was the last") };
            let Value::Array(mut one) = ended.remove(0) else { panic!("of one chord") };
            one.swap_remove(1)
        };
        let text = |value: Value| redis::from_redis_value::<String>(value).unwrap();
        // 250 entries of nine bytes each: too many among the first hundred, the second, the last.
        for most in ["899", "1799", "2249"] {
            assert_eq!(text(answer(most)), "too large", "{most}");
        }
        let Value::Array(all) = answer("2250") else { panic!("they fit") };
        let all: Vec<String> = all.into_iter().map(text).collect();
        assert_eq!(all, (0..PARTS).map(|n| format!("entry-{n:03}")).collect::<Vec<_>>());
    }
}
