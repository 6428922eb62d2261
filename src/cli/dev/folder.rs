//! The folder of `phalanx dev`: its keys, a settings file of all roles and of the commands that ask them, a first job.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use crate::executor::RunnerKind;
use crate::identity::{KeyPair, write_hotkey_file};
use crate::store::FolderLock;

/// Executors of the miner; as many jobs run at a time.
const EXECUTORS: u32 = 8;

/// What is in the folder, beside a folder for the state of each role.
const LOCK: &str = "lock";
const SETTINGS: &str = "phalanx.toml";
const MINERS: &str = "miners.toml";
const JOB: (&str, &str) = ("hello.json", include_str!("hello.json"));

/// The folder, for as long as this process has it.
pub(super) struct Folder {
    path: PathBuf,
    validator: Key,
    miner: Key,
    user: Key,
    _lock: FolderLock,
}

/// A key and its hotkey file.
struct Key {
    pair: KeyPair,
    file: PathBuf,
}

impl Key {
    /// Reads the file, or makes it with a new key.
    fn of(folder: &Path, name: &str) -> Result<Self, String> {
        let file = folder.join(format!("{name}.key"));
        let pair = if file.exists() {
            KeyPair::load(&file.to_string_lossy())
        } else {
            write_hotkey_file(&file, &KeyPair::generate().1)
        };
        Ok(Self { pair: pair.map_err(|e| e.to_string())?, file })
    }
}

/// The addresses of the roles.
pub(super) struct Places {
    facilitator_http: SocketAddr,
    facilitator: SocketAddr,
    validator_http: SocketAddr,
    miner_http: SocketAddr,
    miner: SocketAddr,
}

impl Places {
    /// Five ports of 127.0.0.1 that are free now, from this one on; with 0 the system chooses.
    ///
    /// # Errors
    /// Which one is not free, in one line.
    pub(super) fn find(first: u16) -> Result<Self, String> {
        // All are held until all are found.
        let held = [0, 1, 2, 3, 4].map(|n| {
            let port = if first == 0 { 0 } else { first + n };
            let listener = TcpListener::bind(("127.0.0.1", port)).and_then(|held| Ok((held.local_addr()?, held)));
            listener.map_err(|e| {
                format!("--port {first}: 127.0.0.1:{port}: {e}; give the first of five ports that are free, or 0")
            })
        });
        let mut places = [SocketAddr::from(([127, 0, 0, 1], 0)); 5];
        for (place, held) in places.iter_mut().zip(&held) {
            *place = held.as_ref().map_err(Clone::clone)?.0;
        }
        let [facilitator_http, facilitator, validator_http, miner_http, miner] = places;
        Ok(Self { facilitator_http, facilitator, validator_http, miner_http, miner })
    }
}

impl Folder {
    /// Takes the folder, and makes what is not there yet.
    ///
    /// # Errors
    /// That another process has it, or what cannot be read or made, in one line.
    pub(super) fn take(folder: &Path) -> Result<Self, String> {
        let failed = |problem: String| format!("--state-dir {}: {problem}", folder.display());
        let path = std::path::absolute(folder).map_err(|e| failed(e.to_string()))?;
        if path.to_str().is_none() {
            return Err(failed("it should be UTF-8, because it stands in a settings file".to_owned()));
        }
        let lock = FolderLock::take(&path, LOCK).map_err(|e| failed(e.to_string()))?;
        let key = |name| Key::of(&path, name).map_err(failed);
        let (validator, miner, user) = (key("validator")?, key("miner")?, key("user")?);
        let (name, text) = JOB;
        let job = path.join(name);
        if !job.exists() {
            std::fs::write(&job, text).map_err(|e| format!("cannot write {}: {e}", job.display()))?;
        }
        Ok(Self { path, validator, miner, user, _lock: lock })
    }

    /// Writes the settings file, and the list of miners that it names; gives its path.
    ///
    /// # Errors
    /// Which cannot be written, in one line.
    pub(super) fn write(&self, places: &Places, runner: RunnerKind) -> Result<PathBuf, String> {
        let write = |name: &str, text: String| {
            let path = self.path.join(name);
            std::fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display())).map(|()| path)
        };
        let (hotkey, miner) = (self.miner.pair.ss58(), places.miner);
        let miners =
            format!("[[miner]]\nhotkey = \"{hotkey}\"\naddress = \"{}\"\nport = {}\n", miner.ip(), miner.port());
        write(MINERS, miners)?;
        write(SETTINGS, self.settings(places, runner))
    }

    fn settings(&self, places: &Places, runner: RunnerKind) -> String {
        let Places { facilitator_http, facilitator, validator_http, miner_http, miner } = places;
        let within = |name: &str| text(&self.path.join(name).to_string_lossy());
        let key = |key: &Key| text(&key.file.to_string_lossy());
        let (validator, user) = (text(&self.validator.pair.ss58()), text(&self.user.pair.ss58()));
        let api = text(&format!("http://{facilitator_http}"));
        let pages = format!("[\"{facilitator_http}\", \"{validator_http}\", \"{miner_http}\"]");
        let tables: [(&str, &[(&str, String)]); 16] = [
            (
                "facilitator",
                &[
                    ("listen", text(&facilitator.to_string())),
                    ("http", text(&facilitator_http.to_string())),
                    ("validator", validator.clone()),
                    ("user", user.clone()),
                    ("hold-jobs", "true".to_owned()),
                    ("state-dir", within("facilitator")),
                ],
            ),
            (
                "miner",
                &[
                    ("listen", text(&miner.to_string())),
                    ("http", text(&miner_http.to_string())),
                    ("key", key(&self.miner)),
                    ("validator", validator.clone()),
                    ("executors", text(&format!("always_on.test={EXECUTORS}"))),
                    ("runner", text(runner.name())),
                    ("pull", text("missing")),
                    ("drain-time", text("10s")),
                    ("state-dir", within("miner")),
                ],
            ),
            (
                "validator",
                &[
                    ("facilitator", text(&format!("ws://{facilitator}/ws/v0/"))),
                    ("http", text(&validator_http.to_string())),
                    ("key", key(&self.validator)),
                    ("miners", within(MINERS)),
                    ("trusted-signer", user),
                    ("drain-time", text("10s")),
                    ("state-dir", within("validator")),
                ],
            ),
            ("submit", &[("facilitator", api.clone()), ("key", key(&self.user)), ("target", validator)]),
            ("jobs", &[("facilitator", api), ("key", key(&self.user))]),
            ("status", &[("http", pages.clone())]),
            ("top", &[("http", pages.clone())]),
            ("doctor", &[("http", pages)]),
            ("miners", &[("http", text(&validator_http.to_string()))]),
            ("job", &[("http", text(&miner_http.to_string()))]),
            ("manifests", &[("key", key(&self.validator)), ("miners", within(MINERS))]),
            ("batch", &[("key", key(&self.validator)), ("miners", within(MINERS))]),
            ("audit", &[("state-dir", within("facilitator"))]),
            ("outbox", &[("state-dir", within("validator"))]),
            ("pause", &[("state-dir", within("validator"))]),
            ("resume", &[("state-dir", within("validator"))]),
        ];
        let mut out =
            "# Written by `phalanx dev` at each start: its roles, and the commands that ask them.\n".to_owned();
        for (name, settings) in tables {
            // Writing to a text does not fail.
            let _ = writeln!(out, "\n[{name}]");
            for (key, value) in settings {
                let _ = writeln!(out, "{key} = {value}");
            }
        }
        out
    }

    /// What runs where, and what to do next; `how` says how jobs run.
    pub(super) fn in_words(&self, places: &Places, how: &str) -> String {
        let Places { facilitator_http, facilitator, validator_http, miner_http, miner } = places;
        let quoted = |path: &Path| {
            let path = path.to_string_lossy();
            shlex::try_quote(&path).map_or_else(|_| path.to_string(), Into::into)
        };
        let [validator, hotkey, user] = [&self.validator, &self.miner, &self.user].map(|key| key.pair.ss58());
        let (settings, job) = (quoted(&self.path.join(SETTINGS)), quoted(&self.path.join(JOB.0)));
        format!(
            "A network of your own runs until Ctrl-C. Its state is in {}; {how}.\n\n  \
             facilitator  http://{facilitator_http}/  jobs; validators come to ws://{facilitator}/ws/v0/\n  \
             validator    http://{validator_http}/  {validator}\n  \
             miner        http://{miner_http}/  {hotkey}, at {miner}, {EXECUTORS} executors\n  \
             user         {user}, whose key is {}\n\n\
             In another terminal:\n\n  \
             export PHALANX_CONFIG={settings}\n  \
             phalanx submit --wait {job}\n  \
             phalanx jobs ls\n  \
             phalanx status\n  \
             phalanx top\n\n\
             The same without that file:\n\n  \
             phalanx submit --wait {job} --facilitator http://{facilitator_http} --key {} --target {validator}\n  \
             phalanx status --http {facilitator_http} --http {validator_http} --http {miner_http}\n\n",
            self.path.display(),
            self.user.file.display(),
            quoted(&self.user.file),
        )
    }
}

/// A text as TOML writes it.
fn text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_toml_whatever_the_folder_is_called() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("it's \"here\" \\ #1");
        let folder = Folder::take(&path).unwrap();
        let places = Places::find(0).unwrap();
        let settings: toml::Table = folder.settings(&places, RunnerKind::Process).parse().unwrap();
        assert_eq!(settings["miner"]["state-dir"].as_str(), path.join("miner").to_str());
        for asks in ["status", "top", "doctor"] {
            assert_eq!(settings[asks]["http"].as_array().unwrap().len(), 3, "{asks}");
        }
        for (command, of) in [("audit", "facilitator"), ("outbox", "validator"), ("pause", "validator")] {
            assert_eq!(settings[command]["state-dir"].as_str(), path.join(of).to_str(), "{command}");
        }
        assert!(Folder::take(&path).err().unwrap().contains(&std::process::id().to_string()));
        let user = folder.user.pair.ss58();
        drop(folder);
        assert_eq!(Folder::take(&path).unwrap().user.pair.ss58(), user, "keys are kept");
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        let first = port.checked_sub(2).unwrap();
        let problem = Places::find(first).err().unwrap();
        assert!(problem.starts_with(&format!("--port {first}: 127.0.0.1:")), "{problem}");
    }
}
