//! `phalanx validator`: takes jobs from the facilitator and drives them on miners.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::announce::announce_http;
use super::ending::EndingArgs;
use super::key::KeyArg;
use super::miner_list::{MISSING, MinerList, MinerListArgs};
use super::miners;
use super::report::Report;
use super::values::{AppConfig, Problems, RedisConfig, celery_settings, duration, listen_address, redis_url};
use crate::app::exit::NotStarted;
use crate::app::{exit, pause, status, supervise};
use crate::base::shutdown::Shutdown;
use crate::identity::{KeyPair, PublicKey};
use crate::net::http::{HttpRequest, HttpServer};
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::ops::overview::words::count;
use crate::store;
use crate::tasks::TasksStatus;
use crate::transport::check_url;
use crate::transport::ws::WsDialer;
use crate::validator::miners::{FeedHandle, MinerFeed};
#[cfg(feature = "celery")]
use crate::validator::remote::DEFAULT_QUEUE;
use crate::validator::{AskedStatus, ClientHandle, Dispatch, Validator, ValidatorConfig};

/// The arguments of `phalanx validator`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The facilitator's WebSocket URL, as wss://facilitator.example/ws/v0/ (also read from FACILITATOR_URI); may be
    /// repeated: when one fails, the next in order is dialled
    #[arg(long, value_name = "URL", env = "PHALANX_FACILITATOR", value_delimiter = ',')]
    facilitator: Vec<String>,
    #[command(flatten)]
    key: KeyArg,
    #[command(flatten)]
    miners: MinerListArgs,
    /// Folder for what is to survive a restart: updates that the facilitator has not accepted, jobs under way. Stub
    /// jobs do without
    #[arg(long, value_name = "DIR", env = "PHALANX_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Who may sign jobs besides the validator itself; may be repeated
    #[arg(long, value_name = "SS58", env = "PHALANX_TRUSTED_SIGNER", value_delimiter = ',')]
    trusted_signer: Vec<PublicKey>,
    /// Validators whose running jobs excuse a miner that is busy, besides this one; may be repeated
    #[arg(long, value_name = "SS58", env = "PHALANX_KNOWN_VALIDATOR", value_delimiter = ',')]
    known_validator: Vec<PublicKey>,
    /// How old the signature of a job may be; each signature runs one job
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = duration, env = "PHALANX_MAX_SIGNATURE_AGE")]
    max_signature_age: Duration,
    /// What runs a job
    #[arg(long, value_enum, default_value_t = DispatchArg::Workers, env = "PHALANX_DISPATCH")]
    dispatch: DispatchArg,
    /// With --dispatch celery: the Redis between the validator and its workers, as
    /// redis://[user:password@]host[:port][/database]; rediss:// for TLS. In the variable the password is hidden from
    /// other users
    #[arg(long, value_name = "URL", value_parser = redis_url, env = "PHALANX_REDIS", hide_env_values = true)]
    redis: Option<RedisConfig>,
    /// With --dispatch celery: settings of the Celery application with Celery's names, as
    /// {"broker_transport_options": {"sep": ":"}}; the same on validators and workers. In the settings file a table
    #[arg(long, value_name = "JSON", value_parser = celery_settings, env = "PHALANX_CELERY", hide_env_values = true)]
    celery: Option<AppConfig>,
    /// With --dispatch celery: the Celery queue of the jobs [default: phalanx]
    #[arg(long, value_name = "NAME", env = "PHALANX_QUEUE")]
    queue: Option<String>,
    /// With --dispatch celery: how long a job waits for a worker before it is rejected as busy [default: 60s]
    #[arg(long, value_name = "DUR", value_parser = duration, env = "PHALANX_QUEUE_TIME")]
    queue_time: Option<Duration>,
    /// Time before each status of a stub job
    #[arg(long, value_name = "DUR", value_parser = duration, env = "PHALANX_STUB_TIME")]
    stub_time: Option<Duration>,
    /// Jobs at a time; one more is rejected as busy [default: 64, for celery and stub 8192]
    #[arg(long, value_name = "N", env = "PHALANX_WORKERS")]
    workers: Option<usize>,
    /// How long a stop lets running jobs go on
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = duration, env = "PHALANX_DRAIN_TIME")]
    drain_time: Duration,
    /// How long a stop lets the last updates be answered; what is not answered then is kept, and the exit code is 3
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = duration, env = "PHALANX_FLUSH_TIME")]
    flush_time: Duration,
    /// How often miners are asked for their manifests; 0s for never, then jobs alone learn them
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = duration, env = "PHALANX_MANIFEST_INTERVAL")]
    manifest_interval: Duration,
    /// How long a miner that was reported for cheating gets no job
    #[arg(long, value_name = "DUR", default_value = "24h", value_parser = duration, env = "PHALANX_BLACKLIST_TIME")]
    blacklist_time: Duration,
    /// How long until what a miner did wrong, and the jobs that it completed, count half in the choice of miners
    #[arg(long, value_name = "DUR", default_value = "30m", value_parser = duration, env = "PHALANX_INCIDENT_HALF_LIFE")]
    incident_half_life: Duration,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DispatchArg {
    /// Worker threads of this process drive miners
    Workers,
    /// `phalanx worker`s on other machines drive miners: each job is a Celery task in a Redis
    Celery,
    /// No miner: every job is answered with the statuses of a good one (for load tests)
    Stub,
}

/// What is told of miners that nobody asks.
const IDLE_MINERS: &str = "--miners has no effect with --dispatch celery: each `phalanx worker` has its own";

impl Args {
    fn has_idle_miners(&self) -> bool {
        self.dispatch == DispatchArg::Celery && self.miners.is_given()
    }
}

/// Runs the command until a signal stops it.
pub fn run(args: Args) -> ExitCode {
    let has_idle_miners = args.has_idle_miners();
    let (http, http_args, ending) = (args.http, args.http_args.clone(), args.ending.clone());
    let (config, list, dialer) = match configure(args) {
        Ok(configured) => configured,
        Err(problems) => return exit::usage(problems.join("; ")),
    };
    let ending = match ending.ending() {
        Ok(ending) => ending,
        Err(problem) => return exit::usage(problem),
    };
    // Two closing steps more, for the list of miners and for the pages.
    let budget = Validator::stop_budget(&config) + 2 * supervise::CLOSING;
    let start = |env: &supervise::Env| {
        if has_idle_miners {
            log::warn!("{IDLE_MINERS}");
        }
        let board = config.board.clone();
        let follow = Some((env, &board));
        let http = http.map(|http| http_args.bind(http, follow)).transpose().map_err(exit::not_started)?;
        super::tls::follow(dialer.tls().clone(), env, &board);
        if let Some(folder) = &config.state_dir {
            env.flight.keep_in(folder);
            pause::follow(env, &board.pause, folder);
        }
        let validator = Validator::start(config, Arc::new(dialer), env.timer.clone());
        let validator = validator.map_err(|e| exit::not_started(NotStarted::new(&e, e.may_pass())))?;
        let client = validator.observer().client().clone();
        env.manager.watch(&client.board().health.clone(), &env.timer, move |health| client.measure(health));
        let reloader = validator.reloader();
        let feed = list.map(|list| list.follow(env, &board.errors, move |miners| reloader.miners(miners)));
        let status = feed.as_ref().map(MinerFeed::handle);
        let http = http.map(|http| serve_status(http, &validator, status, env)).transpose().map_err(exit::failed)?;
        if let Some(http) = &http {
            announce_http(http.local_addr(), &env.shutdown);
        }
        let ending = ending.watch(env, &board);
        Ok((validator, feed, http, ending))
    };
    supervise::serve(budget, start, |(validator, feed, http, ending), stopping| {
        drop(ending);
        if let Some(feed) = feed {
            stopping.step("list of miners", supervise::CLOSING, |step| feed.stop_in(step));
        }
        validator.stop_in(stopping);
        if let Some(http) = http {
            stopping.step("status server", supervise::CLOSING, |step| http.stop_in(step));
        }
    })
}

/// Checks the settings and what is outside, without starting anything.
pub(super) fn check(args: Args, report: &mut Report) {
    let facilitator = args.facilitator.clone();
    let state_dir = args.state_dir.clone();
    let http = args.http;
    let redis = args.redis.clone();
    let dialling = facilitator.first().and_then(|url| {
        let dialer = args.tls.load(url).ok()?;
        Some((dialer, args.tls.http_as_links(Shutdown::new()).ok()?))
    });
    args.tls.tell(report);
    args.http_args.tell(report);
    let open = args.key.openness();
    let http_tls = args.http_args.tls(None);
    let mut asked = None;
    if args.has_idle_miners() {
        report.warn(IDLE_MINERS);
    }
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
    let runs = state_dir.is_some_and(|folder| report.has("state-dir") && report.folder(&folder, store::journal::LOCK));
    if let Some(http) = http.filter(|_| !runs) {
        report.port("http", http, |e| format!("--http {http}: {e}"));
    }
    if let Some((dialer, client)) = dialling.as_ref().filter(|_| report.has("facilitator")) {
        facilitator.iter().for_each(|url| report.facilitator(url, dialer, client));
    }
    if let Some((key, miners, dialer)) = asked {
        report.miners(key, &miners, dialer);
    }
    #[cfg(feature = "celery")]
    if let Some(redis) = redis.filter(|_| report.has("redis")) {
        report.redis(&redis);
    }
    #[cfg(not(feature = "celery"))]
    drop(redis);
}

/// All that is wrong is found at once.
fn configure(args: Args) -> Result<(ValidatorConfig, Option<MinerList>, WsDialer), Vec<String>> {
    #[cfg(not(feature = "celery"))]
    if args.dispatch == DispatchArg::Celery {
        return Err(vec![
            "--dispatch celery: this program was built without it (the cargo feature `celery`)".to_owned(),
        ]);
    }
    let mut problems = Problems::default();
    problems.take(args.ending.ending());
    let missing = "--facilitator is missing; give the URL, as wss://facilitator.example/ws/v0/";
    // Something stands for what is wrong, so that the rest is looked at.
    let mut facilitators = args.facilitator.into_iter();
    let facilitator = problems.take(facilitators.next().ok_or(missing.to_owned()));
    let facilitator = facilitator.unwrap_or_else(|| "ws://127.0.0.1/".to_owned());
    let facilitator_fallbacks: Vec<String> = facilitators.collect();
    if !facilitator_fallbacks.is_empty() {
        problems.add(args.tls.problem_of_many("--facilitator names several"));
    }
    let key = problems.take(args.key.load());
    let dialer = match check_url(&facilitator) {
        Ok(()) => problems.take(args.tls.load(&facilitator)),
        // The URL is told of below.
        Err(_) => None,
    };
    let needs_miners = args.dispatch == DispatchArg::Workers;
    if needs_miners && !args.miners.is_given() {
        problems.0.push(MISSING.to_owned());
    }
    let list = match args.dispatch {
        // The workers have them.
        DispatchArg::Celery => None,
        _ => problems.take(args.miners.load(&args.tls)).flatten(),
    };
    let miners = list.as_ref().map_or_else(Vec::new, |list| list.miners.clone());
    if args.stub_time.is_some() && args.dispatch != DispatchArg::Stub {
        problems.0.push("--stub-time goes with --dispatch stub".to_owned());
    }
    let of_celery = [("--redis", args.redis.is_some()), ("--queue", args.queue.is_some())];
    let of_celery = of_celery.into_iter().chain([("--celery", args.celery.is_some())]);
    let of_celery = of_celery.into_iter().chain([("--queue-time", args.queue_time.is_some())]);
    let stray = of_celery.filter(|(_, given)| *given && args.dispatch != DispatchArg::Celery);
    problems.0.extend(stray.map(|(flag, _)| format!("{flag} goes with --dispatch celery")));
    if args.state_dir.is_none() && args.dispatch != DispatchArg::Stub {
        problems.0.push("--state-dir is missing; name the folder for what is to survive a restart".to_owned());
    }
    let dispatch = match args.dispatch {
        DispatchArg::Workers => Dispatch::Workers,
        DispatchArg::Stub => Dispatch::Stub { stage_time: args.stub_time.unwrap_or_default() },
        #[cfg(feature = "celery")]
        DispatchArg::Celery => {
            let missing = "--redis is missing; give the URL, as redis://127.0.0.1:6379/0";
            match problems.take(args.redis.ok_or(missing.to_owned())) {
                Some(redis) => Dispatch::Celery {
                    redis: Box::new(redis),
                    celery: Box::new(args.celery.unwrap_or_default()),
                    queue: args.queue.unwrap_or_else(|| DEFAULT_QUEUE.to_owned()),
                    queue_time: args.queue_time.unwrap_or(Duration::from_secs(60)),
                },
                None => Dispatch::Stub { stage_time: Duration::ZERO },
            }
        }
        #[cfg(not(feature = "celery"))]
        DispatchArg::Celery => unreachable!("it is refused above"),
    };
    let stand_in = || KeyPair::from_seed([0; 32]);
    let config = ValidatorConfig {
        facilitator_fallbacks,
        trusted_signers: args.trusted_signer,
        known_validators: args.known_validator,
        max_signature_age: args.max_signature_age,
        state_dir: args.state_dir,
        dispatch,
        workers: args.workers,
        drain_time: args.drain_time,
        flush_time: args.flush_time,
        blacklist_time: args.blacklist_time,
        incident_half_life: args.incident_half_life,
        manifest_interval: args.manifest_interval,
        ..ValidatorConfig::new(facilitator, key.clone().unwrap_or_else(stand_in), miners)
    };
    // Why there are none is told already.
    let is_told = |problem: &String| list.is_none() && problem.starts_with("there is no miner");
    problems.0.extend(config.validate().into_iter().filter(|problem| !is_told(problem)));
    problems.add(problem_of_interval(config.manifest_interval));
    match dialer {
        Some(dialer) if problems.0.is_empty() => Ok((config, list, dialer)),
        _ => Err(problems.0),
    }
}

/// What is wrong with a `--manifest-interval`: rounds back to back would keep the machine and all miners at work.
pub(super) fn problem_of_interval(interval: Duration) -> Option<String> {
    (!interval.is_zero() && interval < Duration::from_secs(1))
        .then(|| format!("--manifest-interval is {interval:?}; it should be 1s or more, or 0s for never"))
}

/// The threads that run jobs. How their tasks ended is left out: that a job's thread came to its end says nothing of
/// the job, see `ended`.
fn threads_of(tasks: TasksStatus) -> Value {
    let mut tasks = json!(tasks);
    if let Some(counts) = tasks["counts"].as_object_mut() {
        counts.retain(|state, _| state == "pending" || state == "running");
    }
    tasks
}

fn serve_status(
    place: status::Place,
    validator: &Validator,
    feed: Option<FeedHandle>,
    env: &supervise::Env,
) -> Result<HttpServer, String> {
    let observer = validator.observer();
    let asked = observer.clone();
    let miners = move |request: &HttpRequest| {
        let feed = feed.as_ref().map(FeedHandle::status);
        miners::page(request, feed, || asked.miners(), |hotkey| asked.explain_miner(hotkey))
    };
    let board = observer.client().board().clone();
    let look = move |health: &Health, metrics: &Metrics| {
        let client = observer.client();
        let (counts, jobs) = (client.counts(), observer.running_jobs());
        client.measure(health);
        metrics.gauge("phalanx_validator_jobs", "Jobs that run now.", &[]).set(jobs);
        let unsent = metrics.gauge("phalanx_validator_unsent", "Updates the facilitator has not answered.", &[]);
        unsent.set(counts.unsent);
        let bytes = metrics.gauge("phalanx_validator_unsent_bytes", "Bytes of the updates not answered.", &[]);
        bytes.set(counts.unsent_bytes);
        metrics
            .gauge("phalanx_validator_dead_letters", "Updates that were given up and are kept.", &[])
            .set(counts.dead);
        let ended = &client.totals().ended;
        let ended = json!({
            "completed": ended.completed.get(),
            "failed": ended.failed.get(),
            "rejected": ended.rejected.get(),
            "horde_failed": ended.horde_failed.get(),
        });
        measure_link(metrics, client);
        let asked = observer.asked();
        if let Some(asked) = &asked {
            measure_asked(metrics, asked);
        }
        let oldest = client.oldest_update().map_or(0, |age| age.as_secs());
        json!({
            "facilitator": client.state().to_string(),
            "facilitator_url": client.endpoint().1,
            "round_trip_ms": client.round_trip().map(|took| took.as_secs_f64() * 1000.0),
            "clock_skew_seconds": client.clock_skew(),
            "last_error": client.last_error(),
            "jobs": jobs,
            "open_jobs": counts.open_jobs,
            "ended": ended,
            "unsent": counts.unsent,
            "unsent_bytes": counts.unsent_bytes,
            "oldest_update_seconds": oldest,
            "dead_letters": counts.dead,
            "tasks": observer.tasks().map(threads_of),
            "remote": observer.front(),
            "asked": asked,
            "miners": observer.miners().as_deref().map(miners::shown),
        })
    };
    status::serve_more(("validator", "val"), place, env, &board, look, miners)
}

/// The link to the facilitator. What is not known at present stays as it was.
fn measure_link(metrics: &Metrics, client: &ClientHandle) {
    let help = "Which of the addresses of --facilitator is in use or dialled next, from 1.";
    metrics.gauge("phalanx_validator_facilitator_endpoint", help, &[]).set(client.endpoint().0);
    if let Some(took) = client.round_trip() {
        let help = "How long the last ping took that the facilitator has answered.";
        metrics.gauge("phalanx_validator_facilitator_round_trip_seconds", help, &[]).set_to(took.as_secs_f64());
    }
    if let Some(skew) = client.clock_skew() {
        let help = "By how much the facilitator's clock is ahead of ours; less than 0 if it is behind.";
        metrics.gauge("phalanx_validator_facilitator_clock_skew_seconds", help, &[]).set_to(skew as f64);
    }
}

pub(super) fn measure_asked(metrics: &Metrics, asked: &AskedStatus) {
    let age = usize::try_from(asked.manifests.oldest_seconds).unwrap_or(usize::MAX);
    let help = "Age of the oldest manifest that is known.";
    metrics.gauge("phalanx_validator_manifest_age_seconds", help, &[]).set(age);
    let help = "Miners that have never told their manifest.";
    metrics.gauge("phalanx_validator_miners_unknown", help, &[]).set(asked.manifests.unknown);
    for (state, count) in &asked.breakers {
        let help = "Miners by the state of their breaker.";
        metrics.gauge("phalanx_validator_breakers", help, &[("state", state)]).set(*count);
    }
    let help = "1 while most miners fail at once, which is our own trouble.";
    let outage = usize::from(asked.outage_seconds.is_some());
    metrics.gauge("phalanx_validator_outage", help, &[]).set(outage);
    let help = "Calls to miners that their breakers have refused.";
    metrics.counter("phalanx_validator_left_alone_total", help, &[]).raise(asked.left_alone);
    let help = "How often most miners failed at once.";
    metrics.counter("phalanx_validator_outages_total", help, &[]).raise(asked.outages);
    let help = "Second tries that the budget would grant now.";
    metrics.gauge("phalanx_validator_retries_left", help, &[]).set(asked.retries.left);
    for (result, count) in [("granted", asked.retries.granted), ("refused", asked.retries.refused)] {
        let help = "Second tries that were asked for.";
        metrics.counter("phalanx_validator_retries_total", help, &[("result", result)]).raise(count);
    }
    let kept = &asked.connections;
    let states =
        [("idle", kept.idle), ("leased", kept.leased), ("connecting", kept.connecting), ("waiting", kept.waiting)];
    for (state, count) in states {
        let help = "Connections to miners that are in use, kept, or being made; and callers that wait for one.";
        metrics.gauge("phalanx_validator_miner_connections", help, &[("state", state)]).set(count);
    }
    let kinds = [
        ("dialled", kept.dialled),
        ("failed", kept.failed),
        ("reused", kept.reused),
        ("ended", kept.ended),
        ("leaked", kept.leaked),
        ("not_given", kept.not_given),
    ];
    for (kind, count) in kinds {
        let help = "What became of connections to miners.";
        metrics.counter("phalanx_validator_miner_connections_total", help, &[("kind", kind)]).raise(count);
    }
}

#[cfg(all(test, not(feature = "celery")))]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn without_its_feature_the_dispatch_to_celery_is_refused() {
        let Command { args } = Command::parse_from(["validator", "--key", "//Alice", "--dispatch", "celery"]);
        let refused = configure(args).map(|_| ()).unwrap_err();
        assert_eq!(
            refused.join("; "),
            "--dispatch celery: this program was built without it (the cargo feature `celery`)"
        );
    }
}
