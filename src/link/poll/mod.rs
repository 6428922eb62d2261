//! Many connections of one server without two threads for each: one poll thread has their sockets, some workers call
//! the role with their events.
//!
//! * `news`: what other threads tell the poll thread.
//! * `inbox`: the events of one connection on their way to a worker. Pure.
//! * `runs`: the connections that have something for a worker.
//! * `shared`: what these three have in common with others.
//! * `peer`: one connection, as the poll thread has it.
//! * `engine`: the poll thread.
//! * `workers`: what calls the role.
//!
//! Nothing here blocks but the poll of all sockets and the workers' queue: what the system does not take is kept, and
//! sent when the socket can take more. A sender writes a small message itself if nothing else is on its way, as on a
//! connection with two threads.

mod engine;
mod inbox;
mod news;
mod peer;
mod runs;
mod shared;
mod workers;

pub(super) use engine::{Poll, PollConfig};
pub(super) use shared::Arrival;
