//! `phalanx check ROLE`: tries the settings of a role without starting it.
//!
//! The line is that of the role itself with `check` before it, so it has the same flags, variables and settings file,
//! and what is said of a mistake is what the role says at its start. Nothing is changed: no folder is made, nothing is
//! removed, an address is free again at once, and nobody is told a key.

use std::ffi::OsString;
use std::process::ExitCode;

use super::report::{Level, Report};
use crate::app::exit;
use crate::app::settings::Settings;

/// The roles that can be checked, and whose settings can be shown.
pub(super) const ROLES: &[&str] = &[
    "facilitator",
    "validator",
    "miner",
    #[cfg(feature = "celery")]
    "worker",
];

/// The arguments of `phalanx check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The role, and then its flags: facilitator, validator, miner or worker
    #[arg(value_name = "ROLE", trailing_var_arg = true, allow_hyphen_values = true)]
    _role: Vec<String>,
}

/// A report that begins with what is known of the settings file.
pub(super) fn begin(settings: &Settings) -> Report {
    let mut report = Report::new(settings.sources.clone());
    match &settings.sources.file {
        Some(file) if settings.problems.is_empty() => report.ok(format_args!("settings file: {}", file.display())),
        _ => report.all_wrong(&settings.problems),
    }
    report
}

/// The exit code of a report: 0 if all is well, 1 if the role would start and something would not work, 2 if it would
/// not start.
pub(super) fn end(report: &Report) -> ExitCode {
    if let Some(error) = &report.unshown {
        return exit::failed(format!("cannot write to stdout: {error}"));
    }
    ExitCode::from(match report.worst {
        Level::Ok => exit::DONE,
        Level::Warn => exit::FAILED,
        Level::Wrong => exit::USAGE,
    })
}

/// The role that a line names after `check` or `config show`, and the line of the role itself.
pub(super) fn line_of_role(mut arguments: Vec<OsString>, at: usize, words: usize) -> (Vec<OsString>, Option<String>) {
    let end = (at + words).min(arguments.len());
    arguments.drain(at..end);
    let role = arguments.get(at).and_then(|role| role.to_str()).map(str::to_owned);
    (arguments, role)
}
