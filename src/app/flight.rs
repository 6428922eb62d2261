//! What the links and threads of the process did last, as a file: at SIGUSR1, and when a thread has panicked.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use log::Level;
use serde_json::json;

use super::logging;
use crate::base::clock::now;
use crate::base::lock::lock;
use crate::base::thread::live;
use crate::link::recorder;
use crate::ops::redact::JsonText;

/// The file, in the state folder. A later one replaces it, so it has at most what the recorders keep.
const FILE: &str = "flight.json";

/// Where the flight recorder is written; nowhere until a role says so. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct FlightFile(Arc<Mutex<Option<PathBuf>>>);

impl FlightFile {
    /// From now on it is written into this state folder.
    pub fn keep_in(&self, state_dir: &Path) {
        *lock(&self.0) = Some(state_dir.join(FILE));
    }

    /// Writes it, and says where. Blocks on the disk.
    pub(super) fn write(&self, why: &str) {
        let path = lock(&self.0).clone();
        let Some(path) = path else {
            return logging::say(Level::Info, format_args!("the flight recorder is not written: no state folder"));
        };
        match write(&path, why) {
            Ok(()) => logging::say(Level::Info, format_args!("the flight recorder is in {}", path.display())),
            Err(error) => {
                logging::say(Level::Error, format_args!("the flight recorder is not in {}: {error}", path.display()));
            }
        }
    }
}

fn write(path: &Path, why: &str) -> io::Result<()> {
    let threads: Vec<String> = live().iter().map(ToString::to_string).collect();
    let document = json!({
        "why": why,
        "at": now().wall.as_secs_f64(),
        "version": env!("CARGO_PKG_VERSION"),
        "threads": threads,
        "links": recorder::links(),
    });
    let new = path.with_extension("json.new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(JsonText(&document.to_string()).to_string().as_bytes())?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a panic does is the same, see `supervise`.
    #[test]
    fn the_file_has_threads_and_links_and_a_later_one_replaces_it() {
        let folder = tempfile::tempdir().unwrap();
        let flight = FlightFile::default();
        flight.write("nowhere yet");
        flight.clone().keep_in(folder.path());
        for why in ["first", "second"] {
            flight.write(why);
            let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
            let document: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(document["why"], why);
            assert!(document["threads"].is_array() && document["links"].is_array(), "{document}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
