//! A miner and its machine: the router in a process that can be killed, its database, and the executors, which stay.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use phalanx::base::ids::SessionId;
use phalanx::base::shutdown::Shutdown;
use phalanx::miner::MinerConfig;
use phalanx::miner::executor_manager::{
    ExecutorBackend, ExecutorEnd, ExecutorError, ExecutorExit, ExecutorSpec, Owner,
};
use phalanx::miner::executor_pool::{Lease, SlotCounts};
use phalanx::miner::router::{Action, ExecutorFrame, Input, JobKey, Peer, Router, ValidatorFrame};
use phalanx::protocol::{ExecutorClass, Receipt, ReceiptPayload};
use phalanx::store::miner::{JobChange, JobRow};
use phalanx::transport::Utf8Bytes;

use super::book::{Fault, number_of};
use super::clock::{End, Event, MS, Node, Process, SECOND, Shared};
use super::disk::Disk;
use super::executor::{Executor, Step};
use super::network::{Ending, Side};

pub const CLASS: ExecutorClass = ExecutorClass::AlwaysOnTest;

struct Unused;

impl ExecutorBackend for Unused {
    fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
        unreachable!("the router starts nothing by itself")
    }
}

/// What is written to the miner's database.
enum Write {
    Job(JobChange),
    Receipt { job: JobKey, number: u64, row: Option<Box<JobRow>>, payload: ReceiptPayload, signature: String },
}

pub struct Machine {
    number: u32,
    life: u32,
    router: Option<Router>,
    disk: Disk<Write>,
    rows: BTreeMap<JobKey, JobRow>,
    /// Which kinds of receipts of which job are stored.
    receipts: HashMap<usize, u8>,
    pub executors: BTreeMap<u32, Executor>,
    started: u32,
    wake: u64,
}

impl Machine {
    pub fn new(number: u32, shared: &mut Shared) -> Self {
        let mut machine = Self {
            number,
            life: 0,
            router: None,
            disk: Disk::default(),
            rows: BTreeMap::new(),
            receipts: HashMap::new(),
            executors: BTreeMap::new(),
            started: 0,
            wake: u64::MAX,
        };
        machine.start(shared);
        machine
    }

    fn process(&self) -> Process {
        Process { node: Node::Miner(self.number), life: self.life }
    }

    /// The process that answers, if one does.
    pub fn listens(&self) -> Option<Process> {
        self.router.is_some().then(|| self.process())
    }

    /// A process begins with what is on the disk.
    pub fn start(&mut self, shared: &mut Shared) {
        let keys = &shared.keys;
        let mut config = keys.miner_config.clone();
        config.key = keys.miners[self.number as usize].pair.clone();
        config.validators =
            keys.served[self.number as usize].iter().map(|v| keys.validators[*v as usize].public).collect();
        let owner = Owner { miner: config.key.ss58(), instance: "one".to_owned(), epoch: u64::from(self.life) + 1 };
        let mut router = Router::new(&config, "ws://miner".to_owned(), owner);
        let actions = router.restore(self.rows.values().cloned().collect(), shared.now());
        self.router = Some(router);
        self.wake = u64::MAX;
        self.act(actions, shared);
        self.arm(shared);
    }

    /// It is killed; its executors stay.
    pub fn kill(&mut self, shared: &mut Shared) {
        if self.router.take().is_none() {
            return;
        }
        shared.book.fault(Fault::MinerKilled);
        self.life += 1;
        self.executors.values_mut().for_each(|executor| executor.lease = None);
        self.executors.retain(|_, executor| executor.exit.is_none());
        let (writing, _) = self.disk.crash();
        if shared.rng.one_in(2) {
            self.store(writing, shared);
        }
        shared.died(Node::Miner(self.number));
        let down = shared.between(SECOND, 15 * SECOND);
        shared.after(down, Event::Start(Node::Miner(self.number)));
    }

    pub fn opened(&mut self, connection: u64, client: End, shared: &mut Shared) {
        let peer = match client.of.node {
            Node::Validator(v) => Peer::Validator(shared.keys.validators[v as usize].hotkey.clone()),
            Node::Executor(_, id) => match self.executors.get(&id) {
                Some(executor) => Peer::Executor(executor.spec.token.clone()),
                None => return,
            },
            other => unreachable!("{other:?} dials no miner"),
        };
        self.handle(Input::Opened { id: SessionId(connection), peer, address: None }, shared);
    }

    pub fn text(&mut self, connection: u64, text: &Utf8Bytes, shared: &mut Shared) {
        let id = SessionId(connection);
        let input = match shared.connections.client(connection).map(|end| end.of.node) {
            Some(Node::Validator(v)) => {
                let key = shared.keys.validators[v as usize].public;
                Input::FromValidator(id, Box::new(ValidatorFrame::read(text, Some(key))))
            }
            Some(Node::Executor(..)) => Input::FromExecutor(id, Box::new(ExecutorFrame::read(text))),
            _ => return,
        };
        self.handle(input, shared);
    }

    pub fn ended(&mut self, connection: u64, ending: Ending, shared: &mut Shared) {
        if ending == Ending::Close {
            shared.answer_close(connection, Side::Client);
        }
        self.handle(Input::Closed(SessionId(connection)), shared);
    }

    pub fn woken(&mut self, of: Process, shared: &mut Shared) {
        if of == self.process() && shared.at >= self.wake {
            self.wake = u64::MAX;
            self.handle(Input::Tick, shared);
        }
    }

    /// An executor goes on.
    pub fn step(&mut self, id: u32, step: Step, shared: &mut Shared) {
        let Some(executor) = self.executors.get_mut(&id) else { return };
        let token = executor.spec.token.clone();
        match step {
            Step::Ended => {
                let end = Ok(ExecutorExit::Code(executor.exit.expect("it has ended")));
                let time = shared.between(MS, 30 * MS);
                shared.after(time, Event::Step(self.number, id, Step::Removed));
                self.handle(Input::ExecutorEnded { token, end }, shared);
            }
            Step::Removed => {
                drop(self.executors.remove(&id));
                self.handle(Input::SlotReturned { token, clean: true }, shared);
            }
            step => executor.step((self.number, id), step, shared),
        }
    }

    /// A transaction is on the disk.
    pub fn written(&mut self, of: Process, shared: &mut Shared) {
        if of == self.process() {
            let writing = self.disk.done();
            for input in self.store(writing, shared) {
                self.handle(input, shared);
            }
            self.write(shared);
        }
    }

    /// What `miner/disk.rs` and `store/miner.rs` do with changes: those of jobs first, then receipts.
    fn store(&mut self, writes: Vec<Write>, shared: &mut Shared) -> Vec<Input> {
        let mut receipts = Vec::new();
        for write in writes {
            match write {
                Write::Job(JobChange::Put(row)) => {
                    let key = JobKey { validator: row.validator.clone(), uuid: row.uuid.clone() };
                    self.rows.insert(key, row);
                }
                Write::Job(JobChange::Forget { validator, uuid }) => {
                    self.rows.remove(&JobKey { validator, uuid });
                }
                receipt => receipts.push(receipt),
            }
        }
        let key = &shared.keys.miners[self.number as usize].pair;
        let mut stored = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            let Write::Receipt { job, number, row, payload, signature: validator_signature } = receipt else {
                continue;
            };
            let kind = match payload {
                ReceiptPayload::JobStarted(_) => 1,
                ReceiptPayload::JobAccepted(_) => 2,
                ReceiptPayload::JobFinished(_) => 4,
            };
            let kinds = self.receipts.entry(number_of(&job.uuid)).or_default();
            let is_new = (row.is_some() || *kinds & 1 != 0) && *kinds & kind == 0;
            *kinds |= if is_new { kind } else { 0 };
            if let Some(row) = row.filter(|_| is_new) {
                self.rows.insert(job.clone(), *row);
            }
            let miner_signature = payload.sign(key);
            let receipt = Box::new(Receipt { payload, validator_signature, miner_signature });
            stored.push(Input::Stored { job, number, result: Ok((receipt, is_new)) });
        }
        stored
    }

    fn write(&mut self, shared: &mut Shared) {
        if self.disk.begin() {
            let time = shared.between(200, 3 * MS);
            shared.after(time, Event::Written(self.process()));
        }
    }

    fn handle(&mut self, input: Input, shared: &mut Shared) {
        let Some(router) = &mut self.router else { return };
        let actions = router.handle(input, shared.now());
        // As the real loop shows it after each event.
        std::hint::black_box(router.status());
        self.act(actions, shared);
        self.arm(shared);
    }

    fn act(&mut self, actions: Vec<Action>, shared: &mut Shared) {
        for action in actions {
            match action {
                Action::Send(id, text) => shared.send(id.0, Side::Client, text),
                Action::Close(id, ..) => shared.close(id.0, Side::Server),
                Action::Store { job, number, row, payload, validator_signature: signature } => {
                    self.disk.put(Write::Receipt { job, number, row, payload, signature });
                }
                Action::Save(change) => self.disk.put(Write::Job(change)),
                Action::Start(spec, lease) => self.start_executor(spec, lease, shared),
                Action::Adopt(spec, lease) => self.adopt(spec, lease, shared),
                Action::End(token) => {
                    let of = |(_, executor): &(&u32, &Executor)| executor.spec.token == token;
                    if let Some((id, _)) = self.executors.iter().find(of) {
                        let time = shared.between(MS, 100 * MS);
                        shared.after(time, Event::Step(self.number, *id, Step::Killed));
                    }
                }
                Action::Known(_) | Action::Reap(_) | Action::Release(_) | Action::Note(..) | Action::Ended(..) => {}
                Action::Count(_) | Action::Error(..) => {}
            }
        }
        self.write(shared);
    }

    fn start_executor(&mut self, spec: ExecutorSpec, lease: Lease, shared: &mut Shared) {
        self.started += 1;
        self.executors.insert(self.started, Executor::new(spec, lease));
        let time = shared.between(20 * MS, 800 * MS);
        shared.after(time, Event::Step(self.number, self.started, Step::Boot));
    }

    /// The executor lives, or nobody knows how it ended.
    fn adopt(&mut self, spec: ExecutorSpec, lease: Lease, shared: &mut Shared) {
        let is_it = |executor: &&mut Executor| executor.spec.run == spec.run && executor.exit.is_none();
        if let Some(executor) = self.executors.values_mut().find(is_it) {
            executor.lease = Some(lease);
            return;
        }
        let token = spec.token;
        self.handle(Input::ExecutorEnded { token: token.clone(), end: Err(ExecutorError::Lost) }, shared);
        drop(lease);
        self.handle(Input::SlotReturned { token, clean: true }, shared);
    }

    fn arm(&mut self, shared: &mut Shared) {
        let Some(due) = self.router.as_ref().and_then(Router::next_wake) else { return };
        let due = shared.moment(due);
        if due < self.wake {
            self.wake = due;
            shared.plan(due, Event::Wake(self.process()));
        }
    }

    /// All slots are free, and nothing is kept of any job.
    pub fn check(&self) {
        let (number, router) = (self.number, self.router.as_ref().expect("it runs"));
        let status = router.status();
        assert_eq!(
            (status.jobs, status.ended, status.connected_executors, status.validators),
            (0, 0, 0, 0),
            "{number}"
        );
        assert_eq!(status.breach, None, "miner {number}");
        for (_, SlotCounts { declared, free, .. }) in &status.executors {
            assert_eq!(declared, free, "miner {number}: {:?}", status.executors);
        }
        assert_eq!(router.next_wake(), None, "miner {number}");
        assert!(self.executors.is_empty(), "miner {number}: executors are left");
        assert!(self.rows.is_empty(), "miner {number}: {} rows are left", self.rows.len());
    }
}

/// What all miners have in common.
pub fn config(key: phalanx::identity::KeyPair, slots: u32) -> MinerConfig {
    let mut config = MinerConfig::new(key, "unused", Arc::new(Unused));
    config.executors = vec![(CLASS, slots)];
    config
}
