//! The state of a router: its connections and jobs, and numbers about them. Pure.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Instant;

use crate::base::ids::SessionId;
use crate::base::rng::Rng;
use crate::base::shutdown::Level;
use crate::identity::{KeyPair, PublicKey};
use crate::miner::config::{MinerConfig, MinerLimits};
use crate::miner::executor_manager::Owner;
use crate::miner::executor_pool::{ExecutorPool, Quarantine, SlotCounts, SlotId};
use crate::miner::host::HostName;
use crate::miner::placement::Placement;
use crate::protocol::{ExecutorClass, GenericError, MinerToValidator, V0InitialJobRequest};
use crate::transport::Utf8Bytes;

use super::host::{Host, HostState, HostStatus, slots};
use super::io::{Action, HostPlan, Settings, TraceEvent, ValidatorFrame};
use super::job::{JobKey, MinerJob};

/// One connection of a validator.
#[derive(Debug)]
pub(super) struct Validator {
    pub hotkey: String,
    pub state: ValidatorState,
    /// By how much its clock was ahead of ours when it last authenticated, in seconds.
    pub clock_skew: i64,
}

#[derive(Debug)]
pub(super) enum ValidatorState {
    /// Until then it has to authenticate; what it says meanwhile waits.
    Unknown {
        until: Instant,
        queue: VecDeque<ValidatorFrame>,
        bytes: usize,
    },
    Authenticated,
    /// It was turned away; whatever it still says is dropped.
    Refused,
}

impl Validator {
    pub(super) fn is_authenticated(&self) -> bool {
        matches!(self.state, ValidatorState::Authenticated)
    }

    pub(super) fn auth_by(&self) -> Option<Instant> {
        match self.state {
            ValidatorState::Unknown { until, .. } => Some(until),
            _ => None,
        }
    }
}

/// A connection of an executor.
#[derive(Debug)]
pub(super) struct Connected {
    /// By which it introduced itself.
    pub token: String,
    /// The executor has a newer connection: this one gets nothing more, and its end means nothing.
    pub replaced: bool,
}

/// A job that waits for a slot whose executor is about to end.
#[derive(Debug)]
pub(super) struct Waiting {
    pub key: JobKey,
    pub session: SessionId,
    pub initial: V0InitialJobRequest,
    pub text: Utf8Bytes,
    pub until: Instant,
    pub asked: Instant,
}

fn addresses(keys: &[PublicKey]) -> HashSet<String> {
    keys.iter().map(|key| key.to_ss58()).collect()
}

/// The state of a miner.
#[derive(Debug)]
pub struct Router {
    pub(super) key: KeyPair,
    pub(super) hotkey: String,
    pub(super) allowed: HashSet<String>,
    pub(super) blacklist: HashSet<String>,
    pub(super) owner: Owner,
    pub(super) limits: MinerLimits,
    pub(super) executor_address: String,
    pub(super) streaming_address: Option<String>,
    pub(super) pool: ExecutorPool,
    pub(super) hosts: BTreeMap<HostName, Host>,
    pub(super) placement: Placement,
    pub(super) validators: BTreeMap<SessionId, Validator>,
    /// The connections of executors.
    pub(super) executors: HashMap<SessionId, Connected>,
    pub(super) jobs: BTreeMap<JobKey, MinerJob>,
    /// The job of each executor that has not ended.
    pub(super) tokens: HashMap<String, JobKey>,
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) level: Level,
    /// Why no new job is taken.
    pub(super) paused: Option<String>,
    /// How the numbers of slots did not add up, the first time.
    pub(super) breach: Option<String>,
    /// Jobs of which nothing is left, but for what was saved of them.
    pub(super) forgotten: Vec<JobKey>,
    /// How often it is logged what anybody can make happen.
    /// Receipts that were to be stored so far.
    pub(super) store_orders: u64,
    pub(super) out: Vec<Action>,
}

/// Numbers for people and for tests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MinerStatus {
    /// How the slots of each class are used, on all hosts.
    pub executors: Vec<(ExecutorClass, SlotCounts)>,
    /// The hosts.
    pub hosts: Vec<HostStatus>,
    /// Jobs that have not ended.
    pub jobs: usize,
    /// Jobs that have ended, with an outcome that the validator has not confirmed or an executor that is not gone.
    pub ended: usize,
    /// Authenticated connections of validators.
    pub validators: usize,
    /// By how many seconds the clock of the authenticated validator that differs most was ahead of ours when it
    /// authenticated; less than 0 if it was behind.
    pub clock_skew: i64,
    /// Connected executors.
    pub connected_executors: usize,
    /// How jobs run on the hosts that are up; empty while none can.
    pub jobs_run: String,
    /// Why no job can run at present: no host is up.
    pub engine_trouble: Option<String>,
    /// What was wrong at the last job of each host that is up, if no job there has come further since: a full disk, for
    /// example.
    pub machine_trouble: Option<String>,
    /// Names the miner's state folder, as in the labels of its containers.
    pub instance: String,
    /// Which of the processes that have opened the state folder this is, from 1.
    pub epoch: u64,
    /// The slots that nobody gets, and why.
    pub quarantined: Vec<QuarantinedSlot>,
    /// How the numbers of slots did not add up, the first time: a mistake in the program.
    pub breach: Option<String>,
}

impl MinerStatus {
    /// Why no job can have a slot although the miner should have some, if that is so.
    pub fn slot_trouble(&self) -> Option<String> {
        if let Some(breach) = &self.breach {
            return Some(format!("the numbers of slots do not add up: {breach}"));
        }
        let (declared, quarantined) = self
            .executors
            .iter()
            .fold((0, 0), |(all, out), (_, counts)| (all + counts.declared, out + counts.quarantined));
        let why = self.quarantined.first().map_or("", |slot| slot.reason.as_str());
        (declared > 0 && quarantined >= declared).then(|| format!("all {declared} are in quarantine: {why}"))
    }

    /// Why it is not known what executors have left, if that is so on every host.
    pub fn reaper_trouble(&self) -> Option<String> {
        let all = !self.hosts.is_empty() && self.hosts.iter().all(|host| host.reaper_trouble.is_some());
        all.then(|| of_hosts(&self.hosts, |host| host.reaper_trouble.as_deref()))
    }
}

/// A slot in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantinedSlot {
    /// Its host.
    pub host: HostName,
    /// Its class.
    pub class: ExecutorClass,
    /// In a word, what does not go away: `container`, `network`, `folder`, `processes` or `executor`.
    pub what: &'static str,
    /// In words.
    pub reason: String,
}

impl Router {
    /// The state at the start; executors dial `executor_address` and are `owner`'s.
    pub fn new(config: &MinerConfig, executor_address: String, owner: Owner) -> Self {
        let plans: Vec<HostPlan> = config.all_hosts().into_iter().map(HostPlan::from).collect();
        Self {
            hotkey: config.key.ss58(),
            key: config.key.clone(),
            allowed: addresses(&config.validators),
            blacklist: addresses(&config.blacklist),
            owner,
            limits: config.limits,
            executor_address,
            streaming_address: config.streaming_address.clone(),
            pool: ExecutorPool::new(slots(&plans)),
            hosts: Self::first_hosts(plans),
            placement: Placement::new(config.placement, Rng::from_entropy()),
            validators: BTreeMap::new(),
            executors: HashMap::new(),
            jobs: BTreeMap::new(),
            tokens: HashMap::new(),
            waiting: VecDeque::new(),
            level: Level::Run,
            paused: None,
            breach: None,
            forgotten: Vec::new(),
            store_orders: 0,
            out: Vec::new(),
        }
    }

    /// Other settings count from now on. Whoever is no longer a validator is turned away; what runs for it goes on.
    pub(super) fn set(&mut self, settings: Settings) {
        let Settings { validators, blacklist, limits, hosts, placement } = settings;
        self.placement.set(placement);
        self.set_hosts(hosts);
        self.allowed = addresses(&validators);
        self.blacklist = addresses(&blacklist);
        self.limits = limits;
        let gone = self.validators.iter().filter(|(_, validator)| !self.allowed.contains(&validator.hotkey));
        let gone: Vec<_> = gone.map(|(id, validator)| (*id, validator.hotkey.clone())).collect();
        for (id, hotkey) in gone {
            self.turn_away(id, &hotkey);
        }
    }

    /// When [`Input::Tick`](super::Input::Tick) is due next.
    pub fn next_wake(&self) -> Option<Instant> {
        let jobs = self.jobs.values().filter_map(|job| job.next_wake(self.limits.leeway));
        let auth = self.validators.values().filter_map(|v| v.auth_by());
        let waiting = self.waiting.iter().map(|w| w.until);
        jobs.chain(auth).chain(waiting).chain(self.pool.next_deadline()).chain(self.next_check_due()).min()
    }

    /// Whether every job has ended, and what its executor cleans up after it. An executor that takes too long for that
    /// is in quarantine and counts no more.
    pub fn is_idle(&self) -> bool {
        let clean = self.pool.all_counts().values().all(|slots| slots.ending == 0);
        clean && self.waiting.is_empty() && self.jobs.values().all(MinerJob::is_over)
    }

    /// Numbers for people.
    pub fn status(&self) -> MinerStatus {
        let over = self.jobs.values().filter(|job| job.is_over()).count();
        let mut executors = BTreeMap::<ExecutorClass, SlotCounts>::new();
        self.pool
            .all_counts()
            .into_iter()
            .for_each(|((_, class), slots)| *executors.entry(class).or_default() += slots);
        let hosts = self.host_statuses();
        MinerStatus {
            executors: executors.into_iter().collect(),
            jobs: self.jobs.len() - over + self.waiting.len(),
            ended: over,
            validators: self.validators.values().filter(|v| v.is_authenticated()).count(),
            clock_skew: self
                .validators
                .values()
                .filter(|v| v.is_authenticated())
                .map(|v| v.clock_skew)
                .max_by_key(|skew| skew.unsigned_abs())
                .unwrap_or(0),
            connected_executors: self.executors.values().filter(|connected| !connected.replaced).count(),
            jobs_run: of_hosts(&hosts, |host| (host.state == HostState::Up).then_some(host.jobs_run.as_str())),
            engine_trouble: engine_trouble(&hosts),
            machine_trouble: machine_trouble(&hosts),
            instance: self.owner.instance.clone(),
            epoch: self.owner.epoch,
            quarantined: self.pool.quarantined().map(quarantined_slot).collect(),
            breach: self.breach.clone(),
            hosts,
        }
    }

    pub(super) fn send(&mut self, to: SessionId, message: impl Into<MinerToValidator>) {
        let message: MinerToValidator = message.into();
        self.out.push(Action::Send(to, message.encode().into()));
    }

    /// Has what happened to a job remembered.
    pub(super) fn note(&mut self, key: &JobKey, event: TraceEvent, detail: impl Into<String>) {
        let class = self.jobs.get(key).map(|job| job.initial.executor_class);
        self.out.push(Action::Note(key.clone(), class, event, detail.into()));
    }

    /// A `GenericError`, which is the same to validators and executors.
    pub(super) fn complain(&mut self, to: SessionId, details: impl Into<String>) {
        self.send(to, GenericError { details: Some(details.into()) });
    }
}

/// What is to be said of some hosts: by their names, unless there is one host only.
fn of_hosts<'a>(hosts: &'a [HostStatus], say: impl Fn(&'a HostStatus) -> Option<&'a str>) -> String {
    let said = hosts.iter().filter_map(|host| Some((host.name, say(host)?)));
    let said = said.map(|(name, text)| if hosts.len() == 1 { text.to_owned() } else { format!("{name}: {text}") });
    said.collect::<Vec<_>>().join("; ")
}

/// Why no job can run, if that is so.
fn engine_trouble(hosts: &[HostStatus]) -> Option<String> {
    let none_is_up = hosts.iter().all(|host| host.state != HostState::Up);
    none_is_up.then(|| of_hosts(hosts, |host| Some(host.why.as_deref().unwrap_or(host.state.as_str()))))
}

/// What each host that is up was not able to do, if that is so.
fn machine_trouble(hosts: &[HostStatus]) -> Option<String> {
    let mut up = hosts.iter().filter(|host| host.state == HostState::Up).peekable();
    let all = up.peek().is_some() && up.all(|host| host.trouble.is_some());
    all.then(|| of_hosts(hosts, |host| host.trouble.as_deref()))
}

fn quarantined_slot((slot, why): (SlotId, &Quarantine)) -> QuarantinedSlot {
    QuarantinedSlot { host: slot.host(), class: slot.class(), what: why.what, reason: why.reason.clone() }
}
