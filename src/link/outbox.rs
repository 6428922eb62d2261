//! What waits to be sent and what waits to be accepted. Pure: no thread, no lock, no clock.
//!
//! A message leaves the outbox when it was written, or, if it wants an acknowledgement, when the peer has given it.
//! Acknowledgements carry no id and come in order (rule of the facilitator link), so they match first in, first out.

use std::collections::VecDeque;

use tungstenite::Utf8Bytes;

/// A text on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The message.
    pub text: Utf8Bytes,
    /// Whether the peer answers it with one acknowledgement; then it is kept, and sent again after a reconnect, until that.
    pub wants_ack: bool,
}

impl Outgoing {
    /// A message that is done with when it was written.
    pub fn once(text: impl Into<Utf8Bytes>) -> Self {
        Self { text: text.into(), wants_ack: false }
    }

    /// A message that is kept until the peer has acknowledged it.
    pub fn acked(text: impl Into<Utf8Bytes>) -> Self {
        Self { text: text.into(), wants_ack: true }
    }
}

/// Bounds of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Messages, queued and unacknowledged together.
    pub messages: usize,
    /// Bytes of their texts.
    pub bytes: usize,
    /// Messages that may be unacknowledged at a time.
    pub window: usize,
}

impl Default for OutboxLimits {
    fn default() -> Self {
        use crate::base::limits::{OUTBOX_BYTES, OUTBOX_MESSAGES};
        Self { messages: OUTBOX_MESSAGES, bytes: OUTBOX_BYTES, window: OUTBOX_MESSAGES }
    }
}

/// The outbox did not take the message, which is handed back.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Full {
    /// A bound is reached; try again when the peer has taken some.
    #[error("the outbox is full: {messages} messages, {bytes} bytes")]
    Bound {
        /// The message.
        message: Outgoing,
        /// Messages in the outbox.
        messages: usize,
        /// Bytes in the outbox.
        bytes: usize,
    },
    /// The connection is gone or going; it takes no more messages.
    #[error("the outbox is closed")]
    Closed {
        /// The message.
        message: Outgoing,
    },
}

/// The queue itself.
#[derive(Debug)]
pub struct Outbox {
    limits: OutboxLimits,
    queued: VecDeque<Outgoing>,
    /// Written on the present connection, oldest first; all of them want an acknowledgement.
    unacked: VecDeque<Outgoing>,
    bytes: usize,
    closed: bool,
}

impl Outbox {
    /// An empty, open outbox.
    pub fn new(limits: OutboxLimits) -> Self {
        Self { limits, queued: VecDeque::new(), unacked: VecDeque::new(), bytes: 0, closed: false }
    }

    /// Takes a message at the end of the queue.
    ///
    /// # Errors
    /// [`Full`], with the message.
    pub fn push(&mut self, message: Outgoing) -> Result<(), Full> {
        if self.closed {
            return Err(Full::Closed { message });
        }
        let messages = self.len();
        if messages >= self.limits.messages || self.bytes + message.text.len() > self.limits.bytes {
            return Err(Full::Bound { message, messages, bytes: self.bytes });
        }
        self.bytes += message.text.len();
        self.queued.push_back(message);
        Ok(())
    }

    /// The next text to write, if the window allows one.
    pub fn next_to_write(&mut self) -> Option<Utf8Bytes> {
        if self.queued.front()?.wants_ack && self.unacked.len() >= self.limits.window {
            return None;
        }
        let message = self.queued.pop_front()?;
        let text = message.text.clone();
        if message.wants_ack {
            self.unacked.push_back(message);
        } else {
            self.bytes -= message.text.len();
        }
        Some(text)
    }

    /// Whether [`Outbox::next_to_write`] would give something.
    pub fn has_work(&self) -> bool {
        self.queued.front().is_some_and(|m| !m.wants_ack || self.unacked.len() < self.limits.window)
    }

    /// The peer acknowledged its oldest unacknowledged message, which is returned; `None` if there is none.
    pub fn acknowledged(&mut self) -> Option<Outgoing> {
        let message = self.unacked.pop_front()?;
        self.bytes -= message.text.len();
        Some(message)
    }

    /// The connection was lost: what was not acknowledged is sent again, first, in its order.
    pub fn rewind(&mut self) {
        while let Some(message) = self.unacked.pop_back() {
            self.queued.push_front(message);
        }
    }

    /// Takes no more messages; those inside may still be sent.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Messages queued or unacknowledged.
    pub fn len(&self) -> usize {
        self.queued.len() + self.unacked.len()
    }

    /// Whether everything accepted was sent and, where wanted, acknowledged.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the texts inside.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    fn limits(messages: usize, bytes: usize, window: usize) -> OutboxLimits {
        OutboxLimits { messages, bytes, window }
    }

    fn written(outbox: &mut Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.next_to_write()).map(|t| t.to_string()).collect()
    }

    #[test]
    fn a_message_without_ack_is_done_when_written() {
        let mut outbox = Outbox::new(OutboxLimits::default());
        outbox.push(Outgoing::once("a")).unwrap();
        assert_eq!(written(&mut outbox), ["a"]);
        assert!(outbox.is_empty() && outbox.bytes() == 0);
        assert!(outbox.acknowledged().is_none());
    }

    #[test]
    fn unacknowledged_messages_come_again_first_and_in_order() {
        let mut outbox = Outbox::new(OutboxLimits::default());
        for text in ["1", "2", "3"] {
            outbox.push(Outgoing::acked(text)).unwrap();
        }
        assert_eq!(written(&mut outbox), ["1", "2", "3"]);
        assert_eq!(outbox.acknowledged().unwrap().text.as_str(), "1");
        outbox.push(Outgoing::acked("4")).unwrap();
        outbox.rewind();
        assert_eq!(written(&mut outbox), ["2", "3", "4"]);
    }

    #[test]
    fn bounds_and_closing_hand_the_message_back() {
        let mut outbox = Outbox::new(limits(2, 10, 2));
        outbox.push(Outgoing::acked("12345678")).unwrap();
        assert!(matches!(outbox.push(Outgoing::once("xyz")), Err(Full::Bound { messages: 1, bytes: 8, .. })));
        outbox.push(Outgoing::once("y")).unwrap();
        assert!(matches!(outbox.push(Outgoing::once("z")), Err(Full::Bound { message, .. }) if message.text == "z"));
        outbox.close();
        assert!(matches!(outbox.push(Outgoing::once("z")), Err(Full::Closed { message }) if message.text == "z"));
        assert_eq!(written(&mut outbox).len(), 2);
    }

    #[test]
    fn the_window_limits_what_is_unacknowledged() {
        let mut outbox = Outbox::new(limits(10, 100, 2));
        for text in ["1", "2", "3"] {
            outbox.push(Outgoing::acked(text)).unwrap();
        }
        assert_eq!(written(&mut outbox), ["1", "2"]);
        assert!(!outbox.has_work());
        outbox.acknowledged();
        assert_eq!(written(&mut outbox), ["3"]);
    }

    /// Over random cuts every message arrives, and the first arrivals are in order.
    #[test]
    fn nothing_is_lost_or_overtaken_over_random_cuts() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for _ in 0..200 {
            let mut outbox = Outbox::new(limits(1000, 100_000, 1 + (rng.next_u64() % 8) as usize));
            let (mut pushed, mut arrived, mut on_the_wire) = (0u64, Vec::new(), VecDeque::new());
            while pushed < 50 || !outbox.is_empty() {
                match rng.next_u64() % 8 {
                    0..3 if pushed < 50 => {
                        outbox.push(Outgoing::acked(pushed.to_string())).unwrap();
                        pushed += 1;
                    }
                    3..5 => on_the_wire.extend(outbox.next_to_write()),
                    5..7 => {
                        if let Some(text) = on_the_wire.pop_front() {
                            arrived.push(text.as_str().parse::<u64>().unwrap());
                            outbox.acknowledged().unwrap();
                        }
                    }
                    _ => {
                        // A cut: some of what was on the wire still arrives, but no acknowledgement comes back.
                        for text in on_the_wire.drain(..).take((rng.next_u64() % 3) as usize) {
                            arrived.push(text.as_str().parse().unwrap());
                        }
                        outbox.rewind();
                    }
                }
            }
            let mut first = Vec::new();
            for n in arrived {
                if !first.contains(&n) {
                    first.push(n);
                }
            }
            assert_eq!(first, (0..50).collect::<Vec<_>>(), "seed {seed}");
            assert_eq!(outbox.bytes(), 0);
        }
    }
}
