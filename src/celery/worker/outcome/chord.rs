//! What follows when a part was the last one of its chord. Pure.

use serde_json::{Value, json};

use super::op::{Claim, Op, Part, Returned};
use super::{Setting, Settlement, aside, fail_chain, follow};
use crate::celery::canvas::{Broken, Call, Signature, chord_error, endings, join};
use crate::celery::meta::{Meta, ResultState};

/// What is left to do of these operations, and what follows when some of their parts were the last of their chords.
pub(in crate::celery::worker) fn continued(
    done: &[Op],
    returned: Vec<(usize, Returned)>,
    setting: &mut Setting<'_>,
) -> (Vec<Op>, Vec<String>) {
    let part = |op: &Op| if let Op::Part(part) = op { Some((**part).clone()) } else { None };
    let parts: Vec<Part> = done.iter().filter_map(part).collect();
    // Results and parts are stored.
    let is_open = |op: &&Op| !matches!(op, Op::Result(..) | Op::OwnResult(..) | Op::Part(_));
    let mut ops: Vec<Op> = done.iter().filter(is_open).cloned().collect();
    let mut told = Vec::new();
    for (at, returned) in returned {
        let Some(part) = parts.get(at) else { continue };
        let mut settlement = completed(part, returned, setting);
        ops.append(&mut settlement.ops);
        told.extend((!settlement.why.is_empty()).then_some(settlement.why));
        told.append(&mut settlement.complaints);
    }
    ops.sort_by_key(Op::rank);
    (ops, told)
}

/// Those of the operations that [`continued`] has added behind those that were to be done before.
pub(in crate::celery::worker) fn added<'a>(done: &[Op], ops: &'a [Op]) -> impl Iterator<Item = &'a Op> {
    // All that follows from a chord is in its claim, and the older claims stay before the newer ones.
    let is_claim = |op: &&Op| matches!(op, Op::Claimed(_));
    ops.iter().filter(is_claim).skip(done.iter().filter(is_claim).count())
}

/// What follows when this part was the last one: the chord's body, or its failure.
pub(super) fn completed(part: &Part, returned: Returned, setting: &mut Setting<'_>) -> Settlement {
    let mut done =
        Settlement { state: ResultState::Success, ops: Vec::new(), why: String::new(), complaints: Vec::new() };
    let results = match &returned.entries {
        Some(entries) => join(entries, returned.saved.as_deref()),
        None => Err(chord_error("Join error: the results of its parts are too large for one message")),
    };
    let root = part.body.pointer("/options/root_id").and_then(Value::as_str).map(str::to_owned);
    let root = root.or_else(|| part.root.clone()).unwrap_or_else(|| part.task.clone());
    let mut ops = Vec::new();
    let called = results.and_then(|results| {
        let (root, parent) = (Some(root), Some(part.task.clone()));
        let call = Call { args: vec![results], root, parent, ..Call::default() };
        follow(&part.body, call, setting, &mut ops).map_err(|why| chord_error(format!("Callback error: {why}")))
    });
    let failed = called.is_err();
    if let Err(broken) = called {
        ops.clear();
        fail(part, &broken, setting, &mut done);
    }
    // Parts of other chords are recorded first: what follows from them belongs to the same piece.
    let (parts, mut rest): (Vec<_>, Vec<_>) = done.ops.into_iter().partition(|op| matches!(op, Op::Part(_)));
    ops.append(&mut rest);
    ops.sort_by_key(Op::rank);
    done.ops = parts;
    let (key, token) = (setting.names.group(&part.group), part.token());
    done.ops.push(Op::Claimed(Box::new(Claim { key, token, failed, ops })));
    done
}

/// The body of a chord fails with what one of its parts has failed with.
fn fail(part: &Part, broken: &Broken, setting: &mut Setting<'_>, done: &mut Settlement) {
    done.why = format!("chord {}: {}", part.group, broken.error.message());
    let body = match Signature::read(&part.body) {
        Ok(body) => body,
        Err(why) => {
            let reason = format!("the body of the chord {} cannot be read: {why}", part.group);
            done.ops.push(aside(&part.task, "", &reason, part.body.to_string().as_bytes(), setting));
            done.complaints.push(reason);
            return;
        }
    };
    for ending in endings(&body) {
        let exception = if ending.in_group { &broken.cause } else { &broken.error };
        let meta = Meta::failure(&ending.id, exception, None, setting.now);
        done.ops.push(Op::OwnResult(setting.names.meta(&ending.id), meta.write()));
        done.ops.extend(Part::of(&ending.id, &ending.place, &meta, None).map(|part| Op::Part(Box::new(part))));
        for errback in ending.errbacks {
            let id = Some(ending.id.clone());
            let call = Call { args: vec![json!(ending.id)], root: id.clone(), parent: id, ..Call::default() };
            let mut ops = Vec::new();
            match follow(&errback, call, setting, &mut ops) {
                Ok(_) => done.ops.append(&mut ops),
                Err(why) => {
                    let reason = format!("the error callback of {} is not sent: {why}", ending.id);
                    done.ops.push(aside(&ending.id, "", &reason, errback.to_string().as_bytes(), setting));
                    done.complaints.push(reason);
                }
            }
        }
    }
    let chain = body.options.get("chain").cloned().unwrap_or_default();
    fail_chain(&chain, &broken.error, None, true, setting, done);
}
