use super::super::cheats::{self, ReportSigned};
use super::*;
use crate::base::rng::Rng;
use crate::link::Kind;
use crate::validator::authorization::{Authorized, SIGNATURE_AHEAD};

fn moment(ms: u64) -> Now {
    thread_local!(static START: Instant = Instant::now());
    let wall = Duration::from_millis(1_000_000 + ms);
    Now { mono: START.with(|start| *start) + Duration::from_millis(ms), wall }
}

fn tag(message: &Outgoing) -> u64 {
    match message.kind {
        Kind::Kept { tag } => tag,
        other => panic!("an update is {other:?}"),
    }
}

fn ledger() -> Ledger {
    Ledger::new(LedgerLimits::default(), RetryPolicies::default(), false)
}

fn accept(ledger: &mut Ledger, job: u64, status: JobStatus) -> Option<Outgoing> {
    ledger.accept(job, status, status.as_str().into(), moment(0)).unwrap().1
}

fn text(message: Option<Outgoing>) -> Option<String> {
    Some(message?.text.to_string())
}

#[test]
fn inside_a_job_each_update_waits_for_the_answer_to_the_one_before() {
    let mut ledger = ledger();
    let job = ledger.take("a", false, moment(0)).unwrap();
    assert_eq!(text(accept(&mut ledger, job, JobStatus::Received)).unwrap(), "received");
    assert_eq!(accept(&mut ledger, job, JobStatus::Accepted), None);
    assert_eq!(accept(&mut ledger, job, JobStatus::Completed), None);
    let settled = ledger.settle(job, &Reply::Stored, moment(1));
    assert_eq!(text(settled.next).unwrap(), "accepted");
    assert_eq!(text(ledger.settle(job, &Reply::Stored, moment(1)).next).unwrap(), "completed");
    assert_eq!(ledger.settle(job, &Reply::Stored, moment(1)), Settled::default());
    assert_eq!(ledger.counts(), Counts::default());
    assert_eq!(ledger.settle(job, &Reply::Stored, moment(1)), Settled::default(), "one answer too many");
}

#[test]
fn a_job_moves_forward_only_and_ends_once() {
    let mut ledger = ledger();
    let job = ledger.take("a", false, moment(0)).unwrap();
    accept(&mut ledger, job, JobStatus::VolumesReady);
    let mut refused = |status| ledger.accept(job, status, "".into(), moment(0)).unwrap_err().to_string();
    assert_eq!(refused(JobStatus::Accepted), "job a is volumes_ready: it cannot go back to accepted");
    assert_eq!(refused(JobStatus::VolumesReady), "job a is volumes_ready: it cannot go back to volumes_ready");
    accept(&mut ledger, job, JobStatus::StreamingReady);
    accept(&mut ledger, job, JobStatus::Failed);
    let late = ledger.accept(job, JobStatus::Completed, "".into(), moment(0)).unwrap_err();
    assert_eq!(late.to_string(), "job a has ended: completed comes too late");
    assert_eq!(ledger.accept(99, JobStatus::Failed, "".into(), moment(0)).unwrap_err(), UpdateError::NoSuchJob);
}

#[test]
fn a_uuid_is_taken_once_until_it_is_forgotten() {
    let limits = LedgerLimits { remembered: 2, ..LedgerLimits::default() };
    let mut ledger = Ledger::new(limits, RetryPolicies::default(), true);
    for uuid in ["a", "b", "c"] {
        let job = ledger.take(uuid, false, moment(0)).unwrap();
        assert_eq!(ledger.take(uuid, false, moment(0)), None);
        accept(&mut ledger, job, JobStatus::Rejected);
        let batch = ledger.batch();
        assert_eq!(ledger.synced(&batch).len(), 1);
        ledger.settle(job, &Reply::Stored, moment(0));
    }
    assert_eq!(ledger.take("b", false, moment(0)), None);
    assert!(ledger.take("a", false, moment(0)).is_some(), "two ended after it");
    assert!(ledger.batch().rows.contains(&(1, None)), "its row goes too");
}

#[test]
fn steps_are_refused_beyond_the_bounds_and_ends_never() {
    let limits = LedgerLimits { updates: 2, bytes: 20, ..LedgerLimits::default() };
    let mut ledger = Ledger::new(limits, RetryPolicies::default(), false);
    let jobs: Vec<u64> = ["a", "b", "c"].into_iter().map(|uuid| ledger.take(uuid, false, moment(0)).unwrap()).collect();
    accept(&mut ledger, jobs[0], JobStatus::Received);
    let full = ledger.accept(jobs[1], JobStatus::Received, "x".repeat(13).into(), moment(0));
    assert_eq!(full.unwrap_err(), UpdateError::Full { updates: 1, bytes: 8 });
    accept(&mut ledger, jobs[1], JobStatus::Received);
    let full = ledger.accept(jobs[2], JobStatus::Received, "".into(), moment(0));
    assert_eq!(full.unwrap_err().to_string(), "too many updates wait for the facilitator: 2, 16 bytes");
    accept(&mut ledger, jobs[2], JobStatus::Completed);
    assert_eq!(ledger.counts().unsent, 3);
}

#[test]
fn ends_pass_the_steps_of_other_jobs_and_steps_age() {
    let mut ledger = ledger();
    let jobs: Vec<u64> = ["a", "b", "c"].into_iter().map(|uuid| ledger.take(uuid, false, moment(0)).unwrap()).collect();
    let mut accept = |job, status, ms| ledger.accept(job, status, "".into(), moment(ms)).unwrap().1.unwrap();
    let step = accept(jobs[0], JobStatus::Received, 0);
    let end = accept(jobs[1], JobStatus::Rejected, 999);
    let late_end = accept(jobs[2], JobStatus::Rejected, 1001);
    assert!(end.rank < step.rank && step.rank < late_end.rank);
    assert_eq!((tag(&end), tag(&step)), (jobs[1], jobs[0]));
}

#[test]
fn a_step_before_an_end_is_as_urgent_as_the_end() {
    let mut ledger = ledger();
    let job = ledger.take("a", false, moment(0)).unwrap();
    accept(&mut ledger, job, JobStatus::Received);
    accept(&mut ledger, job, JobStatus::Accepted);
    accept(&mut ledger, job, JobStatus::Completed);
    let step = ledger.settle(job, &Reply::Stored, moment(5)).next.unwrap();
    assert_eq!((step.text.as_str(), step.rank), ("accepted", Rank::new(moment(0).unix_millis(), Duration::ZERO)));
}

#[test]
fn a_poison_update_is_given_up_and_blocks_only_its_own_job() {
    let mut ledger = ledger();
    let jobs: Vec<u64> = ["a", "b"].into_iter().map(|uuid| ledger.take(uuid, false, moment(0)).unwrap()).collect();
    accept(&mut ledger, jobs[0], JobStatus::Received);
    accept(&mut ledger, jobs[0], JobStatus::Completed);
    let mut now = 0;
    let mut tries = 1;
    let dead = loop {
        let settled = ledger.settle(jobs[0], &Reply::Refused("no".to_owned()), moment(now));
        let Some(at) = settled.retry_at else { break settled };
        assert_eq!(ledger.next_retry(), Some(at));
        assert!(ledger.retry(at - Duration::from_millis(1)).is_empty());
        now = u64::try_from((at - moment(0).mono).as_millis()).unwrap();
        assert_eq!(ledger.retry(at)[0].text.as_str(), "received");
        tries += 1;
    };
    assert!(dead.dead && tries == 5 && now == 15_000, "{tries} tries, {now} ms");
    assert_eq!(text(dead.next).unwrap(), "completed");
    assert!(accept(&mut ledger, jobs[1], JobStatus::Received).is_some());
    assert_eq!(ledger.counts().dead, 1);
    let letter = &ledger.jobs[&jobs[0]].record.dead[0];
    assert_eq!((letter.update.status, letter.reason.as_str()), (JobStatus::Received, "refused 5 times, last: no"));
}

#[test]
fn dead_letters_are_bounded_and_the_oldest_go() {
    let limits = LedgerLimits { dead: 2, remembered: 1, ..LedgerLimits::default() };
    let none = RetryPolicy { base: Duration::from_secs(1), cap: Duration::from_secs(1), give_up_after: Duration::ZERO };
    let retries = RetryPolicies { not_found: none, step: none, terminal: none };
    let mut ledger = Ledger::new(limits, retries, true);
    for n in 0..5 {
        let job = ledger.take(&n.to_string(), false, moment(0)).unwrap();
        accept(&mut ledger, job, JobStatus::Rejected);
        let batch = ledger.batch();
        ledger.synced(&batch);
        assert!(ledger.settle(job, &Reply::NotFound("no".to_owned()), moment(1)).dead);
    }
    assert_eq!(ledger.counts().dead, 2);
    let kept: Vec<&str> = ledger.jobs.values().filter(|e| !e.record.dead.is_empty()).map(|e| &*e.record.uuid).collect();
    assert!(kept.len() == 2 && kept.contains(&"3") && kept.contains(&"4"), "{kept:?}");
}

fn signer() -> PublicKey {
    PublicKey::from_bytes([9; 32])
}

/// A job with the signature of this number, made then.
fn signed(uuid: &str, number: u8, ms: u64) -> Authorized {
    Authorized::sample(uuid, signer(), [number; 64], moment(ms).unix_millis())
}

fn cheated(ledger: &mut Ledger, uuid: &str, trusted: &str, ms: u64) -> Result<PublicKey, &'static str> {
    let report = ReportSigned { by: signer(), signed_at: moment(ms).unix_millis() };
    ledger.cheated(uuid, trusted, report, moment(ms))
}

#[test]
fn a_signature_runs_one_job_also_after_a_restart_and_is_remembered_until_it_is_too_old() {
    let limits = LedgerLimits { remembered: 1, signed: 3, ..LedgerLimits::default() };
    let fresh = |age| Ledger::new(limits, RetryPolicies::default(), true).with_signature_age(age);
    let (short, long) = (Duration::from_millis(500), Duration::from_millis(1_000));
    let mut ledger = fresh(short);
    let mut disk: HashMap<u64, Vec<u8>> = HashMap::new();
    fn write(ledger: &mut Ledger, disk: &mut HashMap<u64, Vec<u8>>) {
        let batch = ledger.batch();
        for (job, row) in &batch.rows {
            match row {
                Some(row) => disk.insert(*job, row.clone()),
                None => disk.remove(job),
            };
        }
        ledger.written(&batch);
        ledger.synced(&batch);
    }
    let run = |ledger: &mut Ledger, disk: &mut HashMap<u64, Vec<u8>>, uuid: &str, number, ms| {
        let job = ledger.take(uuid, false, moment(ms)).unwrap();
        let admitted = ledger.admit(job, &signed(uuid, number, 0), moment(ms));
        ledger.accept(job, JobStatus::Rejected, "".into(), moment(ms)).unwrap();
        write(ledger, disk);
        ledger.settle(job, &Reply::Stored, moment(ms));
        write(ledger, disk);
        admitted.map_err(|why| why.to_string())
    };
    let used =
        |by: &str| Err(format!("its signature came with job {by} before; each job needs a signature of its own"));
    assert_eq!(run(&mut ledger, &mut disk, "a", 1, 0), Ok(()));
    for n in 0..24 {
        assert_eq!(run(&mut ledger, &mut disk, &format!("again-{n}"), 1, 1), used("a"));
    }
    assert_eq!(run(&mut ledger, &mut disk, "b", 2, 2), Ok(()));
    // Beyond what is remembered for its uuid, and after a restart.
    let mut ledger = fresh(long);
    let mut rows: Vec<_> = disk.iter().map(|(n, row)| (*n, JobRecord::decode(row).unwrap())).collect();
    rows.sort_by_key(|(number, _)| *number);
    ledger.restore(rows, moment(3));
    assert_eq!(run(&mut ledger, &mut disk, "c", 1, 4), used("a"));
    assert_eq!(ledger.take("a", false, moment(4)), None, "a repeat, as before");
    assert_eq!(run(&mut ledger, &mut disk, "d", 3, 5), Ok(()));
    let full = Err(NotAdmitted::Full(3).to_string());
    assert_eq!(run(&mut ledger, &mut disk, "e", 4, 6), full);
    // What was written down under a shorter age is remembered for the present one.
    assert_eq!(run(&mut ledger, &mut disk, "late", 1, 1_001), used("a"));
    assert_eq!(run(&mut ledger, &mut disk, "late-full", 4, 1_001), full);
    // A job without a signature of its own is remembered no longer for those that have one.
    for n in 0..50 {
        assert_eq!(run(&mut ledger, &mut disk, &format!("forged-{n}"), 1, 7), used("a"));
    }
    assert!(ledger.jobs.len() <= 4 && disk.len() <= 4, "{} jobs, {} rows", ledger.jobs.len(), disk.len());
    // Too old to be taken, so nothing is lost with it.
    assert_eq!(run(&mut ledger, &mut disk, "f", 4, 1_002), Ok(()));
    assert!(ledger.jobs.len() <= 2 && disk.len() <= 2, "{} jobs, {} rows", ledger.jobs.len(), disk.len());
}

#[test]
fn after_a_release_without_signatures_what_may_have_run_a_job_of_its_is_signed_again() {
    let limits = LedgerLimits { remembered: 0, ..LedgerLimits::default() };
    let age = Duration::from_millis(1_000);
    let fresh = || Ledger::new(limits, RetryPolicies::default(), true).with_signature_age(age);
    let mut ledger = fresh();
    let ahead = u64::try_from(SIGNATURE_AHEAD.as_millis()).unwrap();
    let of_before = |uuid: &str, taken_at| JobRecord {
        ended: true,
        signature_lost: true,
        ..JobRecord::new(uuid.into(), moment(taken_at).unix_millis())
    };
    ledger.restore([(1, of_before("a", 20)), (2, of_before("b", 10))], moment(30));
    let mut admit = |uuid: &str, signed_at| {
        let job = ledger.take(uuid, false, moment(30)).unwrap();
        ledger.admit(job, &signed(uuid, signed_at as u8, signed_at), moment(30))
    };
    let refused = Err(NotAdmitted::SignedBefore);
    assert_eq!(admit("c", 20), refused, "it may be that of either");
    assert_eq!(admit("d", ahead + 20), refused, "a clock may have been as far ahead");
    assert_eq!(admit("e", ahead + 21), Ok(()));
    // Also after one more restart, for as long as such a signature counts.
    let rows = |ledger: &mut Ledger| {
        ["a", "b"].into_iter().filter(|uuid| ledger.by_uuid.contains_key(*uuid)).collect::<Vec<_>>()
    };
    let record = JobRecord::decode(&of_before("a", 20).encode()).unwrap();
    let mut ledger = fresh();
    ledger.restore([(1, record), (2, of_before("b", 10))], moment(ahead + 1_021));
    assert_eq!(rows(&mut ledger), ["a"]);
    ledger.forget_old(moment(ahead + 1_022));
    assert!(rows(&mut ledger).is_empty());
}

#[test]
fn what_the_link_cannot_carry_is_not_kept_and_what_was_kept_is_given_up_at_the_start() {
    let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
    let job = ledger.take("a", false, moment(0)).unwrap();
    let large = |bytes: usize| Utf8Bytes::from("x".repeat(bytes));
    let mut refused = |status, bytes| ledger.accept(job, status, large(bytes), moment(0)).unwrap_err().to_string();
    let step = refused(JobStatus::StreamingReady, STATUS_STEP_BYTES + 1);
    assert_eq!(step, "job a: streaming_ready has 131073 bytes, at most 131072 can be passed on");
    let end = refused(JobStatus::Completed, FACILITATOR_LINK_MESSAGE_BYTES + 1);
    assert_eq!(end, "job a: completed has 33554433 bytes, at most 33554432 can be passed on");
    assert_eq!(ledger.counts().unsent_bytes, 0);

    let update = |status, bytes| Update { status, queued_at: 1, text: large(bytes), version: 0 };
    let record = |uuid: &str, updates: Vec<Update>| {
        let last = updates.last().map(|update| update.status);
        let ended = last.is_some_and(JobStatus::is_terminal);
        JobRecord { last, ended, updates: updates.into(), ..JobRecord::new(uuid.into(), 1) }
    };
    let too_large = FACILITATOR_LINK_MESSAGE_BYTES + 1;
    let records = [
        record("step", vec![update(JobStatus::StreamingReady, too_large), update(JobStatus::Completed, 10)]),
        record("end", vec![update(JobStatus::Received, 10), update(JobStatus::Completed, too_large)]),
        record("open", vec![update(JobStatus::StreamingReady, too_large)]),
    ];
    let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
    let records = records.into_iter().enumerate().map(|(number, record)| (number as u64 + 1, record));
    let leaving: Vec<u64> = ledger.restore(records, moment(2)).iter().map(tag).collect();
    assert_eq!(leaving, [1, 2], "the end of the first, and the step of the second");
    let end = ledger.settle(2, &Reply::Stored, moment(3)).next.unwrap();
    assert!(
        end.text.contains("\"horde_failed\"") && end.text.contains("the job ended as completed, but"),
        "{}",
        end.text
    );
    assert_eq!(ledger.open_jobs().len(), 1, "it ends as any that was left");
    assert_eq!(ledger.batch().rows.len(), 3, "the disk has them no more");
}

#[test]
fn a_report_of_cheating_counts_once_for_each_job() {
    let miner = PublicKey::from_bytes([1; 32]);
    let mut ledger = ledger();
    let job = ledger.take("a", false, moment(0)).unwrap();
    let trusted = ledger.take("t", true, moment(0)).unwrap();
    assert_eq!(cheated(&mut ledger, "a", "t", 0), Err("the signer of the report has not signed the job"));
    assert!(ledger.admit(job, &signed("a", 1, 0), moment(0)).is_ok());
    assert_eq!(cheated(&mut ledger, "a", "t", 0), Err("no miner took the job"));
    ledger.ran_on(job, miner);
    ledger.ran_on(trusted, PublicKey::from_bytes([2; 32]));
    assert!(ledger.admit(trusted, &signed("t", 2, 0), moment(0)).is_ok());
    accept(&mut ledger, job, JobStatus::Completed);
    accept(&mut ledger, trusted, JobStatus::Completed);
    assert_eq!(cheated(&mut ledger, "a", "x", 0), Err("the trusted job that it is compared with is not known"));
    assert_eq!(cheated(&mut ledger, "t", "t", 0), Err("the job was for a trusted miner"));
    assert_eq!(cheated(&mut ledger, "a", "t", 7), Ok(miner));
    assert_eq!(cheated(&mut ledger, "a", "t", 8), Err("the job was reported before"));
    assert_eq!(cheated(&mut ledger, "b", "t", 0), Err("the job is not known"));
    assert_eq!(ledger.cheaters(), HashMap::from([(miner, moment(7).unix_millis())]));
}

#[test]
fn a_job_is_known_not_to_have_run_where_another_miner_took_it_or_none_did() {
    let mut ledger = ledger();
    let [one, other] = [1, 2].map(|n| PublicKey::from_bytes([n; 32]));
    let job = ledger.take("taken", false, moment(0)).unwrap();
    assert!(!ledger.did_not_run_on("taken", &other), "nobody knows yet");
    ledger.ran_on(job, one);
    assert!(!ledger.did_not_run_on("taken", &one));
    assert!(ledger.did_not_run_on("taken", &other));
    for (uuid, end, expected) in [("rejected", JobStatus::Rejected, true), ("cut", JobStatus::HordeFailed, false)] {
        let job = ledger.take(uuid, false, moment(0)).unwrap();
        accept(&mut ledger, job, end);
        assert_eq!(ledger.did_not_run_on(uuid, &one), expected, "{uuid}");
    }
    assert!(!ledger.did_not_run_on("of another validator", &one));
}

#[test]
fn who_cheated_is_known_however_many_jobs_come_after_it() {
    let limits = LedgerLimits { remembered: 2, ..LedgerLimits::default() };
    let mut ledger = Ledger::new(limits, RetryPolicies::default(), true).with_signature_age(Duration::from_secs(1));
    let miner = PublicKey::from_bytes([1; 32]);
    let run = |ledger: &mut Ledger, uuid: &str, trusted, number: u8, ms| {
        let job = ledger.take(uuid, trusted, moment(ms)).unwrap();
        ledger.admit(job, &signed(uuid, number, ms), moment(ms)).unwrap();
        ledger.ran_on(job, PublicKey::from_bytes([1 + u8::from(trusted); 32]));
        ledger.accept(job, JobStatus::Completed, "".into(), moment(ms)).unwrap();
        let batch = ledger.batch();
        ledger.synced(&batch);
        ledger.settle(job, &Reply::Stored, moment(ms));
    };
    run(&mut ledger, "a", false, 1, 0);
    run(&mut ledger, "t", true, 2, 0);
    assert_eq!(cheated(&mut ledger, "a", "t", 7), Ok(miner));
    for n in 0..100 {
        run(&mut ledger, &format!("later-{n}"), false, 3 + n, 2_000 + u64::from(n) * 2_000);
    }
    assert_eq!(ledger.jobs.len(), 2 + 1, "those remembered, and the one of the report");
    assert_eq!(ledger.cheaters(), HashMap::from([(miner, moment(7).unix_millis())]));
    assert_eq!(cheated(&mut ledger, "a", "later-99", 300_000), Err("the job was reported before"));
    let kept = 7 + cheats::KEPT_MS;
    run(&mut ledger, "last", false, 120, kept - 1);
    assert_eq!(ledger.cheaters().len(), 1);
    run(&mut ledger, "last-2", false, 121, kept);
    assert!(ledger.cheaters().is_empty());
}

/// Nothing leaves before it is as safe as it must be, also when updates come while a batch is being written.
#[test]
fn updates_leave_when_they_are_safe() {
    let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
    let jobs: Vec<u64> = ["a", "b"].into_iter().map(|uuid| ledger.take(uuid, false, moment(0)).unwrap()).collect();
    assert_eq!(accept(&mut ledger, jobs[0], JobStatus::Received), None);
    assert_eq!(accept(&mut ledger, jobs[1], JobStatus::Rejected), None);
    let batch = ledger.batch();
    assert!(batch.needs_sync);
    assert_eq!(accept(&mut ledger, jobs[0], JobStatus::Completed), None);
    assert_eq!(text(ledger.written(&batch).pop()).unwrap(), "received");
    assert!(!ledger.is_safe(2));
    assert_eq!(text(ledger.synced(&batch).pop()).unwrap(), "rejected");
    assert!(ledger.is_safe(2) && !ledger.is_safe(3));
    assert_eq!(ledger.settle(jobs[0], &Reply::Stored, moment(0)).next, None, "completed is not on disk");
    let batch = ledger.batch();
    assert!(ledger.written(&batch).is_empty());
    assert_eq!(text(ledger.synced(&batch).pop()).unwrap(), "completed");
}

#[test]
fn what_cannot_be_written_leaves_all_the_same_and_is_written_later() {
    let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
    let job = ledger.take("a", false, moment(0)).unwrap();
    accept(&mut ledger, job, JobStatus::Rejected);
    let batch = ledger.batch();
    assert!(!ledger.is_dirty());
    assert_eq!(text(ledger.unwritten(&batch).pop()).unwrap(), "rejected");
    assert!(ledger.is_dirty());
    assert_eq!(ledger.batch().rows.len(), 1);
}

/// Each message that is marked as with the link is given out, steps as well as ends.
#[test]
fn steps_and_ends_that_cannot_be_written_leave_and_the_next_ones_do_so_after_the_answer() {
    let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
    let jobs: Vec<u64> = ["a", "b"].into_iter().map(|uuid| ledger.take(uuid, false, moment(0)).unwrap()).collect();
    accept(&mut ledger, jobs[0], JobStatus::Received);
    accept(&mut ledger, jobs[0], JobStatus::Completed);
    accept(&mut ledger, jobs[1], JobStatus::Received);
    let batch = ledger.batch();
    let left: Vec<_> = ledger.unwritten(&batch).into_iter().map(on_wire).collect();
    assert_eq!(left, [(jobs[0], "received".to_owned()), (jobs[1], "received".to_owned())]);
    assert_eq!(text(ledger.settle(jobs[0], &Reply::Stored, moment(1)).next).unwrap(), "completed");
    // There is room again: nothing leaves twice.
    let batch = ledger.batch();
    assert!(ledger.written(&batch).is_empty() && ledger.synced(&batch).is_empty());
    for job in jobs {
        ledger.settle(job, &Reply::Stored, moment(2));
    }
    assert_eq!(ledger.counts().unsent, 0);
}

/// A facilitator that stores what it does not know yet, and disks, links and processes that break at random: in the
/// end every job that was ever heard of has one terminal status, and its statuses came in order. In every second round
/// the disk fails and recovers; nobody is killed then, since what was not written could come twice.
#[test]
fn nothing_is_lost_or_reordered_over_random_losses_refusals_and_crashes() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for round in 0..150 {
        let disk_fails = round % 2 == 1;
        let mut disk: HashMap<u64, Vec<u8>> = HashMap::new();
        let mut stored: HashMap<u64, Vec<JobStatus>> = HashMap::new();
        let mut wire: VecDeque<(u64, String)> = VecDeque::new();
        let mut ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
        let (mut now, mut begun, mut known) = (0, 0, Vec::new());
        let steps = [JobStatus::Received, JobStatus::Accepted, JobStatus::ExecutionDone, JobStatus::Completed];
        loop {
            now += 1;
            assert!(now < 10_000_000, "seed {seed}, round {round}: {:?} wait for ever", ledger.counts());
            let settled_down = begun == 12 && ledger.open_jobs().is_empty() && ledger.counts().unsent == 0;
            if settled_down && !ledger.is_dirty() {
                break;
            }
            match rng.next_u64() % 12 {
                0 if begun < 12 => {
                    begun += 1;
                    known.push(ledger.take(&format!("{round}-{begun}"), false, moment(now)).unwrap());
                }
                0..4 => {
                    let open = ledger.open_jobs();
                    if !open.is_empty() {
                        let job = open[(rng.next_u64() % open.len() as u64) as usize].0;
                        let reported = ledger.jobs[&job]
                            .record
                            .last
                            .map_or(0, |last| steps.iter().position(|status| *status == last).unwrap() + 1);
                        let sent = accept_at(&mut ledger, job, steps[reported], now);
                        wire.extend(sent);
                    }
                }
                4..6 => {
                    let batch = ledger.batch();
                    if disk_fails && rng.next_u64().is_multiple_of(2) {
                        wire.extend(ledger.unwritten(&batch).into_iter().map(on_wire));
                        continue;
                    }
                    for (job, row) in &batch.rows {
                        match row {
                            Some(row) => disk.insert(*job, row.clone()),
                            None => disk.remove(job),
                        };
                    }
                    wire.extend(ledger.written(&batch).into_iter().map(on_wire));
                    wire.extend(ledger.synced(&batch).into_iter().map(on_wire));
                }
                6..9 => {
                    if let Some((job, status)) = wire.pop_front() {
                        let reply = if rng.next_u64().is_multiple_of(5) {
                            Reply::NotFound("not yet".to_owned())
                        } else {
                            store(&mut stored, job, &status, seed);
                            Reply::Stored
                        };
                        wire.extend(ledger.settle(job, &reply, moment(now)).next.map(on_wire));
                    }
                }
                9 => {
                    now += 500;
                    wire.extend(ledger.retry(moment(now).mono).into_iter().map(on_wire));
                }
                10 => {
                    // The connection is lost: what was on its way may have arrived, but the answer has not; it goes
                    // again.
                    for (job, status) in wire.iter().take((rng.next_u64() % 3) as usize) {
                        store(&mut stored, *job, status, seed);
                    }
                }
                _ if !disk_fails && rng.next_u64().is_multiple_of(4) => {
                    // The process is killed.
                    wire.clear();
                    ledger = Ledger::new(LedgerLimits::default(), RetryPolicies::default(), true);
                    let mut rows: Vec<_> = disk.iter().map(|(n, row)| (*n, JobRecord::decode(row).unwrap())).collect();
                    rows.sort_by_key(|(number, _)| *number);
                    wire.extend(ledger.restore(rows, moment(now)).into_iter().map(on_wire));
                    for (job, _) in ledger.open_jobs() {
                        wire.extend(accept_at(&mut ledger, job, JobStatus::HordeFailed, now));
                    }
                }
                _ => {}
            }
        }
        for job in &known {
            let ends = stored.get(job).map_or(0, |s| s.iter().filter(|s| s.is_terminal()).count());
            assert_eq!(ends, usize::from(stored.contains_key(job)), "seed {seed}, job {job}: {stored:?}");
        }
    }
}

fn on_wire(message: Outgoing) -> (u64, String) {
    (tag(&message), message.text.to_string())
}

fn accept_at(ledger: &mut Ledger, job: u64, status: JobStatus, now: u64) -> Option<(u64, String)> {
    ledger.accept(job, status, status.as_str().into(), moment(now)).unwrap().1.map(on_wire)
}

fn store(stored: &mut HashMap<u64, Vec<JobStatus>>, job: u64, status: &str, seed: u64) {
    let status = *JobStatus::ALL.iter().find(|s| s.as_str() == status).unwrap();
    let history = stored.entry(job).or_default();
    if !history.contains(&status) {
        assert!(
            history.last().is_none_or(|last| last.may_become(status)),
            "seed {seed}, job {job}: {status} after {history:?}"
        );
        history.push(status);
    }
}
