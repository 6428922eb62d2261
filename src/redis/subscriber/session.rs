//! What one connection with subscriptions knows: what was sent over it, and where messages go.

use std::collections::{BTreeMap, HashMap, VecDeque};

use redis::Value;

use super::super::connection::Connection;
use super::super::error::RedisError;
use super::super::proof::Liveness;
use super::channel::{Channel, Sink, Waiter};

/// A command whose answer is still to come. Redis answers in order: a subscription with a push, the rest with a reply,
/// and whatever it refuses with an error.
pub(super) enum Sent {
    Subscribe(Channel),
    Unsubscribe,
    Publish,
}

/// What one connection knows.
pub(super) struct Session {
    pub connection: Connection,
    pub sent: VecDeque<Sent>,
    pub subscribed: HashMap<Channel, Vec<(u64, Sink)>>,
    pub liveness: Liveness,
    /// The token that is under way, and who waits for it.
    pub token: Option<(String, Vec<Waiter>)>,
    pub tokens: u64,
    pub proved: bool,
    pub refused: BTreeMap<Channel, RedisError>,
}

impl Session {
    pub(super) fn subscribe(&mut self, channel: Channel) {
        let (word, name) = match &channel {
            Channel::Exact(name) => ("SUBSCRIBE", name),
            Channel::Pattern(name) => ("PSUBSCRIBE", name),
        };
        redis::cmd(word).arg(name).write_packed_command(self.connection.outbox());
        self.sent.push_back(Sent::Subscribe(channel));
    }

    pub(super) fn unsubscribe(&mut self, channel: &Channel) {
        let (word, name) = match channel {
            Channel::Exact(name) => ("UNSUBSCRIBE", name),
            Channel::Pattern(name) => ("PUNSUBSCRIBE", name),
        };
        redis::cmd(word).arg(name).write_packed_command(self.connection.outbox());
        self.sent.push_back(Sent::Unsubscribe);
    }

    pub(super) fn answered(&mut self, expected: impl Fn(&Sent) -> bool) -> Result<(), RedisError> {
        match self.sent.pop_front() {
            Some(sent) if expected(&sent) => Ok(()),
            _ => {
                let problem = "an answer that nothing asked for".to_owned();
                Err(RedisError::Protocol { peer: self.connection.peer().to_owned(), problem })
            }
        }
    }
}

pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

/// Names of channels are what a program of ours gave, which is text.
pub(super) fn text(value: Value) -> Option<String> {
    bytes(value).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
