//! Whoever can reach a port knocks at it in every bad way, from addresses of its own, while an honest client of another
//! address asks each 100 ms: it is served within a second in the median, within three at the worst, and the memory of
//! the victim is bounded. The real binary, each role a process of its own.

#[path = "../testkit/mod.rs"]
mod testkit;

mod attacks;
mod flags;
mod honest;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, Thread, spawn};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::Value;

use attacks::{ATTACKS, Attack};
use honest::Honest;
use testkit::network::{ALICE, BOB, CHARLIE};
use testkit::process::{Running, nothing_left, phalanx};
use testkit::wait::far;

/// The last numbers of the addresses that attack; the honest one is 127.0.0.1.
const STRANGERS: [u8; 3] = [2, 3, 4];

/// How long each attack goes on.
const TIME: Duration = Duration::from_millis(1200);

/// How long the honest one waits in the median, and at the worst, on a machine that has nothing else to do.
const MEDIAN: Duration = Duration::from_secs(1);
const WORST: Duration = Duration::from_secs(3);

/// On one that has, by so many times as long more as one question takes while there are no strangers.
const QUIET: u32 = 10;

/// By how much a victim may grow, in MiB: a thousand connections with two threads each are some 60, and the allocator
/// keeps as much.
const GROWTH: u64 = 192;

/// A role as a process, and the ports that it has.
struct Role {
    name: &'static str,
    running: Running,
    listen: Option<SocketAddr>,
    http: SocketAddr,
}

impl Role {
    fn start(name: &'static str, folder: &Path, scratch: &Path, settings: impl FnOnce(&mut Command)) -> Self {
        let mut command = phalanx(scratch);
        command.args([name, "--http", "127.0.0.1:0", "--log-format", "text"]).env("RUST_LOG", "warn");
        if name != "worker" {
            command.arg("--state-dir").arg(folder.join(name));
        }
        settings(&mut command);
        let mut running = Running::start(&mut command);
        let line: Value = serde_json::from_str(&running.line()).unwrap();
        let address = |key: &str| line[key].as_str().map(|address| address.parse().unwrap());
        Self { name, listen: address("listening"), http: address("http").unwrap(), running }
    }

    /// Its resident memory in MiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() >> 10
    }

    fn ports(&self) -> Vec<(&'static str, SocketAddr, Honest)> {
        let mut ports = vec![("--http", self.http, Honest::Reader)];
        if let Some(listen) = self.listen {
            let honest = if self.name == "miner" { Honest::OfMiner } else { Honest::OfFacilitator };
            ports.push(("--listen", listen, honest));
        }
        ports
    }
}

/// The strangers of one attack on one port, who go on until the end.
fn strangers(attack: &'static Attack, address: SocketAddr, is_http: bool, end: &Shutdown) -> Vec<Thread<()>> {
    let begin = |last: &u8| {
        let (last, end) = (*last, end.clone());
        spawn(format!("t-stranger-{last}"), Kick::dropped("the end of the attack"), move || {
            (attack.run)(last, address, is_http, &end);
        })
    };
    STRANGERS.iter().map(begin).collect()
}

/// One attack on all ports of a role at once.
fn attack(role: &Role, attack: &'static Attack) {
    let (end, before) = (Shutdown::new(), role.memory());
    let mut asking = Vec::new();
    let mut knocking = Vec::new();
    for (port, address, honest) in role.ports() {
        let stop = end.clone();
        let quiet = honest.quietly(address);
        let ask = spawn("t-honest", Kick::dropped("the end of the attack"), move || honest.ask_until(address, &stop));
        asking.push((port, quiet, ask));
    }
    for (port, address, _) in role.ports() {
        knocking.extend(strangers(attack, address, port == "--http", &end));
    }
    end.wait(TIME);
    let after = role.memory();
    end.cancel();
    for stranger in knocking {
        stranger.join_by(far()).unwrap();
    }
    for (port, quiet, asking) in asking {
        let mut waits = asking.join_by(far()).unwrap();
        waits.sort_unstable();
        let (median, worst) = (waits[waits.len() / 2], waits[waits.len() - 1]);
        let (name, what, asked) = (role.name, attack.name, waits.len());
        println!("| {name} {port} | {what} | {asked} | {median:.0?} | {worst:.0?} | {before} → {after} MiB |");
        let more = QUIET * quiet;
        assert!(
            median < MEDIAN + more && worst < WORST + more,
            "{name} {port}, {what}: {median:?}, {worst:?}, {quiet:?}"
        );
    }
    assert!(after < before + GROWTH, "{}, {}: {before} → {after} MiB", role.name, attack.name);
}

#[test]
fn strangers_take_nothing_away_from_the_honest() {
    let soft = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: soft.maximum, ..soft }).unwrap();
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |name, settings: &dyn Fn(&mut Command)| Role::start(name, folder.path(), scratch.path(), settings);
    let dave = honest::key().public().to_ss58();
    let validators = ["--validator", ALICE, "--validator", &dave];
    let facilitator = start("facilitator", &|command| {
        command.args(["--listen", "127.0.0.1:0", "--user", CHARLIE]).args(validators);
    });
    let miner = start("miner", &|command| {
        command.args(["--listen", "127.0.0.1:0", "--key", "//Bob", "--runner", "process"]).args(validators);
        command.args(["--executors", "always_on.test=1"]);
    });
    let miners = folder.path().join("miners.toml");
    let port = miner.listen.unwrap().port();
    let list = format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"127.0.0.1\"\nport = {port}\n");
    std::fs::write(&miners, list).unwrap();
    let validator = start("validator", &|command| {
        let url = format!("ws://{}/ws/v0/", facilitator.listen.unwrap());
        command.args(["--facilitator", &url, "--key", "//Alice", "--miners"]).arg(&miners);
    });
    let mut roles = vec![facilitator, miner, validator];
    #[cfg(feature = "celery")]
    let redis = testkit::redis::RedisServer::start();
    #[cfg(feature = "celery")]
    if let Some(redis) = &redis {
        let url = format!("redis://127.0.0.1:{}/0", redis.port());
        roles.push(start("worker", &|command| {
            command.args(["--redis", &url, "--key", "//Alice", "--stub-time", "0s", "--name", "phalanx@strangers"]);
        }));
    }
    println!("| port | attack | asked | median | slowest | memory |\n| --- | --- | --- | --- | --- | --- |");
    for role in &roles {
        for kind in &ATTACKS {
            attack(role, kind);
        }
    }
    // The last first: who is connected to others goes before them.
    for role in roles.into_iter().rev() {
        let finished = role.running.stop(Signal::TERM);
        assert_eq!(finished.code, Some(0), "{}: {}", role.name, finished.stderr);
        assert!(!finished.stderr.contains("panicked"), "{}: {}", role.name, finished.stderr);
        assert!(finished.stderr.len() < 1 << 20, "{}: {} bytes of log", role.name, finished.stderr.len());
    }
    nothing_left(scratch.path());
}
