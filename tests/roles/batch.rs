//! A batch over real sockets on loopback: its miners' kinds, what is kept of it, and how it ends before its time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use phalanx::identity::KeyPair;
use phalanx::protocol::{JobResultDetails, V2JobRequest};
use phalanx::store::batch::{BatchStore, BatchWrite};
use phalanx::transport::ClientTls;
use phalanx::transport::ws::WsDialer;
use phalanx::validator::JobTimes;
use phalanx::validator::batch::{
    BatchConfig, BatchError, BatchOutcome, Ending, JobLine, Judge, NoLine, RunningBatch, Summary, Verdict, replay,
};

use crate::testkit::batch_miners::{BatchMiners, Kind, RIGHT, Scripted, judge, maker_and_judge};
use crate::testkit::roles::World;
use crate::testkit::wait::{LONG, until};

/// Only those that say nothing reach these limits.
const TIMES: JobTimes = JobTimes {
    connect: LONG,
    reservation: Duration::from_secs(20),
    executor_startup: LONG,
    leeway: Duration::from_secs(10),
    margin: Duration::from_secs(5),
};

fn config(seed: u64) -> BatchConfig {
    let key = KeyPair::from_uri("//Validator").unwrap();
    BatchConfig { times: TIMES, late: Duration::ZERO, gate: LONG, ..BatchConfig::new(key, seed) }
}

fn start(world: &World, miners: &BatchMiners, config: BatchConfig) -> Result<RunningBatch, BatchError> {
    let dialer = Arc::new(WsDialer::new(ClientTls::default()));
    RunningBatch::start(config, miners.addresses.clone(), maker_and_judge(1), dialer, world.timer())
}

fn to_the_end(batch: RunningBatch) -> (Vec<JobLine>, Result<Summary, BatchError>) {
    let mut lines = Vec::new();
    loop {
        match batch.next_line(LONG) {
            Ok(line) => lines.push(line),
            Err(NoLine::NotYet) => panic!("no line within {LONG:?}: {:?}", batch.progress()),
            Err(NoLine::Over) => return (lines, batch.finish()),
        }
    }
}

/// Outcomes by the kind of the miner.
fn by_kind(miners: &BatchMiners, kinds: &[Scripted], lines: &[JobLine]) -> BTreeMap<(Scripted, &'static str), usize> {
    let mut counts = BTreeMap::new();
    for line in lines {
        let miner = miners.addresses.iter().position(|miner| miner.hotkey.to_ss58() == line.miner).unwrap();
        *counts.entry((kinds[miner], line.outcome.unwrap().as_str())).or_default() += 1;
    }
    counts
}

#[test]
fn two_hundred_and_fifty_miners_over_sockets_end_by_their_kinds() {
    let shares = [
        ((Kind::Good, 0), 150, "completed"),
        ((Kind::Good, 300), 20, "completed"),
        ((Kind::Silent, 0), 10, "timeout"),
        ((Kind::Refusing, 0), 15, "refused"),
        ((Kind::Stranger, 0), 10, "unauthorized"),
        ((Kind::Babbling, 0), 3, "protocol_error"),
        ((Kind::Absurd, 0), 2, "protocol_error"),
        ((Kind::Garbage, 0), 5, "protocol_error"),
        ((Kind::Lying, 0), 10, "declined"),
        ((Kind::Cutting, 0), 5, "horde_failed"),
        ((Kind::Doubling, 0), 10, "completed"),
        ((Kind::Wrong, 0), 5, "failed"),
        ((Kind::Flaky, 0), 5, "completed"),
    ];
    let kinds: Vec<Scripted> = shares.iter().flat_map(|(kind, count, _)| std::iter::repeat_n(*kind, *count)).collect();
    assert_eq!(kinds.len(), 250);
    let world = World::new();
    let miners = BatchMiners::start(&world, &kinds, 2);
    let (lines, summary) = to_the_end(start(&world, &miners, config(5)).unwrap());
    let summary = summary.unwrap();
    println!("{}", summary.table());
    let expected: BTreeMap<(Scripted, &str), usize> = shares
        .iter()
        .map(|(kind, count, outcome)| {
            // Who is not talked to has one line.
            let unasked = [Kind::Refusing, Kind::Stranger, Kind::Babbling, Kind::Absurd];
            let lines = if unasked.contains(&kind.0) { 1 } else { 2 };
            ((*kind, *outcome), lines * count)
        })
        .collect();
    assert_eq!(by_kind(&miners, &kinds, &lines), expected);
    assert_eq!((summary.ending, summary.jobs), (Ending::Complete, 2 * (250 - 30)));
    let absurd = lines.iter().filter_map(|line| line.reason.as_deref()).filter(|why| why.contains("-1"));
    let why = "its manifest names -1 executors of class always_on.test; it should be 0 to 10000";
    assert_eq!(absurd.collect::<Vec<_>>(), [why; 2]);
    let scored = lines.iter().filter(|line| line.scored).count();
    assert_eq!((scored, summary.scored), (2 * 185, 2 * 185));
    // Nobody is asked twice for the same, nobody's request leaves twice.
    miners.seen(|seen| {
        assert!(seen.requests.values().chain(seen.asked.values()).all(|count| *count == 1));
    });
    until("all connections are closed", || miners.seen(|seen| seen.open == 0));
    miners.stop();
}

#[test]
fn black_holes_before_good_miners_keep_none_of_them_from_its_jobs() {
    let mut kinds = vec![(Kind::Hole, 0); 24];
    kinds.extend([(Kind::Good, 0); 8]);
    let world = World::new();
    let miners = BatchMiners::start(&world, &kinds, 1);
    // Three rounds of holes at least, each longer than what is ready waits at the gate.
    let times = JobTimes { connect: Duration::from_secs(2), ..TIMES };
    let config = BatchConfig { connects: 8, gate: Duration::from_secs(1), times, ..config(5) };
    let (lines, summary) = to_the_end(start(&world, &miners, config).unwrap());
    let expected = BTreeMap::from([(((Kind::Good, 0), "completed"), 8), (((Kind::Hole, 0), "timeout"), 24)]);
    assert_eq!(by_kind(&miners, &kinds, &lines), expected, "{}", summary.unwrap().table());
    until("all connections are closed", || miners.seen(|seen| seen.open == 0));
    miners.stop();
}

#[test]
fn a_cancelled_batch_tells_what_has_ended_and_closes_the_rest() {
    let world = World::new();
    let kinds = [(Kind::Refusing, 0), (Kind::Good, 0), (Kind::Silent, 0)];
    let miners = BatchMiners::start(&world, &kinds, 1);
    let batch = start(&world, &miners, config(5)).unwrap();
    let line = batch.next_line(LONG).unwrap();
    assert_eq!(line.outcome, Some(BatchOutcome::Refused));
    batch.cancel_signal().cancel();
    let (lines, summary) = to_the_end(batch);
    let summary = summary.unwrap();
    assert_eq!((lines.len(), summary.ending), (0, Ending::Cancelled));
    assert_eq!(summary.outcomes, BTreeMap::from([(BatchOutcome::Refused, 1)]));
    until("all connections are closed", || miners.seen(|seen| seen.open == 0));
    miners.stop();
}

#[test]
fn dropping_a_running_batch_stops_it() {
    let world = World::new();
    let miners = BatchMiners::start(&world, &[(Kind::Silent, 0), (Kind::Good, 0), (Kind::Refusing, 0)], 2);
    let batch = start(&world, &miners, config(5)).unwrap();
    until("both that listen are asked", || miners.seen(|seen| seen.asked.len() == 4));
    drop(batch);
    until("all connections are closed", || miners.seen(|seen| seen.open == 0));
    miners.stop();
}

#[test]
fn a_judge_that_panics_ends_the_batch_and_closes_every_connection() {
    let world = World::new();
    let miners = BatchMiners::start(&world, &[(Kind::Good, 0), (Kind::Good, 60_000)], 2);
    let (maker, _) = maker_and_judge(1);
    let judge = |_: &V2JobRequest, _: &JobResultDetails| -> Verdict { panic!("a judge's fault") };
    let dialer = Arc::new(WsDialer::new(ClientTls::default()));
    let parts = (maker, Box::new(judge) as Box<dyn Judge>);
    let batch = RunningBatch::start(config(5), miners.addresses.clone(), parts, dialer, world.timer()).unwrap();
    let (lines, summary) = to_the_end(batch);
    let error = summary.unwrap_err().to_string();
    assert!(lines.is_empty() && error.contains("a judge's fault"), "{error}");
    until("all connections are closed", || miners.seen(|seen| seen.open == 0));
    miners.stop();
}

fn in_folder(folder: &Path, resume: bool) -> BatchConfig {
    BatchConfig { state_dir: Some(folder.to_owned()), resume, ..config(5) }
}

#[test]
fn a_batch_on_disk_is_shown_again_judged_again_and_not_mixed_with_another() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("state");
    let miners =
        BatchMiners::start(&world, &[(Kind::Good, 0), (Kind::Wrong, 0), (Kind::Refusing, 0), (Kind::Lying, 0)], 2);
    let nothing = start(&world, &miners, in_folder(&folder, true)).unwrap_err();
    assert!(matches!(nothing, BatchError::NoBatch), "{nothing}");
    assert!(!folder.exists(), "what goes on makes no folder");
    let (lines, summary) = to_the_end(start(&world, &miners, in_folder(&folder, false)).unwrap());
    let outcomes = summary.unwrap().outcomes;
    assert_eq!(outcomes.values().sum::<usize>(), 7);

    // It goes on with nothing left to do: the same lines, and nobody is connected to.
    let asked = miners.seen(|seen| seen.messages);
    let (again, summary) = to_the_end(start(&world, &miners, in_folder(&folder, true)).unwrap());
    let sorted = |lines: &[JobLine]| {
        let mut texts: Vec<String> = lines.iter().map(JobLine::to_json).collect();
        texts.sort();
        texts
    };
    assert_eq!((sorted(&again), summary.unwrap().outcomes), (sorted(&lines), outcomes.clone()));
    assert_eq!(miners.seen(|seen| seen.messages), asked);

    // Judged again as before, and the other way round.
    let limits = (LONG, LONG);
    let mut replayed = Vec::new();
    let summary = replay(&folder, Some(&mut *judge()), limits, |line| replayed.push(line.clone())).unwrap();
    assert_eq!((sorted(&replayed), summary.outcomes), (sorted(&lines), outcomes));
    let mut other = |_: &V2JobRequest, answer: &JobResultDetails| match answer.docker_process_stdout.as_str() {
        RIGHT => Verdict::Wrong("no".to_owned()),
        _ => Verdict::Right,
    };
    replayed.clear();
    replay(&folder, Some(&mut other), limits, |line| replayed.push(line.clone())).unwrap();
    for (line, before) in replayed.iter().map(|line| (line, lines.iter().find(|l| l.job_uuid == line.job_uuid))) {
        let Some(before) = before.filter(|line| line.job_uuid.is_some()) else { continue };
        match before.outcome {
            Some(BatchOutcome::Completed) => {
                assert_eq!((line.outcome, line.scored), (Some(BatchOutcome::Failed), false))
            }
            Some(BatchOutcome::Failed) => {
                assert_eq!((line.outcome, line.scored), (Some(BatchOutcome::Completed), true));
                assert_eq!(line.reason, None, "the reason goes with its verdict");
            }
            other => assert_eq!(line.outcome, other),
        }
    }

    // Without a judge what was judged stays.
    replayed.clear();
    let summary = replay(&folder, None, limits, |line| replayed.push(line.clone())).unwrap();
    assert_eq!((sorted(&replayed), summary.scored), (sorted(&lines), 2));

    // A resumed batch is the one that was begun.
    let another = BatchConfig { seed: 6, ..in_folder(&folder, true) };
    let error = start(&world, &miners, another).unwrap_err().to_string();
    assert!(error.contains("its seed is 5, not 6"), "{error}");
    let another = BatchConfig { made_of: "other jobs".to_owned(), ..in_folder(&folder, true) };
    let error = start(&world, &miners, another).unwrap_err().to_string();
    assert!(error.contains("its jobs were others"), "{error}");
    let another = BatchConfig { per_miner: Some(3), ..in_folder(&folder, true) };
    let error = start(&world, &miners, another).unwrap_err().to_string();
    assert!(error.contains("begun with as many jobs as each miner declares, not 3 jobs for each miner"), "{error}");
    let another = BatchConfig { key: KeyPair::from_uri("//Other").unwrap(), ..in_folder(&folder, true) };
    let error = start(&world, &miners, another).unwrap_err().to_string();
    assert!(error.contains("begun with the key of 5"), "{error}");

    // How late a part of it was flags all of it.
    let mut store = BatchStore::open(&folder).unwrap();
    store.write(&[BatchWrite::Time { lag_us: 500_001, took_us: 3_600_000_000 }]).unwrap();
    drop(store);
    let (_, summary) = to_the_end(start(&world, &miners, in_folder(&folder, true)).unwrap());
    let summary = summary.unwrap();
    assert!(summary.is_flagged() && summary.lag >= Duration::from_micros(500_001), "{:?}", summary.flags);
    assert!(summary.took >= Duration::from_secs(3600), "the time before a kill counts: {:?}", summary.took);

    // A new one takes the place of one that has ended, and of no other.
    let batch = start(&world, &miners, in_folder(&folder, false)).unwrap();
    batch.cancel_signal().cancel();
    let (_, summary) = to_the_end(batch);
    assert_eq!(summary.unwrap().ending, Ending::Cancelled);
    let error = start(&world, &miners, in_folder(&folder, false)).unwrap_err();
    assert!(matches!(error, BatchError::Unfinished { seed: 5 }), "{error}");
    let (lines, summary) = to_the_end(start(&world, &miners, in_folder(&folder, true)).unwrap());
    assert_eq!((lines.len(), summary.unwrap().ending), (7, Ending::Complete));
    miners.stop();
}
