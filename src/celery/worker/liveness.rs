//! That we live, and what those held who do not. On the timer's and the commander's threads; nothing blocks.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use redis::{FromRedisValue, Value};

use super::core::{Core, Keys, WORKER, WORKERS};
use super::restore::{self, Back};
use super::scripts::{LEFT, RENEW, RESTORE};
use crate::base::limits::CELERY_RESTORED_AT_ONCE;
use crate::base::lock::lock;
use crate::celery::keys::{UNACKED, UNACKED_INDEX, binding_key};
use crate::redis::{RedisError, Repeat, Request};

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
    let visible = core.config.visibility_timeout.as_secs_f64().to_string();
    let request = Request::new(Repeat::Idempotent, core.patience())
        .script(
            &RENEW,
            &[core.keys.alive.as_str(), &core.keys.held, UNACKED_INDEX, WORKERS],
            &(core.id.as_str(), lifetime(core)),
        )
        .script(&LEFT, &[WORKERS, UNACKED, UNACKED_INDEX], &(WORKER, CELERY_RESTORED_AT_ONCE, visible));
    let weak = Arc::downgrade(core);
    let sent = core.commands.submit(request, move |answer| {
        if let Some(core) = weak.upgrade() {
            core.beating.store(false, Ordering::SeqCst);
            match answer.and_then(|mut replies| found(replies.pop())) {
                Ok(left) => look(&core, left),
                Err(error) => core.board.errors.report(error.class(), "cel-live", &error),
            }
        }
    });
    if let Err(error) = sent {
        core.beating.store(false, Ordering::SeqCst);
        core.board.errors.report(error.class(), "cel-live", &error);
    }
}

/// What nobody works on: the worker that held it and where it lay (both empty if it is only old), its tag, its record.
struct Left {
    worker: String,
    tag: String,
    list: String,
    entry: Vec<u8>,
}

fn found(reply: Option<Value>) -> Result<Vec<Left>, RedisError> {
    let flat: Vec<Vec<u8>> = FromRedisValue::from_redis_value(reply.unwrap_or(Value::Array(Vec::new())))?;
    let mut parts = flat.into_iter();
    let mut left = Vec::new();
    while let (Some(worker), Some(tag), Some(list), Some(entry)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        left.push(Left { worker: text(worker), tag: text(tag), list: text(list), entry });
    }
    Ok(left)
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
            None => log::error!("message {} is held by nobody and its record is unreadable; it is left", left.tag),
            Some(back) if !left.worker.is_empty() => {
                let list = left.list.clone();
                put_back(core, &left, &back, &list);
            }
            Some(back) => put_back_old(core, left, back),
        }
    }
}

/// What was held by a worker of Celery goes to the queue that its exchange and routing key lead to.
fn put_back_old(core: &Arc<Core>, left: Left, back: Back) {
    if back.exchange.is_empty() {
        match back.list(&[]) {
            Some(list) => put_back(core, &left, &back, &list),
            None => log::error!("message {} is old, and no queue is named in it; it is left", left.tag),
        }
        return;
    }
    let ask = Request::idempotent(redis::cmd("SMEMBERS").arg(binding_key(&back.exchange)), core.patience());
    let weak = Arc::downgrade(core);
    let sent = core.commands.submit(ask, move |answer| {
        let Some(core) = weak.upgrade() else { return };
        let bound = answer.and_then(|mut replies| Ok(Vec::<String>::from_redis_value(replies.remove(0))?));
        match bound.map(|bound| back.list(&bound)) {
            Ok(Some(list)) => put_back(&core, &left, &back, &list),
            Ok(None) => {
                log::error!("message {} is old, and no queue is bound to {:?}; it is left", left.tag, back.exchange)
            }
            Err(error) => core.board.errors.report(error.class(), "cel-live", &error),
        }
    });
    if let Err(error) = sent {
        core.board.errors.report(error.class(), "cel-live", &error);
    }
}

fn put_back(core: &Arc<Core>, left: &Left, back: &Back, list: &str) {
    let keys = Keys::of(&left.worker);
    let (alive, held) = if left.worker.is_empty() { ("", "") } else { (keys.alive.as_str(), keys.held.as_str()) };
    let visible = core.config.visibility_timeout.as_secs_f64().to_string();
    let args = (left.tag.as_str(), back.message.as_str(), visible, alive, held);
    let request =
        Request::new(Repeat::Idempotent, core.patience()).script(&RESTORE, &[UNACKED, UNACKED_INDEX, list], &args);
    let (weak, tag, worker) = (Arc::downgrade(core), left.tag.clone(), left.worker.clone());
    let sent = core.commands.submit(request, move |answer| {
        let Some(core) = weak.upgrade() else { return };
        match answer.as_deref() {
            Ok([Value::Int(1)]) => {
                core.totals.restored.inc();
                match worker.as_str() {
                    "" => log::warn!("message {tag} was older than the visibility time-out and was put back"),
                    worker => log::warn!("message {tag} of the dead worker {worker} was put back"),
                }
            }
            Ok(_) => {}
            Err(error) => core.board.errors.report(error.class(), "cel-live", error),
        }
    });
    if let Err(error) = sent {
        core.board.errors.report(error.class(), "cel-live", &error);
    }
}
