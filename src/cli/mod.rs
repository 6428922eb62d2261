//! The commands of the binary, one file each: flags to configuration, results to stdout, problems to stderr.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::app::logging::{self, LogFormat};
use crate::app::{exit, settings};

pub mod demo;
pub mod executor;
pub mod facilitator;
pub mod jobfile;
pub mod key;
pub mod miner;
pub mod submit;
pub mod validator;
pub mod values;
pub mod wire;
