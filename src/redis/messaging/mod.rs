//! Messages between programs over a Redis, for embedders.
//!
//! * [`Messaging::publish`] and [`Messaging::subscribe`]: to whoever listens now. May lose; an [`Inbox`] is bounded.
//! * [`Messaging::request`] and [`Messaging::respond`]: a question and its answer within a deadline. Whoever asks gets
//!   the answer or an error that says why not; a handler may run although its answer is lost, never twice for one
//!   request.
//! * [`StreamSender`] and [`StreamReceiver`]: at least once, with acknowledgement, as durable as that Redis is.
//!
//! [`RedisMessaging`] owns two threads, a [`Commander`] (`rds-cmd`) and a [`Subscriber`] (`rds-sub`), and each
//! [`Responder`] those of its handlers. It can be started while Redis is away; every call has a deadline.

mod envelope;
mod inbox;
mod responder;
mod stream;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use redis::{FromRedisValue, Value};

pub use self::inbox::{Inbox, InboxError, WhenFull};
pub use self::responder::{Incoming, Responder};
pub use self::stream::{Delivery, StreamKick, StreamReceiver, StreamSender, wake_channel};

use self::envelope::{Question, Reply};
use self::inbox::InboxQueue;
use super::commander::{Commander, CommanderHandle};
use super::config::RedisConfig;
use super::error::RedisError;
use super::request::Request;
use super::subscriber::{Channel, Message, Subscriber, SubscriberHandle, Subscription};
use crate::base::limits::REDIS_ASKED;
use crate::base::lock::lock;
use crate::base::stop::{Step, StopReport, stop_alone, stop_dropped};
use crate::base::waits::waiting_unless_noted;
use crate::ops::errors::ErrorClass;
use crate::ops::metrics::Counter;
use crate::ops::status::Board;

/// Owns the threads. Dropping it ends them at once; a stop sends what was accepted.
#[derive(Debug)]
#[must_use = "dropping it ends the threads"]
pub struct RedisMessaging {
    handle: Messaging,
    /// Taken by the stop.
    threads: Option<MessagingThreads>,
}

#[derive(Debug)]
struct MessagingThreads {
    commander: Commander,
    subscriber: Subscriber,
    answers: Subscription,
}

/// What programs use; clones are the same. It may outlive its owner: everything is then [`RedisError::Stopped`].
#[derive(Clone)]
pub struct Messaging(Arc<MessagingShared>);

struct MessagingShared {
    commander: CommanderHandle,
    subscriber: SubscriberHandle,
    board: Board,
    asked: Arc<Asked>,
    queues: Mutex<Queues>,
    dropped: Counter,
    reply_to: String,
}

#[derive(Default)]
struct Queues {
    stopped: bool,
    all: Vec<Weak<InboxQueue>>,
}

/// Requests whose answers are awaited.
#[derive(Default)]
struct Asked(Mutex<AskedState>);

#[derive(Default)]
struct AskedState {
    stopped: bool,
    next_id: u64,
    waiting: HashMap<u64, Sender<Result<Vec<u8>, RequestError>>>,
}

/// Why a request got no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nobody listens to that channel: nothing was done. It may be tried again.
    #[error("nobody answers requests on {0}")]
    NoResponder(String),
    /// The responder has too much to do: nothing was done. It may be tried again.
    #[error("who answers requests on {0} is busy")]
    Busy(String),
    /// No answer by the deadline; the handler may have run.
    #[error("no answer from {channel} within {after:.1?}")]
    Timeout {
        /// Where the request was sent.
        channel: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The handler says no, in these words.
    #[error("{0}")]
    Failed(String),
    /// Redis did not take the request, or the connection was lost.
    #[error(transparent)]
    Redis(#[from] RedisError),
}

impl RequestError {
    /// What a loop does about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NoResponder(_) | Self::Busy(_) | Self::Timeout { .. } => ErrorClass::Retry,
            Self::Failed(_) => ErrorClass::Rejected,
            Self::Redis(error) => error.class(),
        }
    }
}

impl RedisMessaging {
    /// Starts the threads, which connect at once and for ever again. The parts `rds-cmd` and `rds-sub` of the board's
    /// health say whether they are connected.
    ///
    /// # Errors
    /// [`RedisError::System`] if there is no file descriptor left.
    pub fn start(config: RedisConfig, board: &Board) -> Result<Self, RedisError> {
        let commander = Commander::start("rds-cmd", config.clone(), board)?;
        let subscriber = Subscriber::start("rds-sub", config, board)?;
        let reply_to = format!("phalanx.reply.{}", uuid::Uuid::new_v4());
        let asked = Arc::new(Asked::default());
        let answered = asked.clone();
        let to_us = Channel::Exact(reply_to.clone());
        let answers = subscriber.handle().subscribe(to_us, move |message| answered.take(&message));
        let help = "Messages that found no room in the queue of their reader.";
        let handle = Messaging(Arc::new(MessagingShared {
            commander: commander.handle(),
            subscriber: subscriber.handle(),
            dropped: board.metrics.counter("phalanx_redis_messages_dropped_total", help, &[]),
            board: board.clone(),
            asked,
            queues: Mutex::default(),
            reply_to,
        }));
        Ok(Self { handle, threads: Some(MessagingThreads { commander, subscriber, answers }) })
    }

    /// What programs use.
    pub fn handle(&self) -> Messaging {
        self.handle.clone()
    }

    /// Stops it alone, within `budget`, as [`RedisMessaging::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("redis messaging", budget, |step| self.stop_in(step))
    }

    /// Ends every wait of a user, sends what was accepted as far as the step's budget goes, and joins the threads.
    /// Responders are stopped before, by [`Responder::stop`], if their last answers are to be sent.
    pub fn stop_in(mut self, step: &mut Step) {
        self.end(step);
    }

    fn end(&mut self, step: &mut Step) {
        let Some(MessagingThreads { commander, subscriber, answers }) = self.threads.take() else { return };
        self.handle.0.asked.stop();
        let queues = {
            let mut queues = lock(&self.handle.0.queues);
            queues.stopped = true;
            std::mem::take(&mut queues.all)
        };
        for queue in queues.iter().filter_map(Weak::upgrade) {
            queue.close();
        }
        drop(answers);
        subscriber.stop_in(step);
        commander.stop_in(step);
    }
}

impl Drop for RedisMessaging {
    fn drop(&mut self) {
        if self.threads.is_some() {
            stop_dropped(|step| self.end(step));
        }
    }
}

impl Messaging {
    /// Publishes to whoever listens now; gives how many connections that were. Blocks until `deadline` at most.
    ///
    /// # Errors
    /// What Redis or the connection says. After [`RedisError::Closed`] with `unknown` it may have been published.
    pub fn publish(&self, channel: &str, payload: &[u8], deadline: Instant) -> Result<u64, RedisError> {
        let replies = self.0.commander.call(Request::once(&publish(channel, payload), deadline))?;
        Ok(u64::from_redis_value(replies.into_iter().next().unwrap_or(Value::Nil))?)
    }

    /// Subscribes, over this connection and each later one. The queue holds 1,024 messages and 52 MiB; `when_full` says
    /// which message goes when there is no room. To know that it is in force, call [`Messaging::prove`].
    pub fn subscribe(&self, channel: Channel, when_full: WhenFull) -> Inbox {
        let queue = self.queue(when_full);
        let (into, dropped) = (queue.clone(), self.0.dropped.clone());
        let subscription = self.0.subscriber.subscribe(channel, move |message| {
            if into.push(message).is_some() {
                dropped.inc();
            }
        });
        Inbox { queue, _subscription: subscription }
    }

    /// Waits until all subscriptions made before are proved to consume; gives how long that took.
    ///
    /// # Errors
    /// As [`SubscriberHandle::prove`].
    pub fn prove(&self, deadline: Instant) -> Result<Duration, RedisError> {
        self.0.subscriber.prove(deadline)
    }

    /// Asks whoever responds on `channel` (if several do, all of them, and the first answer counts) and waits for the
    /// answer, until `deadline` at most; a stop ends the wait.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn request(&self, channel: &str, payload: &[u8], deadline: Instant) -> Result<Vec<u8>, RequestError> {
        let since = Instant::now();
        // An answer that came while nobody listens for it would be lost.
        if !self.0.subscriber.state().proved {
            self.0.subscriber.prove(deadline)?;
        }
        let (notify, notified) = bounded(1);
        let waiting = self.0.asked.enter(notify)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let question = Question { reply_to: &self.0.reply_to, id: waiting.id, left, payload }.write();
        if self.publish(channel, &question, deadline)? == 0 {
            return Err(RequestError::NoResponder(channel.to_owned()));
        }
        let _waiting = waiting_unless_noted("an answer through Redis", Some(deadline));
        match notified.recv_deadline(deadline) {
            Ok(Err(RequestError::Busy(_))) => Err(RequestError::Busy(channel.to_owned())),
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Disconnected) => Err(RedisError::Stopped.into()),
            Err(RecvTimeoutError::Timeout) => {
                Err(RequestError::Timeout { channel: channel.to_owned(), after: since.elapsed() })
            }
        }
    }

    /// The commander, for other requests.
    pub fn commander(&self) -> &CommanderHandle {
        &self.0.commander
    }

    /// The subscriber, for sinks of one's own.
    pub fn subscriber(&self) -> &SubscriberHandle {
        &self.0.subscriber
    }

    /// A queue that a stop closes.
    fn queue(&self, when_full: WhenFull) -> Arc<InboxQueue> {
        let queue = InboxQueue::new(when_full);
        let stopped = {
            let mut queues = lock(&self.0.queues);
            queues.all.retain(|queue| queue.strong_count() > 0);
            queues.all.push(Arc::downgrade(&queue));
            queues.stopped
        };
        if stopped {
            queue.close();
        }
        queue
    }
}

impl fmt::Debug for Messaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Messaging").field(&self.0.commander).field(&self.0.subscriber).finish()
    }
}

fn publish(channel: &str, payload: &[u8]) -> redis::Cmd {
    let mut command = redis::cmd("PUBLISH");
    command.arg(channel).arg(payload);
    command
}

/// A request in the table, until dropped.
struct AskedRequest<'a> {
    asked: &'a Asked,
    id: u64,
}

impl Drop for AskedRequest<'_> {
    fn drop(&mut self) {
        lock(&self.asked.0).waiting.remove(&self.id);
    }
}

impl Asked {
    fn enter(&self, notify: Sender<Result<Vec<u8>, RequestError>>) -> Result<AskedRequest<'_>, RedisError> {
        let mut state = lock(&self.0);
        if state.stopped {
            return Err(RedisError::Stopped);
        }
        if state.waiting.len() >= REDIS_ASKED {
            return Err(RedisError::Full { requests: state.waiting.len(), bytes: 0 });
        }
        let id = state.next_id;
        state.next_id += 1;
        state.waiting.insert(id, notify);
        Ok(AskedRequest { asked: self, id })
    }

    /// An answer that nobody waits for any more is dropped.
    fn take(&self, message: &Message) {
        let Some((id, reply)) = Reply::read(&message.payload) else { return };
        let Some(notify) = lock(&self.0).waiting.remove(&id) else { return };
        // There is room for the one answer, and it may have given up.
        let _ = notify.send(match reply {
            Reply::Ok(payload) => Ok(payload.to_vec()),
            Reply::Failed(text) => Err(RequestError::Failed(text)),
            Reply::Busy => Err(RequestError::Busy(String::new())),
        });
    }

    fn stop(&self) {
        let mut state = lock(&self.0);
        state.stopped = true;
        state.waiting.clear();
    }
}
