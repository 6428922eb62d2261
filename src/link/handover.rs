//! Where senders, the reader and the writer of a link meet: one lock, one condition, the outbox.
//!
//! It outlives the connections that follow one another on a link. Senders never block. Only the writer waits here, and
//! whatever it may wait for wakes it: a message, an answer that opens the window, a control frame, the end.
//!
//! While the writer waits, a sender may borrow its turn: it takes the texts itself, writes what can be written without
//! blocking, and gives the turn back. That spares a small message on an idle link the way through another thread.
//!
//! The writer of a polled connection does not wait here but on its sockets, see [`Handover::attach_polled`]: it counts
//! as waiting from when it found nothing to do until somebody has called its `wake`.

use std::fmt;

use tungstenite::Utf8Bytes;

use super::outbox::{About, Answered, Full, Outbox, OutboxLimits, Outgoing};
use crate::base::ids::Epoch;
use crate::base::lock::{lock, wait};
use crate::base::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::base::waits::waiting;

/// Texts that are written before one flush; a larger batch saves no further system calls.
pub const BATCH_MESSAGES: usize = 64;

/// Bytes of texts after which no further goes with the same flush of a polled connection, which keeps what it cannot
/// send: the outbox has the rest.
const POLLED_BATCH_BYTES: usize = 256 << 10;

/// Bytes that a sender may write in the writer's place: more may not fit into the socket, and would only be copied
/// twice. It must be less than a connection's write buffer, beyond which a write sends, and blocks.
const LOAN_BYTES: usize = 8 << 10;

/// Messages that a sender may write in the writer's place; a crowd is worth the writer's waking.
const LOAN_MESSAGES: usize = 8;

/// What the writer does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Work {
    /// Write these, then flush once; control frames that wait in the write half go with them.
    Batch {
        /// In order.
        texts: Vec<Utf8Bytes>,
        /// The heartbeat goes first.
        beat: bool,
        /// A ping goes last.
        ping: bool,
    },
    /// Everything accepted is with the peer: send Close.
    Close(u16, String),
    /// The connection is over; only a reply to the peer's Close may still leave.
    Over,
}

/// What wakes a writer beside messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Control frames wait in the write half.
    Control,
    /// A ping is due.
    Ping,
    /// The heartbeat is due.
    Beat,
}

/// The meeting place; `C` is what its users keep of the present connection.
pub struct Handover<C> {
    state: Mutex<HandoverState<C>>,
    changed: Condvar,
}

/// Wakes the writer of a polled connection.
pub type WakeWriter = Arc<dyn Fn() + Send + Sync>;

struct HandoverState<C> {
    outbox: Outbox,
    /// Counts the connections; the writer of an older one finds a newer number and leaves.
    epoch: Epoch,
    connection: Option<C>,
    /// The writer waits, and nobody has woken it yet; most messages come while it works, and need no system call.
    waiting: bool,
    /// A sender has the turn of the writer, which waits.
    lent: bool,
    control: bool,
    ping: bool,
    beat: bool,
    closing: Option<(u16, String)>,
    /// The writer of the present or last connection was told to send Close.
    said_close: bool,
    /// Of a polled connection.
    wake: Option<WakeWriter>,
}

impl<C> HandoverState<C> {
    /// Whether the writer is wanted for nothing but messages.
    fn is_quiet(&self) -> bool {
        !self.control && !self.ping && !self.beat && self.closing.is_none()
    }

    /// What the writer does now, if anything; with the text that is over the limit no further is given.
    fn work(&mut self, limit_bytes: usize) -> Option<Work> {
        if self.connection.is_none() {
            return Some(Work::Over);
        }
        if self.outbox.has_work() || self.control || self.ping || self.beat {
            let mut texts = Vec::with_capacity(self.outbox.len().min(BATCH_MESSAGES));
            let mut bytes = 0;
            while texts.len() < BATCH_MESSAGES
                && bytes < limit_bytes
                && let Some(text) = self.outbox.next_to_write()
            {
                bytes += text.len();
                texts.push(text);
            }
            self.control = false;
            let (beat, ping) = (std::mem::take(&mut self.beat), std::mem::take(&mut self.ping));
            return Some(Work::Batch { texts, beat, ping });
        }
        if self.outbox.may_close()
            && let Some((code, reason)) = self.closing.clone()
        {
            self.said_close = true;
            return Some(Work::Close(code, reason));
        }
        None
    }

    /// Whether a writer that waits has something to do.
    fn has_news(&self) -> bool {
        self.connection.is_none() || !self.is_quiet() || self.outbox.has_work()
    }
}

impl<C> fmt::Debug for Handover<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover").field("epoch", &self.epoch()).finish_non_exhaustive()
    }
}

impl<C> Handover<C> {
    /// An outbox that waits for its first connection.
    pub fn new(limits: OutboxLimits) -> Self {
        let state = HandoverState {
            outbox: Outbox::new(limits),
            epoch: Epoch::default(),
            connection: None,
            waiting: false,
            lent: false,
            control: false,
            ping: false,
            beat: false,
            closing: None,
            said_close: false,
            wake: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Changes the state and wakes the writer if it waits.
    fn change<T>(&self, change: impl FnOnce(&mut HandoverState<C>) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        self.wake_for_news(state);
        result
    }

    /// Wakes the writer if it waits and there is something for it. Whoever has its turn does so when giving it back.
    fn wake_for_news(&self, mut state: MutexGuard<'_, HandoverState<C>>) {
        if state.waiting && !state.lent && state.has_news() {
            state.waiting = false;
            let wake = state.wake.clone();
            drop(state);
            match wake {
                Some(wake) => wake(),
                None => self.changed.notify_all(),
            }
        }
    }

    /// Puts messages into the outbox; gives back those that were refused. If the writer waits and what is inside is
    /// small, the caller gets the texts and, by `borrow`, what it needs of the connection: it must write them at once
    /// and then call [`Handover::give_back`]. Otherwise the writer is woken, once.
    pub fn offer<T>(
        &self,
        messages: impl IntoIterator<Item = Outgoing>,
        borrow: impl FnOnce(&C) -> T,
    ) -> (Vec<Full>, Option<(Vec<Utf8Bytes>, T)>) {
        let mut state = lock(&self.state);
        let refused = messages.into_iter().filter_map(|message| state.outbox.push(message).err()).collect();
        let small = state.waiting && !state.lent && state.outbox.waits_at_most(LOAN_MESSAGES, LOAN_BYTES);
        if small
            && state.is_quiet()
            && state.outbox.has_work()
            && let Some(borrowed) = state.connection.as_ref().map(borrow)
        {
            state.lent = true;
            let texts = std::iter::from_fn(|| state.outbox.next_to_write()).collect();
            return (refused, Some((texts, borrowed)));
        }
        self.wake_for_news(state);
        (refused, None)
    }

    /// Gives the writer's turn back; `all_left` says that nothing of the texts is left to send.
    pub fn give_back(&self, all_left: bool) {
        let mut state = lock(&self.state);
        state.lent = false;
        state.control |= !all_left;
        self.wake_for_news(state);
    }

    /// Matches answers of the peer with the messages that they are about, see [`Outbox::answered`]; nothing is given
    /// for those behind an unclear one. Only the thread that reads the present connection calls this, between
    /// [`Handover::attach`] and [`Handover::detach`]: an answer of another connection would count for a wrong message.
    pub fn answered<A>(&self, answers: impl IntoIterator<Item = (About, A)>) -> Vec<Answered<A>> {
        self.change(|state| {
            answers.into_iter().filter_map(|(about, answer)| state.outbox.answered(about, answer)).collect()
        })
    }

    /// From now on these limits count, for what comes.
    pub fn set_limits(&self, limits: OutboxLimits) {
        self.change(|state| state.outbox.set_limits(limits));
    }

    /// Takes no more messages; once those inside are with the peer, the writer sends Close.
    pub fn close(&self, code: u16, reason: &str) {
        self.change(|state| {
            state.outbox.close();
            if state.closing.is_none() {
                state.closing = Some((code, reason.to_owned()));
            }
        });
    }

    /// Takes no more messages and drops those that wait: the writer sends Close next.
    pub fn give_up(&self, code: u16, reason: &str) {
        self.change(|state| {
            state.outbox.close();
            state.outbox.discard();
            state.closing = Some((code, reason.to_owned()));
        });
    }

    /// Wakes the writer for something that is not a message.
    pub fn signal(&self, signal: Signal) {
        self.change(|state| match signal {
            Signal::Control => state.control = true,
            Signal::Ping => state.ping = true,
            Signal::Beat => state.beat = true,
        });
    }

    /// A new connection begins, with its heartbeat due at once if `beat`; gives its number.
    pub fn attach(&self, connection: C, beat: bool) -> Epoch {
        let epoch = self.change(|state| {
            state.epoch = state.epoch.next();
            state.connection = Some(connection);
            state.control = false;
            state.ping = false;
            state.said_close = false;
            state.beat = beat;
            state.epoch
        });
        // For a writer that was left behind because its turn was lent: nothing that comes later need be news.
        self.changed.notify_all();
        epoch
    }

    /// A new connection begins whose writer never waits here: it calls [`Handover::try_work`], and again when `wake`
    /// was called. Gives the number of the connection.
    pub fn attach_polled(&self, connection: C, wake: WakeWriter) -> Epoch {
        let epoch = self.attach(connection, false);
        lock(&self.state).wake = Some(wake);
        epoch
    }

    /// The connection is over: its writer leaves, and what was not answered will be sent again.
    pub fn detach(&self) -> Option<C> {
        self.change(|state| {
            state.outbox.rewind();
            state.wake = None;
            state.connection.take()
        })
    }

    /// Looks at what is kept of the present connection.
    pub fn with<T>(&self, look: impl FnOnce(Option<&mut C>) -> T) -> T {
        look(lock(&self.state).connection.as_mut())
    }

    /// What the writer of `epoch` does next. Blocks until there is something; the end of the connection is something.
    pub fn next_work(&self, epoch: Epoch) -> Work {
        let mut state = lock(&self.state);
        loop {
            if state.epoch != epoch {
                return Work::Over;
            }
            if state.lent {
                let _waiting = waiting("its turn, which a sender has", None);
                state = wait(&self.changed, state);
                continue;
            }
            if let Some(work) = state.work(usize::MAX) {
                return work;
            }
            state.waiting = true;
            let _waiting = waiting("something to send", None);
            state = wait(&self.changed, state);
        }
    }

    /// What the writer of the polled connection `epoch` does now; `None` if nothing, and then `wake` is called when
    /// there is something. With `control`, control frames wait in the write half.
    pub fn try_work(&self, epoch: Epoch, control: bool) -> Option<Work> {
        let mut state = lock(&self.state);
        if state.epoch != epoch {
            return Some(Work::Over);
        }
        state.control |= control;
        // Whoever has the turn wakes the writer when giving it back.
        let work = if state.lent { None } else { state.work(POLLED_BATCH_BYTES) };
        state.waiting = work.is_none();
        work
    }

    /// The connection has ended with the peer's Close of this code: if that answers ours, which it repeats, the peer
    /// has read everything before.
    pub fn closed(&self, code: Option<u16>) {
        self.change(|state| {
            if state.said_close && state.closing.as_ref().map(|(code, _)| *code) == code {
                state.outbox.delivered();
            }
        });
    }

    /// The texts that wait to be written.
    pub fn queued(&self) -> Vec<Utf8Bytes> {
        lock(&self.state).outbox.queued().cloned().collect()
    }

    /// Messages that were accepted and are not yet with the peer.
    pub fn unsent(&self) -> usize {
        lock(&self.state).outbox.len()
    }

    /// Bytes of the messages that were accepted and are not yet with the peer.
    pub fn unsent_bytes(&self) -> usize {
        lock(&self.state).outbox.bytes()
    }

    /// The number of the present or last connection.
    pub fn epoch(&self) -> Epoch {
        lock(&self.state).epoch
    }

    /// Whether [`Handover::close`] was called.
    pub fn is_closing(&self) -> bool {
        lock(&self.state).closing.is_some()
    }
}
