//! What one event costs a state machine, by how much there is in it: where that grows, a large horde ends.

use std::time::{Duration, Instant};

use phalanx::base::ids::SessionId;
use phalanx::base::now::Now;
use phalanx::facilitator::router::{Dispatch, Frame, Input, Router};
use phalanx::identity::{KeyPair, PublicKey};
use phalanx::link::Kind;
use phalanx::miner::executor_manager::Owner;
use phalanx::miner::router::{self as miner, Action, JobKey, Peer, ValidatorFrame};
use phalanx::protocol::{
    DateTime, ExecutorTimingDetails, JobStartedReceiptPayload, JobStatus, Receipt, V0InitialJobRequest,
    ValidatorAuthForMiner, ValidatorToMiner,
};
use phalanx::validator::ledger::{Ledger, LedgerLimits, Reply, RetryPolicies};
use phalanx::validator::routing::{Ask, HALF_LIFE, MinerAddress, Routing};

use super::book::uuid_of;
use super::facilitator;
use super::machine::{self, CLASS};
use super::page::processor_time;

/// Events of one measurement.
const EVENTS: usize = 300;

fn key(number: usize) -> PublicKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    PublicKey::from_bytes(bytes)
}

/// A moment so many milliseconds after the beginning.
fn moment(base: Instant, ms: usize) -> Now {
    let since = Duration::from_millis(ms as u64);
    Now { mono: base + since, wall: Duration::from_secs(1_800_000_000) + since }
}

/// The processor time of one event, in microseconds.
fn each(mut event: impl FnMut(usize)) -> f64 {
    let began = processor_time();
    (0..EVENTS).for_each(&mut event);
    (processor_time() - began).as_secs_f64() * 1e6 / EVENTS as f64
}

/// A facilitator with so many validators connected and so many jobs that wait for others.
fn facilitator_of(sessions: usize, waiting: usize, base: Instant) -> Router<()> {
    let absent = key(sessions);
    let mut router = Router::new(facilitator::CONFIG, (0..=sessions).map(key));
    for n in 0..sessions {
        let id = SessionId(n as u64 + 1);
        router.handle(Input::Opened { id, peer: "10.0.0.1:4000".into(), version: "1".into() }, moment(base, 0));
        router.handle(Input::Frame(id, Frame::Authentication(Ok(key(n)))), moment(base, 0));
    }
    for n in 0..waiting {
        let (uuid, text, job_time) = (uuid_of(n), "{}".to_owned(), Duration::from_secs(600));
        let dispatch = Dispatch { uuid, validator: absent, text, job_time, ticket: () };
        router.handle(Input::Dispatch(dispatch), moment(base, 0));
    }
    router
}

fn heartbeat(sessions: usize, waiting: usize) -> f64 {
    let base = Instant::now();
    let mut router = facilitator_of(sessions, waiting, base);
    let mut shown = router.status();
    router.show(&mut shown);
    each(|n| {
        let id = SessionId((n % sessions) as u64 + 1);
        router.handle(Input::Frame(id, Frame::Heartbeat), moment(base, n));
        router.show(&mut shown);
    })
}

fn reconnect(sessions: usize) -> f64 {
    let base = Instant::now();
    let mut router = facilitator_of(sessions, 0, base);
    // Half of them have been here.
    (0..sessions / 2).for_each(|n| drop(router.handle(Input::Closed(SessionId(n as u64 + 1)), moment(base, 0))));
    let mut shown = router.status();
    router.show(&mut shown);
    each(|n| {
        let (validator, id) = (key(n % (sessions / 2)), SessionId((sessions + n) as u64 + 1));
        let now = moment(base, n);
        for input in [
            Input::Opened { id, peer: "10.0.0.1:4000".into(), version: "1".into() },
            Input::Frame(id, Frame::Authentication(Ok(validator))),
            Input::Closed(id),
        ] {
            router.handle(input, now);
            router.show(&mut shown);
        }
    })
}

fn choice(miners: usize) -> f64 {
    let base = Instant::now();
    let address = |n| MinerAddress { hotkey: key(n), address: String::new(), port: 1, trusted: false, tls: false };
    let mut routing = Routing::new((0..miners).map(address).collect(), HALF_LIFE);
    for n in 0..miners {
        routing.manifest(&key(n), [(CLASS, 2)].into(), base);
        // Every other one has a past.
        (0..n % 2).for_each(|_| routing.completed(&key(n), base));
    }
    each(|n| {
        let now = moment(base, n * 100).mono;
        let ask = Ask { class: CLASS, trusted: false, tried: &[], is_open: &|_| false };
        let miner = routing.reserve(&ask, now).expect("there is room").hotkey;
        routing.manifest(&miner, [(CLASS, 2)].into(), now);
        routing.completed(&miner, now);
        routing.release(&miner, CLASS);
    })
}

fn update(open: usize) -> f64 {
    let base = Instant::now();
    let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
    let jobs: Vec<u64> = (0..open).map(|n| ledger.take(&uuid_of(n), false, moment(base, 0)).unwrap()).collect();
    each(|n| {
        let now = moment(base, n);
        let job = ledger.take(&uuid_of(jobs.len() + n), false, now).expect("it is new");
        for status in [JobStatus::Received, JobStatus::Completed] {
            assert!(ledger.accept(job, status, status.as_str().into(), now).unwrap().1.is_none());
            let batch = ledger.batch();
            let mut ready = ledger.written(&batch);
            ready.extend(ledger.synced(&batch));
            for message in ready {
                let Kind::Kept { tag } = message.kind else { panic!("it is kept") };
                ledger.settle(tag, &Reply::Stored, now);
            }
        }
    })
}

/// A miner with so many jobs whose executors start, and so many validators connected.
fn miner_of(validators: usize, jobs: usize, base: Instant) -> miner::Router {
    let pairs: Vec<KeyPair> = (0..validators).map(|n| KeyPair::from_seed([n as u8 + 1; 32])).collect();
    let pair = KeyPair::from_seed([250; 32]);
    let hotkey = pair.ss58();
    let mut config = machine::config(pair.clone(), jobs.max(1) as u32);
    config.validators = pairs.iter().map(KeyPair::public).collect();
    let owner = Owner { miner: hotkey.clone(), instance: "one".to_owned(), epoch: 1 };
    let mut router = miner::Router::new(&config, "ws://miner".to_owned(), owner);
    let now = moment(base, 0);
    let frame =
        |text: ValidatorToMiner, by: &KeyPair| Box::new(ValidatorFrame::read(&text.encode(), Some(by.public())));
    for (n, by) in pairs.iter().enumerate() {
        let (id, peer) = (SessionId(n as u64 + 1), Peer::Validator(by.ss58()));
        router.handle(miner::Input::Opened { id, peer, address: None }, now);
        let hello = ValidatorAuthForMiner::sign(by, &hotkey, now.unix_seconds());
        router.handle(miner::Input::FromValidator(id, frame(hello.into(), by)), now);
    }
    for n in 0..jobs {
        let by = &pairs[n % pairs.len()];
        let asked = miner::Input::FromValidator(
            SessionId((n % pairs.len()) as u64 + 1),
            frame(initial(n, by, &hotkey, now).into(), by),
        );
        for action in router.handle(asked, now) {
            let Action::Store { job, number, payload, validator_signature, .. } = action else { continue };
            let miner_signature = payload.sign(&pair);
            let receipt = Box::new(Receipt { payload, validator_signature, miner_signature });
            router.handle(miner::Input::Stored { job, number, result: Ok((receipt, true)) }, now);
        }
    }
    router
}

fn initial(n: usize, by: &KeyPair, miner: &str, now: Now) -> V0InitialJobRequest {
    let payload = JobStartedReceiptPayload {
        job_uuid: uuid_of(n),
        miner_hotkey: miner.to_owned(),
        validator_hotkey: by.ss58(),
        timestamp: DateTime::from_unix_micros(now.unix_micros()),
        executor_class: CLASS,
        is_organic: true,
        ttl: 30,
    };
    V0InitialJobRequest {
        validator_signature: None,
        job_uuid: uuid_of(n),
        executor_class: CLASS,
        docker_image: Some("image".to_owned()),
        timeout_seconds: None,
        volume: None,
        job_started_receipt_signature: payload.sign(by),
        job_started_receipt_payload: payload,
        streaming_details: None,
        executor_timing: Some(ExecutorTimingDetails {
            allowed_leeway: 1.into(),
            download_time_limit: 1.into(),
            execution_time_limit: 1.into(),
            upload_time_limit: 1.into(),
            streaming_start_time_limit: 1.into(),
        }),
    }
}

fn miner_event(validators: usize, jobs: usize) -> f64 {
    let base = Instant::now();
    let mut router = miner_of(validators, jobs, base);
    each(|n| {
        let key = JobKey { validator: String::new(), uuid: String::new() };
        let unknown =
            miner::Input::Stored { job: key, number: n as u64, result: Err("nobody waits for it".to_owned()) };
        std::hint::black_box(router.handle(unknown, moment(base, 1)));
        std::hint::black_box((router.next_wake(), router.status()));
    })
}

/// A row of the table: what, and the time with so much in it.
fn row(what: &str, sizes: &[usize], cost: impl Fn(usize) -> f64) {
    let cells: Vec<String> = sizes.iter().map(|size| format!("{:.1} ({size})", cost(*size))).collect();
    println!("{what}: {} µs", cells.join(", "));
}

/// Not judged: a busy machine makes all of it slow. The table of `docs/simulation.md` is from here.
#[test]
fn what_one_event_costs_by_how_much_there_is() {
    let large = std::env::var("PHALANX_SIMULATE").is_ok_and(|words| words == "large");
    let to = |most: usize| if large { vec![most / 100, most / 10, most] } else { vec![most / 100] };
    row("facilitator: a heartbeat, by validators", &to(10_000), |n| heartbeat(n, 0));
    row("facilitator: a heartbeat, by jobs that wait for others", &to(4_000), |n| heartbeat(100, n));
    row("facilitator: a validator comes and goes, by validators", &to(10_000), reconnect);
    row("validator: a miner is chosen and completes, by miners", &to(10_000), choice);
    row("validator: a job of two updates, by open jobs", &to(10_000), update);
    row("miner: an event, by validators", &to(200), |n| miner_event(n, 0));
    row("miner: an event, by running jobs", &to(1_000), |n| miner_event(2, n));
}
