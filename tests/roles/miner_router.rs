//! The miner's decisions, without threads or clocks: every way a job can go, with time moved by hand.

use crate::miner_fixture::{Fixture, GONE, UNIX, Unused};
use crate::testkit::miner as miner_kit;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use miner_kit::{CLASS, Pen, SECOND, Says, kind, uuid};
use phalanx::base::ids::SessionId;
use phalanx::base::rng::Rng;
use phalanx::base::shutdown::Level;
use phalanx::miner::executor_manager::{ExecutorError, ExecutorExit, Leftover, LeftoverKind};
use phalanx::miner::executor_pool::SlotCounts;
use phalanx::miner::router::{CLOSE_NORMAL, Counted, ExecutorFrame, Input, Peer, Settings};
use phalanx::miner::{HostConfig, MinerLimits};
use phalanx::proc::docker::EngineAddress;
use phalanx::protocol::{
    ExecutorTimingDetails, MinerToValidator, StreamingDetails, V0StreamingJobReadyRequest, ValidatorToMiner,
};

#[test]
fn a_whole_job_passes_and_leaves_nothing() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    assert_eq!(f.started[0].miner_address, "ws://miner:1");
    assert!(token.starts_with(&job));
    f.says(session, &alice.accepted_receipt(&job));
    f.reports(executor, &Says(&job).volumes());
    f.reports(executor, &Says(&job).done());
    f.reports(executor, &Says(&job).finished("hi"));
    assert_eq!(f.got(session), ["VolumesReady", "ExecutionDone", "JobFinished"]);
    f.says(session, &alice.finished_receipt(&job));
    assert_eq!((f.free(), f.slots().ending), (0, 1));
    f.handle(Input::Closed(executor));
    f.ended(&token, GONE);
    assert_eq!(f.free(), 1);
    assert_eq!(f.stored, 3);
    assert_eq!(f.router.next_wake(), None, "a confirmed job leaves nothing behind");
    let trace = f.traces.of(&job).remove(0);
    assert_eq!(trace.executor_class.as_deref(), Some("always_on.test"));
    let events: Vec<_> = trace.events.iter().map(|line| format!("{:?} {}", line.event, line.detail)).collect();
    assert_eq!(
        events,
        [
            "Asked ",
            "Accepted sent",
            "ExecutorConnected ",
            "InitialSent ",
            "ExecutorReady sent",
            "Requested ",
            "RequestSent ",
            "Confirmed Accepted",
            "VolumesReady sent",
            "ExecutionDone sent",
            "Ended sent",
            "Confirmed Ended",
            "ExecutorEnded the executor ended with exit code 0",
        ]
    );
    let status = f.router.status();
    assert_eq!((status.jobs, status.ended, status.connected_executors), (0, 0, 0));
    assert_eq!(f.told_to_end, Vec::<String>::new());
}

#[test]
fn a_request_that_comes_before_the_executor_is_ready_waits_for_it() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let token = f.accepted(session, &job);
    f.says(session, &alice.request(&job));
    let executor = f.executor(&token);
    assert_eq!(f.got(executor), ["InitialJob"]);
    f.reports(executor, &Says(&job).ready());
    assert_eq!(f.got(executor), ["Job"]);
    // The first request is the job; a repeat is not passed on.
    f.says(session, &alice.request(&job));
    assert_eq!(f.got(executor), Vec::<String>::new());
}

#[test]
fn a_job_that_its_validator_gives_up_before_it_is_to_run_has_an_executor_no_longer() {
    for is_ready in [false, true] {
        let (mut f, alice, session) = Fixture::with_alice(1);
        let job = uuid();
        let token = f.accepted(session, &job);
        let executor = f.executor(&token);
        if is_ready {
            f.reports(executor, &Says(&job).ready());
        }
        f.says(session, &alice.accepted_receipt(&job));
        f.pass(Duration::ZERO);
        assert_eq!((f.told_to_end.len(), f.free()), (0, 0));
        f.says(session, &alice.finished_receipt(&job));
        f.pass(Duration::ZERO);
        assert_eq!(f.told_to_end, std::slice::from_ref(&token));
        f.ended(&token, GONE);
        let status = f.router.status();
        assert_eq!((f.free(), status.jobs, status.ended), (1, 0, 0), "ready: {is_ready}");
    }
    // One that runs has its executor until its end.
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    f.running(session, &job);
    f.says(session, &alice.finished_receipt(&job));
    f.pass(Duration::ZERO);
    assert_eq!((f.told_to_end.len(), f.free()), (0, 0));
}

#[test]
fn a_streaming_job_carries_addresses_and_the_miners_signature() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    f.says(session, &alice.ask_streaming(&job));
    let token = f.started[0].token.clone();
    let executor = f.executor(&token);
    let initial = f.texts(executor).remove(0);
    assert!(initial.contains(r#""executor_ip":"10.0.0.9""#), "{initial}");
    assert!(initial.contains(r#""validator_signature":null"#), "the validator did not sign the address: {initial}");
    f.reports(executor, &Says(&job).ready());
    f.says(session, &alice.request(&job));
    f.reports(executor, &Says(&job).volumes());
    f.reports(executor, &Says(&job).streaming());
    let ready = f.texts(session).pop().unwrap();
    let MinerToValidator::V0StreamingJobReadyRequest(ready) = MinerToValidator::decode(&ready).unwrap() else {
        panic!("{ready}");
    };
    let V0StreamingJobReadyRequest { ip, .. } = &ready;
    assert_eq!(ip.as_deref(), Some("10.0.0.9"));
    ready.verify(alice.miner.public()).unwrap();
}

#[test]
fn authentication_is_bounded_in_time_and_in_what_may_wait_for_it() {
    let mut f = Fixture::new(1);
    let alice = f.alice.clone();
    for (skew, fine) in [(-11, false), (-10, true), (0, true), (10, true), (11, false)] {
        let id = f.dial(&alice);
        f.says(id, &alice.auth(UNIX + skew));
        let got = f.got(id);
        assert_eq!(got == ["ExecutorManifest"], fine, "{skew}: {got:?}");
        let off = if skew < 0 { "too old (11 s behind" } else { "from the future (11 s ahead of" };
        let says = format!("due to: msg {off} this miner's clock, at most 10 s)");
        assert_eq!(got[0].ends_with(&says), !fine, "{got:?}");
        assert_eq!(f.closed.contains_key(&id), !fine);
    }
    // A flood before authentication.
    let id = f.dial(&alice);
    for _ in 0..20 {
        f.says(id, &ValidatorToMiner::from(phalanx::protocol::V0MainHotkeyMessage { main_hotkey: None }).encode());
    }
    assert_eq!(f.closed.get(&id), Some(&1008));
    let got = f.got(id);
    assert_eq!(got.len(), 1, "{got:?}");
    assert!(got[0].contains("more than 16 messages"), "{got:?}");
    f.says(id, &alice.auth(UNIX));
    assert_eq!(f.got(id), Vec::<String>::new(), "a connection that was turned away stays so");
    // Silence.
    let id = f.dial(&alice);
    f.pass(f.limits.auth_time);
    assert_eq!(f.closed.get(&id), Some(&1008));
    // A stranger.
    let eve = Pen::new("//Eve");
    let id = f.dial(&eve);
    f.says(id, &eve.auth(UNIX));
    assert_eq!(f.got(id), [format!("! Unknown validator: {}", eve.key.ss58())]);
    assert_eq!(f.closed.get(&id), Some(&1000));
    assert_eq!(f.router.status().validators, 3);
}

#[test]
fn jobs_with_wrong_receipts_or_signatures_are_declined() {
    let mut f = Fixture::with(1, |config| config.blacklist = vec![Pen::new("//Charlie").key.public()]);
    let alice = f.alice.clone();
    let session = f.validator(&alice);
    let mut ask = |change: &dyn Fn(&mut phalanx::protocol::V0InitialJobRequest), sign: bool| {
        let mut initial = alice.initial(&uuid());
        change(&mut initial);
        if sign {
            initial.sign(&alice.key);
        }
        f.says(session, &ValidatorToMiner::from(initial).encode());
        f.got(session)
    };
    let forged = |initial: &mut phalanx::protocol::V0InitialJobRequest| {
        initial.job_started_receipt_payload.ttl += 1;
    };
    assert_eq!(ask(&forged, true), ["DeclineJob invalid_receipt"]);
    assert_eq!(ask(&|i| i.job_started_receipt_payload.job_uuid = uuid(), true), ["DeclineJob invalid_receipt"]);
    let other_class = phalanx::protocol::ExecutorClass::AlwaysOnGpu24gb;
    assert_eq!(
        ask(&|i| i.job_started_receipt_payload.executor_class = other_class, true),
        ["DeclineJob invalid_receipt"]
    );
    let for_another_miner = |initial: &mut phalanx::protocol::V0InitialJobRequest| {
        let payload = &mut initial.job_started_receipt_payload;
        payload.miner_hotkey = payload.validator_hotkey.clone();
        initial.job_started_receipt_signature = payload.sign(&Pen::new("//Alice").key);
    };
    assert_eq!(ask(&for_another_miner, true), ["DeclineJob invalid_receipt"]);
    let of_another = |initial: &mut phalanx::protocol::V0InitialJobRequest| {
        let payload = &mut initial.job_started_receipt_payload;
        payload.validator_hotkey = Pen::new("//Charlie").key.ss58();
        initial.job_started_receipt_signature = payload.sign(&Pen::new("//Charlie").key);
    };
    assert_eq!(ask(&of_another, true), ["DeclineJob invalid_receipt"]);
    assert_eq!(ask(&|i| i.docker_image = Some("changed".into()), false), ["DeclineJob invalid_signature"]);
    assert_eq!(ask(&|i| i.validator_signature = Some("zz".into()), false), ["DeclineJob invalid_signature"]);
    assert_eq!((f.free(), f.stored), (1, 0));
    // The older form has no signature over the message.
    let mut old = alice.initial(&uuid());
    old.validator_signature = None;
    f.says(session, &ValidatorToMiner::from(old).encode());
    assert_eq!(f.got(session), ["AcceptJob"]);
    let charlie = Pen::new("//Charlie");
    let session = f.validator(&charlie);
    f.says(session, &charlie.ask(&uuid()));
    assert_eq!(f.got(session), ["DeclineJob validator_blacklisted"]);
}

#[test]
fn a_job_whose_uuid_is_none_is_not_remembered() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let (long, longest) = ("u".repeat(129), "u".repeat(128));
    let mut ask = |job: &str| {
        let mut initial = alice.initial(job);
        initial.job_started_receipt_payload.job_uuid = uuid();
        initial.sign(&alice.key);
        f.says(session, &ValidatorToMiner::from(initial).encode());
        (f.got(session), f.traces.of(job).len())
    };
    let refused = "! Refused InitialJobRequest: the job_uuid has 129 bytes, more than the 128 that are taken";
    assert_eq!(ask(&long), (vec![refused.to_owned()], 0));
    assert_eq!(ask(&longest), (vec!["DeclineJob invalid_receipt".to_owned()], 1));
    f.says(session, &alice.request(&"u".repeat(5000)));
    assert_eq!(f.got(session), [format!("! Received JobRequest for unknown job_uuid: {longest}")]);
}

#[test]
fn a_job_whose_limits_together_are_too_long_is_declined_before_it_has_a_slot() {
    let alice = Pen::new("//Alice");
    let mut f = Fixture::with(8, |config| config.limits.max_job_time = Some(10 * SECOND));
    let session = f.validator(&alice);
    let mut ask = |limits: Option<[i64; 4]>, total: Option<i64>, streaming: bool| {
        let mut initial = alice.initial(&uuid());
        initial.executor_timing = limits.map(|[download, start, execution, upload]| ExecutorTimingDetails {
            // It is the network's.
            allowed_leeway: 5.into(),
            download_time_limit: download.into(),
            streaming_start_time_limit: start.into(),
            execution_time_limit: execution.into(),
            upload_time_limit: upload.into(),
        });
        initial.timeout_seconds = total.map(Into::into);
        let details = StreamingDetails { public_key: "pem".to_owned(), executor_ip: None };
        initial.streaming_details = streaming.then_some(details);
        initial.sign(&alice.key);
        f.says(session, &ValidatorToMiner::from(initial).encode());
        f.got(session)
    };
    let declined = ["DeclineJob unknown"];
    assert_eq!(ask(Some([2, 1, 7, 1]), None, false), ["AcceptJob"], "only a streaming job has a server that starts");
    assert_eq!(ask(Some([2, 1, 7, 1]), None, true), declined);
    assert_eq!(ask(Some([2, 0, 8, 1]), None, false), declined);
    assert_eq!(ask(Some([i64::MAX, 0, i64::MAX, 1]), None, false), declined);
    assert_eq!(ask(None, Some(10), false), ["AcceptJob"]);
    assert_eq!(ask(None, Some(11), false), declined);
    assert_eq!(ask(None, None, false), ["AcceptJob"], "one without limits has as much as there is");
    assert_eq!(f.free(), 5);
}

#[test]
fn a_second_half_with_a_wrong_signature_is_refused_and_the_right_one_still_works() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let token = f.accepted(session, &job);
    let executor = f.executor(&token);
    f.reports(executor, &Says(&job).ready());
    let mut forged = alice.full(&job);
    forged.docker_run_cmd = vec!["rm".into()];
    f.says(session, &ValidatorToMiner::from(forged).encode());
    let got = f.got(session);
    assert!(got[1].starts_with("! Refused JobRequest"), "{got:?}");
    assert_eq!(f.got(executor), ["InitialJob"]);
    f.says(session, &alice.request(&job));
    assert_eq!(f.got(executor), ["Job"]);
}

#[test]
fn receipts_that_do_not_check_are_refused_and_not_stored() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let charlie = Pen::new("//Charlie");
    for receipt in [charlie.accepted_receipt(&job), charlie.finished_receipt(&job)] {
        f.says(session, &receipt);
        let got = f.got(session);
        assert!(got[0].starts_with(&format!("! Invalid receipt for job {job}")), "{got:?}");
    }
    f.says(session, &alice.finished_receipt(&job).replace("\"time_took_us\":1", "\"time_took_us\":2"));
    assert!(f.got(session)[0].starts_with("! Invalid receipt"));
    assert_eq!(f.stored, 0);
    f.says(session, &alice.finished_receipt(&job));
    assert_eq!((f.got(session).len(), f.stored), (0, 1));
}

#[test]
fn a_repeated_request_starts_nothing_but_is_answered() {
    let (mut f, alice, session) = Fixture::with_alice(2);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    f.says(session, &alice.ask(&job));
    assert_eq!(f.got(session), ["AcceptJob"]);
    f.reports(executor, &Says(&job).finished(""));
    f.got(session);
    // Also when it is over, until the validator has confirmed that it knows.
    let other = f.validator(&alice);
    assert_eq!(f.got(other), Vec::<String>::new(), "the connection that asked is still there");
    f.says(other, &alice.ask(&job));
    assert_eq!(f.got(other), ["AcceptJob", "JobFinished"]);
    assert_eq!(f.started.len(), 1);
    // Another validator's job of the same name is another job.
    let charlie = Pen::new("//Charlie");
    let theirs = f.validator(&charlie);
    f.says(theirs, &charlie.request(&job));
    assert_eq!(f.got(theirs), [format!("! Received JobRequest for unknown job_uuid: {job}")]);
    let mut initial = charlie.initial(&job);
    initial.validator_signature = None;
    f.says(theirs, &ValidatorToMiner::from(initial).encode());
    assert_eq!(f.got(theirs), ["AcceptJob"]);
    f.ended(&token, GONE);
}

#[test]
fn a_job_that_an_earlier_process_started_is_not_started_again() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    f.store = || Some(Ok(false));
    f.says(session, &alice.ask(&uuid()));
    assert_eq!(f.got(session), ["DeclineJob unknown"]);
    f.store = || Some(Err("the disk is full".to_owned()));
    f.says(session, &alice.ask(&uuid()));
    assert_eq!(f.got(session), ["HordeFailed generic_error"], "it is the miner's trouble, not the job's");
    assert_eq!((f.free(), f.started.len()), (1, 0));
    assert!(f.router.is_idle());
}

#[test]
fn a_disk_that_hangs_holds_no_slot() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    f.store = || None;
    f.says(session, &alice.ask(&uuid()));
    f.pass(CLASS.spin_up_time() + f.limits.startup_time_limit);
    assert_eq!(f.got(session), ["HordeFailed generic_error"]);
    assert_eq!((f.free(), f.started.len()), (1, 0));
    // A stop does not wait for it either.
    f.says(session, &alice.ask(&uuid()));
    f.handle(Input::Stop(Level::Cancel));
    assert_eq!(f.got(session), ["DeclineJob busy"]);
    assert!(f.router.is_idle());
}

#[test]
fn what_a_disk_does_late_counts_for_no_other_request() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let too_late = CLASS.spin_up_time() + f.limits.startup_time_limit;
    f.store = || None;
    f.says(session, &alice.ask(&job));
    f.pass(too_late);
    assert_eq!(f.got(session), ["HordeFailed generic_error"]);
    let late = f.orders.remove(0);
    f.done(late, Ok(true));
    assert_eq!((f.started.len(), f.disk.len()), (0, 0), "nothing is left of the job that came with it");

    // It is asked for again in the meantime, and once more.
    f.says(session, &alice.ask(&job));
    f.pass(too_late);
    f.says(session, &alice.ask(&job));
    assert_eq!(f.got(session), ["HordeFailed generic_error"]);
    // Another receipt of the same job is not what it waits for either.
    f.says(session, &alice.finished_receipt(&job));
    let [first, second, other] = std::mem::take(&mut f.orders).try_into().ok().unwrap();
    f.done(first, Ok(true));
    f.done(other, Ok(true));
    assert_eq!((f.got(session), f.started.len()), (vec![], 0));
    f.done(second, Ok(false));
    assert_eq!((f.got(session), f.disk.len()), (vec!["DeclineJob unknown".to_owned()], 0));
    assert_eq!((f.free(), f.started.len()), (1, 0));
}

#[test]
fn a_busy_miner_declines_with_the_receipts_of_what_keeps_it_busy() {
    let (mut f, alice, session) = Fixture::with_alice(2);
    let jobs = [uuid(), uuid()];
    jobs.iter().for_each(|job| drop(f.accepted(session, job)));
    f.says(session, &alice.ask(&uuid()));
    let text = f.texts(session).remove(0);
    let MinerToValidator::V0DeclineJobRequest(decline) = MinerToValidator::decode(&text).unwrap() else {
        panic!("{text}");
    };
    let excuses: BTreeSet<_> = decline.receipts.iter().map(|receipt| receipt.payload.job_uuid().to_owned()).collect();
    assert_eq!(excuses, jobs.into());
    for receipt in decline.receipts {
        receipt.verify_validator().unwrap();
        receipt.verify_miner().unwrap();
    }
}

#[test]
fn a_job_waits_a_little_for_an_executor_that_is_about_to_end() {
    let mut f = Fixture::new(1);
    let (alice, job, next, late) = (f.alice.clone(), uuid(), uuid(), uuid());
    let session = f.validator(&alice);
    let (executor, token) = f.running(session, &job);
    f.says(session, &alice.ask(&next));
    assert_eq!(f.got(session), ["DeclineJob busy"], "an executor at work is not about to end");
    f.reports(executor, &Says(&job).finished(""));
    f.got(session);
    f.says(session, &alice.ask(&next));
    f.says(session, &alice.ask(&next));
    f.says(session, &alice.ask(&late));
    assert_eq!(f.got(session), ["DeclineJob busy"], "one waits for one slot");
    assert!(!f.router.is_idle());
    f.ended(&token, GONE);
    assert_eq!(f.got(session), ["AcceptJob"]);
    assert!(f.started[1].token.starts_with(&next));
    // The same, but the executor takes too long.
    let (executor, token) = {
        let token = f.started[1].token.clone();
        let executor = f.executor(&token);
        f.reports(executor, &Says(&next).ready());
        f.says(session, &alice.request(&next));
        (executor, token)
    };
    f.reports(executor, &Says(&next).finished(""));
    f.got(session);
    f.says(session, &alice.ask(&late));
    f.pass(f.limits.reservation_wait);
    assert_eq!(f.got(session), ["DeclineJob busy"]);
    // A validator that leaves no longer waits.
    f.says(session, &alice.ask(&uuid()));
    f.handle(Input::Closed(session));
    assert!(!f.router.is_idle(), "the last executor still cleans up");
    f.ended(&token, GONE);
    assert!(f.router.is_idle());
}

#[test]
fn an_executor_that_never_comes_or_never_gets_ready_fails_its_job() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let startup = CLASS.spin_up_time() + f.limits.startup_time_limit;
    for connects in [false, true] {
        let job = uuid();
        let token = f.accepted(session, &job);
        let executor = connects.then(|| f.executor(&token));
        f.pass(startup - SECOND);
        assert_eq!(f.got(session), Vec::<String>::new());
        f.pass(SECOND);
        assert_eq!(f.got(session), ["HordeFailed executor_spinup_failed"]);
        assert_eq!(f.told_to_end.pop(), Some(token.clone()));
        if let Some(executor) = executor {
            assert_eq!(f.closed.get(&executor), Some(&1000));
            f.handle(Input::Closed(executor));
        }
        f.ended(&token, Ok(ExecutorExit::Signal(15)));
        assert_eq!(f.free(), 1);
        f.says(session, &alice.finished_receipt(&job));
    }
    let token = f.accepted(session, &uuid());
    f.ended(&token, Err(ExecutorError::Other("no such image".to_owned())));
    let text = f.texts(session).remove(0);
    assert_eq!(kind(&text), "HordeFailed executor_spinup_failed");
    assert!(text.contains("no such image") && text.contains(r#""reported_by":"miner""#), "{text}");
    assert_eq!(f.free(), 1);
}

#[test]
fn every_stage_has_its_limit_and_its_reason() {
    let stages: [(usize, &str); 4] = [
        (0, "volumes_timed_out"),
        (1, "streaming_job_ready_timed_out"),
        (2, "execution_timed_out"),
        (3, "final_response_timed_out"),
    ];
    for (reached, reason) in stages {
        let mut f = Fixture::new(1);
        let (alice, job) = (f.alice.clone(), uuid());
        let session = f.validator(&alice);
        f.says(session, &alice.ask_streaming(&job));
        let token = f.started[0].token.clone();
        let executor = f.executor(&token);
        f.reports(executor, &Says(&job).ready());
        f.says(session, &alice.request(&job));
        let says = Says(&job);
        for text in [says.volumes(), says.streaming(), says.done()].iter().take(reached) {
            f.reports(executor, text);
        }
        f.got(session);
        // The leeway of the job, a second for each stage begun, and the miner's own leeway.
        let limit = SECOND * (2 + reached as u32) + f.limits.leeway;
        f.pass(limit - Duration::from_millis(1));
        assert_eq!(f.got(session), Vec::<String>::new(), "{reason}");
        f.pass(Duration::from_millis(1));
        assert_eq!(f.got(session), [format!("HordeFailed {reason}")]);
        assert_eq!(f.told_to_end, [token]);
    }
}

#[test]
fn other_settings_count_from_then_on_and_what_runs_goes_on() {
    let mut f = Fixture::new(3);
    let (alice, charlie) = (f.alice.clone(), Pen::new("//Charlie"));
    let (session, theirs) = (f.validator(&alice), f.validator(&charlie));
    let job = uuid();
    let (executor, _) = f.running(session, &job);
    let validators = vec![alice.key.public()];
    let limits = MinerLimits { reconnect_grace: 5 * SECOND, ..f.limits };
    let settings = Settings { validators, blacklist: vec![alice.key.public()], limits, ..f.settings() };
    f.handle(Input::Settings(Box::new(settings)));
    assert_eq!(
        f.texts(theirs),
        [format!(r#"{{"message_type":"GenericError","details":"Unknown validator: {}"}}"#, charlie.key.ss58())]
    );
    assert_eq!((f.closed.get(&theirs), f.closed.get(&session)), (Some(&CLOSE_NORMAL), None));
    let late = f.open(Peer::Validator(charlie.key.ss58()), None);
    assert_eq!(f.closed.get(&late), Some(&CLOSE_NORMAL));

    f.says(session, &alice.ask(&uuid()));
    assert_eq!(f.got(session), ["DeclineJob validator_blacklisted"]);
    f.reports(executor, &Says(&job).volumes());
    assert_eq!(f.got(session), ["VolumesReady"]);
    f.handle(Input::Closed(executor));
    f.pass(6 * SECOND);
    assert_eq!(f.got(session), ["HordeFailed executor_disconnected"]);
}

#[test]
fn an_executor_is_not_kept_for_a_validator_that_never_sends_the_request() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let token = f.accepted(session, &job);
    let executor = f.executor(&token);
    f.reports(executor, &Says(&job).ready());
    f.handle(Input::Closed(session));
    f.pass(f.limits.request_time);
    assert_eq!(f.told_to_end, std::slice::from_ref(&token));
    f.handle(Input::Closed(executor));
    f.ended(&token, GONE);
    assert_eq!(f.free(), 1);
    // What happened is kept for a while, then forgotten.
    let back = f.validator(&alice);
    assert_eq!(f.got(back), ["AcceptJob", "ExecutorReady", "HordeFailed unhandled_timeout"]);
    f.pass(f.limits.result_time);
    assert_eq!((f.router.status().ended, f.router.next_wake()), (0, None));
}

#[test]
fn a_result_that_comes_while_the_validator_is_away_is_delivered() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    f.handle(Input::Closed(session));
    f.reports(executor, &Says(&job).volumes());
    f.reports(executor, &Says(&job).done());
    f.reports(executor, &Says(&job).finished("late"));
    f.handle(Input::Closed(executor));
    f.ended(&token, GONE);
    assert_eq!(f.free(), 1, "an absent validator holds no slot");
    let charlie = Pen::new("//Charlie");
    let theirs = f.validator(&charlie);
    assert_eq!(f.got(theirs), Vec::<String>::new());
    let back = f.validator(&alice);
    assert_eq!(f.got(back), ["VolumesReady", "ExecutionDone", "JobFinished"]);
    // Not confirmed, so it is reported again.
    f.handle(Input::Closed(back));
    let back = f.validator(&alice);
    assert_eq!(f.got(back), ["VolumesReady", "ExecutionDone", "JobFinished"]);
    f.says(back, &alice.finished_receipt(&job));
    f.handle(Input::Closed(back));
    let back = f.validator(&alice);
    assert_eq!(f.got(back), Vec::<String>::new());
}

#[test]
fn what_was_sent_into_a_dead_connection_is_sent_to_the_one_that_replaced_it() {
    let mut f = Fixture::new(2);
    let (alice, job, other_job) = (f.alice.clone(), uuid(), uuid());
    let dead = f.validator(&alice);
    let (executor, _) = f.running(dead, &job);
    let back = f.validator(&alice);
    // A third connection is busy with a job of its own, so it is not the one that came back.
    let other = f.validator(&alice);
    f.accepted(other, &other_job);
    f.reports(executor, &Says(&job).volumes());
    f.reports(executor, &Says(&job).finished("x"));
    assert_eq!(f.got(dead), ["VolumesReady", "JobFinished"]);
    assert_eq!(f.got(back), Vec::<String>::new());
    f.handle(Input::Closed(dead));
    assert_eq!(f.got(back), ["VolumesReady", "JobFinished"]);
    assert_eq!(f.got(other), Vec::<String>::new());
}

#[test]
fn an_executor_that_comes_back_in_time_resumes() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let token = f.accepted(session, &job);
    // Lost before it was ready: it may not have the first half.
    let first = f.executor(&token);
    f.handle(Input::Closed(first));
    let second = f.executor(&token);
    assert_eq!(f.got(second), ["InitialJob"]);
    f.reports(second, &Says(&job).ready());
    f.says(session, &alice.request(&job));
    // Lost while the request may be on its way.
    f.handle(Input::Closed(second));
    f.pass(SECOND);
    let third = f.executor(&token);
    assert_eq!(f.got(third), ["Job"]);
    f.reports(third, &Says(&job).volumes());
    // Lost during the execution: it has everything; a repeated stage is not reported again.
    f.handle(Input::Closed(third));
    let fourth = f.executor(&token);
    assert_eq!(f.got(fourth), Vec::<String>::new());
    f.reports(fourth, &Says(&job).volumes());
    f.reports(fourth, &Says(&job).finished(""));
    assert_eq!(f.got(session), ["ExecutorReady", "VolumesReady", "JobFinished"]);
}

#[test]
fn a_disconnected_executor_that_ends_is_not_waited_for() {
    let mut f = Fixture::new(1);
    let job = uuid();
    let session = f.validator(&f.alice.clone());
    let (executor, token) = f.running(session, &job);
    f.handle(Input::Closed(executor));
    f.ended(&token, Ok(ExecutorExit::Signal(9)));
    let text = f.texts(session).remove(0);
    assert_eq!(kind(&text), "HordeFailed executor_disconnected");
    assert!(text.contains("signal 9"), "{text}");
    assert_eq!(f.free(), 1);
}

#[test]
fn the_grace_of_a_lost_executor_ends() {
    let mut f = Fixture::with(1, |config| config.limits.leeway = Duration::from_secs(3600));
    let (alice, job) = (f.alice.clone(), uuid());
    let session = f.validator(&alice);
    let (executor, token) = f.running(session, &job);
    f.handle(Input::Closed(executor));
    f.pass(f.limits.reconnect_grace - SECOND);
    assert_eq!(f.got(session), Vec::<String>::new());
    f.pass(SECOND);
    assert_eq!(f.got(session), ["HordeFailed executor_disconnected"]);
    assert_eq!(f.told_to_end, std::slice::from_ref(&token));
    let late = f.executor(&token);
    assert_eq!(f.got(late), [format!("! No job waiting for token {token}")]);
    assert_eq!(f.closed.get(&late), Some(&1000));
}

#[test]
fn the_newest_connection_of_an_executor_takes_over_from_a_half_open_one() {
    let mut f = Fixture::with(1, |config| config.limits.leeway = Duration::from_secs(3600));
    let (alice, job) = (f.alice.clone(), uuid());
    let session = f.validator(&alice);
    let token = f.accepted(session, &job);
    let first = f.executor(&token);
    assert_eq!(f.got(first), ["InitialJob"]);
    // Its connection breaks before it has the first half, and we do not notice.
    let second = f.executor(&token);
    assert_eq!(f.got(second), ["InitialJob"]);
    assert_eq!((f.closed.get(&first), f.closed.get(&second)), (Some(&1000), None));
    assert_eq!(f.router.status().connected_executors, 1);
    f.reports(second, &Says(&job).ready());
    f.says(session, &alice.request(&job));
    assert_eq!((f.got(first), f.got(second)), (vec![], vec!["Job".to_owned()]));
    // The end of the old one is no loss of the executor, now or later.
    f.handle(Input::Closed(first));
    f.pass(f.limits.reconnect_grace);
    // What was on its way on the old one when the new one came counts as well, once, and in any order.
    f.reports(second, &Says(&job).volumes());
    let third = f.executor(&token);
    f.reports(third, &Says(&job).done());
    f.reports(second, &Says(&job).volumes());
    f.reports(second, &Says(&job).finished("x"));
    f.reports(third, &Says(&job).finished("again"));
    assert_eq!(f.got(session), ["ExecutorReady", "VolumesReady", "ExecutionDone", "JobFinished"]);
    assert_eq!((f.free(), f.router.status().connected_executors), (0, 1));
    f.handle(Input::Closed(second));
    f.handle(Input::Closed(third));
    f.ended(&token, GONE);
    assert_eq!((f.free(), f.router.status().connected_executors), (1, 0));
}

#[test]
fn a_connection_that_was_accepted_first_and_is_open_last_takes_nothing_over() {
    let mut f = Fixture::new(1);
    let job = uuid();
    let session = f.validator(&f.alice.clone());
    let token = f.accepted(session, &job);
    // Its peer gave it up in the handshake.
    let first = SessionId::fresh();
    let second = f.executor(&token);
    f.handle(Input::Opened { id: first, peer: Peer::Executor(token.clone()), address: Some("10.0.0.9".to_owned()) });
    assert_eq!((f.closed.get(&first), f.closed.get(&second)), (Some(&1000), None));
    assert_eq!((f.got(first), f.got(second)), (vec![], vec!["InitialJob".to_owned()]));
    f.handle(Input::Closed(first));
    assert_eq!(f.router.status().connected_executors, 1);
    f.reports(second, &Says(&job).ready());
    assert_eq!(f.got(session), ["ExecutorReady"]);
}

#[test]
fn the_end_of_a_replaced_connection_does_not_end_the_last_words() {
    let mut f = Fixture::new(1);
    let job = uuid();
    let session = f.validator(&f.alice.clone());
    let (first, token) = f.running(session, &job);
    let second = f.executor(&token);
    f.ended(&token, GONE);
    f.handle(Input::Closed(first));
    assert_eq!(f.got(session), Vec::<String>::new());
    f.reports(second, &Says(&job).finished("last"));
    assert_eq!(f.got(session), ["JobFinished"]);
}

#[test]
fn one_token_has_one_owner() {
    let (mut f, _alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    let stranger = f.executor(&format!("{token}x"));
    assert_eq!(f.got(stranger), [format!("! No job waiting for token {token}x")]);
    f.reports(stranger, &Says(&job).finished("forged"));
    assert_eq!(f.got(session), Vec::<String>::new());
    assert_eq!(f.closed.get(&executor), None);
    f.handle(Input::Closed(stranger));
    f.reports(executor, &Says(&job).finished("true"));
    assert_eq!(f.got(session), ["JobFinished"]);
    // It may come back to learn that this has arrived; there is nothing more for it, and nothing more from it.
    f.handle(Input::Closed(executor));
    let late = f.executor(&token);
    f.reports(late, &Says(&job).finished("true"));
    assert_eq!((f.got(late), f.got(session)), (Vec::new(), Vec::new()));
    f.pass(f.limits.exit_time);
    assert_eq!(f.closed.get(&late), Some(&1000));
    f.ended(&token, GONE);
    let nobody = f.executor(&token);
    assert_eq!(f.got(nobody), [format!("! No job waiting for token {token}")]);
}

#[test]
fn what_an_executor_left_in_the_spool_counts_as_if_it_had_said_it() {
    let (mut f, _alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    f.reports(executor, &Says(&job).volumes());
    assert_eq!(f.got(session), ["VolumesReady"]);
    f.handle(Input::Closed(executor));
    let spooled = |token: &str| {
        let said = [Says(&job).ready(), Says(&job).volumes(), Says(&job).done(), Says(&job).finished("kept")];
        Input::Spooled { token: token.to_owned(), frames: said.iter().map(|text| ExecutorFrame::read(text)).collect() }
    };
    f.handle(spooled("unknown"));
    assert_eq!(f.got(session), Vec::<String>::new());
    f.handle(spooled(&token));
    assert_eq!(f.got(session), ["ExecutionDone", "JobFinished"], "what is known already is no news");
    f.ended(&token, GONE);
    assert_eq!((f.got(session), f.free()), (Vec::new(), 1));
}

#[test]
fn a_connection_that_speaks_of_a_job_gets_what_the_one_before_may_have_lost() {
    let mut f = Fixture::new(1);
    let (alice, job) = (f.alice.clone(), uuid());
    // Nobody has noticed yet that it is dead.
    let dead = f.validator(&alice);
    let (executor, _) = f.running(dead, &job);
    f.reports(executor, &Says(&job).volumes());
    f.reports(executor, &Says(&job).done());
    let back = f.validator(&alice);
    assert_eq!(f.got(back), Vec::<String>::new(), "it may be for another job");
    f.says(back, &alice.request(&job));
    assert_eq!(f.got(back), ["VolumesReady", "ExecutionDone"]);
    f.says(back, &alice.request(&job));
    assert_eq!(f.got(back), Vec::<String>::new(), "once for each connection");
    f.reports(executor, &Says(&job).finished("x"));
    assert_eq!(f.got(back), ["JobFinished"]);
    assert_eq!(f.got(executor), Vec::<String>::new(), "the request is passed on once");
}

#[test]
fn everything_that_an_executor_repeats_after_a_reconnect_is_reported_once() {
    let (mut f, _alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    let said = [Says(&job).ready(), Says(&job).volumes(), Says(&job).done(), Says(&job).specs()];
    said[1..].iter().for_each(|said| f.reports(executor, said));
    assert_eq!(f.got(session), ["VolumesReady", "ExecutionDone", "MachineSpecs"]);
    f.handle(Input::Closed(executor));
    let back = f.executor(&token);
    said.iter().for_each(|said| f.reports(back, said));
    assert_eq!((f.got(session), f.got(back)), (Vec::new(), Vec::new()));
    f.reports(back, &Says(&job).finished("x"));
    assert_eq!(f.got(session), ["JobFinished"]);
}

/// The executor goes on meanwhile, and its reports come with its connection.
#[test]
fn time_without_the_executor_s_connection_counts_against_no_limit() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let token = f.accepted(session, &job);
    let first = f.executor(&token);
    f.handle(Input::Closed(first));
    f.pass(10 * SECOND);
    assert_eq!(f.got(session), Vec::<String>::new(), "it was about to be ready");
    let executor = f.executor(&token);
    f.reports(executor, &Says(&job).ready());
    f.says(session, &alice.request(&job));
    assert_eq!(f.got(session), ["ExecutorReady"]);
    f.handle(Input::Closed(executor));
    f.pass(10 * SECOND);
    let executor = f.executor(&token);
    let left = 2 * SECOND + f.limits.leeway;
    f.pass(left - Duration::from_millis(1));
    assert_eq!(f.got(session), Vec::<String>::new());
    f.reports(executor, &Says(&job).volumes());
    assert_eq!(f.got(session), ["VolumesReady"]);
    f.pass(2 * SECOND);
    assert_eq!(f.got(session), ["HordeFailed execution_timed_out"], "with a connection it counts");
}

#[test]
fn a_validator_that_has_given_a_job_up_is_not_told_its_end_for_ever() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    f.says(session, &alice.finished_receipt(&job));
    f.handle(Input::Closed(session));
    f.reports(executor, &Says(&job).finished("too late"));
    f.ended(&token, GONE);
    let back = f.validator(&alice);
    assert_eq!(f.got(back), Vec::<String>::new());
    assert_eq!((f.router.status().ended, f.free()), (0, 1));
}

#[test]
fn the_last_words_of_an_executor_that_has_ended_still_count() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    f.ended(&token, GONE);
    assert_eq!(f.got(session), Vec::<String>::new());
    assert_eq!(f.free(), 1);
    f.reports(executor, &Says(&job).finished("x"));
    assert_eq!(f.got(session), ["JobFinished"]);
    f.handle(Input::Closed(executor));
    assert_eq!(f.got(session), Vec::<String>::new());
    // Without last words the end of the connection decides, or a time limit.
    for closes in [true, false] {
        let job = uuid();
        let (executor, token) = f.running(session, &job);
        f.ended(&token, Ok(ExecutorExit::Code(3)));
        if closes {
            f.handle(Input::Closed(executor));
        } else {
            f.pass(2 * SECOND);
        }
        let text = f.texts(session).remove(0);
        assert_eq!(kind(&text), "HordeFailed executor_disconnected");
        assert!(text.contains("exit code 3"), "{text}");
        f.handle(Input::Closed(executor));
        f.says(session, &alice.finished_receipt(&job));
    }
    assert_eq!(f.router.status().ended, 1);
}

#[test]
fn garbage_is_answered_and_changes_nothing() {
    let (mut f, _alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, _) = f.running(session, &job);
    for garbage in ["", "PING", "[]", r#"{"message_type":"Nope"}"#, r#"{"message_type":"V0JobRequest"}"#] {
        f.says(session, garbage);
        f.reports(executor, garbage);
        for id in [session, executor] {
            let got = f.got(id);
            assert!(got.len() == 1 && got[0].starts_with("! Malformed message"), "{garbage}: {got:?}");
        }
    }
    f.reports(executor, &Says(&uuid()).finished("another job's"));
    assert!(f.got(executor)[0].starts_with("! This executor is for job"));
    assert_eq!(f.got(session), Vec::<String>::new());
    f.reports(executor, &Says(&job).finished("x"));
    assert_eq!(f.got(session), ["JobFinished"]);
    f.reports(executor, &Says(&job).finished("again"));
    assert_eq!(f.got(session), Vec::<String>::new());
    assert!(f.closed.is_empty());
}

#[test]
fn an_executor_that_does_not_end_is_stopped_and_then_its_slot_is_in_quarantine() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    f.reports(executor, &Says(&job).finished(""));
    f.pass(f.limits.exit_time);
    assert_eq!(f.told_to_end, std::slice::from_ref(&token));
    assert_eq!(f.slots().ending, 1);
    f.pass(f.limits.end_time);
    assert_eq!((f.slots().quarantined, f.free()), (1, 0));
    let text = {
        let id = f.dial(&alice);
        f.says(id, &alice.auth(UNIX));
        f.texts(id).remove(0)
    };
    assert!(text.contains(r#""manifest":{"always_on.test":0}"#), "{text}");
    f.got(session);
    f.says(session, &alice.ask(&uuid()));
    assert_eq!(f.got(session), ["DeclineJob busy"], "nobody waits for a slot in quarantine");
    f.ended(&token, Ok(ExecutorExit::Signal(9)));
    assert_eq!(f.free(), 1);
}

#[test]
fn what_an_executor_leaves_keeps_its_slot_in_quarantine_until_it_is_gone() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    f.reports(executor, &Says(&job).finished(""));
    f.handle(Input::Closed(executor));
    f.handle(Input::ExecutorEnded { token: token.clone(), end: GONE });
    assert_eq!((f.slots().ending, f.free()), (1, 0), "what is left is being removed");
    let left = Leftover { kind: LeftoverKind::Container, text: "the engine does not answer".to_owned() };
    f.handle(Input::ExecutorLeft { token: token.clone(), left });
    let slot = f.router.status().quarantined.remove(0);
    assert_eq!((slot.class, slot.what), (CLASS, "container"));
    assert_eq!(slot.reason, format!("job {job}: the engine does not answer"));
    assert_eq!(f.router.status().slot_trouble().unwrap(), format!("all 1 are in quarantine: {}", slot.reason));
    assert!(f.counted.contains(&Counted::Quarantined("container")), "{:?}", f.counted);
    assert_eq!(f.got(session), ["JobFinished"], "the job is not held up");
    f.says(session, &alice.finished_receipt(&job));
    assert_eq!(f.router.status().ended, 1, "it is remembered for what is left of it");
    f.returned(&token);
    let status = f.router.status();
    assert_eq!((f.free(), status.quarantined, status.ended, status.breach), (1, vec![], 0, None));
}

#[test]
fn what_takes_too_long_to_remove_is_in_quarantine() {
    let (mut f, _alice, session) = Fixture::with_alice(1);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    f.reports(executor, &Says(&job).finished(""));
    f.handle(Input::Closed(executor));
    f.handle(Input::ExecutorEnded { token, end: GONE });
    f.pass(f.limits.end_time);
    let reason = f.router.status().quarantined.remove(0).reason;
    assert_eq!(reason, format!("job {job}: what its executor left is still being removed"));
}

#[test]
fn a_lease_that_is_lost_gives_its_slot_to_whoever_waits() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let (first, second) = (uuid(), uuid());
    let (executor, _token) = f.running(session, &first);
    f.reports(executor, &Says(&first).finished(""));
    f.got(session);
    f.says(session, &alice.ask(&second));
    assert_eq!(f.got(session), Vec::<String>::new(), "it waits for the slot");
    // As by a panic of whoever has it; nobody tells the router.
    f.leases.clear();
    f.handle(Input::Tick);
    assert_eq!(f.got(session), ["AcceptJob"]);
    assert_eq!(f.router.status().breach, None);
}

#[test]
fn reservations_and_failed_starts_are_counted() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    type Fail = fn(&mut Fixture, &str);
    let fail: [(Fail, &str); 3] = [
        (|f, token| f.ended(token, Err(ExecutorError::Other("x".to_owned()))), "other"),
        (|f, token| f.ended(token, GONE), "exited"),
        (
            |f, token| {
                f.pass(CLASS.spin_up_time() + f.limits.startup_time_limit);
                f.ended(token, GONE);
            },
            "late",
        ),
    ];
    for (fail, reason) in fail {
        let job = uuid();
        let token = f.accepted(session, &job);
        fail(&mut f, &token);
        assert_eq!(f.got(session), ["HordeFailed executor_spinup_failed"]);
        assert_eq!(f.counted, [Counted::Accepted(Duration::ZERO), Counted::StartFailed(reason)]);
        f.counted.clear();
    }
    // Three in a row: the host is tried again after a while.
    f.pass(10 * SECOND);
    let (first, second) = (uuid(), uuid());
    let (executor, token) = f.running(session, &first);
    f.reports(executor, &Says(&first).volumes());
    f.reports(executor, &Says(&first).finished(""));
    f.says(session, &alice.ask(&second));
    f.pass(SECOND);
    f.ended(&token, GONE);
    assert_eq!(f.counted, [Counted::Accepted(Duration::ZERO), Counted::Accepted(SECOND)], "with the wait for a slot");
}

#[test]
fn a_drain_declines_and_a_cancel_fails() {
    let (mut f, alice, session) = Fixture::with_alice(2);
    let job = uuid();
    let (executor, token) = f.running(session, &job);
    f.handle(Input::Stop(Level::Drain));
    f.says(session, &alice.ask(&uuid()));
    assert_eq!(f.got(session), ["DeclineJob busy"]);
    assert!(!f.router.is_idle());
    f.reports(executor, &Says(&job).volumes());
    assert_eq!(f.got(session), ["VolumesReady"], "what runs goes on");
    f.handle(Input::Stop(Level::Cancel));
    assert_eq!(f.got(session), ["HordeFailed generic_error"]);
    assert_eq!(f.told_to_end, std::slice::from_ref(&token));
    assert!(!f.router.is_idle(), "its executor still cleans up");
    f.ended(&token, GONE);
    assert!(f.router.is_idle());
}

#[test]
fn a_paused_miner_declines_with_the_reason_and_goes_on_with_what_runs() {
    let (mut f, alice, session) = Fixture::with_alice(2);
    let job = uuid();
    let (executor, _) = f.running(session, &job);
    f.handle(Input::Paused(Some("paused until it is resumed: new disk".to_owned())));
    f.says(session, &alice.ask(&uuid()));
    let declined = f.texts(session);
    assert_eq!(declined.len(), 1, "{declined:?}");
    assert!(declined[0].contains("this miner is paused until it is resumed: new disk"), "{declined:?}");
    f.reports(executor, &Says(&job).volumes());
    assert_eq!(f.got(session), ["VolumesReady"], "what runs goes on");
    f.handle(Input::Paused(None));
    f.accepted(session, &uuid());
}

/// Random events in random order: nothing is started twice, no slot is lost or given twice, nothing is sent to a
/// connection that is not there, and in the end everything is as at the start; whatever hosts there are meanwhile.
#[test]
fn chaos_keeps_the_books_balanced() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let other = |slots| HostConfig {
        name: "other".parse().unwrap(),
        address: "other".to_owned(),
        engine: EngineAddress::local(),
        executors: vec![(CLASS, slots)],
        backend: Arc::new(Unused),
    };
    let mut f = Fixture::with(2, |config| config.hosts = vec![other(1)]);
    let mut reloads = 0;
    let alice = f.alice.clone();
    let jobs: Vec<String> = (0..200).map(|_| uuid()).collect();
    let mut validators: Vec<SessionId> = Vec::new();
    let mut executors: Vec<(SessionId, String)> = Vec::new();
    let mut living: BTreeSet<String> = BTreeSet::new();
    let mut known = 0;
    let (mut accepted, mut ended) = (0, 0);
    let signed = |sign: fn(&Pen, &str) -> String| -> BTreeMap<String, String> {
        jobs.iter().map(|job| (job.clone(), sign(&alice, job))).collect()
    };
    let (asks, requests, receipts) = (signed(Pen::ask), signed(Pen::request), signed(Pen::finished_receipt));
    for step in 0..2_000 {
        let mut pick = |of: usize| (rng.next_u64() % of.max(1) as u64) as usize;
        let job = jobs[pick(jobs.len())].clone();
        match pick(15) {
            0 if validators.len() < 4 => validators.push(f.validator(&alice)),
            1 if !validators.is_empty() => {
                let id = validators.swap_remove(pick(validators.len()));
                f.handle(Input::Closed(id));
            }
            2..=4 if !validators.is_empty() => {
                f.says(validators[pick(validators.len())], &asks[&job]);
            }
            5 if !validators.is_empty() => f.says(validators[pick(validators.len())], &requests[&job]),
            6 if !validators.is_empty() => f.says(validators[pick(validators.len())], &receipts[&job]),
            7 if !living.is_empty() => {
                let token = living.iter().nth(pick(living.len())).unwrap().clone();
                let id = f.executor(&token);
                if !f.closed.contains_key(&id) {
                    executors.push((id, token));
                }
            }
            8 if !executors.is_empty() => {
                let (id, _) = executors.swap_remove(pick(executors.len()));
                f.handle(Input::Closed(id));
            }
            9..=11 if !executors.is_empty() => {
                let (id, token) = executors[pick(executors.len())].clone();
                let says = Says(&token[..36]);
                let texts = [says.ready(), says.volumes(), says.done(), says.finished("x"), "garbage".to_owned()];
                f.reports(id, &texts[pick(texts.len())]);
            }
            12 if !living.is_empty() => {
                let token = living.iter().nth(pick(living.len())).unwrap().clone();
                living.remove(&token);
                ended += 1;
                f.ended(&token, Ok(ExecutorExit::Code(1)));
            }
            13 => {
                f.config.executors = vec![(CLASS, pick(4) as u32)];
                f.config.hosts = vec![other(pick(4) as u32)];
                f.reload();
                reloads += 1;
                // A new host has to answer first.
                for host in f.config.all_hosts() {
                    f.checked(host.name, Ok("in boxes"));
                }
            }
            _ => {
                let by = Duration::from_millis(pick(4000) as u64);
                f.pass(by);
            }
        }
        for spec in f.started.drain(known..) {
            accepted += 1;
            assert!(living.insert(spec.token), "a token came twice, step {step}, seed {seed}");
        }
        known = f.started.len();
        let mut of_jobs: Vec<&str> = living.iter().map(|token| &token[..36]).collect();
        of_jobs.dedup();
        assert_eq!(of_jobs.len(), living.len(), "a job has two executors, step {step}, seed {seed}");
        let mut slots = SlotCounts::default();
        f.router.status().executors.into_iter().for_each(|(_, of_class)| slots += of_class);
        let taken = slots.declared + slots.draining - slots.free;
        assert_eq!(taken, living.len(), "slots and executors differ, step {step}, seed {seed}");
        assert_eq!(f.router.status().breach, None, "step {step}, seed {seed}");
        let there = |id: &SessionId| {
            validators.contains(id) || executors.iter().any(|(e, _)| e == id) || f.closed.contains_key(id)
        };
        assert!(f.mail.keys().all(there), "a text for nobody, step {step}, seed {seed}");
        f.mail.clear();
        f.closed.clear();
    }
    assert!(accepted > 30 && ended > 30, "{accepted} accepted, {ended} ended, seed {seed}");
    assert!(reloads > 30, "{reloads} reloads, seed {seed}");
    // The end of one may be the start of another, of a job that waited.
    while let Some(token) = living.pop_first() {
        f.ended(&token, GONE);
        living.extend(f.started.drain(known..).map(|spec| spec.token));
    }
    for id in validators.into_iter().chain(executors.into_iter().map(|(id, _)| id)) {
        f.handle(Input::Closed(id));
    }
    f.config.executors = vec![(CLASS, 3)];
    f.config.hosts.clear();
    f.reload();
    f.pass(Duration::from_secs(3600));
    let status = f.router.status();
    assert_eq!(status.hosts.len(), 1, "seed {seed}");
    assert_eq!(f.free(), 3, "seed {seed}");
    assert_eq!((status.jobs, status.ended, status.validators, status.connected_executors), (0, 0, 0, 0), "seed {seed}");
    let wake = f.router.next_wake();
    assert!(wake.is_none_or(|wake| wake > f.now + Duration::from_secs(500_000)), "only the next check, seed {seed}");
}
