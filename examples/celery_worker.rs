//! A worker that serves Celery producers: `celery_worker --redis URL [--queues A,B] [--threads N] [--name NAME]
//! [--liveness S] [--visibility S] [--prefetch N] [--stop-time S] [--track-started] [--events] [--settings JSON]`.
//!
//! Says `ready` on stdout when it takes tasks, and what was left when it has stopped. SIGTERM and `celery control
//! shutdown` stop it. From Python: `app.send_task("add", (1, 2)).get()`.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::Stopping;
use phalanx::base::thread::{Kick, spawn};
use phalanx::celery::AppConfig;
use phalanx::celery::worker::{CeleryWorker, Registry, TaskError, WorkerConfig};
use phalanx::ops::status::Board;
use phalanx::redis::RedisConfig;
use serde::Deserialize;
use serde_json::{Value, json};

/// The keyword arguments of `record`.
#[derive(Deserialize)]
struct Record {
    path: String,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    ignores_stop: bool,
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn note(path: &str, line: &Value) -> Result<(), TaskError> {
    let failed = |error: std::io::Error| TaskError::new("OSError", error.to_string());
    let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
    // One write, so that lines of several workers do not mix.
    file.write_all(format!("{line}\n").as_bytes()).map_err(failed)
}

/// The tasks that it serves.
pub fn registry() -> Registry {
    Registry::new()
        .register("noop", |_, _| Ok(Value::Null))
        .register("echo", |_, args| Ok(json!([args.positional, args.named])))
        .register("add", |_, args| Ok(json!(args.get::<i64>(0, "x")? + args.get::<i64>(1, "y")?)))
        .register("fail", |_, args| {
            let (kind, text) = (args.get::<String>(0, "kind")?, args.get::<String>(1, "text")?);
            Err(TaskError::new(&kind, text))
        })
        .register("panic", |_, _| panic!("the handler fell"))
        .register("ignore", |_, _| Err(TaskError::Ignore))
        .register("reject", |cx, _| match cx.redelivered() {
            true => Ok(json!("second time")),
            false => Err(TaskError::Reject { requeue: true }),
        })
        .register("retry", |cx, args| {
            let (times, most): (u32, u32) = (args.get(0, "times")?, args.get(1, "most")?);
            match cx.retries() < times {
                true => Err(TaskError::retry(Duration::from_millis(100), "OSError", "away").at_most(Some(most))),
                false => Ok(json!(cx.retries())),
            }
        })
        .register("sleep", |cx, args| {
            cx.sleep(seconds(args.get(0, "seconds")?))?;
            Ok(json!("slept"))
        })
        .register("progress", |cx, args| {
            let steps: u32 = args.get(0, "steps")?;
            for step in 1..=steps {
                cx.progress(100.0 * f64::from(step) / f64::from(steps), "working", &json!({"step": step}));
            }
            cx.sleep(seconds(args.get(1, "seconds")?))?;
            Ok(json!(steps))
        })
        .register("who", |cx, _| {
            Ok(json!({"id": cx.id(), "retries": cx.retries(), "redelivered": cx.redelivered(), "root": cx.root_id(),
                "parent": cx.parent_id(), "pid": std::process::id()}))
        })
        .register_typed("record", |cx, record: Record| {
            let line = |what: &str| {
                json!({"what": what, "id": cx.id(), "redelivered": cx.redelivered(), "pid": std::process::id()})
            };
            note(&record.path, &line("begin"))?;
            // What was interrupted before is not waited for again.
            let wait = if cx.redelivered() { Duration::ZERO } else { seconds(record.seconds) };
            let ended = match record.ignores_stop {
                // For tests of what becomes of a handler that does not listen.
                true => {
                    Shutdown::new().wait(wait);
                    Ok(())
                }
                false => cx.sleep(wait),
            };
            if let Err(error) = ended {
                note(&record.path, &line("cancelled"))?;
                return Err(error);
            }
            note(&record.path, &line("end"))?;
            Ok(cx.redelivered())
        })
}

#[allow(dead_code)] // The tests include this file and call `run`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    run(std::env::args().skip(1), |_| registry())
}

/// Runs the worker that the command line asks for, with these tasks, until a signal stops it.
///
/// # Errors
/// What is wrong with the command line, or why the worker cannot start.
pub fn run(
    mut words: impl Iterator<Item = String>,
    tasks: impl FnOnce(&WorkerConfig) -> Registry,
) -> Result<(), Box<dyn std::error::Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let mut config = WorkerConfig::new(RedisConfig::parse("redis://127.0.0.1/0")?);
    let mut stop_time = 10.0;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--redis" => config.redis = RedisConfig::parse(&value()?)?,
            "--queues" => config.queues = value()?.split(',').map(str::to_owned).collect(),
            "--threads" => config.concurrency = value()?.parse()?,
            "--prefetch" => config.prefetch_multiplier = value()?.parse()?,
            "--name" => config.hostname = value()?,
            "--liveness" => config.liveness = seconds(value()?.parse()?),
            "--visibility" => {
                config.app.broker_transport_options.visibility_timeout = seconds(value()?.parse()?);
            }
            "--settings" => config.app = AppConfig::parse(&value()?)?,
            "--stop-time" => stop_time = value()?.parse()?,
            "--track-started" => config.app.task_track_started = true,
            "--events" => config.send_task_events = true,
            _ => return Err(format!("{word} is not known").into()),
        }
    }
    let tasks = tasks(&config);
    let worker = CeleryWorker::start(config, tasks, &Board::new())?;
    let handle = worker.handle();
    let stop = handle.asked_to_stop().clone();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM])?;
    let (close, asked) = (signals.handle(), stop.clone());
    let closing = close.clone();
    let listener = spawn("signals", Kick::new("its close", move || closing.close()), move || {
        if signals.forever().next().is_some() {
            asked.drain();
        }
    });
    if handle.wait_ready(Duration::from_secs(60)) {
        println!("ready {}", handle.id());
    } else {
        println!("Redis is away: {:?}", handle.state().last_error);
    }
    while !stop.wait(Duration::from_secs(3600)) {}
    let mut stopping = Stopping::alone();
    let report = stopping.step("worker", seconds(stop_time), |step| worker.stop_in(step));
    close.close();
    stopping.step("signals", seconds(1.0), |step| step.join(listener));
    let stopped = stopping.finish();
    println!(
        "stopped: {} given back, {} cancelled, {} left; {stopped}",
        report.given_back, report.cancelled, report.left
    );
    Ok(())
}
