//! A facilitator and many validators of stub jobs, while each is killed and their links are cut at random: every job
//! that a user has an answer for has one end, none is lost, and none runs again that its validator knew.
//!
//! `PHALANX_TEST_CHAOS` says how many jobs; `PHALANX_TEST_SEED` repeats the choices of a run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use phalanx::app::job_client::JobClient;
use phalanx::base::rng::Rng;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::identity::{KeyPair, PublicKey};
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;

use super::chaos::free_address;
use crate::testkit::cutting::CuttingProxy;
use crate::testkit::network::CHARLIE;
use crate::testkit::process::{Running, nothing_left, phalanx};
use crate::testkit::roles;

/// Jobs of an everyday run, and validators for so many; a run of ten thousand has fifty.
const JOBS: usize = 240;
const JOBS_OF_A_VALIDATOR: usize = 200;
const VALIDATORS: (usize, usize) = (6, 50);

/// Jobs that are open at a time: several for each validator.
const OPEN: usize = 300;

/// Validators that share a link which is cut.
const ON_A_LINK: usize = 5;

/// Users who submit at a time.
const USERS: usize = 4;

/// How often something happens in an everyday run, and in one of ten thousand jobs.
const HARMS: (usize, usize) = (12, 120);

/// A validator that was turned away often dials again after 30 s; a job that nobody takes ends after 60 s.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long a user waits before it tries again; nothing tells that a facilitator is back.
const AGAIN: Duration = Duration::from_millis(20);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().expect("a number"))
}

fn micros() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as i64
}

/// One process of a validator.
struct Process {
    validator: usize,
    /// When it was killed, in microseconds since 1970; none if it was stopped.
    killed_at: Option<i64>,
    log: String,
}

struct Field {
    listen: SocketAddr,
    http: SocketAddr,
    facilitator: Option<Running>,
    validators: Vec<Option<Running>>,
    keys: Vec<PublicKey>,
    links: Vec<CuttingProxy>,
    ended: Vec<Process>,
    folder: tempfile::TempDir,
    scratch: tempfile::TempDir,
}

impl Field {
    fn start(validators: usize) -> Self {
        let (listen, http) = (free_address(), free_address());
        let keys = (0..validators).map(|n| KeyPair::from_uri(&format!("//Chaos/{n}")).unwrap().public()).collect();
        let mut field = Self {
            listen,
            http,
            facilitator: None,
            validators: (0..validators).map(|_| None).collect(),
            keys,
            links: (0..validators.div_ceil(ON_A_LINK)).map(|_| CuttingProxy::start(listen)).collect(),
            ended: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
            scratch: tempfile::tempdir().unwrap(),
        };
        field.start_facilitator();
        (0..validators).for_each(|n| field.start_validator(n));
        field
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn database(&self) -> PathBuf {
        self.path("facilitator/facilitator.db")
    }

    fn start_facilitator(&mut self) {
        let keys: Vec<String> = self.keys.iter().map(|key| key.to_ss58()).collect();
        let mut command = phalanx(self.scratch.path());
        command.args(["facilitator", "--listen", &self.listen.to_string(), "--http", &self.http.to_string()]);
        command.args(["--user", CHARLIE, "--validator", &keys.join(","), "--state-dir"]).arg(self.path("facilitator"));
        let mut running = Running::start(command.env("RUST_LOG", "warn"));
        running.line();
        self.facilitator = Some(running);
    }

    fn start_validator(&mut self, n: usize) {
        let url = format!("ws://{}/ws/v0/", self.links[n / ON_A_LINK].address);
        let mut command = phalanx(self.scratch.path());
        command.args(["validator", "--dispatch", "stub", "--stub-time", "10ms", "--trusted-signer", CHARLIE]);
        command.args(["--facilitator", &url, "--state-dir"]).arg(self.path(&format!("validator-{n}")));
        command
            .env("PHALANX_KEY", format!("//Chaos/{n}"))
            .env("RUST_LOG", "warn,phalanx::validator::client::job=debug");
        self.validators[n] = Some(Running::start(&mut command));
    }

    fn kill_facilitator(&mut self) {
        let finished = self.facilitator.take().unwrap().stop(Signal::KILL);
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
        self.start_facilitator();
    }

    fn end_validator(&mut self, n: usize, signal: Signal) {
        let finished = self.validators[n].take().unwrap().stop(signal);
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
        let killed_at = (signal == Signal::KILL).then(micros);
        // A stop without a facilitator, or without its answers in time, says with 3 that updates are kept. One that was
        // started just now may not listen for signals yet; then it has begun nothing and says nothing.
        let is_early = finished.code.is_none() && finished.stderr.is_empty();
        let allowed: &[_] = if killed_at.is_some() || is_early { &[None] } else { &[Some(0), Some(3)] };
        let last = finished.stderr.lines().last().unwrap_or_default();
        assert!(allowed.contains(&finished.code), "validator {n}: {:?}: {last}", finished.code);
        self.ended.push(Process { validator: n, killed_at, log: finished.stderr });
    }
}

/// What the users have been promised.
#[derive(Default)]
struct Submitted {
    left: AtomicUsize,
    stop: AtomicBool,
    accepted: Mutex<Vec<String>>,
    /// As of the last look into the database.
    ended: AtomicUsize,
    /// Requests that failed: their job may be there all the same.
    failed: AtomicUsize,
}

/// A user who submits jobs until none is left, whatever happens to the facilitator.
fn user(seed: u64, http: SocketAddr, keys: Vec<PublicKey>, all: Arc<Submitted>) -> Thread<()> {
    let kick = all.clone();
    let kick = Kick::new("a flag", move || kick.stop.store(true, Ordering::Relaxed));
    spawn("t-user", kick, move || {
        let (mut rng, never) = (Rng::new(seed), Shutdown::new());
        let charlie = KeyPair::from_uri("//Charlie").unwrap();
        let mut client: Option<JobClient> = None;
        let take = |left: usize| left.checked_sub(1);
        while all.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            loop {
                let target = keys[rng.next_u64() as usize % keys.len()];
                if all.stop.load(Ordering::Relaxed) {
                    return;
                }
                let open = all.accepted.lock().unwrap().len().saturating_sub(all.ended.load(Ordering::Relaxed));
                let room = open < OPEN;
                if room && client.is_none() {
                    client = JobClient::login(&format!("http://{http}"), charlie.clone(), &never).ok();
                }
                if room && let Some(client) = &mut client {
                    match client.submit(roles::job(&charlie), &target) {
                        Ok(job) => {
                            all.accepted.lock().unwrap().push(job.uuid);
                            break;
                        }
                        // It is being started again, or the validator is away.
                        Err(_) => all.failed.fetch_add(1, Ordering::Relaxed),
                    };
                }
                never.wait(AGAIN);
            }
        }
    })
}

fn database(path: &Path) -> Option<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()
}

/// Jobs that have ended, and those that have not; none while the database cannot be read.
fn open_jobs(path: &Path) -> Option<(usize, usize)> {
    let counts = "SELECT count(ended), count(*) - count(ended) FROM jobs";
    let (ended, open): (i64, i64) = database(path)?.query_row(counts, [], |row| Ok((row.get(0)?, row.get(1)?))).ok()?;
    Some((ended as usize, open as usize))
}

/// A job as the facilitator has it: its end, its terminal statuses that are not late, and when `received` came.
struct Kept {
    end: Option<String>,
    ends: usize,
    late: usize,
    received_at: Option<i64>,
    message: String,
}

fn kept(path: &Path) -> HashMap<String, Kept> {
    let database = database(path).unwrap();
    let terminal = "status IN ('completed', 'failed', 'rejected', 'horde_failed')";
    let query = format!(
        "SELECT uuid, ended, total(NOT late AND {terminal}), total(late),
         max(CASE WHEN status = 'received' THEN at END),
         coalesce(max(CASE WHEN status = ended THEN metadata END), '')
         FROM jobs JOIN statuses ON job = uuid GROUP BY uuid"
    );
    let mut statement = database.prepare(&query).unwrap();
    let rows = statement.query_map([], |row| {
        let (ends, late): (f64, f64) = (row.get(2)?, row.get(3)?);
        let kept = Kept {
            end: row.get(1)?,
            ends: ends as usize,
            late: late as usize,
            received_at: row.get(4)?,
            message: row.get(5)?,
        };
        Ok((row.get(0)?, kept))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// The processes in which each job has begun to run, by the line of its first step.
fn runs(processes: &[Process]) -> HashMap<&str, Vec<&Process>> {
    let mut runs: HashMap<&str, Vec<&Process>> = HashMap::new();
    for process in processes {
        for line in process.log.lines() {
            if let Some((_, said)) = line.split_once("job ")
                && let Some((uuid, "accepted")) = said.split_once(": ")
            {
                runs.entry(uuid).or_default().push(process);
            }
        }
    }
    runs
}

/// Waits until so many jobs have ended.
fn wait_for(ended: usize, path: &Path, seed: u64, all: &Submitted) -> usize {
    let (limit, never) = (Instant::now() + PATIENCE, Shutdown::new());
    loop {
        if let Some((now, open)) = open_jobs(path) {
            all.ended.store(now, Ordering::Relaxed);
            if now >= ended {
                return now;
            }
            assert!(Instant::now() < limit, "seed {seed}: {now} jobs have ended, {open} are open, {ended} do not end");
        }
        never.wait(AGAIN);
    }
}

/// Does harm until all jobs are submitted and have ended; counts of what kind.
fn harm(
    field: &mut Field,
    rng: &mut Rng,
    (jobs, seed): (usize, u64),
    all: &Submitted,
) -> BTreeMap<&'static str, usize> {
    let path = &field.database();
    let mut did: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut ended = 0;
    let pace = (jobs / HARMS.1).max(JOBS / HARMS.0);
    while ended + pace < jobs {
        ended = wait_for(ended + pace, path, seed, all);
        let n = rng.next_u64() as usize % field.validators.len();
        let what = match rng.next_u64() % 10 {
            0 | 1 => "facilitator killed",
            2..6 => "validator killed",
            6 => "validator stopped",
            _ => "link cut",
        };
        *did.entry(what).or_default() += 1;
        match what {
            "facilitator killed" => field.kill_facilitator(),
            "validator killed" | "validator stopped" => {
                field.end_validator(n, if what == "validator killed" { Signal::KILL } else { Signal::TERM });
                field.start_validator(n);
            }
            _ => {
                let outage = Duration::from_millis(rng.next_u64() % 500);
                field.links[n / ON_A_LINK].cut_after(rng.next_u64() % 5_000, outage);
            }
        }
    }
    wait_for(jobs, path, seed, all);
    did
}

#[test]
fn under_kills_and_cuts_every_dispatched_job_has_one_end_and_none_runs_again_that_was_known() {
    let jobs = number("PHALANX_TEST_CHAOS").map_or(JOBS, |jobs| jobs as usize);
    let seed = number("PHALANX_TEST_SEED").unwrap_or_else(|| Rng::from_entropy().next_u64());
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let count = (jobs / JOBS_OF_A_VALIDATOR).clamp(VALIDATORS.0, VALIDATORS.1);
    let mut field = Field::start(count);
    let path = field.database();
    let all = Arc::new(Submitted { left: AtomicUsize::new(jobs), ..Submitted::default() });
    let begun = Instant::now();
    let users: Vec<_> = (0..USERS).map(|_| user(rng.next_u64(), field.http, field.keys.clone(), all.clone())).collect();
    let did = harm(&mut field, &mut rng, (jobs, seed), &all);
    for user in users {
        user.join_by(Instant::now() + PATIENCE).unwrap();
    }
    // No user is left, so no job comes any more. There are more of them than were accepted: those of requests whose
    // answer was lost. They are to end, too.
    field.links.iter().for_each(CuttingProxy::leave);
    let (ended, open) = open_jobs(&path).unwrap();
    wait_for(ended + open, &path, seed, &all);
    let took = begun.elapsed();

    (0..count).for_each(|n| field.end_validator(n, Signal::TERM));
    let facilitator = field.facilitator.take().unwrap().stop(Signal::TERM);
    assert_eq!(facilitator.code, Some(0), "seed {seed}: {}", facilitator.stderr);

    let (kept, accepted) = (kept(&path), all.accepted.lock().unwrap().clone());
    assert_eq!((accepted.len(), accepted.iter().collect::<HashSet<_>>().len()), (jobs, jobs), "seed {seed}");
    let lost: Vec<_> = accepted.iter().filter(|uuid| !kept.contains_key(*uuid)).collect();
    assert!(lost.is_empty(), "seed {seed}: lost: {lost:?}");
    let (mut ends, mut cut_short, mut given_up) = (BTreeMap::<&str, usize>::new(), 0, 0);
    for (uuid, job) in &kept {
        assert_eq!(job.ends, 1, "seed {seed}: {uuid} has {} ends, {:?}", job.ends, job.end);
        *ends.entry(job.end.as_deref().unwrap()).or_default() += 1;
        cut_short += usize::from(job.message.contains("the validator ended while the job ran"));
        let (why, by_facilitator) = (&job.message, job.message.contains("\"reported_by\":\"facilitator\""));
        given_up += usize::from(by_facilitator);
        let known = why.contains("the validator ended while the job ran") || by_facilitator || why.contains("stopping");
        assert!(job.end.as_deref() == Some("completed") || known, "seed {seed}: {uuid}: {:?} {why}", job.end);
    }
    let runs = runs(&field.ended);
    let mut again = 0;
    for (uuid, processes) in runs.iter().filter(|(_, processes)| processes.len() > 1) {
        again += 1;
        let (last, earlier) = processes.split_last().unwrap();
        for process in earlier {
            assert!(!std::ptr::eq(*process, *last), "seed {seed}: {uuid} ran twice in one process");
            assert_eq!(process.validator, last.validator, "seed {seed}: {uuid} ran on two validators");
            // It was killed before its word of the job was on disk, so nobody could know that it had begun.
            let killed = process.killed_at.unwrap_or_else(|| panic!("seed {seed}: {uuid} ran again after a stop"));
            let received = kept[*uuid].received_at;
            assert!(received.is_none_or(|at| at >= killed), "seed {seed}: {uuid} was known and ran again");
        }
    }
    let late: usize = kept.values().map(|job| job.late).sum();
    let failed = all.failed.load(Ordering::Relaxed);
    let cuts: usize = field.links.iter().map(CuttingProxy::cuts).sum();
    println!(
        "{} jobs, {count} validators, {took:.0?}: {ends:?}; {cut_short} cut short by a kill, {given_up} given up by \
         the facilitator, {late} late statuses, {again} begun again by a validator that was killed before it was on \
         disk; {failed} requests failed; {cuts} cuts; {did:?}",
        kept.len()
    );
    assert!(ends.get("completed").is_some_and(|completed| *completed > jobs / 2), "seed {seed}: {ends:?}");
    let Field { links, scratch, .. } = field;
    drop(links);
    nothing_left(scratch.path());
}
