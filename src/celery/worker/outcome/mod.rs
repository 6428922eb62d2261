//! What follows from the end of a task: the results to store and the messages to send. Pure.

pub(super) mod chord;
mod op;

use std::time::Duration;

use serde_json::{Value, json};

use super::call::{Args, TaskError, exception};
use super::policy::{Policies, Policy};
use crate::base::limits::{CELERY_ASIDE, CELERY_ASIDE_BYTES, CELERY_RESULT_BYTES};
use crate::celery::app_config::AppConfig;
use crate::celery::canvas::{
    ACCUMULATE, Call, Canvas, Expansion, Frozen, Kind, Place, Sending, Signature, endings, freeze, list_of, send,
};
use crate::celery::keys::Keyspace;
use crate::celery::message::TaskMessage;
use crate::celery::meta::{Exception, Meta, ResultState};
use crate::celery::moment::{Moment, Zone};
use crate::celery::repr;

pub(super) use op::{Op, Part, Returned};

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
        /// What it is called with then, if not the same.
        arguments: Option<Box<Args>>,
    },
    /// It was revoked: `revoked`, `terminated`, `expired`.
    Revoked(&'static str),
    /// Nothing is stored.
    Ignored,
    /// Another one takes its place: its id, what follows it, its part of a chord.
    Replaced(Box<Canvas>),
    /// It returned a value, and calls these, which are frozen.
    Calls(Value, Vec<Canvas>),
    /// Nobody here knows a task of this name.
    Unknown,
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
    /// And for others.
    pub policies: &'a Policies,
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

impl Setting<'_> {
    fn sending(&mut self) -> Sending<'_> {
        Sending {
            now: self.now,
            defaults: self.policies,
            app: self.app,
            zone: self.zone,
            origin: self.origin,
            tells: false,
            fresh: &mut *self.fresh,
        }
    }
}

/// What follows from `outcome`.
pub(super) fn settle(message: &TaskMessage, outcome: Outcome, setting: &mut Setting<'_>) -> Settlement {
    let mut done =
        Settlement { state: ResultState::Success, ops: Vec::new(), why: String::new(), complaints: Vec::new() };
    let is_unknown = outcome == Outcome::Unknown;
    match outcome {
        Outcome::Success(value) => success(message, value, Vec::new(), setting, &mut done),
        Outcome::Calls(value, calls) => success(message, value, calls, setting, &mut done),
        Outcome::Replaced(canvas) => match replace(message, canvas.into_signature(), setting, &mut done) {
            Ok(()) => done.state = ResultState::Other("IGNORED".to_owned()),
            Err(why) => {
                let exception = Exception::new("celery.exceptions", "ImproperlyConfigured", why);
                failure(message, &exception, None, setting, &mut done);
            }
        },
        Outcome::Failure(exception, traceback) => failure(message, &exception, traceback, setting, &mut done),
        Outcome::Retry { countdown, max_retries, exception, arguments } => {
            if max_retries.is_some_and(|most| message.retries >= most) {
                failure(message, &exception, None, setting, &mut done);
            } else {
                done.state = ResultState::Retry;
                done.why = format!("{}: {}", exception.exc_type, exception.message());
                let eta = (!countdown.is_zero()).then(|| setting.now.plus(countdown));
                let mut next = message.retry(eta, (setting.fresh)());
                if let Some(Args { positional, named }) = arguments.map(|arguments| *arguments) {
                    (next.argsrepr, next.kwargsrepr) = (Some(repr::args(&positional)), Some(repr::kwargs(&named)));
                    (next.args, next.kwargs) = (positional, named);
                }
                store(message, Meta::retry(&message.id, &exception, None), true, setting, &mut done);
                done.ops.push(Op::Push(setting.list.to_owned(), next.write().write(), 0));
            }
        }
        Outcome::Revoked(reason) => {
            done.state = ResultState::Revoked;
            let meta = store(message, Meta::revoked(&message.id, reason, setting.now), false, setting, &mut done);
            part(message, &meta, &mut done);
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
    done.ops.sort_by_key(Op::rank);
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
        TaskError::Retry { countdown, max_retries, exception, arguments } => Outcome::Retry {
            countdown: countdown.unwrap_or(options.default_retry_delay),
            max_retries: max_retries.or(options.max_retries),
            exception: *exception,
            arguments,
        },
        TaskError::Ignore => Outcome::Ignored,
        TaskError::Replaced(canvas) => Outcome::Replaced(canvas),
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
            Outcome::Retry { countdown, max_retries: options.max_retries, exception, arguments: None }
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

fn success(message: &TaskMessage, value: Value, calls: Vec<Canvas>, setting: &mut Setting<'_>, done: &mut Settlement) {
    let (mut children, mut ops) = (Vec::new(), Vec::new());
    let of = |args: &[Value], chain: &[Value]| Call {
        args: args.to_vec(),
        chain: chain.to_vec(),
        root: Some(message.root_id.clone()),
        parent: Some(message.id.clone()),
        ..Call::default()
    };
    let result = std::slice::from_ref(&value);
    let called = calls.into_iter().map(|call| (call.into_signature().write(), of(&[], &[])));
    let callbacks = list_of(Some(&message.embed.callbacks)).into_iter().map(|callback| (callback, of(result, &[])));
    let chain = message.embed.chain.as_array().and_then(|chain| chain.split_last());
    let next = chain.map(|(next, rest)| (next.clone(), of(result, rest)));
    let beside = called.chain(callbacks).map(|call| (call, false));
    for ((signature, call), is_next) in beside.chain(next.map(|next| (next, true))).collect::<Vec<_>>() {
        match follow(&signature, call, setting, &mut ops) {
            Ok(frozen) => children.push(frozen.write()),
            Err(why) => {
                complain("callback", &signature, &why, message, setting, done);
                if is_next {
                    // Its end is what the producer and a chord wait for.
                    let exception = exception("ValueError", format!("the next task of its chain is not sent: {why}"));
                    let is_wanted = message.ignore_result != Some(true);
                    fail_chain(&message.embed.chain, &exception, None, is_wanted, setting, done);
                }
            }
        }
    }
    let mut meta = Meta::success(&message.id, value, setting.now);
    meta.children = children.into();
    let meta = store(message, meta, false, setting, done);
    done.ops.append(&mut ops);
    part(message, &meta, done);
}

/// Another one in the place of a task: what was to follow the task follows it, under the task's id.
fn replace(
    message: &TaskMessage,
    mut signature: Signature,
    setting: &mut Setting<'_>,
    done: &mut Settlement,
) -> Result<(), String> {
    let accumulated = |tasks: Vec<Signature>| {
        let mut accumulate = Signature::task(ACCUMULATE);
        accumulate.kwargs.insert("index".to_owned(), 0.into());
        Signature::chord(tasks, accumulate)
    };
    match &mut signature.kind {
        // The results of a group are one result, so that something can follow.
        Kind::Group(tasks) => signature = accumulated(std::mem::take(tasks)),
        Kind::Chain(steps) if steps.is_empty() => return Err("Cannot replace with an empty chain".to_owned()),
        Kind::Chain(steps) => {
            if let Some(Signature { kind: Kind::Group(tasks), .. }) = steps.last_mut() {
                let last = accumulated(std::mem::take(tasks));
                steps.pop();
                steps.push(last);
            }
        }
        Kind::Task | Kind::Chord(..) => {}
    }
    signature.link(&list_of(Some(&message.embed.callbacks)));
    let (errbacks, mut copied) = (list_of(Some(&message.embed.errbacks)), 0);
    signature.spend_errbacks(&errbacks, &mut copied)?;
    signature.link_error(&errbacks);
    let nesting = message.replaced_task_nesting.saturating_add(1);
    signature.each(&mut |one| drop(one.options.insert("replaced_task_nesting".to_owned(), nesting.into())));
    if let Some(stamps) = message.stamps.as_object().filter(|stamps| !stamps.is_empty()) {
        signature.spend_stamps(stamps, &mut copied)?;
        signature.stamp(stamps);
    }
    let place = Place {
        group: message.group.clone(),
        index: message.group_index,
        chord: Some(message.embed.chord.clone()).filter(Value::is_object),
    };
    let call = Call {
        chain: list_of(Some(&message.embed.chain)),
        root: Some(message.root_id.clone()),
        parent: Some(message.id.clone()),
        ..Call::default()
    };
    begin(signature, Some(&message.id), &place, call, setting, &mut done.ops).map(drop)
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
    let failed = Meta::failure(&message.id, exception, traceback.clone(), setting.now);
    let meta = store(message, failed, false, setting, done);
    // The rest of the chain will never run, and its end is what the producer waits for.
    let is_wanted = message.ignore_result != Some(true);
    fail_chain(&message.embed.chain, exception, traceback.as_ref(), is_wanted, setting, done);
    for signature in list_of(Some(&message.embed.errbacks)) {
        let call = Call {
            args: vec![message.id.as_str().into()],
            root: Some(message.root_id.clone()),
            parent: Some(message.id.clone()),
            ..Call::default()
        };
        let mut ops = Vec::new();
        match follow(&signature, call, setting, &mut ops) {
            Ok(_) => done.ops.append(&mut ops),
            Err(why) => complain("error callback", &signature, &why, message, setting, done),
        }
    }
    part(message, &meta, done);
}

/// What follows in a chain fails with what was before it, also as part of a chord.
fn fail_chain(
    chain: &Value,
    exception: &Exception,
    traceback: Option<&String>,
    is_wanted: bool,
    setting: &Setting<'_>,
    done: &mut Settlement,
) {
    for step in list_of(Some(chain)) {
        let signature = match Signature::read(&step) {
            Ok(signature) => signature,
            Err(why) => {
                done.complaints.push(format!("the rest of its chain is not failed: {why}"));
                continue;
            }
        };
        for ending in endings(&signature) {
            let meta = Meta::failure(&ending.id, exception, traceback.cloned(), setting.now);
            done.ops.extend(Part::of(&ending.id, &ending.place, &meta, None).map(|part| Op::Part(Box::new(part))));
            if is_wanted {
                done.ops.push(Op::OwnResult(setting.names.meta(&ending.id), meta.write()));
            }
        }
    }
}

/// A task that belongs to a chord is one of its parts, whether or not anybody wants its result.
fn part(message: &TaskMessage, meta: &Meta, done: &mut Settlement) {
    let place = Place {
        group: message.group.clone(),
        index: message.group_index,
        chord: Some(message.embed.chord.clone()).filter(Value::is_object),
    };
    let part = Part::of(&message.id, &place, meta, Some(&message.root_id));
    done.ops.extend(part.map(|part| Op::Part(Box::new(part))));
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

/// Stores a result, unless nobody wants it. Gives what it is then: a failure if it was too large.
fn store(message: &TaskMessage, mut meta: Meta, own: bool, setting: &Setting<'_>, done: &mut Settlement) -> Meta {
    let is_kept = setting.policy.stores_errors() && meta.state.is_exception();
    let is_wanted = message.ignore_result != Some(true) || is_kept;
    if !is_wanted && !message.embed.chord.is_object() {
        return meta;
    }
    complete(message, &mut meta);
    let mut text = String::new();
    if setting.app.result_extended {
        let plain = meta.other.clone();
        extend(message, &mut meta, setting.origin);
        text = meta.write();
        if text.len() > CELERY_RESULT_BYTES {
            // The result itself goes first.
            (meta.other, text) = (plain, String::new());
            done.complaints.push("its arguments are too large to be stored with its result".to_owned());
        }
    }
    if text.is_empty() {
        text = meta.write();
    }
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
    if is_wanted {
        let key = setting.names.meta(&message.id);
        done.ops.push(if own { Op::OwnResult(key, text) } else { Op::Result(key, text) });
    }
    meta
}

/// The fields that every result of the task has.
pub(super) fn complete(message: &TaskMessage, meta: &mut Meta) {
    meta.group_id.clone_from(&message.group);
    meta.parent_id.clone_from(&message.parent_id);
}

/// The fields of a result that says what it is of: `result_extended`.
pub(super) fn extend(message: &TaskMessage, meta: &mut Meta, hostname: &str) {
    let more = json!({
        "name": message.task, "args": message.args, "kwargs": message.kwargs, "worker": hostname,
        "retries": message.retries, "queue": message.routing_key,
    });
    meta.other.extend(more.as_object().cloned().unwrap_or_default());
    if let Some(stamps) = message.stamps.as_object().filter(|stamps| !stamps.is_empty()) {
        meta.other.insert("stamped_headers".to_owned(), message.stamped_headers.clone());
        meta.other.extend(stamps.clone());
    }
}

/// Calls what a signature stands for.
fn follow(signature: &Value, call: Call, setting: &mut Setting<'_>, ops: &mut Vec<Op>) -> Result<Frozen, String> {
    begin(Signature::read(signature)?, None, &Place::default(), call, setting, ops)
}

/// Calls a canvas whose result is to be under this id, and which belongs to this place.
fn begin(
    mut signature: Signature,
    id: Option<&str>,
    place: &Place,
    call: Call,
    setting: &mut Setting<'_>,
    ops: &mut Vec<Op>,
) -> Result<Frozen, String> {
    let frozen = freeze(&mut signature, id, place, call.root.as_deref(), setting.fresh)?;
    let mut out = Expansion::default();
    send(signature, call, &mut out, &mut setting.sending())?;
    ops.extend(out.sizes.iter().map(|(id, size)| Op::Size(setting.names.group(id), *size)));
    let groups = out.groups.iter();
    ops.extend(groups.map(|(id, all)| Op::Group(setting.names.group(id), json!({"result": all}).to_string())));
    let messages = out.messages.into_iter();
    ops.extend(messages.map(|m| Op::Push(setting.names.queue(&m.queue, m.priority), m.text, 0)));
    Ok(frozen)
}

#[cfg(test)]
mod tests;
