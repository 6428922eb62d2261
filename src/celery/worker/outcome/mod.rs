//! What follows from the end of a task: the results to store and the messages to send. Pure.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::call::{TaskError, exception};
use super::policy::Policy;
use crate::base::limits::{CELERY_ASIDE, CELERY_ASIDE_BYTES, CELERY_RESULT_BYTES};
use crate::celery::app_config::AppConfig;
use crate::celery::keys::Keyspace;
use crate::celery::message::TaskMessage;
use crate::celery::meta::{Exception, Meta, ResultState};
use crate::celery::moment::{Moment, Zone};

/// The list of messages that were put aside.
pub const ASIDE: &str = "phalanx.aside";

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// It returned a value.
    Success(Value),
    /// It failed.
    Failure(Exception, Option<String>),
    /// It failed and is to be tried again.
    Retry {
        /// Not before this long from now.
        countdown: Duration,
        /// Retries at most.
        max_retries: Option<u32>,
        /// What went wrong.
        exception: Exception,
    },
    /// It was revoked: `revoked`, `terminated`, `expired`.
    Revoked(&'static str),
    /// Nothing is stored.
    Ignored,
    /// Nobody here knows a task of this name.
    Unknown,
}

/// One thing to do in Redis, in one piece with the acknowledgement.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Op {
    /// Stores and publishes a result, unless a success is there.
    Result(String, String),
    /// As `Result`, if the message is still ours.
    OwnResult(String, String),
    /// Appends to a list, if the message is still ours; the list keeps so many (0: all).
    Push(String, String, usize),
}

/// What follows from the end of a task.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settlement {
    /// The state that the task has now.
    pub state: ResultState,
    /// What is to be done; results first.
    pub ops: Vec<Op>,
    /// Why it failed, for the log.
    pub why: String,
    /// What could not be done, for the log.
    pub complaints: Vec<String>,
}

/// What a settlement needs to know beside the task.
pub(super) struct Setting<'a> {
    /// The time.
    pub now: Moment,
    /// The list that the message came from.
    pub list: &'a str,
    /// The message as it lay there.
    pub raw: &'a [u8],
    /// What counts for the task.
    pub policy: &'a Policy,
    /// The settings of the application.
    pub app: &'a AppConfig,
    /// The names of its keys.
    pub names: &'a Keyspace,
    /// The zone of times without an offset.
    pub zone: &'a Zone,
    /// Who sends them.
    pub origin: &'a str,
    /// New unique ids.
    pub fresh: &'a mut dyn FnMut() -> String,
}

/// What follows from `outcome`.
pub(super) fn settle(message: &TaskMessage, outcome: Outcome, setting: &mut Setting<'_>) -> Settlement {
    let mut done =
        Settlement { state: ResultState::Success, ops: Vec::new(), why: String::new(), complaints: Vec::new() };
    let is_unknown = outcome == Outcome::Unknown;
    match outcome {
        Outcome::Success(value) => success(message, value, setting, &mut done),
        Outcome::Failure(exception, traceback) => failure(message, &exception, traceback, setting, &mut done),
        Outcome::Retry { countdown, max_retries, exception } => {
            if max_retries.is_some_and(|most| message.retries >= most) {
                failure(message, &exception, None, setting, &mut done);
            } else {
                done.state = ResultState::Retry;
                done.why = format!("{}: {}", exception.exc_type, exception.message());
                let eta = (!countdown.is_zero()).then(|| setting.now.plus(countdown));
                let next = message.retry(eta, (setting.fresh)());
                store(message, Meta::retry(&message.id, &exception, None), true, setting, &mut done);
                done.ops.push(Op::Push(setting.list.to_owned(), next.write().write(), 0));
            }
        }
        Outcome::Revoked(reason) => {
            done.state = ResultState::Revoked;
            store(message, Meta::revoked(&message.id, reason, setting.now), false, setting, &mut done);
            chord(message, &mut done);
        }
        Outcome::Ignored => done.state = ResultState::Other("IGNORED".to_owned()),
        Outcome::Unknown => {
            let exception = Exception::new("celery.exceptions", "NotRegistered", message.task.as_str());
            failure(message, &exception, None, setting, &mut done);
            let reason = format!("no task of the name {:?} is registered", message.task);
            done.ops.push(aside(&message.id, &message.task, &reason, setting.raw, setting));
        }
    }
    if done.state == ResultState::Failure && !is_unknown && setting.policy.keeps_failed() {
        let reason = format!("it failed: {}", done.why);
        done.ops.push(aside(&message.id, &message.task, &reason, setting.raw, setting));
    }
    // What is pushed only counts if it is ours, and a full Redis refuses it before anything is changed.
    done.ops.sort_by_key(|op| matches!(op, Op::Push(..)));
    done
}

/// What a handler's error means; `None` for [`TaskError::Cancelled`], whose reason the worker knows, and for what goes
/// back to its queue.
pub(super) fn of_error(error: TaskError, message: &TaskMessage, policy: &Policy, hostname: &str) -> Option<Outcome> {
    let options = policy.options();
    Some(match error {
        TaskError::Failed(exception) => {
            let (name, text) = (&exception.exc_type, exception.message());
            let traceback = format!("{name}: {text}\n  in {}[{}] of {hostname}\n", message.task, message.id);
            Outcome::Failure(*exception, Some(traceback))
        }
        TaskError::Retry { countdown, max_retries, exception } => Outcome::Retry {
            countdown: countdown.unwrap_or(options.default_retry_delay),
            max_retries: max_retries.or(options.max_retries),
            exception: *exception,
        },
        TaskError::Ignore => Outcome::Ignored,
        TaskError::Reject { requeue: false } => Outcome::Failure(rejection(), None),
        TaskError::Reject { requeue: true } | TaskError::Cancelled => return None,
    })
}

/// What comes of an outcome after this many retries: some failures are tried again, as the options of the task say.
/// `below` gives a random number below another.
pub(super) fn retried(outcome: Outcome, policy: &Policy, retries: u32, below: impl FnOnce(u64) -> u64) -> Outcome {
    let options = policy.options();
    match outcome {
        // What a handler refuses is not what has gone wrong.
        Outcome::Failure(exception, _) if options.retries_after(&exception) && exception != rejection() => {
            let countdown = options.retry_delay(retries, below);
            Outcome::Retry { countdown, max_retries: options.max_retries, exception }
        }
        outcome => outcome,
    }
}

/// The failure of a task that its handler has refused for good.
pub(super) fn rejection() -> Exception {
    Exception::new("celery.exceptions", "Reject", "rejected")
}

/// A message that is put aside for the operator, with its id, the reason and the time; the list is bounded.
pub(super) fn aside(id: &str, name: &str, reason: &str, message: &[u8], setting: &Setting<'_>) -> Op {
    let kept = &message[..message.len().min(CELERY_ASIDE_BYTES)];
    let entry = json!({
        "id": id, "task": name, "reason": reason, "queue": setting.list, "at": setting.now.to_string(),
        "bytes": message.len(), "message": String::from_utf8_lossy(kept),
    });
    Op::Push(setting.names.key(ASIDE), entry.to_string(), CELERY_ASIDE)
}

/// The result of a message whose task cannot be read but whose id is known.
pub(super) fn unreadable(id: &str, reason: &str, setting: &Setting<'_>) -> Op {
    let exception = Exception::new("kombu.exceptions", "DecodeError", reason);
    Op::Result(setting.names.meta(id), Meta::failure(id, &exception, None, setting.now).write())
}

fn success(message: &TaskMessage, value: Value, setting: &mut Setting<'_>, done: &mut Settlement) {
    let (mut children, mut pushes) = (Vec::new(), Vec::new());
    let chain = message.embed.chain.as_array().map_or(&[][..], Vec::as_slice);
    let next = chain.split_last().map(|(next, rest)| (next, rest.to_vec()));
    let callbacks = message.embed.callbacks.as_array().into_iter().flatten();
    for (signature, rest) in callbacks.map(|signature| (signature, Vec::new())).chain(next) {
        match follow(signature, std::slice::from_ref(&value), rest, message, setting) {
            Ok((list, follower)) => {
                children.push(json!([[follower.id, null], null]));
                pushes.push(Op::Push(list, follower.write().write(), 0));
            }
            Err(why) => complain("callback", signature, &why, message, setting, done),
        }
    }
    let mut meta = Meta::success(&message.id, value, setting.now);
    meta.children = children.into();
    store(message, meta, false, setting, done);
    done.ops.append(&mut pushes);
    chord(message, done);
}

fn failure(
    message: &TaskMessage,
    exception: &Exception,
    traceback: Option<String>,
    setting: &mut Setting<'_>,
    done: &mut Settlement,
) {
    done.state = ResultState::Failure;
    done.why = format!("{}: {}", exception.exc_type, exception.message());
    store(message, Meta::failure(&message.id, exception, traceback.clone(), setting.now), false, setting, done);
    // The rest of the chain will never run, and its end is what the producer waits for.
    for id in message.embed.chain.as_array().into_iter().flatten().filter_map(|step| step.pointer("/options/task_id")) {
        if let Some(id) = id.as_str().filter(|_| message.ignore_result != Some(true)) {
            let meta = Meta::failure(id, exception, traceback.clone(), setting.now);
            done.ops.push(Op::OwnResult(setting.names.meta(id), meta.write()));
        }
    }
    for signature in message.embed.errbacks.as_array().into_iter().flatten() {
        match follow(signature, &[message.id.as_str().into()], Vec::new(), message, setting) {
            Ok((list, follower)) => done.ops.push(Op::Push(list, follower.write().write(), 0)),
            Err(why) => complain("error callback", signature, &why, message, setting, done),
        }
    }
    chord(message, done);
}

/// A chord's body waits for a count that only Celery's own workers keep; nobody is left in doubt about it.
fn chord(message: &TaskMessage, done: &mut Settlement) {
    if !message.embed.chord.is_null() && message.group.is_some() {
        done.complaints.push("it belongs to a chord, which is not supported: the chord's body will not run".to_owned());
    }
}

fn complain(
    what: &str,
    signature: &Value,
    why: &str,
    message: &TaskMessage,
    setting: &Setting<'_>,
    done: &mut Settlement,
) {
    let name = signature.get("task").and_then(Value::as_str).unwrap_or("?");
    let reason = format!("the {what} {name:?} of {} is not sent: {why}", message.id);
    done.ops.push(aside(&message.id, name, &reason, signature.to_string().as_bytes(), setting));
    done.complaints.push(reason);
}

/// Stores a result, unless nobody wants it.
fn store(message: &TaskMessage, mut meta: Meta, own: bool, setting: &Setting<'_>, done: &mut Settlement) {
    let is_kept = setting.policy.stores_errors() && meta.state.is_exception();
    if message.ignore_result == Some(true) && !is_kept {
        return;
    }
    complete(message, &mut meta);
    let mut text = meta.write();
    if text.len() > CELERY_RESULT_BYTES {
        let why = format!("the result has {} bytes, more than {CELERY_RESULT_BYTES}", text.len());
        let exception = exception("OverflowError", why.clone());
        let done_at = meta.date_done.and_then(|at| at.parse().ok()).unwrap_or(Moment::from_unix_micros(0));
        meta = Meta::failure(&message.id, &exception, None, done_at);
        complete(message, &mut meta);
        text = meta.write();
        done.state = ResultState::Failure;
        done.complaints.push(why);
    }
    let key = setting.names.meta(&message.id);
    done.ops.push(if own { Op::OwnResult(key, text) } else { Op::Result(key, text) });
}

/// The fields that every result of the task has.
pub(super) fn complete(message: &TaskMessage, meta: &mut Meta) {
    meta.group_id.clone_from(&message.group);
    meta.parent_id.clone_from(&message.parent_id);
}

/// The message that a signature stands for, with the arguments that come first, and the list it goes to.
fn follow(
    signature: &Value,
    first: &[Value],
    mut chain: Vec<Value>,
    parent: &TaskMessage,
    setting: &mut Setting<'_>,
) -> Result<(String, TaskMessage), String> {
    let name = signature.get("task").and_then(Value::as_str).ok_or("it is not a signature")?;
    let empty = Map::new();
    let options = signature.get("options").and_then(Value::as_object).unwrap_or(&empty);
    if name == "celery.chain" {
        let steps = signature.pointer("/kwargs/tasks").and_then(Value::as_array).ok_or("a chain without tasks")?;
        let (head, rest) = steps.split_first().ok_or("a chain without tasks")?;
        let mut rest: Vec<_> = rest.iter().rev().cloned().collect();
        chain.append(&mut rest);
        return follow(head, first, chain, parent, setting);
    }
    // Groups, chords and maps are made of many messages and of counts that Celery's workers keep.
    if name.starts_with("celery.") || options.get("chord").is_some_and(|chord| !chord.is_null()) {
        return Err(format!("{name} is not supported"));
    }
    let text = |key: &str| options.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let id = text("task_id").map_or_else(|| (setting.fresh)(), str::to_owned);
    let mut message = TaskMessage::new(id, name);
    let stored = signature.get("args").and_then(Value::as_array).cloned().unwrap_or_default();
    let immutable = signature.get("immutable").and_then(Value::as_bool).unwrap_or(false);
    message.args = if immutable { stored } else { first.iter().cloned().chain(stored).collect() };
    message.kwargs = signature.get("kwargs").and_then(Value::as_object).cloned().unwrap_or_default();
    message.root_id.clone_from(&parent.root_id);
    message.parent_id = Some(parent.id.clone());
    message.group = text("group_id").map(str::to_owned);
    message.group_index = options.get("group_index").and_then(Value::as_i64);
    message.shadow = text("shadow").map(str::to_owned);
    message.reply_to = text("reply_to").unwrap_or("").to_owned();
    message.ignore_result = Some(options.get("ignore_result").and_then(Value::as_bool).unwrap_or(false));
    message.time_limit = options.get("time_limit").and_then(Value::as_f64);
    message.soft_time_limit = options.get("soft_time_limit").and_then(Value::as_f64);
    message.priority = options.get("priority").and_then(Value::as_u64).unwrap_or(0).min(9) as u8;
    message.headers = options.get("headers").and_then(Value::as_object).cloned().unwrap_or_default();
    message.embed.callbacks = list_of(options.get("link"));
    message.embed.errbacks = list_of(options.get("link_error"));
    message.embed.chain = if chain.is_empty() { Value::Null } else { chain.into() };
    message.eta = moment(options, "eta", "countdown", setting)?;
    message.expires = moment(options, "expires", "expires", setting)?;
    message.origin = Some(setting.origin.to_owned());
    message.delivery_tag = (setting.fresh)();
    let exchange_is_named = text("exchange").is_some();
    let queue = text("queue").or_else(|| text("routing_key").filter(|_| !exchange_is_named));
    message.routing_key = queue.unwrap_or(&setting.app.task_default_queue).to_owned();
    if message.routing_key.contains('\x06') {
        return Err(format!("{:?} is no name of a queue", message.routing_key));
    }
    Ok((setting.names.queue(&message.routing_key, message.priority), message))
}

/// One signature or a list of them, as a list or nothing.
fn list_of(value: Option<&Value>) -> Value {
    match value {
        Some(Value::Array(items)) if !items.is_empty() => items.clone().into(),
        Some(one @ Value::Object(_)) => json!([one]),
        _ => Value::Null,
    }
}

/// A moment as a text, or as seconds from now.
fn moment(
    options: &Map<String, Value>,
    at: &str,
    after: &str,
    setting: &Setting<'_>,
) -> Result<Option<Moment>, String> {
    if let Some(text) = options.get(at).and_then(Value::as_str) {
        return Moment::read(text, setting.zone).map(Some).map_err(|error| format!("{at}: {error}"));
    }
    let seconds = options.get(after).and_then(Value::as_f64).map(Duration::try_from_secs_f64).transpose();
    Ok(seconds.map_err(|error| format!("{after}: {error}"))?.map(|seconds| setting.now.plus(seconds)))
}

#[cfg(test)]
mod tests;
