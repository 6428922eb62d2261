//! The disk that the engine keeps its images on: where it is, and how much of it is free.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::Value;

use super::docker::Docker;
use super::tool::ToolError;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;

/// The disk of one engine; clones are the same. The engine is asked once where it is.
#[derive(Debug, Clone)]
pub struct EngineDisk {
    docker: Docker,
    found: Arc<Mutex<Option<Place>>>,
}

/// The folder of the engine's data.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    /// On another machine, or on none that can be seen from here.
    Elsewhere,
}

/// What is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeSpace {
    /// The folder of the engine's data.
    pub folder: PathBuf,
    /// Bytes for whoever is not root.
    pub bytes: u64,
}

impl EngineDisk {
    /// The disk of this engine.
    pub fn new(docker: Docker) -> Self {
        Self { docker, found: Arc::default() }
    }

    /// What is free; `None` if the disk is not of this machine. Blocks for the engine's answer
    /// until it was given once, at most until `deadline` or a cancel of `stop`.
    ///
    /// # Errors
    /// If the engine does not answer, or the system does not tell.
    pub fn free(&self, stop: &Shutdown, deadline: Instant) -> Result<Option<FreeSpace>, ToolError> {
        let doing = "measure the disk of the engine's images";
        let known = lock(&self.found).clone();
        let place = match known {
            Some(place) => place,
            None => {
                let told = self.docker.run(doing, &INFO, stop, deadline)?;
                let place = place(&told, &this_machine(), |path| path.is_dir())
                    .ok_or_else(|| ToolError::Failed { doing, text: "it does not tell its folder".to_owned() })?;
                lock(&self.found).insert(place).clone()
            }
        };
        let Place::Here(folder) = place else { return Ok(None) };
        let failed = |error: rustix::io::Errno| ToolError::Failed { doing, text: error.to_string() };
        let disk = rustix::fs::statvfs(&folder).map_err(failed)?;
        Ok(Some(FreeSpace { folder, bytes: disk.f_bavail.saturating_mul(disk.f_frsize) }))
    }
}

/// Asks an engine for all that it tells of itself.
const INFO: [&str; 3] = ["info", "--format", "{{json .}}"];

fn this_machine() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl Docker {
    /// Whether the engine's machine has the name of this one. Blocks until the engine has answered, `deadline` passes
    /// or `stop` is cancelled.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn has_name_of_this_machine(&self, stop: &Shutdown, deadline: Instant) -> Result<bool, ToolError> {
        let told = self.run("ask the engine for the name of its machine", &INFO, stop, deadline)?;
        let told: Value = serde_json::from_str(&told).unwrap_or_default();
        // The second is podman's.
        let name = told["Name"].as_str().or(told["host"]["hostname"].as_str());
        Ok(name == Some(this_machine().as_str()))
    }
}

/// Where an engine keeps its data, by what it tells of itself, if it does. It is on this machine if it has the
/// machine's name and its folder is here.
fn place(told: &str, machine: &str, is_here: impl Fn(&Path) -> bool) -> Option<Place> {
    let told: Value = serde_json::from_str(told).unwrap_or_default();
    // The second is podman's.
    let (name, folder) = match (&told["DockerRootDir"], &told["store"]["graphRoot"]) {
        (Value::String(folder), _) => (&told["Name"], folder),
        (_, Value::String(folder)) => (&told["host"]["hostname"], folder),
        _ => return None,
    };
    let folder = PathBuf::from(folder);
    let here = name.as_str() == Some(machine) && folder.is_absolute() && is_here(&folder);
    Some(if here { Place::Here(folder) } else { Place::Elsewhere })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_here_if_the_machine_s_name_and_the_folder_are() {
        let (here, elsewhere) = (Some(Place::Here(PathBuf::from("/data"))), Some(Place::Elsewhere));
        for (told, expected) in [
            (r#"{"Name": "box", "DockerRootDir": "/data"}"#, here.clone()),
            (r#"{"host": {"hostname": "box"}, "store": {"graphRoot": "/data"}}"#, here),
            (r#"{"Name": "far", "DockerRootDir": "/data"}"#, elsewhere.clone()),
            (r#"{"Name": "box", "DockerRootDir": "/other"}"#, elsewhere.clone()),
            (r#"{"Name": "box", "DockerRootDir": "data"}"#, elsewhere),
            (r#"{"Name": "box"}"#, None),
            ("", None),
        ] {
            assert_eq!(place(told, "box", |path| path.ends_with("data")), expected, "{told}");
        }
    }
}
