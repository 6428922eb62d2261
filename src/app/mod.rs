//! What stands around the roles.
//!
//! For every program: [`local`], the network in one process; [`job_client`] and [`jobfile`], which submit jobs to it.
//!
//! The process around a role, only for the binary (feature `cli`): signals, the settings file, logs, and the order of
//! the stop. The library itself installs no signal handler, no logger, and never exits.

#[cfg(feature = "cli")]
pub mod ending;
#[cfg(feature = "cli")]
pub mod exit;
#[cfg(feature = "cli")]
pub mod flight;
mod hint;
#[cfg(feature = "cli")]
pub mod hosts;
#[cfg(feature = "cli")]
pub mod init;
pub mod job_client;
pub mod jobfile;
pub mod local;
#[cfg(feature = "cli")]
mod log_queue;
#[cfg(feature = "cli")]
mod log_spec;
#[cfg(feature = "cli")]
pub mod logging;
#[cfg(feature = "cli")]
pub mod output;
#[cfg(feature = "cli")]
pub mod parent;
#[cfg(feature = "cli")]
pub mod pause;
pub mod sandbox;
#[cfg(feature = "cli")]
pub mod service_manager;
#[cfg(feature = "cli")]
pub mod settings;
#[cfg(feature = "cli")]
pub mod signals;
#[cfg(feature = "cli")]
mod signs;
#[cfg(feature = "cli")]
pub mod status;
#[cfg(feature = "cli")]
pub mod stderr;
#[cfg(feature = "cli")]
pub mod supervise;
#[cfg(feature = "cli")]
mod thread_list;
