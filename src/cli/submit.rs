//! `phalanx submit`: submits job files, follows them, and prints their results.
//!
//! Results go to stdout (with `--json` an object for each job: `file`, `uuid`, `status`, `history` as `[{status, at}]`,
//! `stdout`, `stderr`, `exit_code`, `error`, `seconds`), progress to stderr. What of them others wrote is escaped.
//!
//! Owner of the threads `submit-n`: the command. They block in: a request to the facilitator, which holds it until
//! there is news. Kick: the stop signal at cancel. They end when no file is left, or with the command.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::job_files;
use super::job_text::{Form, OutputArgs};
use super::key::KeyArg;
use crate::app::job_client::{JobClient, StatusEntry, SubmittedJob};
use crate::app::jobfile::{self, JobSpec};
use crate::app::output::Output;
use crate::app::{exit, supervise};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::KICK_GRACE;
use crate::base::thread::{JoinError, Kick, Thread, spawn};
use crate::base::waits::recv;
use crate::identity::{KeyPair, PublicKey};
use crate::net::http::client::HttpError;
use crate::ops::foreign::Foreign;
use crate::ops::redact::{JsonText, OneLine};

/// Jobs that are followed at a time, each by a thread; the others wait their turn, and end no later for that.
const FOLLOWERS: usize = 16;

/// How long the facilitator may be away before following is given up.
const AWAY_TIME: Duration = Duration::from_secs(60);

/// Lines that are shown of a streaming server's certificate, and characters of each: PEM has 64 in a line, and a chain
/// of three some 100 lines.
const CERTIFICATE: (usize, usize) = (200, 100);

/// Pause before the facilitator is asked again, after a failure or an answer without news.
const PAUSE: Duration = Duration::from_secs(1);

/// The arguments of `phalanx submit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Job files (JSON); all are checked before any is sent
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The facilitator's job API, as http://127.0.0.1:8080
    #[arg(long, value_name = "HTTP_URL", env = "PHALANX_FACILITATOR_HTTP")]
    facilitator: String,
    #[command(flatten)]
    key: KeyArg,
    /// The validator that is to run the jobs
    #[arg(long, value_name = "SS58", env = "PHALANX_TARGET")]
    target: PublicKey,
    /// What the jobs are called, for `phalanx jobs ls --tag`: at most 255 characters
    #[arg(long, value_name = "TAG", default_value = "", hide_default_value = true, env = "PHALANX_TAG")]
    tag: String,
    /// Follow the jobs to their ends; exit 1 unless all complete
    #[arg(long, env = "PHALANX_WAIT")]
    wait: bool,
    /// Print an object for each job
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command: exit 0 if all jobs completed (without `--wait`: were taken), 1 if not, 2 if a flag or a file is
/// wrong.
///
/// Blocks until the last job has ended; Ctrl-C ends it at once, the jobs go on.
pub fn run(args: Args) -> ExitCode {
    let (key, base, jobs) = match check(&args) {
        Ok(checked) => checked,
        Err(problem) => return exit::usage(problem),
    };
    supervise::with_env(|env| {
        let stop = Shutdown::new();
        let cancel = stop.clone();
        let _signal = env.shutdown.on(Level::Drain, move || cancel.cancel());
        let mut out = match Output::new(&stop) {
            Ok(out) => out,
            Err(error) => return exit::failed(format!("cannot write to stdout: {error}")),
        };
        let form = args.output.form(args.json);
        let output = args.output.output;
        let plan = Plan { base, key, target: args.target, tag: args.tag, wait: args.wait, at_once: None, form, output };
        match submit(&plan, jobs, &stop, &mut out) {
            Ok(true) => ExitCode::from(exit::DONE),
            Ok(false) => ExitCode::from(exit::FAILED),
            Err(problem) => exit::failed(problem),
        }
    })
}

/// Jobs, each with the name that it is shown by.
pub type NamedJobs = Vec<(String, JobSpec)>;

/// What of the arguments does not depend on the job.
#[derive(Debug)]
pub struct Plan {
    /// The facilitator's job API, as `http://127.0.0.1:8080`.
    pub base: String,
    /// The user.
    pub key: KeyPair,
    /// The validator.
    pub target: PublicKey,
    /// What the jobs are called at the facilitator, if that is not empty.
    pub tag: String,
    /// Whether to follow the jobs.
    pub wait: bool,
    /// Jobs that are on their way at a time, at most 16; `None` submits all at once. Only for jobs that are followed.
    pub at_once: Option<usize>,
    /// How jobs are shown.
    pub form: Form,
    /// A folder, which is there, for files of what jobs that are followed wrote.
    pub output: Option<PathBuf>,
}

/// The key, the address and the jobs; all problems at once.
fn check(args: &Args) -> Result<(KeyPair, String, NamedJobs), String> {
    let mut problems = Vec::new();
    let base = args.facilitator.trim().to_owned();
    if !base.starts_with("http://") && !base.starts_with("https://") {
        problems.push(format!("--facilitator {base:?}: it should be a URL like http://127.0.0.1:8080"));
    }
    let key = args.key.load().map_err(|problem| problems.push(problem)).ok();
    let mut jobs = Vec::new();
    for path in &args.files {
        match jobfile::load(path) {
            Ok(spec) => jobs.push((name_of(path), spec)),
            Err(error) => problems.push(error.to_string()),
        }
    }
    if let Some(folder) = &args.output.output {
        if !args.wait {
            problems.push("--output needs --wait: what a job wrote comes with its end".to_owned());
        } else if problems.is_empty()
            && let Err(error) = job_files::prepare(folder)
        {
            problems.push(format!("--output {}: {error}", folder.display()));
        }
    }
    match key {
        Some(key) if problems.is_empty() => Ok((key, base, jobs)),
        _ => Err(problems.join("; ")),
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Submits the jobs, each with its name, and follows them if that is planned; says whether all is well.
///
/// Blocks as [`run`]; `stop` at cancel ends it at once.
///
/// # Errors
/// In words: why not all jobs could be submitted, or followed, or what they wrote not shown or kept. Those that were
/// submitted go on.
pub fn submit(plan: &Plan, jobs: NamedJobs, stop: &Shutdown, out: &mut impl Write) -> Result<bool, String> {
    each(plan, jobs, stop, &mut |name, job| {
        // As one piece: the output is not buffered.
        let text = if plan.form == Form::Json { json_line(name, job) } else { in_words(plan.form, name, job) };
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| format!("the results cannot be written to stdout: {error}"))
    })
}

/// What becomes of a job's result, with the job's name.
pub(super) type Show<'a> = dyn FnMut(&str, &SubmittedJob) -> Result<(), String> + 'a;

/// [`submit`] with something else that shows the results.
pub(super) fn each(plan: &Plan, jobs: NamedJobs, stop: &Shutdown, show: &mut Show<'_>) -> Result<bool, String> {
    let text = |error: HttpError| error.to_string();
    let mut client = JobClient::login(&plan.base, plan.key.clone(), stop).map_err(text)?;
    let total = jobs.len();
    let mut progress = Progress::new(if plan.wait { total } else { 0 });
    let followers = plan.at_once.unwrap_or(FOLLOWERS).clamp(1, FOLLOWERS);
    let mut turns = Vec::with_capacity(total);
    for (name, spec) in jobs {
        if plan.wait && plan.at_once.is_some() {
            turns.push((name, Turn::Submit(Box::new(spec))));
            continue;
        }
        let job = client
            .submit_as(spec.unsigned().clone(), &plan.target, &plan.tag)
            .map_err(|error| format!("{name}: {error}; {} of {total} jobs were submitted", turns.len()))?;
        progress.say(&format!("{}: submitted as {}", OneLine(&name), job.uuid));
        if !plan.wait {
            show(&name, &job)?;
        }
        turns.push((name, Turn::Follow(Box::new(job))));
    }
    if !plan.wait {
        return Ok(true);
    }
    let (news, threads) = follow(&client, (plan.target, &plan.tag), turns, followers, stop);
    let outcome = watch(news, plan, &mut progress, show);
    progress.finish();
    if outcome.is_err() {
        stop.cancel();
    }
    for thread in threads {
        if let Err(JoinError::Late(thread)) = thread.join_by(Instant::now() + KICK_GRACE) {
            thread.abandon("its last news has come, only its end is late");
        }
    }
    outcome
}

/// Shows the news until there are no more. Takes the receiver, so that no follower waits for room in it afterwards.
fn watch(
    news: Receiver<(String, News)>,
    plan: &Plan,
    progress: &mut Progress,
    show: &mut Show<'_>,
) -> Result<bool, String> {
    let mut all_well = true;
    let mut lost = Vec::new();
    while let Ok((name, event)) = recv(&news, "news of the jobs") {
        match event {
            News::Status(status) => progress.say(&format!("{}: {status}", OneLine(&name))),
            News::Ended(job) => {
                all_well &= job.is_completed() & keep(plan, &name, &job, progress)?;
                progress.one_done();
                progress.hide(|| show(&name, &job))?;
            }
            News::Lost(why) => lost.push(format!("{name}: {why}")),
        }
    }
    match lost.as_slice() {
        [] => Ok(all_well),
        lost => Err(lost.join("; ")),
    }
}

/// Writes to files what the job wrote, if that is planned; says whether that is all.
fn keep(plan: &Plan, name: &str, job: &SubmittedJob, progress: &Progress) -> Result<bool, String> {
    let Some(folder) = &plan.output else { return Ok(true) };
    let left_out = job_files::write(folder, job).map_err(|error| {
        format!("{name}: its output cannot be written to {}: {error}", folder.join(&job.uuid).display())
    })?;
    if left_out > 0 {
        let why = "they are not base64, or too many";
        progress.hide(|| eprintln!("{}: {left_out} artifacts are not written: {why}", OneLine(name)));
    }
    Ok(left_out == 0)
}

/// What a follower does with a job.
enum Turn {
    /// It is submitted already.
    Follow(Box<SubmittedJob>),
    /// It waits for its turn to be submitted.
    Submit(Box<JobSpec>),
}

/// What a follower tells.
enum News {
    /// In words; what others wrote is escaped.
    Status(String),
    Ended(Box<SubmittedJob>),
    Lost(String),
}

/// Starts the threads that follow the jobs. The news end when all are done.
fn follow(
    client: &JobClient,
    (target, tag): (PublicKey, &str),
    turns: Vec<(String, Turn)>,
    followers: usize,
    stop: &Shutdown,
) -> (Receiver<(String, News)>, Vec<Thread<()>>) {
    let (report, news) = bounded(FOLLOWERS);
    let (give, take) = bounded(turns.len());
    let followers = followers.min(turns.len());
    for turn in turns {
        give.send(turn).expect("the channel has room for all jobs, and its other end is here");
    }
    let follower = |n: usize| {
        let (take, report, stop, mut client) = (take.clone(), report.clone(), stop.clone(), client.clone());
        let tag = tag.to_owned();
        let kick = stop.clone();
        spawn(format!("submit-{n}"), Kick::new("stop signal", move || kick.cancel()), move || {
            while let Ok((name, turn)) = take.try_recv() {
                let end = match take_turn(&mut client, (&target, &tag), &name, turn, &report) {
                    Ok(job) => to_its_end(&mut client, &name, job, &stop, &report),
                    Err(why) => News::Lost(why),
                };
                // Nobody listens any more only when the command is ending.
                if report.send((name, end)).is_err() {
                    return;
                }
            }
        })
    };
    let threads = (1..=followers).map(follower).collect();
    (news, threads)
}

fn take_turn(
    client: &mut JobClient,
    (target, tag): (&PublicKey, &str),
    name: &str,
    turn: Turn,
    report: &Sender<(String, News)>,
) -> Result<SubmittedJob, String> {
    match turn {
        Turn::Follow(job) => Ok(*job),
        Turn::Submit(spec) => {
            let job = client
                .submit_as(spec.unsigned().clone(), target, tag)
                .map_err(|error| format!("not submitted: {error}"))?;
            let news = News::Status(format!("submitted as {}", job.uuid));
            // Nobody listens any more only when the command is ending, and the job's end is not shown either then.
            let _ = report.send((name.to_owned(), news));
            Ok(job)
        }
    }
}

fn to_its_end(
    client: &mut JobClient,
    name: &str,
    mut job: SubmittedJob,
    stop: &Shutdown,
    report: &Sender<(String, News)>,
) -> News {
    let mut away_since = None;
    while !job.has_ended() {
        let (asked, seen) = (Instant::now(), job.status_history.len());
        match client.news(&job.uuid, seen) {
            Ok(newer) => {
                away_since = None;
                for entry in newer.status_history.iter().skip(seen) {
                    let _ = report.send((name.to_owned(), News::Status(said(entry))));
                }
                // A facilitator with too many waiting requests answers at once.
                if newer.status_history.len() == seen && asked.elapsed() < PAUSE {
                    stop.wait_for(Level::Cancel, PAUSE);
                }
                job = newer;
            }
            Err(_) if stop.is_cancelled() => return News::Lost(format!("interrupted; job {} goes on", job.uuid)),
            Err(error) => {
                let since = *away_since.get_or_insert(asked);
                if !error.cause().passing || since.elapsed() > AWAY_TIME {
                    return News::Lost(format!("job {} can be followed no longer: {error}", job.uuid));
                }
                stop.wait_for(Level::Cancel, PAUSE);
            }
        }
    }
    News::Ended(Box::new(job))
}

/// A status, and where a streaming job is served.
fn said(entry: &StatusEntry) -> String {
    let mut said = Form::Short.words(&entry.status);
    if let Some((at, certificate)) = entry.streaming_server() {
        said += &format!(" at https://{}, by", Form::Short.words(&at));
        let (lines, chars) = CERTIFICATE;
        certificate.lines().take(lines).for_each(|line| said += &format!("\n{line:.chars$}"));
    }
    said
}

fn json_line(name: &str, job: &SubmittedJob) -> String {
    let history: Vec<_> = job
        .status_history
        .iter()
        .map(|entry| json!({"status": entry.status.as_written(), "at": entry.created_at.as_written()}))
        .collect();
    let line = json!({
        "file": name, "uuid": job.uuid, "status": job.status().as_written(), "history": history,
        "stdout": job.stdout.as_written(), "stderr": job.stderr.as_written(), "exit_code": job.exit_code(),
        "error": job.error().as_ref().map(Foreign::as_written), "seconds": job.took().as_secs_f64(),
    });
    format!("{}\n", JsonText(&line.to_string()))
}

fn in_words(form: Form, name: &str, job: &SubmittedJob) -> String {
    let (name, status, seconds) = (OneLine(name), form.words(&job.status()), job.took().as_secs_f64());
    let why = job.error().map(|error| format!("  {}", form.words(&error))).unwrap_or_default();
    format!("{name}  {status}  {seconds:.1} s  {}{why}\n{}", job.uuid, form.output(job))
}

/// A bar on a terminal, plain lines elsewhere.
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new(jobs: usize) -> Self {
        if jobs == 0 || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {elapsed}  {wide_msg}");
        let bar = ProgressBar::new(jobs as u64).with_style(style.expect("the template is right"));
        Self(Some(bar))
    }

    fn say(&mut self, line: &str) {
        match &self.0 {
            Some(bar) => bar.set_message(line.to_owned()),
            None => eprintln!("{line}"),
        }
    }

    fn one_done(&mut self) {
        if let Some(bar) = &self.0 {
            bar.inc(1);
        }
    }

    /// Takes the bar away while something is printed.
    fn hide<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
