//! One job from volumes to results: workspace, runners, downloads, uploads, artifacts, machine specs.

pub mod miner_client;
pub mod output;
pub mod runner;
pub mod workspace;
