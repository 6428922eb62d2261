//! The thread of a batch, and who holds it.
//!
//! Owner: [`RunningBatch`]. Blocks in: the one channel of all that happens to its miners, until the next deadline and
//! at most for a tenth of a second, by which it sees how late it is itself; nothing is ever late by a clock that is
//! moved by hand. Kick: the cancel signal. Ends: when each job has its outcome, or soon after the cancel; its links are
//! closed then, on each way.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, never, select};

use super::config::BatchConfig;
use super::disk::{Disk, Keep, Then};
use super::error::BatchError;
use super::job::Judge;
use super::keep::{self, Requests, answer_text};
use super::kept::{Place, PlannedRow};
use super::line::JobLine;
use super::lines::Lines;
use super::plan::JobMaker;
use super::state::{Action, Batch, BatchProgress, Ending, GateSend, Input, MinerInput};
use super::summary::Summary;
use crate::base::clock::Clock;
use crate::base::lock::lock;
use crate::base::now::Now;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{StopReport, Stopping, stop_alone};
use crate::base::thread::{JoinError, Kick, Thread, spawn};
use crate::base::timer::TimerHandle;
use crate::base::waits::{send, waiting};
use crate::link::Outgoing;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::metrics::Metrics;
use crate::store::batch::{BatchJobRow, BatchJobState, BatchWrite, NO_JOB};
use crate::transport::Dialer;
use crate::validator::miner_client::{MinerEvent, MinerLink, miner_meters};
use crate::validator::routing::MinerAddress;

/// Events of all miners that wait for the batch: one each of its most miners. The links' threads wait beyond that, with
/// what they have stamped already, and TCP slows the miners.
const EVENTS: usize = super::config::BATCH_MINERS;

/// How often the batch looks at the clock, to see how late it is.
const BEAT: Duration = Duration::from_millis(100);

/// How much of a batch's time a kill may lose: a commit in ten seconds costs nothing.
const TIME_KEPT: Duration = Duration::from_secs(10);

/// How much longer it must have taken for its time to be kept with what is kept anyway.
const TIME_STEP: Duration = Duration::from_secs(1);

/// How long a connection may take to close, and at the end all that are left together.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// Beyond [`CLOSE_TIME`], what the last commit may take after a cancel.
const CANCEL_TIME: Duration = Duration::from_secs(5);

/// Something of a miner, and when its link's thread had it.
type Event = (usize, Now, MinerEvent);

/// A batch under way. Dropping it cancels it.
#[derive(Debug)]
pub struct RunningBatch {
    thread: Thread<Result<Summary, BatchError>>,
    lines: Receiver<Box<JobLine>>,
    progress: Arc<Mutex<BatchProgress>>,
    cancel: Shutdown,
    clock: Clock,
    metrics: Metrics,
}

/// Why there is no line now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLine {
    /// None came within the time.
    NotYet,
    /// The batch has no more.
    Over,
}

impl RunningBatch {
    /// Begins a batch, whose moments are of the timer's clock. Blocks on the disk, if there is a state folder.
    ///
    /// # Errors
    /// [`BatchError`]; nothing was begun then.
    pub fn start(
        config: BatchConfig,
        miners: Vec<MinerAddress>,
        (maker, judge): (Box<dyn JobMaker>, Box<dyn Judge>),
        dialer: Arc<dyn Dialer>,
        timer: TimerHandle,
    ) -> Result<Self, BatchError> {
        let problems = config.validate(miners.len());
        if !problems.is_empty() {
            return Err(BatchError::Config(problems));
        }
        let names: Vec<String> = miners.iter().map(|miner| miner.hotkey.to_ss58()).collect();
        let (lines, shown) = Lines::new(miners.len());
        let number = uuid::Uuid::new_v4().as_u64_pair().0;
        let cancel = Shutdown::new();
        let (number, requests, kept, before, keeper) = match &config.state_dir {
            Some(folder) => {
                let opened = keep::open(folder, &config, number, &names)?;
                let disk = Disk::start(opened.store, lines, cancel.clone());
                let before = (opened.lag, opened.took);
                (opened.number, opened.requests, opened.kept, before, Keeper::Disk(disk))
            }
            None => (number, Requests::default(), Vec::new(), Default::default(), Keeper::Memory(lines)),
        };
        let (lag, took) = before;
        let (events_in, events) = bounded(EVENTS);
        let progress = Arc::new(Mutex::new(BatchProgress::default()));
        let limits = (config.max_spread, config.max_lag);
        let (seed, key, clock) = (config.seed, config.key.clone(), timer.clock().clone());
        let links = miners.iter().map(|_| None).collect();
        let metrics = Metrics::new();
        let dialer = miner_meters(&metrics).dialer(dialer);
        let batch = Batch::new(config, number, miners.clone(), (maker, judge), kept);
        let runner = Runner {
            events,
            events_in,
            batch,
            key,
            miners,
            names,
            requests,
            keeper,
            dialer,
            errors: ErrorHandler::new(&metrics),
            timer,
            clock: clock.clone(),
            links,
            closing: Vec::new(),
            progress: progress.clone(),
            lag,
            kept_lag: lag,
            began: clock.now(),
            took_before: took,
            kept_took: took,
            max_lag: limits.1,
            ending: None,
        };
        let (stop, kick) = (cancel.clone(), cancel.clone());
        let thread = spawn("val-batch", Kick::new("cancel signal", move || kick.cancel()), move || {
            runner.run(&stop, |ending, times, tally| Summary::new(seed, ending, tally, times, limits))
        });
        Ok(Self { thread, lines: shown, progress, cancel, clock, metrics })
    }

    /// The next line, in the order in which jobs end; those of a batch that goes on come first. Waits for `time` at
    /// most, of the timer's clock. A line is on disk before it is here, if there is a state folder.
    ///
    /// # Errors
    /// [`NoLine`].
    pub fn next_line(&self, time: Duration) -> Result<JobLine, NoLine> {
        let until = self.clock.now() + time;
        let (due, _waiting) = (self.clock.at(until), waiting("the next end of a job", Some(until)));
        let line = select! {
            recv(self.lines) -> line => line.map_err(|_| NoLine::Over),
            recv(due.receiver()) -> _ => self.lines.try_recv().map_err(|error| match error {
                TryRecvError::Empty => NoLine::NotYet,
                TryRecvError::Disconnected => NoLine::Over,
            }),
        };
        line.map(|line| *line)
    }

    /// Where it stands.
    pub fn progress(&self) -> BatchProgress {
        *lock(&self.progress)
    }

    /// What is counted of it, also after its end: connections to miners, messages, errors.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The signal whose cancel ends the batch early, within some ten seconds.
    pub fn cancel_signal(&self) -> Shutdown {
        self.cancel.clone()
    }

    /// Cancels the batch and joins its thread within `budget`. What it has found so far is in its state folder, if it
    /// has one.
    pub fn stop(self, budget: Duration) -> StopReport {
        self.cancel.cancel();
        stop_alone("batch", budget, |step| drop(step.join(self.thread)))
    }

    /// Waits for the end; [`RunningBatch::cancel_signal`] hastens it.
    ///
    /// # Errors
    /// [`BatchError`], if the batch could not go on.
    pub fn finish(self) -> Result<Summary, BatchError> {
        let done = self.thread.done_receiver();
        let waits = waiting("the end of the batch", None);
        // Nothing is ever sent: it disconnects with the thread's end.
        let _ = done.recv();
        drop(waits);
        match self.thread.join_by(Instant::now() + CLOSE_TIME + CANCEL_TIME) {
            Ok(result) => result,
            Err(JoinError::Panicked(why)) => Err(BatchError::Panicked(why)),
            Err(JoinError::Late(thread)) => {
                thread.abandon("it has said that it has ended");
                Err(BatchError::Panicked("its thread does not end".to_owned()))
            }
        }
    }
}

/// What keeps results.
enum Keeper {
    Memory(Lines),
    Disk(Disk),
}

/// The thread's state. In the order in which it is dropped by a panic: first what links may wait for.
struct Runner {
    events: Receiver<Event>,
    events_in: Sender<Event>,
    links: Vec<Option<MinerLink>>,
    closing: Vec<MinerLink>,
    batch: Batch,
    key: crate::identity::KeyPair,
    miners: Vec<MinerAddress>,
    /// Their hotkeys as texts.
    names: Vec<String>,
    requests: Requests,
    keeper: Keeper,
    dialer: Arc<dyn Dialer>,
    errors: ErrorHandler,
    timer: TimerHandle,
    /// The timer's.
    clock: Clock,
    progress: Arc<Mutex<BatchProgress>>,
    /// How late it was at most, also before it went on; and what of that is kept.
    lag: Duration,
    kept_lag: Duration,
    /// When it began or went on, how long it had taken before, and what of its time is kept.
    began: Instant,
    took_before: Duration,
    kept_took: Duration,
    /// Beyond it the batch is flagged.
    max_lag: Duration,
    ending: Option<Ending>,
}

impl Runner {
    fn run(
        mut self,
        cancel: &Shutdown,
        summary: impl FnOnce(Ending, (Duration, Duration), super::summary::Tally) -> Summary,
    ) -> Result<Summary, BatchError> {
        self.feed(Input::Start, self.clock.now_and_wall());
        while self.ending.is_none() {
            self.next(cancel);
            self.keep_time();
            *lock(&self.progress) = self.batch.progress();
        }
        let took = self.took();
        let Self { events, events_in, links, closing, keeper, lag, ending, errors, .. } = self;
        // First, so that links whose threads wait for room are freed.
        drop((events, events_in));
        let ending = ending.unwrap_or(Ending::Cancelled);
        let over = BatchWrite::Over { lag_us: micros(lag), took_us: micros(took), ended: ending == Ending::Complete };
        let lines = match keeper {
            Keeper::Disk(mut disk) => {
                // If it has failed, its end says so.
                let _ = disk.keep(Keep { writes: vec![over], then: Then::Nothing });
                disk.finish()
            }
            Keeper::Memory(lines) => Ok(lines),
        };
        let result = lines.map(|lines| summary(ending, (lag, took), lines.tally()));
        let mut stopping = Stopping::alone();
        stopping.step("the miners of the batch", CLOSE_TIME, |step| {
            for link in closing.into_iter().chain(links.into_iter().flatten()) {
                link.stop_in(step);
            }
        });
        let report = stopping.finish();
        if !report.stragglers().is_empty() {
            errors.report(ErrorClass::Fatal, "batch-end", &format_args!("threads are left behind: {report}"));
        }
        result
    }

    /// Waits for what happens next, and takes it in.
    fn next(&mut self, cancel: &Shutdown) {
        let wake = self.wake();
        let (due, waits) = (self.clock.at(wake), waiting("what its miners say", Some(wake)));
        let gate = match &self.keeper {
            Keeper::Disk(disk) => disk.gate_kept.clone(),
            Keeper::Memory(_) => never(),
        };
        enum Woken {
            Event(Event),
            GateKept,
            DiskFailed,
            Cancel,
            Time,
        }
        let woken = select! {
            recv(self.events) -> event => event.map_or(Woken::Time, Woken::Event),
            recv(gate) -> kept => if kept.is_ok() { Woken::GateKept } else { Woken::DiskFailed },
            recv(cancel.cancel_receiver()) -> _ => Woken::Cancel,
            recv(due.receiver()) -> _ => Woken::Time,
        };
        drop(waits);
        match woken {
            Woken::Event(event) => self.event(event),
            Woken::GateKept => self.feed(Input::GateKept, self.clock.now_and_wall()),
            Woken::DiskFailed => self.disk_failed(),
            Woken::Cancel => self.feed(Input::Cancel, self.clock.now_and_wall()),
            Woken::Time => self.late_since(wake),
        }
        // What has come is judged by its own time, so it goes before what the clock says.
        for _ in 0..EVENTS {
            match self.events.try_recv() {
                Ok(event) => self.event(event),
                Err(_) => break,
            }
        }
        let moment = self.clock.now_and_wall();
        if self.batch.next_wake().is_some_and(|wake| wake <= moment.mono) {
            self.feed(Input::Tick, moment);
        }
    }

    /// When it looks at the clock next, whatever happens until then.
    fn wake(&self) -> Instant {
        let beat = self.clock.now() + BEAT;
        match self.batch.next_wake() {
            Some(due) if self.clock.is_manual() => due,
            due => due.map_or(beat, |due| due.min(beat)),
        }
    }

    fn late_since(&mut self, moment: Instant) {
        self.lag = self.lag.max(self.clock.now().saturating_duration_since(moment));
    }

    /// How long it has taken, also before it went on.
    fn took(&self) -> Duration {
        self.took_before + self.clock.now().saturating_duration_since(self.began)
    }

    /// What flags the batch is kept at once, so that a kill does not lose it, and its time every [`TIME_KEPT`]; what is
    /// less goes with what is kept next.
    fn keep_time(&mut self) {
        let is_flagged = self.lag > self.max_lag && self.kept_lag <= self.max_lag;
        if is_flagged || self.took() >= self.kept_took + TIME_KEPT {
            for (input, at) in self.keep(Vec::new(), Then::Nothing) {
                self.feed(input, at);
            }
        }
    }

    fn event(&mut self, (miner, at, event): Event) {
        self.late_since(at.mono);
        let input = match event {
            // The manifest follows at once.
            MinerEvent::Ready => return,
            MinerEvent::Message(message) => MinerInput::Message(message),
            MinerEvent::Failed { why, refused, outcome, .. } => MinerInput::Failed { why, refused, outcome },
            MinerEvent::Lost { why } => MinerInput::Lost(why),
            MinerEvent::Unreadable { why, broken } => {
                self.errors.report(ErrorClass::Rejected, "miner-message", &why);
                if !broken {
                    return;
                }
                MinerInput::Unreadable
            }
        };
        self.feed(Input::Miner(miner, input), at);
    }

    fn disk_failed(&mut self) {
        self.errors.report(ErrorClass::Fatal, "results", &"the batch ends, because they cannot be kept");
        self.feed(Input::Cancel, self.clock.now_and_wall());
    }

    /// Hands an input to the batch and does what it says, and what follows from that.
    fn feed(&mut self, input: Input, at: Now) {
        let mut actions = std::collections::VecDeque::from(self.batch.handle(input, at));
        while let Some(action) = actions.pop_front() {
            for (input, at) in self.act(action) {
                actions.extend(self.batch.handle(input, at));
            }
        }
    }

    fn act(&mut self, action: Action) -> Vec<(Input, Now)> {
        match action {
            Action::Connect(miner) => self.connect(miner),
            Action::Send(miner, message) => {
                let Some(link) = &self.links[miner] else { return Vec::new() };
                if let Err(full) = link.send(*message) {
                    return vec![(
                        Input::Miner(miner, MinerInput::NotSent(full.to_string())),
                        self.clock.now_and_wall(),
                    )];
                }
            }
            Action::Plan(rows) => {
                let writes = rows.iter().flat_map(|row| self.planned(row, BatchWrite::Planned)).collect();
                return self.keep(writes, Then::Nothing);
            }
            Action::PlanAnew(rows) => {
                let writes = rows.iter().flat_map(|row| self.planned(row, BatchWrite::NotSent)).collect();
                return self.keep(writes, Then::Nothing);
            }
            Action::KeepGate(leaving) => {
                let sent = |(place, line): (Place, JobLine)| BatchWrite::Sent {
                    miner: self.names[place.miner].clone(),
                    place: number_of(place),
                    line: line.to_record(),
                };
                let writes = leaving.into_iter().map(sent).collect();
                return self.keep(writes, Then::OpenGate);
            }
            Action::OpenGate(sends) => return self.open_gate(sends),
            Action::End(place, line, answer) => {
                let write = BatchWrite::Ended {
                    miner: self.names[place.miner].clone(),
                    place: number_of(place),
                    line: line.to_record(),
                    answer: answer_text(answer.as_deref()),
                };
                return self.keep(vec![write], Then::Show(line));
            }
            Action::Show(line) => return self.keep(Vec::new(), Then::Show(line)),
            Action::Close(miner) => {
                if let Some(mut link) = self.links[miner].take() {
                    link.close(CLOSE_TIME);
                    self.closing.push(link);
                }
            }
            Action::Done(ending) => self.ending = Some(ending),
        }
        Vec::new()
    }

    fn connect(&mut self, miner: usize) {
        let to = self.events_in.clone();
        let (dialer, timer, clock) = (self.dialer.clone(), self.timer.clone(), self.clock.clone());
        let sink = move |event| {
            // The receiver goes with the batch; what the miner says after that concerns nobody.
            let _ = send(&to, (miner, clock.now_and_wall(), event), "room for what the miner says");
        };
        let link = MinerLink::start(&self.miners[miner], &self.key, dialer, timer, miner as u64, sink);
        self.links[miner] = Some(link);
    }

    fn planned(&mut self, row: &PlannedRow, write: fn(Box<BatchJobRow>) -> BatchWrite) -> Vec<BatchWrite> {
        let (request, body) = self.requests.id_of(&row.request);
        let job = BatchJobRow {
            miner: self.names[row.place.miner].clone(),
            place: number_of(row.place),
            uuid: row.uuid.clone(),
            class: row.class.to_string(),
            request,
            attempts: row.attempts,
            state: BatchJobState::Planned,
            line: String::new(),
            answer: String::new(),
        };
        body.into_iter().chain([write(Box::new(job))]).collect()
    }

    fn keep(&mut self, mut writes: Vec<BatchWrite>, then: Then) -> Vec<(Input, Now)> {
        let took = self.took();
        if self.lag > self.kept_lag || took >= self.kept_took + TIME_STEP {
            (self.kept_lag, self.kept_took) = (self.lag, took);
            writes.push(BatchWrite::Time { lag_us: micros(self.lag), took_us: micros(took) });
        }
        match (&mut self.keeper, then) {
            (Keeper::Disk(disk), then) => {
                if !disk.keep(Keep { writes, then }) && self.ending.is_none() {
                    return vec![(Input::Cancel, self.clock.now_and_wall())];
                }
            }
            (Keeper::Memory(lines), Then::Show(line)) => lines.show(*line),
            (Keeper::Memory(_), Then::OpenGate) => return vec![(Input::GateKept, self.clock.now_and_wall())],
            (Keeper::Memory(_), Then::Nothing) => {}
        }
        Vec::new()
    }

    /// Hands all job requests to their connections, with the time before and after each.
    fn open_gate(&self, sends: Vec<GateSend>) -> Vec<(Input, Now)> {
        let ready: Vec<_> = sends.into_iter().map(|send| (send.job, send.miner, Outgoing::once(send.text))).collect();
        let mut sent = Vec::with_capacity(ready.len());
        for (job, miner, text) in ready {
            let before = self.clock.now_and_wall();
            let error = match &self.links[miner] {
                Some(link) => link.send_text(text).err().map(|full| full.to_string()),
                None => Some("its connection is closed".to_owned()),
            };
            let after = self.clock.now_and_wall();
            sent.push((Input::Sent { job, before, after, error }, after));
        }
        sent
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// The number of a place on disk.
fn number_of(place: Place) -> i64 {
    if place.job == Place::NO_JOB { NO_JOB } else { i64::try_from(place.job).unwrap_or(i64::MAX) }
}
