//! Redis in a program that is not async: messages that are published and subscribed to, requests that are answered, and
//! Celery tasks that a worker of the same program runs.
//!
//! `cargo run --example redis -- redis://127.0.0.1/0` ends by itself.

use std::time::{Duration, Instant};

use phalanx::prelude::*;
use phalanx::redis::messaging::WhenFull;
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error>;

const TIME: Duration = Duration::from_secs(60);

/// Uses the Redis at `url` and gives a line of each use.
pub fn run(url: &str) -> Result<[String; 3], Error> {
    let (redis, board) = (RedisConfig::parse(url)?, Board::new());
    let deadline = || Instant::now() + TIME;

    let messaging = RedisMessaging::start(redis.clone(), &board)?;
    let messages = messaging.handle();
    let inbox = messages.subscribe(Channel::Exact("phalanx.example.news".to_owned()), WhenFull::DropOldest);
    let responder = messages.respond("phalanx.example.shout", 1, |incoming| Ok(incoming.payload.to_ascii_uppercase()));
    messages.prove(deadline())?; // from here on the subscriptions are in force
    messages.publish("phalanx.example.news", b"it rains", deadline())?;
    let news = inbox.recv(deadline())?;
    let news = format!("news: {}", String::from_utf8_lossy(&news.payload));
    let shouted = messages.request("phalanx.example.shout", b"hello", deadline())?;
    let shouted = format!("answer: {}", String::from_utf8_lossy(&shouted));
    responder.stop(TIME);
    messaging.stop(TIME);

    let mut config = WorkerConfig::new(redis.clone());
    config.queues = vec!["phalanx.example".to_owned()];
    let registry = Registry::new()
        .register("example.add", |_, args| Ok(json!(args.get::<i64>(0, "x")? + args.get::<i64>(1, "y")?)));
    let worker = CeleryWorker::start(config, registry, &board)?;
    let client = CeleryClient::start(CeleryConfig::new(redis), &board)?;
    let sum: PendingResult =
        client.handle().send(Task::new("example.add").args(json!([2, 3])).queue("phalanx.example"))?;
    let sum: Value = sum.wait(TIME)?;
    let reports = [worker.stop(TIME), client.stop(TIME)];
    let left: usize = reports.iter().map(|report| report.stragglers().len()).sum();
    Ok([news, shouted, format!("2 + 3 = {sum}; {left} left")])
}

#[allow(dead_code)] // The tests include this file and call `run`.
fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).ok_or("usage: redis URL")?;
    run(&url)?.iter().for_each(|line| println!("{line}"));
    Ok(())
}
