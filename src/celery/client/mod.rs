//! Sends tasks to Celery's workers, and waits for their results.
//!
//! Owner of its threads: [`CeleryClient`]. They are those of a commander (`cel-cmd`), of another one where results are
//! elsewhere (`cel-results`), of a subscriber (`cel-sub`) and of a timer, whose modules say what they block in, what
//! kicks them and how they end; this module's code runs on them and on its callers'.
//!
//! A result comes by its notification, over one subscribed connection for all of them. Beside that it is looked for
//! (see `polls`): soon after it was asked for, ever more rarely then, and after each reconnect. With nothing to wait
//! for there is nothing to look for.

mod canvas;
mod config;
mod control;
mod entry;
mod error;
mod group;
mod polls;
mod results;
mod shared;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{RecvTimeoutError, bounded};

pub use config::CeleryConfig;
pub use control::Terminate;
pub use entry::Outcome;
pub use error::TaskError;
pub use group::{CanvasResult, GroupResult};
pub use results::PendingResult;

use super::event::Event;
use super::events::EventSender;
use super::keys::{EVENT_EXCHANGE, Keyspace};
use super::moment::Moment;
use super::scripts::ENQUEUE;
use super::task::Task;
use crate::base::limits::{CELERY_MESSAGE_BYTES, CELERY_PENDING, CELERY_PRODUCER_TIME};
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{KICK_GRACE, Step, StopReport, stop_alone, stop_dropped};
use crate::base::timer::Timer;
use crate::base::waits::waiting_unless_noted;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::status::Board;
use crate::redis::{Channel, Commander, CommanderHandle, RedisConfig, RedisError, Repeat, Request, Subscriber};
use entry::ResultEntry;
use shared::{ClientShared, ResultSlot, ResultTable, forget_slot};

/// A field of a hash in Redis that is set together with a task, and kept for some time.
pub(crate) struct Mark<'a> {
    pub key: &'a str,
    pub field: &'a str,
    pub value: &'a str,
    pub keep: Duration,
}

/// Owns the threads. Dropping it ends them at once; a stop sends what was accepted.
#[derive(Debug)]
#[must_use = "dropping it ends the threads"]
pub struct CeleryClient {
    handle: CeleryHandle,
    /// Taken by the stop.
    threads: Option<ClientThreads>,
}

#[derive(Debug)]
struct ClientThreads {
    commander: Commander,
    /// Where results are elsewhere.
    results: Option<Commander>,
    subscriber: Subscriber,
    timer: Timer,
}

/// What callers hold; clones are the same. It may outlive its client: tasks are then refused.
#[derive(Clone)]
pub struct CeleryHandle(Arc<ClientShared>);

/// Why a task was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message is larger than what is read.
    #[error("the task {task} has more than {CELERY_MESSAGE_BYTES} bytes")]
    TooLarge {
        /// Its name.
        task: String,
    },
    /// Too many results are waited for. Sent again later it may go through; a task with `ignore_result` does so now.
    #[error("{CELERY_PENDING} results are waited for already")]
    TooMany,
    /// It was not sent. Sending it again is safe.
    #[error("the task {id} was not sent: {error}")]
    NotSent {
        /// Its id.
        id: String,
        /// Why.
        #[source]
        error: RedisError,
    },
    /// It may have been sent: the answer is lost. Sending it again could run it twice; its result can be waited for.
    #[error("whether the task {} was sent is not known: {error}", pending.id())]
    Unknown {
        /// Its result, if it was.
        pending: Box<PendingResult>,
        /// What happened.
        #[source]
        error: RedisError,
    },
    /// The same of a canvas.
    #[error("whether the canvas {} was sent is not known: {error}", result.id())]
    UnknownCanvas {
        /// Its result, if it was.
        result: Box<CanvasResult>,
        /// What happened.
        #[source]
        error: RedisError,
    },
    /// The canvas cannot be sent.
    #[error("the canvas is not sent: {0}")]
    Canvas(String),
    /// The client was stopped: start another.
    #[error("the Celery client was stopped")]
    Stopped,
}

impl SendError {
    /// What a loop does about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::TooLarge { .. } | Self::Canvas(_) => ErrorClass::Rejected,
            Self::TooMany => ErrorClass::Retry,
            Self::NotSent { error, .. } | Self::Unknown { error, .. } | Self::UnknownCanvas { error, .. } => {
                error.class()
            }
            Self::Stopped => ErrorClass::Cancelled,
        }
    }
}

impl CeleryClient {
    /// Starts the threads, which connect at once and for ever again; tasks can be sent from now on. On the board its
    /// parts are `cel-cmd` and `cel-sub`, and `cel-results` if results are elsewhere.
    ///
    /// # Errors
    /// [`RedisError::System`] if there are no file descriptors left.
    pub fn start(config: CeleryConfig, board: &Board) -> Result<Self, RedisError> {
        config.app.tell_of_idle();
        let (broker, elsewhere) = (config.app.broker(&config.redis), config.app.results(&config.redis));
        let config = CeleryConfig { redis: broker.clone(), ..config };
        let commander = Commander::start("cel-cmd", broker.clone().named("celery-client"), board)?;
        let named = |redis: &RedisConfig| redis.clone().named("celery-results");
        let results =
            elsewhere.as_ref().map(|redis| Commander::start("cel-results", named(redis), board)).transpose()?;
        let subscriber = Subscriber::start("cel-sub", named(elsewhere.as_ref().unwrap_or(&broker)), board)?;
        let timer = Timer::start();
        let (names, patience) = (config.app.keyspace(), config.redis.operation_time);
        let channel = names.fanout(i64::from(config.redis.db), EVENT_EXCHANGE);
        let shared = Arc::new(ClientShared {
            events: EventSender::new(commander.handle(), &config.origin, channel, patience, board),
            results: results.as_ref().unwrap_or(&commander).handle(),
            is_elsewhere: results.is_some(),
            commander: commander.handle(),
            subscriber: subscriber.handle(),
            timer: timer.handle(),
            stopping: Shutdown::new(),
            producer: names.key(&format!("phalanx.producer.{}", uuid::Uuid::new_v4())),
            names,
            sequence: Mutex::new(0),
            table: Mutex::default(),
            errors: board.errors.clone(),
            config,
        });
        let weak = Arc::downgrade(&shared);
        subscriber.handle().on_connected(move |_| {
            if let Some(shared) = weak.upgrade() {
                lock(&shared.table).polls.all(Instant::now());
                shared.look();
            }
        });
        Ok(Self {
            handle: CeleryHandle(shared),
            threads: Some(ClientThreads { commander, results, subscriber, timer }),
        })
    }

    /// What callers use.
    pub fn handle(&self) -> CeleryHandle {
        self.handle.clone()
    }

    /// Stops it alone, within `budget`, as [`CeleryClient::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("celery client", budget, |step| self.stop_in(step))
    }

    /// Takes no more tasks, ends every wait for a result with [`TaskError::Stopped`] at once, sends what was accepted
    /// within the step's budget, and joins the threads. The tasks themselves go on.
    pub fn stop_in(mut self, step: &mut Step) {
        self.end(step);
    }

    fn end(&mut self, step: &mut Step) {
        let Some(ClientThreads { commander, results, subscriber, timer }) = self.threads.take() else { return };
        self.handle.0.close();
        timer.stop_in(step);
        subscriber.stop_in(step);
        if let Some(results) = results {
            results.stop_in(step);
        }
        commander.stop_in(step);
    }
}

impl Drop for CeleryClient {
    fn drop(&mut self) {
        if self.threads.is_some() {
            stop_dropped(|step| self.end(step));
        }
    }
}

impl CeleryHandle {
    /// Sends a task, within the settings' `operation_time`, and gives its result to come.
    ///
    /// Blocks until Redis has it. If the connection is lost meanwhile it is sent again over the next one; Redis takes
    /// it once.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(&self, task: Task) -> Result<PendingResult, SendError> {
        self.send_by(task, Instant::now() + self.0.config.redis.operation_time)
    }

    /// As [`CeleryHandle::send`], until a moment, which is not to be more than half an hour away.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_by(&self, task: Task, deadline: Instant) -> Result<PendingResult, SendError> {
        let (since, (notify, notified)) = (Instant::now(), bounded(1));
        let pending = self.submit(task, deadline, move |sent| {
            // Its caller waits until it is notified.
            let _ = notify.send(sent.clone());
        })?;
        // The commander keeps the deadline; this bound is for a thread that the machine does not let run.
        let _waiting = waiting_unless_noted("an answer of Redis", Some(deadline));
        let error = match notified.recv_deadline(deadline + KICK_GRACE) {
            Ok(Ok(())) => return Ok(pending),
            Ok(Err(error)) => error,
            Err(RecvTimeoutError::Timeout) => {
                RedisError::Timeout { doing: "an answer", after: since.elapsed(), last: None }
            }
            // The commander has gone with it.
            Err(RecvTimeoutError::Disconnected) => RedisError::Stopped,
        };
        Err(match may_be_done(&error) {
            true => SendError::Unknown { pending: Box::new(pending), error },
            false => SendError::NotSent { id: pending.id().to_owned(), error },
        })
    }

    /// Hands a task over and returns at once. `on_sent` gets to know whether Redis has it, by `deadline`; it runs on a
    /// thread of the client, so it must be quick and must not panic. One that was surely not sent ends with
    /// [`TaskError::NotSent`].
    ///
    /// # Errors
    /// [`SendError`]; `on_sent` is dropped then.
    pub fn submit(
        &self,
        task: Task,
        deadline: Instant,
        on_sent: impl FnOnce(&Result<(), RedisError>) + Send + 'static,
    ) -> Result<PendingResult, SendError> {
        self.submit_marked(None, task, deadline, on_sent)
    }

    /// As [`CeleryHandle::submit`]; the mark is set with the task: neither is ever there alone.
    pub(crate) fn submit_marked(
        &self,
        mark: Option<&Mark<'_>>,
        task: Task,
        deadline: Instant,
        on_sent: impl FnOnce(&Result<(), RedisError>) + Send + 'static,
    ) -> Result<PendingResult, SendError> {
        let fresh = || uuid::Uuid::new_v4().to_string();
        let message =
            task.of(&self.0.config.app).message(Moment::from(SystemTime::now()), &self.0.config.origin, fresh);
        let text = message.write().write();
        if text.len() > CELERY_MESSAGE_BYTES {
            return Err(SendError::TooLarge { task: message.task });
        }
        let pending = match message.ignore_result {
            Some(true) => self.ignored(&message.id)?,
            _ => self.result(&message.id)?,
        };
        let key = self.0.names.queue(&message.routing_key, message.priority);
        let (entry, weak) = (pending.entry.clone(), Arc::downgrade(&self.0));
        let tells = self.0.config.send_sent_event || self.0.config.app.task_send_sent_event;
        let event = tells.then(|| (self.0.events.clone(), Event::sent(&message)));
        let answer = move |answer: Result<Vec<redis::Value>, RedisError>| {
            let sent = answer.map(|_| ());
            if let Err(error) = &sent
                && !may_be_done(error)
            {
                entry.end(Err(TaskError::NotSent(error.to_string())));
                forget_slot(&weak, &entry);
            }
            if let (Ok(()), Some((events, event))) = (&sent, event) {
                events.put(event);
            }
            on_sent(&sent);
        };
        let handed_over = {
            let mut sequence = lock(&self.0.sequence);
            *sequence += 1;
            let arguments = (*sequence, text, CELERY_PRODUCER_TIME.as_secs());
            let keys = [self.0.producer.as_str(), key.as_str()];
            let request = Request::new(Repeat::Idempotent, deadline);
            let request = match mark {
                None => request.script(&ENQUEUE, &keys, &arguments),
                Some(Mark { key, field, value, keep }) => {
                    let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
                    request.script(&ENQUEUE, &[keys[0], keys[1], key], (arguments, field, value, keep))
                }
            };
            self.0.commander.submit(request, answer)
        };
        match handed_over {
            Ok(()) => Ok(pending),
            Err(RedisError::Stopped) => Err(SendError::Stopped),
            Err(error) => Err(SendError::NotSent { id: pending.id().to_owned(), error }),
        }
    }

    /// The result of a task that was sent already, by whomever.
    ///
    /// # Errors
    /// [`SendError::TooMany`] or [`SendError::Stopped`].
    pub fn result(&self, id: &str) -> Result<PendingResult, SendError> {
        if let Some(pending) = self.known(id, &mut lock(&self.0.table))? {
            return Ok(pending);
        }
        let (weak, of) = (Arc::downgrade(&self.0), id.to_owned());
        let subscription = self.0.subscriber.subscribe(Channel::Exact(self.0.names.meta(id)), move |message| {
            if let Some(shared) = weak.upgrade() {
                shared.receive(&of, &message.payload, None);
            }
        });
        let mut subscription = Some(subscription);
        let mut table = lock(&self.0.table);
        // Somebody else may have been faster; the subscription is then dropped after the lock, for it has one of its
        // own.
        let known = self.known(id, &mut table)?;
        if let Some(pending) = known {
            drop(table);
            return Ok(pending);
        }
        let entry = Arc::new(ResultEntry::new(id));
        let slot = ResultSlot { entry: entry.clone(), users: 1, _subscription: subscription.take() };
        table.slots.insert(id.to_owned(), slot);
        table.polls.add(Instant::now(), id);
        ClientShared::arm(&self.0, &mut table);
        Ok(PendingResult { entry, client: self.0.clone() })
    }

    /// A task whose result nobody looks for.
    fn ignored(&self, id: &str) -> Result<PendingResult, SendError> {
        if lock(&self.0.table).stopped {
            return Err(SendError::Stopped);
        }
        let entry = Arc::new(ResultEntry::new(id));
        entry.end(Err(TaskError::Ignored));
        Ok(PendingResult { entry, client: self.0.clone() })
    }

    /// One more value for a result that is followed.
    fn known(&self, id: &str, table: &mut ResultTable) -> Result<Option<PendingResult>, SendError> {
        if table.stopped {
            return Err(SendError::Stopped);
        }
        let full = table.slots.len() >= CELERY_PENDING;
        match table.slots.get_mut(id) {
            Some(slot) => {
                slot.users += 1;
                Ok(Some(PendingResult { entry: slot.entry.clone(), client: self.0.clone() }))
            }
            None if full => Err(SendError::TooMany),
            None => Ok(None),
        }
    }

    /// Results that are followed now.
    pub fn waiting(&self) -> usize {
        lock(&self.0.table).slots.len()
    }

    fn db(&self) -> i64 {
        i64::from(self.0.config.redis.db)
    }

    fn names(&self) -> &Keyspace {
        &self.0.names
    }

    fn redis(&self) -> &RedisConfig {
        &self.0.config.redis
    }

    pub(crate) fn commander(&self) -> &CommanderHandle {
        &self.0.commander
    }

    fn errors(&self) -> &ErrorHandler {
        &self.0.errors
    }

    fn stopping(&self) -> &Shutdown {
        &self.0.stopping
    }
}

/// Whether what was asked for may have been done although there was no answer.
fn may_be_done(error: &RedisError) -> bool {
    matches!(error, RedisError::Timeout { .. } | RedisError::Closed { unknown: true, .. } | RedisError::Stopped)
}

impl fmt::Debug for CeleryHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CeleryHandle({} results waited for)", self.waiting())
    }
}
