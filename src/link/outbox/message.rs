//! A message on its way out: how long it stays, when it leaves, and what its answer is. Pure.

use std::time::Duration;

use crate::transport::Utf8Bytes;

/// Until when a message stays in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Until it was written. The peer does not answer it.
    Once,
    /// Until it was written, or until a newer one of the same slot takes its place in the queue. The peer answers it
    /// only with an error.
    Newest {
        /// The slot.
        slot: u64,
    },
    /// Until the peer has answered it. It is sent again after a reconnect.
    Kept {
        /// Tells the sender which message was answered.
        tag: u64,
    },
    /// Until the peer has answered our Close. It is sent again after every reconnect, and the peer answers it never.
    Repeated,
}

/// When a message leaves, beside others: the lowest rank first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rank(u64);

impl Rank {
    /// The rank of a message that was created at this time, in milliseconds, and that those created up to `patience`
    /// later may pass.
    pub fn new(created: u64, patience: Duration) -> Self {
        Self(created.saturating_add(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// A text on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The message.
    pub text: Utf8Bytes,
    /// Until when it stays.
    pub kind: Kind,
    /// When it leaves.
    pub rank: Rank,
}

impl Outgoing {
    /// A message that is done with when it was written.
    pub fn once(text: impl Into<Utf8Bytes>) -> Self {
        Self { text: text.into(), kind: Kind::Once, rank: Rank::default() }
    }

    /// A message that is kept until the peer has answered it.
    pub fn kept(tag: u64, text: impl Into<Utf8Bytes>) -> Self {
        Self { kind: Kind::Kept { tag }, ..Self::once(text) }
    }

    /// A message that is sent on each connection until the peer has shown, by its answer to our Close, that it has it.
    pub fn repeated(text: impl Into<Utf8Bytes>) -> Self {
        Self { kind: Kind::Repeated, ..Self::once(text) }
    }

    /// A message that replaces an older one of the same slot that still waits.
    pub fn newest(slot: u64, text: impl Into<Utf8Bytes>) -> Self {
        Self { kind: Kind::Newest { slot }, ..Self::once(text) }
    }

    pub(super) fn is_kept(&self) -> bool {
        matches!(self.kind, Kind::Kept { .. })
    }
}

/// Bounds of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxLimits {
    /// Messages, queued and in flight together.
    pub messages: usize,
    /// Bytes of their texts.
    pub bytes: usize,
    /// Messages that may be in flight at a time: written and not answered.
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

/// Which messages an answer of the peer can be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// Only one of [`Kind::Kept`].
    Kept,
    /// One of [`Kind::Kept`] or of [`Kind::Newest`].
    KeptOrNewest,
    /// Any or none.
    Unknown,
}

/// An answer of the peer with the message that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered<A> {
    /// The answer to this message, which has left the outbox.
    Message(Outgoing, A),
    /// An answer to nothing: no message waits for one.
    Nothing(A),
    /// It cannot be known which message is answered. No later answer on this connection is matched.
    Unclear(A),
}
