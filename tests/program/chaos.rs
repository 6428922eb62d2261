//! The miner's half of the network on a real Docker Engine, while executors and the miner are killed and links are cut
//! at random: every job ends in one terminal status, the slots add up, and nothing is left on the machine.
//!
//! `PHALANX_TEST_CHAOS` says how many jobs; `PHALANX_TEST_SEED` repeats a run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use phalanx::base::rng::Rng;
use phalanx::base::shutdown::Shutdown;
use phalanx::identity::KeyPair;
use phalanx::net::http::client::HttpClient;
use phalanx::proc::docker::{Docker, labels};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::testkit::cutting::CuttingProxy;
use crate::testkit::engine::{self, IMAGE};
use crate::testkit::network::{ALICE, CHARLIE};
use crate::testkit::process::{Running, nothing_left, phalanx};
use crate::testkit::wait::{far, until, until_some};

/// Jobs of an everyday run.
const JOBS: usize = 16;

/// Jobs at a time; the miner has half as many executors.
const WAVE: usize = 8;

/// How long a job of this test may take with all that happens to it.
const JOB_TIME: Duration = Duration::from_secs(120);

/// A facilitator, a validator and a miner whose links go through proxies that cut.
struct Field {
    facilitator: Running,
    validator: Running,
    miner: Option<Running>,
    /// A key of this run's own, which names what it has at the engine.
    key: String,
    /// Where the miner listens, also after it was killed.
    address: SocketAddr,
    to_miner: CuttingProxy,
    to_executor: CuttingProxy,
    http: String,
    pages: String,
    folder: tempfile::TempDir,
    scratch: tempfile::TempDir,
}

fn announced(running: &mut Running) -> Value {
    serde_json::from_str(&running.line()).unwrap()
}

fn address(line: &Value, key: &str) -> SocketAddr {
    line[key].as_str().unwrap().parse().unwrap()
}

/// A port that was free a moment ago: the miner has to listen on it again after each kill.
pub fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Field {
    fn start() -> Self {
        let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = |name: &str| folder.path().join(name);
        let mut facilitator = phalanx(scratch.path());
        facilitator.args(["facilitator", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--validator", ALICE]);
        facilitator.args(["--user", CHARLIE, "--state-dir"]).arg(path("facilitator"));
        let mut facilitator = Running::start(&mut facilitator);
        let line = announced(&mut facilitator);
        let (url, http) = (format!("ws://{}/ws/v0/", address(&line, "listening")), address(&line, "http"));

        let key = format!("//Chaos{:016x}", Rng::from_entropy().next_u64());
        let hotkey = KeyPair::from_uri(&key).unwrap().ss58();
        let listen = free_address();
        let (to_miner, to_executor) = (CuttingProxy::start(listen), CuttingProxy::start(listen));
        let proxied = to_miner.address;
        let miners = format!("[[miner]]\nhotkey = \"{hotkey}\"\naddress = \"127.0.0.1\"\nport = {}\n", proxied.port());
        std::fs::write(path("miners.toml"), miners).unwrap();
        let mut validator = phalanx(scratch.path());
        validator.args(["validator", "--http", "127.0.0.1:0", "--trusted-signer", CHARLIE, "--facilitator", &url]);
        validator.arg("--miners").arg(path("miners.toml")).arg("--state-dir").arg(path("validator"));
        let mut validator = Running::start(validator.args(["--drain-time", "5s"]).env("PHALANX_KEY", "//Alice"));
        announced(&mut validator);
        let mut field = Self {
            facilitator,
            validator,
            miner: None,
            key,
            address: listen,
            to_miner,
            to_executor,
            http: format!("http://{http}"),
            pages: String::new(),
            folder,
            scratch,
        };
        field.start_miner();
        field
    }

    fn start_miner(&mut self) {
        let mut miner = phalanx(self.scratch.path());
        miner.args(["miner", "--validator", ALICE, "--runner", "docker", "--http", "127.0.0.1:0"]);
        miner.args(["--listen", &self.address.to_string()]);
        miner.args(["--executor-address", &format!("ws://{}", self.to_executor.address)]);
        miner.args(["--executors", &format!("always_on.test={}", WAVE / 2), "--drain-time", "5s", "--state-dir"]);
        miner.arg(self.folder.path().join("miner")).env("PHALANX_KEY", &self.key).env("RUST_LOG", "info");
        let mut miner = Running::start(&mut miner);
        self.pages = address(&announced(&mut miner), "http").to_string();
        self.miner = Some(miner);
    }

    fn kill_miner(&mut self) {
        let miner = self.miner.take().unwrap();
        miner.stop(Signal::KILL);
        self.start_miner();
    }

    /// The executors that live now.
    fn executors(&self) -> Vec<i32> {
        let ours = self.scratch.path().to_string_lossy().into_owned();
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        let read = |pid: i32, file: &str| {
            // A process may end while it is looked at.
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let executor =
            |pid: &i32| read(*pid, "cmdline").contains("phalanx executor") && read(*pid, "environ").contains(&ours);
        pids.filter(executor).collect()
    }

    /// Submits jobs and gives the process that follows them.
    fn submit(&self, wave: usize, jobs: usize) -> Running {
        let mut command = phalanx(self.scratch.path());
        command.args(["submit", "--facilitator", &self.http, "--target", ALICE, "--wait", "--json"]);
        for number in 0..jobs {
            let file = self.folder.path().join(format!("job-{wave}-{number}.json"));
            let job = serde_json::json!({
                "executor_class": "always_on.test",
                "docker_image": IMAGE,
                "args": ["sh", "-c", "echo begun; sleep 0.3; echo done"],
                "execution_time_limit": 20,
            });
            std::fs::write(&file, job.to_string()).unwrap();
            command.arg(file);
        }
        Running::start(command.env("PHALANX_KEY", "//Charlie"))
    }
}

pub fn status(pages: &str) -> Option<Value> {
    let client = HttpClient::new(Shutdown::new());
    client.get(&format!("http://{pages}/status.json"), &[], far()).ok()?.json().ok()
}

/// Containers and networks of this miner.
fn of_engine(hotkey: &str) -> Vec<String> {
    let containers = Docker::default().containers(labels::MINER, hotkey).unwrap();
    let filter = format!("label={}={hotkey}", labels::MINER);
    let networks = Command::new("docker").args(["network", "ls", "--quiet", "--filter", &filter]).output().unwrap();
    let networks = String::from_utf8(networks.stdout).unwrap();
    containers.into_iter().chain(networks.split_whitespace().map(str::to_owned)).collect()
}

#[test]
fn under_kills_and_cuts_every_job_ends_once_the_slots_add_up_and_nothing_is_left() {
    if !engine::ready() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let jobs = number("PHALANX_TEST_CHAOS").map_or(JOBS, |n| n as usize);
    let seed = number("PHALANX_TEST_SEED").unwrap_or_else(|| Rng::from_entropy().next_u64());
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let mut field = Field::start();
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let mut did: BTreeMap<&str, usize> = BTreeMap::new();
    let mut left = jobs;
    for wave in 0.. {
        if left == 0 {
            break;
        }
        let count = left.min(WAVE);
        left -= count;
        let submit = field.submit(wave, count);
        until("a job of the wave runs, or the wave is over", || {
            !field.executors().is_empty() || submit.ended_within(Duration::ZERO)
        });
        let what =
            ["an executor killed", "the miner killed", "a validator's link cut", "an executor's link cut", "calm"]
                [(rng.next_u64() % 5) as usize];
        *did.entry(what).or_default() += 1;
        let outage = Duration::from_millis(rng.next_u64() % 2000);
        match what {
            "an executor killed" => {
                let executors = field.executors();
                if let Some(pid) = executors.get((rng.next_u64() as usize) % executors.len().max(1)) {
                    // It may have ended by itself meanwhile.
                    let _ = kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL);
                }
            }
            "the miner killed" => field.kill_miner(),
            "a validator's link cut" => field.to_miner.cut_after(rng.next_u64() % 20_000, outage),
            "an executor's link cut" => field.to_executor.cut_after(rng.next_u64() % 5_000, outage),
            _ => {}
        }
        let until_end = Instant::now() + JOB_TIME;
        assert!(submit.ended_within(until_end - Instant::now()), "seed {seed}: after {what} the jobs do not end");
        let finished = submit.finish();
        let results: Vec<Value> = finished.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(results.len(), count, "seed {seed}: after {what}: {finished:?}");
        for result in results {
            let history: Vec<&str> =
                result["history"].as_array().unwrap().iter().map(|entry| entry["status"].as_str().unwrap()).collect();
            let terminal = |status: &&&str| ["completed", "failed", "horde_failed", "rejected"].contains(*status);
            let ended: Vec<_> = history.iter().filter(terminal).collect();
            assert_eq!(ended.len(), 1, "seed {seed}: after {what}: {result}");
            assert_eq!(history.last(), Some(ended[0]), "seed {seed}: after {what}: {result}");
            assert_ne!(*ended[0], "failed", "seed {seed}: no job is to blame, after {what}: {result}");
            *ends.entry((*ended[0]).to_owned()).or_default() += 1;
        }
        field.to_miner.leave();
        field.to_executor.leave();
    }
    println!("{jobs} jobs: {ends:?}; {did:?}");
    assert!(ends.get("completed").is_some_and(|count| *count > 0), "seed {seed}: {ends:?}");

    // All slots come back.
    let slots = until_some("all slots are free", || {
        let status = status(&field.pages)?;
        let slots = status["details"]["executors"]["always_on.test"].clone();
        (slots["free"] == slots["declared"]).then_some(slots)
    });
    assert_eq!(slots["declared"], WAVE / 2, "{slots}");
    let Field { facilitator, validator, miner, scratch, key, .. } = field;
    let hotkey = KeyPair::from_uri(&key).unwrap().ss58();
    assert_eq!(validator.stop(Signal::TERM).code, Some(0), "seed {seed}");
    let finished = miner.unwrap().stop(Signal::TERM);
    assert_eq!(finished.code, Some(0), "seed {seed}: {}", finished.stderr);
    assert_eq!(facilitator.stop(Signal::TERM).code, Some(0), "seed {seed}");
    assert_eq!(of_engine(&hotkey), [""; 0], "seed {seed}");
    nothing_left(scratch.path());
}
