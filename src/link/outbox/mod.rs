//! What waits to be sent, and what waits for the peer's answer. Pure: no thread, no lock, no clock.
//!
//! A message leaves the outbox when it was written, or, if it is kept for its answer, when the peer has answered it.
//! Answers carry no id and come in the order of the messages, so they match first in, first out. A peer that answers
//! nothing shows what it has read by one thing only: it answers our Close, which is behind all messages. What must not
//! be lost in a cut on such a link is repeated until then, on each connection.
//!
//! The message of the lowest [`Rank`] is written first, and among equals the oldest. A rank is the time at which a
//! message was created plus its patience, so urgent messages go first and none starves: nothing that is created after a
//! message's rank can pass it. Without ranks the outbox is a plain queue.

mod message;

use std::collections::{BTreeMap, HashMap, VecDeque};

pub use message::{About, Answered, Full, Kind, OutboxLimits, Outgoing, Rank};

use crate::transport::Utf8Bytes;

/// Place in the queue: rank, then age.
type Place = (Rank, u64);

/// What was written on the present connection and may be answered.
#[derive(Debug)]
enum InFlight {
    Kept(Place, Outgoing),
    /// One or more messages of [`Kind::Newest`].
    Newest,
}

/// The queue itself.
#[derive(Debug)]
pub struct Outbox {
    limits: OutboxLimits,
    queued: BTreeMap<Place, Outgoing>,
    slots: HashMap<u64, Place>,
    /// Oldest first.
    in_flight: VecDeque<InFlight>,
    /// Messages of [`Kind::Kept`] among them.
    unanswered: usize,
    /// Messages of [`Kind::Repeated`] that were written on the present connection.
    repeated: Vec<(Place, Outgoing)>,
    /// An answer was unclear, so no answer is matched any more until [`Outbox::rewind`].
    unclear: bool,
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
            in_flight: VecDeque::new(),
            unanswered: 0,
            repeated: Vec::new(),
            unclear: false,
            pushed: 0,
            bytes: 0,
            closed: false,
        }
    }

    /// From now on these limits count, for what comes.
    pub fn set_limits(&mut self, limits: OutboxLimits) {
        self.limits = limits;
    }

    /// Takes a message.
    ///
    /// # Errors
    /// [`Full`], with the message.
    pub fn push(&mut self, message: Outgoing) -> Result<(), Full> {
        if self.closed {
            return Err(Full::Closed { message });
        }
        let replaced = match message.kind {
            Kind::Newest { slot } => self.slots.get(&slot).copied(),
            Kind::Once | Kind::Kept { .. } | Kind::Repeated => None,
        };
        let (old_messages, old_bytes) =
            replaced.and_then(|place| self.queued.get(&place)).map_or((0, 0), |old| (1, old.text.len()));
        let (messages, bytes) = (self.len() - old_messages, self.bytes - old_bytes);
        if messages >= self.limits.messages || bytes + message.text.len() > self.limits.bytes {
            return Err(Full::Bound { message, messages: self.len(), bytes: self.bytes });
        }
        self.bytes = bytes + message.text.len();
        self.pushed += 1;
        let place = replaced.unwrap_or((message.rank, self.pushed));
        if let Kind::Newest { slot } = message.kind {
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
        if message.is_kept() {
            let text = message.text.clone();
            self.unanswered += 1;
            self.in_flight.push_back(InFlight::Kept(place, message));
            return Some(text);
        }
        if message.kind == Kind::Repeated {
            let text = message.text.clone();
            self.repeated.push((place, message));
            return Some(text);
        }
        self.bytes -= message.text.len();
        if let Kind::Newest { slot } = message.kind {
            self.slots.remove(&slot);
            if !matches!(self.in_flight.back(), Some(InFlight::Newest)) {
                self.in_flight.push_back(InFlight::Newest);
            }
        }
        Some(message.text)
    }

    /// Whether [`Outbox::next_to_write`] would give something.
    pub fn has_work(&self) -> bool {
        let Some((_, first)) = self.queued.first_key_value() else { return false };
        !first.is_kept() || self.unanswered < self.limits.window
    }

    /// Matches an answer of the peer; `None` if an earlier one on this connection was unclear.
    pub fn answered<A>(&mut self, about: About, answer: A) -> Option<Answered<A>> {
        if self.unclear {
            return None;
        }
        self.unclear = match about {
            About::Kept => false,
            About::KeptOrNewest => matches!(self.in_flight.front(), Some(InFlight::Newest)),
            About::Unknown => true,
        };
        if self.unclear {
            return Some(Answered::Unclear(answer));
        }
        while let Some(oldest) = self.in_flight.pop_front() {
            if let InFlight::Kept(_, message) = oldest {
                self.unanswered -= 1;
                self.bytes -= message.text.len();
                return Some(Answered::Message(message, answer));
            }
        }
        Some(Answered::Nothing(answer))
    }

    /// The connection was lost: what was not answered takes its old place in the queue.
    pub fn rewind(&mut self) {
        for written in self.in_flight.drain(..) {
            if let InFlight::Kept(place, message) = written {
                self.queued.insert(place, message);
            }
        }
        self.queued.extend(self.repeated.drain(..));
        self.unanswered = 0;
        self.unclear = false;
    }

    /// The peer has answered our Close, which was behind all that is inside.
    pub fn delivered(&mut self) {
        self.rewind();
        let bytes = &mut self.bytes;
        self.queued.retain(|_, message| {
            let repeated = message.kind == Kind::Repeated;
            *bytes -= if repeated { message.text.len() } else { 0 };
            !repeated
        });
    }

    /// Drops what waits to be written: the peer does not read.
    pub fn discard(&mut self) {
        for (_, message) in std::mem::take(&mut self.queued) {
            self.bytes -= message.text.len();
        }
        self.slots.clear();
    }

    /// Takes no more messages; those inside may still be sent, but nobody waits for those of [`Kind::Newest`]: the next
    /// process has newer ones.
    pub fn close(&mut self) {
        self.closed = true;
        for (_, place) in self.slots.drain() {
            self.bytes -= self.queued.remove(&place).map_or(0, |message| message.text.len());
        }
    }

    /// The texts that are inside and wait to be written, in order.
    pub fn queued(&self) -> impl Iterator<Item = &Utf8Bytes> {
        self.queued.values().map(|message| &message.text)
    }

    /// Messages queued, unanswered, or not yet known to be with the peer.
    pub fn len(&self) -> usize {
        self.queued.len() + self.unanswered + self.repeated.len()
    }

    /// Whether nothing waits for anything but the peer's answer to our Close.
    pub fn may_close(&self) -> bool {
        self.queued.is_empty() && self.unanswered == 0
    }

    /// Whether everything accepted was sent and, where wanted, answered.
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
    use std::time::Duration;

    use super::*;
    use crate::base::rng::Rng;

    fn limits(messages: usize, bytes: usize, window: usize) -> OutboxLimits {
        OutboxLimits { messages, bytes, window }
    }

    fn written(outbox: &mut Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.next_to_write()).map(|t| t.to_string()).collect()
    }

    /// The text of the message that an answer is about.
    fn answered(outbox: &mut Outbox) -> String {
        match outbox.answered(About::Kept, ()) {
            Some(Answered::Message(message, ())) => message.text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn kept(text: &str) -> Outgoing {
        Outgoing::kept(0, text)
    }

    fn ranked(text: &str, rank: u64) -> Outgoing {
        Outgoing { rank: Rank::new(rank, Duration::ZERO), ..kept(text) }
    }

    #[test]
    fn a_rank_is_the_birth_and_the_patience() {
        assert_eq!(Rank::new(5, Duration::from_secs(1)), Rank::new(1005, Duration::ZERO));
        assert!(Rank::default() < Rank::new(1, Duration::ZERO));
        assert_eq!(Rank::new(1, Duration::MAX), Rank::new(u64::MAX, Duration::ZERO));
    }

    #[test]
    fn lower_ranks_go_first_and_keep_their_place_through_a_loss() {
        let mut outbox = Outbox::new(limits(100, 1000, 2));
        for (text, rank) in [("late", 9), ("a", 5), ("b", 5), ("soon", 1)] {
            outbox.push(ranked(text, rank)).unwrap();
        }
        assert_eq!(written(&mut outbox), ["soon", "a"]);
        outbox.rewind();
        outbox.push(ranked("now", 0)).unwrap();
        assert_eq!(written(&mut outbox), ["now", "soon"]);
        answered(&mut outbox);
        answered(&mut outbox);
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
            answered(&mut outbox);
            passed += 1;
        }
        assert_eq!(passed, 1000);
    }

    #[test]
    fn a_slot_holds_the_newest_and_keeps_its_place() {
        let mut outbox = Outbox::new(limits(2, 20, 10));
        let specs = |text: &str, slot| Outgoing::newest(slot, text);
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
        outbox.push(kept("1")).unwrap();
        outbox.push(Outgoing::newest(1, "specs")).unwrap();
        outbox.push(kept("2")).unwrap();
        outbox.push(kept("3")).unwrap();
        assert_eq!(written(&mut outbox).len(), 4);
        let error = |outbox: &mut Outbox| outbox.answered(About::KeptOrNewest, "error");
        assert!(matches!(error(&mut outbox), Some(Answered::Message(m, _)) if m.text == "1"));
        assert_eq!(answered(&mut outbox), "2", "an answer that specs never get is not about them");
        assert!(matches!(error(&mut outbox), Some(Answered::Message(m, _)) if m.text == "3"));
        outbox.push(Outgoing::newest(1, "specs")).unwrap();
        outbox.push(kept("4")).unwrap();
        assert_eq!(written(&mut outbox).len(), 2);
        assert_eq!(error(&mut outbox), Some(Answered::Unclear("error")));
        assert_eq!(outbox.answered(About::Kept, ()), None, "behind an unclear answer nothing is answered");
        outbox.rewind();
        assert_eq!(written(&mut outbox), ["4"]);
        assert_eq!(answered(&mut outbox), "4", "a new connection begins anew");
    }

    #[test]
    fn an_answer_that_may_be_about_anything_is_unclear() {
        let mut outbox = Outbox::new(OutboxLimits::default());
        outbox.push(kept("1")).unwrap();
        assert_eq!(written(&mut outbox), ["1"]);
        assert_eq!(outbox.answered(About::Unknown, 7), Some(Answered::Unclear(7)));
        assert_eq!((outbox.answered(About::Kept, 7), outbox.len()), (None, 1));
    }

    #[test]
    fn a_message_without_ack_is_done_when_written() {
        let mut outbox = Outbox::new(OutboxLimits::default());
        outbox.push(Outgoing::once("a")).unwrap();
        assert_eq!(written(&mut outbox), ["a"]);
        assert!(outbox.is_empty() && outbox.bytes() == 0);
        assert_eq!(outbox.answered(About::Kept, 7), Some(Answered::Nothing(7)));
    }

    #[test]
    fn unacknowledged_messages_come_again_first_and_in_order() {
        let mut outbox = Outbox::new(OutboxLimits::default());
        for text in ["1", "2", "3"] {
            outbox.push(kept(text)).unwrap();
        }
        assert_eq!(written(&mut outbox), ["1", "2", "3"]);
        assert_eq!(answered(&mut outbox), "1");
        outbox.push(kept("4")).unwrap();
        outbox.rewind();
        assert_eq!(written(&mut outbox), ["2", "3", "4"]);
    }

    #[test]
    fn bounds_and_closing_hand_the_message_back() {
        let mut outbox = Outbox::new(limits(2, 10, 2));
        outbox.push(kept("12345678")).unwrap();
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
            outbox.push(kept(text)).unwrap();
        }
        assert_eq!(written(&mut outbox), ["1", "2"]);
        assert!(!outbox.has_work());
        answered(&mut outbox);
        assert_eq!(written(&mut outbox), ["3"]);
    }

    /// Over random cuts every message arrives, and the first arrivals are in order.
    #[test]
    fn nothing_is_lost_or_overtaken_over_random_losses() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        for _ in 0..200 {
            let mut outbox = Outbox::new(limits(1000, 100_000, 1 + (rng.next_u64() % 8) as usize));
            let (mut pushed, mut arrived, mut on_the_wire) = (0u64, Vec::new(), VecDeque::new());
            while pushed < 50 || !outbox.is_empty() {
                match rng.next_u64() % 8 {
                    0..3 if pushed < 50 => {
                        outbox.push(kept(&pushed.to_string())).unwrap();
                        pushed += 1;
                    }
                    3..5 => on_the_wire.extend(outbox.next_to_write()),
                    5..7 => {
                        if let Some(text) = on_the_wire.pop_front() {
                            arrived.push(text.as_str().parse::<u64>().unwrap());
                            answered(&mut outbox);
                        }
                    }
                    _ => {
                        // A loss: some of what was on the wire still arrives, but no answer comes back.
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

    #[test]
    fn a_repeated_message_is_written_on_each_connection_until_the_peer_has_answered_our_close() {
        let mut outbox = Outbox::new(OutboxLimits::default());
        outbox.push(Outgoing::repeated("1")).unwrap();
        outbox.push(Outgoing::once("complaint")).unwrap();
        outbox.push(Outgoing::repeated("2")).unwrap();
        assert!(!outbox.may_close());
        assert_eq!(written(&mut outbox), ["1", "complaint", "2"]);
        assert_eq!((outbox.may_close(), outbox.len(), outbox.bytes()), (true, 2, 2));
        assert_eq!(outbox.answered(About::Kept, ()), Some(Answered::Nothing(())), "it is answered by nothing");
        outbox.push(Outgoing::repeated("3")).unwrap();
        outbox.rewind();
        assert_eq!((outbox.may_close(), outbox.len()), (false, 3));
        assert_eq!(written(&mut outbox), ["1", "2", "3"], "in the old order");
        outbox.rewind();
        outbox.delivered();
        assert_eq!((outbox.is_empty(), outbox.bytes(), outbox.may_close()), (true, 0, true));
    }
}
