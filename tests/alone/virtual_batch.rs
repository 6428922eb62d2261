//! A thousand miners of many kinds in memory, each of them two threads beside the validator's two, run a batch of hours
//! on a clock that moves by itself. In a process of its own, because all its threads are looked at.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx::base::clock::Clock;
use phalanx::base::rng::Rng;
use phalanx::base::simulate::pass_until;
use phalanx::base::thread::{Kick, spawn};
use phalanx::identity::KeyPair;
use phalanx::validator::batch::{BatchConfig, Ending, NoLine, RunningBatch};

use crate::alone;
use crate::testkit::batch_miners::{BatchMiners, Kind, Scripted, maker_and_judge};
use crate::testkit::roles::World;

const HOUR: Duration = Duration::from_secs(3600);

/// How long a job's command may run, in seconds.
const RUN_LIMIT: u64 = 3700;

/// How long a job may take in all, by the default times: leeway, a second of download, the run, the margin.
const JOB_LIMIT: u64 = 5 + 1 + RUN_LIMIT + 10;

/// How long after that answers are still noted, in seconds. Miners that have cut the connection are dialled again
/// until then, each at moments of its own.
const LATE: u64 = 20;

/// Jobs of each miner.
const JOBS: usize = 2;

/// How long a miner's jobs run.
#[derive(Clone, Copy)]
enum Runs {
    /// An hour, and up to 80 s more, in steps of 20 s: those that answer together make one moment.
    AnHour,
    /// So many seconds.
    Exactly(u64),
}

/// A profile: its name, what its miners do and when, how many there are, and what each of them comes to: outcome,
/// whether an answer came late, lines.
type Profile = (&'static str, Kind, Runs, usize, (&'static str, bool, usize));

const PROFILES: [Profile; 14] = [
    ("good", Kind::Good, Runs::AnHour, 560, ("completed", false, JOBS)),
    ("slow", Kind::Good, Runs::Exactly(JOB_LIMIT + LATE / 2), 60, ("timeout", true, JOBS)),
    ("silent", Kind::Silent, Runs::AnHour, 60, ("timeout", false, JOBS)),
    ("refusing", Kind::Refusing, Runs::AnHour, 10, ("refused", false, 1)),
    ("accepting and saying nothing", Kind::Hole, Runs::AnHour, 10, ("timeout", false, 1)),
    ("stranger", Kind::Stranger, Runs::AnHour, 30, ("unauthorized", false, 1)),
    ("babbling", Kind::Babbling, Runs::AnHour, 20, ("protocol_error", false, 1)),
    ("garbage", Kind::Garbage, Runs::AnHour, 50, ("protocol_error", false, JOBS)),
    ("lying about its manifest", Kind::Lying, Runs::AnHour, 60, ("declined", false, JOBS)),
    ("cutting", Kind::Cutting, Runs::Exactly(JOB_LIMIT - 5), 10, ("horde_failed", false, JOBS)),
    ("answering twice", Kind::Doubling, Runs::AnHour, 50, ("completed", false, JOBS)),
    ("failing, then right", Kind::Gaming, Runs::AnHour, 40, ("failed", false, JOBS)),
    ("wrong", Kind::Wrong, Runs::AnHour, 20, ("failed", false, JOBS)),
    ("flaky", Kind::Flaky, Runs::AnHour, 20, ("completed", false, JOBS)),
];

#[test]
fn a_thousand_miners_run_a_batch_of_hours_in_seconds() {
    alone("virtual_batch::a_thousand_miners_run_a_batch_of_hours_in_seconds", batch_of_hours);
}

/// The number of the profile of each miner, and what it does.
fn shuffled(rng: &mut Rng) -> Vec<(usize, Scripted)> {
    let mut miners = Vec::new();
    for (number, (_, kind, runs, count, _)) in PROFILES.iter().enumerate() {
        for _ in 0..*count {
            let seconds = match runs {
                Runs::AnHour => 3600 + 20 * (rng.next_u64() % 5),
                Runs::Exactly(seconds) => *seconds,
            };
            miners.push((number, (*kind, seconds * 1000)));
        }
    }
    for n in (1..miners.len()).rev() {
        miners.swap(n, (rng.next_u64() % (n as u64 + 1)) as usize);
    }
    miners
}

fn batch_of_hours() {
    let (real, seed) = (Instant::now(), Rng::from_entropy().next_u64() >> 1);
    println!("seed {seed}");
    let (profiles, kinds): (Vec<usize>, Vec<Scripted>) = shuffled(&mut Rng::new(seed)).into_iter().unzip();
    assert_eq!(kinds.len(), 1000);

    let clock = Clock::manual();
    let world = World::by(clock.clone());
    let miners = BatchMiners::start_in_memory(&world, &kinds, JOBS as i64);
    let key = KeyPair::from_uri("//Validator").unwrap();
    let late = Duration::from_secs(LATE);
    let config = BatchConfig { limit: 4 * HOUR, late, ..BatchConfig::new(key, seed) };
    let (dialer, parts) = (Arc::new(world.net.dialer()), maker_and_judge(RUN_LIMIT));
    let batch = RunningBatch::start(config, miners.addresses.clone(), parts, dialer, world.timer()).unwrap();
    let cancel = batch.cancel_signal();
    let reader = spawn("t-lines", Kick::new("cancel signal", move || cancel.cancel()), move || {
        let mut lines = Vec::new();
        loop {
            match batch.next_line(HOUR) {
                Ok(line) => lines.push(line),
                Err(NoLine::NotYet) => {}
                Err(NoLine::Over) => return (lines, batch.finish()),
            }
        }
    });
    let mut moments = 0;
    let passed = pass_until(&clock, 4 * HOUR, || {
        moments += 1;
        reader.is_finished()
    });
    let passed = passed.unwrap();
    let (lines, summary) = reader.join_by(crate::testkit::wait::far()).unwrap();
    let summary = summary.unwrap();
    println!("{}", summary.table());

    // Each miner by its profile, whatever the others do.
    let mut found: BTreeMap<String, BTreeMap<(&str, bool), usize>> = BTreeMap::new();
    for line in &lines {
        *found
            .entry(line.miner.clone())
            .or_default()
            .entry((line.outcome.unwrap().as_str(), line.late))
            .or_default() += 1;
        assert_eq!(line.scored, line.outcome.unwrap().as_str() == "completed", "{line:?}");
    }
    let mut counts = [0; PROFILES.len()];
    for (address, (profile, kind)) in miners.addresses.iter().zip(profiles.iter().zip(&kinds)) {
        let (name, _, _, _, (outcome, late, lines)) = PROFILES[*profile];
        let found = found.remove(&address.hotkey.to_ss58());
        assert_eq!(found, Some(BTreeMap::from([((outcome, late), lines)])), "{name} {kind:?}, seed {seed}");
        counts[*profile] += lines;
    }
    assert!(found.is_empty(), "{found:?}");
    for ((name, _, _, _, (outcome, late, _)), count) in PROFILES.iter().zip(counts) {
        println!("{name}: {count} {outcome}{}", if *late { ", with a late answer" } else { "" });
    }
    assert_eq!((summary.ending, summary.jobs), (Ending::Complete, JOBS * (1000 - 70)));
    // By a clock that stands while they leave, all requests leave at once.
    assert_eq!((summary.send_spread, summary.lag), ([Duration::ZERO; 3], Duration::ZERO));
    assert!(!summary.is_flagged(), "{:?}", summary.flags);
    let requested = miners.seen(|seen| {
        assert!(seen.requests.values().chain(seen.asked.values()).all(|count| *count == 1), "nobody is asked twice");
        seen.requested
    });
    let limit = Duration::from_secs(JOB_LIMIT);
    assert!(passed > limit && passed < limit + Duration::from_secs(300), "{passed:?}");
    assert!(summary.took <= passed && summary.took > limit, "{:?}", summary.took);

    pass_until(&clock, HOUR, || miners.seen(|seen| seen.open == 0)).unwrap();
    miners.stop();
    drop(world);
    let (first, last) = requested.unwrap();
    println!(
        "virtual time {:.2} h in {moments} moments, real time {:.1?}; requests came within {:.1?} of real time",
        passed.as_secs_f64() / 3600.0,
        real.elapsed(),
        last - first
    );
}
