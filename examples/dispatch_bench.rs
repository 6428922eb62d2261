//! Jobs on other machines beside jobs in the validator's own process: jobs a second and latency of `--dispatch celery`
//! with 1, 2 and 8 workers, each a process, beside `--dispatch workers`, in rounds in which each has its turn.
//!
//! A scripted facilitator and a scripted miner that answers at once are in this process; validator and workers are the
//! `phalanx` binary beside this example, and Redis is a real one. Run it with `make bench/dispatch`.
//!
//! `dispatch_bench [--jobs N] [--at-once N] [--rounds N]`; needs redis-server.

#[allow(dead_code)] // What the tests have, of which a part is enough.
#[path = "../tests/testkit/redis.rs"]
mod redis_server;
#[allow(dead_code)]
#[path = "../tests/testkit/roles.rs"]
mod roles;
#[allow(dead_code)]
#[path = "../tests/testkit/scripted_facilitator.rs"]
mod scripted_facilitator;
#[allow(dead_code)]
#[path = "../tests/testkit/threads.rs"]
mod threads;
#[allow(dead_code)]
#[path = "../tests/testkit/wait.rs"]
mod wait;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::protocol::{
    V0AcceptJobRequest, V0ExecutionDoneRequest, V0ExecutorReadyRequest, V0JobFinishedRequest, V0VolumesReadyRequest,
    V2JobRequest, ValidatorToMiner,
};
use phalanx::transport::ws::WsListener;
use redis_server::RedisServer;
use roles::{FakeMiner, Script, World};
use rustix::process::{Pid, Signal, kill_process};
use scripted_facilitator::{Plan, Reply, ScriptedFacilitator, key};

/// Jobs before the clock runs: every worker is there then, with its connections.
const WARM_UP: usize = 100;

/// Jobs at a time that each role takes: more than there are, because a job that has ended at its user holds its place
/// for a moment longer.
const WORKERS: usize = 2 * WARM_UP;

/// Jobs one after the other, for the latency of one that is alone.
const ALONE: usize = 200;

/// Who runs the jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dispatch {
    Here,
    Celery(usize),
}

const ALL: [Dispatch; 4] = [Dispatch::Here, Dispatch::Celery(1), Dispatch::Celery(2), Dispatch::Celery(8)];

impl std::fmt::Display for Dispatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here => f.pad("in the process"),
            Self::Celery(1) => f.pad("celery, 1 worker"),
            Self::Celery(workers) => f.pad(&format!("celery, {workers} workers")),
        }
    }
}

/// What one turn has measured.
struct Measured {
    /// With many at once.
    rate: f64,
    loaded: Vec<Duration>,
    /// One after the other.
    alone: Vec<Duration>,
}

/// A process that is ended as an operator would when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

fn binary() -> PathBuf {
    let example = std::env::current_exe().expect("the system knows this program");
    let folder = example.parent().and_then(|folder| folder.parent()).expect("examples lie two folders down");
    folder.join("phalanx")
}

/// A miner that does everything right, at once.
fn good() -> Script {
    Arc::new(|session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            session.say(V0AcceptJobRequest { job_uuid: initial.job_uuid.clone() });
            session.say(V0ExecutorReadyRequest { job_uuid: initial.job_uuid, executor_token: None });
        }
        ValidatorToMiner::V0JobRequest(request) => {
            session.say(V0VolumesReadyRequest { job_uuid: request.job_uuid.clone() });
            session.say(V0ExecutionDoneRequest { job_uuid: request.job_uuid.clone() });
            session.say(V0JobFinishedRequest {
                job_uuid: request.job_uuid,
                docker_process_stdout: String::new(),
                docker_process_stderr: String::new(),
                artifacts: None,
                upload_results: None,
            });
        }
        _ => {}
    })
}

/// When each job was submitted, and how long each took that has ended.
#[derive(Default)]
struct Times {
    submitted: HashMap<String, Instant>,
    took: Vec<Duration>,
}

/// Submits jobs, so many at once, until all have ended; gives how long each took.
fn drive(
    facilitator: &ScriptedFacilitator,
    times: &Mutex<Times>,
    jobs: usize,
    at_once: usize,
) -> (Vec<Duration>, Duration) {
    let user = key("//User");
    let jobs: Vec<V2JobRequest> = (0..jobs).map(|_| roles::job(&user)).collect();
    let (before, count) = (facilitator.state().ended, jobs.len());
    let start = Instant::now();
    for (n, job) in jobs.into_iter().enumerate() {
        facilitator.wait("a job ends", |state| state.ended - before + at_once > n);
        times.lock().expect("no panic").submitted.insert(job.uuid.clone(), Instant::now());
        facilitator.submit(job);
    }
    facilitator.wait("all jobs end", |state| state.ended - before == count);
    let all = start.elapsed();
    let mut took = std::mem::take(&mut times.lock().expect("no panic").took);
    took.sort();
    (took, all)
}

/// One turn: everything is started anew, and stopped.
fn turn(dispatch: Dispatch, jobs: usize, at_once: usize) -> Measured {
    let redis = RedisServer::start().expect("redis-server is installed");
    let world = World::new();
    let times: Arc<Mutex<Times>> = Arc::default();
    let noted = times.clone();
    let plan = Plan {
        update: Box::new(move |update, _| {
            if update.status.is_terminal() {
                assert_eq!(update.status, phalanx::protocol::JobStatus::Completed, "{:?}", update.metadata);
                let mut times = noted.lock().expect("no panic");
                let submitted = times.submitted.remove(&update.uuid);
                times.took.extend(submitted.map(|at| at.elapsed()));
            }
            Reply::Store
        }),
        remembers: 1000,
        ..Plan::default()
    };
    let listener = WsListener::bind("127.0.0.1:0", None).expect("there is a port");
    let facilitator = ScriptedFacilitator::start(listener, world.timer(), plan);
    let listener = WsListener::bind("127.0.0.1:0", None).expect("there is a port");
    let port = listener.local_addr().port();
    let miner = FakeMiner::start_on(&world, Box::new(listener), 1000, good());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let miners = folder.path().join("miners.toml");
    let text = format!("[[miner]]\nhotkey = \"{}\"\naddress = \"127.0.0.1\"\nport = {port}\n", key("//Miner").ss58());
    std::fs::write(&miners, text).expect("the folder takes a file");

    let mut roles = vec![validator(dispatch, &facilitator, &redis, folder.path())];
    if let Dispatch::Celery(workers) = dispatch {
        roles.extend((0..workers).map(|n| worker(n, &redis, folder.path())));
    }
    drive(&facilitator, &times, WARM_UP, WARM_UP);
    let (alone, _) = drive(&facilitator, &times, ALONE, 1);
    let (loaded, all) = drive(&facilitator, &times, jobs, at_once);
    drop(roles);
    facilitator.stop();
    miner.stop();
    drop(redis);
    Measured { rate: jobs as f64 / all.as_secs_f64(), loaded, alone }
}

fn role(name: &str, folder: &Path, redis: Option<&RedisServer>) -> Command {
    let mut command = Command::new(binary());
    command.arg(name).env("PHALANX_KEY", "//Validator").env("PHALANX_TRUSTED_SIGNER", key("//User").ss58());
    command.env("RUST_LOG", "error").env("PHALANX_MANIFEST_INTERVAL", "0s").env("TMPDIR", folder);
    command.env("PHALANX_WORKERS", WORKERS.to_string());
    if let Some(redis) = redis {
        command.env("PHALANX_REDIS", redis.url());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn started(mut command: Command) -> Process {
    Process(command.spawn().expect("the binary is built"))
}

fn validator(dispatch: Dispatch, facilitator: &ScriptedFacilitator, redis: &RedisServer, folder: &Path) -> Process {
    let celery = dispatch != Dispatch::Here;
    let mut command = role("validator", folder, celery.then_some(redis));
    command.args(["--facilitator", &facilitator.url, "--state-dir"]).arg(folder.join("state"));
    match celery {
        true => command.args(["--dispatch", "celery"]),
        false => command.arg("--miners").arg(folder.join("miners.toml")),
    };
    started(command)
}

fn worker(number: usize, redis: &RedisServer, folder: &Path) -> Process {
    let mut command = role("worker", folder, Some(redis));
    command.args(["--name", &format!("w{number}@bench"), "--miners"]).arg(folder.join("miners.toml"));
    started(command)
}

fn quantile(sorted: &[Duration], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize].as_secs_f64() * 1e3
}

/// The median of these, with the least and the most.
fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{:.digits$} [{least:.digits$}..{most:.digits$}]", values[values.len() / 2])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut jobs, mut at_once, mut rounds) = (2000, 64, 5);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--jobs" => jobs = value.parse()?,
            "--at-once" => at_once = value.parse()?,
            "--rounds" => rounds = value.parse()?,
            _ => return Err(format!("{word} is not known").into()),
        }
    }
    let mut measured: Vec<Vec<Measured>> = Vec::new();
    for round in 0..rounds {
        measured.push(ALL.iter().map(|dispatch| turn(*dispatch, jobs, at_once)).collect());
        eprintln!("round {} of {rounds}", round + 1);
    }
    println!("{jobs} jobs that do nothing, {at_once} at once, then {ALONE} one by one; {rounds} rounds");
    println!("| dispatch | jobs/s | against in the process | p50 ms | p99 ms | alone: p50 ms | alone: p99 ms |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (at, dispatch) in ALL.iter().enumerate() {
        let all = |value: &dyn Fn(&Measured) -> f64| measured.iter().map(|round| value(&round[at])).collect::<Vec<_>>();
        let ratios = measured.iter().map(|round| round[at].rate / round[0].rate).collect();
        println!(
            "| {dispatch} | {} | {} | {} | {} | {} | {} |",
            spread(all(&|m| m.rate), 0),
            spread(ratios, 2),
            spread(all(&|m| quantile(&m.loaded, 0.5)), 1),
            spread(all(&|m| quantile(&m.loaded, 0.99)), 1),
            spread(all(&|m| quantile(&m.alone, 0.5)), 1),
            spread(all(&|m| quantile(&m.alone, 0.99)), 1),
        );
    }
    Ok(())
}
