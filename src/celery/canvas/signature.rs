//! A signature: a task that is to be called, or a chain, group or chord of them, read and written as Celery has it in
//! JSON. Pure.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use crate::base::limits::{CELERY_CANVAS_BYTES, CELERY_CANVAS_LEVELS, CELERY_CANVAS_TASKS};

/// The name of the task that gives the results of a group on, in place of the group.
pub(in crate::celery) const ACCUMULATE: &str = "celery.accumulate";

/// What a signature is of.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::celery) enum Kind {
    /// One task.
    Task,
    /// One after the other, each with the result of the one before.
    Chain(Vec<Signature>),
    /// Beside each other.
    Group(Vec<Signature>),
    /// A body that is called with the results of all tasks of the header.
    Chord(Vec<Signature>, Option<Box<Signature>>),
}

/// A task or a canvas with what it is to be called with.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::celery) struct Signature {
    pub task: String,
    pub args: Vec<Value>,
    pub kwargs: Map<String, Value>,
    pub options: Map<String, Value>,
    pub kind: Kind,
    /// Takes no further arguments.
    pub immutable: bool,
}

impl Signature {
    /// A task without arguments.
    pub(in crate::celery) fn task(name: impl Into<String>) -> Self {
        Self {
            task: name.into(),
            args: Vec::new(),
            kwargs: Map::new(),
            options: Map::new(),
            kind: Kind::Task,
            immutable: false,
        }
    }

    pub(in crate::celery) fn chain(steps: Vec<Self>) -> Self {
        Self { kind: Kind::Chain(steps), ..Self::task("celery.chain") }
    }

    pub(in crate::celery) fn group(tasks: Vec<Self>) -> Self {
        Self { kind: Kind::Group(tasks), ..Self::task("celery.group") }
    }

    pub(in crate::celery) fn chord(header: Vec<Self>, body: Self) -> Self {
        Self { kind: Kind::Chord(header, Some(Box::new(body))), ..Self::task("celery.chord") }
    }

    /// Reads one, with what is in it.
    ///
    /// # Errors
    /// In words: it is not a signature, or larger than is read.
    pub(in crate::celery) fn read(value: &Value) -> Result<Self, String> {
        read(value, 0, &mut CELERY_CANVAS_TASKS.clone())
    }

    /// Writes it as Celery reads it.
    pub(in crate::celery) fn write(&self) -> Value {
        let all = |tasks: &[Self]| Value::Array(tasks.iter().map(Self::write).collect());
        let (subtask, kwargs) = match &self.kind {
            Kind::Task => (Value::Null, self.kwargs.clone().into()),
            Kind::Chain(steps) => ("chain".into(), json!({"tasks": all(steps)})),
            Kind::Group(tasks) => ("group".into(), json!({"tasks": all(tasks)})),
            Kind::Chord(header, body) => {
                let body = body.as_ref().map(|body| body.write());
                ("chord".into(), json!({"kwargs": self.kwargs, "header": all(header), "body": body}))
            }
        };
        json!({
            "task": self.task, "args": self.args, "kwargs": kwargs, "options": self.options, "subtask_type": subtask,
            "immutable": self.immutable,
        })
    }

    /// A text among the options; an empty one is none.
    pub(in crate::celery) fn text(&self, option: &str) -> Option<&str> {
        self.options.get(option).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// Adds signatures to a list among the options, each once.
    pub(in crate::celery) fn add(&mut self, option: &str, signatures: &[Value]) {
        let mut all = list_of(self.options.get(option));
        for one in signatures {
            if !all.contains(one) {
                all.push(one.clone());
            }
        }
        if !all.is_empty() {
            self.options.insert(option.to_owned(), all.into());
        }
    }

    /// What is called with its result: linked to its last task, or its body. Nothing has a group's result: linked to
    /// its first task then, without an argument, as Celery does.
    pub(in crate::celery) fn link(&mut self, callbacks: &[Value]) {
        match &mut self.kind {
            Kind::Task => self.add("link", callbacks),
            Kind::Chain(steps) => {
                if let Some(last) = steps.last_mut() {
                    last.link(callbacks);
                }
            }
            Kind::Chord(_, Some(body)) => body.link(callbacks),
            Kind::Group(tasks) => {
                let fixed: Vec<Value> = callbacks.iter().cloned().map(immutable).collect();
                if let Some(first) = tasks.first_mut() {
                    first.link(&fixed);
                }
            }
            Kind::Chord(_, None) => {}
        }
    }

    /// What is called when it fails: by each of its tasks, and by the body of a chord.
    pub(in crate::celery) fn link_error(&mut self, errbacks: &[Value]) {
        match &mut self.kind {
            Kind::Task => self.add("link_error", errbacks),
            // Its tasks get them when it is sent; until then whoever cannot send it finds them here.
            Kind::Chain(_) => self.add("link_error", errbacks),
            Kind::Group(tasks) => tasks.iter_mut().for_each(|task| task.link_error(errbacks)),
            Kind::Chord(header, body) => {
                // A chord in a header fails with its own body, not with this one.
                for task in header.iter_mut().filter(|task| matches!(task.kind, Kind::Chord(..))) {
                    task.link_error(errbacks);
                }
                if let Some(body) = body {
                    body.link_error(errbacks);
                }
            }
        }
    }

    /// The same for the body of a chord: a group that has errbacks of its own, which stand in for those of its tasks,
    /// gets them there.
    pub(in crate::celery) fn link_error_to_body(&mut self, errbacks: &[Value]) {
        let has_own = self.options.get("link_error").is_some_and(|own| !own.is_null());
        match self.kind {
            Kind::Group(_) if has_own => self.add("link_error", errbacks),
            _ => self.link_error(errbacks),
        }
    }

    /// Adds stamps to each task in it and to what they call; those that are there stay.
    pub(in crate::celery) fn stamp(&mut self, stamps: &Map<String, Value>) {
        self.each(&mut |one| {
            let mut names = one.options.get("stamped_headers").and_then(Value::as_array).cloned().unwrap_or_default();
            for (name, value) in stamps {
                if !names.iter().any(|known| known == name) {
                    names.push(name.as_str().into());
                    one.options.insert(name.clone(), value.clone());
                }
            }
            one.options.insert("stamped_headers".to_owned(), names.into());
            for option in ["link", "link_error"] {
                let stamped =
                    list_of(one.options.get(option)).into_iter().map(|callback| match Self::read(&callback) {
                        Ok(mut read) => {
                            read.stamp(stamps);
                            read.write()
                        }
                        // Whoever calls it says what is wrong with it.
                        Err(_) => callback,
                    });
                let stamped: Vec<Value> = stamped.collect();
                if !stamped.is_empty() {
                    one.options.insert(option.to_owned(), stamped.into());
                }
            }
        });
    }

    /// Each task in it, and itself.
    pub(in crate::celery) fn each(&mut self, change: &mut impl FnMut(&mut Self)) {
        change(self);
        match &mut self.kind {
            Kind::Task => {}
            Kind::Chain(tasks) | Kind::Group(tasks) => tasks.iter_mut().for_each(|task| task.each(change)),
            Kind::Chord(header, body) => {
                header.iter_mut().for_each(|task| task.each(change));
                if let Some(body) = body {
                    body.each(change);
                }
            }
        }
    }

    /// How many of its tasks report to the chord that it is in the header of.
    pub(in crate::celery) fn parts(&self) -> usize {
        match &self.kind {
            Kind::Task => 1,
            Kind::Group(tasks) => tasks.iter().map(Self::parts).sum(),
            Kind::Chain(steps) => steps.iter().rev().map(Self::parts).find(|parts| *parts > 0).unwrap_or(0),
            Kind::Chord(_, body) => body.as_ref().map_or(0, |body| body.parts()),
        }
    }

    /// How many signatures are in it, itself among them.
    fn count(&self) -> usize {
        let all = |tasks: &[Self]| tasks.iter().map(Self::count).sum::<usize>();
        1 + match &self.kind {
            Kind::Task => 0,
            Kind::Chain(tasks) | Kind::Group(tasks) => all(tasks),
            Kind::Chord(header, body) => all(header) + body.as_ref().map_or(0, |body| body.count()),
        }
    }

    /// Counts what [`Signature::link_error`] copies at most.
    ///
    /// # Errors
    /// In words, if it is too much.
    pub(in crate::celery) fn spend_errbacks(&self, errbacks: &[Value], copied: &mut usize) -> Result<(), String> {
        if errbacks.is_empty() {
            return Ok(());
        }
        spend(copied, self.count(), errbacks.iter().map(bytes_of).sum())
    }

    /// Counts what [`Signature::stamp`] copies at most.
    ///
    /// # Errors
    /// In words, if it is too much.
    pub(in crate::celery) fn spend_stamps(
        &self,
        stamps: &Map<String, Value>,
        copied: &mut usize,
    ) -> Result<(), String> {
        // A name is among the stamps and in the list of their names.
        let bytes = stamps.iter().map(|(name, value)| 2 * name.len() + bytes_of(value)).sum();
        spend(copied, self.count() + self.count_called(), bytes)
    }

    /// How many signatures its tasks call, and those call in turn.
    fn count_called(&self) -> usize {
        let of_list = |tasks: &[Self]| tasks.iter().map(Self::count_called).sum::<usize>();
        let own = ["link", "link_error"].iter().filter_map(|option| self.options.get(*option));
        own.map(signatures_in).sum::<usize>()
            + match &self.kind {
                Kind::Task => 0,
                Kind::Chain(tasks) | Kind::Group(tasks) => of_list(tasks),
                Kind::Chord(header, body) => of_list(header) + body.as_ref().map_or(0, |body| body.count_called()),
            }
    }

    /// Whether nothing is in it to be called.
    fn is_empty(&self) -> bool {
        matches!(&self.kind, Kind::Chain(tasks) | Kind::Group(tasks) if tasks.is_empty())
    }

    /// A group of one is that one.
    fn unrolled(mut self, copied: &mut usize) -> Result<Self, String> {
        while let Kind::Group(tasks) = &mut self.kind
            && tasks.len() == 1
            && let Some(mut only) = tasks.pop()
        {
            only.link(&list_of(self.options.get("link")));
            let errbacks = list_of(self.options.get("link_error"));
            only.spend_errbacks(&errbacks, copied)?;
            only.link_error(&errbacks);
            self = only;
        }
        Ok(self)
    }
}

/// The members of a group, those of groups in it among them.
pub(super) fn members(tasks: Vec<Signature>) -> Vec<Signature> {
    let mut all = Vec::new();
    for task in tasks {
        match task.kind {
            Kind::Group(inner) => all.append(&mut members(inner)),
            Kind::Chain(steps) if steps.is_empty() => {}
            kind => all.push(Signature { kind, ..task }),
        }
    }
    all
}

/// The steps of a chain as they are run: those of chains in it among them, and a group that something follows as the
/// header of a chord.
///
/// # Errors
/// In words, if too much is copied.
pub(super) fn steps(tasks: Vec<Signature>, copied: &mut usize) -> Result<Vec<Signature>, String> {
    let mut flat = Vec::new();
    flatten(tasks, &mut flat, copied)?;
    let has_more = flat.iter().any(|step| !step.is_empty());
    let mut steps: VecDeque<Signature> = VecDeque::new();
    for step in flat.into_iter().rev() {
        if step.is_empty() && has_more {
            continue;
        }
        match step.kind {
            Kind::Group(header) if !steps.is_empty() => {
                let body = steps.pop_front().map(Box::new);
                let mut chord = Signature { kind: Kind::Chord(header, body), ..Signature::task("celery.chord") };
                // The group's id is the chord's.
                chord.options.extend(step.options.get_key_value("task_id").map(|(key, id)| (key.clone(), id.clone())));
                steps.push_front(chord);
            }
            kind => steps.push_front(Signature { kind, ..step }),
        }
    }
    Ok(steps.into())
}

fn flatten(tasks: Vec<Signature>, flat: &mut Vec<Signature>, copied: &mut usize) -> Result<(), String> {
    for task in tasks {
        let task = task.unrolled(copied)?;
        match task.kind {
            Kind::Chain(mut inner) => {
                if let Some(last) = inner.last_mut() {
                    last.link(&list_of(task.options.get("link")));
                }
                let errbacks = list_of(task.options.get("link_error"));
                for step in &mut inner {
                    step.spend_errbacks(&errbacks, copied)?;
                    step.link_error(&errbacks);
                }
                flatten(inner, flat, copied)?;
            }
            kind => flat.push(Signature { kind, ..task }),
        }
    }
    Ok(())
}

/// Counts copies of so many bytes, before they are made.
///
/// # Errors
/// In words, if all that was copied for a canvas is more than it may have.
pub(super) fn spend(copied: &mut usize, copies: usize, bytes: usize) -> Result<(), String> {
    *copied = copied.saturating_add(copies.saturating_mul(bytes));
    if *copied > CELERY_CANVAS_BYTES { Err("it has too many bytes".to_owned()) } else { Ok(()) }
}

/// About how many bytes a value takes as it is written.
pub(super) fn bytes_of(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| 1 + bytes_of(item)).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, value)| key.len() + 4 + bytes_of(value)).sum::<usize>(),
    }
}

/// How many signatures are in a value.
fn signatures_in(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(signatures_in).sum(),
        Value::Object(map) => usize::from(map.contains_key("task")) + map.values().map(signatures_in).sum::<usize>(),
        _ => 0,
    }
}

/// One signature or a list of them, as a list.
pub(in crate::celery) fn list_of(value: Option<&Value>) -> Vec<Value> {
    match value {
        Some(Value::Array(items)) => items.clone(),
        Some(one @ Value::Object(_)) => vec![one.clone()],
        _ => Vec::new(),
    }
}

/// The same signature, which takes no further arguments.
fn immutable(mut signature: Value) -> Value {
    signature["immutable"] = true.into();
    signature
}

fn read(value: &Value, level: usize, left: &mut usize) -> Result<Signature, String> {
    if level == CELERY_CANVAS_LEVELS {
        return Err(format!("it is nested deeper than {CELERY_CANVAS_LEVELS} levels"));
    }
    *left = left.checked_sub(1).ok_or_else(|| format!("it has more than {CELERY_CANVAS_TASKS} tasks"))?;
    let map = value.as_object().ok_or("it is not a signature")?;
    let task =
        map.get("task").and_then(Value::as_str).filter(|task| !task.is_empty()).ok_or("it is not a signature")?;
    let object = |key: &str| map.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut kwargs = object("kwargs");
    let mut all = |value: Option<Value>| -> Result<Vec<Signature>, String> {
        match value {
            Some(Value::Array(tasks)) => tasks.iter().map(|task| read(task, level + 1, left)).collect(),
            Some(one @ Value::Object(_)) => {
                let one = read(&one, level + 1, left)?;
                Ok(match one.kind {
                    Kind::Group(tasks) | Kind::Chain(tasks) => tasks,
                    kind => vec![Signature { kind, ..one }],
                })
            }
            _ => Err(format!("{task} without tasks")),
        }
    };
    let subtask = map.get("subtask_type").and_then(Value::as_str).unwrap_or("");
    let kind = match (subtask, task) {
        ("chain", _) | ("", "celery.chain") => Kind::Chain(all(kwargs.shift_remove("tasks"))?),
        ("group", _) | ("", "celery.group") => Kind::Group(all(kwargs.shift_remove("tasks"))?),
        ("chord", _) | ("", "celery.chord") => {
            let header = all(kwargs.shift_remove("header"))?;
            let body = kwargs.shift_remove("body").filter(Value::is_object);
            let body = body.map(|body| read(&body, level + 1, left)).transpose()?.map(Box::new);
            // The arguments of the header are within.
            kwargs = kwargs.get("kwargs").and_then(Value::as_object).cloned().unwrap_or_default();
            Kind::Chord(header, body)
        }
        _ => Kind::Task,
    };
    Ok(Signature {
        task: task.to_owned(),
        args: map.get("args").and_then(Value::as_array).cloned().unwrap_or_default(),
        kwargs,
        options: object("options"),
        kind,
        immutable: map.get("immutable").and_then(Value::as_bool).unwrap_or(false),
    })
}
