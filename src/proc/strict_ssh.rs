//! An `ssh` of ours, which passes on to the real one with options that come before those of any configuration.
//!
//! A client looks for `ssh` along its `PATH` and passes over what cannot be executed. So ours lies in a folder that
//! nobody else can write to and nobody sweeps, the real one is named by its absolute path, and where ours cannot be
//! executed there is nothing on the `PATH` at all.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

/// What the real `ssh` is told before all else: no question, no unknown key, the same for loopback; and a machine that
/// is silent for a minute is gone.
const SSH_OPTIONS: [&str; 5] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "NoHostAuthenticationForLocalhost=no",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
];

/// No folder, and never one: nothing is found there.
const NOWHERE: &str = "/dev/null";

/// Where our `ssh` lies, and where the real one is looked for.
#[derive(Debug, Clone)]
pub struct SshPlace {
    /// The folder, which is made where it is missing, for us alone. It stays.
    pub folder: PathBuf,
    /// The folders of the real one, as in `PATH`.
    pub path: OsString,
}

impl SshPlace {
    /// The folder `ssh` below that folder, and our `PATH`.
    pub fn below(folder: impl AsRef<Path>) -> Self {
        Self { folder: folder.as_ref().join("ssh"), path: std::env::var_os("PATH").unwrap_or_default() }
    }
}

/// A script that checks host keys whatever the configuration says.
#[derive(Debug)]
pub(super) struct StrictSsh {
    folder: PathBuf,
    /// What comes behind it.
    path: OsString,
    script: String,
}

impl StrictSsh {
    /// It is there once it is written. The error is one line.
    pub(super) fn at(place: &SshPlace) -> Result<Self, String> {
        let folder = std::path::absolute(&place.folder).map_err(|e| format!("{}: {e}", place.folder.display()))?;
        let real = std::env::split_paths(&place.path).filter(|at| at.is_absolute() && *at != folder);
        let real = real.map(|at| at.join("ssh")).find(|at| at.is_file() && access(at, Access::EXEC_OK).is_ok());
        let real = real.ok_or("there is no ssh program on the PATH")?;
        let real = real.to_str().ok_or("the path of the ssh program is no text")?;
        let options: String = SSH_OPTIONS.iter().map(|option| format!(" -o {option}")).collect();
        let script = format!("#!/bin/sh\nexec '{}'{options} \"$@\"\n", real.replace('\'', r"'\''"));
        Ok(Self { folder, path: place.path.clone(), script })
    }

    /// Writes it, unless it is there already. The error is one line.
    pub(super) fn create(&self) -> Result<(), String> {
        self.write()?;
        self.usable()
    }

    pub(super) fn file(&self) -> PathBuf {
        self.folder.join("ssh")
    }

    /// Another process of ours may run it, or write the same.
    fn write(&self) -> Result<(), String> {
        if self.folder.to_string_lossy().contains(':') {
            return Err(format!("{} has a colon in its name, as no folder of a PATH may", self.folder.display()));
        }
        let text = |e: std::io::Error| format!("{}: {e}", self.folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(text)?;
        if fs::read_to_string(self.file()).is_ok_and(|known| known == self.script) && self.usable().is_ok() {
            return Ok(());
        }
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).map_err(text)?;
        file.write_all(self.script.as_bytes()).map_err(text)?;
        fs::set_permissions(file.path(), Permissions::from_mode(0o700)).map_err(text)?;
        // It is closed before anybody can execute it.
        file.into_temp_path().persist(self.file()).map_err(|e| text(e.error))
    }

    /// Whether a client that looks for it takes it, and nobody else can have written it.
    fn usable(&self) -> Result<(), String> {
        let file = self.file();
        let text = |e: std::io::Error| format!("{}: {e}", file.display());
        let (folder, script) = (fs::symlink_metadata(&self.folder), fs::symlink_metadata(&file));
        let (folder, script) = (folder.map_err(text)?, script.map_err(text)?);
        let ours = |it: &fs::Metadata| it.uid() == rustix::process::geteuid().as_raw() && it.mode() & 0o022 == 0;
        if !(folder.is_dir() && ours(&folder) && script.is_file() && ours(&script)) {
            return Err(format!("{} is not ours alone", file.display()));
        }
        access(&file, Access::EXEC_OK).map_err(|e| {
            format!("{} cannot be executed ({e}): is it on a file system that is mounted noexec?", file.display())
        })
    }

    /// A path on which it comes first, or on which there is nothing: no other `ssh` takes its place.
    pub(super) fn path(&self) -> OsString {
        match self.usable() {
            Ok(()) => {
                let mut path = self.folder.clone().into_os_string();
                path.push(":");
                path.push(&self.path);
                path
            }
            Err(why) => {
                log::error!("nothing is reached over ssh, because host keys could not be checked: {why}");
                NOWHERE.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn created(place: &SshPlace) -> Result<StrictSsh, String> {
        let ssh = StrictSsh::at(place)?;
        ssh.create().map(|()| ssh)
    }

    /// A place, and a real `ssh` that prints its name and its arguments.
    fn place(folder: &Path) -> SshPlace {
        let real = folder.join("it's real");
        fs::create_dir(&real).unwrap();
        let echo = ["/bin/echo", "/usr/bin/echo"].into_iter().find(|at| Path::new(at).exists()).unwrap();
        std::os::unix::fs::symlink(echo, real.join("ssh")).unwrap();
        // The first cannot be executed, as a client sees it.
        fs::create_dir(folder.join("no")).unwrap();
        fs::write(folder.join("no/ssh"), "").unwrap();
        SshPlace { folder: folder.join("ours"), path: std::env::join_paths([folder.join("no"), real]).unwrap() }
    }

    #[test]
    fn it_passes_on_to_the_real_one_with_its_options_first() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        let ssh = created(&place).unwrap();
        let mut expected = place.folder.clone().into_os_string();
        expected.push(":");
        expected.push(&place.path);
        assert_eq!(ssh.path(), expected);
        // By the shell: another test's child may still have the file open that was just written.
        let said = Command::new("/bin/sh").arg(ssh.file()).args(["-T", "--", "engine", "docker"]).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.starts_with("-o BatchMode=yes -o StrictHostKeyChecking=yes "), "{said}");
        assert!(said.ends_with(" -T -- engine docker\n"), "{said}");
        // It stays, and the next finds it as it is.
        drop(ssh);
        let number = |place: &SshPlace| fs::metadata(place.folder.join("ssh")).unwrap().ino();
        let first = number(&place);
        created(&place).unwrap();
        assert_eq!(number(&place), first);
        let none = SshPlace { path: folder.path().join("no").into(), ..place };
        assert_eq!(StrictSsh::at(&none).unwrap_err(), "there is no ssh program on the PATH");
    }

    #[test]
    fn one_that_cannot_be_executed_or_is_not_ours_leaves_no_other_on_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        let ssh = created(&place).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let file = ssh.file();
        // As on a file system that is mounted noexec: a client would pass over it.
        mode(&file, 0o600);
        assert_eq!(ssh.path(), NOWHERE);
        assert!(ssh.usable().unwrap_err().contains("cannot be executed"));
        mode(&file, 0o722);
        assert_eq!(ssh.path(), NOWHERE);
        mode(&file, 0o700);
        mode(&place.folder, 0o777);
        assert_eq!(ssh.path(), NOWHERE);
        assert!(created(&place).unwrap_err().ends_with("is not ours alone"));
        mode(&place.folder, 0o700);
        assert_ne!(ssh.path(), NOWHERE);
        fs::remove_file(&file).unwrap();
        assert_eq!(ssh.path(), NOWHERE);
        // A new start, or a reload, writes it again.
        created(&place).unwrap();
        assert_ne!(ssh.path(), NOWHERE);
    }
}
