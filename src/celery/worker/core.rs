//! What the parts of a worker share.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use serde_json::{Map, Value, json};

use super::config::WorkerConfig;
use super::held::{Held, Stage};
use super::limits::Limits;
use super::namesakes::Namesakes;
use super::node::Node;
use super::outcome::{ASIDE, Setting};
use super::policy::Policies;
use super::queue::RunQueue;
use super::revoked::{Revoked, stamps};
use super::run::Run;
use super::siblings::Siblings;
use crate::base::limits::CELERY_PREFETCH;
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::shutdown::Shutdown;
use crate::base::timer::{Alarm, TimerHandle};
use crate::celery::events::EventSender;
use crate::celery::keys::{EVENT_EXCHANGE, Keyspace};
use crate::celery::message::TaskMessage;
use crate::celery::moment::{Moment, Zone};
use crate::celery::seconds::number;
use crate::ops::metrics::Counter;
use crate::ops::process::Process;
use crate::ops::status::Board;
use crate::redis::{CommanderHandle, RedisError, Wake};

/// The part of the board's health that says whether it takes messages.
pub(super) const TAKE_PART: &str = "cel-take";

/// The keys of one worker, and those that all of an application share.
#[derive(Debug)]
pub(super) struct Keys {
    /// The start of the keys of any worker; its id follows.
    pub worker: String,
    pub alive: String,
    pub held: String,
    pub unacked: String,
    pub unacked_index: String,
    /// The set of workers that have ever held something and are not known to hold nothing.
    pub workers: String,
    /// The list of messages that were put aside.
    pub aside: String,
}

impl Keys {
    pub(super) fn of(worker: &str, names: &Keyspace) -> Self {
        let start = names.key("phalanx.worker.");
        Self {
            alive: format!("{start}{worker}"),
            held: format!("{start}{worker}.held"),
            worker: start,
            unacked: names.unacked(),
            unacked_index: names.unacked_index(),
            workers: names.key("phalanx.workers"),
            aside: names.key(ASIDE),
        }
    }
}

/// A message that was taken.
pub(super) struct Taken {
    /// The task; none for what cannot be read.
    pub message: Option<Arc<TaskMessage>>,
    /// The message as it lay in the list.
    pub raw: Vec<u8>,
    /// Where it lay.
    pub list: String,
    /// When it was taken.
    pub since: Instant,
    /// What waits for its time, or for the next attempt to settle it.
    pub alarm: Option<Alarm>,
    /// It was delivered again while its end was on its way to Redis.
    pub again: Option<Vec<u8>>,
    /// Its run, once it has begun.
    pub run: Option<Arc<Run>>,
}

/// A task whose time limit is over and whose handler runs on.
#[derive(Debug, Clone)]
pub(super) struct Overdue {
    pub id: String,
    pub name: String,
    /// When its time limit was over.
    pub since: Instant,
}

/// What has come of tasks since the start.
pub(super) struct Totals {
    pub taken: Counter,
    pub restored: Counter,
    pub aside: Counter,
    /// How often each task has begun, by its name.
    begun: Mutex<BTreeMap<String, u64>>,
    board: Board,
}

impl Totals {
    /// How many tasks have begun.
    pub(super) fn all_begun(&self) -> u64 {
        lock(&self.begun).values().sum()
    }

    pub(super) fn begun(&self, task: &str) {
        let mut begun = lock(&self.begun);
        match begun.get_mut(task) {
            Some(times) => *times += 1,
            None => drop(begun.insert(task.to_owned(), 1)),
        }
    }

    pub(super) fn ended(&self, state: &str) {
        let known = ["SUCCESS", "FAILURE", "RETRY", "REVOKED", "IGNORED", "unknown"];
        let state = known.into_iter().find(|known| *known == state).unwrap_or("other");
        self.board
            .metrics
            .counter("phalanx_celery_tasks_total", "Tasks of Celery queues by how they ended.", &[("result", state)])
            .inc();
    }
}

pub(super) struct Core {
    pub config: WorkerConfig,
    pub id: String,
    pub names: Keyspace,
    pub keys: Keys,
    /// The zone of times without an offset.
    pub zone: Zone,
    /// What counts for the tasks that it runs.
    pub policies: Policies,
    /// For the delays of retries.
    pub rng: Mutex<Rng>,
    /// Tasks whose handler still runs although their end was settled at their time limit, by their runs.
    pub overdue: Mutex<BTreeMap<usize, Overdue>>,
    pub held: Mutex<Held<Taken>>,
    pub revoked: Mutex<Revoked>,
    /// Stamps by which tasks were revoked.
    pub revoked_stamps: Mutex<Revoked>,
    /// Rates and time limits, which remote control may change.
    pub limits: Mutex<Limits>,
    /// When the next of each task may begin whose rate is limited.
    pub turns: Mutex<HashMap<String, Alarm>>,
    /// The queues that it takes from now.
    pub queues: Mutex<Vec<String>>,
    /// How many tasks run at a time.
    pub concurrency: AtomicUsize,
    pub commands: CommanderHandle,
    /// Where results are, if that is not the broker.
    pub results: Option<CommanderHandle>,
    pub timer: TimerHandle,
    pub queue: RunQueue,
    /// Ends the wait of the thread that takes.
    pub wake: Wake,
    /// It waits for room.
    pub wants_room: AtomicBool,
    /// Whether it takes now.
    pub consuming: AtomicBool,
    /// Raised when it first took.
    pub ready: Shutdown,
    pub take_error: Mutex<Option<RedisError>>,
    /// What has ended does not reach Redis.
    pub unsettled: AtomicBool,
    /// Drain: nothing more is taken. Cancel: its connection is ended.
    pub intake: Shutdown,
    /// Drain: nothing is tried again any more.
    pub ending: Shutdown,
    /// Raised when a stop was asked for by remote control.
    pub asked: Shutdown,
    /// Handlers that run, also those of tasks that were settled meanwhile.
    pub busy: AtomicUsize,
    /// Messages that went back to their queue.
    pub given_back: AtomicUsize,
    /// A stop waits until no handler runs.
    pub waited_for: AtomicBool,
    /// Raised then.
    pub idle: Shutdown,
    /// Workers that seemed dead, since when.
    pub suspects: Mutex<HashMap<String, Instant>>,
    /// Old messages of others that the last look for what was left has passed over.
    pub passed: AtomicUsize,
    pub siblings: Mutex<Siblings>,
    pub namesakes: Mutex<Namesakes>,
    pub beat: Mutex<Option<Alarm>>,
    pub beating: AtomicBool,
    pub totals: Totals,
    pub board: Board,
    pub events: Arc<EventSender>,
    /// Whether events about tasks are published.
    pub task_events: AtomicBool,
    pub heartbeat: Mutex<Option<Alarm>>,
    pub started: Instant,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("id", &self.id).field("held", &lock(&self.held).counts()).finish_non_exhaustive()
    }
}

/// The stamps of a task.
pub(super) fn stamps_of(message: &TaskMessage) -> Vec<String> {
    message.stamps.as_object().map(stamps).unwrap_or_default()
}

/// What a core is made of.
pub(super) struct CoreParts {
    pub config: WorkerConfig,
    /// What counts for the tasks that it runs.
    pub policies: Policies,
    pub commands: CommanderHandle,
    /// Where results are, if that is not the broker.
    pub results: Option<CommanderHandle>,
    pub timer: TimerHandle,
    pub queue: RunQueue,
    pub wake: Wake,
    pub board: Board,
}

impl Core {
    pub(super) fn new(parts: CoreParts) -> Arc<Self> {
        let CoreParts { config, policies, commands, results, timer, queue, wake, board } = parts;
        let id = format!("{}.{}", config.hostname, uuid::Uuid::new_v4().simple());
        let names = config.app.keyspace();
        let counter = |name, help| board.metrics.counter(name, help, &[]);
        let totals = Totals {
            taken: counter("phalanx_celery_taken_total", "Messages taken from Celery queues."),
            restored: counter("phalanx_celery_restored_total", "Messages of dead workers that were put back."),
            aside: counter("phalanx_celery_aside_total", "Messages that were put aside."),
            begun: Mutex::default(),
            board: board.clone(),
        };
        let (channel, patience) =
            (names.fanout(i64::from(config.redis.db), EVENT_EXCHANGE), config.redis.operation_time);
        let events = EventSender::new(commands.clone(), &config.hostname, channel, patience, &board);
        let task_events = AtomicBool::new(config.send_task_events || config.app.worker_send_task_events);
        Arc::new(Self {
            keys: Keys::of(&id, &names),
            names,
            zone: config.app.zone(),
            held: Mutex::new(Held::new(config.prefetch())),
            id,
            limits: Mutex::new(Limits::new(&policies, Instant::now())),
            policies,
            rng: Mutex::new(Rng::from_entropy()),
            overdue: Mutex::default(),
            revoked: Mutex::default(),
            revoked_stamps: Mutex::default(),
            turns: Mutex::default(),
            queues: Mutex::new(config.queues()),
            concurrency: AtomicUsize::new(config.concurrency),
            commands,
            results,
            timer,
            queue,
            wake,
            wants_room: AtomicBool::new(false),
            consuming: AtomicBool::new(false),
            ready: Shutdown::new(),
            take_error: Mutex::default(),
            unsettled: AtomicBool::new(false),
            intake: Shutdown::new(),
            ending: Shutdown::new(),
            asked: Shutdown::new(),
            busy: AtomicUsize::new(0),
            given_back: AtomicUsize::new(0),
            waited_for: AtomicBool::new(false),
            idle: Shutdown::new(),
            suspects: Mutex::default(),
            passed: AtomicUsize::new(0),
            siblings: Mutex::default(),
            namesakes: Mutex::default(),
            beat: Mutex::default(),
            beating: AtomicBool::new(false),
            totals,
            board,
            events,
            task_events,
            heartbeat: Mutex::default(),
            started: Instant::now(),
            config,
        })
    }

    /// The time of the day.
    pub(super) fn now() -> Moment {
        SystemTime::now().into()
    }

    /// A deadline for a request that may take its time: a Redis that is away for a moment is waited for.
    pub(super) fn patience(&self) -> Instant {
        Instant::now() + 2 * self.config.redis.operation_time
    }

    /// An action on the timer's thread, unless the worker has gone.
    pub(super) fn at(self: &Arc<Self>, when: Instant, action: impl FnOnce(&Arc<Self>) + Send + 'static) -> Alarm {
        let weak = Arc::downgrade(self);
        self.timer.at(when, move || {
            if let Some(core) = weak.upgrade() {
                action(&core);
            }
        })
    }

    /// A new unique id.
    pub(super) fn fresh() -> String {
        uuid::Uuid::new_v4().to_string()
    }

    /// Runs `f` with what a settlement of a message of `list`, which has a task of this name, needs to know.
    pub(super) fn setting<T>(
        &self,
        (list, task): (&str, &str),
        raw: &[u8],
        f: impl FnOnce(&mut Setting<'_>) -> T,
    ) -> T {
        let mut fresh = Self::fresh;
        f(&mut Setting {
            now: Self::now(),
            list,
            raw,
            policy: self.policies.of(task),
            policies: &self.policies,
            app: &self.config.app,
            names: &self.names,
            zone: &self.zone,
            origin: &self.config.hostname,
            fresh: &mut fresh,
        })
    }

    /// How many messages must fit before more are taken: few at a time would be a round trip each, and as long as more
    /// than this many do not fit, every thread has something to do.
    pub(super) fn batch(&self) -> usize {
        let concurrency = self.concurrency.load(Ordering::SeqCst);
        (self.config.prefetch_of(concurrency).saturating_sub(concurrency) / 2).clamp(1, CELERY_PREFETCH)
    }

    /// Tells the thread that takes that there may be room.
    pub(super) fn room_made(&self) {
        if self.wants_room.load(Ordering::SeqCst)
            && lock(&self.held).room() >= self.batch()
            && self.wants_room.swap(false, Ordering::SeqCst)
        {
            self.wake.raise();
        }
    }

    /// From now on `idle` is raised as soon as no handler runs.
    pub(super) fn idle_wanted(&self) {
        self.waited_for.store(true, Ordering::SeqCst);
        if self.busy.load(Ordering::SeqCst) == 0 {
            self.idle.drain();
        }
    }

    fn shown(&self, entry: &super::held::HeldMessage<Taken>) -> Value {
        let begun = entry.item.run.as_ref().and_then(|run| run.begun.get());
        let started = begun.map(|begun| {
            let since = SystemTime::now().checked_sub(begun.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH);
            Moment::from(since).unix_micros() as f64 / 1e6
        });
        let Some(message) = &entry.item.message else { return json!({"id": entry.task_id}) };
        let acknowledged = entry.item.run.as_ref().is_some_and(|run| run.acknowledged.load(Ordering::SeqCst));
        json!({
            "id": message.id, "name": message.shadow.as_ref().unwrap_or(&message.task), "args": message.args,
            "kwargs": message.kwargs, "type": message.task, "hostname": self.config.hostname, "time_start": started,
            "acknowledged": acknowledged, "worker_pid": started.map(|_| std::process::id()),
            "delivery_info": {
                "exchange": message.exchange, "routing_key": message.routing_key, "priority": message.priority,
                "redelivered": message.redelivered,
            },
        })
    }

    fn in_stage(&self, stage: Stage) -> Vec<Value> {
        let held = lock(&self.held);
        held.iter().filter(|(_, entry)| entry.stage == stage).map(|(_, entry)| self.shown(entry)).collect()
    }
}

impl Node for Core {
    fn hostname(&self) -> &str {
        &self.config.hostname
    }

    fn registered(&self) -> Vec<String> {
        self.policies.iter().map(|(name, _)| name.clone()).collect()
    }

    fn active(&self) -> Vec<Value> {
        self.in_stage(Stage::Running)
    }

    fn reserved(&self) -> Vec<Value> {
        self.in_stage(Stage::Waiting)
    }

    fn scheduled(&self) -> Vec<Value> {
        let held = lock(&self.held);
        let scheduled = held.iter().filter(|(_, entry)| entry.stage == Stage::Scheduled);
        let line = |entry| {
            let request: Value = self.shown(entry);
            let eta = entry.item.message.as_ref().and_then(|message| message.eta).map(|eta| eta.to_string());
            json!({"eta": eta, "priority": 6, "request": request})
        };
        scheduled.map(|(_, entry)| line(entry)).collect()
    }

    fn find(&self, id: &str) -> Option<(&'static str, Value)> {
        let held = lock(&self.held);
        let entry = held.get(held.tags_of(id).first()?)?;
        let stage = match entry.stage {
            Stage::Scheduled => "scheduled",
            Stage::Waiting => "reserved",
            Stage::Running => "active",
            Stage::Settling => "ready",
        };
        Some((stage, self.shown(entry)))
    }

    fn revoked(&self) -> Vec<String> {
        lock(&self.revoked).ids(Instant::now())
    }

    fn queues(&self) -> Vec<String> {
        lock(&self.queues).clone()
    }

    fn attributes_of(&self, task: &str) -> Map<String, Value> {
        let mut all = self.policies.of(task).options().attributes();
        let limits = lock(&self.limits);
        let (soft, hard) = limits.times_of(task);
        all.insert("rate_limit".to_owned(), limits.rate_of(task).into());
        all.insert("soft_time_limit".to_owned(), soft.map_or(Value::Null, number));
        all.insert("time_limit".to_owned(), hard.map_or(Value::Null, number));
        all
    }

    fn runs_stamped(&self, stamps: &[String]) -> bool {
        let held = lock(&self.held);
        held.iter().any(|(_, entry)| {
            let message = entry.item.message.as_deref().filter(|_| entry.stage == Stage::Running);
            message.is_some_and(|message| stamps_of(message).iter().any(|stamp| stamps.contains(stamp)))
        })
    }

    fn concurrency(&self) -> usize {
        self.concurrency.load(Ordering::SeqCst)
    }

    fn conf(&self) -> Value {
        let (config, app) = (&self.config, &self.config.app);
        let results = app.results(&config.redis);
        let mut conf = app.shown();
        let of_worker = json!({
            "broker_url": config.redis.to_string(),
            "result_backend": results.as_ref().unwrap_or(&config.redis).to_string(),
            "task_queues": self.queues(),
            "worker_concurrency": self.concurrency(),
            "worker_prefetch_multiplier": config.multiplier(),
            "worker_send_task_events": self.task_events(),
        });
        conf.extend(of_worker.as_object().cloned().unwrap_or_default());
        conf.into()
    }

    fn memory(&self) -> Option<usize> {
        Process::read().map(|process| process.resident_memory_bytes)
    }

    fn stats(&self) -> Value {
        let peer = &self.config.redis;
        json!({
            "total": &*lock(&self.totals.begun), "pid": std::process::id(), "clock": self.clock().to_string(),
            "uptime": self.started.elapsed().as_secs(),
            "pool": {
                "implementation": "phalanx", "max-concurrency": self.concurrency(),
                "processes": [std::process::id()], "put-guarded-by-semaphore": false, "timeouts": [null, null],
            },
            "broker": {
                "hostname": peer.host, "port": peer.port, "transport": "redis", "virtual_host": peer.db.to_string(),
            },
            "prefetch_count": self.config.prefetch_of(self.concurrency()), "rusage": "N/A",
            "phalanx": {"version": env!("CARGO_PKG_VERSION"), "worker": self.id},
        })
    }

    fn clock(&self) -> u64 {
        self.events.tick()
    }

    fn task_events(&self) -> bool {
        self.task_events.load(Ordering::SeqCst)
    }
}
