//! What the reader asks the writer to send: pongs and the answer to a Close. Pure; the lock around it is the caller's.

use std::collections::VecDeque;

use tungstenite::Bytes;

/// Pings that are answered one by one while the writer is busy; of more, the newest ones are answered, as RFC 6455 (5.5.3)
/// allows. 16 × 125 bytes.
pub(super) const PONGS: usize = 16;

/// The Close that the peer is owed: an echo of its own, or the code of what it did wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CloseReply {
    /// `None` for a Close without a code.
    pub(super) code: Option<u16>,
    pub(super) reason: String,
}

#[derive(Debug, Default)]
pub(super) struct ControlSlot {
    pongs: VecDeque<Bytes>,
    close: Option<CloseReply>,
}

impl ControlSlot {
    pub(super) fn push_pong(&mut self, payload: Bytes) {
        if self.pongs.len() == PONGS {
            self.pongs.pop_front();
        }
        self.pongs.push_back(payload);
    }

    pub(super) fn take_pongs(&mut self) -> VecDeque<Bytes> {
        std::mem::take(&mut self.pongs)
    }

    /// The first one stays: what follows a Close or a broken frame has no meaning any more.
    pub(super) fn set_close(&mut self, reply: CloseReply) {
        self.close.get_or_insert(reply);
    }

    pub(super) fn take_close(&mut self) -> Option<CloseReply> {
        self.close.take()
    }
}

/// The longest prefix of `reason` that fits into a Close frame beside its code (RFC 6455, 5.5: 125 bytes in all).
pub(super) fn fitting(reason: &str) -> &str {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pongs_keep_their_order_and_the_newest_survive() {
        let mut slot = ControlSlot::default();
        for n in 0..20u8 {
            slot.push_pong(Bytes::from(vec![n]));
        }
        let kept: Vec<u8> = slot.take_pongs().iter().map(|p| p[0]).collect();
        assert_eq!(kept, (4..20).collect::<Vec<u8>>());
        assert!(slot.take_pongs().is_empty());
    }

    #[test]
    fn the_first_close_is_the_one_that_is_sent() {
        let mut slot = ControlSlot::default();
        let reply = |code| CloseReply { code: Some(code), reason: String::new() };
        slot.set_close(reply(1009));
        slot.set_close(reply(1000));
        assert_eq!(slot.take_close(), Some(reply(1009)));
        assert_eq!(slot.take_close(), None);
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        assert_eq!(fitting("short"), "short");
        assert_eq!(fitting(&"é".repeat(100)), "é".repeat(61));
    }
}
