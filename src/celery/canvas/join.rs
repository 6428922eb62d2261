//! The end of a chord: what its body is called with, or which results fail with it. Pure.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::expand::{Frozen, Place};
use super::signature::{Kind, Signature, list_of};
use crate::celery::json;
use crate::celery::meta::{Exception, ResultState, unpacked};

/// Why the body of a chord is not called.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::celery) struct Broken {
    /// What the body fails with.
    pub error: Box<Exception>,
    /// What the part has failed with: the tasks of a body that is a group fail with this.
    pub cause: Box<Exception>,
}

/// The exception with which the body of a chord fails.
pub(in crate::celery) fn chord_error(message: impl Into<String>) -> Broken {
    let error = Box::new(Exception::new("celery.exceptions", "ChordError", message));
    Broken { cause: error.clone(), error }
}

/// What is recorded of a part that has ended.
pub(in crate::celery) fn entry(id: &str, state: &ResultState, result: &Value) -> String {
    json::write(&json!([1, id, state.as_str(), result]))
}

/// The results of a chord's header in their order, nested as `saved` has it.
///
/// # Errors
/// The first part that has failed, or why they cannot be read.
pub(in crate::celery) fn join(entries: &[Vec<u8>], saved: Option<&[u8]>) -> Result<Value, Broken> {
    let unreadable = |why: String| chord_error(format!("Join error: {why}"));
    let mut all = Vec::new();
    for entry in entries {
        let text = unpacked(entry).map_err(|error| unreadable(error.to_string()))?;
        let read = json::read(&text).map_err(|error| unreadable(error.to_string()))?;
        let Value::Array(fields) = read else { return Err(unreadable("a part is no list".to_owned())) };
        let Ok([_, Value::String(id), Value::String(state), result]) = <[Value; 4]>::try_from(fields) else {
            return Err(unreadable("a part is no list of four".to_owned()));
        };
        if matches!(ResultState::from(state.as_str()), ResultState::Failure | ResultState::Revoked) {
            let cause = Exception::read(&result).unwrap_or_else(|| Exception::new("builtins", "Exception", ""));
            let broken = chord_error(format!("Dependency {id} raised {}", cause.shown()));
            return Err(Broken { cause: Box::new(cause), ..broken });
        }
        all.push((id, result));
    }
    let Some(saved) = saved else { return Ok(all.into_iter().map(|(_, result)| result).collect()) };
    let text = unpacked(saved).map_err(|error| unreadable(error.to_string()))?;
    let saved = json::read(&text).map_err(|error| unreadable(error.to_string()))?;
    let frozen = saved.get("result").and_then(Frozen::read);
    let frozen = frozen.ok_or_else(|| unreadable("what is stored of its group cannot be read".to_owned()))?;
    let all: HashMap<String, Value> = all.into_iter().collect();
    nested(&frozen, &all).map_err(|id| unreadable(format!("the result of {id} is missing")))
}

fn nested(frozen: &Frozen, all: &HashMap<String, Value>) -> Result<Value, String> {
    match frozen {
        Frozen::One(id) => all.get(id).cloned().ok_or_else(|| id.clone()),
        Frozen::Many(_, parts) => parts.iter().map(|part| nested(part, all)).collect(),
    }
}

/// A result that never comes when its canvas does not run.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::celery) struct Ending {
    pub id: String,
    /// What is called with the id when it fails.
    pub errbacks: Vec<Value>,
    /// Where it belongs: a chord that would wait for it.
    pub place: Place,
    /// It is a task of a group.
    pub in_group: bool,
}

/// The results of a canvas.
pub(in crate::celery) fn endings(signature: &Signature) -> Vec<Ending> {
    let mut all = Vec::new();
    collect(signature, &[], false, &mut all);
    all
}

fn collect(signature: &Signature, errbacks: &[Value], in_group: bool, all: &mut Vec<Ending>) {
    let mut errbacks = errbacks.to_vec();
    for errback in list_of(signature.options.get("link_error")) {
        if !errbacks.contains(&errback) {
            errbacks.push(errback);
        }
    }
    match &signature.kind {
        Kind::Task => {
            let Some(id) = signature.text("task_id").map(str::to_owned) else { return };
            let place = Place::default().or(&signature.options);
            all.push(Ending { id, errbacks, place, in_group });
        }
        // The last one's result is that of the chain, and the others would come before it.
        Kind::Chain(steps) => {
            let Some((last, before)) = steps.split_last() else { return };
            let start = all.len();
            before.iter().for_each(|step| collect(step, &[], in_group, all));
            all[start..].iter_mut().for_each(|ending| ending.errbacks.clear());
            let start = all.len();
            collect(last, &[], in_group, all);
            all[start..].iter_mut().for_each(|ending| ending.errbacks.clone_from(&errbacks));
        }
        Kind::Group(tasks) => {
            tasks.iter().for_each(|task| collect(task, &errbacks, true, all));
            if let Some(id) = signature.text("task_id").map(str::to_owned) {
                all.push(Ending { id, errbacks: Vec::new(), place: Place::default(), in_group: true });
            }
        }
        Kind::Chord(_, body) => {
            if let Some(body) = body {
                collect(body, &errbacks, in_group, all);
            }
        }
    }
}
