//! What waits to be sent and what waits to be accepted. Pure: no thread, no lock, no clock.
//!
//! A message leaves the outbox when it was written, or, if it wants an acknowledgement, when the peer has given it.
//! Acknowledgements carry no id and come in order (rule of the facilitator link), so they match first in, first out.
//!
//! The message of the lowest rank is written first, and among equals the oldest. A rank that is the time of a message's
//! birth plus what it can wait makes urgent messages go first and lets none starve: nothing born after a message's rank
//! can pass it. Without ranks the outbox is a plain queue.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::transport::Utf8Bytes;

/// How the peer answers a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Not at all: the message is done with when it was written.
    Never,
    /// Only if it does not like it; the message itself is done with when it was written.
    OnError,
    /// With one acknowledgement; until that the message is kept, and sent again after a reconnect.
    Always,
}

/// A text on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The message.
    pub text: Utf8Bytes,
    /// How the peer answers it.
    pub answer: Answer,
    /// Lower goes first.
    pub rank: u64,
    /// Whatever the sender wants to recognise the message by when it is acknowledged.
    pub tag: u64,
    /// A message for the same slot that still waits is replaced, in its place in the queue.
    pub slot: Option<u64>,
}

impl Outgoing {
    /// A message that is done with when it was written.
    pub fn once(text: impl Into<Utf8Bytes>) -> Self {
        Self { text: text.into(), answer: Answer::Never, rank: 0, tag: 0, slot: None }
    }

    /// A message that is kept until the peer has acknowledged it.
    pub fn acked(text: impl Into<Utf8Bytes>) -> Self {
        Self { answer: Answer::Always, ..Self::once(text) }
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

impl Full {
    /// The message that was refused.
    pub fn into_message(self) -> Outgoing {
        match self {
            Full::Bound { message, .. } | Full::Closed { message } => message,
        }
    }
}

/// Which message an answer of the peer is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// This one, which has left the outbox.
    Message(Outgoing),
    /// None: nothing waits for an answer.
    Nothing,
    /// An error that may be about a message that is answered only then, or about the next one: which cannot be told.
    Unclear,
}

/// Place in the queue: rank, then age.
type Place = (u64, u64);

/// Something that was written on the present connection and may be answered.
#[derive(Debug)]
enum Flight {
    Message(Place, Outgoing),
    /// One or more messages that are answered only on an error.
    Doubt,
}

/// The queue itself.
#[derive(Debug)]
pub struct Outbox {
    limits: OutboxLimits,
    queued: BTreeMap<Place, Outgoing>,
    slots: HashMap<u64, Place>,
    /// Oldest first.
    flying: VecDeque<Flight>,
    unacked: usize,
    pushed: u64,
    bytes: usize,
    closed: bool,
}

impl Outbox {
    /// An empty, open outbox.
    pub fn new(limits: OutboxLimits) -> Self {
        Self {
            limits,
            queued: BTreeMap::new(),
            slots: HashMap::new(),
            flying: VecDeque::new(),
            unacked: 0,
            pushed: 0,
            bytes: 0,
            closed: false,
        }
    }

    /// Takes a message.
    ///
    /// # Errors
    /// [`Full`], with the message.
    pub fn push(&mut self, message: Outgoing) -> Result<(), Full> {
        if self.closed {
            return Err(Full::Closed { message });
        }
        let replaced = message.slot.and_then(|slot| self.slots.get(&slot)).copied();
        let (old_messages, old_bytes) =
            replaced.and_then(|place| self.queued.get(&place)).map_or((0, 0), |old| (1, old.text.len()));
        let (messages, bytes) = (self.len() - old_messages, self.bytes - old_bytes);
        if messages >= self.limits.messages || bytes + message.text.len() > self.limits.bytes {
            return Err(Full::Bound { message, messages: self.len(), bytes: self.bytes });
        }
        self.bytes = bytes + message.text.len();
        self.pushed += 1;
        let place = replaced.unwrap_or((message.rank, self.pushed));
        if let Some(slot) = message.slot {
            self.slots.insert(slot, place);
        }
        self.queued.insert(place, message);
        Ok(())
    }

    /// The next text to write, if the window allows one.
    pub fn next_to_write(&mut self) -> Option<Utf8Bytes> {
        if !self.has_work() {
            return None;
        }
        let (place, message) = self.queued.pop_first()?;
        if let Some(slot) = message.slot {
            self.slots.remove(&slot);
        }
        let text = message.text.clone();
        match message.answer {
            Answer::Always => {
                self.unacked += 1;
                self.flying.push_back(Flight::Message(place, message));
            }
            Answer::OnError => {
                self.bytes -= text.len();
                if !matches!(self.flying.back(), Some(Flight::Doubt)) {
                    self.flying.push_back(Flight::Doubt);
                }
            }
            Answer::Never => self.bytes -= text.len(),
        }
        Some(text)
    }

    /// Whether [`Outbox::next_to_write`] would give something.
    pub fn has_work(&self) -> bool {
        let Some((_, first)) = self.queued.first_key_value() else { return false };
        first.answer != Answer::Always || self.unacked < self.limits.window
    }

    /// The peer answered; `certain` says that the answer is of a kind that only [`Answer::Always`] messages get.
    pub fn answered(&mut self, certain: bool) -> Answered {
        if !certain && matches!(self.flying.front(), Some(Flight::Doubt)) {
            return Answered::Unclear;
        }
        while let Some(flight) = self.flying.pop_front() {
            if let Flight::Message(_, message) = flight {
                self.unacked -= 1;
                self.bytes -= message.text.len();
                return Answered::Message(message);
            }
        }
        Answered::Nothing
    }

    /// The connection was lost: what was not acknowledged takes its old place in the queue.
    pub fn rewind(&mut self) {
        for flight in self.flying.drain(..) {
            if let Flight::Message(place, message) = flight {
                self.queued.insert(place, message);
            }
        }
        self.unacked = 0;
    }

    /// Takes no more messages; those inside may still be sent, but nobody waits for those of a slot: the next process has
    /// newer ones.
    pub fn close(&mut self) {
        self.closed = true;
        for (_, place) in self.slots.drain() {
            self.bytes -= self.queued.remove(&place).map_or(0, |message| message.text.len());
        }
    }

    /// Messages queued or unacknowledged.
    pub fn len(&self) -> usize {
        self.queued.len() + self.unacked
    }

    /// Whether everything accepted was sent and, where wanted, acknowledged.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether at most so many messages wait to be written, with at most so many bytes.
    pub fn waits_at_most(&self, messages: usize, bytes: usize) -> bool {
        self.queued.len() <= messages && self.queued.values().map(|message| message.text.len()).sum::<usize>() <= bytes
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

    fn acknowledged(outbox: &mut Outbox) -> String {
        match outbox.answered(true) {
            Answered::Message(message) => message.text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn ranked(text: &str, rank: u64) -> Outgoing {
        Outgoing { rank, ..Outgoing::acked(text) }
    }

    #[test]
    fn lower_ranks_go_first_and_keep_their_place_through_a_cut() {
        let mut outbox = Outbox::new(limits(100, 1000, 2));
        for (text, rank) in [("late", 9), ("a", 5), ("b", 5), ("soon", 1)] {
            outbox.push(ranked(text, rank)).unwrap();
        }
        assert_eq!(written(&mut outbox), ["soon", "a"]);
        outbox.rewind();
        outbox.push(ranked("now", 0)).unwrap();
        assert_eq!(written(&mut outbox), ["now", "soon"]);
        acknowledged(&mut outbox);
        acknowledged(&mut outbox);
        assert_eq!(written(&mut outbox), ["a", "b"]);
    }

    /// Whatever keeps arriving, a message is passed only by those whose rank is lower.
    #[test]
    fn ranks_that_grow_with_time_starve_nobody() {
        let mut outbox = Outbox::new(limits(100, 1000, 100));
        outbox.push(ranked("patient", 1000)).unwrap();
        let mut passed = 0;
        for now in 0.. {
            outbox.push(ranked("urgent", now)).unwrap();
            if outbox.next_to_write().unwrap() == "patient" {
                break;
            }
            acknowledged(&mut outbox);
            passed += 1;
        }
        assert_eq!(passed, 1000);
    }

    #[test]
    fn a_slot_holds_the_newest_and_keeps_its_place() {
        let mut outbox = Outbox::new(limits(2, 20, 10));
        let specs = |text: &str, slot| Outgoing { slot: Some(slot), answer: Answer::OnError, ..Outgoing::once(text) };
        outbox.push(specs("one", 1)).unwrap();
        outbox.push(specs("two", 2)).unwrap();
        outbox.push(specs("one again", 1)).unwrap();
        assert_eq!((outbox.len(), outbox.bytes()), (2, 12));
        assert!(matches!(outbox.push(specs("three", 3)), Err(Full::Bound { messages: 2, .. })));
        assert_eq!(written(&mut outbox), ["one again", "two"]);
        outbox.push(specs("one more", 1)).unwrap();
        assert_eq!(written(&mut outbox), ["one more"]);
        assert!(outbox.is_empty() && outbox.bytes() == 0);
    }

    #[test]
    fn an_error_that_may_be_about_something_else_is_unclear() {
        let mut outbox = Outbox::new(OutboxLimits::default());
        outbox.push(Outgoing::acked("1")).unwrap();
        outbox.push(Outgoing { answer: Answer::OnError, ..Outgoing::once("specs") }).unwrap();
        outbox.push(Outgoing::acked("2")).unwrap();
        outbox.push(Outgoing::acked("3")).unwrap();
        assert_eq!(written(&mut outbox).len(), 4);
        assert!(matches!(outbox.answered(false), Answered::Message(m) if m.text == "1"));
        assert_eq!(outbox.answered(false), Answered::Unclear);
        assert_eq!(acknowledged(&mut outbox), "2", "a sure answer passes the specs");
        assert!(matches!(outbox.answered(false), Answered::Message(m) if m.text == "3"));
    }

    #[test]
    fn a_message_without_ack_is_done_when_written() {
        let mut outbox = Outbox::new(OutboxLimits::default());
        outbox.push(Outgoing::once("a")).unwrap();
        assert_eq!(written(&mut outbox), ["a"]);
        assert!(outbox.is_empty() && outbox.bytes() == 0);
        assert_eq!(outbox.answered(true), Answered::Nothing);
    }

    #[test]
    fn unacknowledged_messages_come_again_first_and_in_order() {
        let mut outbox = Outbox::new(OutboxLimits::default());
        for text in ["1", "2", "3"] {
            outbox.push(Outgoing::acked(text)).unwrap();
        }
        assert_eq!(written(&mut outbox), ["1", "2", "3"]);
        assert_eq!(acknowledged(&mut outbox), "1");
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
        acknowledged(&mut outbox);
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
                            acknowledged(&mut outbox);
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
