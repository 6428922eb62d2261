//! `phalanx miner`: serves validators and executors, manages executor pools.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;

use super::announce::announce;
use super::key::KeyArg;
use super::tls;
use super::values::{class_count, duration, listen_address};
use crate::app::{exit, status, supervise};
use crate::executor::RunnerKind;
use crate::identity::{KeyPair, PublicKey};
use crate::miner::executor_pool::SlotCounts;
use crate::miner::{DockerBackend, ExecutorBackend, Miner, MinerConfig, MinerLimits, ProcessBackend};
use crate::net::http::HttpServer;
use crate::ops::status::Board;
use crate::protocol::ExecutorClass;
use crate::transport::ws::WsListener;

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
    /// How many executors of a class, as always_on.test=4; may be repeated
    #[arg(
        long,
        value_name = "CLASS=N",
        required = true,
        value_parser = class_count,
        env = "PHALANX_EXECUTORS",
        value_delimiter = ','
    )]
    executors: Vec<(ExecutorClass, u32)>,
    /// Where executors run
    #[arg(long, value_enum, default_value_t = BackendArg::Process, env = "PHALANX_EXECUTOR_BACKEND")]
    executor_backend: BackendArg,
    /// Image of executors in containers; its entry point takes the arguments of phalanx
    #[arg(long, value_name = "IMAGE", env = "PHALANX_EXECUTOR_IMAGE")]
    executor_image: Option<String>,
    /// URL that executors dial, if it is not the listening address, as ws://10.0.0.5:9101
    #[arg(long, value_name = "URL", env = "PHALANX_EXECUTOR_ADDRESS")]
    executor_address: Option<String>,
    /// How executors run the jobs' commands
    #[arg(long, value_enum, default_value_t, env = "PHALANX_RUNNER")]
    runner: RunnerKind,
    /// How long a stop lets running jobs go on
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = duration, env = "PHALANX_DRAIN_TIME")]
    drain_time: Duration,
    /// Folder of the database
    #[arg(long, value_name = "DIR", env = "PHALANX_STATE_DIR")]
    state_dir: PathBuf,
    /// Address of health, metrics and status
    #[arg(long, value_name = "ADDR", value_parser = listen_address, env = "PHALANX_HTTP")]
    http: Option<SocketAddr>,
    #[command(flatten)]
    tls: tls::ServerArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendArg {
    /// Processes of this machine
    Process,
    /// Containers of the Docker Engine (needs --executor-image)
    Docker,
}

/// Runs the command until a signal stops it.
pub fn run(args: Args) -> ExitCode {
    let limits = MinerLimits { drain_time: args.drain_time, ..MinerLimits::default() };
    let start = |env: &supervise::Env| {
        let http = args.http;
        let tls = args.tls.load().map_err(exit::usage)?;
        let listen = args.listen;
        let config = MinerConfig { limits, ..configure(args).map_err(exit::usage)? };
        let http = http.map(status::bind).transpose().map_err(exit::usage)?;
        let listener = WsListener::bind(listen, tls).map_err(|e| exit::usage(format!("--listen: {e}")))?;
        let miner = Miner::start(config, Box::new(listener), env.timer.clone()).map_err(exit::usage)?;
        let http = http.map(|http| serve_status(http, &miner, env)).transpose().map_err(exit::failed)?;
        announce(miner.ws_addr(), http.as_ref().map(|http| http.local_addr()));
        Ok((miner, http))
    };
    supervise::serve(Miner::stop_budget(&limits) + supervise::CLOSING, start, |(miner, http), stopping| {
        miner.stop(stopping);
        if let Some(http) = http {
            stopping.step("status server", supervise::CLOSING, |step| http.stop(step));
        }
    })
}

fn configure(args: Args) -> Result<MinerConfig, String> {
    let key = KeyPair::load(&args.key.key).map_err(|e| format!("--key: {e}"))?;
    let runner = args.runner.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let backend: Arc<dyn ExecutorBackend> = match (args.executor_backend, args.executor_image) {
        (BackendArg::Process, None) => {
            Arc::new(ProcessBackend::new(runner).map_err(|e| format!("cannot find this program: {e}"))?)
        }
        (BackendArg::Process, Some(_)) => return Err("--executor-image goes with --executor-backend docker".to_owned()),
        (BackendArg::Docker, Some(image)) => Arc::new(DockerBackend::new(key.ss58(), image, runner)),
        (BackendArg::Docker, None) => {
            return Err("--executor-image is missing; name the image whose entry point is phalanx".to_owned());
        }
    };
    Ok(MinerConfig {
        validators: args.validator,
        executors: args.executors,
        executor_address: args.executor_address,
        ..MinerConfig::new(key, args.state_dir, backend)
    })
}

fn serve_status(listener: TcpListener, miner: &Miner, env: &supervise::Env) -> Result<HttpServer, String> {
    let observer = miner.observer();
    status::serve("miner", "min", listener, env, &Board::new(), move |health, metrics| {
        let now = observer.status();
        health.up("miner");
        metrics.gauge("phalanx_miner_jobs", "Jobs that have not ended.", &[]).set(now.jobs);
        metrics.gauge("phalanx_miner_validators", "Authenticated validator connections.", &[]).set(now.validators);
        metrics.gauge("phalanx_miner_connected_executors", "Connected executors.", &[]).set(now.connected_executors);
        let classes: serde_json::Map<_, _> = now
            .executors
            .iter()
            .map(|(class, slots)| {
                let SlotCounts { declared, free, reserved, busy, ending, quarantined } = slots;
                let counts = json!({
                    "declared": declared, "free": free, "reserved": reserved, "busy": busy, "ending": ending,
                    "quarantined": quarantined,
                });
                (class.as_str().to_owned(), counts)
            })
            .collect();
        json!({
            "jobs": now.jobs,
            "validators": now.validators,
            "connected_executors": now.connected_executors,
            "executors": classes,
        })
    })
}
