//! A Docker Engine of a test's own, on its own socket and in its own folder, so that it can be stopped, killed and
//! started again while jobs run. It takes root, and `dockerd` on the machine.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::engine::{IMAGE, StandIn, docker, ready};
use super::wait::until;

/// The engine; dropping it stops it and everything that runs on it.
pub struct OwnEngine {
    folder: tempfile::TempDir,
    daemon: Child,
    options: Vec<OsString>,
}

impl OwnEngine {
    /// Starts one that has the test image. `live_restore`: its containers outlive it. `None`, loudly, where that is not
    /// possible.
    pub fn start(live_restore: bool) -> Option<Self> {
        let engine = Self::start_with(live_restore, &[])?;
        until("the engine answers", || engine.docker(&["version"]).is_ok());
        let archive = engine.folder.path().join("image.tar");
        docker(&["save", "--output", archive.to_str().unwrap(), IMAGE]).unwrap();
        engine.docker(&["load", "--input", archive.to_str().unwrap()]).unwrap();
        Some(engine)
    }

    /// Starts one with no image and further options. It may not listen yet.
    pub fn start_with(live_restore: bool, options: &[OsString]) -> Option<Self> {
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
        // Where it shares a containerd with the machine's engine, it leaves the other's containers alone.
        let name = format!("phalanx-test-{}", uuid::Uuid::new_v4().simple());
        let spaces =
            [format!("--containerd-namespace={name}"), format!("--containerd-plugins-namespace={name}-plugins")];
        let options: Vec<OsString> = spaces.into_iter().map(OsString::from).chain(options.iter().cloned()).collect();
        let daemon = Self::daemon(&folder, &options);
        Some(Self { folder, daemon, options })
    }

    fn daemon(folder: &tempfile::TempDir, options: &[OsString]) -> Child {
        let path = |name: &str| folder.path().join(name);
        let log = fs::OpenOptions::new().create(true).append(true).open(path("log")).unwrap();
        let mut command = Command::new("dockerd");
        command.arg("--config-file").arg(path("daemon.json")).arg("--data-root").arg(path("data"));
        command.arg("--exec-root").arg(path("exec")).arg("--pidfile").arg(path("pid"));
        command.arg("--host").arg(format!("unix://{}", path("sock").display())).args(options);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    /// What it has written so far; it lives.
    pub fn log(&mut self) -> String {
        let said = fs::read_to_string(self.folder.path().join("log")).unwrap();
        assert!(self.daemon.try_wait().unwrap().is_none(), "{said}");
        said
    }

    /// Its address, as of `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Runs the real `docker` on it.
    pub fn docker(&self, args: &[&str]) -> Result<String, String> {
        docker(&[&["--host", &self.host()], args].concat())
    }

    /// A `docker` on it that does as told.
    pub fn stand_in(&self) -> StandIn {
        StandIn::on(Some(self.host()))
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
        self.daemon = Self::daemon(&self.folder, &self.options);
        until("the engine answers", || self.docker(&["version"]).is_ok());
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

    /// Its processes and those of its containers, which are children of what it has started.
    fn tree(&self) -> Vec<i32> {
        let parent = |pid: i32| -> Option<i32> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
        };
        let numbers = fs::read_dir("/proc").unwrap().flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let parents: Vec<(i32, i32)> = numbers.filter_map(|pid| Some((pid, parent(pid)?))).collect();
        let mut tree = self.processes("");
        let mut at = 0;
        while let Some(pid) = tree.get(at).copied() {
            let children = parents.iter().filter(|(child, parent)| *parent == pid && !tree.contains(child));
            let children: Vec<i32> = children.map(|(child, _)| *child).collect();
            tree.extend(children);
            at += 1;
        }
        tree
    }

    /// Removes its containers; says which there were.
    fn remove_containers(&self) -> String {
        let left = self.docker(&["ps", "--all", "--quiet"]).unwrap_or_default();
        let ids: Vec<&str> = left.split_whitespace().collect();
        if !ids.is_empty() {
            drop(self.docker(&[&["rm", "--force", "--volumes"], &ids[..]].concat()));
        }
        left
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        let is_well = !std::thread::panicking();
        if !is_well {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("the engine's log ends so:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        let lives = matches!(self.daemon.try_wait(), Ok(None));
        let left = if lives { self.remove_containers() } else { String::new() };
        if is_well {
            self.end(Signal::TERM);
            until("its processes have gone", || self.processes("").is_empty());
        } else {
            self.tree().into_iter().filter_map(Pid::from_raw).for_each(|left| {
                let _ = kill_process(left, Signal::KILL);
            });
            let _ = self.daemon.wait();
        }
        // It mounts its folder onto itself, and the file systems of containers in it.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in ours.filter(|mount| Path::new(mount).starts_with(self.folder.path())) {
            drop(Command::new("umount").args(["--lazy", mount]).stderr(Stdio::null()).status());
        }
        let removed = fs::remove_dir_all(self.folder.path().join("data"));
        assert!(!is_well || removed.is_ok() && left.is_empty(), "left are containers {left:?} and {removed:?}");
    }
}
