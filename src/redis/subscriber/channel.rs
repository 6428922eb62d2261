//! What to subscribe to, what comes, and who gets it.

use std::sync::Arc;

use crossbeam_channel::Sender;

/// What to subscribe to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// The channel of that name.
    Exact(String),
    /// All channels whose names match, as `PSUBSCRIBE` matches.
    Pattern(String),
}

/// A message that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The channel's name.
    pub channel: String,
    /// The pattern that it came by.
    pub pattern: Option<String>,
    /// What was published.
    pub payload: Vec<u8>,
}

/// Gets the messages of a channel, on the subscriber's thread.
pub(super) type Sink = Arc<dyn Fn(Message) + Send + Sync>;

/// Who waits for a proof, with a number of its own.
pub(super) type Waiter = (u64, Sender<()>);
