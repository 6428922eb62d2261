//! The tasks of Celery's own integration tests, run by our worker: `make test/celery-upstream` starts it in place of
//! theirs. The command line is that of the example `celery_worker`.
//!
//! Each task has the name that it has there, `t.integration.tasks.…`, and does what it does there.

mod canvas;
#[allow(dead_code)] // Its tasks.
#[path = "../celery_worker.rs"]
mod worker;

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::celery::worker::{Args, Registry, TaskCx, TaskError, TaskOptions, WorkerConfig};
use phalanx::celery::{Exception, value};
use phalanx::redis::{Connection, RedisConfig};
use serde_json::{Map, Value, json};

/// The module of the tasks and of their exceptions.
const MODULE: &str = "t.integration.tasks";

/// The time that Redis may take for what a task asks of it.
const REDIS_TIME: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    worker::run(std::env::args().skip(1), tasks)
}

/// All of them.
fn tasks(config: &WorkerConfig) -> Registry {
    let mut tasks = Tasks(Registry::new());
    numbers(&mut tasks);
    failures(&mut tasks);
    retries(&mut tasks);
    requests(&mut tasks);
    let ask = Ask(config.redis.clone());
    notes(&mut tasks, &ask);
    canvas::register(&mut tasks, &ask);
    options(&mut tasks);
    tasks.0
}

/// The tasks of one module.
struct Tasks(Registry);

impl Tasks {
    /// One more, by its name in the module.
    fn add(&mut self, name: &str, handler: impl Fn(&TaskCx, Args) -> Result<Value, TaskError> + Send + Sync + 'static) {
        let registry = std::mem::take(&mut self.0);
        self.0 = registry.register(format!("{MODULE}.{name}"), handler);
    }

    /// Gives one of them the options that it has there.
    fn with(&mut self, name: &str, options: TaskOptions) {
        let registry = std::mem::take(&mut self.0);
        self.0 = registry.with_options(&format!("{MODULE}.{name}"), options);
    }
}

/// An exception of that module.
fn exception(name: &str, args: Value) -> Exception {
    Exception { exc_message: args, ..Exception::new(MODULE, name, "") }
}

fn expected() -> Exception {
    exception("ExpectedException", json!([]))
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}

/// An argument that need not be there.
fn or<T: serde::de::DeserializeOwned>(args: &Args, at: usize, name: &str, default: T) -> Result<T, TaskError> {
    let is_given = args.positional.get(at).or_else(|| args.named.get(name)).is_some_and(|value| !value.is_null());
    if is_given { args.get(at, name) } else { Ok(default) }
}

/// A number, or all numbers in a list.
fn total(value: &Value) -> Result<i64, TaskError> {
    match value {
        Value::Array(all) => all.iter().map(total).sum(),
        one => one.as_i64().ok_or_else(|| TaskError::new("TypeError", format!("{one} is no number"))),
    }
}

fn sum(values: &[Value]) -> Result<i64, TaskError> {
    values.iter().map(|value| if value.is_array() { Err(not_added()) } else { total(value) }).sum()
}

fn not_added() -> TaskError {
    TaskError::new("TypeError", "unsupported operand type(s) for +: 'int' and 'list'")
}

/// As Python adds: numbers, texts, or lists.
fn plus(one: &Value, other: &Value) -> Result<Value, TaskError> {
    match (one, other) {
        (Value::String(one), Value::String(other)) => Ok(json!(format!("{one}{other}"))),
        (Value::Array(one), Value::Array(other)) => Ok(json!([one.as_slice(), other].concat())),
        (Value::Array(_), _) | (_, Value::Array(_)) => Err(not_added()),
        (one, other) => Ok(json!(total(one)? + total(other)?)),
    }
}

fn numbers(tasks: &mut Tasks) {
    for name in ["add", "add_not_typed", "add_ignore_result", "add_with_result"] {
        tasks.add(name, |_, args| {
            if let Some(name) = args.named.keys().find(|name| !["x", "y", "z"].contains(&name.as_str())) {
                return Err(TaskError::new("TypeError", format!("unexpected keyword argument {name:?}")));
            }
            let sum = plus(&args.get::<Value>(0, "x")?, &args.get::<Value>(1, "y")?)?;
            match or(&args, 2, "z", Value::Null)? {
                Value::Null => Ok(sum),
                third => plus(&sum, &third),
            }
        });
    }
    tasks.add("mul", |_, args| Ok(json!(args.get::<i64>(0, "x")? * args.get::<i64>(1, "y")?)));
    tasks.add("identity", |_, args| args.get::<Value>(0, "x"));
    tasks.add("tsum", |_, args| Ok(json!(sum(&args.get::<Vec<Value>>(0, "nums")?)?)));
    tasks.add("xsum", |_, args| Ok(json!(total(&args.get::<Value>(0, "nums")?)?)));
    tasks.add("delayed_sum", |cx, args| {
        cx.sleep(seconds(or(&args, 1, "pause_time", 1.0)?))?;
        Ok(json!(sum(&args.get::<Vec<Value>>(0, "numbers")?)?))
    });
    tasks.add("delayed_sum_with_soft_guard", |cx, args| {
        // A soft limit that is over is an answer, not a failure.
        if cx.sleep(seconds(or(&args, 1, "pause_time", 1.0)?)).is_err() {
            return Ok(json!(0));
        }
        Ok(json!(sum(&args.get::<Vec<Value>>(0, "numbers")?)?))
    });
    tasks.add("sleeping", |cx, args| {
        cx.sleep(seconds(args.get(0, "i")?))?;
        Ok(Value::Null)
    });
    for name in ["add_pydantic", "add_pydantic_string_annotations"] {
        tasks.add(name, |_, args| {
            #[derive(serde::Deserialize)]
            struct Model {
                x: i64,
                y: i64,
            }
            let Model { x, y } = args.get(0, "data")?;
            Ok(json!({"result": x + y}))
        });
    }
    tasks.add("print_unicode", |_, args| {
        log::warn!("{}", or(&args, 0, "log_message", "håå®ƒ valmuefrø".to_owned())?);
        println!("{}", or(&args, 1, "print_message", "hiöäüß".to_owned())?);
        Ok(Value::Null)
    });
    tasks.add("return_exception", |_, args| Ok(json!([args.get::<Value>(0, "e")?, true])));
    tasks.add("replaced_with_me", |_, _| Ok(json!(true)));
}

fn failures(tasks: &mut Tasks) {
    tasks.add("raise_error", |_, _| Err(TaskError::new("ValueError", "deliberate error")));
    tasks.add("fail", |_, args| {
        let mut all = vec![json!("Task expected to fail")];
        all.extend(args.positional);
        Err(exception("ExpectedException", all.into()).into())
    });
    tasks.add("fail_unpickleable", |_, args| {
        Err(exception("UnpickleableException", json!([args.get::<Value>(0, "foo")?])).into())
    });
    tasks.add("reject_then_succeed", |cx, _| match cx.redelivered() {
        true => Ok(json!("second-pass")),
        false => Err(TaskError::Reject { requeue: true }),
    });
    tasks.add("reject_without_requeue", |_, _| Err(TaskError::Reject { requeue: false }));
}

/// A retry with an exception of the module.
fn again(countdown: f64, max_retries: Option<u32>, exception: Exception) -> TaskError {
    let exception = Box::new(exception);
    TaskError::Retry { countdown: Some(seconds(countdown)), max_retries, exception, arguments: None }
}

/// Celery's exception of a retry that has no other.
fn retried() -> Exception {
    Exception::new("celery.exceptions", "Retry", "")
}

fn retries(tasks: &mut Tasks) {
    let attempts = AtomicU32::new(0);
    tasks.add("retry", move |_, args| {
        let value = or(&args, 0, "return_value", Value::Null)?;
        // As there, what has been tried is counted over all calls.
        if !value.is_null() && attempts.fetch_add(1, Ordering::SeqCst) >= 3 {
            attempts.store(0, Ordering::SeqCst);
            return Ok(value);
        }
        Err(again(5.0, None, expected()))
    });
    tasks.add("retry_unpickleable", |_, args| {
        let how = args.get::<Value>(2, "retry_kwargs")?;
        let most = how["max_retries"].as_u64().and_then(|most| u32::try_from(most).ok());
        let exception = exception("UnpickleableException", json!([args.get::<Value>(0, "foo")?]));
        Err(again(how["countdown"].as_f64().unwrap_or(180.0), most, exception))
    });
    for name in ["retry_once", "retry_once_priority", "retry_once_headers"] {
        tasks.add(name, move |cx, args| {
            let (most, countdown) =
                (or(&args, usize::MAX, "max_retries", 1)?, or(&args, usize::MAX, "countdown", 0.1)?);
            match (cx.retries(), name) {
                (0, _) => Err(again(countdown, Some(most), retried())),
                (_, "retry_once_priority") => Ok(json!(cx.message().priority)),
                (_, "retry_once_headers") => Ok(json!(cx.message().headers)),
                (retries, _) => Ok(json!(retries)),
            }
        });
    }
    for name in ["retry_once_ignore_result", "retry_once_with_result"] {
        tasks.add(name, |cx, _| match cx.retries() {
            0 => Err(again(0.0, None, retried())),
            retries => Ok(json!(retries)),
        });
    }
    tasks.add("retry_with_args_after_kwargs", |cx, args| {
        let (first, second) = (args.get::<i64>(0, "foo")?, args.get::<i64>(1, "bar")?);
        let label = or(&args, 2, "label", Value::Null)?;
        let named = Map::from_iter([("label".to_owned(), label.clone())]);
        match cx.retries() {
            0 => Err(again(0.0, Some(1), retried())
                .with_arguments(Args { positional: vec![json!(first + 1), json!(second + 1)], named })),
            retries => Ok(json!({"foo": first, "bar": second, "label": label, "retries": retries, "is_eager": false})),
        }
    });
    tasks.add("retry_with_kwargs_after_args", |cx, args| {
        let (first, second) = (args.get::<i64>(0, "foo")?, args.get::<i64>(1, "bar")?);
        let named = [("foo", first + 1), ("bar", second)].map(|(name, value)| (name.to_owned(), json!(value)));
        match cx.retries() {
            0 => Err(again(0.0, Some(1), retried())
                .with_arguments(Args { positional: Vec::new(), named: Map::from_iter(named) })),
            retries => Ok(json!({"foo": first, "bar": second, "retries": retries, "is_eager": false})),
        }
    });
    let options = TaskOptions {
        autoretry_for: vec!["ValueError".to_owned()],
        max_retries: Some(1),
        retry_backoff: Some(1),
        ..TaskOptions::default()
    };
    let registry = std::mem::take(&mut tasks.0);
    tasks.0 = registry.register_with("auto_retry_class_task", options, |cx, _| match cx.retries() {
        0 => Err(TaskError::new("ValueError", "")),
        retries => Ok(json!(retries)),
    });
}

fn requests(tasks: &mut Tasks) {
    tasks.add("ids", |cx, args| Ok(json!([cx.root_id(), cx.parent_id(), args.get::<Value>(0, "i")?])));
    tasks.add("collect_ids", |cx, args| {
        let own = json!([cx.root_id(), cx.parent_id(), args.get::<Value>(1, "i")?]);
        Ok(json!([args.get::<Value>(0, "res")?, own]))
    });
    tasks.add("return_priority", |cx, _| Ok(json!(format!("Priority: {}", cx.message().priority))));
    tasks.add("return_request_eta", |cx, _| Ok(json!(cx.message().eta.map(|eta| eta.to_string()))));
    tasks.add("return_properties", |cx, _| Ok(json!(cx.message().properties)));
    for name in ["return_request_time_limits", "task_with_declared_time_limits"] {
        tasks.add(name, |cx, _| {
            let (soft, hard) = cx.time_limits();
            let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
            Ok(json!({"time_limit": seconds(hard), "soft_time_limit": seconds(soft)}))
        });
    }
}

/// What is said of the tasks there beside what they do.
fn options(tasks: &mut Tasks) {
    for (name, ignore) in [
        ("add_ignore_result", true),
        ("add_with_result", false),
        ("retry_once_ignore_result", true),
        ("retry_once_with_result", false),
    ] {
        tasks.with(name, TaskOptions { ignore_result: Some(ignore), ..TaskOptions::default() });
    }
    tasks.with("reject_then_succeed", TaskOptions { acks_late: Some(true), ..TaskOptions::default() });
    let (hard, soft) = (Some(Duration::from_secs(60)), Some(Duration::from_secs(45)));
    let limits = TaskOptions { time_limit: hard, soft_time_limit: soft, ..TaskOptions::default() };
    tasks.with("task_with_declared_time_limits", limits);
    for name in ["retry_once", "retry_once_priority", "retry_once_headers"] {
        tasks.with(name, TaskOptions { max_retries: Some(1), ..TaskOptions::default() });
    }
}

/// The Redis that the tests look into.
#[derive(Clone)]
struct Ask(RedisConfig);

impl Ask {
    /// Asks for one thing over a connection of its own, as the tasks there do.
    fn once(&self, command: &redis::Cmd) -> Result<(), TaskError> {
        let failed = |error: phalanx::redis::RedisError| TaskError::new("ConnectionError", error.to_string());
        let deadline = Instant::now() + REDIS_TIME;
        let mut connection = Connection::open(&self.0, deadline, &Shutdown::new(), Level::Cancel).map_err(failed)?;
        connection.request(command).map(drop).map_err(failed)
    }

    fn push(&self, key: &str, value: &str) -> Result<(), TaskError> {
        self.once(redis::cmd("RPUSH").arg(key).arg(value))
    }

    fn count(&self, key: &str) -> Result<(), TaskError> {
        self.once(redis::cmd("INCR").arg(key))
    }
}

/// A value as the Redis client of Python writes it; bytes are text here.
fn written(value: &Value) -> String {
    let value = value::plain(value.clone());
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn notes(tasks: &mut Tasks, ask: &Ask) {
    let own = ask.clone();
    tasks.add("redis_echo", move |_, args| {
        let key = or(&args, 1, "redis_key", "redis-echo".to_owned())?;
        own.push(&key, &written(&args.get::<Value>(0, "message")?))?;
        Ok(Value::Null)
    });
    let own = ask.clone();
    tasks.add("redis_echo_group_id", move |cx, args| {
        let key = or(&args, 1, "redis_key", "redis-group-ids".to_owned())?;
        own.push(&key, cx.message().group.as_deref().unwrap_or(""))?;
        Ok(Value::Null)
    });
    let own = ask.clone();
    tasks.add("redis_count", move |_, args| {
        own.count(&or(&args, 0, "redis_key", "redis-count".to_owned())?)?;
        Ok(Value::Null)
    });
    let own = ask.clone();
    tasks.add("sum_and_record", move |cx, args| {
        let result = sum(&args.get::<Vec<Value>>(0, "values")?)?;
        own.push(&args.get::<String>(1, "redis_key")?, cx.id())?;
        Ok(json!(result))
    });
    // Those of the new style get a request, an exception and a traceback there, of which they use the id alone.
    for name in ["errback_old_style", "errback_new_style"] {
        let own = ask.clone();
        tasks.add(name, move |_, args| {
            let id = args.get::<String>(0, "request_id")?;
            own.count(&id)?;
            Ok(json!(id))
        });
    }
    for name in ["errback_old_style_with_args", "errback_new_style_with_args"] {
        let own = ask.clone();
        tasks.add(name, move |_, args| {
            own.push(&args.get::<String>(0, "request_id")?, &args.get::<String>(1, "label")?)?;
            Ok(Value::Null)
        });
    }
    tasks.add("write_to_file_and_return_int", |_, args| {
        let (path, number) = (args.get::<String>(0, "file_name")?, args.get::<i64>(1, "i")?);
        let failed = |error: std::io::Error| TaskError::new("OSError", error.to_string());
        let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(failed)?;
        file.write_all(format!("{number}\n").as_bytes()).map_err(failed)?;
        Ok(json!(number))
    });
}
