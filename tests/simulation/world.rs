//! The world: who there is, what happens next, and what breaks.

use std::fmt;
use std::time::Instant;

use phalanx::identity::{KeyPair, PublicKey};
use phalanx::miner::MinerConfig;

use super::book::Fault;
use super::clock::{End, Event, Node, Process, SECOND, Shared};
use super::executor::Step;
use super::facilitator::Facilitator;
use super::machine::{self, Machine};
use super::page::{Page, Role, resident};
use super::validator::Validator;

/// The job of every user.
pub const REQUEST: &str = include_str!("../fixtures/job_request.json");

/// The time after the last end in which all that is kept for somebody is given up: miners keep an outcome for ten
/// minutes, and an executor may be slow.
const QUIET: u64 = 1500 * SECOND;

/// How long a dial waits for an answer.
const DIAL_TIME: u64 = 15 * SECOND;

/// A job that has not ended so long after the last submission never does.
const FOR_EVER: u64 = 4 * 3600 * SECOND;

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub seed: u64,
    pub jobs: usize,
    pub miners: u32,
    pub validators: u32,
    /// Miners that each validator knows.
    pub known: u32,
    /// Executors of each miner.
    pub slots: u32,
    /// Jobs a second.
    pub rate: u64,
    /// Faults while jobs are submitted.
    pub faults: u64,
    /// A mistake of the facilitator, to be found: at a restart it forgets what waited.
    pub forgets: bool,
}

impl Config {
    /// What takes some seconds without optimisation.
    pub fn small(seed: u64) -> Self {
        Self { seed, jobs: 250, miners: 40, validators: 6, known: 10, slots: 2, rate: 2, faults: 40, forgets: false }
    }

    /// With these words `name=number`.
    pub fn with(mut self, words: &str) -> Self {
        for word in words.split_whitespace() {
            let (name, value) = word.split_once('=').expect("name=number");
            let value: u64 = value.parse().expect("a number");
            let small = || u32::try_from(value).expect("a number below 2^32");
            match name {
                "seed" => self.seed = value,
                "jobs" => self.jobs = usize::try_from(value).expect("a number of this machine"),
                "miners" => self.miners = small(),
                "validators" => self.validators = small(),
                "known" => self.known = small(),
                "slots" => self.slots = small(),
                "rate" => self.rate = value,
                "faults" => self.faults = value,
                _ => panic!("there is no {name}: seed, jobs, miners, validators, known, slots, rate, faults"),
            }
        }
        self.known = self.known.min(self.miners);
        self
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, jobs, miners, validators, known, slots, rate, faults, .. } = self;
        write!(f, "seed={seed} jobs={jobs} miners={miners} validators={validators} known={known} slots={slots} ")?;
        write!(f, "rate={rate} faults={faults}")
    }
}

/// Who somebody is.
pub struct Identity {
    pub pair: KeyPair,
    pub public: PublicKey,
    pub hotkey: String,
}

impl Identity {
    fn new(kind: u8, number: u32) -> Self {
        let mut seed = [kind; 32];
        seed[..4].copy_from_slice(&number.to_le_bytes());
        let pair = KeyPair::from_seed(seed);
        Self { public: pair.public(), hotkey: pair.ss58(), pair }
    }
}

/// Who all are, and who knows whom.
pub struct Keys {
    pub user: KeyPair,
    pub validators: Vec<Identity>,
    pub miners: Vec<Identity>,
    /// The miners of each validator, and the validators of each miner.
    pub known: Vec<Vec<u32>>,
    pub served: Vec<Vec<u32>>,
    pub miner_config: MinerConfig,
}

impl Keys {
    /// Each validator knows the miners from its place in a ring on.
    fn new(config: &Config) -> Self {
        let Config { miners, validators, known, slots, .. } = *config;
        let place = |v: u32| u64::from(v) * u64::from(miners) / u64::from(validators.max(1));
        let of = |v: u32| (0..known).map(move |n| ((place(v) + u64::from(n)) % u64::from(miners)) as u32).collect();
        let known: Vec<Vec<u32>> = (0..validators).map(of).collect();
        let mut served = vec![Vec::new(); miners as usize];
        for (validator, miners) in (0..).zip(&known) {
            miners.iter().for_each(|miner| served[*miner as usize].push(validator));
        }
        let user = KeyPair::from_seed([3; 32]);
        Self {
            miner_config: machine::config(user.clone(), slots),
            user,
            validators: (0..validators).map(|n| Identity::new(1, n)).collect(),
            miners: (0..miners).map(|n| Identity::new(2, n)).collect(),
            known,
            served,
        }
    }
}

pub struct World {
    shared: Shared,
    facilitator: Facilitator,
    validators: Vec<Validator>,
    miners: Vec<Machine>,
    /// Until when each is parted: validators from the facilitator, miners from validators.
    parted: [Vec<u64>; 2],
    submitted: usize,
    /// Until it runs.
    page: Option<Page>,
}

impl World {
    pub fn new(config: Config) -> Self {
        let began = Instant::now();
        let mut shared = Shared::new(config, Keys::new(&config));
        let keyed = resident();
        let facilitator = Facilitator::new(&mut shared);
        let miners: Vec<Machine> = (0..config.miners).map(|n| Machine::new(n, &mut shared)).collect();
        let with_miners = resident();
        let validators: Vec<Validator> = (0..config.validators).map(|n| Validator::new(n, &mut shared)).collect();
        let with_validators = resident();
        let parted = [vec![0; validators.len()], vec![0; miners.len()]];
        shared.after(SECOND, Event::Submit);
        if config.faults > 0 {
            shared.after(SECOND, Event::Fault);
        }
        let page = Some(Page::new(config, began, [keyed, with_miners, with_validators]));
        Self { shared, facilitator, validators, miners, parted, submitted: 0, page }
    }

    /// Runs until all is over and quiet; checks what must be so.
    pub fn run(mut self) -> Page {
        let mut ends_at = u64::MAX;
        let mut page = self.page.take().expect("a world runs once");
        while let Some(event) = self.shared.next() {
            page.happens(|| self.happens(event));
            let is_over = self.submitted == self.shared.config.jobs && self.shared.book.open == 0;
            ends_at = match is_over {
                true => ends_at.min(self.shared.at + QUIET),
                false => u64::MAX,
            };
            if self.shared.at >= ends_at {
                break;
            }
            let span = self.shared.config.jobs as u64 * SECOND / self.shared.config.rate;
            if self.shared.at > span + FOR_EVER {
                self.shared.book.check();
                panic!("it does not come to an end");
            }
        }
        self.shared.book.check();
        self.validators.iter_mut().for_each(Validator::check);
        self.miners.iter().for_each(Machine::check);
        self.facilitator.check(&mut self.shared);
        page.ended(&self.shared);
        page
    }

    fn happens(&mut self, event: Event) -> Role {
        let Self { shared, facilitator, validators, miners, .. } = self;
        match event {
            Event::Submit => {
                let mean = SECOND as f64 / shared.config.rate as f64;
                self.submitted += 1;
                if self.submitted.is_multiple_of((shared.config.jobs / 10).max(1_000)) {
                    println!("{} jobs, {} events planned", self.submitted, shared.planned());
                }
                facilitator.submit(shared);
                if self.submitted < shared.config.jobs {
                    let pause = shared.pause(mean);
                    shared.after(pause, Event::Submit);
                }
                Role::Facilitator
            }
            Event::SubmitAgain => {
                facilitator.submit(shared);
                Role::Facilitator
            }
            Event::Dial(end, to) => self.dial(end, to),
            Event::NoAnswer(end) => {
                if self.is_current(end.of) {
                    self.dialled(end, None);
                }
                Role::of(end.of.node)
            }
            Event::Text(connection, side, text) => {
                let Some(end) = shared.connections.reader(connection, side) else { return Role::World };
                if !self.is_current(end.of) {
                    return Role::World;
                }
                let Self { shared, facilitator, validators, miners, .. } = self;
                match end.of.node {
                    Node::Facilitator => facilitator.text(connection, &text, shared),
                    Node::Validator(v) => validators[v as usize].text(end.link, connection, text, shared),
                    Node::Miner(m) => miners[m as usize].text(connection, &text, shared),
                    Node::Executor(m, id) => {
                        let executor = miners[m as usize].executors.get_mut(&id);
                        executor.into_iter().for_each(|executor| executor.text(&text, (m, id), shared));
                    }
                }
                Role::of(end.of.node)
            }
            Event::Ended(connection, side, ending) => {
                let Some(end) = shared.connections.learns(connection, side, ending) else { return Role::World };
                if !self.is_current(end.of) {
                    return Role::World;
                }
                let Self { shared, facilitator, validators, miners, .. } = self;
                match end.of.node {
                    Node::Facilitator => facilitator.ended(connection, ending, shared),
                    Node::Validator(v) => validators[v as usize].lost(end.link, Some(connection), ending, shared),
                    Node::Miner(m) => miners[m as usize].ended(connection, ending, shared),
                    Node::Executor(m, id) => {
                        let executor = miners[m as usize].executors.get_mut(&id);
                        executor.into_iter().for_each(|e| e.lost(Some(connection), ending, (m, id), shared));
                    }
                }
                Role::of(end.of.node)
            }
            Event::Redial(end) => {
                if self.is_current(end.of) {
                    let Self { shared, validators, miners, .. } = self;
                    match end.of.node {
                        Node::Validator(v) => validators[v as usize].redial(end.link, shared),
                        Node::Executor(m, id) => {
                            let link = miners[m as usize].executors.get_mut(&id).and_then(|e| e.link.as_mut());
                            link.into_iter().for_each(|link| link.redial(shared));
                        }
                        node => unreachable!("{node:?} dials nobody"),
                    }
                }
                Role::of(end.of.node)
            }
            Event::Step(m, id, step) => {
                miners[m as usize].step(id, step, shared);
                Role::Miner
            }
            Event::Start(node) => {
                match node {
                    Node::Facilitator => facilitator.start(shared),
                    Node::Validator(v) => validators[v as usize].start(shared),
                    Node::Miner(m) => miners[m as usize].start(shared),
                    Node::Executor(..) => unreachable!("its miner starts it"),
                }
                Role::of(node)
            }
            Event::Fault => {
                self.fault();
                Role::World
            }
            Event::Wake(of) | Event::Written(of) if of.node == Node::Facilitator => {
                match event {
                    Event::Wake(_) => facilitator.woken(of, shared),
                    _ => facilitator.written(of, shared),
                }
                Role::Facilitator
            }
            Event::Wake(of @ Process { node: Node::Miner(m), .. }) => {
                miners[m as usize].woken(of, shared);
                Role::Miner
            }
            Event::Written(of @ Process { node: Node::Miner(m), .. }) => {
                miners[m as usize].written(of, shared);
                Role::Miner
            }
            Event::Wake(of) | Event::Written(of) | Event::Synced(of) | Event::Beat(of) | Event::WakeJob(of, _) => {
                let Node::Validator(v) = of.node else { unreachable!("{of:?} has no such thing") };
                let validator = &mut validators[v as usize];
                if validator.is_current(of) {
                    match event {
                        Event::Wake(_) => validator.woken(shared),
                        Event::Written(_) => validator.written(shared),
                        Event::Synced(_) => validator.synced(shared),
                        Event::Beat(_) => validator.beat(shared),
                        Event::WakeJob(_, job) => validator.job_woken(job, shared),
                        _ => unreachable!("these are all"),
                    }
                }
                Role::Validator
            }
            Event::GiveUp(end) => {
                if self.is_current(end.of)
                    && let Node::Validator(v) = end.of.node
                {
                    self.validators[v as usize].give_up(end.link, &mut self.shared);
                }
                Role::Validator
            }
        }
    }

    fn is_current(&self, of: Process) -> bool {
        match of.node {
            Node::Facilitator => self.facilitator.listens() == Some(of),
            Node::Validator(v) => self.validators[v as usize].is_current(of),
            Node::Miner(m) => self.miners[m as usize].listens() == Some(of),
            Node::Executor(m, id) => self.miners[m as usize].executors.contains_key(&id),
        }
    }

    fn is_parted(&self, client: Node, server: Node) -> bool {
        let until = match (client, server) {
            (Node::Validator(v), Node::Facilitator) => self.parted[0][v as usize],
            (Node::Validator(_), Node::Miner(m)) => self.parted[1][m as usize],
            _ => 0,
        };
        self.shared.at < until
    }

    /// Somebody dials: there is a connection, nobody listens, or nothing comes back.
    fn dial(&mut self, client: End, to: Node) -> Role {
        if !self.is_current(client.of) {
            return Role::World;
        }
        let listens = match to {
            Node::Facilitator => self.facilitator.listens(),
            Node::Miner(m) => self.miners[m as usize].listens(),
            node => unreachable!("nobody dials {node:?}"),
        };
        if self.is_parted(client.of.node, to) {
            self.shared.after(DIAL_TIME, Event::NoAnswer(client));
            return Role::World;
        }
        let Self { shared, facilitator, miners, .. } = self;
        let connection = listens.map(|of| shared.connected(client, End { of, link: 0 }));
        if let Some(connection) = connection {
            match to {
                Node::Facilitator => facilitator.opened(connection, shared),
                Node::Miner(m) => miners[m as usize].opened(connection, client, shared),
                _ => {}
            }
        }
        self.dialled(client, connection);
        Role::of(to)
    }

    /// Whoever dialled has a connection, or none.
    fn dialled(&mut self, client: End, connection: Option<u64>) {
        let Self { shared, validators, miners, .. } = self;
        match client.of.node {
            Node::Validator(v) => validators[v as usize].dialled(client.link, connection, shared),
            Node::Executor(m, id) => {
                let executor = miners[m as usize].executors.get_mut(&id);
                executor.into_iter().for_each(|executor| executor.dialled(connection, (m, id), shared));
            }
            node => unreachable!("{node:?} dials nobody"),
        }
    }

    /// Something breaks; the next does after a while, as long as jobs come.
    fn fault(&mut self) {
        let Self { shared, facilitator, validators, miners, parted, .. } = self;
        let (v, m) =
            (shared.between(0, validators.len() as u64) as usize, shared.between(0, miners.len() as u64) as usize);
        match shared.between(0, 100) {
            0..3 => facilitator.kill(shared),
            3..17 => validators[v].kill(true, shared),
            17..22 => validators[v].kill(false, shared),
            22..45 => miners[m].kill(shared),
            45..60 => {
                if let Some(id) = miners[m].executors.keys().next().copied() {
                    shared.book.fault(Fault::ExecutorKilled);
                    miners[m].step(id, Step::Killed, shared);
                }
            }
            60..90 => {
                let all = shared.connections.of(|_| true);
                if !all.is_empty() {
                    shared.book.fault(Fault::ConnectionCut);
                    let one = shared.between(0, all.len() as u64) as usize;
                    shared.cut(all[one]);
                }
            }
            kind => {
                let from_facilitator = kind < 95;
                shared.book.fault(if from_facilitator { Fault::FromFacilitator } else { Fault::FromValidators });
                let parted = &mut parted[usize::from(!from_facilitator)];
                let until = shared.at + shared.between(5 * SECOND, 200 * SECOND);
                // One in twenty, and one at least.
                let chosen = shared.between(0, parted.len() as u64) as usize;
                let chosen: Vec<usize> = (0..parted.len().div_ceil(20)).map(|n| (chosen + n) % parted.len()).collect();
                chosen.iter().for_each(|n| parted[*n] = until);
                let is_one = |end: &End| match end.of.node {
                    Node::Validator(v) => from_facilitator && end.link == 0 && chosen.contains(&(v as usize)),
                    Node::Miner(m) => !from_facilitator && chosen.contains(&(m as usize)),
                    _ => false,
                };
                let between_roles = shared.connections.of(is_one);
                for connection in between_roles {
                    let is_local = shared
                        .connections
                        .client(connection)
                        .is_some_and(|end| matches!(end.of.node, Node::Executor(..)));
                    if !is_local {
                        shared.cut(connection);
                    }
                }
            }
        }
        if self.submitted < self.shared.config.jobs {
            let Config { jobs, rate, faults, .. } = self.shared.config;
            let mean = jobs as f64 / rate as f64 / faults as f64 * SECOND as f64;
            let pause = self.shared.pause(mean);
            self.shared.after(pause, Event::Fault);
        }
    }
}
