//! Real Celery: a worker with the tasks of `tests/python/celery_app.py`, and a producer. Beside them a worker and a
//! client of ours.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::{StopReport, Stopping};
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::celery::client::{CeleryClient, CeleryConfig};
use phalanx::celery::worker::{CeleryWorker, Registry, TaskError, WorkerConfig, WorkerHandle, WorkerReport};
use phalanx::ops::status::Board;
use phalanx::redis::RedisConfig;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::process::{Running, nothing_left};
use super::python;
use super::wait::LONG;

/// A worker; stopped when dropped, and nothing of it left.
pub struct Worker {
    folder: tempfile::TempDir,
    running: Option<Running>,
    name: String,
}

impl Worker {
    /// Starts one and waits until it consumes; `None` without Celery, which is reported. `options` are those of
    /// `celery worker`, as `["--pool", "prefork", "-c", "2"]`.
    pub fn start(url: &str, options: &[&str]) -> Option<Self> {
        Self::start_from(celery("celery_app", url)?, options)
    }

    /// As [`Worker::start`], from a command of [`celery`].
    pub fn start_from(mut command: Command, options: &[&str]) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::tempdir().unwrap();
        let name = format!("w{}@{}", NEXT.fetch_add(1, Ordering::Relaxed), std::process::id());
        command.args(["worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle"]);
        if !options.contains(&"-E") {
            command.arg("--without-heartbeat");
        }
        command.args(["-n", &name]).args(options).current_dir(folder.path()).env("TMPDIR", folder.path());
        let mut running = Running::start(&mut merged(&command, folder.path()));
        let mut reported = Vec::new();
        // Celery says it in its log.
        while !reported.last().is_some_and(|line: &String| line.ends_with(" ready.")) {
            assert!(!running.ended_within(std::time::Duration::ZERO), "the worker does not start: {reported:#?}");
            reported.push(running.line());
        }
        Some(Self { folder, running: Some(running), name })
    }

    /// As Celery knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stops it as an operator would.
    pub fn stop(mut self) {
        self.end();
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        if let Some(running) = self.running.take() {
            running.stop(Signal::KILL);
        }
    }

    fn end(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.signal(Signal::TERM);
        if std::thread::panicking() {
            // What it says explains the failure. One that does not end is killed when it is dropped.
            if running.ended_within(LONG / 4) {
                eprintln!("output of the worker:\n{}", running.finish().stdout);
            }
            return;
        }
        let reported = running.finish();
        assert_eq!(reported.code, Some(0), "{}", reported.stdout);
        nothing_left(self.folder.path());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// The `celery` program for an application of `tests/python`.
pub fn celery(app: &str, url: &str) -> Option<Command> {
    let python = python::script("celery_app.py", "celery, redis")?;
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let mut command = Command::new(python.get_program());
    command.args(["-B", "-m", "celery", "-A", app]).env("PYTHONPATH", scripts).env("CELERY_TEST_URL", url);
    // Celery must not run as root unasked.
    command.env("C_FORCE_ROOT", "1").env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
    Some(command)
}

/// The same with its log on the standard output.
fn merged(command: &Command, folder: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    shell.current_dir(folder).stdin(Stdio::null());
    shell
}

/// A client, stopped when dropped.
pub struct Client {
    client: Option<CeleryClient>,
    pub board: Board,
}

impl Client {
    pub fn start(redis: RedisConfig) -> Self {
        Self::start_with(CeleryConfig::new(redis))
    }

    pub fn start_with(config: CeleryConfig) -> Self {
        let board = Board::new();
        Self { client: Some(CeleryClient::start(config, &board).unwrap()), board }
    }

    pub fn handle(&self) -> phalanx::celery::client::CeleryHandle {
        self.client.as_ref().expect("it was not stopped").handle()
    }

    pub fn stop(mut self) -> StopReport {
        self.end()
    }

    fn end(&mut self) -> StopReport {
        let mut stopping = Stopping::alone();
        if let Some(client) = self.client.take() {
            stopping.step("celery", LONG, |step| client.stop_in(step));
        }
        stopping.finish()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let report = self.end();
        assert!(std::thread::panicking() || report.is_clean(), "{report}");
    }
}

/// A producer and inspector of real Celery (`tests/python/celery_feed.py`); ended when dropped.
pub struct Feed {
    child: Child,
    lines: Receiver<String>,
    reader: Option<Thread<()>>,
}

impl Feed {
    /// Starts one; `None` without Celery, which is reported.
    pub fn start(url: &str) -> Option<Self> {
        Self::start_with(url, &json!({}))
    }

    /// Starts one whose application has these settings.
    pub fn start_with(url: &str, settings: &Value) -> Option<Self> {
        let mut command = python::script("celery_feed.py", "celery, redis")?;
        command.env("CELERY_TEST_SETTINGS", settings.to_string());
        command.env("CELERY_TEST_URL", url).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (report, lines) = bounded(1);
        let reader = spawn("t-feed", Kick::dropped("the process"), move || {
            for line in stdout.lines() {
                // Its test may have ended.
                let _ = report.send(line.unwrap());
            }
        });
        Some(Self { child, lines, reader: Some(reader) })
    }

    /// Lets it do what it can: a function of the script.
    pub fn ask(&mut self, what: &str, mut request: Value) -> Value {
        request["do"] = what.into();
        self.report(&request);
        self.answer()
    }

    /// Begins something that takes longer; [`Feed::answer`] waits for its end.
    pub fn report(&mut self, request: &Value) {
        let stdin = self.child.stdin.as_mut().expect("it is open");
        stdin.write_all(format!("{request}\n").as_bytes()).unwrap();
    }

    pub fn answer(&mut self) -> Value {
        let line = self.lines.recv_timeout(2 * LONG).expect("an answer of the producer");
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert!(answer.get("error").is_none(), "{answer}");
        answer
    }

    /// Sends a task and gives its id. `more` has what a signature has: `args`, `kwargs`, `options`.
    pub fn send(&mut self, task: &str, more: Value) -> String {
        let mut request = more;
        request["task"] = task.into();
        self.ask("send", request)["id"].as_str().unwrap().to_owned()
    }

    /// Waits for a result: its `state`, `result`, and what was `raised`.
    pub fn wait(&mut self, id: &str) -> Value {
        self.ask("wait", json!({"id": id}))
    }

    /// Sends a task and waits for its result.
    pub fn run(&mut self, task: &str, more: Value) -> Value {
        let id = self.send(task, more);
        self.wait(&id)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // What it has not answered is of no interest any more, so its reader must not wait for us.
        self.lines = crossbeam_channel::never();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            reader.join_by(Instant::now() + LONG).unwrap();
        }
    }
}

/// A worker of ours, stopped when dropped.
pub struct Ours {
    worker: Option<CeleryWorker>,
    handle: WorkerHandle,
    pub board: Board,
}

impl Ours {
    /// Starts one; it may not be ready yet.
    pub fn start(config: WorkerConfig, registry: Registry) -> Self {
        let board = Board::new();
        let worker = CeleryWorker::start(config, registry, &board).unwrap();
        Self { handle: worker.handle(), worker: Some(worker), board }
    }

    /// Starts one and waits until it takes tasks.
    pub fn ready(config: WorkerConfig, registry: Registry) -> Self {
        let ours = Self::start(config, registry);
        assert!(ours.wait_ready(LONG), "{:?}", ours.state());
        ours
    }

    /// Stops it within that time, or at once if it is zero: then what runs is cancelled without waiting for it.
    pub fn stop(mut self, budget: Duration) -> WorkerReport {
        let (report, clean) = self.end(budget);
        assert!(clean.is_clean(), "{clean}");
        report
    }

    fn end(&mut self, budget: Duration) -> (WorkerReport, StopReport) {
        let shutdown = Shutdown::new();
        if budget.is_zero() {
            shutdown.cancel();
        }
        let mut stopping = Stopping::new(&shutdown);
        let budget = if budget.is_zero() { LONG / 4 } else { budget };
        let worker = self.worker.take();
        let report = worker.map(|worker| stopping.step("worker", budget, |step| worker.stop_in(step)));
        (report.unwrap_or_default(), stopping.finish())
    }
}

impl std::ops::Deref for Ours {
    type Target = WorkerHandle;

    fn deref(&self) -> &WorkerHandle {
        &self.handle
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let (_, report) = self.end(Duration::ZERO);
        assert!(std::thread::panicking() || report.is_clean(), "{report}");
    }
}

/// Handlers that wait for the test.
pub struct Gate {
    begun: Receiver<String>,
    report: Sender<String>,
    open: Sender<()>,
    go: Receiver<()>,
}

impl Gate {
    pub fn new() -> Self {
        let ((report, begun), (open, go)) = (bounded(100), bounded(100));
        Self { begun, report, open, go }
    }

    /// These tasks and `gated`, which says that it has begun and waits; it tells a progress first, if it is given one.
    /// Its result is whether it was marked as delivered before.
    pub fn registry(&self, registry: Registry) -> Registry {
        let (report, go) = (self.report.clone(), self.go.clone());
        registry.register("gated", move |cx, args| {
            if let Ok(percent) = args.get::<f64>(0, "percent") {
                cx.progress(percent, "at the gate", &json!({"step": 3}));
            }
            report.send(cx.id().to_owned()).unwrap();
            select! {
                recv(go) -> _ => Ok(json!(cx.redelivered())),
                recv(cx.cancel().drain_receiver()) -> _ => Err(TaskError::Cancelled),
            }
        })
    }

    /// The id of the next one that has begun.
    pub fn begun(&self) -> String {
        self.begun.recv_timeout(LONG).expect("a task that begins")
    }

    /// Whether none has begun that was not asked for.
    pub fn is_quiet(&self) -> bool {
        self.begun.is_empty()
    }

    /// Lets so many end.
    pub fn open(&self, times: usize) {
        (0..times).for_each(|_| self.open.send(()).unwrap());
    }
}

/// The settings of a worker with a name of its own.
pub fn settings(redis: RedisConfig) -> WorkerConfig {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let hostname = format!("ours{}@{}", NEXT.fetch_add(1, Ordering::Relaxed), std::process::id());
    WorkerConfig { hostname, ..WorkerConfig::new(redis) }
}

const PROCESS: &str = "PHALANX_TEST_CELERY_WORKER";

/// The example worker as a process of its own, once it takes tasks: this program, whose ignored test `worker_itself`
/// calls [`worker_words`] for the command line.
pub fn worker_process(url: &str, options: &str) -> Running {
    worker_process_in("UTC", url, options)
}

/// As [`worker_process`], in a time zone.
pub fn worker_process_in(zone: &str, url: &str, options: &str) -> Running {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "worker_itself", "--ignored", "--nocapture"]);
    command.env("TZ", zone);
    let mut running = Running::start(command.env(PROCESS, format!("--redis {url} {options}")).stdin(Stdio::null()));
    while !running.line().starts_with("ready") {}
    running
}

/// In the process that [`worker_process`] has started: its command line.
pub fn worker_words() -> impl Iterator<Item = String> {
    let words = std::env::var(PROCESS).expect("it is started by other tests");
    words.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>().into_iter()
}
