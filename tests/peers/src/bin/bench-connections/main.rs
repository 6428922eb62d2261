//! Many connections of validators with one server: ours, with two threads for each connection and with a poll thread
//! for all, and one on tokio that does the same work.
//!
//! Each server is a process of its own; this one plays all validators and measures from outside.

#![forbid(unsafe_code)]

mod compare;
mod dispatch;
mod drive;
mod facilitator;
mod serve;
mod work;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[derive(Parser)]
#[command(about = "Compares servers with many connections")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures all servers and prints tables
    Compare(compare::Args),
    /// Measures facilitators with many validators and prints a table; needs `phalanx` built for release
    Dispatch(dispatch::Args),
    /// Runs one server until its standard input ends; it prints its address
    Serve(serve::Args),
    /// Runs a facilitator on tokio until its standard input ends; it prints its addresses
    ServeFacilitator(serve::FacilitatorArgs),
}

/// Each connection has a descriptor at either end.
fn raise_descriptors() -> Result<(), String> {
    let limit = |error| format!("limit of descriptors: {error}");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(limit)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(limit)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = raise_descriptors().and_then(|()| match args.command {
        Command::Compare(args) => compare::compare(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Dispatch(args) => dispatch::dispatch(&args),
        Command::ServeFacilitator(args) => serve::serve_facilitator(&args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-connections: {error}");
            ExitCode::FAILURE
        }
    }
}
