//! `crate::protocol` as the modelled files see it.

pub use phalanx::protocol::ExecutorClass;
