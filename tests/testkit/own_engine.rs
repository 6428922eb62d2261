//! A Docker Engine of a test's own, on its own socket and in its own folder, so that it can be stopped, killed and
//! started again while jobs run. It takes root, and `dockerd` on the machine.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::engine::{IMAGE, StandIn, docker, ready};
use super::wait::until;

/// The engine; dropping it stops it and everything that runs on it.
pub struct OwnEngine {
    folder: tempfile::TempDir,
    daemon: Child,
}

impl OwnEngine {
    /// Starts one that has the test image. `live_restore`: its containers outlive it. `None`, loudly, where that is not
    /// possible.
    pub fn start(live_restore: bool) -> Option<Self> {
        if !ready() {
            return None;
        }
        let dockerd = Command::new("dockerd").arg("--version").stdout(Stdio::null()).status();
        if !rustix::process::geteuid().is_root() || dockerd.is_err() {
            let why = "an engine of one's own takes root and dockerd";
            assert!(std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"), "{why}");
            // Not with a macro, whose output the test harness keeps to itself.
            std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        // A file of its own, because that of the machine's engine is read otherwise. No network, so that nothing of the
        // machine is changed.
        let settings = serde_json::json!({
            "live-restore": live_restore, "bridge": "none", "iptables": false, "ip6tables": false,
            "storage-driver": "vfs", "shutdown-timeout": 5,
        });
        fs::write(folder.path().join("daemon.json"), settings.to_string()).unwrap();
        let daemon = Self::daemon(&folder);
        let engine = Self { folder, daemon };
        engine.wait();
        let archive = engine.folder.path().join("image.tar");
        docker(&["save", "--output", archive.to_str().unwrap(), IMAGE]).unwrap();
        engine.docker(&["load", "--input", archive.to_str().unwrap()]).unwrap();
        Some(engine)
    }

    fn daemon(folder: &tempfile::TempDir) -> Child {
        let path = |name: &str| folder.path().join(name);
        let log = fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap();
        let mut command = Command::new("dockerd");
        command.arg("--config-file").arg(path("daemon.json")).arg("--data-root").arg(path("data"));
        command.arg("--exec-root").arg(path("exec")).arg("--pidfile").arg(path("pid"));
        command.arg("--host").arg(format!("unix://{}", path("sock").display()));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Its address, as of `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.folder.path().join("sock").display())
    }

    /// Runs the real `docker` on it.
    pub fn docker(&self, args: &[&str]) -> Result<String, String> {
        docker(&[&["--host", &self.host()], args].concat())
    }

    /// A `docker` on it that does as told.
    pub fn stand_in(&self) -> StandIn {
        StandIn::on(Some(self.host()))
    }

    fn wait(&self) {
        until("the engine answers", || self.docker(&["version"]).is_ok());
    }

    /// Ends it by a signal.
    pub fn end(&mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.daemon), signal).unwrap();
        self.daemon.wait().unwrap();
        // Its containerd dies with it. Where nobody reaps that, its number would be taken for one that lives.
        until("its containerd has gone", || self.processes("containerd").is_empty());
        let number = self.folder.path().join("exec/containerd/containerd.pid");
        if number.exists() {
            fs::remove_file(number).unwrap();
        }
    }

    /// Starts it again.
    pub fn start_again(&mut self) {
        self.daemon = Self::daemon(&self.folder);
        self.wait();
    }

    /// Its processes, those whose program has such a name or all; those of its containers outlive it.
    fn processes(&self, program: &str) -> Vec<i32> {
        let needle = self.folder.path().to_str().unwrap().as_bytes();
        let of_ours = |entry: fs::DirEntry| {
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let name = command.split(|byte| *byte == 0).next()?.rsplit(|byte| *byte == b'/').next()?;
            let named = program.is_empty() || name == program.as_bytes();
            let ours = named && command.windows(needle.len()).any(|window| window == needle);
            ours.then(|| entry.file_name().to_str()?.parse().ok())?
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(of_ours).collect()
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("the engine's log ends so:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
            self.processes("").into_iter().filter_map(Pid::from_raw).for_each(|left| {
                let _ = kill_process(left, Signal::KILL);
            });
            let _ = self.daemon.wait();
            drop(Command::new("umount").arg(self.folder.path().join("data")).stderr(Stdio::null()).status());
            return;
        }
        let left = self.docker(&["ps", "--all", "--quiet"]).unwrap_or_default();
        let ids: Vec<&str> = left.split_whitespace().collect();
        if !ids.is_empty() {
            drop(self.docker(&[&["rm", "--force", "--volumes"], &ids[..]].concat()));
        }
        self.end(Signal::TERM);
        until("its processes have gone", || self.processes("").is_empty());
        let data: PathBuf = self.folder.path().join("data");
        // It mounts its folder onto itself.
        drop(Command::new("umount").arg(&data).stderr(Stdio::null()).status());
        fs::remove_dir_all(&data).unwrap();
        assert!(ids.is_empty(), "containers are left: {left}");
    }
}
