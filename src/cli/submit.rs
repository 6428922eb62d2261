//! `phalanx submit`: submits job files, follows them, and prints their results.
//!
//! Results go to stdout (with `--json` an object for each job: `file`, `uuid`, `status`, `history` as `[{status, at}]`,
//! `stdout`, `stderr`, `exit_code`, `error`, `seconds`), progress to stderr. What of them others wrote is escaped.
//!
//! Owner of the threads `submit-n`: the command. They block in: a request to the facilitator, which holds it until
//! there is news. Kick: the stop signal at cancel. They end when no file is left, or with the command.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use serde_json::value::RawValue;

use super::job_files;
use super::job_text::{Form, OutputArgs};
use super::key::KeyArg;
use super::tls::ApiArgs;
use crate::app::job_client::{JobClient, StatusEntry, SubmittedJob};
use crate::app::jobfile::{self, JobSpec};
use crate::app::output::Output;
use crate::app::{exit, supervise};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::KICK_GRACE;
use crate::base::thread::{JoinError, Kick, Thread, spawn};
use crate::base::waits::recv;
use crate::identity::{KeyPair, PublicKey};
use crate::net::http::client::{HttpError, HttpSettings};
use crate::net::proxy::Proxies;
use crate::net::tls::ClientTls;
use crate::ops::foreign::Foreign;
use crate::ops::redact::{JsonText, OneLine};

/// Jobs that are followed at a time, each by a thread; the others wait their turn, and end no later for that.
const FOLLOWERS: usize = 16;

/// Bytes of jobs on stdin: 64 of the largest.
const STDIN_BYTES: u64 = 64 << 20;

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
    /// Job files (JSON), or - for jobs from stdin, one JSON object after the other; all are checked before any is sent
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The facilitator's job API, as http://127.0.0.1:8080
    #[arg(long, value_name = "HTTP_URL", env = "PHALANX_FACILITATOR_HTTP")]
    facilitator: String,
    #[command(flatten)]
    api: ApiArgs,
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
    let (user, jobs) = match check(&args) {
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
        let again = Again::new(&args.facilitator, &args.api, &args.key);
        let (target, tag, wait) = (args.target, args.tag, args.wait);
        let plan = Plan { user, target, tag, wait, at_once: None, form, output };
        match submit(&plan, jobs, &stop, &mut out) {
            Ok(true) => ExitCode::from(exit::DONE),
            Ok(false) => ExitCode::from(exit::FAILED),
            Err(problem) => exit::failed(again.in_words(problem)),
        }
    })
}

/// How to ask for the same jobs again.
pub(super) struct Again {
    facilitator: String,
    key: String,
}

impl Again {
    pub(super) fn new(facilitator: &str, api: &ApiArgs, key: &KeyArg) -> Self {
        let facilitator = facilitator.trim();
        let quoted = shlex::try_quote(facilitator).map_or(facilitator.to_owned(), String::from);
        Self { facilitator: quoted + &api.shown(), key: key.shown() }
    }

    /// What failed, and the command that goes on waiting for jobs that go on.
    pub(super) fn in_words(&self, failed: Failed) -> String {
        let Failed { why, going_on } = failed;
        if going_on.is_empty() {
            return why;
        }
        let Self { facilitator, key } = self;
        let uuids = going_on.join(" ");
        format!("{why}; to wait again: phalanx jobs wait --facilitator {facilitator} {key} {uuids}")
    }
}

/// Why not all jobs were submitted or followed to their ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failed {
    /// In words.
    pub why: String,
    /// Jobs that were followed and have not ended, as far as is known.
    pub going_on: Vec<String>,
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self { why, going_on: Vec::new() }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// Jobs, each with the name that it is shown by.
pub type NamedJobs = Vec<(String, JobSpec)>;

/// A user of a facilitator.
#[derive(Debug, Clone)]
pub struct User {
    /// The facilitator's job API, as `http://127.0.0.1:8080`.
    pub base: String,
    /// Who asks.
    pub key: KeyPair,
    /// Whom to trust, and the way there.
    pub http: HttpSettings,
}

impl User {
    /// With the authorities that come with the program, and without a proxy.
    pub fn new(base: impl Into<String>, key: KeyPair) -> Self {
        let http = HttpSettings::of_chosen(ClientTls::default(), Proxies::none());
        Self { base: base.into(), key, http }
    }

    /// Logs in. Blocks until the answers, at most a minute; `stop` at cancel interrupts it, and all that is asked then.
    pub(super) fn login(self, stop: &Shutdown) -> Result<JobClient, HttpError> {
        JobClient::login_by(self.http, &self.base, self.key, stop)
    }
}

/// What of the arguments does not depend on the job.
#[derive(Debug)]
pub struct Plan {
    /// Who asks, and where.
    pub user: User,
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

/// The user, or all that is wrong.
pub(super) fn user(facilitator: &str, api: &ApiArgs, key: &KeyArg) -> Result<User, Vec<String>> {
    let mut problems = Vec::new();
    let base = facilitator.trim().to_owned();
    if !base.starts_with("http://") && !base.starts_with("https://") {
        problems.push(format!("--facilitator {base:?}: it should be a URL like http://127.0.0.1:8080"));
    }
    let http = api.settings().map_err(|problem| problems.push(problem));
    let key = key.load().map_err(|problem| problems.push(problem));
    match (http, key) {
        (Ok(http), Ok(key)) if problems.is_empty() => Ok(User { base, key, http }),
        _ => Err(problems),
    }
}

/// The user and the jobs; all problems at once.
fn check(args: &Args) -> Result<(User, NamedJobs), String> {
    let (user, mut problems) = match user(&args.facilitator, &args.api, &args.key) {
        Ok(user) => (Some(user), Vec::new()),
        Err(problems) => (None, problems),
    };
    let mut jobs = Vec::new();
    for path in &args.files {
        if path.as_os_str() == "-" && args.key.is_on_stdin() {
            problems.push("stdin is either the key or the jobs, not both".to_owned());
            continue;
        }
        if path.as_os_str() == "-" {
            match from_stdin() {
                Ok(read) => jobs.extend(read),
                Err(found) => problems.extend(found),
            }
            continue;
        }
        match jobfile::load(path) {
            Ok(spec) => jobs.push((name_of(path), spec)),
            Err(error) => problems.push(error.to_string()),
        }
    }
    if args.output.output.is_some() {
        if !args.wait {
            problems.push("--output needs --wait: what a job wrote comes with its end".to_owned());
        } else if problems.is_empty()
            && let Err(problem) = args.output.prepare()
        {
            problems.push(problem);
        }
    }
    match user {
        Some(user) if problems.is_empty() => Ok((user, jobs)),
        _ => Err(problems.join("; ")),
    }
}

/// The jobs on stdin, named by their places. Blocks until its end.
fn from_stdin() -> Result<NamedJobs, Vec<String>> {
    let mut text = String::new();
    let read = std::io::stdin().take(STDIN_BYTES + 1).read_to_string(&mut text);
    if let Err(error) = read {
        return Err(vec![format!("stdin: cannot read it: {error}")]);
    }
    if text.len() as u64 > STDIN_BYTES {
        return Err(vec![format!("stdin: it has more than {STDIN_BYTES} bytes, which is the most that is read")]);
    }
    let (mut jobs, mut problems) = (Vec::new(), Vec::new());
    for (n, job) in serde_json::Deserializer::from_str(&text).into_iter::<&RawValue>().enumerate() {
        let name = format!("stdin:{}", n + 1);
        match job.map(|job| jobfile::parse_in(Path::new(""), job.get())) {
            Ok(Ok(job)) => jobs.push((name, job)),
            Ok(Err(found)) => problems.push(format!("{name}: {}", found.join("; "))),
            // Where the next one would begin is not known.
            Err(error) => {
                problems.push(format!("{name}: it is not JSON: {error}"));
                break;
            }
        }
    }
    match (jobs.is_empty(), problems.is_empty()) {
        (true, true) => Err(vec!["stdin: there is no job".to_owned()]),
        (_, true) => Ok(jobs),
        (_, false) => Err(problems),
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
pub fn submit(plan: &Plan, jobs: NamedJobs, stop: &Shutdown, out: &mut impl Write) -> Result<bool, Failed> {
    each(plan, jobs, stop, &mut printed(plan.form, out))
}

/// Follows jobs that were submitted before, each with its name, to their ends; says whether all completed.
///
/// Blocks as [`run`]; `stop` at cancel ends it at once.
pub(super) fn wait(
    plan: &Plan,
    client: &JobClient,
    jobs: Vec<(String, SubmittedJob)>,
    stop: &Shutdown,
    out: &mut impl Write,
) -> Result<bool, Failed> {
    let turns: Vec<_> = jobs.into_iter().map(|(name, job)| (name, Turn::Follow(Box::new(job)))).collect();
    let mut progress = Progress::new(turns.len());
    to_their_ends(client, plan, turns, stop, &mut progress, &mut printed(plan.form, out))
}

/// Prints each result.
fn printed(form: Form, out: &mut impl Write) -> impl FnMut(&str, &SubmittedJob) -> Result<(), String> {
    move |name, job| {
        // As one piece: the output is not buffered.
        let text = if form == Form::Json { json_line(Some(name), job) } else { in_words(form, name, job) };
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|error| format!("the results cannot be written to stdout: {error}"))
    }
}

/// What becomes of a job's result, with the job's name.
pub(super) type Show<'a> = dyn FnMut(&str, &SubmittedJob) -> Result<(), String> + 'a;

/// [`submit`] with something else that shows the results.
pub(super) fn each(plan: &Plan, jobs: NamedJobs, stop: &Shutdown, show: &mut Show<'_>) -> Result<bool, Failed> {
    let text = |error: HttpError| error.to_string();
    let mut client = plan.user.clone().login(stop).map_err(text)?;
    let total = jobs.len();
    let mut progress = Progress::new(if plan.wait { total } else { 0 });
    let mut turns = Vec::with_capacity(total);
    for (name, spec) in jobs {
        if plan.wait && plan.at_once.is_some() {
            turns.push((name, Turn::Submit(Box::new(spec))));
            continue;
        }
        let job = client.submit_as(spec.unsigned().clone(), &plan.target, &plan.tag).map_err(|error| Failed {
            why: format!("{name}: {error}; {} of {total} jobs were submitted", turns.len()),
            going_on: if plan.wait { uuids(&turns) } else { Vec::new() },
        })?;
        progress.say(&format!("{}: submitted as {}", OneLine(&name), job.uuid));
        if !plan.wait {
            show(&name, &job)?;
        }
        turns.push((name, Turn::Follow(Box::new(job))));
    }
    if !plan.wait {
        return Ok(true);
    }
    to_their_ends(&client, plan, turns, stop, &mut progress, show)
}

/// The jobs among them that were submitted.
fn uuids(turns: &[(String, Turn)]) -> Vec<String> {
    let uuid = |turn: &Turn| match turn {
        Turn::Follow(job) => Some(job.uuid.clone()),
        Turn::Submit(_) => None,
    };
    turns.iter().filter_map(|(_, turn)| uuid(turn)).collect()
}

fn to_their_ends(
    client: &JobClient,
    plan: &Plan,
    turns: Vec<(String, Turn)>,
    stop: &Shutdown,
    progress: &mut Progress,
    show: &mut Show<'_>,
) -> Result<bool, Failed> {
    let followers = plan.at_once.unwrap_or(FOLLOWERS).clamp(1, FOLLOWERS);
    let (news, threads) = follow(client, (plan.target, &plan.tag), turns, followers, stop);
    let outcome = watch(news, plan, progress, show);
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
) -> Result<bool, Failed> {
    let mut all_well = true;
    let (mut lost, mut interrupted, mut going_on) = (Vec::new(), 0, Vec::new());
    while let Ok((name, event)) = recv(&news, "news of the jobs") {
        match event {
            News::Status(status) => progress.say(&format!("{}: {status}", OneLine(&name))),
            News::Ended(job) => {
                let kept = progress.hide(|| keep(plan.output.as_deref(), &name, &job))?;
                all_well &= job.is_completed() & kept;
                progress.one_done();
                progress.hide(|| show(&name, &job))?;
            }
            News::Lost(uuid, why) => {
                lost.push(format!("{name}: {why}"));
                going_on.extend(uuid);
            }
            News::Interrupted(uuid) => {
                interrupted += 1;
                going_on.push(uuid);
            }
        }
    }
    if interrupted > 0 {
        lost.insert(0, format!("interrupted; {interrupted} of the jobs go on"));
    }
    match lost.as_slice() {
        [] => Ok(all_well),
        lost => Err(Failed { why: lost.join("; "), going_on }),
    }
}

/// Writes to files what the job wrote, if there is a folder for it; says whether that is all.
pub(super) fn keep(folder: Option<&Path>, name: &str, job: &SubmittedJob) -> Result<bool, String> {
    let Some(folder) = folder else { return Ok(true) };
    let left_out = job_files::write(folder, job).map_err(|error| {
        format!("{name}: its output cannot be written to {}: {error}", folder.join(&job.uuid).display())
    })?;
    if left_out > 0 {
        let why = "they are not base64, or too many";
        eprintln!("{}: {left_out} artifacts are not written: {why}", OneLine(name));
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
    /// Why a job is followed no longer, and which, if it was submitted.
    Lost(Option<String>, String),
    /// A job that is followed no longer, because the command was told to end.
    Interrupted(String),
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
                    Err(why) => News::Lost(None, why),
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
            Err(_) if stop.is_cancelled() => return News::Interrupted(job.uuid),
            Err(error) => {
                let since = *away_since.get_or_insert(asked);
                if !error.cause().passing || since.elapsed() > AWAY_TIME {
                    let why = format!("job {} can be followed no longer: {error}", job.uuid);
                    return News::Lost(Some(job.uuid), why);
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

/// A job as an object on a line; with the name of its file, if it was submitted here.
pub(super) fn json_line(name: Option<&str>, job: &SubmittedJob) -> String {
    let history: Vec<_> = job
        .status_history
        .iter()
        .map(|entry| json!({"status": entry.status.as_written(), "at": entry.created_at.as_written()}))
        .collect();
    let mut line = json!({
        "file": name, "uuid": job.uuid, "status": job.status().as_written(), "history": history,
        "stdout": job.stdout.as_written(), "stderr": job.stderr.as_written(), "exit_code": job.exit_code(),
        "error": job.error().as_ref().map(Foreign::as_written), "seconds": job.took().as_secs_f64(),
    });
    if name.is_none()
        && let Some(fields) = line.as_object_mut()
    {
        fields.shift_remove("file");
        fields.insert("tag".to_owned(), job.tag.as_written().into());
        fields.insert("docker_image".to_owned(), job.docker_image.as_written().into());
        fields.insert("created_at".to_owned(), job.created_at.as_written().into());
    }
    format!("{}\n", JsonText(&line.to_string()))
}

fn in_words(form: Form, name: &str, job: &SubmittedJob) -> String {
    let (status, seconds) = (form.words(&job.status()), job.took().as_secs_f64());
    let why = job.error().map(|error| format!("  {}", form.words(&error))).unwrap_or_default();
    // One that was not submitted here has no other name than its uuid.
    let uuid = if name == job.uuid { String::new() } else { format!("  {}", job.uuid) };
    format!("{}  {status}  {seconds:.1} s{uuid}{why}\n{}", OneLine(name), form.output(job))
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
