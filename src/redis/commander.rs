//! A thread that runs the requests of others over one connection.
//!
//! Owner: whoever holds the [`Commander`]. Blocks in: `poll` on its socket and its wake; while there is no connection,
//! on the wake alone, because a second thread dials (it lives for one attempt and is joined here). Kick: the wake, with
//! the flag that ends everything now. Ends: after a kick, or after [`Commander::stop`] when everything that it accepted
//! is answered.
//!
//! All that waits when the thread looks is packed into one write, and it goes on packing while answers are on their
//! way, so that one connection serves many callers. It connects again by itself for ever. An idle one is not woken at
//! all.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, bounded};
use redis::Value;

use super::config::RedisConfig;
use super::connection::{Connection, Incoming};
use super::error::RedisError;
use super::meters::CommanderMeters;
use super::request::{Done, Pipe, QueuedRequest, Request};
use super::socket::poll;
use crate::base::backoff::Backoff;
use crate::base::limits::{REDIS_REQUEST_BYTES, REDIS_REQUESTS, REDIS_WRITE_BYTES};
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::{KICK_GRACE, Step, StopReport, stop_alone};
use crate::base::thread::{JoinError, Kick, Thread, spawn};
use crate::base::waits::{waiting, waiting_unless_noted};
use crate::net::wake::Wake;
use crate::ops::errors::ErrorClass;
use crate::ops::status::Board;

/// Owns the thread. Dropping it kicks and joins the thread.
#[derive(Debug)]
#[must_use = "dropping it ends the thread"]
pub struct Commander {
    handle: CommanderHandle,
    thread: Thread<()>,
}

/// What callers hold; clones are the same. It may outlive its commander: requests are then refused.
#[derive(Clone)]
pub struct CommanderHandle(Arc<CommanderShared>);

struct CommanderShared {
    name: &'static str,
    queue: Mutex<CommandQueue>,
    wake: Wake,
    /// Ends a dial.
    shutdown: Shutdown,
}

#[derive(Default)]
struct CommandQueue {
    waiting: VecDeque<QueuedRequest>,
    /// Requests and bytes that are held, waiting or sent.
    requests: usize,
    bytes: usize,
    /// The thread looks at the queue only after a wake.
    asleep: bool,
    /// No deadline of those that wait is earlier.
    earliest: Option<Instant>,
    /// No more requests are taken.
    closed: bool,
    /// Everything is to end now.
    kicked: bool,
    state: CommanderState,
}

/// How a commander is.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CommanderState {
    /// Whether there is a connection.
    pub connected: bool,
    /// Connections that it has had; the number of the present one.
    pub epoch: u64,
    /// Why the last one ended, or why none comes about.
    pub last_error: Option<RedisError>,
}

impl Commander {
    /// Starts the thread, which connects at once. `name` (at most 13 bytes) is the name of the thread, of its part on
    /// the board's health and of its series in the metrics.
    ///
    /// # Errors
    /// [`RedisError::System`] if there is no file descriptor for the wake.
    pub fn start(name: &'static str, config: RedisConfig, board: &Board) -> Result<Self, RedisError> {
        let wake = Wake::new().map_err(|e| RedisError::System(format!("no event descriptor: {e}")))?;
        board.health.down(name, format!("no connection to {config} yet"));
        let shared = Arc::new(CommanderShared { name, queue: Mutex::default(), wake, shutdown: Shutdown::new() });
        let handle = CommanderHandle(shared.clone());
        let kicked = handle.clone();
        let runner = Runner {
            meters: CommanderMeters::new(name, board),
            board: board.clone(),
            backoff: Backoff::new(config.backoff),
            rng: Rng::from_entropy(),
            config,
            pipe: Pipe::default(),
            next_deadline: None,
            asleep: false,
            released: (0, 0),
            shared,
        };
        let thread = spawn(name, Kick::new("its wake", move || kicked.kick()), move || runner.run());
        Ok(Self { handle, thread })
    }

    /// What callers use.
    pub fn handle(&self) -> CommanderHandle {
        self.handle.clone()
    }

    /// Stops it alone, within `budget`, as [`Commander::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("redis commander", budget, |step| self.stop_in(step))
    }

    /// Takes no more requests, answers those that were accepted, and joins the thread; what is not answered within the
    /// step's budget fails with [`RedisError::Stopped`].
    pub fn stop_in(self, step: &mut Step) {
        self.handle.close();
        step.join(self.thread);
    }
}

impl CommanderHandle {
    /// Hands a request over and returns at once. `answer` gets the replies, one for each command, or the first error
    /// among them (the other commands ran all the same). It runs on the commander's thread by the request's deadline,
    /// so it must be quick and must not panic.
    ///
    /// # Errors
    /// [`RedisError::Full`], or [`RedisError::Stopped`] after a stop; `answer` is dropped then.
    pub fn submit(
        &self,
        request: Request,
        answer: impl FnOnce(Result<Vec<Value>, RedisError>) + Send + 'static,
    ) -> Result<(), RedisError> {
        if request.is_empty() {
            answer(Ok(Vec::new()));
            return Ok(());
        }
        let asleep = {
            let mut queue = lock(&self.0.queue);
            if queue.closed {
                return Err(RedisError::Stopped);
            }
            let (requests, bytes) = (queue.requests + 1, queue.bytes + request.len());
            // One that is larger than all that may wait is taken when nothing else does.
            if requests > REDIS_REQUESTS || (bytes > REDIS_REQUEST_BYTES && requests > 1) {
                return Err(RedisError::Full { requests: queue.requests, bytes: queue.bytes });
            }
            (queue.requests, queue.bytes) = (requests, bytes);
            queue.earliest = earlier(queue.earliest, Some(request.deadline));
            queue.waiting.push_back(QueuedRequest { request, answer: Box::new(answer), since: Instant::now() });
            std::mem::take(&mut queue.asleep)
        };
        if asleep {
            self.0.wake.raise();
        }
        Ok(())
    }

    /// Hands a request over and waits for its answer, until the request's deadline; a stop of the commander ends the
    /// wait.
    ///
    /// # Errors
    /// Those of [`CommanderHandle::submit`], [`RedisError::Timeout`], and what Redis or the connection says.
    pub fn call(&self, request: Request) -> Result<Vec<Value>, RedisError> {
        // The commander keeps the deadline; this bound is for a thread that the machine does not let run.
        let (since, latest) = (Instant::now(), request.deadline + KICK_GRACE);
        let (notify, notified) = bounded(1);
        self.submit(request, move |answer| {
            // Its caller waits until it is notified.
            let _ = notify.send(answer);
        })?;
        let _waiting = waiting_unless_noted("an answer of Redis", Some(latest));
        match notified.recv_deadline(latest) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Disconnected) => Err(RedisError::Stopped),
            Err(RecvTimeoutError::Timeout) => {
                Err(RedisError::Timeout { doing: "an answer", after: since.elapsed(), last: None })
            }
        }
    }

    /// Whether there is a connection, and the last error.
    pub fn state(&self) -> CommanderState {
        lock(&self.0.queue).state.clone()
    }

    /// Takes no more requests; the thread ends when those that were accepted are answered.
    fn close(&self) {
        lock(&self.0.queue).closed = true;
        self.0.wake.raise();
    }

    fn kick(&self) {
        {
            let mut queue = lock(&self.0.queue);
            (queue.closed, queue.kicked) = (true, true);
        }
        self.0.shutdown.cancel();
        self.0.wake.raise();
    }
}

impl fmt::Debug for CommanderHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = lock(&self.0.queue);
        f.debug_struct("CommanderHandle")
            .field("name", &self.0.name)
            .field("connected", &queue.state.connected)
            .field("requests", &queue.requests)
            .finish_non_exhaustive()
    }
}

struct Runner {
    shared: Arc<CommanderShared>,
    config: RedisConfig,
    board: Board,
    meters: CommanderMeters,
    backoff: Backoff,
    rng: Rng,
    pipe: Pipe,
    /// No deadline of a request that is packed, or waited when the thread last looked, is earlier.
    next_deadline: Option<Instant>,
    /// Everything that waited was taken, so the wake tells of more.
    asleep: bool,
    /// Requests and bytes that are over, and not yet taken off the queue's counts.
    released: (usize, usize),
}

enum Phase {
    Pause(Instant),
    Dialling(Dialling),
    Up(Box<Up>),
}

/// The part of the health that is the threads of connections to Redis.
pub(super) const BEAT: &str = "redis-threads";

/// What a turn of such a thread may take beside the operations that it waits for.
pub(super) const ROUND_TIME: Duration = Duration::from_secs(30);

/// A connection that is being made on a thread of its own, so that meanwhile deadlines are kept here.
struct Dialling {
    thread: Thread<()>,
    outcome: Receiver<Result<Connection, RedisError>>,
}

impl Dialling {
    /// After a cancel, or when the outcome is there.
    fn join(self) {
        if let Err(JoinError::Late(thread)) = self.thread.join_by(Instant::now() + KICK_GRACE) {
            thread.abandon("it dials on after its cancel");
        }
    }
}

struct Up {
    connection: Connection,
    /// When something last arrived, or something became due while nothing was.
    last_read: Instant,
}

/// What a look at the queue says.
enum Orders {
    Work,
    End,
}

impl Drop for Runner {
    /// Nobody waits for a thread that has gone, not even after a panic.
    fn drop(&mut self) {
        let waiting = {
            let mut queue = lock(&self.shared.queue);
            (queue.closed, queue.state.connected) = (true, false);
            std::mem::take(&mut queue.waiting)
        };
        self.meters.connected.set(0);
        // As if nothing had been written, so that all are given back.
        let (sent, over) = std::mem::take(&mut self.pipe).lost(0, &RedisError::Stopped);
        for job in sent.into_iter().chain(over.into_iter().map(|(job, _)| job)).chain(waiting) {
            self.meters.count(&job, "stopped");
            (job.answer)(Err(RedisError::Stopped));
        }
    }
}

impl Runner {
    fn run(mut self) {
        let mut phase = Phase::Pause(Instant::now());
        let wake = self.shared.wake.clone();
        let beat = self.board.health.beat(BEAT, self.config.operation_time + ROUND_TIME, move || wake.raise());
        loop {
            beat.come_round();
            let now = Instant::now();
            if self.next_deadline.is_some_and(|at| at <= now) {
                self.expire(now);
            }
            match self.orders(&mut phase) {
                Orders::Work => {}
                Orders::End => {
                    if let Phase::Dialling(dialling) = phase {
                        self.shared.shutdown.cancel();
                        dialling.join();
                    }
                    return;
                }
            }
            phase = match phase {
                Phase::Pause(until) if until <= now => self.dial(),
                Phase::Pause(until) => {
                    self.rest(Some(until));
                    Phase::Pause(until)
                }
                Phase::Dialling(dialling) => match dialling.outcome.try_recv() {
                    Err(TryRecvError::Empty) => {
                        self.rest(None);
                        Phase::Dialling(dialling)
                    }
                    outcome => {
                        dialling.join();
                        self.dialled(
                            outcome.unwrap_or_else(|_| Err(RedisError::System("the dial panicked".to_owned()))),
                        )
                    }
                },
                Phase::Up(mut up) => match self.pump(&mut up) {
                    Ok(()) => Phase::Up(up),
                    Err(error) => self.lost(&up, &error),
                },
            };
        }
    }

    /// Takes what waits, as far as the outbox has room, and says whether to go on.
    fn orders(&mut self, phase: &mut Phase) -> Orders {
        let mut queue = lock(&self.shared.queue);
        let (requests, bytes) = std::mem::take(&mut self.released);
        queue.requests -= requests;
        queue.bytes -= bytes;
        if queue.kicked || (queue.closed && queue.requests == 0) {
            return Orders::End;
        }
        if let Phase::Up(up) = phase {
            let (was_empty, room) = (self.pipe.is_empty(), REDIS_WRITE_BYTES.saturating_sub(up.connection.unsent()));
            let mut taken = 0;
            while taken < room
                && self.pipe.len() < REDIS_REQUESTS
                && let Some(job) = queue.waiting.pop_front()
            {
                taken += job.request.len();
                self.next_deadline = earlier(self.next_deadline, Some(job.request.deadline));
                self.pipe.pack(job, up.connection.outbox());
            }
            if was_empty && taken > 0 {
                up.last_read = Instant::now();
            }
        }
        if queue.waiting.is_empty() {
            queue.earliest = None;
        }
        self.next_deadline = earlier(self.next_deadline, queue.earliest);
        // What waits here waits for a connection or for room, and both wake the thread by themselves.
        queue.asleep = true;
        self.asleep = queue.waiting.is_empty();
        Orders::Work
    }

    /// Waits for the wake, the next deadline or `until`.
    fn rest(&mut self, until: Option<Instant>) {
        let until = earlier(until, self.next_deadline);
        let _waiting = waiting("a connection to Redis", until);
        match poll(None, Some(&self.shared.wake), until) {
            Ok(ready) if ready.woken => {
                self.shared.wake.lower();
            }
            Ok(_) => {}
            Err(error) => {
                // Without poll there is no waiting at all; the shutdown signal's wait is the one that is left.
                let what = format_args!("it cannot wait: {error}");
                self.board.errors.report(ErrorClass::Retry, self.shared.name, &what);
                self.shared.shutdown.wait(Duration::from_secs(1));
            }
        }
    }

    fn dial(&self) -> Phase {
        let (config, shared) = (self.config.clone(), self.shared.clone());
        let kicked = self.shared.clone();
        let kick = Kick::new("the cancel of its dial", move || kicked.shutdown.cancel());
        let (notify, outcome) = bounded(1);
        let thread = spawn(format!("{}-d", self.shared.name), kick, move || {
            let _woken = RaiseOnDrop(shared.wake.clone());
            // Gone before the wake is raised, also after a panic.
            let notify = notify;
            let deadline = Instant::now() + config.operation_time;
            // The commander keeps the receiver until it has joined this thread.
            let _ = notify.send(Connection::open(&config, deadline, &shared.shutdown, Level::Cancel));
        });
        Phase::Dialling(Dialling { thread, outcome })
    }

    fn dialled(&mut self, outcome: Result<Connection, RedisError>) -> Phase {
        let now = Instant::now();
        match outcome {
            Ok(connection) => {
                self.backoff.connected(now);
                {
                    let mut queue = lock(&self.shared.queue);
                    queue.state.connected = true;
                    queue.state.epoch += 1;
                }
                self.meters.connects.inc();
                self.meters.connected.set(1);
                self.board.health.up(self.shared.name);
                log::info!("{}: connected to {} (Redis {})", self.shared.name, self.config, connection.version());
                Phase::Up(Box::new(Up { connection, last_read: now }))
            }
            Err(error) => self.down(&error),
        }
    }

    /// There is no connection; when to try again.
    fn down(&mut self, error: &RedisError) -> Phase {
        let now = Instant::now();
        {
            let state = &mut lock(&self.shared.queue).state;
            state.connected = false;
            state.last_error = Some(error.clone());
        }
        self.meters.connected.set(0);
        let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        self.board.health.down(self.shared.name, format!("{error}{advice}"));
        self.board.errors.report(error.class(), self.shared.name, &format_args!("{error}{advice}"));
        let unit = self.rng.unit();
        Phase::Pause(now + self.backoff.next_delay(now, unit))
    }

    fn lost(&mut self, up: &Up, error: &RedisError) -> Phase {
        let (again, over) = std::mem::take(&mut self.pipe).lost(up.connection.written(), error);
        {
            let mut queue = lock(&self.shared.queue);
            for job in again.into_iter().rev() {
                queue.earliest = earlier(queue.earliest, Some(job.request.deadline));
                queue.waiting.push_front(job);
            }
        }
        let phase = self.down(error);
        for done in over {
            self.finish(done);
        }
        phase
    }

    /// One turn on a connection: write, read, answer, and wait if there was nothing to do.
    fn pump(&mut self, up: &mut Up) -> Result<(), RedisError> {
        up.connection.write_some()?;
        let stalls = up.last_read + self.config.operation_time;
        let until = earlier((!self.pipe.is_empty()).then_some(stalls), self.next_deadline);
        // More waits than was packed: once this is written, there is room again.
        let at_once = !self.asleep && up.connection.unsent() == 0 && self.pipe.len() < REDIS_REQUESTS;
        let until = if at_once { Some(Instant::now()) } else { until };
        let what = if self.pipe.is_empty() { "a request" } else { "an answer of Redis" };
        let waiting = (!at_once).then(|| waiting(what, until));
        let ready = up.connection.poll(Some(&self.shared.wake), until)?;
        drop(waiting);
        if ready.woken {
            self.shared.wake.lower();
        }
        if ready.readable {
            up.connection.read_some()?;
            up.last_read = Instant::now();
            while let Some(incoming) = up.connection.next_incoming()? {
                let Incoming::Reply(value) = incoming else { continue };
                match self.pipe.reply(value, up.connection.outbox()) {
                    Ok(None) => {}
                    Ok(Some(done)) => self.finish(done),
                    Err(value) => {
                        let problem = format!("a reply that nobody asked for: {value:.100?}");
                        return Err(RedisError::Protocol { peer: self.config.peer(), problem });
                    }
                }
            }
            if self.pipe.is_empty() {
                self.next_deadline = None;
            }
        } else if !self.pipe.is_empty() && Instant::now() >= stalls {
            return Err(RedisError::Timeout { doing: "an answer", after: self.config.operation_time, last: None });
        }
        Ok(())
    }

    /// Tells the callers whose deadline has come.
    fn expire(&mut self, now: Instant) {
        let (late, last) = {
            let mut queue = lock(&self.shared.queue);
            let (late, waiting): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut queue.waiting).into_iter().partition(|job| job.request.deadline <= now);
            queue.earliest = waiting.iter().map(|job| job.request.deadline).min();
            queue.waiting = waiting;
            self.next_deadline = earlier(self.pipe.next_deadline(), queue.earliest);
            let last = if queue.state.connected { None } else { queue.state.last_error.clone() };
            (late, last.map(Arc::new))
        };
        let doing = if last.is_some() { "waiting for a connection" } else { "waiting to be sent" };
        let sent = self.pipe.expire(now).into_iter().map(|job| (job, "an answer", None));
        for (job, doing, last) in late.into_iter().map(|job| (job, doing, last.clone())).chain(sent).collect::<Vec<_>>()
        {
            let after = now.saturating_duration_since(job.since);
            self.finish((job, Err(RedisError::Timeout { doing, after, last })));
        }
    }

    fn finish(&mut self, (job, outcome): Done) {
        self.released.0 += 1;
        self.released.1 += job.request.len();
        self.meters.count(&job, outcome.as_ref().map_or_else(RedisError::outcome, |_| "ok"));
        (job.answer)(outcome);
    }
}

/// Tells the commander that its dial is over, however it ends.
struct RaiseOnDrop(Wake);

impl Drop for RaiseOnDrop {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// The earlier of two moments of which either may be missing.
fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
