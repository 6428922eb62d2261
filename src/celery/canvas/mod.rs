//! Canvas: tasks that are called with the results of others. One after the other, beside each other, or with the
//! results of all of a group, as Celery has it. Pure.
//!
//! In reading order: [`Canvas`], what is built; `signature`, the same as Celery writes it in messages; `expand`, what
//! of it is sent at first; `join`, what a chord's body is called with.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use phalanx::celery::{Canvas, CeleryClient, CeleryConfig, Task};
//! use phalanx::ops::status::Board;
//! use phalanx::redis::RedisConfig;
//! use serde_json::json;
//!
//! let client = CeleryClient::start(CeleryConfig::new(RedisConfig::parse("redis://127.0.0.1/0")?), &Board::new())?;
//! let add = |x: i64, y: i64| Task::new("tasks.add").args(json!([x, y]));
//! let header = Canvas::group([add(1, 1), add(2, 2)]);
//! let sum = client.handle().send_canvas(Canvas::chord(header, Task::new("tasks.sum")).then(Task::new("tasks.neg")))?;
//! assert_eq!(sum.wait(Duration::from_secs(10))?, -6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod expand;
mod join;
mod signature;

use serde_json::{Map, Value, json};

use super::task::Task;
use crate::base::limits::CELERY_CANVAS_TASKS;

pub(super) use expand::{Call, Defaults, Expansion, Frozen, Place, Sending, freeze, send};
pub(super) use join::{Broken, chord_error, endings, entry, join};
pub(super) use signature::{ACCUMULATE, Kind, Signature, list_of};

/// Tasks that are called with the results of others.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a canvas does nothing before it is sent"]
pub struct Canvas(Signature);

impl Canvas {
    /// One after the other, each with the result of the one before as its first argument. Its result is the last one's.
    pub fn chain<C: Into<Self>>(steps: impl IntoIterator<Item = C>) -> Self {
        Self(Signature::chain(signatures(steps)))
    }

    /// Beside each other. Its result is the list of theirs. Followed by something in a chain it is a chord's header.
    pub fn group<C: Into<Self>>(tasks: impl IntoIterator<Item = C>) -> Self {
        Self(Signature::group(signatures(tasks)))
    }

    /// The tasks of a group beside each other, then the body with the list of their results. Its result is the body's.
    /// If one of them fails, the body fails with a `ChordError` that names it.
    pub fn chord(header: impl Into<Self>, body: impl Into<Self>) -> Self {
        let header = header.into().0;
        let header = match header.kind {
            Kind::Group(tasks) => tasks,
            kind => vec![Signature { kind, ..header }],
        };
        Self(Signature::chord(header, body.into().0))
    }

    /// One task that calls another one, in its own place, with each of these as its argument. Its result is the list of
    /// theirs.
    pub fn map<V: Into<Value>>(task: impl Into<String>, items: impl IntoIterator<Item = V>) -> Self {
        Self(mapped("celery.map", task, items.into_iter().map(Into::into).collect()))
    }

    /// As [`Canvas::map`], with each of these lists as its arguments.
    pub fn starmap<V: Into<Value>>(task: impl Into<String>, items: impl IntoIterator<Item = V>) -> Self {
        Self(mapped("celery.starmap", task, items.into_iter().map(Into::into).collect()))
    }

    /// A group of starmaps with so many items each, at least one.
    pub fn chunks<V: Into<Value>>(task: impl Into<String>, items: impl IntoIterator<Item = V>, size: usize) -> Self {
        let (task, items): (String, Vec<Value>) = (task.into(), items.into_iter().map(Into::into).collect());
        let parts = items.chunks(size.max(1)).map(|part| mapped("celery.starmap", task.as_str(), part.to_vec()));
        Self(Signature::group(parts.collect()))
    }

    /// What follows with the result of this one.
    pub fn then(self, next: impl Into<Self>) -> Self {
        let mut steps = match self.0.kind {
            Kind::Chain(steps) if self.0.options.is_empty() => steps,
            kind => vec![Signature { kind, ..self.0 }],
        };
        steps.push(next.into().0);
        Self(Signature::chain(steps))
    }

    /// Calls another one with the result, beside what follows in a chain. With that of the last task of a chain, and of
    /// the body of a chord; of a group it is the first task that calls it, without its result.
    pub fn link(mut self, callback: impl Into<Self>) -> Self {
        self.0.link(&[callback.into().0.write()]);
        self
    }

    /// Calls another one with the id of the task that has failed: any of a chain or group, or the body of a chord.
    pub fn link_error(mut self, errback: impl Into<Self>) -> Self {
        self.0.link_error(&[errback.into().0.write()]);
        self
    }

    /// The queue of each of its tasks that names none.
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        let queue = Value::from(queue.into());
        self.0.each(&mut |one| {
            if one.kind == Kind::Task {
                one.options.entry("queue").or_insert_with(|| queue.clone());
            }
        });
        self
    }

    /// It takes no result of another one as its argument.
    pub fn immutable(mut self) -> Self {
        match &mut self.0.kind {
            Kind::Group(tasks) | Kind::Chord(tasks, _) => tasks.iter_mut().for_each(|task| task.immutable = true),
            Kind::Task | Kind::Chain(_) => self.0.immutable = true,
        }
        self
    }

    /// A stamp on each of its tasks and on what they call, by which they can be called off together: Celery's
    /// `stamped_headers`. A name that options of Celery have (`queue`) is not to be used.
    pub fn stamp(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        let stamps = [(name.into(), value.into())].into_iter().collect();
        self.0.stamp(&stamps);
        self
    }

    /// Reads a signature as Celery writes it in JSON.
    ///
    /// # Errors
    /// In words: it is not one, or has more tasks or levels than are read.
    pub fn read(signature: &Value) -> Result<Self, String> {
        Signature::read(signature).map(Self)
    }

    /// The signature as Celery writes it in JSON.
    pub fn write(&self) -> Value {
        self.0.write()
    }

    pub(super) fn into_signature(self) -> Signature {
        self.0
    }
}

impl From<Task> for Canvas {
    fn from(task: Task) -> Self {
        let (message, options) = task.into_options();
        Self(Signature { args: message.args, kwargs: message.kwargs, options, ..Signature::task(message.task) })
    }
}

impl From<Signature> for Canvas {
    fn from(signature: Signature) -> Self {
        Self(signature)
    }
}

fn signatures<C: Into<Canvas>>(all: impl IntoIterator<Item = C>) -> Vec<Signature> {
    // One more than may be sent says that there are too many.
    all.into_iter().take(CELERY_CANVAS_TASKS + 1).map(|one| one.into().0).collect()
}

fn mapped(map: &str, task: impl Into<String>, items: Vec<Value>) -> Signature {
    let kwargs: [(String, Value); 2] =
        [("task".to_owned(), Signature::task(task).write()), ("it".to_owned(), items.into())];
    Signature { kwargs: Map::from_iter(kwargs), immutable: true, ..Signature::task(map) }
}

/// The group of starmaps that Celery's `celery.chunks` stands for.
pub(super) fn chunks(task: &Value, items: &[Value], size: usize) -> Signature {
    let part = |items: &[Value]| {
        let kwargs = json!({"task": task, "it": items}).as_object().cloned().unwrap_or_default();
        Signature { kwargs, immutable: true, ..Signature::task("celery.starmap") }
    };
    Signature::group(items.chunks(size.max(1)).map(part).collect())
}

#[cfg(test)]
mod tests;
