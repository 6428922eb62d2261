//! The process around a role: signals, the settings file, logs, and the order of the stop.
//!
//! Only the binary uses this: the library itself installs no signal handler, no logger, and never exits.

pub mod exit;
pub mod local;
pub mod logging;
pub mod output;
pub mod settings;
pub mod signals;
pub mod status;
pub mod supervise;
