//! When a subscription has to prove that it consumes, and when it has stalled. Pure.

use std::time::{Duration, Instant};

/// What to do about a connection with subscriptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing before that moment.
    Wait(Instant),
    /// Publish a token to ourselves.
    Ask,
    /// Nothing has come for too long: the connection is of no use.
    Stalled(Duration),
}

/// The liveness of one connection.
///
/// A message that arrives is as good as a proof. Without one, a token is published after two thirds of the limit, so
/// that it has a third of it to come back, and an idle subscription is woken but once in that time.
#[derive(Debug, Clone)]
pub(super) struct Liveness {
    stall_after: Duration,
    /// When something last came through a subscription; at first, when it was asked for.
    received: Instant,
    /// The first proof has its own, shorter limit, and messages do not stand in for it: others than those subscribed to
    /// just now may be the ones that work.
    first_by: Option<Instant>,
    asked: bool,
}

impl Liveness {
    /// A connection that was made `now` and has asked for its first proof.
    pub(super) fn new(now: Instant, first: Duration, stall_after: Duration) -> Self {
        Self { stall_after, received: now, first_by: Some(now + first), asked: true }
    }

    /// A token was published.
    pub(super) fn asked(&mut self) {
        self.asked = true;
    }

    /// A token came back.
    pub(super) fn proved(&mut self, now: Instant) {
        self.received = now;
        self.first_by = None;
        self.asked = false;
    }

    /// A message came.
    pub(super) fn received(&mut self, now: Instant) {
        self.received = now;
    }

    pub(super) fn verdict(&self, now: Instant) -> Verdict {
        let limit = self.first_by.unwrap_or(self.received + self.stall_after);
        let ask_at = self.received + self.stall_after * 2 / 3;
        if now >= limit {
            Verdict::Stalled(now - self.received)
        } else if self.asked {
            Verdict::Wait(limit)
        } else if now >= ask_at {
            Verdict::Ask
        } else {
            Verdict::Wait(ask_at)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_questioned_and_then_it_is_a_stall() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut liveness = Liveness::new(start, Duration::from_secs(5), Duration::from_secs(15));
        assert_eq!(liveness.verdict(at(0)), Verdict::Wait(at(5)));
        liveness.received(at(4));
        assert_eq!(
            liveness.verdict(at(5)),
            Verdict::Stalled(Duration::from_secs(1)),
            "the first proof has its own limit"
        );
        liveness.proved(at(5));
        assert_eq!(liveness.verdict(at(14)), Verdict::Wait(at(15)));
        assert_eq!(liveness.verdict(at(15)), Verdict::Ask);
        liveness.asked();
        assert_eq!(liveness.verdict(at(15)), Verdict::Wait(at(20)));
        let mut other = liveness.clone();
        assert_eq!(liveness.verdict(at(20)), Verdict::Stalled(Duration::from_secs(15)));
        other.received(at(19));
        assert_eq!(other.verdict(at(20)), Verdict::Wait(at(34)), "a message is as good as a proof");
        other.proved(at(20));
        assert_eq!(other.verdict(at(29)), Verdict::Wait(at(30)));
    }
}
