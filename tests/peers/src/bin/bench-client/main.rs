//! Compares clients of the facilitator link: plays the facilitator for a client in a process of its own, checks every
//! history, and measures from outside.

#![forbid(unsafe_code)]

mod client;
mod compare;
mod facilitator;
mod jobs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Compares clients of the facilitator link")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs all clients round by round and prints tables
    Compare(compare::Args),
    /// Runs one client once; for profiles
    Drive(compare::DriveArgs),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Compare(args) => compare::compare(&args),
        Command::Drive(args) => compare::drive(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-client: {error}");
            ExitCode::FAILURE
        }
    }
}
