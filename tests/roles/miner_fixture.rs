//! A miner's router with its executors, its disk and its peers as plain values, and time moved by hand.

use crate::testkit::miner as miner_kit;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use miner_kit::{CLASS, Pen, Says, kind};
use phalanx::base::ids::SessionId;
use phalanx::base::now::Now;
use phalanx::base::shutdown::Shutdown;
use phalanx::miner::executor_manager::{ExecutorBackend, ExecutorEnd, ExecutorExit, ExecutorSpec, Owner};
use phalanx::miner::executor_pool::{Lease, SlotCounts};
use phalanx::miner::host::HostName;
use phalanx::miner::router::{
    Action, Counted, ExecutorFrame, HostPlan, Input, JobKey, Peer, Router, Settings, ValidatorFrame,
};
use phalanx::miner::trace::Traces;
use phalanx::miner::{MinerConfig, MinerLimits};
use phalanx::protocol::Receipt;
use phalanx::store::miner::{JobChange, JobRow};

pub const UNIX: i64 = 1_800_000_000;

pub struct Unused;

impl ExecutorBackend for Unused {
    fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
        unreachable!("the router starts nothing by itself")
    }
}

pub struct StoreOrder {
    job: JobKey,
    number: u64,
    pub row: Option<Box<JobRow>>,
    receipt: Receipt,
}

pub struct Fixture {
    pub router: Router,
    pub config: MinerConfig,
    pub now: Instant,
    /// Of the wall clock, which stands but for restarts.
    pub unix: i64,
    /// What was saved of each job.
    pub disk: BTreeMap<String, JobRow>,
    pub adopted: Vec<ExecutorSpec>,
    pub limits: MinerLimits,
    pub alice: Pen,
    /// Texts for each connection since the last look.
    pub mail: BTreeMap<SessionId, Vec<String>>,
    pub closed: BTreeMap<SessionId, u16>,
    pub started: Vec<ExecutorSpec>,
    /// Of executors that are not gone, by token.
    pub leases: BTreeMap<String, Lease>,
    pub counted: Vec<Counted>,
    /// Errors that were reported: where, and what.
    pub errors: Vec<(&'static str, String)>,
    /// The jobs that have ended, each with its outcome.
    pub ends: Vec<(String, &'static str)>,
    pub told_to_end: Vec<String>,
    pub released: Vec<HostName>,
    /// What the store says to the next receipts: new, old, or an error; or nothing, as a disk that hangs.
    pub store: fn() -> Option<Result<bool, String>>,
    /// Orders that a disk that hangs has not done.
    pub orders: Vec<StoreOrder>,
    pub stored: usize,
    pub traces: Traces,
}

impl Fixture {
    pub fn new(slots: u32) -> Self {
        Self::with(slots, |_| {})
    }

    /// With a validator that has authenticated.
    pub fn with_alice(slots: u32) -> (Self, Pen, SessionId) {
        let mut f = Self::new(slots);
        let alice = f.alice.clone();
        let session = f.validator(&alice);
        (f, alice, session)
    }

    pub fn with(slots: u32, change: impl FnOnce(&mut MinerConfig)) -> Self {
        let alice = Pen::new("//Alice");
        let mut config = MinerConfig::new(alice.miner.clone(), "unused", Arc::new(Unused));
        config.validators = ["//Alice", "//Charlie"].map(|v| Pen::new(v).key.public()).into();
        config.executors = vec![(CLASS, slots)];
        change(&mut config);
        Self {
            limits: config.limits,
            router: Router::new(&config, "ws://miner:1".to_owned(), owner()),
            config,
            now: Instant::now(),
            unix: UNIX,
            disk: BTreeMap::new(),
            adopted: Vec::new(),
            alice,
            mail: BTreeMap::new(),
            closed: BTreeMap::new(),
            started: Vec::new(),
            leases: BTreeMap::new(),
            counted: Vec::new(),
            errors: Vec::new(),
            ends: Vec::new(),
            told_to_end: Vec::new(),
            released: Vec::new(),
            store: || Some(Ok(true)),
            orders: Vec::new(),
            stored: 0,
            traces: Traces::default(),
        }
    }

    pub fn handle(&mut self, input: Input) {
        let actions = self.router.handle(input, self.moment());
        self.act(actions);
        if let Some(wake) = self.router.next_wake() {
            assert!(wake > self.now, "the router would be woken for ever");
        }
    }

    pub fn moment(&self) -> Now {
        Now { mono: self.now, wall: Duration::from_secs(self.unix as u64) }
    }

    /// The miner's process is killed, and another one starts after a time.
    pub fn restart(&mut self, down: Duration, owner: Owner) {
        self.unix += down.as_secs() as i64;
        // Another monotonic clock, so that no moment of the old one counts.
        self.now += Duration::from_secs(1_000_000);
        self.router = Router::new(&self.config, "ws://miner:1".to_owned(), owner);
        self.leases.clear();
        let rows = std::mem::take(&mut self.disk);
        self.disk.clone_from(&rows);
        let actions = self.router.restore(rows.into_values().collect(), self.moment());
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        let now = self.moment();
        for action in actions {
            match action {
                Action::Save(JobChange::Put(row)) => drop(self.disk.insert(row.uuid.clone(), row)),
                Action::Save(JobChange::Forget { uuid, .. }) => drop(self.disk.remove(&uuid)),
                Action::Adopt(spec, lease) => {
                    drop(self.leases.insert(spec.token.clone(), lease));
                    self.adopted.push(spec);
                }
                Action::Send(id, text) => self.mail.entry(id).or_default().push(text.to_string()),
                Action::Close(id, code, _) => drop(self.closed.insert(id, code)),
                Action::Store { job, number, row, payload, validator_signature } => {
                    self.stored += 1;
                    let miner_signature = payload.sign(&self.alice.miner);
                    let receipt = Receipt { payload, validator_signature, miner_signature };
                    let order = StoreOrder { job, number, row, receipt };
                    match (self.store)() {
                        Some(result) => self.done(order, result),
                        None => self.orders.push(order),
                    }
                }
                Action::Start(spec, lease) => {
                    drop(self.leases.insert(spec.token.clone(), lease));
                    self.started.push(spec);
                }
                Action::End(token) => self.told_to_end.push(token),
                Action::Note(key, class, event, detail) => {
                    self.traces.note(&key, class, event, &detail, now);
                }
                Action::Reap(_) | Action::Known(_) => {}
                Action::Release(host) => self.released.push(host),
                Action::Count(counted) => self.counted.push(counted),
                Action::Error(_, place, _, what) => self.errors.push((place, what)),
                Action::Ended(key, outcome, _) => self.ends.push((key.uuid, outcome)),
            }
        }
    }

    /// The disk has done this, or could not.
    pub fn done(&mut self, order: StoreOrder, result: Result<bool, String>) {
        let StoreOrder { job, number, row, receipt } = order;
        if let (Some(row), Ok(true)) = (row, &result) {
            self.disk.insert(row.uuid.clone(), *row);
        }
        let result = result.map(|new| (Box::new(receipt), new));
        self.handle(Input::Stored { job, number, result });
    }

    /// Moves time on, stopping wherever the router wants to look.
    pub fn pass(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(wake) = self.router.next_wake().filter(|wake| *wake <= end) {
            self.now = wake;
            self.handle(Input::Tick);
        }
        self.now = end;
    }

    pub fn open(&mut self, peer: Peer, address: Option<&str>) -> SessionId {
        let id = SessionId::fresh();
        self.handle(Input::Opened { id, peer, address: address.map(str::to_owned) });
        id
    }

    pub fn dial(&mut self, pen: &Pen) -> SessionId {
        self.open(Peer::Validator(pen.key.ss58()), None)
    }

    /// A validator's authenticated connection.
    pub fn validator(&mut self, pen: &Pen) -> SessionId {
        let id = self.dial(pen);
        self.says(id, &pen.auth(self.unix));
        assert_eq!(self.mail.get_mut(&id).map(|mail| mail.remove(0)).as_deref().map(kind).unwrap(), "ExecutorManifest");
        id
    }

    pub fn says(&mut self, id: SessionId, text: &str) {
        let frame = ValidatorFrame::read(text, Some(self.alice.key.public()));
        self.handle(Input::FromValidator(id, Box::new(frame)));
    }

    pub fn reports(&mut self, id: SessionId, text: &str) {
        self.handle(Input::FromExecutor(id, Box::new(ExecutorFrame::read(text))));
    }

    pub fn executor(&mut self, token: &str) -> SessionId {
        self.open(Peer::Executor(token.to_owned()), Some("10.0.0.9"))
    }

    /// An executor ends, and nothing of it is left.
    pub fn ended(&mut self, token: &str, end: ExecutorEnd) {
        self.handle(Input::ExecutorEnded { token: token.to_owned(), end });
        self.returned(token);
    }

    /// Whoever ran an executor lets go of its slot.
    pub fn returned(&mut self, token: &str) {
        drop(self.leases.remove(token));
        self.handle(Input::SlotReturned { token: token.to_owned(), clean: true });
    }

    /// What a connection was sent since the last look.
    pub fn texts(&mut self, id: SessionId) -> Vec<String> {
        self.mail.remove(&id).unwrap_or_default()
    }

    pub fn got(&mut self, id: SessionId) -> Vec<String> {
        self.texts(id).iter().map(|text| kind(text)).collect()
    }

    /// A job that was accepted; gives its token.
    pub fn accepted(&mut self, session: SessionId, job: &str) -> String {
        let ask = self.alice.ask(job);
        self.says(session, &ask);
        assert_eq!(self.got(session), ["AcceptJob"]);
        self.started.last().unwrap().token.clone()
    }

    /// A job whose executor runs it; gives the executor's connection and token.
    pub fn running(&mut self, session: SessionId, job: &str) -> (SessionId, String) {
        let token = self.accepted(session, job);
        let executor = self.executor(&token);
        self.reports(executor, &Says(job).ready());
        let request = self.alice.request(job);
        self.says(session, &request);
        assert_eq!(self.got(executor), ["InitialJob", "Job"]);
        assert_eq!(self.got(session), ["ExecutorReady"]);
        (executor, token)
    }

    /// The configuration is read again.
    pub fn reload(&mut self) {
        let settings = self.settings();
        self.handle(Input::Settings(Box::new(settings)));
    }

    /// A check of a host has ended; none will be late.
    pub fn checked(&mut self, host: HostName, found: Result<&str, &str>) {
        let found = found.map(str::to_owned).map_err(str::to_owned);
        let due = self.now + Duration::from_secs(1_000_000);
        self.handle(Input::Checked { host, found, images: Vec::new(), due });
    }

    /// As in the configuration.
    pub fn settings(&self) -> Settings {
        let MinerConfig { validators, blacklist, limits, placement, .. } = self.config.clone();
        let hosts = self.config.all_hosts().into_iter().map(HostPlan::from).collect();
        Settings { validators, blacklist, limits, hosts, placement }
    }

    pub fn slots(&self) -> SlotCounts {
        self.router.status().executors[0].1
    }

    pub fn free(&self) -> usize {
        self.slots().free
    }
}

pub fn owner() -> Owner {
    Owner { miner: "5M".to_owned(), instance: "i".to_owned(), epoch: 1 }
}

pub const GONE: ExecutorEnd = Ok(ExecutorExit::Code(0));
