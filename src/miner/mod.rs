//! miner
pub mod executor_manager;
pub mod executor_pool;
