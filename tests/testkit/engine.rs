//! The Docker Engine of the machine, an image for it, and a `docker` in front of the real one that misbehaves as told.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use phalanx::base::shutdown::Shutdown;
use phalanx::proc::docker::Docker;

use super::wait::far;

/// An image of a static busybox.
pub const IMAGE: &str = "phalanx-test-busybox:1";

/// Runs the real `docker`; what it prints, or what it complains.
pub fn docker(args: &[&str]) -> Result<String, String> {
    let output = Command::new("docker").args(args).output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Makes the image, unless an earlier run has; it stays, because importing it again would leave the old one without a
/// name.
fn image() -> Result<(), String> {
    Docker::default().version(&Shutdown::new(), far()).map_err(|error| error.to_string())?;
    if docker(&["image", "inspect", IMAGE]).is_ok() {
        return Ok(());
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.ok_or("there is no static busybox (apt-get install busybox-static)")?;
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy(busybox, bin.join("busybox")).unwrap();
    for applet in
        ["sh", "echo", "cat", "sleep", "id", "ls", "ip", "env", "head", "touch", "mkdir", "chmod", "true", "wc"]
    {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    let tar = folder.path().join("root.tar");
    let tarred = Command::new("tar").args(["-C", folder.path().to_str().unwrap(), "-cf"]).arg(&tar).arg("bin").status();
    assert!(tarred.unwrap().success());
    docker(&["import", "--change", "ENV PATH=/bin", tar.to_str().unwrap(), IMAGE]).map(drop)
}

/// Whether the engine and the image are there; says loudly if not.
pub fn ready() -> bool {
    static READY: OnceLock<Result<(), String>> = OnceLock::new();
    let Err(why) = READY.get_or_init(image) else { return true };
    assert!(std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"), "docker tests cannot run: {why}");
    // Not with a macro, whose output the test harness keeps to itself.
    let text = format!("SKIPPED: docker tests cannot run: {why}\n");
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    false
}

/// The numbers of the containers and networks with this label and value.
pub fn left(label: &str, value: &str) -> Vec<String> {
    let filter = format!("label={label}={value}");
    let list = |args: &[&str]| docker(&[args, &["--quiet", "--filter", &filter]].concat()).unwrap();
    let (containers, networks) = (list(&["ps", "--all"]), list(&["network", "ls"]));
    containers.lines().chain(networks.lines()).map(str::to_owned).collect()
}

/// A `docker` that hands on to the real one, except for commands that have a script here.
///
/// A script is of a POSIX shell. `$real` in it is the real program, `$folder` is a folder for what it keeps, and its
/// arguments are those of the command. Each call is noted before it is answered.
pub struct StandIn {
    folder: tempfile::TempDir,
    /// The engine's address, if it is not that of the machine.
    host: Option<String>,
}

impl StandIn {
    pub fn new() -> Self {
        Self::on(None)
    }

    /// The same in front of the engine there.
    pub fn on(host: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::create_dir(folder.path().join("over")).unwrap();
        let stand_in = Self { folder, host };
        // A name of one word, or of two as `image inspect`.
        let pick = "echo \"$*\" >>\"$folder/calls\"\n\
                    for name in \"$1-$2\" \"$1\"; do\n\
                    [ -x \"$folder/over/$name\" ] && exec \"$folder/over/$name\" \"$@\"\n\
                    done\nexec \"$real\" \"$@\"";
        stand_in.write(&stand_in.program(), pick);
        stand_in
    }

    /// The program.
    pub fn program(&self) -> PathBuf {
        self.folder.path().join("bin/docker")
    }

    /// A `PATH` on which it comes first.
    pub fn path(&self) -> OsString {
        let ours = self.folder.path().join("bin");
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::join_paths([ours].into_iter().chain(std::env::split_paths(&path))).unwrap()
    }

    /// A client of it.
    pub fn client(&self) -> Docker {
        Docker { program: self.program(), ..Docker::default() }
    }

    /// A script's `$folder`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Another program in that folder.
    pub fn tool(&self, name: &str, script: &str) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        self.write(&path, script);
    }

    /// From now on the command, as `pull` or `image-inspect`, is this script.
    pub fn say(&self, command: &str, script: &str) {
        self.write(&self.folder.path().join("over").join(command), script);
    }

    /// The command is the real one again.
    pub fn relent(&self, command: &str) {
        fs::remove_file(self.folder.path().join("over").join(command)).unwrap();
    }

    /// The calls that begin with these words.
    pub fn calls(&self, command: &str) -> Vec<String> {
        let calls = fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default();
        let calls = calls.lines().filter(|call| *call == command || call.starts_with(&format!("{command} ")));
        calls.map(str::to_owned).collect()
    }

    /// The text of a file of a script's `$folder`; empty if there is none.
    pub fn file(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// Writes a file of a script's `$folder`.
    pub fn keep(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn write(&self, path: &Path, script: &str) {
        let real = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|folder| folder.join("docker"))
            .find(|path| path.is_file())
            .unwrap_or_else(|| "/bin/false".into());
        let host = self.host.as_ref().map(|host| format!("export DOCKER_HOST={host}\n")).unwrap_or_default();
        let (real, folder) = (real.display(), self.folder.path().display());
        let text = format!("#!/bin/sh\n{host}real={real}\nfolder={folder}\n{script}\n");
        // Written beside and renamed, so that no call meets half of it, nor a file that is still open.
        let beside = path.with_extension("new");
        fs::write(&beside, text).unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&beside, path).unwrap();
    }
}
