//! A bounded queue between the subscriber's thread, which must not wait, and a reader.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::super::subscriber::{Message, Subscription};
use crate::base::limits::{REDIS_INBOX_BYTES, REDIS_INBOX_MESSAGES};
use crate::base::lock::{lock, wait, wait_timeout};

/// Which message goes when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The one that has waited longest: for readers who want the newest state.
    DropOldest,
    /// The one that comes: for readers who want what they were promised first.
    DropNewest,
}

/// Why no message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InboxError {
    /// None by the deadline.
    #[error("no message in time")]
    Timeout,
    /// The messaging was stopped, and all that had come was read.
    #[error("stopped")]
    Stopped,
}

/// Both ends' view of the queue.
pub(super) struct InboxQueue {
    state: Mutex<InboxState>,
    changed: Condvar,
    when_full: WhenFull,
}

#[derive(Default)]
struct InboxState {
    /// With the moments at which they came.
    messages: VecDeque<(Message, Instant)>,
    bytes: usize,
    dropped: u64,
    closed: bool,
}

impl InboxQueue {
    pub(super) fn new(when_full: WhenFull) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), when_full })
    }

    /// Never waits; the message that did not fit, or was dropped for this one.
    pub(super) fn push(&self, message: Message) -> Option<Message> {
        let out = {
            let state = &mut *lock(&self.state);
            let full = |state: &InboxState| {
                state.messages.len() >= REDIS_INBOX_MESSAGES
                    || (!state.messages.is_empty() && state.bytes + message.payload.len() > REDIS_INBOX_BYTES)
            };
            if state.closed || (full(state) && self.when_full == WhenFull::DropNewest) {
                state.dropped += 1;
                return Some(message);
            }
            let mut out = None;
            while full(state)
                && let Some((oldest, _)) = state.messages.pop_front()
            {
                state.bytes -= oldest.payload.len();
                state.dropped += 1;
                out = Some(oldest);
            }
            state.bytes += message.payload.len();
            state.messages.push_back((message, Instant::now()));
            out
        };
        self.changed.notify_one();
        out
    }

    /// The next message and when it came; without a deadline it waits until the queue is closed.
    pub(super) fn pop(&self, deadline: Option<Instant>) -> Result<(Message, Instant), InboxError> {
        let mut state = lock(&self.state);
        loop {
            if let Some((message, at)) = state.messages.pop_front() {
                state.bytes -= message.payload.len();
                return Ok((message, at));
            }
            if state.closed {
                return Err(InboxError::Stopped);
            }
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => wait(&self.changed, state),
                Some(Duration::ZERO) => return Err(InboxError::Timeout),
                Some(left) => wait_timeout(&self.changed, state, left),
            };
        }
    }

    /// Takes no more; readers get what is there and then [`InboxError::Stopped`].
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }
}

/// The messages of one subscription, in the order in which Redis sent them. Dropping it ends the subscription.
///
/// Publish/subscribe may lose: what is published while there is no connection, and what does not fit:
/// [`Inbox::dropped`]. For what must not be lost there is [`StreamSender`](super::StreamSender).
#[must_use = "dropping the inbox ends the subscription"]
pub struct Inbox {
    pub(super) queue: Arc<InboxQueue>,
    pub(super) _subscription: Subscription,
}

impl Inbox {
    /// The next message. Blocks until one comes, until `deadline` at most; a stop ends the wait.
    ///
    /// # Errors
    /// [`InboxError::Timeout`] and [`InboxError::Stopped`].
    pub fn recv(&self, deadline: Instant) -> Result<Message, InboxError> {
        self.queue.pop(Some(deadline)).map(|(message, _)| message)
    }

    /// How many messages found no room so far.
    pub fn dropped(&self) -> u64 {
        lock(&self.queue.state).dropped
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} messages)", lock(&self.queue.state).messages.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &[u8]) -> Message {
        Message { channel: "c".to_owned(), pattern: None, payload: payload.to_vec() }
    }

    fn all(queue: &InboxQueue) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| queue.pop(Some(Instant::now())).ok()).map(|(message, _)| message.payload).collect()
    }

    #[test]
    fn a_full_queue_keeps_the_old_or_the_new_as_configured() {
        for (when_full, first) in [(WhenFull::DropOldest, 10), (WhenFull::DropNewest, 0)] {
            let queue = InboxQueue::new(when_full);
            let dropped =
                (0..REDIS_INBOX_MESSAGES + 10).filter_map(|n| queue.push(message(n.to_string().as_bytes()))).count();
            assert_eq!((dropped, lock(&queue.state).dropped), (10, 10));
            let kept = all(&queue);
            assert_eq!(kept.len(), REDIS_INBOX_MESSAGES);
            assert_eq!(kept[0], first.to_string().as_bytes());
        }
    }

    #[test]
    fn bytes_are_bounded_but_one_message_always_fits() {
        let queue = InboxQueue::new(WhenFull::DropOldest);
        let large = vec![0; REDIS_INBOX_BYTES + 1];
        assert!(queue.push(message(&large)).is_none());
        assert!(queue.push(message(b"x")).is_some_and(|oldest| oldest.payload == large));
        queue.close();
        assert!(queue.push(message(b"y")).is_some());
        assert_eq!(all(&queue), [b"x"]);
        assert_eq!(queue.pop(None), Err(InboxError::Stopped));
    }
}
