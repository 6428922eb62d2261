//! `phalanx demo`: all four roles on loopback, real jobs through real sockets, and a table of what became of them.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::job_files;
use super::job_text::{Form, OutputArgs};
use super::submit::{self, Plan, User};
use crate::app::job_client::SubmittedJob;
use crate::app::jobfile::{self, JobSpec};
use crate::app::local::{LocalConfig, LocalNetwork, scratch_dir};
use crate::app::output::Output;
use crate::app::{exit, supervise};
use crate::base::shutdown::{Level, Shutdown};
use crate::executor::RunnerKind;
use crate::miner::ProcessBackend;
use crate::proc::docker::Docker;
use crate::proc::tool::{self, ToolError};

/// The jobs of `examples/jobs`, which the binary carries with it.
const JOBS: [(&str, &str); 5] = [
    ("word-count", include_str!("../../examples/jobs/word-count.json")),
    ("sha256", include_str!("../../examples/jobs/sha256.json")),
    ("artifacts", include_str!("../../examples/jobs/artifacts.json")),
    ("big-output", include_str!("../../examples/jobs/big-output.json")),
    ("environment", include_str!("../../examples/jobs/environment.json")),
];

/// Executors of the demo's miner; as many jobs are on their way at a time, because a validator rejects what finds none.
const EXECUTORS: u32 = 4;

/// How long an engine may take to say that it is there, or to import an image of two megabytes.
const DOCKER_TIME: Duration = Duration::from_secs(20);

/// The image of the demo's jobs in containers, made here, never pulled.
const IMAGE: &str = "phalanx-demo:busybox";

/// The arguments of `phalanx demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many jobs; the examples in turn
    #[arg(long, value_name = "N", default_value_t = JOBS.len(), env = "PHALANX_JOBS")]
    jobs: usize,
    /// How jobs run: containers if a Docker Engine and a static busybox are at hand, else plain processes
    #[arg(long, value_enum, default_value_t, env = "PHALANX_RUNNER")]
    runner: LocalRunner,
    /// Print one object for each job instead of the table
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// How the jobs of a network on this machine run; they are those of whoever started it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LocalRunner {
    /// Containers if that is possible here, else plain processes
    #[default]
    Auto,
    /// Containers
    Docker,
    /// Plain processes
    Process,
}

/// Runs the command: exit 0 only if every job completed.
pub fn run(args: Args) -> ExitCode {
    if args.jobs == 0 || args.jobs > 10_000 {
        return exit::usage(format!("--jobs is {}; it should be from 1 to 10000", args.jobs));
    }
    if let Some(folder) = &args.output.output
        && let Err(error) = job_files::prepare(folder)
    {
        return exit::usage(format!("--output {}: {error}", folder.display()));
    }
    supervise::with_env(|env| match demo(&args, env) {
        Ok(code) => code,
        Err(problem) => exit::failed(problem),
    })
}

fn demo(args: &Args, env: &supervise::Env) -> Result<ExitCode, String> {
    let scratch = scratch_dir()?;
    let (runner, image) = choose_runner(args.runner, &env.shutdown)?;
    let jobs = jobs(args.jobs, image)?;
    let backend = ProcessBackend::new(runner.name()).map_err(|e| format!("cannot find this program: {e}"))?;
    let config = LocalConfig {
        state_dir: scratch.path().to_owned(),
        executors: EXECUTORS,
        backend: Arc::new(backend),
        // After a signal there is nobody who waits for the jobs, and without one they have ended.
        drain_time: Duration::ZERO,
    };
    let stop = Shutdown::new();
    let cancel = stop.clone();
    let _signal = env.shutdown.on(Level::Drain, move || cancel.cancel());
    let unwritable = |e: std::io::Error| format!("cannot write to stdout: {e}");
    let mut out = Output::new(&stop).map_err(unwritable)?;
    // The table is still shown after a first signal; a second one is not to wait for a reader either.
    let mut table_out = Output::new(&env.shutdown).map_err(unwritable)?;
    let network = LocalNetwork::start(config, &env.timer)?;
    let plan = Plan {
        user: User::new(format!("http://{}", network.http_addr()), network.user().clone()),
        target: network.target(),
        tag: String::new(),
        wait: true,
        at_once: Some(EXECUTORS as usize),
        form: args.output.form(args.json),
        output: args.output.output.clone(),
    };
    let mut table = String::new();
    let outcome = if args.json {
        submit::submit(&plan, jobs, &stop, &mut out)
    } else {
        submit::each(&plan, jobs, &stop, &mut |name, job| {
            table += &entry(plan.form, name, job);
            Ok(())
        })
    };
    let stopped = supervise::stop_within(env, network.stop_budget(), |stopping| network.stop_in(stopping));
    if let Err(error) = scratch.close() {
        log::error!("the temporary folder is not removed: {error}");
    }
    table_out.write_all(table.as_bytes()).and_then(|()| table_out.flush()).map_err(unwritable)?;
    match outcome {
        Ok(true) => Ok(stopped),
        Ok(false) => Ok(ExitCode::from(exit::FAILED)),
        Err(_) if env.shutdown.is_set() => Ok(ExitCode::from(exit::FAILED)),
        Err(problem) => Err(problem.why),
    }
}

/// The examples in turn, numbered from the second turn on; in containers they run in `image`.
fn jobs(count: usize, image: Option<&str>) -> Result<Vec<(String, JobSpec)>, String> {
    (0..count)
        .map(|n| {
            let (name, text) = JOBS[n % JOBS.len()];
            let mut spec = jobfile::parse_text(name, text).map_err(|e| e.to_string())?;
            if let Some(image) = image {
                spec.set_image(image);
            }
            let name = if n < JOBS.len() { name.to_owned() } else { format!("{name}-{}", n / JOBS.len() + 1) };
            Ok((name, spec))
        })
        .collect()
}

/// The runner of all jobs, and the image to use with it.
fn choose_runner(wanted: LocalRunner, shutdown: &Shutdown) -> Result<(RunnerKind, Option<&'static str>), String> {
    let image = match wanted {
        LocalRunner::Process => return Ok((RunnerKind::Process, None)),
        LocalRunner::Docker | LocalRunner::Auto => build_image(shutdown),
    };
    match (image, wanted) {
        (Ok(()), _) => Ok((RunnerKind::Docker, Some(IMAGE))),
        (Err(why), _) if shutdown.is_set() => Err(why),
        (Err(why), LocalRunner::Auto) => {
            eprintln!("jobs run as plain processes: {why}");
            Ok((RunnerKind::Process, None))
        }
        (Err(why), _) => Err(format!("--runner docker: {why}")),
    }
}

/// Makes the image from the machine's own static busybox, unless it is there.
fn build_image(shutdown: &Shutdown) -> Result<(), String> {
    let token = Shutdown::new();
    let cancel = token.clone();
    let _signal = shutdown.on(Level::Drain, move || cancel.cancel());
    let deadline = Instant::now() + DOCKER_TIME;
    let docker = Docker::default();
    let in_words = |error: ToolError| error.to_string();
    docker.version(&token, deadline).map_err(in_words)?;
    if docker.image(IMAGE, &token, deadline).map_err(in_words)?.is_some() {
        return Ok(());
    }
    let busybox = busybox().ok_or("there is no static busybox to make an image of (Debian: busybox-static)")?;
    let folder = scratch_dir()?;
    let bin = folder.path().join("bin");
    let fail = |what: &'static str| move |e: std::io::Error| format!("cannot {what}: {e}");
    std::fs::create_dir(&bin).map_err(fail("make a folder for the image"))?;
    std::fs::copy(&busybox, bin.join("busybox")).map_err(fail("copy busybox"))?;
    let mut list = Command::new(&busybox);
    list.arg("--list");
    let applets = tool::output(list, "list busybox' applets", &token, deadline).map_err(in_words)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).map_err(fail("link an applet"))?;
    }
    docker.import(folder.path(), IMAGE, None, &token, deadline).map_err(in_words)
}

fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox"].into_iter().map(PathBuf::from).find(|p| p.exists())
}

/// A job's entry of the table. What the roles and the job wrote is escaped.
fn entry(form: Form, name: &str, job: &SubmittedJob) -> String {
    let (bold, plain) = if std::io::stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let exit_code = job.exit_code().map_or_else(|| "-".to_owned(), |code| code.to_string());
    let (uuid, status, seconds) = (&job.uuid, form.words(&job.status()), job.took().as_secs_f64());
    let mut out = format!("{bold}{name:<14}{plain} {uuid}  {status}  exit {exit_code}  {seconds:.2} s\n");
    let history = job.status_history.iter().map(|entry| {
        let at = form.words(&entry.created_at);
        // The time of the day is enough for a run of seconds.
        let time = at.split('T').nth(1).unwrap_or(&at).trim_end_matches('Z');
        format!("{time:.12} {}", form.words(&entry.status))
    });
    for part in history.collect::<Vec<_>>().chunks(4) {
        out += &format!("    {}\n", part.join("   "));
    }
    if let Some(error) = job.error() {
        out += &format!("    {}\n", form.words(&error));
    }
    out + &form.output(job)
}
