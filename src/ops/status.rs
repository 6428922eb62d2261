//! One snapshot of a role. All of its pages (`net::http::pages`) and `phalanx status` show the same one, so no two of
//! them can disagree.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::errors::{ErrorHandler, LastError};
use super::expiry::Expiries;
use super::health::{Health, Part, PartState, Pulse};
use super::jobs::{Jobs, JobsView, Viewer};
use super::log_lines;
use super::metrics::Metrics;
use super::pause::Pause;
use super::process::Process;
use super::redact;
use crate::base::clock;
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::thread::{LiveThread, live};
use crate::base::timer::TimerHandle;

/// What the threads of a role report to; clones are the same.
#[derive(Debug, Clone)]
pub struct Board {
    /// What is up.
    pub health: Health,
    /// What is counted.
    pub metrics: Metrics,
    /// What went wrong; counted in `metrics`.
    pub errors: ErrorHandler,
    /// When the certificates end that it shows, or trusts.
    pub certificates: Expiries,
    /// The jobs, open and ended.
    pub jobs: Jobs,
    /// Whether new work is taken.
    pub pause: Pause,
}

impl Board {
    /// An empty board.
    pub fn new() -> Self {
        let metrics = Metrics::new();
        Self {
            health: Health::new(),
            errors: ErrorHandler::new(&metrics),
            metrics,
            certificates: Expiries::default(),
            jobs: Jobs::default(),
            pause: Pause::default(),
        }
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

/// What the role is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RoleState {
    /// Some part of it has never been up yet.
    Starting,
    /// Every part has been up; whether all are now is what readiness says.
    Running,
    /// Somebody has paused it: it takes no new work until it is resumed, and goes on with what runs.
    Paused,
    /// It takes no new work and finishes what runs.
    Draining,
    /// What still runs is being ended; only the pages are left.
    Stopped,
}

impl fmt::Display for RoleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        })
    }
}

/// One of our threads, and what it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadLine {
    /// Its name.
    pub name: String,
    /// What interrupts the call that it blocks in.
    pub kick: String,
    /// Whole seconds since it was spawned.
    pub age_seconds: u64,
    /// What it waits for; `None` if it runs.
    pub waits_for: Option<String>,
    /// Whole seconds since it began to wait, or to run.
    pub for_seconds: u64,
    /// Whole seconds until the deadline of its wait, less than 0 once that has passed; `None` if it has none.
    pub left_seconds: Option<i64>,
}

impl ThreadLine {
    fn new(thread: LiveThread, now: Instant) -> Self {
        let age = |since| now.saturating_duration_since(since).as_secs();
        let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        let activity = thread.activity;
        let left_seconds = activity.deadline.map(|deadline| match deadline.checked_duration_since(now) {
            Some(left) => signed(left.as_secs()),
            None => -signed(age(deadline)),
        });
        Self {
            kick: thread.kick.to_owned(),
            age_seconds: age(thread.since),
            waits_for: activity.waits_for.map(str::to_owned),
            for_seconds: age(activity.since),
            left_seconds,
            name: thread.name,
        }
    }
}

/// A line about a thread whose wait is far over its deadline.
fn late(thread: &LiveThread, now: Instant) -> Option<String> {
    thread.activity.late(now)?;
    Some(format!("thread {} {}", thread.name, thread.activity))
}

/// A role at a moment: `/status.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `facilitator`, `validator` or `miner`.
    pub role: String,
    /// The version of the program.
    pub version: String,
    /// What it is doing.
    pub state: RoleState,
    /// Whether it runs and all parts are up.
    pub ready: bool,
    /// Why it takes no new work while it runs, in a sentence without its subject; `None` if it does.
    #[serde(default)]
    pub paused: Option<String>,
    /// Whole seconds since the role was started.
    pub uptime_seconds: u64,
    /// How each part is.
    pub parts: Vec<Part>,
    /// What only this role has: counts, sessions.
    pub details: Value,
    /// Its jobs: the open ones, the newest that have ended, how many ended how.
    #[serde(default)]
    pub jobs: JobsView,
    /// The newest error of each class and place, the newest first.
    pub errors: Vec<LastError>,
    /// What the system says of the process; `None` where it says nothing.
    pub process: Option<Process>,
    /// The live threads of the process, oldest first.
    pub threads: Vec<ThreadLine>,
    /// A line for each thread whose wait is more than 5 s over its deadline: something hangs, or holds a lock for too
    /// long; and for each certificate that ends within two weeks; and for a pause. The role may be ready all the same.
    pub warnings: Vec<String>,
}

impl Snapshot {
    /// Why the role is not ready, a line for each reason; empty if it is.
    pub fn problems(&self) -> Vec<String> {
        let not_up = self.parts.iter().filter(|part| part.state != PartState::Up);
        let mut problems: Vec<String> = not_up.map(Part::to_string).collect();
        if let Some(why) = &self.paused {
            problems.push(format!("the {} takes no new work: it is {why}", self.role));
        }
        if matches!(self.state, RoleState::Draining | RoleState::Stopped) {
            problems.push(format!("the {} takes no new work: it is {}", self.role, self.state));
        }
        problems
    }

    /// A line for each part that is stuck: the process is not alive.
    pub fn stuck(&self) -> Vec<String> {
        self.parts.iter().filter(|part| part.state == PartState::Stuck).map(Part::to_string).collect()
    }

    /// Brings the metrics that every role has up to date with this snapshot.
    pub(crate) fn measure(&self, metrics: &Metrics) {
        let set = |name, help, value| metrics.gauge(name, help, &[]).set(value);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        metrics.gauge("phalanx_build_info", "Always 1; the version is a label.", &version).set(1);
        let paused = usize::from(self.paused.is_some());
        let uptime = usize::try_from(self.uptime_seconds).unwrap_or(usize::MAX);
        set("phalanx_uptime_seconds", "Time since the role was started.", uptime);
        set("phalanx_paused", "1 while the role takes no new work because it is paused, else 0.", paused);
        set("phalanx_ready", "1 if the role is ready, else 0.", usize::from(self.ready));
        for (state, label) in [(PartState::Up, "up"), (PartState::Down, "down"), (PartState::Stuck, "stuck")] {
            let count = self.parts.iter().filter(|part| part.state == state).count();
            metrics.gauge("phalanx_parts", "Parts of the role by how they are.", &[("state", label)]).set(count);
        }
        let help = "Log lines that were not written: their reader was too slow, or has gone.";
        metrics.counter("phalanx_log_lines_dropped_total", help, &[]).raise(log_lines::dropped());
        if let Some(process) = self.process {
            set("phalanx_process_resident_memory_bytes", "Resident memory.", process.resident_memory_bytes);
            set("phalanx_process_threads", "Threads of the process.", process.threads);
            set("phalanx_process_open_fds", "Open file descriptors.", process.open_fds);
        }
    }
}

/// The present state of a role, for [`Snapshot::details`]; brings health and metrics up to date. It must not block.
pub type Look = Box<dyn Fn(&Health, &Metrics) -> Value + Send + Sync>;

/// Where a role's snapshots come from.
pub struct Frame {
    /// The role's name.
    pub role: &'static str,
    /// When it was started.
    pub since: Instant,
    /// What its threads report to.
    pub board: Board,
    /// The signal that stops it.
    pub stop: Shutdown,
    /// The timer that it needs; `/healthz` asks it for a sign of life, as all loops of the board.
    pub timer: TimerHandle,
    /// What only the role knows.
    pub look: Look,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame").field("role", &self.role).field("board", &self.board).finish_non_exhaustive()
    }
}

impl Frame {
    /// The role now, as an operator sees it. Does not block.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_for(&Viewer::Operator)
    }

    /// The role now, with the jobs that this one may see. Who is no operator sees no errors either: they quote others.
    /// Who is nobody sees neither details, which name peers and where they are, nor threads.
    pub fn snapshot_for(&self, viewer: &Viewer) -> Snapshot {
        let Board { health, metrics, errors, certificates, jobs, pause } = &self.board;
        let mut details = (self.look)(health, metrics);
        hide_secrets(&mut details);
        let is_nobody = *viewer == Viewer::Nobody;
        if is_nobody {
            details = Value::Object(serde_json::Map::new());
        }
        let now = Instant::now();
        let age = |since| now.saturating_duration_since(since).as_secs();
        let wall = clock::now().wall;
        let paused = pause.why(wall).filter(|_| self.stop.level() == Level::Run);
        let state = match self.stop.level() {
            Level::Run if paused.is_some() => RoleState::Paused,
            Level::Run if health.has_started() => RoleState::Running,
            Level::Run => RoleState::Starting,
            Level::Drain => RoleState::Draining,
            Level::Cancel => RoleState::Stopped,
        };
        let mut warnings = certificates.look(health, metrics, wall.as_secs());
        let parts = health.parts(now);
        let threads = live();
        // Looked at now, since the list was made after `now` was taken.
        let now = Instant::now();
        let late: Vec<String> = threads.iter().filter_map(|thread| late(thread, now)).collect();
        set_late(metrics, late.len());
        warnings.extend(late);
        warnings.extend(paused.as_ref().map(|why| format!("the {} takes no new work: it is {why}", self.role)));
        Snapshot {
            role: self.role.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state,
            ready: state == RoleState::Running && parts.iter().all(|part| part.state == PartState::Up),
            paused,
            uptime_seconds: age(self.since),
            parts,
            details,
            jobs: jobs.view_of(viewer),
            errors: if *viewer == Viewer::Operator { errors.last_errors() } else { Vec::new() },
            process: Process::read(),
            warnings,
            threads: threads.into_iter().filter(|_| !is_nobody).map(|thread| ThreadLine::new(thread, now)).collect(),
        }
    }
}

fn set_late(metrics: &Metrics, threads: usize) {
    let help = "Threads whose wait is more than 5 s over its deadline.";
    metrics.gauge("phalanx_threads_late", help, &[]).set(threads);
}

/// How long the timer thread may take to run an action: its actions do not block, so this is for a machine that is very
/// busy.
const TIMER_TIME: Duration = Duration::from_secs(5);

/// The watch over the timer thread, as long as the value lives.
pub fn watch_timer(health: &Health, timer: &TimerHandle) -> Pulse {
    let timer = timer.clone();
    // The alarm that was asked for before: one that hangs has one at most.
    let asked = Mutex::new(None);
    health.pulse_of_loop("timer", TIMER_TIME, move |answer| {
        let answer = answer.clone();
        let alarm = timer.at(Instant::now(), move || answer.give());
        *lock(&asked) = Some(alarm);
    })
}

/// In each text of a value.
pub(crate) fn hide_secrets(value: &mut Value) {
    match value {
        Value::String(text) => *text = redact::secrets(text).into_owned(),
        Value::Array(values) => values.iter_mut().for_each(hide_secrets),
        Value::Object(fields) => fields.values_mut().for_each(hide_secrets),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::base::leaks::Before;
    use crate::base::limits::WAIT_LATE;
    use crate::base::stop::Stopping;
    use crate::base::thread::{Kick, spawn};
    use crate::base::timer::Timer;
    use crate::base::wait::{LONG, until_some};
    use crate::base::waits::waiting;

    fn frame(timer: &Timer) -> Frame {
        Frame {
            role: "validator",
            since: Instant::now(),
            board: Board::new(),
            stop: Shutdown::new(),
            timer: timer.handle(),
            look: Box::new(|_, _| Value::Null),
        }
    }

    /// The threads of other tests are listed as well.
    fn line(snapshot: &Snapshot, name: &str) -> ThreadLine {
        snapshot.threads.iter().find(|thread| thread.name == name).unwrap().clone()
    }

    #[test]
    fn a_thread_that_is_stuck_is_named_with_its_deadline_passed() {
        let before = Before::of_group();
        let timer = Timer::start();
        let frame = frame(&timer);
        let (release, held) = bounded::<()>(0);
        let (begin, begun) = bounded::<()>(0);
        let stuck = spawn("t-status-stuck", Kick::dropped("release"), move || {
            let _waiting = waiting("what does not come", Instant::now().checked_sub(WAIT_LATE));
            drop(begin);
            held.recv().is_err()
        });
        assert!(begun.recv().is_err());
        let snapshot = frame.snapshot();
        let seen = line(&snapshot, "t-status-stuck");
        assert_eq!((seen.waits_for.as_deref(), seen.kick.as_str()), (Some("what does not come"), "release"));
        assert!(seen.left_seconds.unwrap() <= -5, "{seen:?}");
        let warns = |snapshot: &Snapshot| {
            let begins = "thread t-status-stuck waits for what does not come for ";
            snapshot
                .warnings
                .iter()
                .any(|warning| warning.starts_with(begins) && warning.ends_with(" over its deadline"))
        };
        assert!(warns(&snapshot), "{:?}", snapshot.warnings);
        snapshot.measure(&frame.board.metrics);
        assert!(!frame.board.metrics.render().contains("phalanx_threads_late 0"), "it is counted");
        drop(release);
        assert!(stuck.join_by(Instant::now() + LONG).unwrap());
        assert!(!warns(&frame.snapshot()));
        Stopping::alone().step("timer", LONG, |step| timer.stop_in(step));
        before.assert_none();
    }

    #[test]
    fn a_lock_that_is_held_shows_on_the_thread_that_wants_it() {
        let before = Before::of_group();
        let timer = Timer::start();
        let frame = frame(&timer);
        let mutex = Arc::new(Mutex::new(0));
        let wanted = mutex.clone();
        let held = lock(&mutex);
        let thread = spawn("t-status-lock", Kick::dropped("the lock"), move || *lock(&wanted));
        let waits = until_some("a thread that waits", || {
            Some(line(&frame.snapshot(), "t-status-lock")).filter(|seen| seen.waits_for.is_some())
        });
        assert_eq!((waits.waits_for.as_deref(), waits.left_seconds.is_some()), (Some("a lock"), true));
        drop(held);
        assert_eq!(thread.join_by(Instant::now() + LONG).unwrap(), 0);
        Stopping::alone().step("timer", LONG, |step| timer.stop_in(step));
        before.assert_none();
    }
}
