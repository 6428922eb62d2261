//! A validator: its ledger with the journal, the outboxes of its links, its table of miners, and a drive for each job.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use phalanx::base::backoff::BackoffConfig;
use phalanx::identity::PublicKey;
use phalanx::link::{Answered, Kind, Outgoing, Text};
use phalanx::protocol::{
    HordeFailureReason, JobRejectionReason, JobStatus, MinerToValidator, V0AuthenticationRequest, V0Heartbeat,
    V0JobFinishedReceiptRequest, V0JobStatusUpdate, V2JobRequest, ValidatorAuthForMiner, ValidatorToFacilitator,
    ValidatorToMiner,
};
use phalanx::transport::Utf8Bytes;
use phalanx::validator::authorization::Signers;
use phalanx::validator::client::inbound::{Inbound, classify};
use phalanx::validator::drive::{Action, Drive, Input};
use phalanx::validator::ledger::queue::Batch;
use phalanx::validator::ledger::record::JobRecord;
use phalanx::validator::ledger::{Ledger, LedgerLimits, NotAdmitted, RetryPolicies};
use phalanx::validator::routing::{Ask, HALF_LIFE, MinerAddress, Routing};
use phalanx::validator::{JobTimes, Outcome};

use super::book::{Fault, number_of};
use super::clock::{End, Event, MS, Node, Process, SECOND, Shared};
use super::link::Link;
use super::network::{Ending, Side};

/// Jobs that it drives at a time.
const WORKERS: usize = 64;

/// How old a signature may be: what is remembered of it comes to an end within a run.
const SIGNATURE_AGE: Duration = Duration::from_secs(600);

/// Those of `validator/miner_client.rs`.
const TO_MINERS: BackoffConfig = BackoffConfig {
    base: Duration::from_millis(200),
    cap: Duration::from_secs(3),
    stable_after: Duration::from_secs(10),
};

/// How long the finished-receipt has to arrive, as in `validator/organic.rs`.
const RECEIPT_TIME: u64 = 15 * SECOND;

/// The link to the facilitator; those to miners have the numbers after it.
const TO_FACILITATOR: u64 = 0;

struct RunningJob {
    uuid: String,
    class: phalanx::protocol::ExecutorClass,
    drive: Drive,
    link: Option<u64>,
    slot: Option<PublicKey>,
    /// Until its end is reported.
    is_open: bool,
    wake: u64,
    /// What it is to do once all updates up to this one are safe.
    waits: Option<(u64, VecDeque<Action>)>,
}

struct MinerLink {
    link: Link,
    miner: u32,
    job: Option<u64>,
}

pub struct Validator {
    number: u32,
    life: u32,
    running: Option<Running>,
    /// The rows that were flushed, and behind them those that only the system has.
    flushed: BTreeMap<u64, Vec<u8>>,
    unflushed: Vec<(u64, Option<Vec<u8>>)>,
}

/// What is lost with the process.
struct Running {
    ledger: Ledger,
    batch: Option<Batch>,
    link: Link,
    routing: Routing,
    signers: Signers,
    jobs: BTreeMap<u64, RunningJob>,
    links: BTreeMap<u64, MinerLink>,
    next_link: u64,
    receipts: HashMap<(PublicKey, String), V0JobFinishedReceiptRequest>,
    retry: u64,
}

impl Validator {
    pub fn new(number: u32, shared: &mut Shared) -> Self {
        let mut validator = Self { number, life: 0, running: None, flushed: BTreeMap::new(), unflushed: Vec::new() };
        validator.start(shared);
        validator
    }

    fn process(&self) -> Process {
        Process { node: Node::Validator(self.number), life: self.life }
    }

    fn end(&self, link: u64) -> End {
        End { of: self.process(), link }
    }

    /// A process begins with what is on the disk: what was begun before is over.
    pub fn start(&mut self, shared: &mut Shared) {
        let keys = &shared.keys;
        let me = &keys.validators[self.number as usize];
        let address = |miner: &u32| MinerAddress {
            hotkey: keys.miners[*miner as usize].public,
            address: "miner".to_owned(),
            port: u16::try_from(*miner).expect("so many ports there are"),
            trusted: false,
            tls: false,
        };
        let routing = Routing::new(keys.known[self.number as usize].iter().map(address).collect(), HALF_LIFE);
        let signers = Signers::new(me.public, vec![keys.user.public()], SIGNATURE_AGE);
        let limits = LedgerLimits { remembered: 64, ..LedgerLimits::default() };
        let mut ledger = Ledger::new(limits, RetryPolicies::default(), true).with_signature_age(SIGNATURE_AGE);
        self.flush();
        let rows = self.flushed.iter().map(|(n, row)| (*n, JobRecord::decode(row).expect("it was written so")));
        let mut ready = ledger.restore(rows.collect::<Vec<_>>(), shared.now());
        for (number, uuid) in ledger.open_jobs() {
            shared.book.restarted_jobs += 1;
            let why = "the validator ended while the job ran, and the job cannot be resumed";
            let end = Outcome::horde_failed(HordeFailureReason::GenericError, why).into_message(&uuid);
            let accepted = ledger.accept(number, end.status, end.text, shared.now());
            ready.extend(accepted.expect("an end is always taken").1);
        }
        let link = Link::dial(self.end(TO_FACILITATOR), Node::Facilitator, BackoffConfig::default(), shared);
        self.running = Some(Running {
            ledger,
            batch: None,
            link,
            routing,
            signers,
            jobs: BTreeMap::new(),
            links: BTreeMap::new(),
            next_link: TO_FACILITATOR + 1,
            receipts: HashMap::new(),
            retry: u64::MAX,
        });
        self.push(ready, shared);
        let first = shared.between(0, 60 * SECOND);
        shared.after(first, Event::Beat(self.process()));
        self.settle(shared);
    }

    fn flush(&mut self) {
        for (number, row) in self.unflushed.drain(..) {
            match row {
                Some(row) => drop(self.flushed.insert(number, row)),
                None => drop(self.flushed.remove(&number)),
            }
        }
    }

    /// It is killed; without power what was not flushed is lost too.
    pub fn kill(&mut self, has_power: bool, shared: &mut Shared) {
        if self.running.take().is_none() {
            return;
        }
        shared.book.fault(if has_power { Fault::ValidatorKilled } else { Fault::ValidatorWithoutPower });
        if !has_power {
            self.unflushed.clear();
        }
        self.life += 1;
        shared.died(Node::Validator(self.number));
        let down = shared.between(SECOND, 60 * SECOND);
        shared.after(down, Event::Start(Node::Validator(self.number)));
    }

    pub fn is_current(&self, of: Process) -> bool {
        self.running.is_some() && of == self.process()
    }

    /// There is a connection, or there is none.
    pub fn dialled(&mut self, link: u64, connection: Option<u64>, shared: &mut Shared) {
        let (me, running) = (self.number as usize, self.running.as_mut().expect("it is current"));
        let now = shared.now().unix_seconds();
        let validator = &shared.keys.validators[me].pair;
        let Some(connection) = connection else { return self.lost(link, None, Ending::Cut, shared) };
        if link == TO_FACILITATOR {
            let hello = V0AuthenticationRequest::sign(validator);
            let hello = ValidatorToFacilitator::from(hello).encode().into();
            return running.link.connected(connection, Some(hello), shared);
        }
        let Some(to_miner) = running.links.get_mut(&link).filter(|to_miner| !to_miner.link.is_over()) else {
            return shared.close(connection, Side::Client);
        };
        let miner = &shared.keys.miners[to_miner.miner as usize].hotkey;
        let hello = ValidatorToMiner::from(ValidatorAuthForMiner::sign(validator, miner, now)).encode().into();
        to_miner.link.connected(connection, Some(hello), shared);
    }

    pub fn redial(&mut self, link: u64, shared: &mut Shared) {
        let running = self.running.as_mut().expect("it is current");
        match link {
            TO_FACILITATOR => running.link.redial(shared),
            _ => running.links.get_mut(&link).into_iter().for_each(|to_miner| to_miner.link.redial(shared)),
        }
    }

    /// A connection has ended, or there was none.
    pub fn lost(&mut self, link: u64, connection: Option<u64>, ending: Ending, shared: &mut Shared) {
        let running = self.running.as_mut().expect("it is current");
        if let (Some(connection), Ending::Close) = (connection, ending) {
            shared.answer_close(connection, Side::Server);
        }
        if link == TO_FACILITATOR {
            running.link.ended(connection, ending, shared);
            return;
        }
        let Some(to_miner) = running.links.get_mut(&link) else { return };
        let was_ready = to_miner.link.is_ready();
        if !to_miner.link.ended(connection, ending, shared) {
            return;
        }
        let (is_over, job) = (to_miner.link.is_over(), to_miner.job);
        if is_over {
            running.links.remove(&link);
        }
        let Some(job) = job else { return };
        let input = match (was_ready, connection) {
            (true, _) => Input::Lost { why: "cut".to_owned() },
            (false, None) => Input::ConnectFailed { why: "nobody answers".to_owned(), refused: false, cut: false },
            (false, Some(_)) => Input::ConnectFailed { why: "cut".to_owned(), refused: false, cut: true },
        };
        self.drive(job, input, shared);
    }

    pub fn text(&mut self, link: u64, connection: u64, text: Utf8Bytes, shared: &mut Shared) {
        let running = self.running.as_mut().expect("it is current");
        if link == TO_FACILITATOR {
            return self.facilitator_says(connection, text, shared);
        }
        let Some(to_miner) = running.links.get_mut(&link) else { return };
        let message = MinerToValidator::decode(&text).expect("a miner keeps to the protocol");
        if to_miner.link.is_greeting(connection) {
            match &message {
                MinerToValidator::V0ExecutorManifestRequest(_) => to_miner.link.welcome(connection, shared),
                other => panic!("validator {}: miner {} is not glad: {other:?}", self.number, to_miner.miner),
            }
        }
        if let Some(job) = to_miner.job {
            self.drive(job, Input::Message(Box::new(message)), shared);
        }
    }

    fn facilitator_says(&mut self, connection: u64, text: Utf8Bytes, shared: &mut Shared) {
        let running = self.running.as_mut().expect("it is current");
        let link = &mut running.link;
        match classify(text) {
            Text::Answer(_, reply) if link.is_greeting(connection) => {
                assert_eq!(reply.to_string(), "success", "validator {} is not welcome", self.number);
                link.welcome(connection, shared);
            }
            Text::Answer(about, reply) => {
                let Some(Answered::Message(message, reply)) = link.outbox.answered(about, reply) else {
                    panic!("validator {}: an answer to nothing", self.number)
                };
                link.pump(shared);
                let Kind::Kept { tag } = message.kind else { return };
                let settled = running.ledger.settle(tag, &reply, shared.now());
                self.push(settled.next, shared);
            }
            Text::Message(Inbound::Job { request, .. }) => self.requested(*request, shared),
            Text::Message(other) => panic!("validator {}: {other:?}", self.number),
            Text::Last(_) => unreachable!("no text of a facilitator is the last"),
        }
        self.settle(shared);
    }

    /// As `validator/client` takes a request: known once, checked, admitted, received, and driven if there is room.
    fn requested(&mut self, request: V2JobRequest, shared: &mut Shared) {
        let (now, running) = (shared.now(), self.running.as_mut().expect("it is current"));
        let uuid = request.uuid.clone();
        let Some(number) = running.ledger.take(&uuid, request.on_trusted_miner, now) else { return };
        let authorized = running.signers.authorize(vec![request], now.wall).pop().expect("there is a verdict");
        let turned_away = match authorized {
            Err(unauthorized) => Some((JobRejectionReason::InvalidSignature, unauthorized.why)),
            Ok(_) if running.jobs.len() >= WORKERS => Some((JobRejectionReason::Busy, "all are busy".to_owned())),
            Ok(authorized) => match running.ledger.admit(number, &authorized, now) {
                Err(why @ NotAdmitted::Full(_)) => Some((JobRejectionReason::Busy, why.to_string())),
                Err(why) => Some((JobRejectionReason::InvalidSignature, why.to_string())),
                Ok(()) => {
                    let request = authorized.request().clone();
                    self.receive(number, request, shared);
                    None
                }
            },
        };
        if let Some((reason, why)) = turned_away {
            let end = Outcome::rejected(reason, why).into_message(&uuid);
            self.report(number, end.status, end.text, shared);
        }
    }

    fn receive(&mut self, number: u64, request: Arc<V2JobRequest>, shared: &mut Shared) {
        let (uuid, class) = (request.uuid.clone(), request.executor_class);
        let key = shared.keys.validators[self.number as usize].pair.clone();
        let drive = Drive::new(key, JobTimes::default(), request, &[], None);
        self.report(number, JobStatus::Received, step(&uuid, JobStatus::Received), shared);
        let job = RunningJob { uuid, class, drive, link: None, slot: None, is_open: true, wake: u64::MAX, waits: None };
        self.running.as_mut().expect("it is current").jobs.insert(number, job);
        self.drive(number, Input::Start, shared);
    }

    fn report(&mut self, job: u64, status: JobStatus, text: Utf8Bytes, shared: &mut Shared) {
        let running = self.running.as_mut().expect("it is current");
        let (_, ready) =
            running.ledger.accept(job, status, text, shared.now()).expect("it leads on, and there is room");
        self.push(ready, shared);
    }

    fn push(&mut self, messages: impl IntoIterator<Item = Outgoing>, shared: &mut Shared) {
        let running = self.running.as_mut().expect("it is current");
        for message in messages {
            running.link.push(message, shared).expect("there is room for one of each job");
        }
    }

    /// Something happened to a job.
    fn drive(&mut self, number: u64, input: Input, shared: &mut Shared) {
        let Some(job) = self.running.as_mut().and_then(|running| running.jobs.get_mut(&number)) else { return };
        let actions = VecDeque::from(job.drive.handle(input, shared.now()));
        self.act(number, actions, shared);
    }

    fn act(&mut self, number: u64, mut actions: VecDeque<Action>, shared: &mut Shared) {
        while let Some(action) = actions.pop_front() {
            if matches!(action, Action::WaitUntilKnown) {
                let running = self.running.as_mut().expect("it is current");
                let version = running.ledger.version();
                if !running.ledger.is_safe(version) {
                    let job = running.jobs.get_mut(&number).expect("it acts");
                    job.waits = Some((version, actions));
                    return;
                }
            } else if let Some(input) = self.act_one(number, action, shared) {
                let job = self.running.as_mut().and_then(|running| running.jobs.get_mut(&number)).expect("it acts");
                actions.extend(job.drive.handle(input, shared.now()));
            }
        }
        let process = self.process();
        let running = self.running.as_mut().expect("it is current");
        let Some(job) = running.jobs.get_mut(&number) else { return };
        match job.drive.next_wake().map(|due| shared.moment(due)) {
            Some(due) if due < job.wake => {
                job.wake = due;
                shared.plan(due, Event::WakeJob(process, number));
            }
            Some(_) => {}
            None if job.is_open => {}
            None => {
                assert!(job.slot.is_none(), "a job that is over has its miner still");
                running.jobs.remove(&number);
            }
        }
        self.settle(shared);
    }

    /// As `validator/organic.rs` does each thing.
    fn act_one(&mut self, number: u64, action: Action, shared: &mut Shared) -> Option<Input> {
        let now = shared.now().mono;
        let (end, process) = (self.end(0), self.process());
        let running = self.running.as_mut().expect("it is current");
        let job = running.jobs.get_mut(&number).expect("it acts");
        match action {
            Action::WaitUntilKnown => unreachable!("it was waited for"),
            Action::Reserve { avoid, .. } => {
                let ask = Ask { class: job.class, trusted: false, tried: &avoid, is_open: &|_| false };
                let reserved = running.routing.reserve(&ask, now);
                job.slot = reserved.as_ref().ok().map(|miner| miner.hotkey);
                return Some(Input::Reserved(reserved));
            }
            Action::Connect(miner) => {
                let me = End { link: running.next_link, ..end };
                running.next_link += 1;
                job.link = Some(me.link);
                let miner = u32::from(miner.port);
                let link = Link::dial(me, Node::Miner(miner), TO_MINERS, shared);
                running.links.insert(me.link, MinerLink { link, miner, job: Some(number) });
            }
            Action::Send(message) => {
                let is_last = matches!(*message, ValidatorToMiner::V0JobFinishedReceiptRequest(_));
                if let (ValidatorToMiner::V0JobFinishedReceiptRequest(receipt), Some(slot)) = (&*message, job.slot) {
                    running.receipts.insert((slot, job.uuid.clone()), receipt.clone());
                }
                let text = message.encode();
                let to_miner = running.links.get_mut(&job.link?)?;
                let message = if is_last { Outgoing::repeated(text) } else { Outgoing::once(text) };
                to_miner.link.push(message, shared).expect("a job says little");
            }
            Action::Confirm(miner, uuid) => {
                let receipt = running.receipts.get(&(miner, uuid))?.clone();
                let to_miner = running.links.get_mut(&job.link?)?;
                let text = ValidatorToMiner::from(receipt).encode();
                to_miner.link.push(Outgoing::repeated(text), shared).expect("a job says little");
            }
            Action::Manifest(miner, manifest) => running.routing.manifest(&miner, manifest, now),
            Action::CoolDown(miner) => running.routing.cool_down(&miner, now),
            Action::Completed(miner) => running.routing.completed(&miner, now),
            Action::Incident(miner, incident, why) => running.routing.incident(&miner, incident, &why, now),
            Action::Report(status) => {
                let text = step(&job.uuid, status);
                self.report(number, status, text, shared);
            }
            Action::RunsOn(miner) => running.ledger.ran_on(number, miner),
            Action::Release => {
                if let Some(slot) = job.slot.take() {
                    running.routing.release(&slot, job.class);
                }
            }
            Action::End(outcome) => {
                job.is_open = false;
                let end = outcome.into_message(&job.uuid);
                self.report(number, end.status, end.text, shared);
            }
            Action::Close => {
                let link = job.link.take()?;
                let to_miner = running.links.get_mut(&link)?;
                to_miner.job = None;
                to_miner.link.close(shared);
                if to_miner.link.is_over() {
                    running.links.remove(&link);
                } else {
                    let end = End { of: process, link };
                    shared.after(RECEIPT_TIME, Event::GiveUp(end));
                }
            }
            Action::Cancelled => unreachable!("nothing is cancelled"),
            Action::MachineSpecs(_) | Action::StreamingReady(_) | Action::Excused(..) | Action::Error(..) => {}
        }
        None
    }

    /// A link to a miner that has not come to its end is given up.
    pub fn give_up(&mut self, link: u64, shared: &mut Shared) {
        if let Some(mut to_miner) = self.running.as_mut().and_then(|running| running.links.remove(&link)) {
            to_miner.link.give_up(shared);
        }
    }

    /// After whatever changed the ledger: has it written, and has it tried again what was refused.
    fn settle(&mut self, shared: &mut Shared) {
        let process = self.process();
        let running = self.running.as_mut().expect("it is current");
        if running.batch.is_none() && running.ledger.is_dirty() {
            running.batch = Some(running.ledger.batch());
            let time = shared.between(50, 500);
            shared.after(time, Event::Written(process));
        }
        if let Some(due) = running.ledger.next_retry().map(|due| shared.moment(due)).filter(|due| *due < running.retry)
        {
            running.retry = due;
            shared.plan(due, Event::Wake(process));
        }
    }

    /// The system has the batch.
    pub fn written(&mut self, shared: &mut Shared) {
        let running = self.running.as_mut().expect("it is current");
        let batch = running.batch.take().expect("it was being written");
        self.unflushed.extend(batch.rows.iter().cloned());
        let ready = running.ledger.written(&batch);
        let needs_sync = batch.needs_sync;
        if needs_sync {
            running.batch = Some(batch);
            let time = shared.between(200, 3 * MS);
            shared.after(time, Event::Synced(self.process()));
        }
        self.push(ready, shared);
        if !needs_sync {
            self.go_on(shared);
        }
    }

    /// The disk has it.
    pub fn synced(&mut self, shared: &mut Shared) {
        self.flush();
        let running = self.running.as_mut().expect("it is current");
        let batch = running.batch.take().expect("it was being written");
        let ready = running.ledger.synced(&batch);
        self.push(ready, shared);
        self.go_on(shared);
    }

    fn go_on(&mut self, shared: &mut Shared) {
        let running = self.running.as_mut().expect("it is current");
        let safe = |job: &RunningJob| job.waits.as_ref().is_some_and(|(version, _)| running.ledger.is_safe(*version));
        let ready: Vec<u64> = running.jobs.iter().filter(|(_, job)| safe(job)).map(|(number, _)| *number).collect();
        for number in ready {
            let job = self.running.as_mut().and_then(|running| running.jobs.get_mut(&number));
            if let Some((_, actions)) = job.and_then(|job| job.waits.take()) {
                self.act(number, actions, shared);
            }
        }
        self.settle(shared);
    }

    pub fn woken(&mut self, shared: &mut Shared) {
        let running = self.running.as_mut().expect("it is current");
        if shared.at >= running.retry {
            running.retry = u64::MAX;
            let again = running.ledger.retry(shared.now().mono);
            self.push(again, shared);
            self.settle(shared);
        }
    }

    pub fn job_woken(&mut self, number: u64, shared: &mut Shared) {
        let Some(job) = self.running.as_mut().and_then(|running| running.jobs.get_mut(&number)) else { return };
        if shared.at < job.wake {
            return;
        }
        job.wake = u64::MAX;
        self.drive(number, Input::Tick, shared);
    }

    pub fn beat(&mut self, shared: &mut Shared) {
        let running = self.running.as_mut().expect("it is current");
        if running.link.is_ready() {
            let text = ValidatorToFacilitator::from(V0Heartbeat).encode();
            running.link.push(Outgoing::once(text), shared).expect("there is room");
        }
        shared.after(60 * SECOND, Event::Beat(self.process()));
    }

    /// Nothing is left of any job but what is remembered.
    pub fn check(&mut self) {
        self.flush();
        let (number, running) = (self.number, self.running.as_ref().expect("it runs"));
        let counts = running.ledger.counts();
        assert_eq!((counts.unsent, counts.unsent_bytes, counts.open_jobs), (0, 0, 0), "validator {number}");
        assert_eq!(counts.dead, 0, "validator {number}: nothing was refused for so long");
        assert!(running.batch.is_none() && !running.ledger.is_dirty());
        assert!(running.jobs.is_empty() && running.links.is_empty(), "validator {number}");
        assert!(running.link.outbox.is_empty(), "validator {number}");
        assert_eq!(running.ledger.next_retry(), None);
        let views = running.routing.miners(&|_| None, std::time::Instant::now());
        assert!(views.iter().all(|miner| miner.running.is_empty()), "validator {number}: {views:?}");
        for row in self.flushed.values() {
            let record = JobRecord::decode(row).expect("it was written so");
            assert!(record.ended && record.updates.is_empty(), "validator {number}: {}", number_of(&record.uuid));
        }
    }
}

fn step(uuid: &str, status: JobStatus) -> Utf8Bytes {
    let update = V0JobStatusUpdate { uuid: uuid.to_owned(), status, metadata: None };
    ValidatorToFacilitator::from(update).encode().into()
}
