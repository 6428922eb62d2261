//! The roles under a service manager: a stand-in that has its sockets, time limits and folders, and a real systemd in
//! namespaces of its own where the machine has one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use phalanx::base::shutdown::Shutdown;
use phalanx::net::http::HttpClient;
use rustix::process::Signal;
use serde_json::Value;

use crate::process::ALICE;
use crate::testkit::freezer::{self, Frozen, thread_of};
use crate::testkit::process::{Running, phalanx, run};
use crate::testkit::wait::{LONG, far, until, until_some};

const CHARLIE: &str = "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y";

/// What a service manager has of one service: the socket on which it is told things.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self { socket, folder }
    }

    /// Gives a service what systemd gives to it.
    fn dress(&self, command: &mut Command, watchdog: Duration) {
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
    }

    /// The fields of the next message.
    fn told(&self) -> BTreeMap<String, String> {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).expect("the service tells its manager something");
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        text.lines().map(|line| line.split_once('=').unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    /// All messages up to the first that has this in a field.
    fn until(&self, field: &str, value: &str) -> Vec<BTreeMap<String, String>> {
        let start = Instant::now();
        let mut all = Vec::new();
        while start.elapsed() < LONG {
            all.push(self.told());
            if all.last().unwrap().get(field).is_some_and(|known| known.contains(value)) {
                return all;
            }
        }
        panic!("never {field}={value}; the last of {} messages: {:?}", all.len(), all.last());
    }
}

/// The arguments of a role that needs nobody else.
pub fn arguments(role: &str) -> Vec<&'static str> {
    match role {
        "facilitator" => {
            vec!["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--validator", ALICE, "--user", CHARLIE]
        }
        "validator" => vec!["--facilitator", "ws://127.0.0.1:1/", "--dispatch", "stub", "--http", "127.0.0.1:0"],
        "worker" => vec!["--redis", "redis://127.0.0.1:1/0", "--stub-time", "0s", "--http", "127.0.0.1:0"],
        _ => vec![
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "--validator",
            ALICE,
            "--executors",
            "always_on.test=1",
            "--runner",
            "process",
        ],
    }
}

const ROLES: [&str; 3] = ["facilitator", "validator", "miner"];

/// A role, its manager, and where its pages are.
struct Service {
    role: Running,
    manager: Manager,
    pages: String,
    _scratch: tempfile::TempDir,
}

fn start(role: &str, watchdog: Duration) -> Service {
    let (manager, scratch) = (Manager::new(), tempfile::tempdir().unwrap());
    let mut command = phalanx(scratch.path());
    command.arg(role).args(arguments(role));
    if role != "worker" {
        command.arg("--state-dir").arg(manager.folder.path().join("state"));
    }
    if role != "facilitator" {
        command.env("PHALANX_KEY", if role == "miner" { "//Bob" } else { "//Alice" });
    }
    manager.dress(&mut command, watchdog);
    let mut role = Running::start(&mut command);
    let line: Value = serde_json::from_str(&role.line()).unwrap();
    let pages = format!("http://{}", line["http"].as_str().unwrap());
    Service { role, manager, pages, _scratch: scratch }
}

fn healthz(service: &Service) -> (u16, String) {
    let url = format!("{}/healthz", service.pages);
    let answer = HttpClient::new(Shutdown::new()).get(&url, &[], far()).unwrap();
    (answer.status, String::from_utf8(answer.body).unwrap())
}

#[test]
fn a_service_manager_is_told_of_start_reload_and_stop_and_given_signs_of_life() {
    for role in UNITS {
        let service = start(role, Duration::from_millis(300));
        let first = service.manager.told();
        assert_eq!(first.get("READY").map(String::as_str), Some("1"), "{role}: {first:?}");
        service.manager.until("WATCHDOG", "1");
        service.manager.until("WATCHDOG", "1");
        service.role.signal(Signal::HUP);
        let reloading = service.manager.until("RELOADING", "1").pop().unwrap();
        assert!(reloading["MONOTONIC_USEC"].parse::<u64>().unwrap() > 0, "{reloading:?}");
        service.manager.until("READY", "1");
        service.role.signal(Signal::TERM);
        let stopping = service.manager.until("STOPPING", "1").pop().unwrap();
        let asked: u64 = stopping["EXTEND_TIMEOUT_USEC"].parse().unwrap();
        assert_eq!(asked.div_ceil(1_000_000), stop_time(&unit(role)), "{role}: TimeoutStopSec of its unit");
        service.manager.until("STATUS", "stopping: ");
        let finished = service.role.finish();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    }
}

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

pub fn unit(role: &str) -> String {
    fs::read_to_string(packaging().join(format!("systemd/phalanx-{role}.service"))).unwrap()
}

/// `TimeoutStopSec` of a unit, in seconds.
pub fn stop_time(unit: &str) -> u64 {
    unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap().parse().unwrap()
}

/// Holds a thread of each role; what its service manager, its pages and its log then say.
fn hangs(held: [(&str, &str, &str); 3]) {
    let services = held.map(|(role, _, _)| start(role, Duration::from_secs(3)));
    for service in &services {
        service.manager.until("WATCHDOG", "1");
    }
    let frozen: Vec<_> = held
        .iter()
        .zip(&services)
        .map(|((_, thread, _), service)| {
            let id = service.role.id();
            Frozen::hold(&[until_some(thread, || thread_of(id, thread))])
        })
        .collect();
    for ((role, thread, part), service) in held.iter().zip(&services) {
        let until_stuck = service.manager.until("STATUS", "stuck: ");
        let stuck = until_stuck.last().unwrap();
        assert!(stuck["STATUS"].starts_with(&format!("stuck: {part}: should have made progress ")), "{stuck:?}");
        assert!(!stuck.contains_key("WATCHDOG"), "{stuck:?}");
        let (status, text) = healthz(service);
        assert_eq!(status, 503, "{role}, {thread}: {text}");
        assert!(text.starts_with(&format!("{part}: should have made progress ")), "{text}");
        let log = service.role.stderr();
        let said = format!("{part}: should have made progress ");
        let said = log.lines().find(|line| line.contains(&said));
        assert!(said.is_some_and(|line| line.contains(" ERROR ") && line.contains("gets no sign of life")), "{log}");
        assert!(log.contains(&format!("thread {thread}")), "all threads are listed: {log}");
    }
    drop(frozen);
    for service in services {
        let until_well = service.manager.until("STATUS", "running");
        let (well, stuck) = until_well.split_last().unwrap();
        assert!(well.contains_key("WATCHDOG"), "{well:?}");
        assert!(stuck.iter().all(|message| !message.contains_key("WATCHDOG")), "{stuck:?}");
        assert_eq!(healthz(&service), (200, "ok\n".to_owned()));
        let finished = service.role.stop(Signal::TERM);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    }
}

#[test]
fn a_router_store_or_timer_that_hangs_takes_the_signs_of_life_away_and_is_named() {
    if freezer::is_there() {
        hangs([("facilitator", "fac-route", "loop"), ("validator", "val-store", "store"), ("miner", "timer", "timer")]);
        hangs([("facilitator", "fac-store", "store"), ("validator", "timer", "timer"), ("miner", "min-route", "loop")]);
        hangs([
            ("facilitator", "fac-audit", "audit"),
            ("validator", "val-store", "store"),
            ("miner", "min-store", "store"),
        ]);
    }
}

#[test]
fn what_accepts_connections_or_checks_signatures_is_asked_while_it_is_idle() {
    if freezer::is_there() {
        hangs([
            ("facilitator", "fac-accept", "accept"),
            ("validator", "val-check-0", "checks"),
            ("miner", "min-accept", "accept"),
        ]);
    }
}

#[test]
fn a_stop_that_leaves_a_thread_behind_ends_with_4_and_names_it() {
    if !freezer::is_there() {
        return;
    }
    let service = start("facilitator", Duration::from_secs(3600));
    let frozen = Frozen::hold(&[until_some("fac-store", || thread_of(service.role.id(), "fac-store"))]);
    service.role.signal(Signal::TERM);
    until("the thread is given up", || service.role.stderr().contains("left behind: fac-store"));
    // A thread that is held is not even ended by the end of its process.
    drop(frozen);
    assert_eq!(service.role.finish().code, Some(4));
}

#[test]
fn the_watchdog_ends_a_process_whose_stop_hangs_with_4_and_names_its_threads() {
    if !freezer::is_there() {
        return;
    }
    let service = start("facilitator", Duration::from_secs(3600));
    let id = service.role.id();
    let store = Frozen::hold(&[until_some("fac-store", || thread_of(id, "fac-store"))]);
    service.role.signal(Signal::TERM);
    until("the stop has begun", || thread_of(id, "watchdog").is_some());
    let main = Frozen::hold(&[id]);
    until("the threads are named", || {
        let log = service.role.stderr();
        let said = log.lines().find(|line| line.contains("the stop did not end within 26s; still running: "));
        said.is_some_and(|line| line.contains("; main waits for ") && line.contains("; fac-store waits for "))
    });
    drop((store, main));
    let finished = service.role.finish();
    assert_eq!(finished.code, Some(4), "{}", finished.stderr);
}

/// Whether a program of systemd is here.
fn has_systemd(program: &str) -> bool {
    let there = Path::new(program).exists() && rustix::process::geteuid().is_root();
    assert!(there || std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none(), "there is no {program}, or no root");
    there
}

pub const UNITS: [&str; 4] = ["facilitator", "validator", "worker", "miner"];

#[test]
fn systemd_finds_no_mistake_in_the_units() {
    if !has_systemd("/usr/bin/systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for role in UNITS {
        let file = folder.path().join(format!("phalanx-{role}.service"));
        fs::write(&file, unit(role).replace("/usr/bin/phalanx", env!("CARGO_BIN_EXE_phalanx"))).unwrap();
        let mut command = Command::new("/usr/bin/systemd-analyze");
        let judged = run(command.args(["verify", "--man=no"]).arg(&file));
        let about_it: Vec<_> = judged.stderr.lines().filter(|line| line.contains("phalanx")).collect();
        // The engine's own unit may be missing where this is tested.
        let about_it: Vec<_> = about_it.into_iter().filter(|line| !line.contains("docker.service")).collect();
        assert!(about_it.is_empty(), "{role}: {about_it:#?}");
    }
}

/// A systemd that is process 1 of its own namespaces, with our units; ended with all it has started when dropped.
struct Systemd {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Systemd {
    /// Starts the units of these roles. As only the test's own files are there, each has a drop-in for what an
    /// administrator would have made: user, key, settings.
    fn start(roles: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let units = folder.path().join("units");
        let file = |name: &str, text: &str| {
            let path = units.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let bare = "[Unit]\nDefaultDependencies=no\n";
        for target in ["network-online", "multi-user", "basic", "sysinit", "shutdown"] {
            file(&format!("{target}.target"), bare);
        }
        let wanted = roles.iter().map(|role| format!("{}.service", name(role))).collect::<Vec<_>>().join(" ");
        file("default.target", &format!("{bare}Wants={wanted}\n"));
        for role in roles {
            file(&format!("{}.service", name(role)), &unit(role));
            let key = match *role {
                "facilitator" => "",
                _ => "LoadCredential=\nLoadCredential=hotkey:/run/phalanx-test/hotkey\n",
            };
            let user = if *role == "miner" { "root" } else { "nobody" };
            let of_test = format!(
                "{bare}[Service]\nUser={user}\nGroup=\nSupplementaryGroups=\n{key}WatchdogSec=6\nRestartSec=100ms\n\
                 Environment=PHALANX_CONFIG=/run/phalanx-test/settings\n\
                 ExecStart=\nExecStart=/run/phalanx-test/phalanx {role} {}\n",
                arguments(role).join(" ")
            );
            file(&format!("{}.service.d/test.conf", name(role)), &of_test);
        }
        let scratch = tempfile::tempdir().unwrap();
        let key = folder.path().join("hotkey");
        let made = run(phalanx(scratch.path()).args(["key", "generate", "--out"]).arg(&key));
        assert_eq!(made.code, Some(0), "{made:?}");
        let script = format!(
            "mount --make-rshared / && mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && \
             mkdir /run/phalanx-test && \
             cp {} {}/hotkey /run/phalanx-test/ && touch /run/phalanx-test/settings && chmod 755 /run/phalanx-test && \
             exec /lib/systemd/systemd --system --unit=default.target --show-status=no",
            env!("CARGO_BIN_EXE_phalanx"),
            folder.path().display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]);
        command.args(["sh", "-c", &script]).env("container", "phalanx-test").env("SYSTEMD_UNIT_PATH", &units);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, _folder: folder }
    }

    /// The process that is systemd.
    fn init(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let found = || fs::read_to_string(&children).ok()?.split(' ').next()?.parse().ok();
        until_some("systemd runs", found)
    }

    /// Runs `systemctl` inside.
    fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--pid", "--target", &self.init().to_string(), "systemctl"]).args(arguments);
        let finished = run(&mut command);
        finished.stdout + &finished.stderr
    }

    fn shown(&self, role: &str) -> BTreeMap<String, String> {
        let wanted = "ActiveState,SubState,StatusText,Result,NRestarts,ExecMainStatus,ExecMainPID";
        let text = self.ctl(&["show", &name(role), "-p", wanted]);
        let fields = text.lines().filter_map(|line| line.split_once('='));
        fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Waits until a service is so.
    fn until(&self, role: &str, field: &str, value: &str) -> BTreeMap<String, String> {
        let mut last = BTreeMap::new();
        let is_so = |known: &BTreeMap<String, String>| known.get(field).is_some_and(|text| text.starts_with(value));
        let start = Instant::now();
        while !is_so(&last) {
            assert!(
                start.elapsed() < LONG,
                "{role}: never {field}={value}: {last:?} {}",
                self.ctl(&["status", &name(role)])
            );
            last = self.shown(role);
        }
        last
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // With process 1 all of its namespace ends.
        let init = rustix::process::Pid::from_raw(self.init() as i32).unwrap();
        let _ended = rustix::process::kill_process(init, Signal::KILL);
        let _ = self.child.wait();
        for controller in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            for role in UNITS {
                // Most have none of it.
                let _left = fs::remove_dir(controller.path().join(format!("system.slice/{}.service", name(role))));
            }
        }
    }
}

/// The name of a role's unit. The services of all systemds of a machine share their control groups, so that of the test
/// has a name of its own.
fn name(role: &str) -> String {
    format!("phalanx-test-{}-{role}", std::process::id())
}

#[test]
fn the_units_run_under_systemd_with_their_hardening_reload_and_stop() {
    if !has_systemd("/lib/systemd/systemd") {
        return;
    }
    let systemd = Systemd::start(&ROLES);
    for role in ROLES {
        systemd.until(role, "ActiveState", "active");
        systemd.until(role, "StatusText", "running");
        let pid = systemd.shown(role)["ExecMainPID"].clone();
        assert_eq!(systemd.ctl(&["reload", &name(role)]), "");
        assert_eq!(systemd.ctl(&["stop", &name(role)]), "");
        let shown = systemd.shown(role);
        let seen = ["ActiveState", "Result", "ExecMainStatus", "NRestarts", "ExecMainPID"].map(|name| &*shown[name]);
        assert_eq!(seen, ["inactive", "success", "0", "0", &pid], "{role}: {shown:?}");
    }
}

#[test]
fn systemd_restarts_a_role_whose_loop_hangs() {
    if !has_systemd("/lib/systemd/systemd") || !freezer::is_there() {
        return;
    }
    let systemd = Systemd::start(&["facilitator"]);
    systemd.until("facilitator", "StatusText", "running");
    let named = |wanted: &str| {
        // Numbers of processes inside are others than here.
        let children = format!("/proc/{0}/task/{0}/children", systemd.init());
        let children = fs::read_to_string(children).ok()?;
        children.split_whitespace().find_map(|child| thread_of(child.parse().ok()?, wanted))
    };
    let frozen = Frozen::hold(&[until_some("fac-route", || named("fac-route"))]);
    systemd.until("facilitator", "StatusText", "stuck: loop: ");
    systemd.until("facilitator", "Result", "watchdog");
    drop(frozen);
    systemd.until("facilitator", "NRestarts", "1");
    systemd.until("facilitator", "StatusText", "running");
}
