//! `phalanx jobs`: a user's jobs at a facilitator: listed, one in all its parts, waited for, and what it wrote.
//!
//! What others wrote is escaped, in JSON too; only `--raw` shows it as it is.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;

use super::job_text::{Form, OutputArgs};
use super::key::KeyArg;
use super::submit::{self, Plan, User};
use super::tls::ApiArgs;
use super::values::job_uuid;
use crate::app::job_client::{JobClient, JobFilter, SubmittedJob};
use crate::app::output::Output;
use crate::app::{exit, supervise};
use crate::base::clock::now;
use crate::base::shutdown::{Level, Shutdown};
use crate::ops::foreign::Foreign;
use crate::ops::redact::OneLine;
use crate::protocol::{DateTime, JobStatus};

/// Columns of the table: those of the smallest terminal that is about.
const COLUMNS: usize = 80;

/// Columns of all but the name: a uuid, the longest status, an age, and two between each.
const NAME_AT: usize = 36 + 2 + 15 + 2 + 4 + 2;

/// Jobs of a list at most: ten requests.
const LIST_MAX: u64 = 1000;

/// Arguments of a command that are shown, and characters of each.
const SHOWN_ARGS: (usize, usize) = (20, 100);

/// The arguments of `phalanx jobs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List your jobs, the newest first
    Ls(LsArgs),
    /// Show one job: what was asked for, what happened to it, and its result
    Show(ShowArgs),
    /// Wait for jobs to end; exit 1 unless all complete, as `submit --wait`
    Wait(WaitArgs),
    /// Print what a job wrote: its stdout to stdout, its stderr to stderr
    Logs(LogsArgs),
}

/// Who asks which facilitator.
#[derive(Debug, clap::Args)]
struct UserArgs {
    /// The facilitator's job API, as http://127.0.0.1:8080
    #[arg(long, value_name = "HTTP_URL", env = "PHALANX_FACILITATOR_HTTP")]
    facilitator: String,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    key: KeyArg,
}

#[derive(Debug, clap::Args)]
struct LsArgs {
    #[command(flatten)]
    user: UserArgs,
    /// Only jobs of that tag
    #[arg(long, value_name = "TAG", env = "PHALANX_TAG")]
    tag: Option<String>,
    /// Only jobs whose newest status is one of these, as failed,horde_failed
    #[arg(long, value_name = "STATUS", value_parser = status, value_delimiter = ',', env = "PHALANX_STATUS")]
    status: Vec<JobStatus>,
    /// Jobs that are listed, at most 1000
    #[arg(long, value_name = "N", default_value_t = 20, env = "PHALANX_LIMIT",
          value_parser = clap::value_parser!(u64).range(1..=LIST_MAX))]
    limit: u64,
    /// Print an object for each job, on a line
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The job
    #[arg(value_name = "UUID", value_parser = job_uuid)]
    uuid: uuid::Uuid,
    #[command(flatten)]
    user: UserArgs,
    /// Print one object
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct WaitArgs {
    /// The jobs
    #[arg(required = true, value_name = "UUID", value_parser = job_uuid)]
    uuids: Vec<uuid::Uuid>,
    #[command(flatten)]
    user: UserArgs,
    /// Print an object for each job, on a line
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct LogsArgs {
    /// The job
    #[arg(value_name = "UUID", value_parser = job_uuid)]
    uuid: uuid::Uuid,
    #[command(flatten)]
    user: UserArgs,
    /// Only this one of the two
    #[arg(long, value_name = "STREAM", env = "PHALANX_ONLY")]
    only: Option<Stream>,
    /// Print it as it is: the terminal obeys what is in it. No environment variable asks for this
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stream {
    Stdout,
    Stderr,
}

fn status(text: &str) -> Result<JobStatus, String> {
    text.trim().to_ascii_lowercase().parse().map_err(|error: crate::protocol::UnknownName| error.to_string())
}

/// Runs the command: exit 0; 1 if the facilitator does not answer, has no such job, or a job that was waited for did
/// not complete; 2 if a flag is wrong.
///
/// Blocks for the answers, at most a minute each; `wait` until the last job has ended. Ctrl-C ends it at once.
pub fn run(args: Args) -> ExitCode {
    let (user, output) = match &args.command {
        Command::Ls(LsArgs { user, .. }) | Command::Logs(LogsArgs { user, .. }) => (user, None),
        Command::Show(ShowArgs { user, output, .. }) | Command::Wait(WaitArgs { user, output, .. }) => {
            (user, Some(output))
        }
    };
    let user = match submit::user(&user.facilitator, &user.api, &user.key) {
        Ok(user) => user,
        Err(problems) => return exit::usage(problems.join("; ")),
    };
    if let Some(problem) = output.and_then(|output| output.prepare().err()) {
        return exit::usage(problem);
    }
    supervise::with_env(|env| {
        let stop = Shutdown::new();
        let cancel = stop.clone();
        let _signal = env.shutdown.on(Level::Drain, move || cancel.cancel());
        let outcome = match args.command {
            Command::Ls(args) => ls(&args, user, &stop),
            Command::Show(args) => show(&args, user, &stop),
            Command::Wait(args) => wait(args, user, &stop),
            Command::Logs(args) => logs(&args, user, &stop),
        };
        match outcome {
            Ok(true) => ExitCode::from(exit::DONE),
            Ok(false) => ExitCode::from(exit::FAILED),
            Err(problem) => exit::failed(problem),
        }
    })
}

fn login(user: User, stop: &Shutdown) -> Result<JobClient, String> {
    user.login(stop).map_err(|error| error.to_string())
}

/// Writes to stdout; a reader that has seen enough is no failure.
fn put(stop: &Shutdown, text: &str) -> Result<(), String> {
    let written = Output::new(stop).and_then(|mut out| out.write_all(text.as_bytes()));
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("cannot write to stdout: {error}")),
        _ => Ok(()),
    }
}

fn ls(args: &LsArgs, user: User, stop: &Shutdown) -> Result<bool, String> {
    let filter = JobFilter { tag: args.tag.clone(), statuses: args.status.clone() };
    let found = login(user, stop)?.newest(&filter, args.limit).map_err(|error| error.to_string())?;
    let (count, jobs) = (found.count, found.jobs);
    let text = match args.json {
        true => jobs.iter().map(|job| submit::json_line(None, job)).collect(),
        false => table(&jobs, now().unix_micros()),
    };
    put(stop, &text)?;
    if !args.json && count > jobs.len() as u64 {
        eprintln!("the newest {} of {count} jobs; --limit N shows more", jobs.len());
    } else if !args.json && jobs.is_empty() {
        eprintln!("there are no such jobs");
    }
    Ok(true)
}

/// A line for each job: its uuid, its status, how long ago it was submitted, and its tag, or else its image.
fn table(jobs: &[SubmittedJob], now: i64) -> String {
    if jobs.is_empty() {
        return String::new();
    }
    let mut out = format!("{:36}  {:15}  {:>4}  {}\n", "JOB", "STATUS", "AGE", "TAG OR IMAGE");
    for job in jobs {
        let age = micros(&job.created_at).map_or("-".to_owned(), |at| age(now.saturating_sub(at)));
        let name = if job.tag.as_written().is_empty() { &job.docker_image } else { &job.tag };
        let status = fitted(&job.status(), 15);
        let line = format!("{}  {status:15}  {age:>4}  {}", job.uuid, fitted(name, COLUMNS - NAME_AT));
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// A text as it is shown, in so many characters.
fn fitted(text: &Foreign, width: usize) -> String {
    let shown = text.to_string();
    if shown.chars().count() <= width {
        return shown;
    }
    shown.chars().take(width - 1).chain(['…']).collect()
}

fn micros(time: &Foreign) -> Option<i64> {
    time.as_written().parse::<DateTime>().ok().map(|time| time.unix_micros())
}

/// In the largest unit of which there are two, or in seconds.
fn age(micros: i64) -> String {
    let seconds = Duration::from_micros(u64::try_from(micros).unwrap_or(0)).as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn show(args: &ShowArgs, user: User, stop: &Shutdown) -> Result<bool, String> {
    let job = login(user, stop)?.job(&args.uuid.to_string()).map_err(|error| error.to_string())?;
    let form = args.output.form(args.json);
    let text = if form == Form::Json { submit::json_line(None, &job) } else { page(form, &job) };
    put(stop, &text)?;
    submit::keep(args.output.output.as_deref(), &args.uuid.to_string(), &job)
}

/// All of a job, for people.
fn page(form: Form, job: &SubmittedJob) -> String {
    let mut out = format!("job {}\n", job.uuid);
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name:10} {value}");
        }
    };
    line("status", format!("{} after {:.1} s", form.words(&job.status()), job.took().as_secs_f64()));
    line("error", job.error().map(|error| form.words(&error)).unwrap_or_default());
    line("exit code", job.exit_code().map(|code| code.to_string()).unwrap_or_default());
    line("tag", form.words(&job.tag));
    line("image", form.words(&job.docker_image));
    let (most, chars) = SHOWN_ARGS;
    let shown = job.args.iter().take(most).map(|arg| format!("{arg:.chars$}"));
    let more = (job.args.len() > most).then(|| format!("… ({} in all)", job.args.len()));
    line("command", shown.chain(more).collect::<Vec<_>>().join(" "));
    line("class", form.words(&job.executor_class));
    line("validator", form.words(&job.target_validator_hotkey));
    line("trusted", if job.on_trusted_miner { "on a trusted miner".to_owned() } else { String::new() });
    line("submitted", form.words(&job.created_at));
    let limits = [
        ("download", &job.download_time_limit),
        ("streaming start", &job.streaming_start_time_limit),
        ("run", &job.execution_time_limit),
        ("upload", &job.upload_time_limit),
    ];
    let limits = limits.into_iter().filter(|(_, limit)| !limit.is_null());
    line(
        "limits",
        limits.map(|(name, limit)| format!("{name} {} s", Foreign::of(limit))).collect::<Vec<_>>().join(", "),
    );
    out += "history\n";
    let mut before = None;
    for entry in &job.status_history {
        let at = micros(&entry.created_at);
        let after = at.zip(before).map_or(0, |(at, before)| i64::saturating_sub(at, before));
        let (time, after) = (form.words(&entry.created_at), after as f64 / 1e6);
        let _ = writeln!(out, "    {time:27} {after:>+9.3} s  {}", form.words(&entry.status));
        before = at.or(before);
    }
    let output = form.output(job);
    if !output.is_empty() {
        out += "output\n";
        out += &output;
    }
    out
}

fn wait(args: WaitArgs, user: User, stop: &Shutdown) -> Result<bool, String> {
    let mut client = login(user.clone(), stop)?;
    let jobs = args.uuids.iter().map(|uuid| {
        let uuid = uuid.to_string();
        client.job(&uuid).map(|job| (uuid, job)).map_err(|error| error.to_string())
    });
    let jobs = jobs.collect::<Result<Vec<_>, _>>()?;
    let mut out = Output::new(stop).map_err(|error| format!("cannot write to stdout: {error}"))?;
    // Nothing is submitted, so for no validator.
    let target = user.key.public();
    let (form, output) = (args.output.form(args.json), args.output.output.clone());
    let again = submit::Again::new(&args.user.facilitator, &args.user.api, &args.user.key);
    let plan = Plan { user, target, tag: String::new(), wait: true, at_once: None, form, output };
    submit::wait(&plan, &client, jobs, stop, &mut out).map_err(|problem| again.in_words(problem))
}

fn logs(args: &LogsArgs, user: User, stop: &Shutdown) -> Result<bool, String> {
    let job = login(user, stop)?.job(&args.uuid.to_string()).map_err(|error| error.to_string())?;
    if !job.has_ended() {
        let status = Form::Short.words(&job.status());
        return Err(format!("job {} is {status}: what it writes comes with its end; see phalanx jobs wait", job.uuid));
    }
    let text = |text: &Foreign| match args.raw {
        true => text.as_written().to_owned(),
        false => text.lines().map(|line: OneLine<'_>| format!("{line}\n")).collect(),
    };
    if args.only != Some(Stream::Stderr) {
        put(stop, &text(&job.stdout))?;
    }
    if args.only != Some(Stream::Stdout) {
        let stderr = text(&job.stderr);
        std::io::stderr().write_all(stderr.as_bytes()).map_err(|error| format!("cannot write to stderr: {error}"))?;
    }
    Ok(true)
}
