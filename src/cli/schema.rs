//! `phalanx schema`: what the program reads, for editors and for programs that write it.

use std::process::ExitCode;

use super::print::print;
use crate::app::jobfile::schema;

/// The arguments of `phalanx schema`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the JSON schema of job files
    Job,
}

/// Runs the command: exit 0, or 1 if stdout cannot be written.
pub fn run(args: Args) -> ExitCode {
    let Command::Job = args.command;
    print(&format!("{:#}\n", schema::schema()))
}
