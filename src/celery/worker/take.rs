//! The thread that takes messages.
//!
//! Owner: the [`CeleryWorker`](super::CeleryWorker). Blocks in: a request to Redis, or in the wait for a message of
//! Redis (something came into a list that was empty), or for room. Kick: the wake with the signal `intake`; at its
//! cancel level the connection is ended. Ends: when `intake` is set.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::FromRedisValue;

use super::core::{Core, TAKE_PART};
use super::liveness::lifetime;
use super::restore;
use super::scripts::{BEGUN, RENEW, TAKE};
use crate::base::backoff::Backoff;
use crate::base::clock::now;
use crate::base::limits::{
    CELERY_ASIDE, CELERY_ASIDE_BYTES, CELERY_MESSAGE_BYTES, CELERY_TAKEN_AT_ONCE, CELERY_TAKEN_BYTES,
};
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::shutdown::Level;
use crate::base::waits::waiting;
use crate::celery::app_config::QueueOrder;
use crate::celery::keys::Keyspace;
use crate::ops::errors::ErrorClass;
use crate::ops::health::Pulse;
use crate::redis::{Connection, RedisError, of_script};

/// What a turn may take beyond the waits that it may have: for a connection, for an answer, for a task.
const TURN_TIME: Duration = Duration::from_secs(30);

/// Runs until the intake is stopped.
pub(super) fn run(core: &Arc<Core>) {
    let (mut backoff, mut rng) = (Backoff::new(core.config.redis.backoff), Rng::from_entropy());
    let wake = core.wake.clone();
    let redis = &core.config.redis;
    let turn_time = redis.backoff.cap + 2 * redis.operation_time + core.config.beat() + TURN_TIME;
    let pulse = core.board.health.pulse_of_loop(TAKE_PART, turn_time, move |_| wake.raise());
    let wake = core.wake.clone();
    core.board.pause.watch(move || wake.raise());
    while !core.intake.is_set() {
        pulse.done();
        let Err(error) = connect(core, &pulse, &mut backoff) else { break };
        core.consuming.store(false, Ordering::SeqCst);
        if core.intake.is_set() {
            break;
        }
        *lock(&core.take_error) = Some(error.clone());
        let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        core.board.health.down(TAKE_PART, format!("{error}{advice}"));
        core.board.errors.report(error.class(), TAKE_PART, &error);
        let _waiting = waiting("time to connect to Redis again", None);
        core.intake.wait(backoff.next_delay(Instant::now(), rng.unit()));
    }
    core.consuming.store(false, Ordering::SeqCst);
    core.board.health.down(TAKE_PART, "it takes no more tasks");
}

fn connect(core: &Arc<Core>, pulse: &Pulse, backoff: &mut Backoff) -> Result<(), RedisError> {
    let config = core.config.redis.clone().named(TAKE_PART);
    let deadline = Instant::now() + config.operation_time;
    let connection = Connection::open(&config, deadline, &core.intake, Level::Drain)?;
    let kick = connection.kick();
    let _kick = core.intake.on(Level::Cancel, move || kick.kick());
    let (queues, keys) = (Vec::new(), Vec::new());
    let mut taker = Taker { core, pulse, connection, queues, keys, turn: 0, looked: Instant::now() };
    taker.begin()?;
    backoff.connected(Instant::now());
    core.board.health.up(TAKE_PART);
    core.consuming.store(true, Ordering::SeqCst);
    core.ready.drain();
    core.tell_of_itself("worker-online");
    taker.consume()
}

/// For each turn the lists in the order of taking: by priority first, and the queues of one priority in turn, or always
/// in the same order.
fn lists(order: QueueOrder, queues: &[String], names: &Keyspace) -> Vec<Vec<String>> {
    let mut queues = queues.to_vec();
    if order == QueueOrder::Sorted {
        queues.sort();
    }
    let turn = |n: usize| {
        let order = || queues.iter().cycle().skip(n).take(queues.len());
        names.steps().iter().flat_map(|step| order().map(move |queue| names.queue(queue, *step))).collect()
    };
    let turns = if order == QueueOrder::RoundRobin { queues.len() } else { queues.len().min(1) };
    (0..turns).map(turn).collect()
}

/// What came out of a list.
struct Taken {
    /// Empty for what was put aside.
    tag: String,
    list: String,
    /// The message; of one that is too large, its beginning and its end.
    raw: Vec<u8>,
    /// How many bytes it has as a whole.
    bytes: usize,
}

struct Taker<'a> {
    core: &'a Arc<Core>,
    pulse: &'a Pulse,
    connection: Connection,
    /// The queues, and their lists for each turn.
    queues: Vec<String>,
    keys: Vec<Vec<String>>,
    turn: usize,
    /// When it last looked for what it holds without knowing it.
    looked: Instant,
}

impl Taker<'_> {
    fn query<T: FromRedisValue>(&mut self, command: &redis::Cmd) -> Result<T, RedisError> {
        self.connection.set_deadline(Instant::now() + self.core.config.redis.operation_time);
        self.connection.query(command)
    }

    fn script<T: FromRedisValue>(&mut self, text: &str, keys: &[&str], args: &[String]) -> Result<T, RedisError> {
        self.connection.set_deadline(Instant::now() + self.core.config.redis.operation_time);
        let script = redis::Script::new(text);
        let mut call = script.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        for arg in args {
            call.arg(arg);
        }
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        call.invoke(&mut self.connection).map_err(|error| of_script(error.into(), text, &keys))
    }

    /// What every new connection begins with: we live, before we hold anything; and what we hold without knowing it is
    /// found.
    fn begin(&mut self) -> Result<(), RedisError> {
        let core = self.core;
        let keys = [core.keys.alive.as_str(), &core.keys.held, &core.keys.unacked_index, &core.keys.workers];
        self.script::<i64>(RENEW.text(), &keys, &[core.id.clone(), lifetime(core)])?;
        self.query::<()>(redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("NOLOOP"))?;
        self.find_lost()
    }

    /// Finds what was taken in our name and has not arrived: the answer was lost with a connection, or a request that
    /// was given up reached Redis late. Nothing is on its way meanwhile, because only this thread takes.
    fn find_lost(&mut self) -> Result<(), RedisError> {
        let core = self.core;
        self.looked = Instant::now();
        let counts = lock(&core.held).counts();
        // What is being settled may have gone from Redis already.
        let known = counts.total() - counts.settling;
        if self.query::<usize>(redis::cmd("HLEN").arg(&core.keys.held))? <= known {
            return Ok(());
        }
        let held: Vec<String> = self.query(redis::cmd("HKEYS").arg(&core.keys.held))?;
        for tag in held {
            if lock(&core.held).get(&tag).is_some() {
                continue;
            }
            // What was settled meanwhile is gone from both by now, because a settlement is one script.
            let list: Option<String> = self.query(redis::cmd("HGET").arg(&core.keys.held).arg(&tag))?;
            let entry: Option<Vec<u8>> = self.query(redis::cmd("HGET").arg(&core.keys.unacked).arg(&tag))?;
            let Some(list) = list else { continue };
            match entry.as_deref().map(restore::recorded) {
                // A worker of Celery has put it back because it was old.
                None => self.query::<()>(redis::cmd("HDEL").arg(&core.keys.held).arg(&tag))?,
                Some(Some(back)) => {
                    log::info!("message {tag} was taken and its delivery lost; found again");
                    core.accept(&tag, list.trim_start_matches(BEGUN), back.message.into_bytes());
                }
                Some(None) => {
                    let what = format_args!("message {tag} is held but its record is unreadable");
                    core.board.errors.report(ErrorClass::Rejected, TAKE_PART, &what);
                }
            }
        }
        Ok(())
    }

    fn consume(&mut self) -> Result<(), RedisError> {
        let core = self.core;
        while !core.intake.is_set() {
            if self.looked.elapsed() >= core.config.beat() {
                self.find_lost()?;
            }
            core.wake.lower();
            self.pulse.done();
            self.look_at_queues();
            if core.board.pause.why(now().wall).is_some() {
                self.rest_paused()?;
                continue;
            }
            if self.queues.is_empty() {
                self.rest("a queue to take from")?;
                continue;
            }
            core.wants_room.store(true, Ordering::SeqCst);
            let room = lock(&core.held).room();
            if room < core.batch() {
                self.rest("room for more tasks")?;
                continue;
            }
            core.wants_room.store(false, Ordering::SeqCst);
            let taken = self.take(room.min(CELERY_TAKEN_AT_ONCE))?;
            if taken.is_empty() && !core.intake.is_set() {
                let mut exists = redis::cmd("EXISTS");
                exists.arg(&self.keys[0]);
                // This is what makes Redis tell us when one of them changes.
                if self.query::<i64>(&exists)? == 0 {
                    self.rest("a task in its queues")?;
                }
            }
            for Taken { tag, list, raw, bytes } in taken {
                match tag.as_str() {
                    "" => core.answer_aside(&list, &raw, bytes),
                    tag => core.accept(tag, &list, raw),
                }
            }
        }
        Ok(())
    }

    /// Remote control may have changed the queues.
    fn look_at_queues(&mut self) {
        let queues = lock(&self.core.queues).clone();
        if queues != self.queues {
            log::info!("{} takes from {}", self.core.config.hostname, queues.join(", "));
            let order = self.core.config.app.broker_transport_options.queue_order_strategy;
            (self.keys, self.queues, self.turn) = (lists(order, &queues, &self.core.names), queues, 0);
        }
    }

    /// Until something comes, there is room, or it is time to look again: a Redis that is frozen or has forgotten who
    /// waits is found out so.
    fn rest(&mut self, what: &'static str) -> Result<(), RedisError> {
        let look = Instant::now() + self.core.config.beat();
        let _waiting = waiting(what, Some(look));
        self.connection.wait_push(&self.core.wake, look).map(drop)
    }

    /// The same while nothing is to be taken; a change of the pause wakes it, as its end does.
    fn rest_paused(&mut self) -> Result<(), RedisError> {
        let (now, look) = (now(), Instant::now() + self.core.config.beat());
        let until = self.core.board.pause.paused(now.wall).and_then(|paused| paused.until);
        // The end is in whole seconds, of which this one has passed a part.
        let left = until.map(|until| Duration::from_secs(until).saturating_sub(now.wall));
        let end = left.and_then(|left| Instant::now().checked_add(left));
        let until = end.map_or(look, |end| end.min(look));
        let _waiting = waiting("the end of its pause", Some(until));
        self.connection.wait_push(&self.core.wake, until).map(drop)
    }

    fn take(&mut self, count: usize) -> Result<Vec<Taken>, RedisError> {
        self.turn = (self.turn + 1) % self.keys.len();
        let core = self.core;
        let lists = std::mem::take(&mut self.keys[self.turn]);
        let names = &core.keys;
        let mut keys = vec![names.held.as_str(), &names.unacked, &names.unacked_index, &names.aside];
        keys.extend(lists.iter().map(String::as_str));
        let numbers = [count, CELERY_ASIDE, CELERY_ASIDE_BYTES, CELERY_TAKEN_BYTES, CELERY_MESSAGE_BYTES];
        let flat: Result<Vec<Vec<u8>>, _> = self.script(TAKE.text(), &keys, &numbers.map(|n| n.to_string()));
        self.keys[self.turn] = lists;
        let flat = flat?;
        core.totals.taken.add(flat.len() as u64 / 4);
        let mut parts = flat.into_iter();
        let mut taken = Vec::new();
        while let (Some(tag), Some(list), Some(raw), Some(bytes)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        {
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            let bytes = text(bytes).parse().unwrap_or(raw.len());
            taken.push(Taken { tag: text(tag), list: text(list), raw, bytes });
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_come_first_and_the_queues_of_one_take_turns() {
        let queues = ["b".to_owned(), "a".to_owned()];
        let lists = |order| lists(order, &queues, &Keyspace::default());
        assert_eq!(lists(QueueOrder::Priority)[0][..2], queues);
        assert_eq!((lists(QueueOrder::Priority).len(), lists(QueueOrder::Sorted).len()), (1, 1));
        assert_eq!(lists(QueueOrder::Sorted)[0][..2], ["a".to_owned(), "b".to_owned()]);
        let mut all = lists(QueueOrder::RoundRobin);
        all.reverse();
        let step = |queue: &str, step: &str| format!("{queue}\u{6}\u{16}{step}");
        assert_eq!(all[0][..4], ["a".to_owned(), "b".to_owned(), step("a", "3"), step("b", "3")]);
        assert_eq!(all[1][..4], ["b".to_owned(), "a".to_owned(), step("b", "3"), step("a", "3")]);
        assert_eq!((all.len(), all[0].len()), (2, 8));
    }
}
