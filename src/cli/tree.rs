//! `phalanx tree`: what is done with a folder that a job has written, in a process of its own. For this program's own
//! use: a miner starts it to remove what an executor has left, a helper container to read what belongs to others.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::fs::{Gid, Uid};
use serde_json::json;

use super::values::{duration, label};
use crate::app::{exit, supervise};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::tree::{self, Access, Bounds};
use crate::proc::docker::Docker;
use crate::proc::helper::{self, Operation};

/// The arguments of `phalanx tree`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to do
    operation: TreeOperation,
    /// With this folder
    path: PathBuf,
    /// How long it may take
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = duration)]
    within: Duration,
    /// Take over files of other users by a container
    #[arg(long)]
    container: bool,
    /// A label of that container, as phalanx.miner=5F…; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = label, env = "PHALANX_LABEL", value_delimiter = ',')]
    label: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TreeOperation {
    /// Remove it
    Remove,
    /// Give all of it to its owner
    Own,
    /// Print its size as JSON
    Measure,
}

/// Runs the command: exit 0 if it is done.
pub(super) fn run(args: Args) -> ExitCode {
    supervise::with_env(|env| {
        let cancel = env.shutdown.clone();
        let _at_once = env.shutdown.on(Level::Drain, move || cancel.cancel());
        match operate(&args, &env.shutdown) {
            Ok(()) => ExitCode::from(exit::DONE),
            Err(problem) => exit::failed(format!("{}: {problem}", args.path.display())),
        }
    })
}

fn operate(args: &Args, stop: &Shutdown) -> Result<(), String> {
    let deadline = Instant::now() + args.within;
    let bounds = Bounds::until(deadline, stop);
    match args.operation {
        TreeOperation::Remove => remove(args, &bounds),
        TreeOperation::Own => own(&args.path, &bounds),
        TreeOperation::Measure => {
            let (size, ended) = tree::measure(tree::open_dir(&args.path).map_err(|e| e.to_string())?, &bounds);
            let tree::Size { bytes, entries, closed } = size;
            println!("{}", json!({"bytes": bytes, "entries": entries, "closed": closed}));
            ended.map_err(|e| e.to_string())
        }
    }
}

fn remove(args: &Args, bounds: &Bounds<'_>) -> Result<(), String> {
    let error = match tree::remove(&args.path, bounds) {
        Err(error @ tree::TreeError::Io { .. }) if args.container => error,
        removed => return removed.map_err(|error| error.to_string()),
    };
    helper::run(&Docker::default(), (Operation::Own, &args.path), &args.label, bounds.stop, bounds.deadline)
        .map_err(|second| format!("{error}; {second}"))?;
    tree::remove(&args.path, bounds).map_err(|error| error.to_string())
}

/// As root in a helper's container: the owner is told by the folder, whatever number that has outside.
fn own(path: &Path, bounds: &Bounds<'_>) -> Result<(), String> {
    let owner = path.metadata().map_err(|e| e.to_string())?;
    let access = Access::Owner(Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    let root = tree::open_dir(path).map_err(|e| e.to_string())?;
    let walked = tree::give(root, access, bounds).map_err(|e| e.to_string())?;
    if walked.closed > 0 {
        return Err(format!("{} folders cannot be entered", walked.closed));
    }
    Ok(())
}
