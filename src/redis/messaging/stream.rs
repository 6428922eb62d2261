//! Messages that are not lost: a Redis stream, acknowledged by whoever has dealt with them.
//!
//! It has no thread. The messages are in the stream; publish/subscribe only wakes receivers, so a lost wake-up costs
//! nothing: a receiver looks by itself after each connect, and each `claim_after` for what others
//! have left behind.
//!
//! * A sender numbers its messages. A script writes each and remembers the number, so that a message whose
//!   acknowledgement was lost with the connection, and which is therefore sent again, is in the stream once.
//! * A receiver reads as a member of a consumer group. What it was given and has not acknowledged is given again to a
//!   receiver of the same name (after a restart) or, after `claim_after`, to another one; it is then marked as
//!   redelivered.
//!
//! It is as durable as that Redis: with `appendfsync everysec`, a power failure costs the last second.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select};
use redis::{FromRedisValue, Value};

use super::{Messaging, RedisError};
use crate::base::limits::{REDIS_STREAM_MESSAGES, REDIS_STREAM_READ};
use crate::base::lock::{lock, wait_timeout};
use crate::base::shutdown::Shutdown;
use crate::base::waits::waiting_unless_noted;
use crate::ops::errors::ErrorClass;
use crate::redis::request::{Repeat, Request};
use crate::redis::script::{Script, may};
use crate::redis::subscriber::{Channel, Subscription};

/// How long Redis remembers a sender's last number: far longer than any request is repeated.
const NUMBER_SECONDS: u64 = 3600;

/// KEYS: the stream, the sender's number. ARGV: number, payload, limit, seconds, wake-up channel.
static SEND: Script = Script::new(concat!(
    may!(),
    "local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if tonumber(ARGV[1]) <= last then return 0 end
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[3]) then
  return redis.error_reply('FULL the stream holds ' .. ARGV[3] .. ' messages')
end
may('SET', KEYS[2])
may('PUBLISH', ARGV[5])
redis.call('XADD', KEYS[1], '*', 'm', ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[4])
redis.call('PUBLISH', ARGV[5], '')
return 1",
));

/// KEYS: the stream. ARGV: group, ids. A stream is a queue here, so what is done leaves it.
static ACKNOWLEDGE: Script = Script::new(concat!(
    may!(),
    "may('XACK', KEYS[1])
may('XDEL', KEYS[1])
redis.call('XACK', KEYS[1], unpack(ARGV))
return redis.call('XDEL', KEYS[1], unpack(ARGV, 2))",
));

/// How often in turn a message has to be unreadable alone before it is dropped: if its reply is too large, and if it
/// does not come in time, which has other causes too.
const UNREADABLE: (u32, u32) = (2, 5);

/// Sends messages that stay until a receiver has acknowledged them. Clones are the same sender.
#[derive(Clone)]
pub struct StreamSender {
    messaging: Messaging,
    stream: String,
    number_key: String,
    limit: usize,
    /// Numbers are given in the order in which requests are handed over, or a later one would hide an earlier one.
    last: Arc<Mutex<u64>>,
}

/// Receives messages of one stream, under a name of its own in a group that shares them.
pub struct StreamReceiver {
    messaging: Messaging,
    stream: String,
    group: String,
    name: String,
    claim_after: Duration,
    notifier: Arc<Notifier>,
    closing: Shutdown,
    _subscription: Subscription,
    /// Read and not yet given out.
    ready: VecDeque<Delivery>,
    /// Read and not acknowledged.
    held: HashSet<String>,
    /// The commander's connection over which the last read went.
    epoch: u64,
    /// Where to go on among what this name holds in Redis; `None` when all of that is known.
    recover_from: Option<String>,
    claim_at: Instant,
    caught_up: bool,
    /// How many are read at a time: one, while what is there is too large to be read at once.
    at_once: usize,
    /// One that could not be read, and how often in turn.
    unreadable: Option<(String, u32)>,
}

/// One message, to be acknowledged with [`StreamReceiver::acknowledge`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its place in the stream.
    pub id: String,
    /// What was sent.
    pub payload: Vec<u8>,
    /// It may have been dealt with before: it had been given to somebody who did not acknowledge it.
    pub redelivered: bool,
}

/// Ends the waits of a [`StreamReceiver`], for good.
#[derive(Clone)]
pub struct StreamKick {
    notifier: Arc<Notifier>,
    closing: Shutdown,
}

impl StreamKick {
    /// The receiver gives [`RedisError::Stopped`] from now on.
    pub fn kick(&self) {
        self.closing.drain();
        self.notifier.notify();
    }
}

impl fmt::Debug for StreamKick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamKick")
    }
}

/// The id and, unless it was deleted meanwhile, the payload of an entry of the stream.
type StreamEntry = (String, Option<Vec<u8>>);

/// Says that there is something to look for.
#[derive(Default)]
struct Notifier {
    notified: Mutex<bool>,
    changed: Condvar,
}

impl Notifier {
    fn notify(&self) {
        *lock(&self.notified) = true;
        self.changed.notify_all();
    }

    /// Until it rings or `until`; it is silent again then.
    fn wait(&self, until: Instant) {
        let _waiting = waiting_unless_noted("a message of a stream", Some(until));
        let mut notified = lock(&self.notified);
        while !std::mem::take(&mut *notified) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            notified = wait_timeout(&self.changed, notified, left);
        }
    }
}

/// The channel that wakes the receivers of a stream.
pub fn wake_channel(stream: &str) -> String {
    format!("phalanx.wake.{stream}")
}

impl Messaging {
    /// A sender to the stream of that key. It refuses when 65,536 messages are there; see [`StreamSender::limited`].
    pub fn stream_sender(&self, stream: &str) -> StreamSender {
        let number_key = format!("phalanx.producer.{}", uuid::Uuid::new_v4());
        let (messaging, stream) = (self.clone(), stream.to_owned());
        StreamSender { messaging, stream, number_key, limit: REDIS_STREAM_MESSAGES, last: Arc::default() }
    }

    /// A receiver of the stream of that key. Each message goes to one receiver of a group; a program that comes back
    /// under the same `name` is given what it had not acknowledged. What a name has held for `claim_after` is given to
    /// another one, so that is to be longer than a message takes.
    pub fn stream_receiver(&self, stream: &str, group: &str, name: &str, claim_after: Duration) -> StreamReceiver {
        let notifier = Arc::new(Notifier::default());
        let (notified, connected) = (notifier.clone(), Arc::downgrade(&notifier));
        let subscription =
            self.0.subscriber.subscribe(Channel::Exact(wake_channel(stream)), move |_| notified.notify());
        // What was sent while nobody listened.
        self.0.subscriber.on_connected_while(&notifier, move |_| {
            if let Some(notifier) = connected.upgrade() {
                notifier.notify();
            }
        });
        StreamReceiver {
            messaging: self.clone(),
            stream: stream.to_owned(),
            group: group.to_owned(),
            name: name.to_owned(),
            claim_after,
            notifier,
            closing: Shutdown::new(),
            _subscription: subscription,
            ready: VecDeque::new(),
            held: HashSet::new(),
            epoch: 0,
            recover_from: Some("0".to_owned()),
            claim_at: Instant::now(),
            caught_up: false,
            at_once: REDIS_STREAM_READ,
            unreadable: None,
        }
    }
}

impl StreamSender {
    /// The same sender that refuses when so many messages are in the stream.
    pub fn limited(mut self, messages: usize) -> Self {
        self.limit = messages;
        self
    }

    /// Sends a message, again over a new connection if need be; it is in the stream once. Blocks until `deadline` at
    /// most.
    ///
    /// # Errors
    /// What Redis says: code `FULL` if the stream is full, `OOM` if Redis is. After [`RedisError::Timeout`] the message
    /// may be in the stream, or may still get there once.
    pub fn send(&self, payload: &[u8], deadline: Instant) -> Result<(), RedisError> {
        let (notify, notified) = bounded(1);
        {
            let mut last = lock(&self.last);
            let wake = wake_channel(&self.stream);
            let arguments = (*last + 1, payload, self.limit, NUMBER_SECONDS, wake);
            let request = Request::new(Repeat::Idempotent, deadline);
            let request = request.script(&SEND, &[&self.stream, &self.number_key], &arguments);
            // Handing over never waits, so the lock is short.
            self.messaging.0.commander.submit(request, move |answer| {
                // Its caller waits for it.
                let _ = notify.send(answer);
            })?;
            *last += 1;
        }
        let _waiting = waiting_unless_noted("an answer of Redis", None);
        match notified.recv() {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(RedisError::Stopped),
        }
    }
}

impl StreamReceiver {
    /// What ends its waits.
    pub fn kick(&self) -> StreamKick {
        StreamKick { notifier: self.notifier.clone(), closing: self.closing.clone() }
    }

    /// Whether the last read came to the end of the stream; what it read may still be in the receiver's hands.
    pub fn has_caught_up(&self) -> bool {
        self.caught_up
    }

    /// As [`StreamReceiver::recv`], with what else has been read by then: at most 64 messages, none at the deadline.
    ///
    /// # Errors
    /// As [`StreamReceiver::recv`].
    pub fn recv_all(&mut self, deadline: impl Into<Option<Instant>>) -> Result<Vec<Delivery>, RedisError> {
        let first = self.recv(deadline)?;
        Ok(first.into_iter().chain(self.ready.drain(..)).collect())
    }

    /// The next message: first those of this name that were not acknowledged, then new ones, and those that others have
    /// held for too long. Blocks until there is one, until `deadline` at most; `None` at the deadline. Without a
    /// deadline only a message or the kick ends the wait.
    ///
    /// # Errors
    /// What Redis says other than that a connection was lost: that is waited out.
    pub fn recv(&mut self, deadline: impl Into<Option<Instant>>) -> Result<Option<Delivery>, RedisError> {
        let limit = deadline.into();
        loop {
            let deadline = limit.unwrap_or_else(|| Instant::now() + self.claim_after);
            if self.closing.is_set() {
                return Err(RedisError::Stopped);
            }
            if let Some(delivery) = self.ready.pop_front() {
                return Ok(Some(delivery));
            }
            match self.read(deadline) {
                Ok(true) => continue,
                Ok(false) => {}
                // The group, and the stream, have gone with Redis's data.
                Err(error) if error.is_server("NOGROUP") => {
                    self.create_group(deadline)?;
                    continue;
                }
                Err(error) if error.connection_lost() && !matches!(error, RedisError::Stopped) => {
                    if matches!(error, RedisError::Protocol { .. } | RedisError::Timeout { .. }) {
                        self.suspect(&error, deadline);
                    }
                    // What was read may be lost on the way; what was not comes with the next connection.
                    self.recover_from = Some("0".to_owned());
                    if limit.is_none() || Instant::now() < deadline {
                        continue;
                    }
                    return if self.messaging.0.commander.state().connected { Ok(None) } else { Err(error) };
                }
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            self.notifier.wait(deadline.min(self.claim_at));
        }
    }

    /// The message is dealt with and leaves the stream. It may be done again without harm.
    ///
    /// # Errors
    /// What Redis or the connection says; the message is then given again later, unless this is repeated.
    pub fn acknowledge(&mut self, delivery: &Delivery, deadline: Instant) -> Result<(), RedisError> {
        self.acknowledge_all(std::slice::from_ref(delivery), deadline)
    }

    /// As [`StreamReceiver::acknowledge`], for several messages in one piece.
    ///
    /// # Errors
    /// As [`StreamReceiver::acknowledge`].
    pub fn acknowledge_all(&mut self, deliveries: &[Delivery], deadline: Instant) -> Result<(), RedisError> {
        let arguments: Vec<&str> =
            std::iter::once(&self.group).chain(deliveries.iter().map(|d| &d.id)).map(String::as_str).collect();
        let request = Request::new(Repeat::Idempotent, deadline);
        self.call(request.script(&ACKNOWLEDGE, &[&self.stream], &arguments))?;
        for delivery in deliveries {
            self.held.remove(&delivery.id);
        }
        Ok(())
    }

    /// A request whose answer a kick does not wait for.
    fn call(&self, request: Request) -> Result<Vec<Value>, RedisError> {
        let (notify, notified) = bounded(1);
        self.messaging.0.commander.submit(request, move |answer| {
            // Nobody listens after a kick.
            let _ = notify.send(answer);
        })?;
        let _waiting = waiting_unless_noted("an answer of Redis", None);
        select! {
            recv(notified) -> answer => answer.unwrap_or(Err(RedisError::Stopped)),
            recv(self.closing.drain_receiver()) -> _ => Err(RedisError::Stopped),
        }
    }

    /// One read; whether anything came of it.
    fn read(&mut self, deadline: Instant) -> Result<bool, RedisError> {
        let epoch = self.messaging.0.commander.state().epoch;
        if epoch != self.epoch {
            // A reply with messages may have been lost with the last connection.
            self.epoch = epoch;
            self.recover_from = Some("0".to_owned());
        }
        if let Some(from) = self.recover_from.clone() {
            let entries = self.read_group(&from, deadline)?;
            self.recover_from = entries.last().map(|(id, _)| id.clone());
            if self.recover_from.is_none() {
                self.at_once = REDIS_STREAM_READ;
            }
            self.unreadable.take_if(|(suspect, _)| entries.iter().any(|(id, _)| id == suspect));
            self.take(entries, true);
            return Ok(true);
        }
        let now = Instant::now();
        if now >= self.claim_at {
            self.claim_at = now + self.claim_after;
            let claimed = self.claim(deadline)?;
            if claimed.len() >= REDIS_STREAM_READ {
                // There may be more.
                self.claim_at = now;
            }
            self.take(claimed, true);
        }
        if self.ready.is_empty() {
            let entries = self.read_group(">", deadline)?;
            self.caught_up = entries.len() < REDIS_STREAM_READ;
            self.take(entries, false);
        }
        Ok(!self.ready.is_empty())
    }

    fn take(&mut self, entries: Vec<StreamEntry>, redelivered: bool) {
        for (id, payload) in entries {
            // One without a payload was deleted from the stream meanwhile.
            let Some(payload) = payload else { continue };
            if self.held.insert(id.clone()) {
                self.ready.push_back(Delivery { id, payload, redelivered });
            }
        }
    }

    fn create_group(&self, deadline: Instant) -> Result<(), RedisError> {
        let mut command = redis::cmd("XGROUP");
        command.arg("CREATE").arg(&self.stream).arg(&self.group).arg(0).arg("MKSTREAM");
        match self.call(Request::idempotent(&command, deadline)) {
            // Another receiver was faster.
            Err(error) if error.is_server("BUSYGROUP") => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// With `>` new messages, otherwise those of this name after that id.
    fn read_group(&self, from: &str, deadline: Instant) -> Result<Vec<StreamEntry>, RedisError> {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&self.group).arg(&self.name).arg("COUNT").arg(self.at_once);
        command.arg("STREAMS").arg(&self.stream).arg(from);
        // A repeated read gives other messages than the one whose reply was lost, which are found again among the held
        // ones.
        let reply = self.call(Request::once(&command, deadline))?;
        let streams = match reply.into_iter().next() {
            Some(Value::Map(streams)) => streams.into_iter().next().map(|(_, entries)| entries),
            _ => None,
        };
        entries(streams.unwrap_or(Value::Array(Vec::new())))
    }

    /// More than a reply may have, or than Redis writes in time, in all or one message alone. They are read one by one
    /// from now on; one that could not be read so again is dropped, or it would hold up all others for ever.
    fn suspect(&mut self, error: &RedisError, deadline: Instant) {
        if std::mem::replace(&mut self.at_once, 1) > 1 {
            return;
        }
        let Some(id) = self.recover_from.as_deref().and_then(|before| self.first_after(before, deadline)) else {
            return;
        };
        let failures = match self.unreadable.take() {
            Some((known, failures)) if known == id => failures + 1,
            _ => 1,
        };
        let enough = if matches!(error, RedisError::Protocol { .. }) { UNREADABLE.0 } else { UNREADABLE.1 };
        if failures < enough {
            self.unreadable = Some((id, failures));
            return;
        }
        let request = Request::new(Repeat::Idempotent, deadline);
        match self.call(request.script(&ACKNOWLEDGE, &[&self.stream], &[&self.group, &id])) {
            Ok(_) => {
                let what = format_args!("message {id} of {} is dropped, it cannot be read: {error}", self.stream);
                self.messaging.0.board.errors.report(ErrorClass::Rejected, "redis-stream", &what);
            }
            Err(error) => {
                let what = format_args!("message {id} of {} is not dropped yet: {error}", self.stream);
                self.messaging.0.board.errors.report(error.class(), "redis-stream", &what);
            }
        }
    }

    /// The first message after that id that this name holds in Redis; `None` also if Redis does not say.
    fn first_after(&self, before: &str, deadline: Instant) -> Option<String> {
        let start = if before == "0" { "-".to_owned() } else { format!("({before}") };
        let mut command = redis::cmd("XPENDING");
        command.arg(&self.stream).arg(&self.group).arg(start).arg("+").arg(1).arg(&self.name);
        let reply = self.call(Request::idempotent(&command, deadline)).ok()?.pop()?;
        let pending = Vec::<(String, String, u64, u64)>::from_redis_value(reply).ok()?;
        pending.into_iter().next().map(|(id, ..)| id)
    }

    fn claim(&self, deadline: Instant) -> Result<Vec<StreamEntry>, RedisError> {
        let mut command = redis::cmd("XAUTOCLAIM");
        command.arg(&self.stream).arg(&self.group).arg(&self.name).arg(self.claim_after.as_millis() as u64).arg("0");
        command.arg("COUNT").arg(REDIS_STREAM_READ);
        let reply = self.call(Request::once(&command, deadline))?;
        match reply.into_iter().next() {
            Some(Value::Array(parts)) if parts.len() >= 2 => entries(parts.into_iter().nth(1).unwrap_or_default()),
            other => Err(RedisError::Reply(format!("XAUTOCLAIM: {other:.100?}"))),
        }
    }
}

/// Ids and payloads of a list of entries.
fn entries(value: Value) -> Result<Vec<StreamEntry>, RedisError> {
    let Value::Array(entries) = value else {
        return Err(RedisError::Reply(format!("entries of a stream: {value:.100?}")));
    };
    let mut found = Vec::with_capacity(entries.len());
    for entry in entries {
        let Value::Array(parts) = entry else { continue };
        let mut parts = parts.into_iter();
        let id = String::from_redis_value(parts.next().unwrap_or_default())?;
        let payload = match parts.next() {
            Some(Value::Array(fields)) => fields.into_iter().nth(1).map(Vec::<u8>::from_redis_value).transpose()?,
            _ => None,
        };
        found.push((id, payload));
    }
    Ok(found)
}

impl fmt::Debug for StreamSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamSender").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl fmt::Debug for StreamReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, group, name, .. } = self;
        write!(f, "StreamReceiver({stream}, {group}, {name}, {} held)", self.held.len())
    }
}
