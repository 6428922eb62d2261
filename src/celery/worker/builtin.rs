//! The tasks that every worker of Celery has: canvases send them.

use serde_json::Value;

use super::call::{Args, TaskError};
use super::context::TaskCx;
use super::registry::Registry;
use crate::celery::canvas::{self, ACCUMULATE, Signature};
use crate::celery::meta::Exception;

/// Their names. A chain is none, and a chord is counted in Redis, so nobody looks whether it is complete.
const NAMES: [&str; 8] = [
    ACCUMULATE,
    "celery.backend_cleanup",
    "celery.chord",
    "celery.chunks",
    "celery.group",
    "celery.map",
    "celery.ping",
    "celery.starmap",
];

/// Whether a task is one of them.
pub(super) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Runs one of them, or fails as a task that nobody knows.
pub(super) fn run(registry: &Registry, cx: &TaskCx, args: Args) -> Result<Value, TaskError> {
    match cx.name() {
        ACCUMULATE => accumulate(&args),
        // What is stored expires by itself.
        "celery.backend_cleanup" => Ok(Value::Null),
        "celery.ping" => Ok("pong".into()),
        "celery.map" => mapped(registry, cx, &args, |item| Ok(vec![item])),
        "celery.starmap" => mapped(registry, cx, &args, |item| match item {
            Value::Array(items) => Ok(items),
            _ => Err(TaskError::new("TypeError", "an item of a starmap is no list of arguments")),
        }),
        "celery.chunks" => {
            let items = args.get::<Vec<Value>>(1, "it")?;
            let group = canvas::chunks(&args.get(0, "task")?, &items, args.get(2, "n")?);
            Ok(cx.called(group)?.write())
        }
        "celery.group" => {
            let tasks = args.get::<Vec<Value>>(0, "tasks")?;
            let partial: Vec<Value> = args.get(3, "partial_args")?;
            let mut group = Signature::group(with_arguments(&tasks, &partial)?);
            group.options.insert("task_id".to_owned(), args.get::<String>(2, "group_id")?.into());
            cx.called(group)?;
            args.get(1, "result")
        }
        "celery.chord" => {
            let header: Value = args.get(0, "header")?;
            let header = match header.pointer("/kwargs/tasks").unwrap_or(&header) {
                Value::Array(tasks) => tasks.clone(),
                _ => return Err(TaskError::new("TypeError", "the header of a chord is no list")),
            };
            let partial: Vec<Value> = args.get(2, "partial_args").unwrap_or_default();
            let header = with_arguments(&header, &partial)?;
            Ok(cx.called(Signature::chord(header, signature(&args.get(1, "body")?)?))?.write())
        }
        name => Err(Exception::new("celery.exceptions", "NotRegistered", name).into()),
    }
}

fn signature(value: &Value) -> Result<Signature, TaskError> {
    Signature::read(value).map_err(|why| TaskError::new("TypeError", why))
}

fn with_arguments(tasks: &[Value], partial: &[Value]) -> Result<Vec<Signature>, TaskError> {
    let one = |task: &Value| {
        let mut task = signature(task)?;
        if !task.immutable {
            task.args.splice(0..0, partial.iter().cloned());
        }
        Ok(task)
    };
    tasks.iter().map(one).collect()
}

fn accumulate(args: &Args) -> Result<Value, TaskError> {
    match args.named.get("index").and_then(Value::as_i64) {
        None => Ok(args.positional.clone().into()),
        Some(index) => {
            let one = usize::try_from(index).ok().and_then(|index| args.positional.get(index));
            one.cloned().ok_or_else(|| TaskError::new("IndexError", "tuple index out of range"))
        }
    }
}

/// Calls another task in this one's place, once for each item.
fn mapped(
    registry: &Registry,
    cx: &TaskCx,
    args: &Args,
    arguments: impl Fn(Value) -> Result<Vec<Value>, TaskError>,
) -> Result<Value, TaskError> {
    let (task, items): (Value, Vec<Value>) = (args.get(0, "task")?, args.get(1, "it")?);
    let name = task.get("task").and_then(Value::as_str).unwrap_or("");
    let handler = registry.get(name);
    let handler = handler.ok_or_else(|| Exception::new("celery.exceptions", "NotRegistered", name))?;
    let one = |item| {
        cx.check()?;
        handler(cx, Args { positional: arguments(item)?, ..Args::default() })
    };
    items.into_iter().map(one).collect()
}
