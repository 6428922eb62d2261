//! One miner, or a few: how a batch ends that is cancelled, aborted or goes on, and what is asked for again.

use std::time::Duration;

use super::bench::*;
use super::tables::{begun, only, receipts, refused, sent};
use crate::protocol::{GenericError, JobRejectionReason, V0DeclineJobRequest};
use crate::validator::batch::config::BatchConfig;
use crate::validator::batch::kept::{KeptJob, KeptState, Place};
use crate::validator::batch::line::{BatchOutcome as O, JobLine};
use crate::validator::batch::state::{Ending, Input};

#[test]
fn a_cancel_closes_all_and_says_nothing_of_what_has_not_ended() {
    let mut bench = begun(3, |_| {});
    bench.says(0, manifest(&[(CLASS, 2)]));
    let uuid = bench.uuid(0, 0);
    bench.says(0, decline(&uuid));
    bench.feed(Input::Cancel);
    assert_eq!((only(&bench).0, bench.ending), (O::Declined, Some(Ending::Cancelled)));
    assert_eq!(receipts(&bench), ["0.000000"], "the other's executor is free again");
}

#[test]
fn a_cancel_tells_miners_that_nobody_waits_and_what_goes_on_asks_under_other_uuids() {
    let in_folder = |config: &mut BatchConfig| config.state_dir = Some("somewhere".into());
    let mut bench = begun(3, in_folder);
    bench.says(0, manifest(&[(CLASS, 2)]));
    bench.says(1, manifest(&[(CLASS, 1)]));
    let before = bench.planned.len();
    let asked = [bench.uuid(0, 0), bench.uuid(0, 1), bench.uuid(1, 0)];
    bench.says(0, accept(&asked[0]));
    bench.says(0, ready(&asked[0]));
    bench.says(0, accept(&asked[1]));
    bench.feed(Input::Cancel);
    assert_eq!((receipts(&bench), bench.ending), (vec!["0.000000".to_owned(); 3], Some(Ending::Cancelled)));
    let rows = bench.planned.split_off(before);
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row.attempts == 2 && !asked.contains(&row.uuid)), "{rows:?}");

    // It goes on with all of its tries.
    let kept = rows.iter().map(|row| KeptJob { place: row.place, state: KeptState::Planned(Box::new(row.clone())) });
    let mut bench = Bench::new(config(7), 3, kept.collect());
    bench.feed(Input::Start);
    bench.says(1, manifest(&[(CLASS, 1)]));
    let uuid = rows[2].uuid.clone();
    bench.says(1, accept(&uuid));
    bench.says(1, horde_failed(&uuid));
    assert_eq!((bench.lines.len(), bench.planned.last().unwrap().attempts), (0, 3), "it is tried once more");
    // A miner that had a job before a kill, and has forgotten it, takes its uuid no more, which is not its fault.
    bench.says(0, manifest(&[(CLASS, 2)]));
    let unknown = |uuid: &str| V0DeclineJobRequest { reason: JobRejectionReason::Unknown, ..decline(uuid) };
    bench.says(0, unknown(&rows[0].uuid));
    let again = bench.planned.last().unwrap().clone();
    assert_eq!((bench.lines.len(), again.place, again.attempts), (0, rows[0].place, 3));
    bench.says(0, unknown(&again.uuid));
    assert_eq!(bench.lines.len(), 1, "it is asked once more, and not for ever");

    // What was not asked for is told to nobody, and stays as it is.
    let mut bench = begun(2, in_folder);
    bench.says(1, manifest(&[(CLASS, 100)]));
    bench.feed(Input::Cancel);
    assert_eq!((receipts(&bench).len(), bench.planned.len()), (64, 164));
}

#[test]
fn a_cancel_before_the_gate_is_kept_plans_anew_what_was_about_to_leave_and_never_what_has_left() {
    let ready_at_gate = |change: fn(&mut Bench)| {
        let mut bench = begun(2, |config| config.max_fail = Some(0));
        change(&mut bench);
        for miner in 0..2 {
            bench.says(miner, manifest(&[(CLASS, 1)]));
        }
        let uuids = [bench.uuid(0, 0), bench.uuid(1, 0)];
        for (miner, uuid) in uuids.iter().enumerate() {
            bench.says(miner, accept(uuid));
            bench.says(miner, ready(uuid));
        }
        (bench, uuids)
    };
    let (mut bench, uuids) = ready_at_gate(|bench| bench.keeps_long = true);
    bench.feed(Input::Cancel);
    bench.feed(Input::GateKept);
    assert_eq!((bench.gates, bench.lines.len(), bench.ending), (0, 0, Some(Ending::Cancelled)));
    let anew = &bench.planned[2..];
    assert_eq!(anew.len(), 2);
    assert!(anew.iter().all(|row| row.attempts == 2 && !uuids.contains(&row.uuid)), "{anew:?}");

    let (mut bench, _) = ready_at_gate(|_| {});
    bench.feed(Input::Cancel);
    assert_eq!((bench.gates, bench.planned.len(), bench.ending), (1, 2, Some(Ending::Cancelled)));

    // The batch is aborted by the first that could not be sent, before it has heard that the other was.
    for miner in 0..2 {
        let (bench, _) = ready_at_gate(match miner {
            0 => |bench| bench.takes_nothing = Some(0),
            _ => |bench| bench.takes_nothing = Some(1),
        });
        assert_eq!((bench.gates, bench.planned.len(), bench.ending), (1, 2, Some(Ending::Aborted)));
    }
}

#[test]
fn beyond_the_threshold_it_is_aborted_and_not_before() {
    for (percent, ending) in [(50, Ending::Complete), (49, Ending::Aborted), (0, Ending::Aborted)] {
        let mut bench = begun(2, |config| config.max_fail = Some(percent));
        bench.feed(Input::Miner(0, refused()));
        if bench.ending.is_none() {
            bench.says(1, manifest(&[(CLASS, 1)]));
            let uuid = bench.uuid(1, 0);
            bench.says(1, accept(&uuid));
            bench.says(1, ready(&uuid));
            bench.says(1, finished(&uuid, RIGHT));
        }
        assert_eq!(bench.ending, Some(ending), "{percent}");
    }
}

#[test]
fn one_miner_with_many_jobs_counts_as_one() {
    let lying = |percent| {
        let mut bench = begun(3, |config| config.max_fail = Some(percent));
        bench.says(0, manifest(&[(CLASS, 64)]));
        for job in 0..64 {
            assert_eq!(bench.ending, None, "{job}");
            let uuid = bench.uuid(0, job);
            bench.says(0, decline(&uuid));
            if percent == 33 && job == 32 {
                assert_eq!(bench.ending, Some(Ending::Aborted), "most of them have failed");
                return bench;
            }
        }
        bench
    };
    lying(33);
    let mut bench = lying(34);
    assert_eq!((bench.ending, bench.batch.progress().failed), (None, 64));
    let jobs = [(1, 0), (1, 1), (2, 0)];
    bench.says(1, manifest(&[(CLASS, 2)]));
    bench.says(2, manifest(&[(CLASS, 1)]));
    let uuids = jobs.map(|(miner, job)| bench.uuid(miner, job));
    for ((miner, _), uuid) in jobs.iter().zip(&uuids) {
        bench.says(*miner, accept(uuid));
        bench.says(*miner, ready(uuid));
    }
    // Half of the jobs of another fail, then the one of the third.
    bench.says(1, finished(&uuids[0], RIGHT));
    bench.says(1, failed(&uuids[1]));
    assert_eq!((bench.gates, bench.ending), (1, None));
    bench.says(2, failed(&uuids[2]));
    assert_eq!(bench.ending, Some(Ending::Aborted));
}

#[test]
fn what_failed_before_aborts_nothing_that_goes_on_until_another_miner_fails() {
    let planned = |miner| {
        let mut bench = begun(5, |_| {});
        bench.says(miner, manifest(&[(CLASS, 1)]));
        let row = bench.planned[0].clone();
        KeptJob { place: row.place, state: KeptState::Planned(Box::new(row)) }
    };
    let failed_before = |miner| {
        let line = JobLine::of_miner(hotkey(miner).to_ss58(), O::Refused, "nobody there");
        KeptJob { place: Place { miner, job: Place::NO_JOB }, state: KeptState::Ended(Box::new(line)) }
    };
    let kept = vec![failed_before(0), failed_before(1), failed_before(2), planned(3), planned(4)];
    let uuids: Vec<String> = [3, 4]
        .map(|n| match &kept[n].state {
            KeptState::Planned(row) => row.uuid.clone(),
            other => panic!("{other:?}"),
        })
        .into();
    let mut bench = Bench::new(BatchConfig { max_fail: Some(50), ..config(7) }, 5, kept);
    bench.feed(Input::Start);
    assert_eq!((bench.shown.len(), bench.ending), (3, None));
    for (miner, uuid) in [3, 4].into_iter().zip(&uuids) {
        bench.says(miner, manifest(&[(CLASS, 1)]));
        bench.says(miner, accept(uuid));
        bench.says(miner, ready(uuid));
    }
    bench.says(3, finished(&uuids[0], RIGHT));
    assert_eq!((bench.gates, bench.ending), (1, None));
    bench.says(4, failed(&uuids[1]));
    assert_eq!(bench.ending, Some(Ending::Aborted));
}

#[test]
fn a_dry_run_plans_and_asks_for_nothing() {
    let mut bench = begun(2, |config| config.dry_run = true);
    bench.says(0, manifest(&[(CLASS, 3)]));
    bench.says(1, manifest(&[]));
    assert_eq!((bench.shown.len(), bench.sent.len(), bench.ending), (3, 0, Some(Ending::Complete)));
    assert!(bench.shown.iter().all(|line| line.outcome.is_none() && line.job_uuid.is_some()));
    assert_eq!(only(&bench).0, O::Declined);
}

#[test]
fn the_same_seed_asks_in_the_same_order() {
    let order = |seed| {
        let mut bench = Bench::new(config(seed), 50, Vec::new());
        bench.feed(Input::Start);
        bench.connected
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}

#[test]
fn a_batch_that_goes_on_keeps_ends_settles_what_had_left_and_asks_for_the_rest_as_before() {
    let (mut before, _) = sent(|_| {});
    before.says(0, finished(&before.uuid(0, 0), RIGHT));
    let ended = before.lines[0].clone();
    let mut left = JobLine::of_miner(hotkey(1).to_ss58(), O::HordeFailed, "as if nothing more is heard");
    left.job_uuid = Some("left".to_owned());
    let mut planned = begun(3, |_| {});
    planned.says(2, manifest(&[(CLASS, 1)]));
    let row = planned.planned[0].clone();
    let at = |miner, job| Place { miner, job };
    let kept = vec![
        KeptJob { place: at(0, 0), state: KeptState::Ended(Box::new(ended.clone())) },
        KeptJob { place: at(1, 0), state: KeptState::Sent(Box::new(left)) },
        KeptJob { place: at(2, 0), state: KeptState::Planned(Box::new(row.clone())) },
    ];
    let mut bench = Bench::new(config(7), 3, kept);
    bench.feed(Input::Start);
    assert_eq!(bench.connected, [2], "the others have nothing left to do");
    assert_eq!(bench.shown, [ended]);
    let (outcome, reason) = only(&bench);
    assert!(outcome == O::HordeFailed && reason.starts_with("the batch was interrupted after"), "{reason}");
    bench.says(2, manifest(&[(CLASS, 9)]));
    assert_eq!((bench.planned.len(), bench.uuid(2, 0)), (1, row.uuid.clone()), "as it was planned, not anew");
    bench.says(2, accept(&row.uuid));
    bench.says(2, ready(&row.uuid));
    bench.says(2, finished(&row.uuid, RIGHT));
    assert_eq!((bench.lines.len(), bench.ending), (2, Some(Ending::Complete)));
}

#[test]
fn a_word_of_trouble_is_told_with_the_time_out() {
    let (mut bench, _) = sent(|config| config.late = Duration::ZERO);
    bench.says(0, GenericError { details: Some("disk\nfull".to_owned()) });
    bench.run_to_its_end();
    let expected = "waiting for the volumes took too long (last trouble: disk\\nfull)";
    assert_eq!(only(&bench), (O::Timeout, expected.to_owned()));
}
