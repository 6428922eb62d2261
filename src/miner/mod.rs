//! miner
pub mod executor_pool;
