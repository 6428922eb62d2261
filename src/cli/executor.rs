//! `phalanx executor`: one job for the miner that started this process.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use super::images::ImageArgs;
use super::transfers::TransferArgs;
use super::values::{Arguments, command_line, duration, label};
use crate::app::{exit, supervise};
use crate::executor::sandbox::Sandbox;
use crate::executor::streaming::PortRange;
use crate::executor::{self, ExecutorConfig, Hooks, RunnerKind};
use crate::store::spool::Spool;

/// The arguments of `phalanx executor`; the miner's address and the token come by MINER_ADDRESS and EXECUTOR_TOKEN.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds for the part before the initial job request
    #[arg(long, value_name = "S", default_value_t = 30, env = "PHALANX_STARTUP_TIME_LIMIT")]
    startup_time_limit: u64,
    /// How the job's command is run
    #[arg(long, value_enum, default_value_t, env = "PHALANX_RUNNER")]
    runner: RunnerKind,
    /// How long the job goes on without a connection to the miner
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = duration, env = "PHALANX_MINER_GONE_AFTER")]
    miner_gone_after: Duration,
    /// How long a job may take in all, whatever its limits are
    #[arg(long, value_name = "DUR", value_parser = duration, env = "PHALANX_MAX_JOB_TIME")]
    max_job_time: Option<Duration>,
    /// What the job may do, as JSON; a miner gives it
    #[arg(long, value_name = "JSON", value_parser = Sandbox::parse, env = "PHALANX_SANDBOX")]
    sandbox: Option<Sandbox>,
    /// A program of the operator's before each job, as a command line; where it fails, so does the job
    #[arg(long, value_name = "COMMAND", value_parser = command_line, env = "PHALANX_BEFORE_JOB")]
    before_job: Option<Arguments>,
    /// A program of the operator's after each job
    #[arg(long, value_name = "COMMAND", value_parser = command_line, env = "PHALANX_AFTER_JOB")]
    after_job: Option<Arguments>,
    /// A label for what is made in the engine, as phalanx.miner=5F…; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = label, env = "PHALANX_LABEL", value_delimiter = ',')]
    label: Vec<(String, String)>,
    #[command(flatten)]
    images: ImageArgs,
    /// Folder where the miner keeps which images jobs have brought
    #[arg(long, value_name = "DIR", env = "PHALANX_IMAGES_DIR")]
    images_dir: Option<PathBuf>,
    #[command(flatten)]
    transfers: TransferArgs,
    /// Ports of which a streaming job takes one for its clients [default: NGINX_PORT, which the Python miner sets, or
    /// 6000-6999]
    #[arg(long, value_name = "FIRST-LAST", env = "PHALANX_STREAMING_PORTS")]
    streaming_ports: Option<PortRange>,
    /// Folder for a job's end that the miner cannot be told
    #[arg(long, value_name = "DIR", env = "PHALANX_SPOOL_DIR")]
    spool_dir: Option<PathBuf>,
    #[command(flatten)]
    tls: super::tls::ClientArgs,
}

/// Runs the command: exit 0 if the job ended, whatever its outcome, and its last message was sent.
pub fn run(args: Args) -> ExitCode {
    let Ok(address) = std::env::var("MINER_ADDRESS") else {
        return exit::usage("MINER_ADDRESS is not set; it should be the miner's URL, as ws://127.0.0.1:9101");
    };
    let Ok(token) = std::env::var("EXECUTOR_TOKEN") else {
        return exit::usage("EXECUTOR_TOKEN is not set; it should be the token that the miner made for this executor");
    };
    let streaming_ports = match (args.streaming_ports, std::env::var("NGINX_PORT")) {
        (Some(ports), _) => ports,
        (None, Err(_)) => PortRange::DEFAULT,
        (None, Ok(port)) => match port.parse() {
            Ok(ports) => ports,
            Err(problem) => return exit::usage(format!("NGINX_PORT: {problem}")),
        },
    };
    let dialer = match args.tls.load(&address) {
        Ok(dialer) => dialer,
        Err(problem) => return exit::usage(problem),
    };
    let (transfer_tls, transfer_proxies) = match (args.tls.trust.transfers(), args.transfers.proxies()) {
        (Ok(tls), Ok(proxies)) => (tls, proxies),
        (Err(problem), _) | (_, Err(problem)) => return exit::usage(problem),
    };
    let config = ExecutorConfig {
        transfer_tls,
        transfer_proxies,
        startup_time_limit: Duration::from_secs(args.startup_time_limit),
        runner: args.runner,
        miner_gone_after: args.miner_gone_after,
        max_job_time: args.max_job_time,
        sandbox: args.sandbox.unwrap_or_default(),
        images: args.images.settings(args.images_dir),
        reach: args.transfers.reach(),
        hugging_face_token_for_jobs: args.transfers.hugging_face_token_for_jobs,
        hooks: Hooks {
            before_job: args.before_job.unwrap_or_default().into(),
            after_job: args.after_job.unwrap_or_default().into(),
        },
        labels: args.label,
        streaming_ports,
        spool: args.spool_dir.map(Spool::new),
        ..ExecutorConfig::new(address, token)
    };
    let problems = config.validate();
    if !problems.is_empty() {
        return exit::usage(problems.join("; "));
    }
    let code =
        supervise::with_env(|env| match executor::run(config, Arc::new(dialer), env.timer.clone(), &env.shutdown) {
            Ok(report) if report.kept => {
                log::warn!("the job ended ({:?}), which the miner was not told and finds in the spool", report.end);
                ExitCode::from(exit::KEPT)
            }
            Ok(report) if report.stop.unsent > 0 => {
                log::error!("the job ended ({:?}), but the miner was not notified", report.end);
                ExitCode::from(exit::UNSENT)
            }
            Ok(_) => ExitCode::from(exit::DONE),
            Err(error) => exit::failed(error),
        });
    // Our miner removes its folder for us as well, but may be gone for good. What is not empty is left to it.
    let folder = std::env::temp_dir();
    if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("phalanx-exec-")) {
        let _ = std::fs::remove_dir(folder);
    }
    code
}
