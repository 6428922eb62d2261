//! A Redis, for what outgrows one machine: connections that can be interrupted, and threads that own them.
//!
//! * [`RedisConfig`]: a URL, taken apart; [`RedisError`]: what can go wrong, and what to do about it.
//! * [`Connection`]: one connection, owned by one thread; [`Wake`]: interrupts its wait without harm.
//! * [`Commander`]: a thread that runs the requests of others over one connection; [`Request`], [`Script`].
//! * [`Subscriber`]: a thread that owns a connection with subscriptions, and proves that they work.
//! * [`messaging`]: publish/subscribe, requests and their answers, and streams that lose nothing, for embedders.
//!
//! The commands and values are those of the `redis` crate. RESP3 is spoken always, so Redis 6 or later is needed.

mod byte_stream;
mod commander;
mod config;
mod connection;
mod error;
#[cfg(feature = "test-util")]
pub mod fuzzed;
pub mod messaging;
mod meters;
mod open;
mod proof;
mod refusal;
mod request;
mod resp;
mod script;
mod socket;
mod subscriber;

pub use commander::{Commander, CommanderHandle, CommanderState};
pub(crate) use config::load_tls;
pub use config::{Password, RedisConfig, SentinelLogin, Sentinels};
pub use connection::{Connection, ConnectionKick, Push, Waited};
pub use error::RedisError;
pub(crate) use refusal::of_script;
pub use request::{Answer, Repeat, Request};
pub use script::Script;
pub(crate) use script::may;
pub use subscriber::{Channel, Message, Subscriber, SubscriberHandle, SubscriberState, Subscription};

pub use crate::net::wake::Wake;
