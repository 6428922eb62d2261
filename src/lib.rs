//! Phalanx: the real-time layer of ComputeHorde on named OS threads and bounded channels.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod app;
pub mod base;
pub mod cli;
pub mod dispatch;
pub mod executor;
pub mod facilitator;
pub mod identity;
pub mod link;
pub mod miner;
pub mod ops;
pub mod protocol;
pub mod store;
pub mod transport;
pub mod validator;
