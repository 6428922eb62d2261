//! The validator as a front: sends jobs to workers on other machines, and reads what becomes of them.
//!
//! Owner: [`Front`], whose owner stops it. Its thread `val-events` blocks in the stream's receiver, in the queue
//! towards the facilitator when that is full, and in the disk's tickets; its kick ends the first two, the disk has a
//! deadline. It ends after the kick. What it has read and not yet on disk stays in the stream, for the next start.
//! `val-hand-n` gives jobs to Redis once they are on disk, see [`WorkQueue`]. The other threads are a Celery client's
//! (`cel-cmd`, `cel-sub`), those of Redis messaging (`rds-cmd`, `rds-sub`) and of its timer.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use redis::{FromRedisValue, Value};

use super::call::{Call, EXECUTE_JOB, Event, MARGIN, MOST_BEGUN, News, events_key, job_key, on_one_worker, under_way};
use super::front_state::{FrontConfig, FrontState, HandedOver, RemoteJob};
use crate::base::limits::{UNCHECKED_BYTES, UNCHECKED_REQUESTS};
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::Stopping;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::timer::{Alarm, TimerHandle};
use crate::celery::client::{Mark, Outcome as TaskOutcome, TaskError};
use crate::celery::{CeleryClient, CeleryConfig, CeleryHandle, Task, Terminate};
use crate::identity::PublicKey;
use crate::ops::errors::ErrorClass;
use crate::ops::health::Pulse;
use crate::ops::status::Board;
use crate::protocol::{HordeFailureReason, JobRejectionReason, ValidatorToFacilitator};
use crate::redis::messaging::{Delivery, Messaging, RedisMessaging, StreamReceiver};
use crate::redis::{RedisError, Repeat, Request};
use crate::validator::client::job::{DISK_TIME, Job, LeftJob, Line};
use crate::validator::client::work_queue::{WorkLimits, WorkQueue, WorkQueueHandle};
use crate::validator::jobs::{DISPATCH_CLOSE_TIME, FrontStatus, JobRunner};
use crate::validator::ledger::{Ticket, UpdateError};
use crate::validator::status::{EndMessage, Outcome, reason_of};

/// The part that is down while Redis would not have a job.
const HAND_OVER: &str = "hand-over";

/// What the last news of a job may take after its task has ended.
const LAST_NEWS: Duration = Duration::from_secs(30);

/// Longest that a batch of jobs may take to be given to Redis: their wait for the disk, and no other.
const HAND_OVER_TIME: Duration = DISK_TIME.saturating_add(Duration::from_secs(30));

/// Longest that an event may take, without the waits for the disk and for Redis.
const EVENT_TIME: Duration = Duration::from_secs(10);

/// A pause after trouble with Redis or the disk.
const PAUSE: Duration = Duration::from_secs(1);

/// A running front; clones are the same.
#[derive(Clone)]
pub(in crate::validator) struct Front(Arc<FrontShared>);

struct FrontShared {
    config: FrontConfig,
    celery: CeleryHandle,
    messaging: Messaging,
    timer: TimerHandle,
    board: Board,
    state: Mutex<FrontState>,
    hand_over: WorkQueueHandle<HandedOver>,
    /// Of `val-events`. While that waits for events it promises nothing: the thread of its connection does.
    pulse: Pulse,
    /// Drain: nothing is tried again any more.
    closing: Shutdown,
    /// Taken by the stop.
    threads: Mutex<Option<FrontThreads>>,
}

struct FrontThreads {
    celery: CeleryClient,
    messaging: RedisMessaging,
    hand_over: WorkQueue<HandedOver>,
    /// Nobody reads the events until the jobs of an earlier process are known.
    receiver: Option<StreamReceiver>,
    events: Option<Thread<()>>,
}

/// An event was not recorded, because the front stops.
struct NotRecorded;

impl JobRunner for Front {
    fn run(&self, job: Job) {
        let uuid: Arc<str> = job.request().uuid.as_str().into();
        let now = Instant::now();
        let inner = &self.0;
        let (request, avoid, line, on_one_worker) = {
            let mut state = lock(&inner.state);
            if state.jobs.len() >= inner.config.limit || state.stopped {
                return;
            }
            let Some((request, line)) = job.hand_over() else { return };
            let line = Arc::new(line);
            state.avoid.retain(|_, until| *until > now);
            let avoid: Vec<PublicKey> = state.avoid.keys().copied().collect();
            let longest = on_one_worker(&inner.config.job_times, &request);
            let alarm = Some(self.alarm(&uuid, now + inner.config.queue_time));
            let held = RemoteJob { line: line.clone(), begun: 0, longest, alarm, again: None, result: None };
            state.jobs.insert(uuid.clone(), held);
            (request, avoid, line, longest)
        };
        let call = Call { request: (*request).clone(), front: Some(inner.config.name.clone()), avoid };
        let (arguments, bytes) = call.write();
        let task = Task::new(EXECUTE_JOB).id(&*uuid).queue(&inner.config.queue).kwargs(arguments);
        // What a job is given may be secret.
        let task = task.shown_as("()", format!("{{'request': <job {uuid}>}}"));
        let wanted_for = under_way(inner.config.queue_time, on_one_worker);
        let deadline = now + inner.config.queue_time;
        let handed_over = HandedOver { uuid, task, wanted_for, deadline, known: line.last_ticket() };
        drop(line);
        if let Err(refused) = inner.hand_over.push(bytes, handed_over) {
            self.not_sent(&refused.uuid, &"too many jobs wait for the disk");
        }
    }

    fn left(&self, left: LeftJob) {
        let (uuid, line) = left.go_on();
        let mut state = lock(&self.0.state);
        // How long it may take is known from Redis, later.
        let held =
            RemoteJob { line: Arc::new(line), begun: 0, longest: MARGIN, alarm: None, again: None, result: None };
        state.jobs.insert(uuid.clone(), held);
        state.left.push(uuid);
    }

    /// Reads from now on what the workers report.
    fn begin(&self) {
        if let Some(threads) = &mut *lock(&self.0.threads)
            && let Some(receiver) = threads.receiver.take()
        {
            threads.events = Some(self.spawn_reader(receiver));
        }
    }

    fn blacklist(&self, miner: PublicKey, time: Duration) {
        let until = Instant::now() + time;
        lock(&self.0.state).avoid.entry(miner).or_insert(until);
    }

    fn running(&self) -> usize {
        lock(&self.0.state).jobs.len()
    }

    fn front(&self) -> Option<FrontStatus> {
        let state = lock(&self.0.state);
        let begun = state.jobs.values().filter(|job| job.begun > 0).count();
        Some(FrontStatus { waiting: state.jobs.len() - begun, begun })
    }

    fn stop_in(&self, stopping_all: &mut Stopping, drain: Duration) -> usize {
        let Some(FrontThreads { celery, messaging, hand_over, events, .. }) = lock(&self.0.threads).take() else {
            return 0;
        };
        let cancelled = stopping_all.step("validator jobs", drain, |step| {
            let drained = {
                let mut state = lock(&self.0.state);
                let empty = state.jobs.is_empty();
                state.drained.watch(empty)
            };
            step.wait(&drained);
            let rest: Vec<Arc<str>> = {
                let mut state = lock(&self.0.state);
                state.stopped = true;
                state.jobs.keys().cloned().collect()
            };
            rest.iter().for_each(|uuid| self.end(uuid, Outcome::stopping(), true));
            rest.len()
        });
        stopping_all.step("dispatch", DISPATCH_CLOSE_TIME, |step| {
            // Also for the jobs that wait for the disk, which have ended by now.
            self.0.closing.drain();
            if let Some(events) = events {
                events.kick();
                step.join(events);
            }
            hand_over.stop_in(step);
            messaging.stop_in(step);
            celery.stop_in(step);
        });
        cancelled
    }
}

impl Front {
    /// Starts the connections. A Redis that is away is not an error: they connect for ever.
    pub(crate) fn start(config: FrontConfig, timer: TimerHandle, board: &Board) -> Result<Self, RedisError> {
        let settings = CeleryConfig { app: config.celery.clone(), ..CeleryConfig::new(config.redis.clone()) };
        let celery = CeleryClient::start(settings, board)?;
        let messaging = RedisMessaging::start(config.celery.broker(&config.redis).named("phalanx-front"), board)?;
        let stream = events_key(&config.name);
        // Only this front reads it, so what it has not acknowledged is never somebody else's.
        let receiver = messaging.handle().stream_receiver(&stream, "front", "front", Duration::from_secs(86_400));
        let limits = WorkLimits { items: UNCHECKED_REQUESTS, bytes: UNCHECKED_BYTES };
        Ok(Self(Arc::new_cyclic(|shared: &Weak<FrontShared>| {
            let shared = shared.clone();
            let watched = (&board.health, HAND_OVER, HAND_OVER_TIME);
            let hand_over = WorkQueue::start(("val-hand", "jobs to hand over"), 1, limits, watched, move |jobs| {
                if let Some(front) = shared.upgrade().map(Front) {
                    front.hand_over(jobs);
                }
            });
            FrontShared {
                config,
                celery: celery.handle(),
                messaging: messaging.handle(),
                timer,
                board: board.clone(),
                state: Mutex::default(),
                hand_over: hand_over.handle(),
                pulse: board.health.pulse("events"),
                closing: Shutdown::new(),
                threads: Mutex::new(Some(FrontThreads {
                    celery,
                    messaging,
                    hand_over,
                    receiver: Some(receiver),
                    events: None,
                })),
            }
        })))
    }

    fn spawn_reader(&self, receiver: StreamReceiver) -> Thread<()> {
        let (reading, kicked, stream) = (self.clone(), self.clone(), receiver.kick());
        let kick = Kick::new("the receiver's kick", move || {
            kicked.0.closing.drain();
            stream.kick();
        });
        spawn("val-events", kick, move || reading.read(receiver))
    }

    /// On the thread `val-hand-n`: submits the jobs, each when it is on disk, or when that has taken too long, as with
    /// jobs that run here.
    fn hand_over(&self, jobs: Vec<HandedOver>) {
        let disk_deadline = Instant::now() + DISK_TIME;
        for job in jobs {
            if self.is_over(&job.uuid) {
                continue;
            }
            let known = job.known.wait_unless(&self.0.closing, disk_deadline);
            // It may have ended meanwhile.
            if self.is_over(&job.uuid) {
                continue;
            }
            if let Err(error) = known {
                self.trouble(ErrorClass::Retry, &format_args!("job {}: {error}", job.uuid));
            }
            self.submit(job);
        }
    }

    fn is_over(&self, uuid: &Arc<str>) -> bool {
        !lock(&self.0.state).jobs.contains_key(uuid)
    }

    fn submit(&self, job: HandedOver) {
        let (inner, again) = (&self.0, job.clone());
        let HandedOver { uuid, task, wanted_for, deadline, .. } = job;
        let key = job_key(&uuid);
        let wanted = Mark { key: &key, field: "front", value: &inner.config.name, keep: wanted_for };
        let (weak, of) = (Arc::downgrade(inner), uuid.clone());
        let sent = inner.celery.submit_marked(Some(&wanted), task, deadline, move |sent| {
            match (sent, weak.upgrade().map(Front)) {
                (Ok(()), Some(front)) => front.hands_over(&of),
                // It is full for a while, or does not let us: what it has refused it has not done.
                (Err(error @ RedisError::Server { .. }), Some(front))
                    if error.class() != ErrorClass::Rejected && Instant::now() + PAUSE < deadline =>
                {
                    front.submit_again(again, error);
                }
                (Err(error), Some(front)) => front.not_sent(&of, error),
                (_, None) => {}
            }
        });
        let pending = match sent {
            Ok(pending) => pending,
            Err(error) => return self.not_sent(&uuid, &error),
        };
        let (weak, of) = (Arc::downgrade(inner), uuid.clone());
        pending.on_end(move |outcome| {
            if let Some(front) = weak.upgrade().map(Front) {
                front.task_ended(&of, outcome);
            }
        });
        let mut state = lock(&inner.state);
        if let Some(held) = state.jobs.get_mut(&uuid) {
            held.result = Some(pending);
            return;
        }
        drop(state);
        // It has ended meanwhile, perhaps before it was sent.
        self.unwanted(&uuid);
        self.revoke(&uuid);
        pending.unfollow();
    }

    /// Redis has a job.
    fn hands_over(&self, uuid: &Arc<str>) {
        let again = lock(&self.0.state).jobs.get_mut(uuid).and_then(|held| held.again.take());
        if again.is_some() {
            self.0.board.health.up(HAND_OVER);
        }
    }

    /// Redis would not have a job, which is tried again as long as it may wait for a worker.
    fn submit_again(&self, job: HandedOver, error: &RedisError) {
        let uuid = job.uuid.clone();
        self.trouble(error.class(), &format_args!("job {uuid}: not handed to the workers yet: {error}"));
        let weak = Arc::downgrade(&self.0);
        let again = self.0.timer.at(Instant::now() + PAUSE, move || {
            if let Some(front) = weak.upgrade().map(Front)
                && !front.is_over(&job.uuid)
            {
                front.submit(job);
            }
        });
        let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        let (why, mut again) = (format!("{error}{advice}"), Some(again));
        let old = match lock(&self.0.state).jobs.get_mut(&uuid) {
            Some(held) => {
                // Only while the job is there: whoever forgets it afterwards says that this is over.
                self.0.board.health.down(HAND_OVER, why);
                std::mem::replace(&mut held.again, again.take())
            }
            None => None,
        };
        // An alarm that rings is not dropped under the lock.
        drop((old, again));
    }

    fn not_sent(&self, uuid: &Arc<str>, error: &dyn std::fmt::Display) {
        let why = format!("the job was not handed to the workers: {error}");
        self.end(uuid, Outcome::rejected(JobRejectionReason::Busy, why), true);
    }

    /// What Celery says of the task; the job's own end came before, or comes through the stream.
    fn task_ended(&self, uuid: &Arc<str>, outcome: &TaskOutcome) {
        let why = match outcome {
            Ok(_) => {
                if let Some(held) = lock(&self.0.state).jobs.get_mut(uuid) {
                    held.alarm = Some(self.alarm(uuid, Instant::now() + LAST_NEWS));
                }
                return;
            }
            Err(TaskError::Failed { exception, .. }) => {
                format!("its worker failed: {}: {}", exception.exc_type, exception.message())
            }
            Err(TaskError::Revoked { reason }) => format!("the job was revoked: {reason}"),
            Err(TaskError::NotSent(_) | TaskError::Stopped) => return,
            Err(error) => {
                return self.trouble(error.class(), &format_args!("job {uuid}: the result of its task: {error}"));
            }
        };
        self.end(uuid, Outcome::horde_failed(HordeFailureReason::GenericError, why), true);
    }

    fn alarm(&self, uuid: &Arc<str>, when: Instant) -> Alarm {
        let (weak, of) = (Arc::downgrade(&self.0), uuid.clone());
        self.0.timer.at(when, move || {
            if let Some(front) = weak.upgrade().map(Front) {
                front.overdue(&of);
            }
        })
    }

    /// Nothing came of a job for as long as it may take.
    fn overdue(&self, uuid: &Arc<str>) {
        let Some(begun) = lock(&self.0.state).jobs.get(uuid).map(|held| held.begun) else { return };
        let outcome = match begun {
            0 => {
                let why = format!("no worker took the job within {:?}", self.0.config.queue_time);
                Outcome::rejected(JobRejectionReason::Busy, why)
            }
            _ => Outcome::horde_failed(
                HordeFailureReason::UnhandledTimeout,
                "nothing more was heard of the job's worker",
            ),
        };
        self.end(uuid, outcome, true);
    }

    /// Ends a job that its worker has not ended; with `cancel` its task is revoked.
    fn end(&self, uuid: &Arc<str>, outcome: Outcome, cancel: bool) {
        let Some(held) = self.forget(uuid) else { return };
        held.line.end_anyway(uuid, outcome);
        self.over(held);
        if cancel {
            self.revoke(uuid);
        }
    }

    /// Takes a job out; it is not wanted any more.
    fn forget(&self, uuid: &Arc<str>) -> Option<RemoteJob> {
        let held = lock(&self.0.state).jobs.remove(uuid)?;
        self.unwanted(uuid);
        Some(held)
    }

    /// Tells Redis that a job is not wanted any more.
    fn unwanted(&self, uuid: &Arc<str>) {
        let deadline = Instant::now() + self.0.config.redis.operation_time;
        let unwanted = Request::idempotent(redis::cmd("DEL").arg(job_key(uuid)), deadline);
        let of = uuid.clone();
        // Through the connection that its mark goes through, so that it comes behind that.
        let sent = self.0.celery.commander().submit(unwanted, move |answer| {
            if let Err(error) = answer {
                // It forgets by itself.
                log::debug!("job {of}: Redis was not notified that it has ended: {error}");
            }
        });
        if let Err(error) = sent {
            log::debug!("job {uuid}: Redis is not notified that it has ended: {error}");
        }
    }

    /// A job has ended: after its report, because a stop waits for this.
    fn over(&self, job: RemoteJob) {
        let RemoteJob { line, alarm, again, result, .. } = job;
        drop(alarm);
        if again.is_some() && lock(&self.0.state).jobs.values().all(|job| job.again.is_none()) {
            // Nothing is left that Redis would not have.
            self.0.board.health.up(HAND_OVER);
        }
        drop(again);
        if let Some(result) = result {
            result.unfollow();
        }
        drop(line);
        let mut state = lock(&self.0.state);
        if state.jobs.is_empty() {
            state.drained.notify();
        }
    }

    fn revoke(&self, uuid: &Arc<str>) {
        let deadline = Instant::now() + self.0.config.redis.operation_time;
        let (of, front) = (uuid.clone(), Arc::downgrade(&self.0));
        let sent = self.0.celery.submit_revoke(&[uuid], &Terminate::Term, deadline, move |sent| {
            if let Some((error, front)) = sent.err().zip(front.upgrade().map(Front)) {
                let what = format_args!("job {of}: the workers were not notified that it is revoked: {error}");
                front.trouble(error.class(), &what);
            }
        });
        if let Err(error) = sent {
            let what = format_args!("job {uuid}: the workers are not notified that it is revoked: {error}");
            self.trouble(error.class(), &what);
        }
    }

    /// An event, or a part of one, is given up; each kind has a line of its own.
    fn dropped(&self, kind: &'static str, what: &dyn std::fmt::Display) {
        self.0.board.errors.report_of(ErrorClass::Rejected, "val-events", kind, what);
    }

    fn trouble(&self, class: ErrorClass, what: &dyn std::fmt::Display) {
        self.0.board.errors.report(class, "val-events", what);
    }

    /// Asks Redis, when all that was in the stream is known, which of the jobs of an earlier process the workers have.
    fn ask_for_left(&self) {
        // They stay there until Redis has answered.
        let left = lock(&self.0.state).left.clone();
        if left.is_empty() {
            return;
        }
        let mut request = Request::new(Repeat::Idempotent, Instant::now() + self.0.config.redis.operation_time);
        for uuid in &left {
            let key = job_key(uuid);
            request =
                request.command(redis::cmd("PTTL").arg(&key)).command(redis::cmd("HEXISTS").arg(&key).arg("worker"));
        }
        let weak = Arc::downgrade(&self.0);
        let jobs = left;
        let asked = self.0.messaging.commander().submit(request, move |answer| {
            let Some(front) = weak.upgrade().map(Front) else { return };
            match answer {
                Ok(known) => {
                    lock(&front.0.state).left.retain(|uuid| !jobs.contains(uuid));
                    jobs.iter().zip(known.chunks(2)).for_each(|(uuid, known)| front.left_is(uuid, known));
                }
                Err(error) => {
                    let what = format_args!("Redis does not say which jobs the workers still have: {error}");
                    front.trouble(error.class(), &what);
                }
            }
        });
        if let Err(error) = asked {
            let what = format_args!("Redis is not asked which jobs the workers still have: {error}");
            self.trouble(error.class(), &what);
        }
    }

    /// What Redis knows of such a job: how long it is still wanted, in milliseconds, and whether a worker has begun it.
    fn left_is(&self, uuid: &Arc<str>, known: &[Value]) {
        let [wanted, begun] = known else { return };
        let wanted = i64::from_redis_value_ref(wanted).ok().and_then(|ms| u64::try_from(ms).ok());
        let Some(wanted) = wanted.map(Duration::from_millis) else {
            let why = "the validator ended while the job ran, and no worker has it";
            return self.end(uuid, Outcome::horde_failed(HordeFailureReason::GenericError, why), false);
        };
        log::info!("job {uuid}: the validator goes on with it");
        let begun = *begun == Value::Int(1);
        let patience = if begun { wanted } else { wanted.min(self.0.config.queue_time) };
        let alarm = self.alarm(uuid, Instant::now() + patience);
        if let Some(held) = lock(&self.0.state).jobs.get_mut(uuid) {
            held.begun = held.begun.max(u32::from(begun));
            held.longest = wanted;
            // News may have come since it was asked for, and with them an alarm.
            held.alarm.get_or_insert(alarm);
        }
    }

    /// The thread `val-events`.
    fn read(&self, mut receiver: StreamReceiver) {
        let closing = &self.0.closing;
        let mut ask_at = Instant::now();
        while !closing.is_set() {
            let left = !lock(&self.0.state).left.is_empty();
            // Not before all that lay in the stream at the start is known.
            if left && receiver.has_caught_up() && ask_at <= Instant::now() {
                self.ask_for_left();
                ask_at = Instant::now() + PAUSE;
            }
            // Without such jobs there is nothing else to do than to wait for events.
            let until = left.then(|| Instant::now() + PAUSE);
            let problem = match receiver.recv_all(until) {
                Ok(batch) if batch.is_empty() => continue,
                Ok(batch) => match self.take(&mut receiver, &batch) {
                    Ok(()) => {
                        self.0.pulse.done();
                        continue;
                    }
                    Err(NotRecorded) => {
                        self.0.pulse.done();
                        return;
                    }
                },
                Err(RedisError::Stopped) => return,
                Err(problem) => problem,
            };
            self.trouble(problem.class(), &problem);
            closing.wait(PAUSE);
        }
    }

    /// Promises that `val-events` comes round anew. A disk, a facilitator or a Redis that is away makes its work late,
    /// and is told; the thread comes round all the same.
    fn at_work(&self) {
        self.0.pulse.done();
        self.0.pulse.begin(Instant::now() + EVENT_TIME + self.0.config.redis.operation_time);
    }

    /// Records events, and deletes them when they are on disk.
    fn take(&self, receiver: &mut StreamReceiver, batch: &[Delivery]) -> Result<(), NotRecorded> {
        let closing = &self.0.closing;
        let mut ticket = None;
        for delivery in batch {
            self.at_work();
            ticket = self.record(delivery)?.or(ticket);
        }
        while let Some(Err(error)) = ticket.as_ref().map(|ticket| ticket.wait(Instant::now() + PAUSE)) {
            self.trouble(ErrorClass::Retry, &format_args!("the workers' messages wait for the disk: {error}"));
            self.at_work();
            if closing.wait(PAUSE) {
                return Err(NotRecorded);
            }
        }
        loop {
            self.at_work();
            let deadline = Instant::now() + self.0.config.redis.operation_time;
            match receiver.acknowledge_all(batch, deadline) {
                Ok(()) => return Ok(()),
                Err(RedisError::Stopped) => return Err(NotRecorded),
                Err(error) => self.trouble(error.class(), &error),
            }
            if closing.wait(PAUSE) {
                return Err(NotRecorded);
            }
        }
    }

    /// Records one event; gives a ticket if it is to be on disk.
    fn record(&self, delivery: &Delivery) -> Result<Option<Ticket>, NotRecorded> {
        let event: Event = match serde_json::from_slice(&delivery.payload) {
            Ok(event) => event,
            Err(error) => {
                let what = format_args!("event {} is dropped, it cannot be read: {error}", delivery.id);
                self.dropped("event", &what);
                return Ok(None);
            }
        };
        let uuid: Arc<str> = event.job.as_str().into();
        let Some(line) = lock(&self.0.state).jobs.get(&uuid).map(|held| held.line.clone()) else {
            log::debug!("job {uuid} has ended: {:?} comes too late", event.news);
            // An earlier process may not have come to say so.
            self.unwanted(&uuid);
            return Ok(None);
        };
        match event.news {
            News::Begun { worker, redelivered } => {
                self.begun(&uuid, &worker, redelivered);
                Ok(None)
            }
            News::GivenBack => {
                if let Some(held) = lock(&self.0.state).jobs.get_mut(&uuid) {
                    held.begun = held.begun.saturating_sub(1);
                }
                Ok(None)
            }
            News::RunsOn { miner } => {
                match PublicKey::from_ss58(&miner) {
                    Ok(miner) => line.runs_on(miner),
                    Err(error) => {
                        let what = format_args!("job {uuid}: its miner {miner:?} is no hotkey: {error}");
                        self.dropped("miner", &what);
                    }
                }
                Ok(Some(line.last_ticket()))
            }
            News::Message { text } => match ValidatorToFacilitator::decode(&text) {
                Ok(ValidatorToFacilitator::V0JobStatusUpdate(update)) if *update.uuid == *uuid => {
                    let reason = update.metadata.as_ref().and_then(reason_of);
                    self.update(&uuid, &line, EndMessage { status: update.status, reason, text: text.into() })
                }
                Ok(ValidatorToFacilitator::V0MachineSpecsUpdate(specs))
                    if *specs.batch_id == *uuid && specs.validator_hotkey == self.0.config.name =>
                {
                    line.machine_specs(specs);
                    Ok(None)
                }
                Ok(_) => {
                    let what = "a worker sent a message that is not about this job";
                    self.dropped("other job", &format_args!("job {uuid}: {what}: {text:.200}"));
                    Ok(None)
                }
                Err(error) => {
                    let what = format_args!("job {uuid}: a worker's message cannot be read: {error}");
                    self.dropped("message", &what);
                    Ok(None)
                }
            },
        }
    }

    fn begun(&self, uuid: &Arc<str>, worker: &str, redelivered: bool) {
        let mut state = lock(&self.0.state);
        let Some(held) = state.jobs.get_mut(uuid) else { return };
        held.begun += 1;
        if held.begun <= MOST_BEGUN {
            held.alarm = Some(self.alarm(uuid, Instant::now() + held.longest));
            drop(state);
            let again = if redelivered { " again" } else { "" };
            log::debug!("job {uuid}: {worker} has begun it{again}");
            return;
        }
        drop(state);
        let why = format!("the job was begun {MOST_BEGUN} times, and each time its worker was lost");
        self.end(uuid, Outcome::horde_failed(HordeFailureReason::GenericError, why), true);
    }

    /// Passes a status on, and waits for room: the stream holds what comes meanwhile.
    fn update(&self, uuid: &Arc<str>, line: &Line, message: EndMessage) -> Result<Option<Ticket>, NotRecorded> {
        let status = message.status;
        let ticket = loop {
            let taken = match status.is_terminal() {
                true => line.end_by(message.clone()),
                false => line.forward(status, message.text.clone(), Instant::now() + PAUSE),
            };
            match taken {
                Ok(ticket) => break Some(ticket),
                Err(error @ UpdateError::TooLarge { .. }) if status.is_terminal() => {
                    let outcome = Outcome::horde_failed(HordeFailureReason::GenericError, error.to_string());
                    break Some(line.end(uuid, outcome).unwrap_or_else(|_| line.last_ticket()));
                }
                Err(UpdateError::Full { .. }) if !self.0.closing.is_set() => self.at_work(),
                Err(UpdateError::Full { .. }) => return Err(NotRecorded),
                Err(error) => {
                    // What a worker that took over says once more.
                    log::debug!("{error}");
                    // It is on disk only when the first one is.
                    break Some(line.last_ticket());
                }
            }
        };
        if status.is_terminal()
            && let Some(held) = self.forget(uuid)
        {
            self.over(held);
        }
        Ok(ticket)
    }
}
