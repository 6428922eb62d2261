//! The temporary folder of one executor, and what a killed executor leaves behind: the folder's files, and the
//! processes of its job, which are in a group of their own and know the folder by their environment
//! (`PHALANX_VOLUME_DIR` and others).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::backend::{ExecutorSpec, Leftover, LeftoverKind, Marked};
use super::owner::Owner;
use super::settings::TOKEN;
use crate::base::shutdown::Shutdown;
use crate::proc::leftovers::{folders_of_processes, kill_by_folder, values_of_leaders};
use crate::proc::tool;

/// How long killed processes may take to end.
const KILL_TIME: Duration = Duration::from_secs(2);

/// The `TMPDIR` of an executor, in our own folder for temporary files. Its name says whose it is.
pub(super) fn of(spec: &ExecutorSpec) -> PathBuf {
    std::env::temp_dir().join(format!("phalanx-exec-{}-{}-{}", spec.owner.instance, spec.owner.epoch, spec.run))
}

/// How the folders of all executors of a miner begin.
fn beginning(owner: &Owner) -> String {
    format!("phalanx-exec-{}-", owner.instance)
}

/// Which executor of the miner a folder of this name is of.
fn mark(name: &str, owner: &Owner) -> Option<(String, u64)> {
    let (epoch, run) = name.strip_prefix(&beginning(owner))?.split_once('-')?;
    let is_run = run.len() == 32 && run.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_run.then(|| Some((run.to_owned(), epoch.parse().ok()?)))?
}

/// The folders of a miner's executors, and the processes that know one of them, whether or not it is still there.
pub(super) fn find(owner: &Owner) -> io::Result<Vec<Marked>> {
    let folder = std::env::temp_dir();
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        if let Some((run, epoch)) = entry.file_name().to_str().and_then(|name| mark(name, owner)) {
            let id = entry.path().display().to_string();
            found.push(Marked { kind: LeftoverKind::Folder, id, run, epoch });
        }
    }
    let names = folders_of_processes(beginning(owner).as_bytes())?;
    found.extend(names.into_iter().filter_map(|name| {
        let (run, epoch) = mark(&name, owner)?;
        Some(Marked { kind: LeftoverKind::Processes, id: name, run, epoch })
    }));
    Ok(found)
}

/// The executors of a miner that live. An executor has its token in its environment, which no other program has: its
/// job, its tools and the operator's are not told it.
pub(super) fn living(owner: &Owner) -> io::Result<BTreeSet<String>> {
    let folders = values_of_leaders("TMPDIR", TOKEN)?;
    Ok(folders.iter().filter_map(|folder| Some(mark(Path::new(folder).file_name()?.to_str()?, owner)?.0)).collect())
}

/// Makes the folder, `0700`.
pub(super) fn create(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)
}

/// Kills every process that is told a folder of this name, until there is none. Blocks for at most [`KILL_TIME`].
pub(super) fn end_processes(name: &OsStr) -> Result<(), Leftover> {
    let left = |error: io::Error| Leftover { kind: LeftoverKind::Processes, text: error.to_string() };
    kill_by_folder(name.as_bytes(), KILL_TIME).map(drop).map_err(left)
}

/// How long the removal of a folder may take. A job may have left a million files.
const REMOVE_TIME: Duration = Duration::from_secs(300);

/// What removes a folder of executors with this runner, without what follows from the folder.
pub(super) fn removal(phalanx: &Path, runner: &str) -> Command {
    let mut tree = Command::new(phalanx);
    tree.args(["tree", "remove"]);
    if runner != "process" {
        tree.arg("--container");
    }
    tree
}

/// Removes the folder, if it is there; by `phalanx tree remove`, because what jobs leave is no business of the process
/// that serves all of them. Blocks for at most [`REMOVE_TIME`]; a cancel ends it.
pub(super) fn remove(folder: &Path, mut tree: Command, stop: &Shutdown) -> Result<(), Leftover> {
    // Mostly an executor has left nothing.
    match fs::remove_dir(folder) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    let within = format!("{}s", REMOVE_TIME.as_secs());
    tree.args(["--within", &within]).arg(folder);
    // A moment longer than it gives itself.
    let deadline = Instant::now() + REMOVE_TIME + KILL_TIME;
    let removed = tool::output(tree, "remove the temporary folder of an executor", stop, deadline);
    removed.map(drop).map_err(|error| Leftover {
        kind: LeftoverKind::Folder,
        text: format!("temporary folder {} is left: {error}", folder.display()),
    })
}
