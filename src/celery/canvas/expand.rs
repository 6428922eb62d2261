//! What a canvas is in Redis: the ids and places of its tasks, the messages that begin it, the sizes of its chords.
//! Pure.
//!
//! [`freeze`] gives every task of it an id and a place, so that what is sent now knows the ids of what follows.
//! [`send`] then makes the messages of those that begin; the rest of it is within these, for whoever runs them.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::signature::{Kind, Signature, bytes_of, list_of, members, spend, steps};
use crate::base::limits::{CELERY_CANVAS_BYTES, CELERY_CANVAS_TASKS, CELERY_MESSAGE_BYTES};
use crate::celery::app_config::AppConfig;
use crate::celery::envelope::Compression;
use crate::celery::event::Event;
use crate::celery::keys::PRIORITY_MAX;
use crate::celery::message::TaskMessage;
use crate::celery::moment::{Moment, Zone};
use crate::celery::repr;

/// Options of a whole canvas that its tasks do not have as they are.
const OF_THE_WHOLE: [&str; 9] =
    ["chain", "chord", "group_id", "group_index", "link", "link_error", "parent_id", "root_id", "task_id"];

/// Where a task belongs: its group, its number in it, and the body that the group's results go to.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::celery) struct Place {
    pub group: Option<String>,
    pub index: Option<i64>,
    pub chord: Option<Value>,
}

impl Place {
    /// This one; what it does not say is as the options have it.
    pub(super) fn or(&self, options: &Map<String, Value>) -> Self {
        let text = |key: &str| options.get(key).and_then(Value::as_str).map(str::to_owned);
        Self {
            group: self.group.clone().or_else(|| text("group_id")),
            index: self.index.or_else(|| options.get("group_index").and_then(Value::as_i64)),
            chord: self.chord.clone().or_else(|| options.get("chord").filter(|chord| chord.is_object()).cloned()),
        }
    }
}

/// Under which ids the results of a canvas will be.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::celery) enum Frozen {
    /// That of a task.
    One(String),
    /// Those of a group, whose own id is the first.
    Many(String, Vec<Frozen>),
}

impl Frozen {
    /// As Celery writes it.
    pub(in crate::celery) fn write(&self) -> Value {
        match self {
            Self::One(id) => json!([[id, null], null]),
            Self::Many(id, all) => json!([[id, null], all.iter().map(Self::write).collect::<Vec<_>>()]),
        }
    }

    /// Reads what Celery has written.
    pub(in crate::celery) fn read(value: &Value) -> Option<Self> {
        let id = value.pointer("/0/0").or_else(|| value.get(0)).and_then(Value::as_str)?.to_owned();
        match value.get(1) {
            Some(Value::Array(all)) => Some(Self::Many(id, all.iter().map(Self::read).collect::<Option<_>>()?)),
            _ => Some(Self::One(id)),
        }
    }

    pub(in crate::celery) fn id(&self) -> &str {
        match self {
            Self::One(id) | Self::Many(id, _) => id,
        }
    }
}

/// What a canvas is called with.
#[derive(Debug, Clone, Default)]
pub(in crate::celery) struct Call {
    /// Positional arguments, which come before its own.
    pub args: Vec<Value>,
    pub kwargs: Map<String, Value>,
    /// What follows it: signatures, the next one last.
    pub chain: Vec<Value>,
    /// Options that its own give way to.
    pub options: Map<String, Value>,
    pub root: Option<String>,
    pub parent: Option<String>,
}

/// Options of `apply_async` by the names of tasks.
pub(in crate::celery) trait Defaults {
    /// Those of a task of this name.
    fn of_task(&self, name: &str) -> Map<String, Value>;
}

/// None.
impl Defaults for () {
    fn of_task(&self, _: &str) -> Map<String, Value> {
        Map::new()
    }
}

/// What sending needs to know.
pub(in crate::celery) struct Sending<'a> {
    pub now: Moment,
    /// What counts for tasks of a name that say nothing themselves.
    pub defaults: &'a dyn Defaults,
    pub app: &'a AppConfig,
    /// The zone of times without an offset.
    pub zone: &'a Zone,
    pub origin: &'a str,
    /// Whether events are wanted of what is sent.
    pub tells: bool,
    /// New unique ids.
    pub fresh: &'a mut dyn FnMut() -> String,
}

/// What is to be stored and sent, in this order.
#[derive(Debug, Default)]
pub(in crate::celery) struct Expansion {
    /// How many parts a chord waits for, by the id of its group.
    pub sizes: Vec<(String, usize)>,
    /// How the results of a chord's header are nested, where they are.
    pub groups: Vec<(String, Value)>,
    pub messages: Vec<Outgoing>,
    /// Of all messages.
    bytes: usize,
    /// What was copied from one signature into others.
    copied: usize,
}

/// A message to send.
#[derive(Debug)]
pub(in crate::celery) struct Outgoing {
    pub queue: String,
    pub priority: u8,
    /// As it lies in the queue.
    pub text: String,
    /// What is told of it, where that is wanted.
    pub event: Option<Event>,
}

/// Gives all tasks their ids, unless they have some, and their places; `id` is for the result of the whole. A chain is
/// as it is run afterwards.
///
/// # Errors
/// In words, for what cannot be run.
pub(in crate::celery) fn freeze(
    signature: &mut Signature,
    id: Option<&str>,
    place: &Place,
    root: Option<&str>,
    fresh: &mut dyn FnMut() -> String,
) -> Result<Frozen, String> {
    freeze_in(signature, id, place, root, fresh, &mut 0)
}

/// As [`freeze`]; counts what is copied from one signature into others.
fn freeze_in(
    signature: &mut Signature,
    id: Option<&str>,
    place: &Place,
    root: Option<&str>,
    fresh: &mut dyn FnMut() -> String,
    copied: &mut usize,
) -> Result<Frozen, String> {
    let place = if signature.kind == Kind::Task { place.clone() } else { place.or(&signature.options) };
    let own = signature.text("task_id").map(str::to_owned);
    let result = match &mut signature.kind {
        Kind::Task => {
            let id = own.or_else(|| id.map(str::to_owned)).unwrap_or_else(fresh);
            // Before it has the body: the next of thousands would be one copy too many.
            spend(copied, 1, place.chord.as_ref().map_or(0, bytes_of))?;
            let options = &mut signature.options;
            if let Some(group) = place.group {
                options.entry("group_id").or_insert_with(|| group.into());
            }
            options.extend(place.index.map(|index| ("group_index".to_owned(), index.into())));
            options.extend(place.chord.map(|chord| ("chord".to_owned(), chord)));
            options.extend(root.map(|root| ("root_id".to_owned(), root.into())));
            Frozen::One(id)
        }
        Kind::Chain(tasks) => {
            let (mut all, mut last) = (steps(std::mem::take(tasks), copied)?, None);
            let count = all.len();
            for (at, step) in all.iter_mut().enumerate() {
                last = Some(match at + 1 == count {
                    true => freeze_in(step, id.or(own.as_deref()), &place, root, fresh, copied)?,
                    false => freeze_in(step, None, &Place::default(), root, fresh, copied)?,
                });
            }
            *tasks = all;
            last.ok_or("a chain without tasks")?
        }
        Kind::Group(tasks) => {
            let gid = own.or_else(|| id.map(str::to_owned)).unwrap_or_else(&mut *fresh);
            *tasks = members(std::mem::take(tasks));
            let group = place.group.unwrap_or_else(|| gid.clone());
            Frozen::Many(gid, frozen_members(tasks, &group, place.chord.as_ref(), root, fresh, copied)?)
        }
        Kind::Chord(header, body) => {
            let gid = own.unwrap_or_else(&mut *fresh);
            let body = body.as_mut().ok_or("a chord without a body")?;
            let result = freeze_in(body, id, &place, root, fresh, copied)?;
            *header = members(std::mem::take(header));
            // Each of them is given the body when it is sent; here it would be there once for each.
            let mut strip = |task: &mut Signature| drop(task.options.shift_remove("chord"));
            header.iter_mut().for_each(|task| task.each(&mut strip));
            frozen_members(header, &gid, None, root, fresh, copied)?;
            signature.options.insert("task_id".to_owned(), gid.into());
            return Ok(result);
        }
    };
    signature.options.insert("task_id".to_owned(), result.id().into());
    Ok(result)
}

fn frozen_members(
    tasks: &mut [Signature],
    group: &str,
    chord: Option<&Value>,
    root: Option<&str>,
    fresh: &mut dyn FnMut() -> String,
    copied: &mut usize,
) -> Result<Vec<Frozen>, String> {
    let mut place = Place { group: Some(group.to_owned()), index: None, chord: chord.cloned() };
    let frozen = tasks.iter_mut().zip(0..).map(|(task, index)| {
        place.index = Some(index);
        freeze_in(task, None, &place, root, fresh, copied)
    });
    frozen.collect()
}

/// What begins a canvas that is frozen.
///
/// # Errors
/// In words, for what cannot be sent; what is in `out` by then is of no use.
pub(in crate::celery) fn send(
    signature: Signature,
    call: Call,
    out: &mut Expansion,
    sending: &mut Sending<'_>,
) -> Result<(), String> {
    let mut signature = signature;
    let followers = list_of(signature.options.shift_remove("chain").as_ref());
    let before = if call.chain.is_empty() { followers } else { call.chain.clone() };
    let options = signature.options.clone();
    match signature.kind {
        Kind::Task => {
            if out.messages.len() == CELERY_CANVAS_TASKS {
                return Err(format!("it has more than {CELERY_CANVAS_TASKS} tasks"));
            }
            let message = message(signature, call, before, sending)?;
            let text = message.write().write();
            out.bytes += text.len();
            if text.len() > CELERY_MESSAGE_BYTES || out.bytes > CELERY_CANVAS_BYTES {
                return Err("it has too many bytes".to_owned());
            }
            let event = sending.tells.then(|| Event::sent(&message));
            out.messages.push(Outgoing { queue: message.routing_key, priority: message.priority, text, event });
            Ok(())
        }
        Kind::Chain(mut steps) => {
            let mut whole = over(options, &call.options);
            if let Some(last) = steps.last_mut() {
                last.link(&list_of(whole.get("link")));
            }
            let errbacks = list_of(whole.get("link_error"));
            for step in &mut steps {
                step.spend_errbacks(&errbacks, &mut out.copied)?;
                step.link_error(&errbacks);
            }
            remove(&mut whole, &OF_THE_WHOLE);
            let mut steps = steps.into_iter();
            let first = steps.next().ok_or("a chain without tasks")?;
            let chain = before.into_iter().chain(steps.rev().map(|step| step.write())).collect();
            let args = if signature.immutable { signature.args } else { [call.args, signature.args].concat() };
            send(first, Call { args, chain, options: whole, ..call }, out, sending)
        }
        Kind::Group(tasks) => {
            if let Some((next, rest)) = before.split_last() {
                // Something follows a group: then it is a chord's header.
                let mut chord = Signature::chord(tasks, Signature::read(next)?);
                chord.options = options;
                let root = call.root.as_deref();
                freeze_in(&mut chord, None, &Place::default(), root, sending.fresh, &mut out.copied)?;
                return send(chord, Call { chain: rest.to_vec(), ..call }, out, sending);
            }
            let gid = options.get("task_id").cloned();
            let is_header =
                |task: &Signature| task.options.contains_key("chord") && task.options.get("group_id") == gid.as_ref();
            if let Some(gid) = gid.as_ref().and_then(Value::as_str)
                && tasks.iter().any(is_header)
            {
                out.sizes.push((gid.to_owned(), tasks.iter().map(Signature::parts).sum()));
            }
            let errbacks = options.get("link_error").filter(|errbacks| !errbacks.is_null()).cloned();
            let mut whole = over(options, &call.options);
            remove(&mut whole, &OF_THE_WHOLE);
            // Errbacks of the group stand in for those of its tasks.
            whole.extend(errbacks.map(|errbacks| ("link_error".to_owned(), errbacks)));
            for task in tasks {
                send(task, Call { chain: Vec::new(), options: whole.clone(), ..call.clone() }, out, sending)?;
            }
            Ok(())
        }
        Kind::Chord(header, body) => {
            let mut body = *body.ok_or("a chord without a body")?;
            let gid = options.get("task_id").and_then(Value::as_str).ok_or("a chord without an id")?.to_owned();
            let mut whole = over(options, &call.options);
            body.link(&list_of(whole.get("link")));
            let errbacks = list_of(whole.get("link_error"));
            body.spend_errbacks(&errbacks, &mut out.copied)?;
            body.link_error_to_body(&errbacks);
            if body.kind == Kind::Task {
                // A place that was given to the chord is the body's.
                for key in ["chord", "group_id", "group_index"] {
                    body.options.extend(whole.get_key_value(key).map(|(key, value)| (key.clone(), value.clone())));
                }
            }
            remove(&mut whole, &OF_THE_WHOLE);
            let mut of_body = whole.clone();
            remove(&mut of_body, &["countdown", "eta"]);
            body.options.extend(of_body);
            body.options.extend(call.root.as_ref().map(|root| ("root_id".to_owned(), root.as_str().into())));
            if !before.is_empty() {
                body.options.insert("chain".to_owned(), before.into());
            }
            if header.is_empty() {
                let call = Call { args: vec![json!([])], root: call.root, parent: call.parent, ..Call::default() };
                return send(body, call, out, sending);
            }
            let mut header = header;
            let written = body.write();
            let root = call.root.as_deref();
            let frozen = frozen_members(&mut header, &gid, Some(&written), root, sending.fresh, &mut out.copied)?;
            out.sizes.push((gid.clone(), header.iter().map(Signature::parts).sum()));
            if frozen.iter().any(|result| matches!(result, Frozen::Many(..))) {
                out.groups.push((gid.clone(), Frozen::Many(gid, frozen).write()));
            }
            let args = if signature.immutable { signature.args } else { [call.args, signature.args].concat() };
            let mut kwargs = signature.kwargs;
            kwargs.extend(call.kwargs);
            for task in header {
                let (root, parent) = (call.root.clone(), call.parent.clone());
                let (args, kwargs, options) = (args.clone(), kwargs.clone(), whole.clone());
                send(task, Call { args, kwargs, chain: Vec::new(), options, root, parent }, out, sending)?;
            }
            Ok(())
        }
    }
}

fn remove(options: &mut Map<String, Value>, keys: &[&str]) {
    options.retain(|key, _| !keys.contains(&key.as_str()));
}

/// The options of a signature under those that it is called with; its group and its stamps stay.
fn over(mut own: Map<String, Value>, called: &Map<String, Value>) -> Map<String, Value> {
    let stamped = own.get("stamped_headers").cloned();
    let is_stamp = |key: &str| {
        let names = stamped.as_ref().and_then(Value::as_array);
        names.is_some_and(|names| names.iter().any(|name| name == key))
    };
    for (key, value) in called {
        let may_change = !["group_id", "stamped_headers"].contains(&key.as_str()) && !is_stamp(key);
        if !value.is_null() && (may_change || !own.contains_key(key)) {
            own.insert(key.clone(), value.clone());
        }
    }
    own
}

/// The message of one task.
fn message(
    signature: Signature,
    call: Call,
    chain: Vec<Value>,
    sending: &mut Sending<'_>,
) -> Result<TaskMessage, String> {
    let mut options = over(signature.options, &call.options);
    for (key, value) in sending.defaults.of_task(&signature.task) {
        options.entry(key).or_insert(value);
    }
    let options = &options;
    let text = |key: &str| options.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let owned = |key: &str| text(key).map(str::to_owned);
    let id = owned("task_id").unwrap_or_else(&mut *sending.fresh);
    let mut message = TaskMessage::new(id, signature.task);
    (message.args, message.kwargs) = (signature.args, signature.kwargs);
    if !signature.immutable {
        message.args = [call.args, message.args].concat();
        message.kwargs.extend(call.kwargs);
    }
    message.root_id = call.root.or_else(|| owned("root_id")).unwrap_or_else(|| message.id.clone());
    message.parent_id = call.parent.or_else(|| owned("parent_id"));
    message.group = owned("group_id");
    message.group_index = options.get("group_index").and_then(Value::as_i64);
    message.shadow = owned("shadow");
    message.reply_to = owned("reply_to").unwrap_or_default();
    let wanted = sending.app.task_ignore_result.then_some(true);
    message.ignore_result = options.get("ignore_result").and_then(Value::as_bool).or(wanted);
    message.time_limit = options.get("time_limit").and_then(Value::as_f64);
    message.soft_time_limit = options.get("soft_time_limit").and_then(Value::as_f64);
    message.retries = options.get("retries").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let nesting = options.get("replaced_task_nesting").and_then(Value::as_i64);
    message.replaced_task_nesting = nesting.unwrap_or(0);
    let (queue, priority) = sending.app.route(&message.task);
    let priority = options.get("priority").and_then(Value::as_u64).unwrap_or(priority.into());
    message.priority = u8::try_from(priority).unwrap_or(PRIORITY_MAX).min(PRIORITY_MAX);
    message.headers = options.get("headers").and_then(Value::as_object).cloned().unwrap_or_default();
    let some = |list: Vec<Value>| if list.is_empty() { Value::Null } else { list.into() };
    message.embed.callbacks = some(list_of(options.get("link")));
    message.embed.errbacks = some(list_of(options.get("link_error")));
    message.embed.chain = some(chain);
    message.embed.chord = options.get("chord").filter(|chord| chord.is_object()).cloned().unwrap_or_default();
    if let Some(Value::Array(names)) = options.get("stamped_headers") {
        let stamps = names.iter().filter_map(Value::as_str);
        let stamps = stamps.filter_map(|name| options.get(name).map(|value| (name.to_owned(), value.clone())));
        message.stamps = Value::Object(stamps.collect());
        message.stamped_headers = names.clone().into();
    }
    message.eta = moment(options, "eta", "countdown", sending)?;
    message.expires = moment(options, "expires", "expires", sending)?;
    message.compression = options.get("compression").filter(|method| method.is_string()).map(|_| Compression::Zlib);
    message.origin = Some(sending.origin.to_owned());
    message.argsrepr = owned("argsrepr").or_else(|| Some(repr::args(&message.args)));
    message.kwargsrepr = owned("kwargsrepr").or_else(|| Some(repr::kwargs(&message.kwargs)));
    message.delivery_tag = (sending.fresh)();
    let exchange_is_named = text("exchange").is_some();
    let named = text("queue").or_else(|| text("routing_key").filter(|_| !exchange_is_named));
    message.routing_key = named.unwrap_or(queue).to_owned();
    if message.routing_key.contains('\x06') {
        return Err(format!("{:?} is no name of a queue", message.routing_key));
    }
    Ok(message)
}

/// A moment as a text, or as seconds from now.
fn moment(
    options: &Map<String, Value>,
    at: &str,
    after: &str,
    sending: &Sending<'_>,
) -> Result<Option<Moment>, String> {
    if let Some(text) = options.get(at).and_then(Value::as_str) {
        return Moment::read(text, sending.zone).map(Some).map_err(|error| format!("{at}: {error}"));
    }
    let seconds = options.get(after).and_then(Value::as_f64).map(Duration::try_from_secs_f64).transpose();
    Ok(seconds.map_err(|error| format!("{after}: {error}"))?.map(|seconds| sending.now.plus(seconds)))
}
