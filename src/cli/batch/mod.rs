//! `phalanx batch`: one synthetic batch, its lines as jobs end, and its summary; or a recorded one judged again.
//!
//! Lines and summary go to stdout, progress to stderr.

mod jobs;
mod progress;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use jobs::JobList;
use progress::Progress;

use super::key::load_key;
use super::miner_list::{MISSING, MinerListArgs};
use super::values::duration;
use crate::app::output::Output;
use crate::app::{exit, supervise};
use crate::base::rng::Rng;
use crate::base::shutdown::Level;
use crate::identity::PublicKey;
use crate::ops::redact::{JsonText, OneLine};
use crate::store::FolderLock;
use crate::store::{self, StoreError};
use crate::transport::ws::WsDialer;
use crate::validator::MinerAddress;
use crate::validator::batch::{
    BatchConfig, BatchError, Ending, JobLine, NoLine, RunningBatch, Summary, kept_seed, replay,
};

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The arguments of `phalanx batch`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The validator's hotkey: a development URI (//Alice), the path of a Bittensor hotkey file, a mnemonic, or 0x and
    /// 64 hex digits; prefer a file: other users of the machine can read the arguments of a process
    #[arg(long, value_name = "K", env = "PHALANX_KEY", hide_env_values = true, required_unless_present = "replay")]
    key: Option<Secret>,
    #[command(flatten)]
    miners: MinerListArgs,
    /// Validators whose organic jobs excuse a miner that is busy, besides this one; may be repeated
    #[arg(long, value_name = "SS58", env = "PHALANX_KNOWN_VALIDATOR", value_delimiter = ',')]
    known_validator: Vec<PublicKey>,
    /// The jobs: a job file on each line, as one JSON object; with `expected_stdout` in it, an answer that differs from
    /// that is wrong. A miner gets those of its classes, at random
    #[arg(long, value_name = "FILE", env = "PHALANX_BATCH_JOBS", required_unless_present = "replay")]
    jobs: Option<PathBuf>,
    /// Jobs of each miner [default: as many as its manifest declares, at most 1000]
    #[arg(long, value_name = "N", env = "PHALANX_PER_MINER")]
    per_miner: Option<usize>,
    /// How long what is ready waits for the others, once the last attempt to connect has begun
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = duration, env = "PHALANX_GATE")]
    gate: Duration,
    /// How long the batch takes; ten seconds later everything has ended
    #[arg(long, value_name = "DUR", default_value = "20m", value_parser = duration, env = "PHALANX_LIMIT")]
    limit: Duration,
    /// How long after its time an answer is waited for, to be noted; it does not count
    #[arg(long, value_name = "DUR", default_value = "2m", value_parser = duration, env = "PHALANX_LATE")]
    late: Duration,
    /// Decides which miner gets which jobs, and every order [default: at random, and printed]
    #[arg(long, value_name = "S", env = "PHALANX_SEED")]
    seed: Option<u64>,
    /// Connections that are made at a time
    #[arg(long, value_name = "N", default_value_t = 64, env = "PHALANX_CONNECTS")]
    connects: usize,
    /// How often a failed connection, and a job that the horde failed before the gate, is tried again
    #[arg(long, value_name = "N", default_value_t = 1, env = "PHALANX_RETRIES")]
    retries: u32,
    /// Abort, with exit code 1, when more per cent of the miners fail: most of their jobs are not completed
    #[arg(long, value_name = "PERCENT", env = "PHALANX_MAX_FAIL")]
    max_fail: Option<u8>,
    /// Flag the batch when the first and the last job request leave farther apart
    #[arg(long, value_name = "DUR", default_value = "250ms", value_parser = duration, env = "PHALANX_MAX_SPREAD")]
    max_spread: Duration,
    /// Folder in which results are kept as they arrive; it holds one batch
    #[arg(long, value_name = "DIR", env = "PHALANX_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Go on with the batch in the folder: what has ended stays as it is
    #[arg(long, requires = "state_dir", env = "PHALANX_RESUME")]
    resume: bool,
    /// Fetch the manifests and show who would get which jobs; none is asked for
    #[arg(long, conflicts_with_all = ["state_dir", "resume"], env = "PHALANX_DRY_RUN")]
    dry_run: bool,
    /// Show the recorded batch in the folder again, without a network; with --jobs, which must be its jobs, the answers
    /// are judged again by what those expect
    #[arg(long, requires = "state_dir", conflicts_with_all = ["resume", "dry_run"], env = "PHALANX_REPLAY")]
    replay: bool,
    #[command(flatten)]
    tls: super::tls::ClientArgs,
    /// Print an object for each job, and one for the summary
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
}

/// A key as given; nothing of it is shown.
#[derive(Clone)]
struct Secret(String);

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Runs the command: exit 0 if the batch ran to its end whatever the miners answered, 1 if it was cancelled or aborted,
/// 2 if a flag or a file is wrong.
///
/// Blocks until the batch has ended. Ctrl-C ends it within some ten seconds, and what has ended is shown.
pub fn run(args: Args) -> ExitCode {
    let jobs = match args.jobs.as_deref().map(JobList::load).transpose() {
        Ok(jobs) => jobs.unwrap_or_default(),
        Err(problem) => return exit::usage(problem),
    };
    if args.replay {
        return again(&args, &jobs);
    }
    let other = args.state_dir.as_deref().map(|folder| FolderLock::look_for_others(folder, store::batch::LOCK));
    if let Some(Err(other)) = other {
        return exit::usage(format!("--state-dir: {other}"));
    }
    let (config, miners, dialer) = match configure(&args, &jobs) {
        Ok(configured) => configured,
        Err(problem) => return exit::usage(problem),
    };
    supervise::with_env(|env| {
        let mut out = match Output::new(&env.shutdown) {
            Ok(out) => out,
            Err(error) => return exit::failed(format!("cannot write to stdout: {error}")),
        };
        let (seed, is_quiet, count) = (config.seed, args.json, miners.len());
        let maker_and_judge = (jobs.maker(), jobs.judge());
        let batch = match RunningBatch::start(config, miners, maker_and_judge, Arc::new(dialer), env.timer.clone()) {
            Ok(batch) => batch,
            Err(error) => return refused(&args, &error),
        };
        let (cancel, metrics) = (batch.cancel_signal(), batch.metrics().clone());
        let _signal = env.shutdown.on(Level::Drain, move || cancel.cancel());
        let mut progress = Progress::new(seed, count);
        let shown = show(&batch, is_quiet, &mut progress, &mut out);
        if shown.is_err() {
            batch.cancel_signal().cancel();
        }
        let summary = batch.finish();
        progress.finish();
        metrics.log();
        match (shown, summary) {
            (_, Err(error)) => exit::failed(of_folder(&args, &error)),
            (Err(problem), Ok(_)) => exit::failed(problem),
            (Ok(()), Ok(summary)) => end(&summary, is_quiet, &mut out),
        }
    })
}

/// Blocks for the list of miners, at most 10 s for an address.
fn configure(args: &Args, jobs: &JobList) -> Result<(BatchConfig, Vec<MinerAddress>, WsDialer), String> {
    let Some(Secret(key)) = &args.key else { return Err("--key is missing".to_owned()) };
    let key = load_key(key).map_err(|problem| format!("--key: {problem}"))?;
    let miners = args.miners.load(&args.tls)?.ok_or(MISSING)?.miners;
    let dialer = args.tls.load_for_many()?;
    let seed = match (&args.state_dir, args.resume, args.seed) {
        (Some(folder), true, None) => kept_seed(folder).map_err(|error| of_folder(args, &error))?,
        (_, _, seed) => seed.unwrap_or_else(|| Rng::from_entropy().next_u64() >> 1),
    };
    let config = BatchConfig {
        per_miner: args.per_miner,
        gate: args.gate,
        limit: args.limit,
        late: args.late,
        connects: args.connects,
        retries: args.retries,
        max_fail: args.max_fail,
        known: args.known_validator.clone(),
        max_spread: args.max_spread,
        dry_run: args.dry_run,
        state_dir: args.state_dir.clone(),
        made_of: jobs.digest().to_owned(),
        resume: args.resume,
        ..BatchConfig::new(key, seed)
    };
    match config.validate(miners.len()) {
        problems if problems.is_empty() => Ok((config, miners, dialer)),
        problems => Err(problems.join("; ")),
    }
}

/// A batch that did not begin: by the folder itself, which cannot be read or written, or by what was asked for.
fn refused(args: &Args, error: &BatchError) -> ExitCode {
    let problem = of_folder(args, error);
    match error {
        BatchError::Damaged(_) | BatchError::Store(StoreError::Sql(_) | StoreError::File { .. }) => {
            exit::failed(problem)
        }
        _ => exit::usage(problem),
    }
}

/// The error, with its folder if it is of that.
fn of_folder(args: &Args, error: &BatchError) -> String {
    match (&args.state_dir, error) {
        (_, BatchError::Config(_) | BatchError::Panicked(_)) | (None, _) => error.to_string(),
        (Some(folder), error) => format!("--state-dir {}: {error}", folder.display()),
    }
}

/// Shows lines as they come, until there are no more.
fn show(batch: &RunningBatch, json: bool, progress: &mut Progress, out: &mut impl Write) -> Result<(), String> {
    loop {
        match batch.next_line(LOOK) {
            Ok(line) => progress.hide(|| print(&line, json, out))?,
            Err(NoLine::NotYet) => {}
            Err(NoLine::Over) => return Ok(()),
        }
        progress.show(&batch.progress());
    }
}

fn print(line: &JobLine, json: bool, out: &mut impl Write) -> Result<(), String> {
    let text = if json { JsonText(&line.to_json()).to_string() } else { OneLine(&in_words(line)).to_string() };
    // At once, so that a line never stands half when the process is killed.
    out.write_all(format!("{text}\n").as_bytes()).map_err(unwritable)
}

fn unwritable(error: std::io::Error) -> String {
    format!("the results cannot be written to stdout: {error}")
}

fn in_words(line: &JobLine) -> String {
    let outcome = line.outcome.map_or("planned", |outcome| outcome.as_str());
    let seconds = line.seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.3} s"));
    let class = line.class.as_ref().map_or_else(String::new, |class| format!("  {class}"));
    let job = line.job_uuid.as_deref().unwrap_or("no job");
    let reason = line.reason.as_ref().map_or_else(String::new, |reason| format!("  {reason}"));
    format!("{}  {job}{class}  {outcome}  {seconds}{reason}", line.miner)
}

fn end(summary: &Summary, json: bool, out: &mut impl Write) -> ExitCode {
    let text = if json { format!("{}\n", JsonText(&summary.to_json())) } else { summary.table() };
    if let Err(error) = out.write_all(text.as_bytes()) {
        return exit::failed(unwritable(error));
    }
    match summary.ending {
        Ending::Complete => ExitCode::from(exit::DONE),
        Ending::Cancelled | Ending::Aborted => ExitCode::from(exit::FAILED),
    }
}

/// A recorded batch, judged again.
fn again(args: &Args, jobs: &JobList) -> ExitCode {
    let Some(folder) = &args.state_dir else { return exit::usage("--replay goes with --state-dir") };
    supervise::with_env(|env| {
        let mut out = match Output::new(&env.shutdown) {
            Ok(out) => out,
            Err(error) => return exit::failed(unwritable(error)),
        };
        let limits = (args.max_spread, BatchConfig::MAX_LAG);
        let mut written = Ok(());
        let mut judge = args.jobs.is_some().then(|| jobs.judge());
        let summary = replay(folder, judge.as_mut().map(|judge| &mut **judge as _), limits, |line| {
            if written.is_ok() {
                written = print(line, args.json, &mut out);
            }
        });
        match (summary, written) {
            (Err(error), _) => refused(args, &error),
            (_, Err(problem)) => exit::failed(problem),
            (Ok(summary), Ok(())) => end(&summary, args.json, &mut out),
        }
    })
}
