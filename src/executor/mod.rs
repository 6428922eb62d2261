//! One job from volumes to results: workspace, runners, downloads, uploads, artifacts, machine specs.

pub mod artifacts;
pub mod output;
pub mod runner;
pub mod specs;
mod transfer;
pub mod uploads;
pub mod volumes;
pub mod workspace;
