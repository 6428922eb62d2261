//! A connection that somebody owns: its session, its outbox, its liveness, and for clients its return after each loss.
//!
//! * [`outbox`]: what is to be sent, in order, until it was written or answered. Pure.
//! * [`heartbeat`]: when to ping, when to beat, when to give a connection up. Pure.
//! * [`handover`]: where senders, reader and writer meet: one lock around the outbox.
//! * [`said`]: how much one peer may say. Pure.
//! * [`session`]: one connection: the reader runs on the caller's thread, the writer on its own.
//! * [`manager`]: dial, authenticate, run a session, back off, for ever.
//! * `poll`: one thread for the sockets of many connections, and workers for their events.
//! * [`recorder`]: what each link did last, for whoever asks why it was lost.
//! * [`events`]: what a role sees of its server.
//! * [`server`]: accept, one reader thread a connection, close all.
//!
//! `link` knows nothing of jobs or messages: it moves texts. Which text answers which message it finds out itself; that
//! a text is an answer, the role's classifier says.

pub mod events;
pub mod handover;
pub mod heartbeat;
pub mod manager;
pub mod outbox;
mod poll;
pub mod recorder;
pub mod said;
pub mod server;
pub mod session;

pub use crate::net::rate::{Buckets, Rate};
pub use manager::{
    Authenticate, Authenticated, IdleLink, Link, LinkConfig, LinkEvent, LinkHandle, LinkState, NoConnection, Refused,
    Text, authenticate,
};
pub use outbox::{About, Answered, Full, Kind, OutboxLimits, Outgoing, Rank};
pub use said::{OverRate, PeerRates, Said};
pub use server::{Server, ServerConfig, ServerConnections};
pub use session::{SessionEnd, SessionHandle};
