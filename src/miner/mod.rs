//! The miner: takes jobs from validators, runs each on an executor, passes on what both say.
//!
//! * [`role`](Miner): starts and stops the parts, in order.
//! * [`router`]: all decisions. Pure.
//! * [`executor_pool`]: the slots of each class on each host; [`placement`]: on which of them a job runs. Pure.
//! * [`executor_manager`]: starts executors and sees them end.
//! * [`trace`]: the way of each job through the miner. Pure.
//! * `router_thread`: the thread that owns the router, between the connections, the executors and the receipts.
//! * `host_threads`: the threads of each host; `engine`: whether jobs can run there; [`check`]: how often it is asked,
//!   and when an answer counts. Pure.
//! * `disk`: the thread that countersigns and stores receipts, and keeps the jobs.
//! * [`images`]: the thread that pulls images before jobs ask for them, and has others make room.
//! * `meters`: what is counted.
//! * `reaper`: removes what executors have left and nobody answers for.
//! * [`watch`](watch()): the process that does so when the miner was killed; `killed_host`: at one host each;
//!   `rounds`: when it looks. Pure.

pub mod check;
mod config;
mod disk;
mod engine;
pub mod executor_manager;
pub mod executor_pool;
pub mod host;
mod host_threads;
pub mod images;
mod killed_host;
mod meters;
pub mod placement;
mod reaper;
mod role;
mod rounds;
pub mod router;
mod router_thread;
pub mod trace;
mod watch;

pub use crate::store::miner::DATABASE;

/// Name of the folder in the state folder that has what executors could not tell the miner.
pub const SPOOL: &str = "spool";

pub use config::{HostConfig, MinerConfig, MinerLimits, WatchCommand};
pub use executor_manager::{
    ClientPorts, DockerBackend, ExecutorBackend, ExecutorError, ExecutorExit, ExecutorSettings, ExecutorSpec, Leftover,
    LeftoverKind, Owner, ProcessBackend,
};
pub use role::{Miner, MinerError, Observer, Reloader};
pub use router::{HostState, HostStatus, MinerStatus, QuarantinedSlot};
pub use watch::watch;
