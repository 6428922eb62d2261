//! Threads that answer requests.
//!
//! Owner: whoever holds the [`Responder`]. Block in: the wait for a request; and in the handler, which is the owner's.
//! Kick: closing the queue. End: when the queue is closed and empty, after the handler that runs.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::envelope::{Question, Reply};
use super::inbox::{InboxQueue, WhenFull};
use super::{Messaging, MessagingShared, publish};
use crate::base::stop::{Step, StopReport, stop_alone, stop_dropped};
use crate::base::thread::{Kick, Thread, panic_message, spawn};
use crate::ops::errors::ErrorClass;
use crate::redis::error::RedisError;
use crate::redis::request::Request;
use crate::redis::subscriber::{Channel, Message, Subscription};

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming<'a> {
    /// Where it came.
    pub channel: &'a str,
    /// What was asked.
    pub payload: &'a [u8],
    /// When whoever asks gives up.
    pub deadline: Instant,
}

/// Answers requests until it is stopped or dropped. Either waits for the handlers that run, a drop for five seconds at
/// most.
#[must_use = "dropping the responder ends it"]
pub struct Responder {
    queue: Arc<InboxQueue>,
    subscription: Option<Subscription>,
    threads: Vec<Thread<()>>,
}

type Handler = dyn Fn(&Incoming<'_>) -> Result<Vec<u8>, String> + Send + Sync;

impl Messaging {
    /// Answers the requests that come on `channel`, on `threads` threads (at least one). 1,024 may wait; a request
    /// beyond that is answered as busy. What was not begun by its deadline is dropped. A panic of the handler is an
    /// answer, too.
    ///
    /// `handler` gets a request and gives the answer, or words why not.
    pub fn respond(
        &self,
        channel: &str,
        threads: usize,
        handler: impl Fn(&Incoming<'_>) -> Result<Vec<u8>, String> + Send + Sync + 'static,
    ) -> Responder {
        let queue = self.queue(WhenFull::DropNewest);
        let handler: Arc<Handler> = Arc::new(handler);
        let threads = (0..threads.max(1)).map(|n| {
            let (work, kicked) = (queue.clone(), queue.clone());
            let (shared, handler) = (self.0.clone(), handler.clone());
            spawn(format!("rds-resp-{n}"), Kick::new("its queue", move || kicked.close()), move || {
                while let Ok((message, came)) = work.pop(None) {
                    shared.respond(&message, came, &*handler);
                }
            })
        });
        let threads = threads.collect();
        let (into, shared) = (queue.clone(), self.0.clone());
        let subscription = self.0.subscriber.subscribe(Channel::Exact(channel.to_owned()), move |message| {
            if let Some(message) = into.push(message) {
                shared.dropped.inc();
                shared.answer(&message, Instant::now(), &Reply::Busy);
            }
        });
        Responder { queue, subscription: Some(subscription), threads }
    }
}

impl Responder {
    /// Stops it alone, within `budget`, as [`Responder::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("redis responder", budget, |step| self.stop_in(step))
    }

    /// Takes no more requests, answers those that wait, and joins the threads. A handler that runs longer than the
    /// step's budget is left behind.
    pub fn stop_in(mut self, step: &mut Step) {
        self.end(step);
    }

    fn end(&mut self, step: &mut Step) {
        self.subscription = None;
        self.queue.close();
        step.join_all(std::mem::take(&mut self.threads));
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            stop_dropped(|step| self.end(step));
        }
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl MessagingShared {
    /// Runs the handler for one request and sends its answer.
    fn respond(&self, message: &Message, came: Instant, handler: &Handler) {
        let Some(question) = Question::read(&message.payload) else {
            let text = format!("a message on {} that is no request", message.channel);
            self.board.errors.report(ErrorClass::Rejected, "redis-respond", &text);
            return;
        };
        let deadline = came + question.left;
        if Instant::now() >= deadline {
            // Nobody waits for it any more.
            return;
        }
        let incoming = Incoming { channel: &message.channel, payload: question.payload, deadline };
        match catch_unwind(AssertUnwindSafe(|| handler(&incoming))) {
            Ok(Ok(payload)) => self.answer(message, came, &Reply::Ok(&payload)),
            Ok(Err(text)) => self.answer(message, came, &Reply::Failed(text)),
            Err(payload) => {
                let text = format!("the handler panicked: {}", panic_message(payload.as_ref()));
                self.board.errors.report(ErrorClass::Rejected, "redis-respond", &text);
                self.answer(message, came, &Reply::Failed(text));
            }
        }
    }

    /// Sends an answer, again if need be until the one who asked gives up: one that comes twice does no harm.
    fn answer(&self, message: &Message, came: Instant, reply: &Reply<'_>) {
        let Some(question) = Question::read(&message.payload) else { return };
        let answer = publish(question.reply_to, &reply.write(question.id));
        let errors = self.board.errors.clone();
        let report =
            move |error: RedisError| errors.report(error.class(), "redis-respond", &format_args!("an answer: {error}"));
        let failed = report.clone();
        let sent = self.commander.submit(Request::idempotent(&answer, came + question.left), move |outcome| {
            if let Err(error) = outcome {
                failed(error);
            }
        });
        if let Err(error) = sent {
            report(error);
        }
    }
}
