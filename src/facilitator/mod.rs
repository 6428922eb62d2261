//! The facilitator: takes jobs from users over HTTP, gives them to validators over WebSocket, and keeps their
//! histories.
//!
//! * [`role`](Facilitator): starts and stops the parts, in order.
//! * [`router`]: who is connected, which job goes where, what is answered. Pure.
//! * `answers`: the texts of the answers. Pure.
//! * `router_thread`: the thread that owns the router.
//! * `disk`: the thread that owns the database.
//! * `audit`: the thread that writes the audit log.
//! * [`api`]: the HTTP job API.
//! * `operators`: who sees the jobs of all users on the pages.
//!
//! This facilitator differs from the Python one on purpose: a malformed authentication is answered with
//! `auth.signature_invalid` and close 3000 (there the TCP connection drops); a wrong path gets HTTP 404 (there 500); a
//! status that is odd in any way (a uuid that is none, NUL in its details) is answered and never ends a session; a job
//! goes to one session, not to all; a session that does not authenticate is closed after a while; a job that no
//! validator takes up, or that a validator has taken up and says nothing of for longer than the job may take, ends as
//! `horde_failed`, with `reported_by: facilitator` and `reason: generic_error` in its details.

mod answers;
pub mod api;
mod audit;
mod changes;
mod config;
mod disk;
mod meters;
mod operators;
mod role;
pub mod router;
mod router_thread;
mod waiting;

pub use config::{FacilitatorConfig, VALIDATOR_PATH};
pub use disk::CallError;
pub use operators::Operators;
pub use role::{Facilitator, FacilitatorError, Reloader};
