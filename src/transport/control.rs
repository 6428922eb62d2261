//! What the two halves of a connection have in common: what the reader asks the writer to send (pongs, the answer to a
//! Close), and whether they were kicked.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tungstenite::Bytes;

use crate::base::lock::lock;
use crate::base::text::truncated;

/// Pings that are answered one by one while the writer is busy; of more, the newest ones are answered, as RFC 6455
/// (5.5.3) allows. 16 × 125 bytes.
pub(super) const PONGS: usize = 16;

/// The Close that the peer is owed: an echo of its own, or the code of what it did wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CloseReply {
    /// `None` for a Close without a code.
    pub(super) code: Option<u16>,
    pub(super) reason: String,
}

/// Shared by both halves. Its lock is held for a moment only, never across I/O.
#[derive(Debug, Default)]
pub(super) struct Control {
    owed: Mutex<OwedFrames>,
    kicked: AtomicBool,
}

#[derive(Debug, Default)]
struct OwedFrames {
    pongs: VecDeque<Bytes>,
    close: Option<CloseReply>,
}

impl Control {
    pub(super) fn set_kicked(&self) {
        self.kicked.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::SeqCst)
    }

    pub(super) fn push_pong(&self, payload: Bytes) {
        let mut owed = lock(&self.owed);
        if owed.pongs.len() == PONGS {
            owed.pongs.pop_front();
        }
        owed.pongs.push_back(payload);
    }

    pub(super) fn take_pongs(&self) -> VecDeque<Bytes> {
        std::mem::take(&mut lock(&self.owed).pongs)
    }

    /// The first one stays: what follows a Close or a broken frame has no meaning any more.
    pub(super) fn set_close(&self, reply: CloseReply) {
        lock(&self.owed).close.get_or_insert(reply);
    }

    pub(super) fn take_close(&self) -> Option<CloseReply> {
        lock(&self.owed).close.take()
    }
}

/// The longest prefix of `reason` that fits into a Close frame beside its code (RFC 6455, 5.5: 125 bytes in all).
pub(super) fn fitting(reason: &str) -> &str {
    truncated(reason, 123)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pongs_keep_their_order_and_the_newest_survive() {
        let control = Control::default();
        for n in 0..20u8 {
            control.push_pong(Bytes::from(vec![n]));
        }
        let kept: Vec<u8> = control.take_pongs().iter().map(|p| p[0]).collect();
        assert_eq!(kept, (4..20).collect::<Vec<u8>>());
        assert!(control.take_pongs().is_empty());
    }

    #[test]
    fn the_first_close_is_the_one_that_is_sent() {
        let control = Control::default();
        let reply = |code| CloseReply { code: Some(code), reason: String::new() };
        control.set_close(reply(1009));
        control.set_close(reply(1000));
        assert_eq!(control.take_close(), Some(reply(1009)));
        assert_eq!(control.take_close(), None);
    }

    #[test]
    fn a_reason_is_truncated_between_characters() {
        assert_eq!(fitting("short"), "short");
        assert_eq!(fitting(&"é".repeat(100)), "é".repeat(61));
    }
}
