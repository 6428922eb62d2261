//! `phalanx miner`: serves validators and executors, manages executor pools.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::announce::announce;
use super::connections::ConnectionsArg;
use super::ending::EndingArgs;
use super::executors::{self, ExecutorArgs, Images, Sandboxes, Shown};
use super::key::KeyArg;
use super::miner_status;
use super::rates::RateArgs;
use super::reload::Fixed;
use super::report::Report;
use super::tls;
use super::values::{Problems, class_count, client_address, duration, listen_address, one_address};
use super::watch;
use crate::app::exit::NotStarted;
use crate::app::hosts::HostSetting;
use crate::app::{self, exit, pause, supervise};
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::executor::sandbox::Host;
use crate::identity::PublicKey;
use crate::miner::host::HostName;
use crate::miner::placement::Strategy;
use crate::miner::router::Peer;
use crate::miner::{self, HostConfig, Miner, MinerConfig, MinerLimits, Owner, Reloader, WatchCommand};
use crate::net::tls::ClientCertificates;
use crate::ops::status::Board;
use crate::proc::docker::{Docker, EngineAddress, SshPlace};
use crate::proc::image_store::ImageBounds;
use crate::proc::this;
use crate::protocol::ExecutorClass;
use crate::store;
use crate::transport::TransportError;

/// The arguments of `phalanx miner`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address for validators and executors, as 127.0.0.1:9101; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", value_parser = listen_address, env = "PHALANX_LISTEN")]
    listen: SocketAddr,
    #[command(flatten)]
    key: KeyArg,
    /// Whose jobs are taken; may be repeated
    #[arg(long, value_name = "SS58", required = true, env = "PHALANX_VALIDATOR", value_delimiter = ',')]
    validator: Vec<PublicKey>,
    /// Validators among those whose jobs are declined; may be repeated
    #[arg(long, value_name = "SS58", env = "PHALANX_BLACKLIST", value_delimiter = ',')]
    blacklist: Vec<PublicKey>,
    /// How many executors of a class on this machine, as always_on.test=4; may be repeated
    #[arg(
        long,
        value_name = "CLASS=N",
        required_unless_present = "hosts",
        value_parser = class_count,
        env = "PHALANX_EXECUTORS",
        value_delimiter = ','
    )]
    executors: Vec<(ExecutorClass, u32)>,
    /// Executors on other machines: the tables [miner.hosts.NAME] of the settings file, as JSON
    #[arg(long, value_name = "JSON", env = "PHALANX_HOSTS")]
    hosts: Option<String>,
    /// On which host a job runs, if several can take it
    #[arg(long, value_enum, value_name = "STRATEGY", default_value_t, env = "PHALANX_PLACEMENT")]
    placement: Strategy,
    /// URL that executors dial, if it is not the listening address, as ws://10.0.0.5:9101
    #[arg(long, value_name = "URL", env = "PHALANX_EXECUTOR_ADDRESS")]
    executor_address: Option<String>,
    /// Address under which the clients of streaming jobs reach the executors, if it is not the one that executors dial
    /// from, as 203.0.113.7
    #[arg(long, value_name = "ADDR", value_parser = client_address, env = "PHALANX_STREAMING_ADDRESS")]
    streaming_address: Option<String>,
    #[command(flatten)]
    source: ExecutorArgs,
    /// How long an executor may be disconnected before its job has failed
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = duration, env = "PHALANX_RECONNECT_GRACE")]
    reconnect_grace: Duration,
    /// How long a stop lets running jobs go on
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = duration, env = "PHALANX_DRAIN_TIME")]
    drain_time: Duration,
    /// Folder of the database
    #[arg(long, value_name = "DIR", env = "PHALANX_STATE_DIR")]
    state_dir: PathBuf,
    /// Only log what executors have left and nobody answers for, instead of removing it
    #[arg(long, env = "PHALANX_REAP_DRY_RUN")]
    reap_dry_run: bool,
    /// Address of health, metrics and status
    #[arg(long, value_name = "ADDR", value_parser = listen_address, env = "PHALANX_HTTP")]
    http: Option<SocketAddr>,
    #[command(flatten)]
    http_args: tls::HttpArgs,
    #[command(flatten)]
    rates: RateArgs,
    #[command(flatten)]
    connections: ConnectionsArg,
    #[command(flatten)]
    ending: EndingArgs,
    #[command(flatten)]
    tls: tls::ServerArgs,
    /// Remove what this process of a miner has left once it was killed
    #[arg(long, value_name = "INSTANCE:EPOCH", value_parser = Owner::watched, hide = true)]
    watch: Option<Owner>,
    /// Be that process, not the one that starts it
    #[arg(long, requires = "watch", hide = true)]
    watch_detached: bool,
}

/// Name of the folder that says which images jobs have brought, in the state folder.
const IMAGES: &str = "images";

/// Runs the command until a signal stops it; SIGHUP asks `again` for its arguments.
pub fn run(args: Args, again: fn() -> Result<Args, String>) -> ExitCode {
    if let Some(owner) = args.watch.clone() {
        return if args.watch_detached { watch_for(&owner, args, again) } else { watch::detach() };
    }
    let budget = Miner::stop_budget(&limits(&args)) + supervise::CLOSING;
    let ending = match args.ending.ending() {
        Ok(ending) => ending,
        Err(problem) => return exit::usage(problem),
    };
    let start = |env: &supervise::Env| {
        let (http, http_args) = (args.http, args.http_args.clone());
        let (listen, tls, state_dir) = (args.listen, args.tls.clone(), args.state_dir.clone());
        let (then, ports) = (fixed(&args), args.source.ports.clone());
        // As it is before there are jobs: what they use is not to make the shares of others smaller.
        let host = executors::host(&args.executors).map_err(exit::usage)?;
        let board = Board::new();
        let mut args = args;
        args.source.errors = board.errors.clone();
        let (mut config, sandboxes) = configure(args, host).map_err(exit::usage)?;
        config.board = board.clone();
        let shown = Arc::new(Mutex::new(Shown::new()));
        tell(&shown, sandboxes);
        let follow = Some((env, &config.board));
        let http = http.map(|http| http_args.bind(http, follow)).transpose().map_err(exit::not_started)?;
        let listener = tls.listen(listen, ClientCertificates::Asked, follow).map_err(exit::not_started)?;
        // Executors have no certificate, but the token that the miner has given them.
        let listener = listener.without_certificate(Peer::is_executor);
        let errors = board.errors.clone();
        env.flight.keep_in(&state_dir);
        pause::follow(env, &board.pause, &state_dir);
        let miner = Miner::start(config, Box::new(listener), env.timer.clone());
        let miner = miner.map_err(|e| exit::not_started(NotStarted::new(&e, e.may_pass())))?;
        miner_status::watch(&miner, env);
        let http = http
            .map(|http| miner_status::serve(http, &miner, (env, shown.clone())))
            .transpose()
            .map_err(exit::failed)?;
        let reloader = miner.reloader();
        let again = move || {
            let mut args = again()?;
            // Executors have them still.
            args.source.ports = ports.clone();
            args.source.errors = errors.clone();
            Ok(args)
        };
        env.reload.set(move || match again().and_then(|args| reload(&reloader, args, (&then, host), &shown)) {
            Ok(()) => log::info!("SIGHUP: the settings were read again"),
            Err(problem) => log::error!("SIGHUP: the settings stay as they are: {problem}"),
        });
        announce(miner.ws_addr(), http.as_ref().map(|http| http.local_addr()), &env.shutdown);
        Ok((miner, http, ending.watch(env, &board)))
    };
    supervise::serve(budget, start, |(miner, http, ending), stopping| {
        drop(ending);
        miner.stop_in(stopping);
        if let Some(http) = http {
            stopping.step("status server", supervise::CLOSING, |step| http.stop_in(step));
        }
    })
}

/// Blocks until what that miner leaves is gone.
fn watch_for(owner: &Owner, args: Args, again: fn() -> Result<Args, String>) -> ExitCode {
    let state_dir = args.state_dir.clone();
    let all_hosts = |args: Args| {
        let images = Images { folder: args.state_dir.join(IMAGES), executors: 0 };
        let mut all = hosts(&args)?;
        if !args.executors.is_empty() {
            let backend = args.source.backend(&Sandboxes::new(), &images, &args.state_dir)?;
            let (name, engine) = (HostName::LOCAL, EngineAddress::local());
            all.push(HostConfig { name, address: String::new(), engine, executors: args.executors, backend });
        }
        Ok(all)
    };
    let mut all = match all_hosts(args) {
        Ok(at_start) => at_start,
        Err(problem) => return exit::usage(problem),
    };
    // Whether SIGHUP has brought the miner the present ones is not known.
    let of_all_settings = || {
        match again().and_then(all_hosts) {
            Ok(now) => all.extend(now),
            Err(problem) => log::warn!("the settings are taken as they were when the miner started: {problem}"),
        }
        all
    };
    let watched =
        watch::ignore_signals().and_then(|()| miner::watch(owner, &state_dir, std::io::stdin(), of_all_settings));
    match watched {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => exit::failed(error),
    }
}

/// Starts this program as it was started. A miner that is to remove nothing has no watcher either.
fn watch_command(dry_run: bool) -> Option<WatchCommand> {
    let program = this::program().ok().filter(|_| !dry_run)?;
    Some(WatchCommand { program, arguments: std::env::args_os().skip(1).collect() })
}

fn limits(args: &Args) -> MinerLimits {
    MinerLimits {
        drain_time: args.drain_time,
        reconnect_grace: args.reconnect_grace,
        max_job_time: args.source.max_job_time,
        ..MinerLimits::default()
    }
}

/// The hosts beside this machine.
fn hosts(args: &Args) -> Result<Vec<HostConfig>, String> {
    let hosts = app::hosts::hosts(args.hosts.as_deref(), &SshPlace::below(&args.state_dir));
    let hosts = hosts.map_err(|problem| format!("[miner.hosts], or --hosts: {problem}"))?;
    if !hosts.is_empty() && !args.source.are_containers() {
        return Err(
            "[miner.hosts], or --hosts, goes with --executor-backend docker: executors elsewhere are containers"
                .to_owned(),
        );
    }
    let classes = classes(&args.executors, hosts.iter().map(|host| &host.executors));
    let dialled = dialled(args);
    let mut configs = Vec::new();
    for HostSetting { name, address: engine, executors } in hosts {
        if !engine.is_on_this_machine() && app::hosts::leads_nowhere_else(&dialled) {
            return Err(format!(
                "executors on host {name} cannot dial {dialled}; name this machine with --executor-address, as \
                 ws://10.0.0.5:9101"
            ));
        }
        let backend = args.source.backend_elsewhere(engine.clone(), &executors, &classes);
        let backend = Arc::new(backend.map_err(|problem| format!("host {name}: {problem}"))?);
        configs.push(HostConfig { name, address: engine.to_string(), engine, executors, backend });
    }
    Ok(configs)
}

/// What executors dial.
fn dialled(args: &Args) -> String {
    let ours = || format!("{}://{}", if args.tls.certificate().is_some() { "wss" } else { "ws" }, args.listen);
    args.executor_address.clone().unwrap_or_else(ours)
}

/// All classes that this miner has executors of, on whichever host.
fn classes<'a>(
    local: &'a [(ExecutorClass, u32)],
    others: impl Iterator<Item = &'a Vec<(ExecutorClass, u32)>>,
) -> Vec<ExecutorClass> {
    local.iter().chain(others.flatten()).map(|(class, _)| *class).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Checks the settings and what is outside, without starting anything.
pub(super) fn check(args: Args, report: &mut Report) {
    let (listen, http, state_dir) = (args.listen, args.http, args.state_dir.clone());
    let open = args.key.openness();
    let mut problems = Problems::default();
    problems.take(args.tls.load(ClientCertificates::Asked));
    problems.take(args.http_args.tls(None));
    problems.take(args.ending.ending());
    args.tls.tell(report);
    args.http_args.tell(report);
    args.source.trust.tell(report);
    let host = problems.take(executors::host(&args.executors));
    let local = classes(&args.executors, std::iter::empty());
    // What is wrong with them is told below.
    let sandboxes = host.and_then(|host| args.source.sandboxes(&local, host).ok()).unwrap_or_default();
    let by = Instant::now() + limits(&args).checks.limit;
    let of_jobs = args.source.problems_of_jobs(&sandboxes, &Shutdown::new(), by);
    let is_one = http.and_then(|http| one_address(listen, http)).is_some();
    let config = host.and_then(|host| match configure_all(args, host) {
        Ok((config, _)) => Some(config),
        Err(more) => {
            problems.0.extend(more);
            None
        }
    });
    report.all_wrong(&problems.0);
    // What stands for a value that nobody gave is nobody's.
    if let Some(config) = config.as_ref().filter(|_| report.has("key")) {
        report.ok(format_args!("--key: {}", config.key.ss58()));
    }
    if let Some(open) = open {
        report.warn(format_args!("--key: {open}"));
    }
    if !(report.has("state-dir") && report.folder(&state_dir, store::miner::LOCK)) {
        report.port("listen", listen, |source| {
            format!("--listen: {}", TransportError::Bind { address: format!("{listen:?}"), source })
        });
        if let Some(http) = http.filter(|_| !is_one) {
            report.port("http", http, |e| format!("--http {http}: {e}"));
        }
    }
    of_jobs.iter().for_each(|problem| report.warn(problem));
    let Some(config) = config.filter(|_| report.has("executors")) else { return };
    for host in config.all_hosts() {
        match host.backend.check(&Shutdown::new(), Instant::now() + config.limits.checks.limit) {
            Ok(what) => report.ok(format_args!("host {}: jobs run {what}", host.name)),
            Err(why) => {
                let name = host.name;
                report.warn(format_args!("host {name}: no job can run, and none is taken until that is over: {why}"));
            }
        }
    }
    for image in config.images.iter().flat_map(|images| &images.pre_pull) {
        match Docker::default().image(image, &Shutdown::new(), Instant::now() + config.limits.checks.limit) {
            Ok(Some(_)) => report.ok(format_args!("--pre-pull: {image} is there")),
            Ok(None) => report.ok(format_args!("--pre-pull: {image} is not there yet, and will be pulled")),
            Err(error) => report.warn(format_args!("--pre-pull: {image}: {error}")),
        }
    }
}

/// What is wrong if `--executors` names a class twice: whether the numbers add up, or the last counts, is not said.
fn named_twice(executors: &[(ExecutorClass, u32)]) -> Option<String> {
    let (class, _) =
        executors.iter().enumerate().find(|(at, (class, _))| executors[..*at].iter().any(|(of, _)| of == class))?.1;
    let counts = executors.iter().filter(|(of, _)| of == class).map(|(_, count)| count.to_string());
    let counts = counts.collect::<Vec<_>>().join(" and ");
    Some(format!("--executors names {} more than once, with {counts}; give one number for a class", class.as_str()))
}

/// As [`configure_all`], with all that is wrong in one line.
fn configure(args: Args, host: Host) -> Result<(MinerConfig, Shown), String> {
    configure_all(args, host).map_err(|problems| problems.join("; "))
}

/// All that is wrong is found at once.
fn configure_all(mut args: Args, host: Host) -> Result<(MinerConfig, Shown), Vec<String>> {
    args.source.server_name = args.tls.name_for(&dialled(&args));
    args.source.server_files = args.tls.certificate().map(Path::to_owned);
    let mut problems = Problems::default();
    let key = problems.take(args.key.load());
    problems.add(args.http.and_then(|http| one_address(args.listen, http)));
    problems.take(args.source.check_transfers());
    problems.add(named_twice(&args.executors));
    let limits = limits(&args);
    let executors = args.executors.iter().map(|(_, count)| *count as usize).sum();
    let images = Images { folder: args.state_dir.join(IMAGES), executors };
    let image_care = problems.take(args.source.image_care(&images)).flatten().filter(|_| !args.executors.is_empty());
    let hosts = problems.take(hosts(&args)).unwrap_or_default();
    let classes = classes(&args.executors, hosts.iter().map(|host| &host.executors));
    // A reload may change how many share it.
    let slots = u32::try_from(executors).unwrap_or(u32::MAX);
    let mut sandboxes = problems.take(args.source.sandboxes(&classes, Host { slots, ..host })).unwrap_or_default();
    sandboxes.retain(|(class, _)| args.executors.iter().any(|(of, _)| of == class));
    let backend = problems.take(args.source.backend(&sandboxes, &images, &args.state_dir));
    let (Some(key), Some(backend)) = (key, backend) else { return Err(problems.0) };
    let mut config = MinerConfig {
        rates: args.rates.of_peers(),
        validators: args.validator,
        blacklist: args.blacklist,
        executors: args.executors,
        hosts,
        placement: args.placement,
        executor_address: args.executor_address,
        streaming_address: args.streaming_address,
        limits,
        images: image_care,
        reap_dry_run: args.reap_dry_run,
        watch: watch_command(args.reap_dry_run),
        ..MinerConfig::new(key, args.state_dir, backend)
    };
    if let Some(places) = problems.take(args.connections.places(config.server.places.total)) {
        config.server.places.total = places;
    }
    config.server.places.connects = args.rates.handshake_rate;
    problems.0.extend(config.validate());
    if !problems.0.is_empty() {
        return Err(problems.0);
    }
    let shown = args.source.in_words(&sandboxes);
    Ok((config, shown))
}

/// Those of them that a reload is refused for: what runs is found and removed by them.
const REFUSED: [&str; 2] = ["--runner", "--executor-backend"];

/// The flags that take a restart.
fn fixed(args: &Args) -> Fixed {
    // Executors are told the new ones; the miner itself cares for images as at its start.
    let executors = args.executors.iter().map(|(_, count)| *count as usize).sum();
    let ImageBounds { count, bytes, free } = args.source.images.bounds(executors);
    let mut flags = vec![
        ("--listen", args.listen.to_string()),
        ("--key", args.key.named()),
        ("--executor-address", format!("{:?}", args.executor_address)),
        ("--streaming-address", format!("{:?}", args.streaming_address)),
        ("--drain-time", format!("{:?}", args.drain_time)),
        ("--state-dir", args.state_dir.display().to_string()),
        ("--reap-dry-run", args.reap_dry_run.to_string()),
        ("--pre-pull", args.source.pre_pull.join(",")),
        ("--image-free-space", free.to_string()),
        ("--image-space", bytes.to_string()),
        ("--image-count", count.to_string()),
        ("--pull-silence", format!("{:?}", args.source.images.pull_silence)),
        ("--http", format!("{:?}", args.http)),
        ("--runner", args.source.runner.name().to_owned()),
        ("--executor-backend", if args.source.are_containers() { "docker" } else { "process" }.to_owned()),
    ];
    flags.extend(args.tls.flags());
    flags.extend(args.http_args.flags());
    flags.extend(args.rates.flags());
    flags.push(args.connections.flag());
    flags.extend(args.ending.flags());
    Fixed(flags)
}

/// Hands settings that were read again to the miner; names what takes a restart.
fn reload(reloader: &Reloader, args: Args, (then, host): (&Fixed, Host), shown: &Mutex<Shown>) -> Result<(), String> {
    for (flag, then, now) in then.changed(&fixed(&args)) {
        if REFUSED.contains(&flag) {
            return Err(format!("{flag} was {then} at the start, and takes a restart to be {now}"));
        }
        Fixed::warn(flag);
    }
    let (config, sandboxes) = configure(args, host)?;
    reloader.reload(config)?;
    tell(shown, sandboxes);
    Ok(())
}

/// Shows what the sandboxes of jobs are, and logs those that are new.
fn tell(shown: &Mutex<Shown>, now: Shown) {
    let mut shown = lock(shown);
    for (class, sandbox) in now.iter().filter(|one| !shown.contains(one)) {
        log::info!("jobs of class {}: {sandbox}", class.as_str());
    }
    *shown = now;
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::identity::KeyPair;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_takes_a_restart_is_known_by_its_flag() {
        let alice = KeyPair::load("//Alice").unwrap().ss58();
        let line = ["x", "--listen", "127.0.0.1:0", "--key", "//Bob", "--validator", &alice, "--state-dir", "/s"];
        let line = [&line[..], &["--executors", "always_on.test=1"]].concat();
        let fixed = |more: &[&str]| fixed(&Line::try_parse_from([&line, more].concat()).unwrap().args).0;
        let changed = |more: &[&str]| {
            let pairs = fixed(&[]).into_iter().zip(fixed(more));
            pairs.filter(|(then, now)| then != now).map(|(then, _)| then.0).collect::<Vec<_>>()
        };
        assert_eq!(changed(&["--executors", "always_on.gpu-24gb=4"]), ["--image-count"], "as many as executors");
        for (flag, value) in [
            ("--image-free-space", "1GB"),
            ("--image-space", "1GB"),
            ("--image-count", "9"),
            ("--pull-silence", "1m"),
            ("--handshake-rate", "1/1s"),
            ("--frame-rate", "1/1s"),
            ("--bad-frame-rate", "1/1s"),
            ("--auth-rate", "1/1s"),
        ] {
            assert_eq!(changed(&[flag, value]), [flag]);
        }
        for more in [["--reconnect-grace", "1s"], ["--executors", "always_on.gpu-24gb=1"]] {
            assert_eq!(changed(&more), Vec::<&str>::new());
        }
        assert_eq!(changed(&["--executor-backend", "docker"]), REFUSED[1..]);
        assert_eq!(changed(&["--reap-dry-run"]), ["--reap-dry-run"]);
        assert_eq!(changed(&["--tls-cert", "c", "--tls-key", "k"]), ["--tls-cert", "--tls-key"]);
    }

    #[test]
    fn a_host_is_checked_for_what_its_own_classes_need() {
        let alice = KeyPair::load("//Alice").unwrap().ss58();
        let line = ["x", "--listen", "127.0.0.1:0", "--key", "//Bob", "--validator", &alice, "--state-dir", "/s"];
        let hosts = r#"{"gpu": {"address": "unix:///gpu.sock", "executors": {"always_on.gpu-24gb": 1}},
            "cpu": {"address": "unix:///cpu.sock", "executors": {"always_on.test": 1}}}"#;
        let docker = ["--executor-backend", "docker", "--executor-image", "i", "--probe-image", "p", "--hosts", hosts];
        let args = Line::try_parse_from([&line[..], &docker[..]].concat()).unwrap().args;
        let checked = super::hosts(&args).unwrap().into_iter().map(|host| {
            let checks = host.backend.security().unwrap().clone();
            (host.name.to_string(), checks.toolkit.is_some(), checks.probes.len())
        });
        assert_eq!(checked.collect::<Vec<_>>(), [("gpu".to_owned(), true, 1), ("cpu".to_owned(), false, 1)]);
    }
}
