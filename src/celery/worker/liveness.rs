//! That we live, and what those held who do not. On the timer's and the commander's threads; nothing blocks.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use redis::{FromRedisValue, Value};

use super::core::{Core, Keys};
use super::lost;
use super::restore::{self, Back};
use super::scripts::{BEGUN, LEFT, NAMESAKES, RENEW, RESTORE};
use super::siblings::KEYS_AT_ONCE;
use crate::base::limits::CELERY_RESTORED_AT_ONCE;
use crate::base::lock::lock;
use crate::ops::errors::ErrorClass;
use crate::redis::{RedisError, Repeat, Request};

/// The part that is down while Redis does not let the worker live on, or is full.
const LIVE_PART: &str = "cel-live";

/// Milliseconds after which we count as dead.
pub(super) fn lifetime(core: &Core) -> String {
    core.config.liveness.as_millis().to_string()
}

/// Says that we live and looks for what was left, now and a third of the time to live later, until the worker ends.
pub(super) fn beat(core: &Arc<Core>) {
    if core.ending.is_set() {
        return;
    }
    let next = core.at(Instant::now() + core.config.beat(), beat);
    let old = lock(&core.beat).replace(next);
    drop(old);
    // One at a time: while Redis is away they would pile up.
    if core.beating.swap(true, Ordering::SeqCst) {
        return;
    }
    let keys = &core.keys;
    let request = Request::new(Repeat::Idempotent, core.patience())
        .script(
            &RENEW,
            &[keys.alive.as_str(), &keys.held, &keys.unacked_index, &keys.workers],
            &(core.id.as_str(), lifetime(core)),
        )
        .script(
            &NAMESAKES,
            &[keys.workers.as_str()],
            &(keys.worker.as_str(), format!("{}.", core.config.hostname), core.id.as_str()),
        )
        .script(&LEFT, &[keys.workers.as_str(), &keys.unacked, &keys.unacked_index], &looked_for(core)[..]);
    let weak = Arc::downgrade(core);
    let sent = core.commands.submit(request, move |answer| {
        if let Some(core) = weak.upgrade() {
            core.beating.store(false, Ordering::SeqCst);
            match answer.and_then(|mut replies| Ok((found(replies.pop())?, namesakes(replies.pop())?))) {
                Ok(((passed, left), others)) => {
                    core.board.health.up(LIVE_PART);
                    meet(&core, others);
                    core.passed.store(passed, Ordering::SeqCst);
                    look(&core, left);
                    look_beside(&core);
                }
                Err(error) => {
                    // That there is no connection other parts say, and sooner.
                    if matches!(error, RedisError::Server { .. }) {
                        let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
                        core.board.health.down(LIVE_PART, format!("{error}{advice}"));
                    }
                    core.board.errors.report(error.class(), LIVE_PART, &error);
                }
            }
        }
    });
    if let Err(error) = sent {
        core.beating.store(false, Ordering::SeqCst);
        core.board.errors.report(error.class(), LIVE_PART, &error);
    }
}

/// Looks for keys that tell of producers with other settings, some at a time.
fn look_beside(core: &Arc<Core>) {
    let queues = lock(&core.queues).clone();
    if queues.is_empty() {
        return;
    }
    let (cursor, pattern) = lock(&core.siblings).next(&queues);
    let mut scan = redis::cmd("SCAN");
    scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(KEYS_AT_ONCE);
    let weak = Arc::downgrade(core);
    let sent = core.commands.submit(Request::idempotent(&scan, core.patience()), move |answer| {
        let Some(core) = weak.upgrade() else { return };
        let found = answer
            .and_then(|mut replies| Ok(<(String, Vec<Vec<u8>>)>::from_redis_value(replies.pop().unwrap_or_default())?));
        match found {
            Ok((cursor, keys)) => {
                // What is not UTF-8 is no queue of ours.
                let keys = keys.into_iter().filter_map(|key| String::from_utf8(key).ok()).collect();
                let new = lock(&core.siblings).found(cursor, keys, &queues, &core.names);
                for tells in new {
                    core.board.errors.report(ErrorClass::Rejected, "cel-live", &tells);
                }
            }
            // It is a courtesy: a user who may not scan is served all the same.
            Err(error) => log::debug!("keys beside the queues were not looked for: {error}"),
        }
    });
    if let Err(error) = sent {
        log::debug!("keys beside the queues are not looked for: {error}");
    }
}

/// What nobody works on: the worker that held it (empty if it is only old), its tag, where it lay or its queue, its
/// record.
struct Left {
    worker: String,
    tag: String,
    list: String,
    entry: Vec<u8>,
}

/// What [`LEFT`] is told.
fn looked_for(core: &Core) -> Vec<String> {
    let visible = core.config.app.broker_transport_options.visibility_timeout.as_secs_f64().to_string();
    let (most, passed) = (CELERY_RESTORED_AT_ONCE.to_string(), core.passed.load(Ordering::SeqCst).to_string());
    let (names, worker) = (&core.names, core.keys.worker.clone());
    let mut args = vec![worker, most, visible, names.separator().to_owned(), names.bindings(""), passed];
    args.push(names.prefix().to_owned());
    args.extend_from_slice(&lock(&core.queues));
    args
}

/// Ids of other workers that have our name.
fn namesakes(reply: Option<Value>) -> Result<Vec<String>, RedisError> {
    Ok(Vec::<String>::from_redis_value(reply.unwrap_or(Value::Array(Vec::new())))?)
}

/// Other workers have our name.
fn meet(core: &Core, others: Vec<String>) {
    let new = lock(&core.namesakes).seen(others, core.config.liveness, Instant::now());
    let name = &core.config.hostname;
    for other in new {
        let what = "what is asked of it by remote control, both do";
        let what = format_args!("another worker has the name {name:?} too ({other}): {what}");
        core.board.errors.report(ErrorClass::Rejected, "cel-live", &what);
    }
}

/// How many old ones to pass over next time, and what was found.
fn found(reply: Option<Value>) -> Result<(usize, Vec<Left>), RedisError> {
    let reply: Vec<Value> = FromRedisValue::from_redis_value(reply.unwrap_or(Value::Array(Vec::new())))?;
    let mut parts = reply.into_iter();
    let passed = parts.next().map_or(Ok(0), usize::from_redis_value)?;
    let parts = parts.map(Vec::<u8>::from_redis_value).collect::<Result<Vec<_>, _>>()?;
    let (mut parts, mut left) = (parts.into_iter(), Vec::new());
    while let (Some(worker), Some(tag), Some(list), Some(entry)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        left.push(Left { worker: text(worker), tag: text(tag), list: text(list), entry });
    }
    Ok((passed, left))
}

/// Puts back what was left. A worker has to seem dead at two looks: after a pause of Redis itself the first of the
/// living to come back would otherwise take the others for dead.
fn look(core: &Arc<Core>, left: Vec<Left>) {
    let now = Instant::now();
    let dead: HashSet<String> = {
        let seen: HashSet<&String> = left.iter().map(|left| &left.worker).filter(|worker| !worker.is_empty()).collect();
        let mut suspects = lock(&core.suspects);
        suspects.retain(|worker, _| seen.contains(worker));
        for worker in seen {
            suspects.entry(worker.clone()).or_insert(now);
        }
        // Half a beat, because the timer is not exact.
        let old = |since: &Instant| now.saturating_duration_since(*since) >= core.config.beat() / 2;
        suspects.iter().filter(|(_, since)| old(since)).map(|(worker, _)| worker.clone()).collect()
    };
    for left in left {
        if !left.worker.is_empty() && !dead.contains(&left.worker) {
            continue;
        }
        match restore::recorded(&left.entry) {
            None => {
                let tag = &left.tag;
                let what = format_args!("message {tag} is held by nobody and its record is unreadable; it is left");
                core.board.errors.report(ErrorClass::Rejected, "cel-live", &what);
            }
            // What is only old goes to the queue that its exchange and routing key lead to.
            Some(back) if left.worker.is_empty() => {
                put_back(core, &left, &back, &core.names.queue(&left.list, back.priority))
            }
            Some(back) => match left.list.strip_prefix(BEGUN) {
                Some(list) => lost::fail(core, &left.worker, (&left.tag, list), back),
                None => put_back(core, &left, &back, &left.list),
            },
        }
    }
}

fn put_back(core: &Arc<Core>, left: &Left, back: &Back, list: &str) {
    let keys = Keys::of(&left.worker, &core.names);
    let (alive, held) = if left.worker.is_empty() { ("", "") } else { (keys.alive.as_str(), keys.held.as_str()) };
    let visible = core.config.app.broker_transport_options.visibility_timeout.as_secs_f64().to_string();
    let args = (left.tag.as_str(), back.message.as_str(), visible, alive, held);
    let request = Request::new(Repeat::Idempotent, core.patience()).script(
        &RESTORE,
        &[keys.unacked.as_str(), &keys.unacked_index, list],
        &args,
    );
    let (weak, tag, worker) = (Arc::downgrade(core), left.tag.clone(), left.worker.clone());
    let sent = core.commands.submit(request, move |answer| {
        let Some(core) = weak.upgrade() else { return };
        match answer.as_deref() {
            Ok([Value::Int(1)]) => {
                core.totals.restored.inc();
                match worker.as_str() {
                    "" => log::info!("message {tag} was older than the visibility time-out and was put back"),
                    worker => log::info!("message {tag} of the dead worker {worker} was put back"),
                }
            }
            Ok(_) => {}
            Err(error) => core.board.errors.report(error.class(), LIVE_PART, error),
        }
    });
    if let Err(error) = sent {
        core.board.errors.report(error.class(), LIVE_PART, &error);
    }
}
