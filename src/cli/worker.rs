//! `phalanx worker`: runs the jobs of validators that send them through Redis.
//!
//! Owner of the thread `asked`: the command. Blocks in: the wait for a stop by remote control. Kick: the process'
//! signal. Ends: with either.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::announce::announce_http;
use super::ending::EndingArgs;
use super::key::KeyArg;
use super::miner_list::{MISSING, MinerList, MinerListArgs};
use super::miners;
use super::report::Report;
use super::validator::{measure_asked, problem_of_interval};
use super::values::{AppConfig, Problems, RedisConfig, celery_settings, duration, listen_address, redis_url};
use crate::app::{exit, pause, status, supervise};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::identity::PublicKey;
use crate::net::http::{HttpRequest, HttpServer};
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::overview::words::count;
use crate::ops::status::Board;
use crate::store::{self, FolderLock};
use crate::transport::ws::WsDialer;
use crate::validator::miners::{FeedHandle, MinerFeed};
use crate::validator::remote::{DEFAULT_QUEUE, JobWorker, JobWorkerConfig, JobWorkerHandle};

/// The arguments of `phalanx worker`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The Redis that validators with --dispatch celery use, as redis://[user:password@]host[:port][/database];
    /// rediss:// for TLS. In the variable the password is hidden from other users
    #[arg(long, value_name = "URL", value_parser = redis_url, env = "PHALANX_REDIS", hide_env_values = true)]
    redis: Option<RedisConfig>,
    /// Settings of the Celery application with Celery's names, as {"broker_transport_options": {"sep": ":"}}; the same
    /// on validators and workers. In the settings file a table
    #[arg(long, value_name = "JSON", value_parser = celery_settings, env = "PHALANX_CELERY", hide_env_values = true)]
    celery: Option<AppConfig>,
    #[command(flatten)]
    key: KeyArg,
    /// Who may sign jobs besides the validator itself, as on the validator; may be repeated
    #[arg(long, value_name = "SS58", env = "PHALANX_TRUSTED_SIGNER", value_delimiter = ',')]
    trusted_signer: Vec<PublicKey>,
    /// How old the signature of a job may be when the validator takes it, as on the validator
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = duration, env = "PHALANX_MAX_SIGNATURE_AGE")]
    max_signature_age: Duration,
    /// Validators whose running jobs excuse a miner that is busy, besides this one; may be repeated
    #[arg(long, value_name = "SS58", env = "PHALANX_KNOWN_VALIDATOR", value_delimiter = ',')]
    known_validator: Vec<PublicKey>,
    #[command(flatten)]
    miners: MinerListArgs,
    /// No miner: answer every job with the statuses of a good one, each after this time (for load tests)
    #[arg(long, value_name = "DUR", value_parser = duration, env = "PHALANX_STUB_TIME")]
    stub_time: Option<Duration>,
    /// The Celery queue of the jobs
    #[arg(long, value_name = "NAME", default_value = DEFAULT_QUEUE, env = "PHALANX_QUEUE")]
    queue: String,
    /// Jobs at a time
    #[arg(long, value_name = "N", default_value_t = 64, env = "PHALANX_WORKERS")]
    workers: usize,
    /// The name that Celery's tools see; no other worker may have it [default: phalanx@HOST]
    #[arg(long, value_name = "NAME", env = "PHALANX_WORKER_NAME")]
    name: Option<String>,
    /// How long this worker may be silent before others go on with its jobs
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = duration, env = "PHALANX_LIVENESS")]
    liveness: Duration,
    /// How long a stop lets running jobs go on; then other workers go on with them
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = duration, env = "PHALANX_DRAIN_TIME")]
    drain_time: Duration,
    /// How long until what a miner did wrong, and the jobs that it completed, count half in the choice of miners
    #[arg(long, value_name = "DUR", default_value = "30m", value_parser = duration, env = "PHALANX_INCIDENT_HALF_LIFE")]
    incident_half_life: Duration,
    /// How often miners are asked for their manifests; 0s for never, then jobs alone learn them
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = duration, env = "PHALANX_MANIFEST_INTERVAL")]
    manifest_interval: Duration,
    /// Folder in which the worker is paused and its flight recorder is written; without one neither can be. It keeps no
    /// jobs: those are in Redis
    #[arg(long, value_name = "DIR", env = "PHALANX_STATE_DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    ending: EndingArgs,
    #[command(flatten)]
    tls: super::tls::ClientArgs,
    /// Address of health, metrics and status
    #[arg(long, value_name = "ADDR", value_parser = listen_address, env = "PHALANX_HTTP")]
    http: Option<SocketAddr>,
    #[command(flatten)]
    http_args: super::tls::HttpArgs,
}

/// Runs the command until a signal, or `celery control shutdown`, stops it.
pub fn run(args: Args) -> ExitCode {
    let (http, http_args, ending) = (args.http, args.http_args.clone(), args.ending.clone());
    let state_dir = args.state_dir.clone();
    let (config, list, dialer) = match configure(args) {
        Ok(configured) => configured,
        Err(problems) => return exit::usage(problems.join("; ")),
    };
    let ending = match ending.ending() {
        Ok(ending) => ending,
        Err(problem) => return exit::usage(problem),
    };
    // And a closing step each for the list of miners, the remote control, and the pages.
    let budget = JobWorker::stop_budget(&config) + 3 * supervise::CLOSING;
    let start = |env: &supervise::Env| {
        let board = Board::new();
        let http = http.map(|http| http_args.bind(http, Some((env, &board)))).transpose().map_err(exit::not_started)?;
        super::tls::follow(dialer.tls().clone(), env, &board);
        let lock = state_dir.as_deref().map(own).transpose().map_err(exit::usage)?;
        if let Some(folder) = &state_dir {
            env.flight.keep_in(folder);
            pause::follow(env, &board.pause, folder);
        }
        let worker = JobWorker::start(config, Arc::new(dialer), env.timer.clone(), &board).map_err(exit::usage)?;
        env.manager.watch(&board.health, &env.timer, |_| {});
        let handle = worker.handle();
        let set = handle.clone();
        let feed = list.map(|list| list.follow(env, &board.errors, move |miners| set.set_miners(miners)));
        let status = feed.as_ref().map(MinerFeed::handle);
        let http = http.map(|http| serve_status(http, &handle, status, &board, env));
        let http = http.transpose().map_err(exit::failed)?;
        if let Some(http) = &http {
            announce_http(http.local_addr(), &env.shutdown);
        }
        let ending = (ending.watch(env, &board), lock);
        Ok((worker, feed, watch_remote_control(&handle, env), http, ending))
    };
    supervise::serve(budget, start, |(worker, feed, asked, http, (ending, lock)), stopping| {
        drop(ending);
        if let Some(feed) = feed {
            stopping.step("list of miners", supervise::CLOSING, |step| feed.stop_in(step));
        }
        let report = worker.stop_in(stopping);
        log::info!("{} jobs go on elsewhere, {} of them were under way here", report.given_back, report.cancelled);
        if report.left > 0 {
            log::info!("Redis is away: other workers find {} jobs after the time of --liveness", report.left);
        }
        stopping.step("remote control", supervise::CLOSING, |step| step.join(asked));
        if let Some(http) = http {
            stopping.step("status server", supervise::CLOSING, |step| http.stop_in(step));
        }
        drop(lock);
    })
}

/// Takes the state folder, as its only worker.
fn own(folder: &Path) -> Result<FolderLock, String> {
    FolderLock::take(folder, store::WORKER_LOCK).map_err(|error| format!("--state-dir: {error}"))
}

/// A stop by `celery control shutdown` is like one by the first signal.
fn watch_remote_control(handle: &JobWorkerHandle, env: &supervise::Env) -> Thread<()> {
    let (asked, stop) = (handle.worker().asked_to_stop().clone(), env.shutdown.clone());
    spawn("asked", Kick::dropped("the process' signal"), move || {
        let _waiting = waiting("a stop by remote control", None);
        crossbeam_channel::select! {
            recv(asked.drain_receiver()) -> _ => {
                log::info!("asked to stop by remote control");
                stop.drain();
            }
            recv(stop.drain_receiver()) -> _ => {}
        }
    })
}

/// Checks the settings and what is outside, without starting anything.
pub(super) fn check(args: Args, report: &mut Report) {
    let (http, redis, state_dir) = (args.http, args.redis.clone(), args.state_dir.clone());
    args.tls.tell(report);
    args.http_args.tell(report);
    let open = args.key.openness();
    let http_tls = args.http_args.tls(None);
    let mut asked = None;
    match configure(args) {
        Ok((config, list, dialer)) => {
            // What stands for a key that nobody gave is nobody's.
            let has_key = report.has("key");
            if has_key {
                report.ok(format_args!("--key: {}", config.key.ss58()));
            }
            if let Some(list) = list {
                report.ok(format_args!("--miners: {}", count(list.miners.len(), "miner")));
                asked = has_key.then_some((config.key, list.miners, dialer));
            }
        }
        Err(problems) => report.all_wrong(&problems),
    }
    if let Some(open) = open {
        report.warn(format_args!("--key: {open}"));
    }
    if let Err(problem) = http_tls {
        report.wrong(problem);
    }
    let runs = state_dir.is_some_and(|folder| report.has("state-dir") && report.folder(&folder, store::WORKER_LOCK));
    if let Some(http) = http.filter(|_| !runs) {
        report.port("http", http, |e| format!("--http {http}: {e}"));
    }
    if let Some((key, miners, dialer)) = asked {
        report.miners(key, &miners, dialer);
    }
    if let Some(redis) = redis.filter(|_| report.has("redis")) {
        report.redis(&redis);
    }
}

/// All that is wrong is found at once.
fn configure(args: Args) -> Result<(JobWorkerConfig, Option<MinerList>, WsDialer), Vec<String>> {
    let mut problems = Problems::default();
    let one_job = problems.take(args.ending.ending()).is_some_and(|ending| ending.one_job);
    let missing = "--redis is missing; give the URL, as redis://127.0.0.1:6379/0";
    let redis = problems.take(args.redis.ok_or(missing.to_owned()));
    let key = problems.take(args.key.load());
    let dialer = problems.take(args.tls.load(""));
    match (args.miners.is_given(), args.stub_time.is_some()) {
        (true, true) => problems.0.push("give --miners or --stub-time, not both".to_owned()),
        (false, false) => problems.0.push(MISSING.to_owned()),
        _ => {}
    }
    let list = problems.take(args.miners.load(&args.tls)).flatten();
    let miners = list.as_ref().map_or_else(Vec::new, |list| list.miners.clone());
    let (Some(redis), Some(key), Some(dialer)) = (redis, key, dialer) else { return Err(problems.0) };
    let defaults = JobWorkerConfig::new(redis, key, miners);
    let config = JobWorkerConfig {
        trusted_signers: args.trusted_signer,
        max_signature_age: args.max_signature_age,
        known_validators: args.known_validator,
        stub: args.stub_time,
        celery: args.celery.unwrap_or_default(),
        queue: args.queue,
        // One that is taken is run, so no other is while it does.
        workers: if one_job { 1 } else { args.workers },
        name: args.name.unwrap_or_else(|| defaults.name.clone()),
        liveness: args.liveness,
        drain_time: args.drain_time,
        incident_half_life: args.incident_half_life,
        manifest_interval: if args.stub_time.is_some() { Duration::ZERO } else { args.manifest_interval },
        ..defaults
    };
    problems.0.extend(config.validate());
    problems.add(problem_of_interval(config.manifest_interval));
    if problems.0.is_empty() { Ok((config, list, dialer)) } else { Err(problems.0) }
}

fn serve_status(
    place: status::Place,
    handle: &JobWorkerHandle,
    feed: Option<FeedHandle>,
    board: &Board,
    env: &supervise::Env,
) -> Result<HttpServer, String> {
    let (handle, asked) = (handle.clone(), handle.clone());
    let miners = move |request: &HttpRequest| {
        let feed = feed.as_ref().map(FeedHandle::status);
        miners::page(request, feed, || Some(asked.miners()), |hotkey| asked.explain_miner(hotkey))
    };
    let look = move |_: &Health, metrics: &Metrics| {
        let worker = handle.worker();
        let drives_miners = !handle.miners().is_empty();
        let asked = drives_miners.then(|| handle.asked());
        if let Some(asked) = &asked {
            measure_asked(metrics, asked);
        }
        let (state, unreported) = (worker.state(), handle.unreported());
        metrics.gauge("phalanx_worker_jobs", "Jobs that run now.", &[]).set(state.counts.running);
        metrics.gauge("phalanx_worker_unreported", "Events that Redis does not have yet.", &[]).set(unreported);
        json!({
            "name": worker.hostname(),
            "consuming": state.consuming,
            "last_error": state.last_error.map(|error| error.to_string()),
            "jobs": state.counts.running,
            "taken": state.taken,
            "restored": state.restored,
            "aside": state.aside,
            "siblings": state.siblings,
            "namesakes": state.namesakes,
            "overdue": state.overdue,
            "unreported": unreported,
            "tasks": worker.tasks(),
            "asked": asked,
            "miners": drives_miners.then(|| miners::shown(&handle.miners())),
        })
    };
    status::serve_more(("worker", "wor"), place, env, board, look, miners)
}
