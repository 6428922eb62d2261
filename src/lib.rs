//! Phalanx: the real-time layer of ComputeHorde on named OS threads and bounded channels.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod base;
pub mod cli;
pub mod executor;
pub mod identity;
pub mod protocol;
pub mod transport;
