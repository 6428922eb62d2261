//! Sends canvases, and saves and restores groups.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{RecvTimeoutError, bounded};
use redis::FromRedisValue;
use serde_json::{Value, json};

use super::group::{CanvasResult, GroupResult};
use super::{CeleryHandle, SendError, may_be_done};
use crate::base::limits::CELERY_PRODUCER_TIME;
use crate::base::lock::lock;
use crate::base::stop::KICK_GRACE;
use crate::base::waits::waiting_unless_noted;
use crate::celery::canvas::{Call, Canvas, Expansion, Frozen, Place, Sending, freeze, send};
use crate::celery::json;
use crate::celery::meta::unpacked;
use crate::celery::moment::Moment;
use crate::celery::scripts::ENQUEUE_ALL;
use crate::redis::{RedisError, Repeat, Request};

impl CeleryHandle {
    /// Sends a canvas, or a task, within the settings' `operation_time`, and gives its result to come. All messages
    /// that begin it are there at once, or none.
    ///
    /// Blocks until Redis has it. If the connection is lost meanwhile it is sent again over the next one; Redis takes
    /// it once.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_canvas(&self, canvas: impl Into<Canvas>) -> Result<CanvasResult, SendError> {
        self.send_canvas_by(canvas, Instant::now() + self.0.config.redis.operation_time)
    }

    /// As [`CeleryHandle::send_canvas`], until a moment, which is not to be more than half an hour away.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_canvas_by(&self, canvas: impl Into<Canvas>, deadline: Instant) -> Result<CanvasResult, SendError> {
        let (mut signature, config) = (canvas.into().into_signature(), &self.0.config);
        let mut fresh = || uuid::Uuid::new_v4().to_string();
        let mut ignored = HashSet::new();
        let frozen = freeze(&mut signature, None, &Place::default(), None, &mut fresh).map_err(SendError::Canvas)?;
        signature.each(&mut |one| {
            let wish = one.options.get("ignore_result").and_then(Value::as_bool);
            if wish.unwrap_or(config.app.task_ignore_result) {
                ignored.extend(one.text("task_id").map(str::to_owned));
            }
        });
        let (zone, mut out) = (config.app.zone(), Expansion::default());
        let mut sending = Sending {
            now: Moment::from(SystemTime::now()),
            defaults: &(),
            app: &config.app,
            zone: &zone,
            origin: &config.origin,
            tells: config.send_sent_event || config.app.task_send_sent_event,
            fresh: &mut fresh,
        };
        send(signature, Call::default(), &mut out, &mut sending).map_err(SendError::Canvas)?;
        let result = self.followed(&frozen, &ignored)?;
        match self.enqueue(out, deadline) {
            Ok(()) => Ok(result),
            Err(RedisError::Stopped) => Err(SendError::Stopped),
            Err(error) if may_be_done(&error) => Err(SendError::UnknownCanvas { result: Box::new(result), error }),
            Err(error) => Err(SendError::NotSent { id: frozen.id().to_owned(), error }),
        }
    }

    /// The results of a group that was saved, by [`CeleryHandle::save_group`] or by `GroupResult.save` of Celery;
    /// `None` if nothing is.
    ///
    /// Blocks until `deadline` at most.
    ///
    /// # Errors
    /// [`SendError`]; [`SendError::Canvas`] if what is stored is no group.
    pub fn restore_group(&self, id: &str, deadline: Instant) -> Result<Option<GroupResult>, SendError> {
        let not_there = |error: RedisError| SendError::NotSent { id: id.to_owned(), error };
        let get = Request::idempotent(redis::cmd("GET").arg(self.0.names.group(id)), deadline);
        let stored = self.0.results.call(get).map_err(not_there)?.into_iter().next().unwrap_or(redis::Value::Nil);
        let stored = Option::<Vec<u8>>::from_redis_value(stored);
        let Some(stored) = stored.map_err(|error| SendError::Canvas(error.to_string()))? else { return Ok(None) };
        let text = unpacked(&stored).map_err(|error| SendError::Canvas(error.to_string()))?;
        let saved = json::read(&text).map_err(|error| SendError::Canvas(error.to_string()))?;
        match saved.get("result").and_then(Frozen::read) {
            Some(frozen @ Frozen::Many(..)) => match self.followed(&frozen, &HashSet::new())? {
                CanvasResult::Group(group) => Ok(Some(group)),
                CanvasResult::One(_) => Ok(None),
            },
            _ => Err(SendError::Canvas("what is stored is no group".to_owned())),
        }
    }

    /// Notes which results belong to a group, for [`CeleryHandle::restore_group`] and `GroupResult.restore` of Celery;
    /// kept as long as results are.
    ///
    /// Blocks until `deadline` at most.
    ///
    /// # Errors
    /// [`RedisError`].
    pub fn save_group(&self, group: &GroupResult, deadline: Instant) -> Result<(), RedisError> {
        let text = json!({"result": group.frozen().write()}).to_string();
        let set = kept(&self.0.names.group(&group.id), &text, self.0.config.app.result_expires);
        self.0.results.call(Request::idempotent(&set, deadline)).map(drop)
    }

    /// Follows all results of a canvas.
    fn followed(&self, frozen: &Frozen, ignored: &HashSet<String>) -> Result<CanvasResult, SendError> {
        Ok(match frozen {
            Frozen::One(id) if ignored.contains(id) => CanvasResult::One(self.ignored(id)?),
            Frozen::One(id) => CanvasResult::One(self.result(id)?),
            Frozen::Many(id, parts) => {
                let parts = parts.iter().map(|part| self.followed(part, ignored)).collect::<Result<_, _>>()?;
                CanvasResult::Group(GroupResult { id: id.clone(), parts })
            }
        })
    }

    /// Puts everything into Redis in one piece; where results are elsewhere, what belongs to them before.
    fn enqueue(&self, out: Expansion, deadline: Instant) -> Result<(), RedisError> {
        let (names, expires) = (&self.0.names, self.0.config.app.result_expires);
        let seconds = expires.as_secs().to_string();
        let (mut args, mut before) = (Vec::new(), Request::new(Repeat::Idempotent, deadline));
        let mut note = |what: &str, key: String, value: String| {
            if self.0.is_elsewhere {
                let place = if what == "size" { format!("{key}.s") } else { key.clone() };
                let request = std::mem::replace(&mut before, Request::new(Repeat::Idempotent, deadline));
                before =
                    request.command(&kept(&place, &value, expires)).command(redis::cmd("DEL").arg(format!("{key}.c")));
            } else {
                args.extend([what.to_owned(), key, value, seconds.clone()]);
            }
        };
        for (id, size) in &out.sizes {
            note("size", names.group(id), size.to_string());
        }
        for (id, all) in &out.groups {
            note("group", names.group(id), json!({"result": all}).to_string());
        }
        if self.0.is_elsewhere && !out.sizes.is_empty() {
            self.0.results.call(before)?;
        }
        let mut events = Vec::new();
        for message in out.messages {
            let list = names.queue(&message.queue, message.priority);
            args.extend(["push".to_owned(), list, message.text, String::new()]);
            events.extend(message.event);
        }
        let (since, (notify, notified)) = (Instant::now(), bounded(1));
        {
            let mut sequence = lock(&self.0.sequence);
            *sequence += 1;
            let arguments = (*sequence, CELERY_PRODUCER_TIME.as_secs(), args);
            let keys = [self.0.producer.as_str()];
            let request = Request::new(Repeat::Idempotent, deadline).script(&ENQUEUE_ALL, &keys, arguments);
            self.0.commander.submit(request, move |answer| {
                // Its caller waits until it is notified.
                let _ = notify.send(answer.map(drop));
            })?;
        }
        // The commander keeps the deadline; this bound is for a thread that the machine does not let run.
        let _waiting = waiting_unless_noted("an answer of Redis", Some(deadline));
        match notified.recv_deadline(deadline + KICK_GRACE) {
            Ok(answer) => answer?,
            Err(RecvTimeoutError::Timeout) => {
                return Err(RedisError::Timeout { doing: "an answer", after: since.elapsed(), last: None });
            }
            // The commander has gone with it.
            Err(RecvTimeoutError::Disconnected) => return Err(RedisError::Stopped),
        }
        events.into_iter().for_each(|event| self.0.events.put(event));
        Ok(())
    }
}

/// Sets a key, for as long as results are kept.
fn kept(key: &str, value: &str, expires: Duration) -> redis::Cmd {
    let mut set = redis::cmd("SET");
    set.arg(key).arg(value);
    if !expires.is_zero() {
        set.arg("EX").arg(expires.as_secs().max(1));
    }
    set
}
