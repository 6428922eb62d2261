//! One miner, or a few: each way a job can end, what the gate waits for, and what counts once. How a batch itself ends
//! is in `ends`.

use std::time::Duration;

use super::bench::*;
use crate::identity::KeyPair;
use crate::protocol::{
    Code, DateTime, ExecutorClass, JobStartedReceiptPayload, Receipt, UnauthorizedError, V0DeclineJobRequest,
    ValidatorToMiner,
};
use crate::validator::batch::config::BatchConfig;
use crate::validator::batch::kept::{KeptJob, KeptState};
use crate::validator::batch::line::BatchOutcome as O;
use crate::validator::batch::plan::JOBS_PER_BATCH;
use crate::validator::batch::state::{Ending, Input, MinerInput};
use crate::validator::manifests::AskOutcome;

pub(super) fn begun(miners: usize, change: impl FnOnce(&mut BatchConfig)) -> Bench {
    let mut config = config(7);
    change(&mut config);
    let mut bench = Bench::new(config, miners, Vec::new());
    bench.feed(Input::Start);
    bench
}

/// One miner with one job, which it has accepted.
fn accepted(change: impl FnOnce(&mut BatchConfig)) -> (Bench, String) {
    let mut bench = begun(1, change);
    bench.says(0, manifest(&[(CLASS, 1)]));
    let uuid = bench.uuid(0, 0);
    bench.says(0, accept(&uuid));
    (bench, uuid)
}

/// One miner with one job, whose job request has been sent.
pub(super) fn sent(change: impl FnOnce(&mut BatchConfig)) -> (Bench, String) {
    let (mut bench, uuid) = accepted(change);
    bench.says(0, ready(&uuid));
    assert_eq!(bench.gates, 1);
    (bench, uuid)
}

pub(super) fn only(bench: &Bench) -> (O, String) {
    assert_eq!(bench.lines.len(), 1, "{:?}", bench.lines);
    let line = &bench.lines[0];
    (line.outcome.unwrap(), line.reason.clone().unwrap_or_default())
}

pub(super) fn refused() -> MinerInput {
    MinerInput::Failed { why: "refused: no".to_owned(), refused: true, outcome: AskOutcome::Unauthorized }
}

pub(super) fn receipts(bench: &Bench) -> Vec<String> {
    let score = |(_, message): &(usize, ValidatorToMiner)| match message {
        ValidatorToMiner::V0JobFinishedReceiptRequest(receipt) => Some(receipt.payload.score_str.clone()),
        _ => None,
    };
    bench.sent.iter().filter_map(score).collect()
}

#[test]
fn a_good_job_has_every_time_and_is_paid() {
    let (mut bench, uuid) = accepted(|_| {});
    bench.wait(500);
    bench.says(0, ready(&uuid));
    bench.wait(250);
    bench.says(0, volumes(&uuid));
    bench.says(0, execution_done(&uuid));
    bench.says(0, finished(&uuid, RIGHT));
    assert_eq!((only(&bench).0, bench.ending), (O::Completed, Some(Ending::Complete)));
    let line = &bench.lines[0];
    assert!(line.scored && !line.late && line.reason.is_none(), "{line:?}");
    let seconds = line.seconds.unwrap();
    assert!((0.25..0.2501).contains(&seconds), "from before the send to the answer: {seconds}");
    let times = [&line.accepted_at, &line.ready_at, &line.sent_at, &line.answered_at].map(|t| t.clone().unwrap());
    assert!(times.is_sorted() && times[0] < times[1] && times[2] < times[3], "{times:?}");
    assert_eq!(receipts(&bench), ["1.000000"]);
    let kinds: Vec<&str> = bench.sent.iter().map(|(_, message)| kind_of(message)).collect();
    assert_eq!(kinds, ["initial", "accepted-receipt", "finished-receipt"], "the job request left through the gate");
    let ValidatorToMiner::V0InitialJobRequest(initial) = &bench.sent[0].1 else { panic!("not the initial request") };
    assert!(!initial.job_started_receipt_payload.is_organic);
}

fn kind_of(message: &ValidatorToMiner) -> &'static str {
    match message {
        ValidatorToMiner::V0InitialJobRequest(_) => "initial",
        ValidatorToMiner::V0JobAcceptedReceiptRequest(_) => "accepted-receipt",
        ValidatorToMiner::V0JobFinishedReceiptRequest(_) => "finished-receipt",
        ValidatorToMiner::V0JobRequest(_) => "job",
        _ => "another",
    }
}

#[test]
fn each_way_to_end_has_its_word_and_its_reason() {
    type Way = fn(&mut Bench, &str);
    let ways: [(Way, O, &str, &[&str]); 8] = [
        (|b, u| b.says(0, failed(u)), O::Failed, "nonzero_return_code: exit 1", &["0.000000"]),
        (|b, u| b.says(0, horde_failed(u)), O::HordeFailed, "executor_spinup_failed: no engine", &["0.000000"]),
        (|b, u| b.says(0, finished(u, "41\n")), O::Failed, "wrong answer: \"41\\n\"", &["0.000000"]),
        (|b, _| b.run_to_its_end(), O::Timeout, "waiting for the volumes took too long", &["0.000000"]),
        (
            |b, _| {
                b.feed(Input::Miner(0, MinerInput::Unreadable));
                b.run_to_its_end();
            },
            O::ProtocolError,
            "it said what cannot be read while waiting for the volumes",
            &["0.000000"],
        ),
        (
            |b, _| {
                b.feed(Input::Miner(0, MinerInput::Lost("reset".to_owned())));
                b.run_to_its_end();
            },
            O::HordeFailed,
            "the connection was lost while waiting for the volumes (last trouble: reset)",
            &["0.000000"],
        ),
        (
            |b, _| b.says(0, UnauthorizedError { code: Code::TokenTooOld, details: None }),
            O::Unauthorized,
            "TOKEN_TOO_OLD",
            &["0.000000"],
        ),
        (
            |b, _| {
                b.feed(Input::Miner(0, MinerInput::NotSent("full".to_owned())));
            },
            O::HordeFailed,
            "full",
            &["0.000000"],
        ),
    ];
    for (way, outcome, reason, paid) in ways {
        let (mut bench, uuid) = sent(|_| {});
        way(&mut bench, &uuid);
        assert_eq!(only(&bench), (outcome, reason.to_owned()));
        assert_eq!(receipts(&bench), paid, "{reason}");
        assert_eq!((bench.lines[0].scored, bench.ending), (false, Some(Ending::Complete)), "{reason}");
    }
}

#[test]
fn a_miner_without_a_job_has_one_line_without_a_uuid() {
    type Way = fn(&mut Bench);
    let failed = |why: &str, refused, outcome| MinerInput::Failed { why: why.to_owned(), refused, outcome };
    let ways: [(Way, O, &str); 6] = [
        (|b| b.says(0, manifest(&[])), O::Declined, "its manifest has no executors for these jobs"),
        (|b| b.says(0, manifest(&[(ExecutorClass::AlwaysOnGpu24gb, 3)])), O::Declined, "its manifest has no"),
        (|b| b.run_to_its_end(), O::Timeout, "no connection in time"),
        (|b| drop(b.feed(Input::Miner(0, MinerInput::Unreadable))), O::ProtocolError, "what it says cannot be read"),
        (|_| {}, O::Unauthorized, "refused: Unknown validator"),
        (|_| {}, O::Refused, "Connection refused"),
    ];
    for (n, (way, outcome, reason)) in ways.into_iter().enumerate() {
        let mut bench = begun(1, |_| {});
        way(&mut bench);
        if n == 4 {
            bench.feed(Input::Miner(0, failed("refused: Unknown validator: 5F", true, AskOutcome::Unauthorized)));
        }
        if n == 5 {
            bench.feed(Input::Miner(0, failed("Connection refused", false, AskOutcome::Refused)));
            assert_eq!(bench.lines.len(), 0, "it is tried once more");
            bench.feed(Input::Miner(0, failed("Connection refused", false, AskOutcome::Refused)));
        }
        let (found, why) = only(&bench);
        assert!(found == outcome && why.contains(reason), "{found:?} {why}");
        assert_eq!((&bench.lines[0].job_uuid, bench.gates, bench.ending), (&None, 0, Some(Ending::Complete)));
    }
}

#[test]
fn the_gate_waits_for_all_that_may_still_be_ready_and_for_nobody_else() {
    let mut bench = begun(5, |_| {});
    for miner in 0..4 {
        bench.says(miner, manifest(&[(CLASS, 1)]));
    }
    let uuids: Vec<String> = (0..4).map(|miner| bench.uuid(miner, 0)).collect();
    for uuid in &uuids[..3] {
        let miner = uuids.iter().position(|other| other == uuid).unwrap();
        bench.says(miner, accept(uuid));
    }
    bench.says(0, ready(&uuids[0]));
    bench.says(1, ready(&uuids[1]));
    // One declines, one loses its connection and never has an executor, one cannot be reached.
    bench.says(3, decline(&uuids[3]));
    bench.feed(Input::Miner(2, MinerInput::Lost("cut".to_owned())));
    assert_eq!(bench.gates, 0);
    bench.wait(7_999);
    assert_eq!(bench.gates, 0, "the executor of miner 2 may still be ready");
    bench.wait(2);
    assert_eq!(bench.gates, 0, "miner 4 may still connect");
    let at_gate = bench.feed(Input::Miner(4, refused()));
    let mut left: Vec<usize> = at_gate.iter().map(|(miner, _)| *miner).collect();
    left.sort_unstable();
    assert_eq!((left, bench.gates), (vec![0, 1], 1));
}

#[test]
fn the_gate_s_time_begins_with_the_first_that_is_ready_and_leaves_the_others_behind() {
    // Its executors may take 35 s.
    let slow = ExecutorClass::AlwaysOnCpu8c16gb;
    let mut bench = begun(3, |config| config.connects = 2);
    let [first, second] = [bench.connected[0], bench.connected[1]];
    bench.says(first, manifest(&[(slow, 2)]));
    // The third has its turn only now.
    let third = bench.connected[2];
    bench.says(second, manifest(&[(slow, 1)]));
    let uuids = [bench.uuid(first, 0), bench.uuid(first, 1), bench.uuid(second, 0)];
    for (miner, uuid) in [(first, &uuids[0]), (first, &uuids[1]), (second, &uuids[2])] {
        bench.says(miner, accept(uuid));
    }
    bench.wait(2_000);
    bench.says(first, ready(&uuids[0]));
    bench.wait(29_999);
    assert_eq!((bench.gates, bench.lines.len()), (0, 1), "{:?}", bench.lines);
    assert_eq!(bench.lines[0].miner, hotkey(third).to_ss58());
    bench.wait(1);
    assert_eq!(bench.gates, 1);
    let reasons: Vec<&str> = bench.lines[1..].iter().map(|line| line.reason.as_deref().unwrap()).collect();
    assert_eq!(reasons, ["not ready when the gate opened: waiting for the executor's readiness"; 2]);
    // Who is ready now is too late, and gets no request.
    bench.says(second, ready(&uuids[2]));
    assert_eq!((bench.lines.len(), bench.gates), (3, 1));
    bench.says(first, finished(&uuids[0], RIGHT));
    assert_eq!((bench.lines[3].outcome, bench.ending), (Some(O::Completed), Some(Ending::Complete)));
}

#[test]
fn a_miner_whose_time_to_connect_the_gate_cuts_is_not_blamed() {
    // One in four may fail: that which refuses the connection.
    let config = BatchConfig { gate: Duration::from_millis(500), max_fail: Some(25), ..config(7) };
    let mut planned = begun(4, |_| {});
    planned.says(3, manifest(&[(CLASS, 1)]));
    let row = planned.planned[0].clone();
    let kept = vec![KeptJob { place: row.place, state: KeptState::Planned(Box::new(row.clone())) }];
    let mut bench = Bench::new(config, 4, kept);
    bench.feed(Input::Start);
    bench.says(0, manifest(&[(CLASS, 1)]));
    let uuid = bench.uuid(0, 0);
    bench.says(0, accept(&uuid));
    bench.says(0, ready(&uuid));
    let why = "Connection refused".to_owned();
    bench.feed(Input::Miner(1, MinerInput::Failed { why, refused: false, outcome: AskOutcome::Refused }));
    bench.wait(499);
    assert_eq!((bench.gates, bench.lines.len()), (0, 0));
    bench.wait(1);
    assert_eq!((bench.gates, bench.ending), (1, None), "{:?}", bench.lines);
    let cut = "its time to connect was not over when the gate opened";
    let ends: Vec<_> = (bench.lines.iter())
        .map(|line| (line.outcome.unwrap(), line.reason.as_deref().unwrap(), line.job_uuid.as_ref(), line.excused))
        .collect();
    assert_eq!(
        ends,
        [
            (O::Refused, "Connection refused, when the gate opened", None, false),
            (O::HordeFailed, cut, None, true),
            (O::HordeFailed, cut, Some(&row.uuid), true),
        ]
    );
    bench.says(0, finished(&uuid, RIGHT));
    assert_eq!(bench.ending, Some(Ending::Complete));
}

#[test]
fn who_was_lost_before_the_gate_opened_is_not_late() {
    let mut bench = begun(2, |config| config.gate = Duration::from_millis(500));
    for miner in 0..2 {
        bench.says(miner, manifest(&[(CLASS, 1)]));
        let uuid = bench.uuid(miner, 0);
        bench.says(miner, accept(&uuid));
    }
    bench.feed(Input::Miner(1, MinerInput::Lost("reset".to_owned())));
    let uuid = bench.uuid(0, 0);
    bench.says(0, ready(&uuid));
    bench.wait(500);
    let why = "not ready when the gate opened: the connection was lost while waiting for the executor's readiness \
        (last trouble: reset)";
    assert_eq!((only(&bench), bench.gates), ((O::HordeFailed, why.to_owned()), 1));
}

#[test]
fn those_that_say_nothing_hold_places_for_their_time_and_cost_the_others_nothing() {
    let mut bench = begun(6, |config| config.connects = 2);
    let first = bench.connected[0];
    bench.says(first, manifest(&[(CLASS, 1)]));
    // The second to the fifth say nothing: two rounds of 15 s, as long as the gate's time.
    bench.wait(15_001);
    bench.wait(14_998);
    assert_eq!((bench.connected.len(), bench.sent.len()), (5, 0), "nobody's executor waits for the last attempt");
    bench.wait(2);
    assert_eq!((bench.connected.len(), bench.sent.len()), (6, 1));
    let last = bench.connected[5];
    let uuid = bench.uuid(first, 0);
    bench.says(first, accept(&uuid));
    bench.says(first, ready(&uuid));
    bench.wait(2_000);
    bench.says(last, manifest(&[(CLASS, 1)]));
    let uuid = bench.uuid(last, 0);
    bench.says(last, accept(&uuid));
    bench.says(last, ready(&uuid));
    assert_eq!((bench.gates, bench.lines.len()), (1, 4), "all have answered, or their time is over");
    for miner in [first, last] {
        let uuid = bench.uuid(miner, 0);
        bench.says(miner, finished(&uuid, RIGHT));
    }
    assert_eq!((bench.lines.iter().filter(|line| line.scored).count(), bench.lines.len()), (2, 6));
}

#[test]
fn many_jobs_are_asked_for_in_goes_and_the_gate_s_time_counts_after_the_last() {
    let mut bench = begun(2, |config| config.gate = Duration::from_millis(10));
    bench.says(0, manifest(&[(CLASS, 100)]));
    bench.says(1, manifest(&[(CLASS, 100)]));
    let initials = |bench: &Bench| bench.sent.iter().filter(|(_, message)| kind_of(message) == "initial").count();
    let mut asked = initials(&bench);
    assert_eq!(asked, 64);
    let uuid = bench.uuid(0, 0);
    bench.says(0, accept(&uuid));
    bench.says(0, ready(&uuid));
    // It may not speak of what it was not asked for.
    let not_asked = bench.uuid(1, 99);
    bench.says(1, accept(&not_asked));
    while asked < 200 {
        bench.wait(1);
        asked = (asked + 64).min(200);
        assert_eq!(initials(&bench), asked);
    }
    bench.wait(9);
    assert_eq!(bench.gates, 0);
    bench.wait(1);
    assert_eq!((bench.gates, bench.lines.len()), (1, 199));
    assert!(bench.lines.iter().all(|line| line.accepted_at.is_none()));
}

#[test]
fn who_was_not_asked_when_the_batch_s_time_was_over_is_not_blamed() {
    let mut bench = begun(3, |config| (config.connects, config.limit) = (1, Duration::from_secs(10)));
    bench.says(bench.connected[0], manifest(&[(CLASS, 1)]));
    bench.run_to_its_end();
    let mut ends: Vec<_> =
        bench.lines.iter().map(|line| (line.outcome.unwrap(), line.reason.as_deref().unwrap())).collect();
    ends.sort_unstable();
    assert_eq!(
        ends,
        [
            (O::HordeFailed, "its time to connect was not over when the batch's time was over"),
            (O::HordeFailed, "its turn to be connected to had not come when the batch's time was over"),
            (O::HordeFailed, "not ready when the batch's time was over: waiting for its turn to be asked"),
        ]
    );
    assert_eq!(bench.lines.iter().filter(|line| line.excused).count(), 2, "{:?}", bench.lines);
}

#[test]
fn the_places_of_a_batch_are_shared_out_evenly_whoever_comes_first() {
    let miners = 100;
    let mut bench = begun(miners, |config| config.connects = 200);
    for miner in 0..miners {
        bench.says(miner, manifest(&[(CLASS, 1000)]));
    }
    let mut jobs = vec![0; miners];
    bench.planned.iter().for_each(|row| jobs[row.place.miner] += 1);
    assert_eq!((jobs, bench.lines.len()), (vec![JOBS_PER_BATCH / miners; miners], 0));
}

/// A refusal as busy, with receipts of organic jobs or synthetic ones.
fn busy(uuid: &str, miner: usize, receipts: &[(&str, bool)]) -> V0DeclineJobRequest {
    let receipt = |(n, (validator, is_organic)): (usize, &(&str, bool))| {
        let key = KeyPair::from_uri(validator).unwrap();
        let payload = JobStartedReceiptPayload {
            job_uuid: format!("00000000-0000-4000-8000-{n:012}"),
            miner_hotkey: hotkey(miner).to_ss58(),
            validator_hotkey: key.ss58(),
            // Five seconds before the batch has begun.
            timestamp: DateTime::from_unix_micros(1_799_999_995_000_000),
            executor_class: CLASS,
            is_organic: *is_organic,
            ttl: 30,
        };
        let validator_signature = payload.sign(&key);
        Receipt { payload: payload.into(), validator_signature, miner_signature: String::new() }
    };
    V0DeclineJobRequest { receipts: receipts.iter().enumerate().map(receipt).collect(), ..decline(uuid) }
}

#[test]
fn a_miner_that_shows_with_which_organic_jobs_it_is_busy_has_not_failed() {
    let (own, known) = (("//Alice", true), ("//Known", true));
    for (receipts, excused, why) in [
        (&[own, known][..], true, "excused by 2 receipts"),
        (&[own][..], false, "not excused: 1 receipts of 2 executors count"),
        (&[own, ("//Alice", false)], false, "not excused: 1 receipts of 2 executors count, one is of a synthetic job"),
        (
            &[own, ("//Eve", true)],
            false,
            "not excused: 1 receipts of 2 executors count, one is of a validator that is not known",
        ),
    ] {
        let mut bench = begun(1, |config| {
            config.known = vec![KeyPair::from_uri("//Known").unwrap().public()];
            config.max_fail = Some(99);
        });
        bench.says(0, manifest(&[(CLASS, 2)]));
        let uuids = [bench.uuid(0, 0), bench.uuid(0, 1)];
        bench.says(0, busy(&uuids[0], 0, receipts));
        // The first refusal of a class says what all are worth: a miner cannot have receipts checked for ever.
        bench.says(0, busy(&uuids[1], 0, &[]));
        assert_eq!(bench.lines.len(), 2);
        let why = format!("{why}: busy: all executors are at work");
        for line in &bench.lines {
            let found = (line.outcome.unwrap(), line.excused, line.scored, line.reason.as_deref().unwrap());
            assert_eq!(found, (O::Declined, excused, false, why.as_str()));
        }
        assert_eq!(bench.batch.progress().failed, if excused { 0 } else { 2 });
        assert_eq!(bench.ending, Some(if excused { Ending::Complete } else { Ending::Aborted }));
    }
}

#[test]
fn the_first_answer_of_a_kind_wins() {
    // Once it has accepted it cannot decline; ready once; the first end is the end.
    let (mut bench, uuid) = accepted(|_| {});
    bench.says(0, decline(&uuid));
    bench.says(0, accept(&uuid));
    bench.says(0, ready(&uuid));
    bench.says(0, ready(&uuid));
    assert_eq!((bench.lines.len(), bench.gates, bench.batch.progress().repeats), (0, 1, 3));
    bench.says(0, finished(&uuid, "wrong"));
    bench.says(0, finished(&uuid, RIGHT));
    assert_eq!(only(&bench).0, O::Failed);
    // With another job of the miner still open, so that the second answer is heard.
    let mut bench = begun(1, |_| {});
    bench.says(0, manifest(&[(CLASS, 2)]));
    let uuids = [bench.uuid(0, 0), bench.uuid(0, 1)];
    for uuid in &uuids {
        bench.says(0, accept(uuid));
        bench.says(0, ready(uuid));
    }
    bench.says(0, finished(&uuids[0], RIGHT));
    bench.says(0, failed(&uuids[0]));
    bench.says(0, finished(&uuids[0], "wrong"));
    assert_eq!((only(&bench).0, bench.batch.progress().repeats), (O::Completed, 2));
    assert_eq!(receipts(&bench), ["1.000000"]);
}

#[test]
fn a_job_that_is_finished_before_it_was_given_is_a_breach() {
    let (mut bench, uuid) = accepted(|_| {});
    bench.says(0, finished(&uuid, RIGHT));
    assert_eq!(only(&bench).0, O::ProtocolError);
    let mut bench = begun(2, |_| {});
    bench.says(0, manifest(&[(CLASS, 1)]));
    bench.says(1, manifest(&[(CLASS, 1)]));
    let uuid = bench.uuid(0, 0);
    // Another miner's word says nothing of it.
    bench.says(1, finished(&uuid, RIGHT));
    bench.says(1, decline(&uuid));
    assert_eq!(bench.lines.len(), 0);
}

#[test]
fn a_late_answer_is_noted_and_does_not_count() {
    let (mut bench, uuid) = sent(|_| {});
    // 5 s of leeway, 60 s of the first stage and 10 s of margin.
    bench.wait(75_001);
    assert_eq!((bench.lines.len(), bench.ending), (0, None), "late answers are waited for");
    bench.wait(119_000);
    bench.says(0, finished(&uuid, RIGHT));
    let (outcome, reason) = only(&bench);
    assert_eq!((outcome, reason.as_str()), (O::Timeout, "late by 119.001 s: completed"));
    let line = &bench.lines[0];
    assert!(line.late && !line.scored && line.answered_at.is_some(), "{line:?}");
    assert_eq!(receipts(&bench), ["0.000000"]);

    let (mut bench, uuid) = sent(|_| {});
    bench.wait(75_001);
    bench.wait(120_000);
    bench.says(0, finished(&uuid, RIGHT));
    assert!(!bench.lines[0].late && bench.lines[0].answered_at.is_none(), "after two minutes nobody listens");
}

#[test]
fn an_answer_that_came_in_time_counts_although_the_clock_was_looked_at_first() {
    let (mut bench, uuid) = sent(|_| {});
    bench.wait(74_000);
    let came = bench.now;
    bench.wait(1_500);
    let now = std::mem::replace(&mut bench.now, came);
    // Its stage had ended and the next has begun when the answer came, all before the deadline.
    bench.says(0, volumes(&uuid));
    bench.says(0, finished(&uuid, RIGHT));
    bench.now = now;
    assert_eq!(only(&bench).0, O::Completed);
    assert!(bench.lines[0].scored);
}

#[test]
fn each_stage_extends_the_time() {
    let (mut bench, uuid) = sent(|_| {});
    bench.wait(70_000);
    bench.says(0, volumes(&uuid));
    bench.wait(60_000);
    bench.says(0, execution_done(&uuid));
    bench.wait(60_000);
    bench.says(0, finished(&uuid, RIGHT));
    assert_eq!(only(&bench).0, O::Completed);
}

#[test]
fn at_its_limits_the_batch_ends_whatever_its_miners_do() {
    let mut bench = begun(4, |config| (config.limit, config.connects) = (Duration::from_secs(60), 3));
    let begun_at = bench.now.mono;
    let [busy, slow, silent] = [bench.connected[0], bench.connected[1], bench.connected[2]];
    bench.says(busy, manifest(&[(CLASS, 1)]));
    bench.says(slow, manifest(&[(CLASS, 1)]));
    for miner in [busy, slow] {
        let uuid = bench.uuid(miner, 0);
        bench.says(miner, accept(&uuid));
        bench.says(miner, ready(&uuid));
    }
    bench.wait(15_001);
    // The fourth could not be connected to either, and the gate has opened.
    bench.wait(15_001);
    assert_eq!((bench.gates, bench.lines.len()), (1, 2), "{silent} and the fourth: {:?}", bench.lines);
    bench.wait(30_000);
    assert_eq!(bench.lines.len(), 2, "between the limits late answers are heard");
    let uuid = bench.uuid(slow, 0);
    bench.says(slow, finished(&uuid, RIGHT));
    assert!(bench.lines[2].late && bench.lines[2].outcome == Some(O::Timeout), "{:?}", bench.lines[2]);
    bench.run_to_its_end();
    assert_eq!(bench.now.mono - begun_at, Duration::from_secs(70));
    assert_eq!((bench.lines.len(), bench.lines[3].outcome), (4, Some(O::Timeout)));
}

#[test]
fn the_horde_s_failure_before_the_gate_is_tried_again_and_a_wrong_answer_never() {
    let (mut bench, first) = accepted(|_| {});
    bench.says(0, horde_failed(&first));
    let second = bench.uuid(0, 0);
    assert_ne!(first, second, "a miner takes a uuid once");
    // What it still says of the first is not about the second.
    bench.says(0, accept(&first));
    bench.says(0, ready(&first));
    bench.says(0, accept(&second));
    bench.says(0, ready(&second));
    bench.says(0, finished(&second, RIGHT));
    let (outcome, reason) = only(&bench);
    let flaky = "flaky: attempt 2, executor_spinup_failed: no engine";
    assert_eq!((outcome, reason.as_str()), (O::Completed, flaky));
    // Twice is a failure, and so is one without retries.
    for retries in [0, 1] {
        let (mut bench, uuid) = accepted(|config| config.retries = retries);
        bench.says(0, horde_failed(&uuid));
        if retries == 1 {
            let uuid = bench.uuid(0, 0);
            bench.says(0, horde_failed(&uuid));
        }
        assert_eq!(only(&bench).0, O::HordeFailed);
    }
}

#[test]
fn what_may_have_been_lost_with_a_connection_is_sent_again() {
    let lost = || Input::Miner(0, MinerInput::Lost("cut".to_owned()));
    let mut bench = begun(1, |_| {});
    bench.says(0, manifest(&[(CLASS, 1)]));
    let uuid = bench.uuid(0, 0);
    let again = |bench: &mut Bench| {
        let before = bench.sent.len();
        bench.feed(lost());
        bench.says(0, manifest(&[(CLASS, 1)]));
        // A manifest without a loss repeats nothing.
        bench.says(0, manifest(&[(CLASS, 9)]));
        bench.sent[before..].iter().map(|(_, message)| kind_of(message)).collect::<Vec<_>>()
    };
    assert_eq!(again(&mut bench), ["initial"]);
    bench.says(0, accept(&uuid));
    assert_eq!([again(&mut bench), again(&mut bench)], [["accepted-receipt"], ["accepted-receipt"]]);
    assert_eq!(again(&mut bench), [""; 0], "a Python miner breaks the connection at repeats");
    bench.says(0, ready(&uuid));
    assert_eq!(again(&mut bench), ["job"]);
    bench.says(0, finished(&uuid, RIGHT));
    assert_eq!(only(&bench).0, O::Completed);
}

#[test]
fn who_is_not_connected_when_the_gate_opens_gets_no_request_later() {
    let mut bench = begun(2, |_| {});
    for miner in 0..2 {
        bench.says(miner, manifest(&[(CLASS, 1)]));
        let uuid = bench.uuid(miner, 0);
        bench.says(miner, accept(&uuid));
    }
    let uuids = [bench.uuid(0, 0), bench.uuid(1, 0)];
    bench.says(0, ready(&uuids[0]));
    bench.feed(Input::Miner(0, MinerInput::Lost("cut".to_owned())));
    bench.says(1, ready(&uuids[1]));
    assert_eq!(only(&bench), (O::HordeFailed, "not connected when the gate opened (last trouble: cut)".to_owned()));
}
