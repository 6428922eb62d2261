//! Commands of remote control that change the worker: what is asked for, checked. Pure.

use serde_json::{Map, Value, json};

use super::control::Command;
use super::node::{Effect, Node};
use super::rate::Rate;
use super::revoked::stamps;
use crate::base::limits::{CELERY_QUEUES, CELERY_THREADS};
use crate::celery::keys::SEPARATOR;
use crate::celery::repr;

/// The answer to a command that changes something, or is not known, and what it changes.
pub(super) fn change(command: &Command, node: &dyn Node) -> (Value, Effect) {
    let arguments = &command.arguments;
    let changed = match command.method.as_str() {
        "rate_limit" => limit_rate(arguments, node),
        "time_limit" => limit_time(arguments, node),
        "add_consumer" => add_queue(arguments, node),
        "cancel_consumer" => {
            queue(arguments).map(|queue| (format!("no longer consuming from {queue}"), Effect::RemoveQueue(queue)))
        }
        "pool_grow" => resize(arguments, |n| node.concurrency().saturating_add(n), "pool will grow"),
        "pool_shrink" => resize(arguments, |n| node.concurrency().saturating_sub(n), "pool will shrink"),
        "revoke_by_stamped_headers" => revoke_stamped(arguments, node),
        "autoscale" => Err("autoscale is not supported by phalanx: pool_grow and pool_shrink are".to_owned()),
        method @ ("pool_restart" | "objgraph" | "memdump") => Err(format!("{method} is not supported by phalanx")),
        method => Err(format!("KeyError('{method}')")),
    };
    match changed {
        Ok((said, effect)) => (json!({"ok": said}), effect),
        Err(why) => (json!({"error": why}), Effect::None),
    }
}

/// Whether tasks that run are to be ended.
pub(super) fn terminates(arguments: &Map<String, Value>) -> bool {
    !matches!(arguments.get("terminate"), None | Some(Value::Null | Value::Bool(false)))
}

type Change = Result<(String, Effect), String>;

fn task(arguments: &Map<String, Value>, node: &dyn Node) -> Result<String, String> {
    let name = arguments.get("task_name").and_then(Value::as_str).unwrap_or("");
    node.registered().into_iter().find(|task| task == name).ok_or_else(|| "unknown task".to_owned())
}

fn limit_rate(arguments: &Map<String, Value>, node: &dyn Node) -> Change {
    let rate = Rate::read(arguments.get("rate_limit").unwrap_or(&Value::Null))?;
    let said = if rate.is_some() { "new rate limit set successfully" } else { "rate limit disabled successfully" };
    Ok((said.to_owned(), Effect::LimitRate(task(arguments, node)?, rate)))
}

fn limit_time(arguments: &Map<String, Value>, node: &dyn Node) -> Change {
    let seconds = |key: &str| match arguments.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|seconds| *seconds >= 0.0) {
            // As with Celery, no time is no limit.
            Some(seconds) => Ok(Some(seconds).filter(|seconds| *seconds > 0.0)),
            None => Err(format!("the {key} limit must be a number of seconds, not {value}")),
        },
    };
    let (soft, hard) = (seconds("soft")?, seconds("hard")?);
    Ok(("time limits set successfully".to_owned(), Effect::LimitTime(task(arguments, node)?, soft, hard)))
}

fn queue(arguments: &Map<String, Value>) -> Result<String, String> {
    let name = arguments.get("queue").and_then(Value::as_str).unwrap_or("");
    match name.is_empty() || name.len() > 255 || name.contains(SEPARATOR) {
        true => Err("a queue needs a name of at most 255 bytes".to_owned()),
        false => Ok(name.to_owned()),
    }
}

fn add_queue(arguments: &Map<String, Value>, node: &dyn Node) -> Change {
    let queue = queue(arguments)?;
    let other = |key: &str, own: &str| {
        arguments.get(key).and_then(Value::as_str).is_some_and(|value| !value.is_empty() && value != own)
    };
    if other("exchange", &queue) || other("routing_key", &queue) || other("exchange_type", "direct") {
        return Err("phalanx takes from queues by their names: leave out exchange and routing key".to_owned());
    }
    if node.queues().len() >= CELERY_QUEUES {
        return Err(format!("a worker takes from at most {CELERY_QUEUES} queues"));
    }
    Ok((format!("add consumer {queue}"), Effect::AddQueue(queue)))
}

fn resize(arguments: &Map<String, Value>, size: impl Fn(usize) -> usize, said: &str) -> Change {
    let by = match arguments.get("n") {
        None | Some(Value::Null) => 1,
        Some(n) => {
            let whole = n.as_u64().and_then(|n| usize::try_from(n).ok());
            whole.ok_or_else(|| format!("n must be a whole number of threads, not {n}"))?
        }
    };
    match size(by) {
        0 => Err("a worker needs at least one thread".to_owned()),
        size if size > CELERY_THREADS => Err(format!("a worker has at most {CELERY_THREADS} threads")),
        size => Ok((said.to_owned(), Effect::Resize(size))),
    }
}

fn revoke_stamped(arguments: &Map<String, Value>, node: &dyn Node) -> Change {
    let headers = match arguments.get("headers") {
        Some(Value::Object(headers)) => headers.clone(),
        // As the command line gives them: `header=stamp`.
        Some(Value::Array(pairs)) => {
            let pairs = pairs.iter().filter_map(|pair| pair.as_str()?.split_once('='));
            pairs.map(|(header, stamp)| (header.to_owned(), stamp.into())).collect()
        }
        _ => Map::new(),
    };
    if headers.is_empty() {
        return Err("headers must be an object of stamps, or a list of header=stamp".to_owned());
    }
    let (stamps, shown) = (stamps(&headers), repr::kwargs(&headers));
    let terminate = terminates(arguments);
    let said = match (terminate, terminate && node.runs_stamped(&stamps)) {
        (false, _) => format!("headers {shown} flagged as revoked, but not terminated"),
        (true, false) => format!("headers {shown} were not terminated"),
        (true, true) => format!("headers {shown} revoked"),
    };
    Ok((said, Effect::RevokeStamped(stamps, terminate)))
}
