//! The facilitator: its router, with the book as its database.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use phalanx::base::ids::SessionId;
use phalanx::facilitator::router::{
    Action, Change, Dispatch, Frame, Input, Router, RouterConfig, RouterStatus, job_time,
};
use phalanx::identity::PublicKey;
use phalanx::protocol::{FacilitatorToValidator, JobStatus, SignedRequest};
use phalanx::store::jobs::{NewStatus, StatusOutcome};
use phalanx::transport::Utf8Bytes;

use super::book::{Fault, Job, number_of, uuid_of};
use super::clock::{Event, MS, Node, Process, SECOND, Shared};
use super::disk::Disk;
use super::network::{Ending, Side};
use super::world::REQUEST;

/// Jobs that may wait for their validators, as of `facilitator/waiting.rs`.
const WAITING: usize = 4096;

/// As in `facilitator/config.rs`.
pub const CONFIG: RouterConfig = RouterConfig {
    heartbeat_limit: Duration::from_secs(180),
    received_limit: Duration::from_secs(60),
    silence_margin: Duration::from_secs(300),
    auth_limit: Duration::from_secs(30),
    ghost_limit: Duration::from_secs(600),
};

/// A place among the waiting jobs.
#[derive(Debug)]
pub struct Ticket(Rc<Cell<usize>>);

impl Ticket {
    fn new(waiting: &Rc<Cell<usize>>) -> Self {
        waiting.set(waiting.get() + 1);
        Self(waiting.clone())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

enum Write {
    Job(usize),
    Status { session: Option<SessionId>, status: NewStatus },
}

pub struct Facilitator {
    life: u32,
    router: Option<Router<Ticket>>,
    /// What its pages show, brought up to date at each event.
    shown: Option<RouterStatus>,
    disk: Disk<Write>,
    waiting: Rc<Cell<usize>>,
    wake: u64,
    job_time: Duration,
}

impl Facilitator {
    pub fn new(shared: &mut Shared) -> Self {
        let FacilitatorToValidator::V2JobRequest(request) = FacilitatorToValidator::decode(REQUEST).unwrap() else {
            panic!("it is a request")
        };
        let mut facilitator = Self {
            life: 0,
            router: None,
            shown: None,
            disk: Disk::default(),
            waiting: Rc::default(),
            wake: u64::MAX,
            job_time: job_time(&request),
        };
        facilitator.start(shared);
        facilitator
    }

    fn process(&self) -> Process {
        Process { node: Node::Facilitator, life: self.life }
    }

    /// The process that answers, if one does.
    pub fn listens(&self) -> Option<Process> {
        self.router.is_some().then(|| self.process())
    }

    /// A process begins with what is on the disk.
    pub fn start(&mut self, shared: &mut Shared) {
        self.waiting = Rc::default();
        let validators = shared.keys.validators.iter().map(|validator| validator.public);
        let mut router = Router::new(CONFIG, validators);
        let now = shared.now();
        for (number, job) in shared.book.jobs.iter().enumerate().filter(|(_, job)| job.is_stored && job.end.is_none()) {
            let (uuid, validator) = (uuid_of(number), shared.keys.validators[job.validator as usize].public);
            router.handle(
                match &job.request {
                    Some(_) if shared.config.forgets => continue,
                    Some(text) => {
                        let (text, ticket) = (text.to_string(), Ticket::new(&self.waiting));
                        Input::Dispatch(Dispatch { uuid, validator, text, job_time: self.job_time, ticket })
                    }
                    None => {
                        let silent_for = Duration::from_micros(shared.at - job.last_at);
                        Input::Resume { uuid, validator, job_time: self.job_time, silent_for }
                    }
                },
                now,
            );
        }
        self.shown = Some(router.status());
        self.router = Some(router);
        self.wake = u64::MAX;
        self.arm(shared);
    }

    /// It is killed.
    pub fn kill(&mut self, shared: &mut Shared) {
        if self.router.take().is_none() {
            return;
        }
        shared.book.fault(Fault::FacilitatorKilled);
        self.life += 1;
        let (writing, waiting) = self.disk.crash();
        let is_durable = shared.rng.one_in(2);
        for (write, is_durable) in
            writing.into_iter().map(|w| (w, is_durable)).chain(waiting.into_iter().map(|w| (w, false)))
        {
            if let Write::Job(_) = &write {
                // Its user gets no answer either way.
                let again = shared.between(SECOND, 5 * SECOND);
                shared.after(again, Event::SubmitAgain);
            }
            if is_durable {
                store(write, shared);
            }
        }
        shared.died(Node::Facilitator);
        let down = shared.between(SECOND, 10 * SECOND);
        shared.after(down, Event::Start(Node::Facilitator));
    }

    /// A user submits a job.
    pub fn submit(&mut self, shared: &mut Shared) {
        if self.router.is_none() || self.waiting.get() > WAITING {
            shared.book.turned_away += 1;
            let again = shared.between(SECOND, 5 * SECOND);
            return shared.after(again, Event::SubmitAgain);
        }
        let number = shared.book.jobs.len();
        let validator = u32::try_from(shared.between(0, shared.keys.validators.len() as u64)).unwrap();
        let Ok(FacilitatorToValidator::V2JobRequest(mut request)) = FacilitatorToValidator::decode(REQUEST) else {
            panic!("it is a request")
        };
        request.uuid = uuid_of(number);
        request.sign(&shared.keys.user, u64::try_from(shared.now().wall.as_nanos()).unwrap());
        let text = FacilitatorToValidator::from(request).encode();
        shared.book.jobs.push(Job::new(validator, text));
        self.disk.put(Write::Job(number));
        self.write(shared);
    }

    pub fn opened(&mut self, session: u64, shared: &mut Shared) {
        let (peer, version) = ("10.0.0.1:4000".to_owned(), "1".to_owned());
        self.handle(Input::Opened { id: SessionId(session), peer, version }, shared);
    }

    pub fn text(&mut self, session: u64, text: &Utf8Bytes, shared: &mut Shared) {
        self.handle(Input::Frame(SessionId(session), Frame::read(text)), shared);
    }

    pub fn ended(&mut self, session: u64, ending: Ending, shared: &mut Shared) {
        if ending == Ending::Close {
            shared.answer_close(session, Side::Client);
        }
        self.handle(Input::Closed(SessionId(session)), shared);
    }

    pub fn woken(&mut self, of: Process, shared: &mut Shared) {
        if of == self.process() && shared.at >= self.wake {
            self.wake = u64::MAX;
            self.handle(Input::Tick, shared);
        }
    }

    /// A transaction is on the disk.
    pub fn written(&mut self, of: Process, shared: &mut Shared) {
        if of != self.process() {
            return;
        }
        for write in self.disk.done() {
            let input = store(write, shared);
            if let Stored::Job(number) = input {
                let job = &mut shared.book.jobs[number];
                job.is_acknowledged = true;
                let validator = shared.keys.validators[job.validator as usize].public;
                let text = job.request.as_deref().expect("nobody has reported anything of it").to_owned();
                let (uuid, ticket) = (uuid_of(number), Ticket::new(&self.waiting));
                self.handle(
                    Input::Dispatch(Dispatch { uuid, validator, text, job_time: self.job_time, ticket }),
                    shared,
                );
            } else if let Stored::Status { session, outcome, ended } = input {
                self.handle(Input::Stored { session, outcome: Some(outcome), ended }, shared);
            }
        }
        self.write(shared);
    }

    fn write(&mut self, shared: &mut Shared) {
        if self.disk.begin() {
            let time = shared.between(300, 3 * MS);
            shared.after(time, Event::Written(self.process()));
        }
    }

    fn handle(&mut self, input: Input<Ticket>, shared: &mut Shared) {
        let Some(router) = &mut self.router else { return };
        let actions = router.handle(input, shared.now());
        if let Some(shown) = &mut self.shown {
            router.show(shown);
        }
        for action in actions {
            match action {
                Action::Send(id, text) => shared.send(id.0, Side::Client, text.into()),
                Action::Close(id, _) => shared.close(id.0, Side::Server),
                Action::Store(Change::Status { session, status }) => self.disk.put(Write::Status { session, status }),
                Action::Store(Change::Specs(_)) | Action::Known(_) | Action::Handled(..) | Action::Note(_) => {}
                Action::Error(..) => {}
                Action::Poison(id, kind, why) => panic!("{id}: {kind:?}: {why}"),
            }
        }
        self.write(shared);
        self.arm(shared);
    }

    fn arm(&mut self, shared: &mut Shared) {
        let Some(due) = self.router.as_ref().and_then(Router::next_wake) else { return };
        let due = shared.moment(due);
        if due < self.wake {
            self.wake = due;
            shared.plan(due, Event::Wake(self.process()));
        }
    }

    /// With nobody connected it waits for nothing.
    pub fn check(&mut self, shared: &mut Shared) {
        for session in shared.connections.of(|end| end.of == self.process()) {
            self.handle(Input::Closed(SessionId(session)), shared);
        }
        let router = self.router.as_ref().expect("it runs");
        assert_eq!((router.next_wake(), router.status().waiting_jobs, self.waiting.get()), (None, 0, 0));
        assert!(router.is_settled());
        assert!(router.status().sessions.is_empty());
        let known: Vec<PublicKey> = router.status().seen.keys().copied().collect();
        assert!(known.len() <= shared.keys.validators.len());
    }
}

enum Stored {
    Job(usize),
    Status { session: Option<SessionId>, outcome: StatusOutcome, ended: Option<String> },
}

/// What `store/jobs` does with a change, and `facilitator/disk.rs` says of it.
fn store(write: Write, shared: &mut Shared) -> Stored {
    let (session, NewStatus { uuid, validator, status, terminal, .. }) = match write {
        Write::Job(number) => {
            shared.book.stored(number, shared.at);
            return Stored::Job(number);
        }
        Write::Status { session, status } => (session, status),
    };
    let (number, status): (_, JobStatus) = (number_of(&uuid), status.parse().expect("it was read"));
    let book = &mut shared.book;
    let is_known = book
        .jobs
        .get(number)
        .is_some_and(|job| job.is_stored && shared.keys.validators[job.validator as usize].hotkey == validator);
    let outcome = match is_known {
        false => StatusOutcome::NotFound,
        true if book.has(number, status) => StatusOutcome::Duplicate,
        true if book.jobs[number].end.is_some() => StatusOutcome::StoredLate,
        true => StatusOutcome::Stored,
    };
    match outcome {
        StatusOutcome::Stored => book.status(number, status, shared.at),
        StatusOutcome::StoredLate => book.late(number, status),
        StatusOutcome::Duplicate => book.repeated += 1,
        StatusOutcome::NotFound => book.unknown += 1,
    }
    let has_ended = match outcome {
        StatusOutcome::Stored | StatusOutcome::Duplicate => terminal,
        StatusOutcome::StoredLate => true,
        StatusOutcome::NotFound => false,
    };
    Stored::Status { session, outcome, ended: has_ended.then_some(uuid) }
}
