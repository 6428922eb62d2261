//! The thread that listens to remote control.
//!
//! Owner: the [`CeleryWorker`](super::CeleryWorker). Blocks in: the wait for a message on its channel. Kick: the wake
//! with the signal `ending`. Ends: when `ending` is set.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{ConnectionLike, FromRedisValue, PushKind};
use serde_json::Value;

use super::answers;
use super::control::{self, ReplyTo};
use super::core::Core;
use super::node::{Effect, Node};
use super::pool::Pool;
use super::scripts::REPLY;
use crate::base::backoff::Backoff;
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::shutdown::Level;
use crate::base::waits::waiting;
use crate::celery::keys::CONTROL_EXCHANGE;
use crate::celery::repr;
use crate::ops::foreign::Foreign;
use crate::redis::{Connection, RedisError, Repeat, Request, Waited, Wake};

const PART: &str = "cel-control";

/// How long it waits before it makes sure that the connection still works.
const LOOK: Duration = Duration::from_secs(30);

/// How long an answer waits in Redis for the one who asked.
const ANSWER_SECONDS: u64 = 60;

/// Runs until the worker ends.
pub(super) fn run(core: &Arc<Core>, pool: &Pool, wake: &Wake) {
    let (mut backoff, mut rng) = (Backoff::new(core.config.redis.backoff), Rng::from_entropy());
    while !core.ending.is_set() {
        if let Err(error) = listen(core, pool, wake, &mut backoff)
            && !core.ending.is_set()
        {
            core.board.errors.report(error.class(), PART, &error);
            let _waiting = waiting("time to connect to Redis again", None);
            core.ending.wait(backoff.next_delay(Instant::now(), rng.unit()));
        }
    }
}

fn listen(core: &Arc<Core>, pool: &Pool, wake: &Wake, backoff: &mut Backoff) -> Result<(), RedisError> {
    let config = core.config.redis.clone().named(PART);
    let mut connection = Connection::open(&config, Instant::now() + config.operation_time, &core.ending, Level::Drain)?;
    let kick = connection.kick();
    let _kick = core.ending.on(Level::Drain, move || kick.kick());
    let channel = core.names.fanout(i64::from(config.db), CONTROL_EXCHANGE);
    // A subscription is answered by a push, and the ping behind it by a reply.
    let mut commands = redis::cmd("SUBSCRIBE").arg(&channel).get_packed_command();
    commands.extend(redis::cmd("PING").get_packed_command());
    connection.req_packed_command(&commands)?;
    backoff.connected(Instant::now());
    log::debug!("remote control listens on {channel}");
    while !core.ending.is_set() {
        let look = Instant::now() + LOOK;
        let waiting = waiting("a remote command", Some(look));
        let waited = connection.wait_push(wake, look)?;
        drop(waiting);
        match waited {
            Waited::Push(PushKind::Message, data) => {
                if let Some(text) = data.into_iter().nth(1) {
                    handle(core, pool, &Vec::<u8>::from_redis_value(text)?);
                }
            }
            Waited::Push(..) | Waited::Woken => {}
            Waited::Deadline => {
                connection.set_deadline(Instant::now() + config.operation_time);
                connection.request(&redis::cmd("PING"))?;
            }
        }
    }
    Ok(())
}

fn handle(core: &Arc<Core>, pool: &Pool, text: &[u8]) {
    let command = match control::read(text, &core.config.hostname) {
        Ok(Some(command)) => command,
        Ok(None) => return,
        Err(error) => {
            core.board.errors.report(error.class(), PART, &error);
            return;
        }
    };
    core.events.witness(command.clock);
    let (answer, effect) = answers::answer(&command, core.as_ref());
    if effect != Effect::None {
        let arguments = Foreign::from(repr::kwargs(&command.arguments));
        log::info!("remote control: {} {arguments}", command.method);
    }
    match &effect {
        Effect::None | Effect::Shutdown => {}
        Effect::Revoke(ids, terminate) => core.revoke(ids, *terminate),
        Effect::RevokeStamped(stamps, terminate) => core.revoke_stamped(stamps, *terminate),
        Effect::LimitRate(task, rate) => core.set_rate(task, rate.clone()),
        Effect::LimitTime(task, soft, hard) => lock(&core.limits).set_times(task, *soft, *hard),
        Effect::AddQueue(queue) => core.change_queues(|queues| {
            if !queues.contains(queue) {
                queues.push(queue.clone());
            }
        }),
        Effect::RemoveQueue(queue) => core.change_queues(|queues| queues.retain(|other| other != queue)),
        Effect::Resize(size) => core.resize(pool, *size),
        Effect::Events(wanted) => {
            core.task_events.store(*wanted, Ordering::SeqCst);
        }
        Effect::Heartbeat => core.tell_of_itself("worker-heartbeat"),
    }
    if let Some(to) = &command.reply {
        respond(core, answer, to);
    }
    // After the answer: the owner's stop takes no more requests.
    if effect == Effect::Shutdown {
        log::info!("remote control asks for a stop");
        core.asked.drain();
    }
}

fn respond(core: &Arc<Core>, answer: Value, to: &ReplyTo) {
    let message = control::reply(&core.config.hostname, answer, to, core.clock(), &Core::fresh());
    let names = &core.names;
    let keys = [names.bindings(&to.exchange)];
    let args = (to.routing_key.as_str(), message, names.separator(), ANSWER_SECONDS, names.prefix());
    let request = Request::new(Repeat::Never, core.patience()).script(&REPLY, &keys, &args);
    let board = core.board.clone();
    let sent = core.commands.submit(request, move |answer| {
        if let Err(error) = answer {
            board.errors.report(error.class(), PART, &error);
        }
    });
    if let Err(error) = sent {
        core.board.errors.report(error.class(), PART, &error);
    }
}
