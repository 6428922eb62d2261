//! What the test programs share: scripted peers, real peers, fixtures that leave nothing behind.
#![allow(dead_code)] // Each test program uses its part.

pub mod batch_miners;
pub mod browser;
#[cfg(feature = "celery")]
pub mod celery;
pub mod cutting;
pub mod elsewhere;
pub mod engine;
pub mod facilitator;
pub mod fleet;
pub mod freezer;
#[cfg(feature = "celery")]
pub mod fuzzed;
pub mod http;
pub mod job;
pub mod miner;
pub mod network;
pub mod own_engine;
pub mod process;
pub mod python;
#[cfg(feature = "celery")]
pub mod redis;
pub mod roles;
pub mod scripted_facilitator;
pub mod terminal;
pub mod threads;
pub mod transport;
pub mod wait;
