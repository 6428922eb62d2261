//! A short-lived container that reads and changes what a job's container has left to its own users.
//!
//! A job runs as root in its container, or as whatever user its image names. An executor that is root itself can read
//! and remove all that; a plain user of the engine cannot. So this program runs once more, as root in a container that
//! has the folder and nothing else, no network among it, and does `phalanx tree`. The image is made on the spot, of
//! this program and the libraries that it has loaded; nothing of the job's image runs with these rights. Whoever makes
//! one removes those of other versions.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::docker::{Docker, labels};
use super::tool::{self, ToolError};
use crate::base::clock::now;
use crate::base::shutdown::Shutdown;

/// The repository of the images.
const IMAGE: &str = "phalanx-helper";

/// Where a helper sees the folder.
const FOLDER: &str = "/job";

/// How old the image of another version is when it is removed.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// What changes owners and modes whoever has them now needs, and no more.
const CAPABILITIES: [&str; 3] = ["CHOWN", "DAC_OVERRIDE", "FOWNER"];

/// What a helper does with the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Gives all of it to the owner of the folder.
    Own,
    /// Measures it, and prints that as JSON.
    Measure,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Own => "own",
            Operation::Measure => "measure",
        }
    }

    fn doing(self) -> &'static str {
        match self {
            Operation::Own => "take over the files that a container's users have left",
            Operation::Measure => "measure the files that a container's users write",
        }
    }
}

/// Runs a helper on `folder` and gives what it prints. Blocks until it has ended, `deadline` passes or `stop` is
/// cancelled. The container has `labels`, by which it is found when this process dies meanwhile.
///
/// # Errors
/// What the engine or the helper says.
pub fn run(
    docker: &Docker,
    (operation, folder): (Operation, &Path),
    labels: &[(String, String)],
    stop: &Shutdown,
    deadline: Instant,
) -> Result<String, ToolError> {
    let doing = operation.doing();
    let failed = |error: io::Error| ToolError::Failed { doing, text: error.to_string() };
    let program = Program::running().map_err(failed)?;
    let image = program.image_name().map_err(failed)?;
    if docker.image(&image, stop, deadline)?.is_none() {
        log::info!("making image {image}, which reads and removes what containers leave");
        let files = tempfile::tempdir().map_err(failed)?;
        program.copy_to(files.path()).map_err(failed)?;
        docker.import(files.path(), &image, Some((labels::HELPER, &unix_seconds().to_string())), stop, deadline)?;
        if let Err(error) = remove_old(docker, &image, stop, deadline) {
            log::warn!("images of earlier versions of this program may be left: {error}");
        }
    }
    let folder = folder.to_string_lossy();
    if folder.contains([',', '"', '\n', '\r']) {
        let text = format!("folder {folder:?} cannot be mounted: it has a comma, a quote or a line break");
        return Err(ToolError::Failed { doing, text });
    }
    let mut container = docker.container(format!("phalanx-helper-{}", uuid::Uuid::new_v4().simple()));
    let mut creation = container.creation();
    creation.args(["--network", "none", "--log-driver", "none", "--user", "0:0", "--userns", "host", "--read-only"]);
    creation.args(["--security-opt", "no-new-privileges", "--pids-limit", "64", "--cap-drop", "ALL"]);
    for capability in CAPABILITIES {
        creation.args(["--cap-add", capability]);
    }
    for (key, value) in labels {
        creation.arg("--label").arg(format!("{key}={value}"));
    }
    creation.args(["--mount", &format!("type=bind,source={folder},target={FOLDER}"), &image]);
    // A limit of its own, in case nobody is left to end it.
    let within = format!("{}s", deadline.saturating_duration_since(Instant::now()).as_secs().max(1));
    creation.args(program.command()).args(["tree", operation.name(), FOLDER, "--within", &within]);
    container.create(creation)?;
    tool::output(container.attached(), doing, stop, deadline)
}

/// Removes the images of other versions of this program that are old, unless a container has them: one that another
/// process of another version may have made just now, for a helper that it is about to start, stays.
fn remove_old(docker: &Docker, own: &str, stop: &Shutdown, deadline: Instant) -> Result<(), ToolError> {
    let own = docker.image(own, stop, deadline)?.map(|image| image.id);
    for (id, made) in docker.labelled_images(IMAGE, labels::HELPER, stop, deadline)? {
        let is_old = made.parse().is_ok_and(|made: u64| made.saturating_add(OLD.as_secs()) < unix_seconds());
        if !is_old || own.as_ref() == Some(&id) {
            continue;
        }
        match docker.remove_image(&id, stop, deadline) {
            Ok(()) => log::info!("image {id} of an earlier version of this program is removed"),
            Err(ToolError::Failed { text, .. }) => log::info!("image {id} of an earlier version stays: {text}"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn unix_seconds() -> u64 {
    u64::try_from(now().unix_micros() / 1_000_000).unwrap_or(0)
}

/// The files of a running program.
struct Program {
    path: PathBuf,
    /// With the loader among them; none for a program that is linked statically.
    libraries: Vec<PathBuf>,
}

/// The file that this process runs, also once another one has taken its place.
const RUNNING: &str = "/proc/self/exe";

/// Where they are in the image.
const PROGRAM: &str = "phalanx";
const LIBRARIES: &str = "lib";

impl Program {
    fn running() -> io::Result<Self> {
        let libraries = loaded(&fs::read_to_string("/proc/self/maps")?);
        Ok(Self { path: RUNNING.into(), libraries })
    }

    /// A name for exactly this program.
    fn image_name(&self) -> io::Result<String> {
        let file = fs::metadata(&self.path)?;
        Ok(format!("{IMAGE}:{}-{:x}-{:x}", env!("CARGO_PKG_VERSION"), file.size(), file.mtime()))
    }

    fn copy_to(&self, folder: &Path) -> io::Result<()> {
        fs::copy(&self.path, folder.join(PROGRAM))?;
        let libraries = folder.join(LIBRARIES);
        fs::create_dir(&libraries)?;
        for library in &self.libraries {
            fs::copy(library, libraries.join(library.file_name().unwrap_or_default()))?;
        }
        // Where the folder and what every container has are mounted: the root is read-only.
        ["job", "proc", "dev", "sys", "etc"].iter().try_for_each(|name| fs::create_dir(folder.join(name)))
    }

    /// The beginning of its command line in the image: the loader is named, because it is not where the program looks
    /// for it.
    fn command(&self) -> Vec<String> {
        let names = self.libraries.iter().filter_map(|path| path.file_name()?.to_str());
        let loader = names.into_iter().find(|name| name.starts_with("ld-") || name.starts_with("ld."));
        let program = format!("/{PROGRAM}");
        match loader {
            Some(loader) => {
                let library_path = format!("/{LIBRARIES}");
                vec![format!("{library_path}/{loader}"), "--library-path".to_owned(), library_path, program]
            }
            None => vec![program],
        }
    }
}

/// The shared libraries of a process, by its memory map.
fn loaded(maps: &str) -> Vec<PathBuf> {
    // Address, permissions, offset, device, number, and a path that may hold blanks.
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let is_library = |path: &&Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.ends_with(".so") || name.contains(".so.")
    };
    let mut libraries: Vec<PathBuf> = paths.filter(is_library).map(Path::to_owned).collect();
    libraries.sort();
    libraries.dedup();
    libraries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_are_those_of_the_memory_map() {
        let maps = "\
55d0 r--p 00000000 fe:00 1  /usr/bin/phalanx
7f01 r--p 00000000 fe:00 2  /usr/lib/x86_64-linux-gnu/libc.so.6
7f02 r-xp 00026000 fe:00 2  /usr/lib/x86_64-linux-gnu/libc.so.6
7f03 r--p 00000000 fe:00 3  /opt/with blank/libgcc_s.so.1
7f04 r--p 00000000 fe:00 4  /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
7f05 rw-p 00000000 00:00 0  [stack]
7f06 rw-p 00000000 00:00 0
";
        let libraries = loaded(maps);
        let names: Vec<&str> = libraries.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "/opt/with blank/libgcc_s.so.1",
                "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
                "/usr/lib/x86_64-linux-gnu/libc.so.6"
            ]
        );
        let program = Program { path: "/usr/bin/phalanx".into(), libraries };
        assert_eq!(program.command(), ["/lib/ld-linux-x86-64.so.2", "--library-path", "/lib", "/phalanx"]);
        assert_eq!(Program { path: "/p".into(), libraries: vec![] }.command(), ["/phalanx"]);
    }
}
