//! Jobs over a restart of their miner, without threads or clocks.

use crate::miner_fixture::{Fixture, GONE, owner};
use crate::testkit::miner as miner_kit;
use std::time::Duration;

use miner_kit::{CLASS, SECOND, Says, kind, uuid};
use phalanx::base::ids::SessionId;
use phalanx::miner::executor_manager::{ExecutorError, ExecutorExit, Owner};
use phalanx::miner::router::{ExecutorFrame, Input};
use phalanx::store::miner::JobRow;

/// How far a job is when its miner is killed.
const REACHED: [&str; 7] = ["accepted", "ready", "asked", "running", "executed", "over", "over and gone"];

impl Fixture {
    /// A job at this point; gives its executor's token.
    fn job_at(&mut self, session: SessionId, job: &str, reached: &str) -> String {
        let at = REACHED.iter().position(|point| *point == reached).unwrap();
        let token = self.accepted(session, job);
        let executor = self.executor(&token);
        let request = self.alice.request(job);
        let steps: [&dyn Fn(&mut Self); 6] = [
            &|f| f.reports(executor, &Says(job).ready()),
            &|f| f.says(session, &request),
            &|f| f.reports(executor, &Says(job).volumes()),
            &|f| f.reports(executor, &Says(job).done()),
            &|f| f.reports(executor, &Says(job).finished("x")),
            &|f| {
                f.handle(Input::Closed(executor));
                f.ended(&token, GONE);
            },
        ];
        steps[..at].iter().for_each(|step| step(self));
        self.mail.clear();
        token
    }
}

#[test]
fn a_job_goes_on_where_it_was_after_a_restart_of_its_miner() {
    for (at, reached) in REACHED.into_iter().enumerate() {
        let mut f = Fixture::new(1);
        let (alice, job) = (f.alice.clone(), uuid());
        let session = f.validator(&alice);
        let token = f.job_at(session, &job, reached);
        let run = f.started[0].run.clone();
        f.restart(SECOND, Owner { epoch: 2, ..owner() });
        let lives = reached != "over and gone";
        assert_eq!(f.adopted.iter().map(|spec| &spec.run).collect::<Vec<_>>(), vec![&run; usize::from(lives)]);
        assert_eq!(f.free(), usize::from(!lives), "{reached}: its slot is taken as long as its executor lives");
        if lives {
            assert_eq!((&f.adopted[0].token, f.adopted[0].owner.epoch), (&token, 1), "as it was started");
        }
        // The executor finds its miner again by its token; the validator hears what it has not confirmed.
        let executor = f.executor(&token);
        let back = f.validator(&alice);
        let kept = f.got(back);
        let all = ["AcceptJob", "ExecutorReady", "VolumesReady", "ExecutionDone", "JobFinished"];
        let expected: &[&str] = match reached {
            "accepted" => &all[..1],
            "ready" => &all[..2],
            // Its request shows that the validator knows of the executor.
            "asked" => &[],
            "running" => &all[2..3],
            "executed" => &all[2..4],
            _ => &all[2..],
        };
        assert_eq!(kept, expected, "{reached}");
        let pushed = f.got(executor);
        if at == 0 {
            assert_eq!(pushed, ["InitialJob"]);
            f.reports(executor, &Says(&job).ready());
        }
        if at < 2 {
            f.says(back, &alice.request(&job));
            assert_eq!(f.got(executor), ["Job"], "{reached}");
        }
        if reached == "asked" {
            assert_eq!(pushed, ["Job"], "it may not have it");
        }
        if at < 5 {
            f.reports(executor, &Says(&job).volumes());
            f.reports(executor, &Says(&job).done());
            f.reports(executor, &Says(&job).finished("x"));
            assert_eq!(f.got(back).last().map(String::as_str), Some("JobFinished"), "{reached}");
        }
        f.says(back, &alice.finished_receipt(&job));
        if lives {
            f.ended(&token, Ok(ExecutorExit::Unknown));
        }
        assert_eq!((f.free(), f.disk.len()), (1, 0), "{reached}: nothing is left of it");
        assert_eq!(f.router.status().breach, None);
    }
}

#[test]
fn a_job_whose_executor_is_gone_after_a_restart_ends_in_horde_failed() {
    for reached in &REACHED[..5] {
        let mut f = Fixture::new(1);
        let (alice, job) = (f.alice.clone(), uuid());
        let session = f.validator(&alice);
        let token = f.job_at(session, &job, reached);
        f.restart(SECOND, Owner { epoch: 2, ..owner() });
        f.ended(&token, Err(ExecutorError::Lost));
        assert_eq!(f.free(), 1, "{reached}");
        let back = f.validator(&alice);
        let texts = f.texts(back);
        let reason = if *reached == "accepted" { "executor_spinup_failed" } else { "executor_disconnected" };
        assert_eq!(kind(texts.last().unwrap()), format!("HordeFailed {reason}"), "{reached}");
        assert!(texts.last().unwrap().contains("it ended while its miner did not run"), "{texts:?}");
        f.says(back, &alice.finished_receipt(&job));
        assert_eq!(f.disk.len(), 0);
    }
}

#[test]
fn what_is_left_of_limits_counts_after_a_restart_and_the_time_without_a_miner_does_not() {
    let (mut f, alice, session) = Fixture::with_alice(1);
    let job = uuid();
    // Leeway and download have a second each; the miner grants its own leeway beyond.
    let token = f.job_at(session, &job, "asked");
    let left = 2 * SECOND + f.limits.leeway;
    f.restart(left - SECOND, Owner { epoch: 2, ..owner() });
    f.executor(&token);
    let back = f.validator(&alice);
    // When the miner was killed is not known: an executor that lives has waited for it at most so long.
    f.pass(f.limits.reconnect_grace + SECOND / 2);
    assert_eq!(f.got(back), Vec::<String>::new());
    f.pass(SECOND);
    assert_eq!(f.got(back), ["HordeFailed volumes_timed_out"]);

    // An executor that lives and does not come back is lost after the grace.
    let job = uuid();
    let mut f = Fixture::new(1);
    let session = f.validator(&alice);
    f.job_at(session, &job, "ready");
    f.restart(SECOND, Owner { epoch: 2, ..owner() });
    f.pass(f.limits.reconnect_grace);
    let back = f.validator(&alice);
    let texts = f.texts(back);
    assert!(texts.last().unwrap().contains("the executor disconnected and did not come back"), "{texts:?}");
}

#[test]
fn neither_the_miner_s_downtime_nor_a_lost_connection_is_the_validator_s_delay() {
    let started = || {
        let mut f = Fixture::new(1);
        let (alice, job) = (f.alice.clone(), uuid());
        let session = f.validator(&alice);
        let token = f.job_at(session, &job, "ready");
        (f, alice, job, token)
    };
    // The time for the request passes while there is no miner.
    let (mut f, alice, job, token) = started();
    f.restart(f.limits.request_time + f.limits.reconnect_grace / 2, Owner { epoch: 2, ..owner() });
    f.handle(Input::Tick);
    let executor = f.executor(&token);
    let back = f.validator(&alice);
    f.says(back, &alice.request(&job));
    assert_eq!(f.got(executor), ["Job"]);

    // The executor had ended, and what it said last may be in the spool.
    for is_spooled in [false, true] {
        let (mut f, alice, job, token) = started();
        f.handle(Input::ExecutorEnded { token: token.clone(), end: Ok(ExecutorExit::Code(7)) });
        f.restart(Duration::from_secs(600), Owner { epoch: 2, ..owner() });
        f.handle(Input::Tick);
        if is_spooled {
            let frames = vec![ExecutorFrame::read(&Says(&job).finished("x"))];
            f.handle(Input::Spooled { token: token.clone(), frames });
        }
        f.pass(Duration::from_secs(10));
        let back = f.validator(&alice);
        let texts = f.texts(back);
        let last = texts.last().unwrap();
        match is_spooled {
            true => assert_eq!(kind(last), "JobFinished"),
            false => assert!(kind(last).ends_with("executor_disconnected") && last.contains("ended with"), "{last}"),
        }
    }
}

#[test]
fn the_job_request_is_kept_only_as_long_as_the_executor_may_lack_it() {
    let kept = |reached: &str| {
        let mut f = Fixture::new(1);
        let (alice, job) = (f.alice.clone(), uuid());
        let session = f.validator(&alice);
        f.job_at(session, &job, reached);
        f.disk[&job].request.is_some()
    };
    assert_eq!(["ready", "asked", "running", "executed"].map(kept), [false, true, false, false]);
}

#[test]
fn a_job_is_on_disk_before_it_is_accepted_and_one_that_was_not_told_so_is_told_after_a_restart() {
    let mut f = Fixture::new(1);
    f.store = || None;
    let (alice, job) = (f.alice.clone(), uuid());
    let session = f.validator(&alice);
    f.says(session, &alice.ask(&job));
    assert_eq!((f.got(session), f.disk.len()), (vec![], 0), "it is not there without its receipt");
    // Killed after both are on disk, and before that is known.
    let row = f.orders.remove(0).row.unwrap();
    f.disk.insert(job.clone(), *row);
    f.restart(SECOND, Owner { epoch: 2, ..owner() });
    let token = f.adopted[0].token.clone();
    f.ended(&token, Err(ExecutorError::Lost));
    let back = f.validator(&alice);
    assert_eq!(f.got(back), ["AcceptJob", "HordeFailed executor_spinup_failed"]);

    // One that was declined is not remembered.
    let mut f = Fixture::new(1);
    f.store = || Some(Ok(false));
    let session = f.validator(&alice);
    f.says(session, &alice.ask(&job));
    assert_eq!((f.got(session), f.disk.len()), (vec!["DeclineJob unknown".to_owned()], 0));
}

#[test]
fn after_a_restart_with_fewer_slots_what_has_none_is_failed_and_what_cannot_be_read_is_forgotten() {
    let mut f = Fixture::new(2);
    let (alice, jobs) = (f.alice.clone(), [uuid(), uuid()]);
    let session = f.validator(&alice);
    for job in &jobs {
        f.job_at(session, job, "asked");
    }
    f.config.executors = vec![(CLASS, 1)];
    f.disk.insert("other".to_owned(), JobRow { uuid: "other".to_owned(), ..f.disk[&jobs[0]].clone() });
    f.disk.get_mut("other").unwrap().state = "{}".to_owned();
    f.restart(SECOND, Owner { epoch: 2, ..owner() });
    assert_eq!((f.adopted.len(), f.disk.len()), (1, 2));
    let back = f.validator(&alice);
    let texts = f.texts(back);
    assert!(texts.len() == 1 && texts[0].contains("started again with fewer executors"), "{texts:?}");
}
