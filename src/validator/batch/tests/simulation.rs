//! 1,000 miners of many kinds for hours of virtual time, in seconds: each kind ends as it should, whatever the others
//! do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::bench::*;
use crate::base::now::Now;
use crate::base::rng::Rng;
use crate::protocol::{ExecutorClass, Int, MinerToValidator, ValidatorToMiner};
use crate::validator::batch::line::BatchOutcome as O;
use crate::validator::batch::state::{Ending, Input, MinerInput};
use crate::validator::batch::summary::{Summary, Tally};
use crate::validator::manifests::AskOutcome;

const MINERS: usize = 1000;

/// Jobs of each miner.
const JOBS: usize = 2;

/// How long a job's command runs at most, in seconds.
const RUN_LIMIT: i64 = 2 * 3600;

/// How a miner behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Good,
    /// Answers rightly, a minute after its time.
    Slow,
    /// Says its manifest and nothing more.
    Silent,
    /// Takes the job, and says nothing more.
    Hanging,
    /// Takes no connection.
    Refusing,
    /// Does not know the validator.
    Stranger,
    /// Talks nonsense once it has the job.
    Garbage,
    /// Declares two executors and has one.
    Lying,
    /// Its executors are ready after everybody else's.
    Tardy,
    /// Cuts the connection in the middle, for good.
    Cutting,
    /// Loses the connection in the middle, and comes back.
    Returning,
    /// Says first that it failed, then gives the right answer, and twice.
    Gaming,
    /// Gives a right answer, then others.
    Doubling,
    /// Says that it has finished before it has the job.
    Hasty,
    /// Its first executor does not start.
    Flaky,
    /// Answers wrongly.
    Wrong,
}

/// A kind, how many of a hundred miners are of it, and what one of them comes to: outcome, lateness, number of lines.
type Expected = (Kind, usize, &'static [(O, bool, usize)]);

/// All kinds.
const EXPECTED: [Expected; 16] = [
    (Kind::Good, 40, &[(O::Completed, false, 2)]),
    (Kind::Slow, 5, &[(O::Timeout, true, 2)]),
    (Kind::Silent, 5, &[(O::Timeout, false, 2)]),
    (Kind::Hanging, 4, &[(O::Timeout, false, 2)]),
    (Kind::Refusing, 5, &[(O::Refused, false, 1)]),
    (Kind::Stranger, 3, &[(O::Unauthorized, false, 1)]),
    (Kind::Garbage, 4, &[(O::ProtocolError, false, 2)]),
    (Kind::Lying, 5, &[(O::Completed, false, 1), (O::Declined, false, 1)]),
    (Kind::Tardy, 3, &[(O::Timeout, false, 2)]),
    (Kind::Cutting, 4, &[(O::HordeFailed, false, 2)]),
    (Kind::Returning, 4, &[(O::Completed, false, 2)]),
    (Kind::Gaming, 4, &[(O::Failed, false, 2)]),
    (Kind::Doubling, 4, &[(O::Completed, false, 2)]),
    (Kind::Hasty, 3, &[(O::ProtocolError, false, 2)]),
    (Kind::Flaky, 4, &[(O::Completed, false, 2)]),
    (Kind::Wrong, 3, &[(O::Failed, false, 2)]),
];

/// What happens at a miner, and when.
enum Happening {
    Says(Box<MinerToValidator>),
    Event(MinerInput),
}

struct World {
    bench: Bench,
    rng: Rng,
    kinds: Vec<Kind>,
    /// In microseconds since the beginning; what comes first is on top.
    queue: BinaryHeap<Reverse<(u64, usize)>>,
    happenings: HashMap<usize, (usize, Happening)>,
    next: usize,
    began: Now,
    /// How often each job was asked for, by miner.
    asked: HashMap<usize, usize>,
    running: HashSet<String>,
    /// Messages that have been seen.
    seen: usize,
    connected: usize,
}

impl World {
    fn later(&mut self, miner: usize, millis: u64, happening: Happening) {
        // No two things at quite the same time, and none without the way through the network.
        let way = 5_000 + self.rng.next_u64() % 40_000;
        let elapsed = self.bench.now.mono.duration_since(self.began.mono);
        let at = u64::try_from(elapsed.as_micros()).unwrap() + millis * 1000 + way;
        self.queue.push(Reverse((at, self.next)));
        self.happenings.insert(self.next, (miner, happening));
        self.next += 1;
    }

    fn says(&mut self, miner: usize, millis: u64, message: impl Into<MinerToValidator>) {
        self.later(miner, millis, Happening::Says(Box::new(message.into())));
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.rng.next_u64() % (most - least)
    }

    /// What the miner does about a new connection.
    fn connect(&mut self, miner: usize) {
        let failed = |why: &str, refused| {
            let outcome = if refused { AskOutcome::Unauthorized } else { AskOutcome::Refused };
            Happening::Event(MinerInput::Failed { why: why.to_owned(), refused, outcome })
        };
        match self.kinds[miner] {
            Kind::Refusing => {
                self.later(miner, 1, failed("cannot connect: Connection refused", false));
                self.later(miner, 200, failed("cannot connect: Connection refused", false));
            }
            Kind::Stranger => self.later(miner, 20, failed("refused: Unknown validator", true)),
            _ => self.says(miner, 20, manifest(&[(ExecutorClass::AlwaysOnCpu8c16gb, 2)])),
        }
    }

    /// What the miner does about a message.
    fn hears(&mut self, miner: usize, message: ValidatorToMiner) {
        let kind = self.kinds[miner];
        match message {
            ValidatorToMiner::V0InitialJobRequest(initial) => {
                let uuid = initial.job_uuid;
                let count = self.asked.entry(miner).or_default();
                *count += 1;
                let count = *count;
                match kind {
                    Kind::Silent => {}
                    Kind::Lying if count > 1 => self.says(miner, 30, decline(&uuid)),
                    Kind::Flaky if count <= JOBS => {
                        self.says(miner, 30, accept(&uuid));
                        self.says(miner, 900, horde_failed(&uuid));
                    }
                    Kind::Hasty => {
                        self.says(miner, 30, accept(&uuid));
                        self.says(miner, 300, finished(&uuid, RIGHT));
                    }
                    _ => {
                        self.says(miner, 30, accept(&uuid));
                        let wait = if kind == Kind::Tardy { 34_000 } else { self.between(500, 5_000) };
                        self.says(miner, wait, ready(&uuid));
                    }
                }
            }
            // It runs a job once, whoever asks again.
            ValidatorToMiner::V0JobRequest(request) if self.running.insert(request.job_uuid.clone()) => {
                self.job(miner, kind, &request.job_uuid);
            }
            _ => {}
        }
    }

    fn job(&mut self, miner: usize, kind: Kind, uuid: &str) {
        let runs = self.between(1_000_000, 3_000_000);
        match kind {
            Kind::Hanging => {}
            Kind::Garbage => {
                for n in 0..5 {
                    self.later(miner, 1000 * n, Happening::Event(MinerInput::Unreadable));
                }
            }
            Kind::Cutting => {
                self.says(miner, 2_000, volumes(uuid));
                self.later(miner, runs, Happening::Event(MinerInput::Lost("reset by peer".to_owned())));
            }
            _ => {
                // Its time is the leeway, the download, the run and the margin: 75 s more than the run alone.
                let runs = if kind == Kind::Slow { RUN_LIMIT as u64 * 1000 + 150_000 } else { runs };
                self.says(miner, 2_000, volumes(uuid));
                if kind == Kind::Gaming {
                    self.says(miner, runs - 60_000, failed(uuid));
                }
                if kind == Kind::Returning {
                    self.later(miner, runs - 40_000, Happening::Event(MinerInput::Lost("reset".to_owned())));
                    self.says(miner, runs - 20_000, manifest(&[(ExecutorClass::AlwaysOnCpu8c16gb, 2)]));
                }
                self.says(miner, runs - 1_000, execution_done(uuid));
                self.says(miner, runs, finished(uuid, if kind == Kind::Wrong { "13\n" } else { RIGHT }));
                if matches!(kind, Kind::Gaming | Kind::Doubling) {
                    self.says(miner, runs + 50, finished(uuid, RIGHT));
                    self.says(miner, runs + 60, failed(uuid));
                }
            }
        }
    }

    fn feed(&mut self, input: Input) {
        let at_gate = self.bench.feed(input);
        while let Some(miner) = self.bench.connected.get(self.connected).copied() {
            self.connected += 1;
            self.connect(miner);
        }
        while let Some((miner, message)) = self.bench.sent.get(self.seen).cloned() {
            self.seen += 1;
            self.hears(miner, message);
        }
        for (miner, message) in at_gate {
            self.hears(miner, message);
        }
    }

    fn run(&mut self) {
        self.feed(Input::Start);
        while self.bench.ending.is_none() {
            let next = self.queue.peek().map(|Reverse((at, _))| self.began.mono + Duration::from_micros(*at));
            let wake = self.bench.batch.next_wake().expect("something is due until the end");
            let at = next.map_or(wake, |next| next.min(wake));
            let ahead = at.saturating_duration_since(self.bench.now.mono);
            self.bench.now = self.bench.now + ahead;
            if next.is_none_or(|next| next > wake) {
                self.feed(Input::Tick);
                continue;
            }
            let Some(Reverse((_, number))) = self.queue.pop() else { unreachable!("it was looked at") };
            let (miner, happening) = self.happenings.remove(&number).unwrap();
            match happening {
                Happening::Says(message) => self.feed(Input::Miner(miner, MinerInput::Message(message))),
                Happening::Event(event) => self.feed(Input::Miner(miner, event)),
            }
        }
    }
}

#[test]
fn a_thousand_miners_of_sixteen_kinds_run_a_batch_of_hours() {
    let seed = Rng::from_entropy().next_u64() >> 1;
    println!("seed {seed}");
    let real = Instant::now();
    let mut rng = Rng::new(seed);
    let shares: usize = EXPECTED.iter().map(|(_, share, _)| share).sum();
    assert_eq!(shares, 100);
    let mut kinds: Vec<Kind> =
        EXPECTED.iter().flat_map(|(kind, share, _)| std::iter::repeat_n(*kind, MINERS * share / shares)).collect();
    crate::validator::batch::plan::shuffle(&mut kinds, &mut rng);
    let mut config = config(seed);
    config.limit = Duration::from_secs(6 * 3600);
    let maker = |_: &crate::identity::PublicKey, class: ExecutorClass, _: &mut Rng| {
        let mut job = request();
        (job.executor_class, job.execution_time_limit) = (class, Int::from(RUN_LIMIT));
        Some(std::sync::Arc::new(job))
    };
    let limits = (config.max_spread, config.max_lag);
    let bench = Bench::with_maker(config, addresses(MINERS), Box::new(maker), Vec::new());
    let began = bench.now;
    let mut world = World {
        bench,
        rng,
        kinds,
        queue: BinaryHeap::new(),
        happenings: HashMap::new(),
        next: 0,
        began,
        asked: HashMap::new(),
        running: HashSet::new(),
        seen: 0,
        connected: 0,
    };
    world.run();
    let World { bench, kinds, .. } = world;
    assert_eq!((bench.ending, bench.gates), (Some(Ending::Complete), 1));

    // By miner, then by kind.
    let by_name: HashMap<String, usize> = (0..MINERS).map(|n| (hotkey(n).to_ss58(), n)).collect();
    let mut found: Vec<BTreeMap<(O, bool), usize>> = vec![BTreeMap::new(); MINERS];
    let (mut tally, mut counts) = (Tally::default(), BTreeMap::<(Kind, &str, bool), usize>::new());
    for line in &bench.lines {
        tally.add(line);
        let (miner, outcome) = (by_name[&line.miner], line.outcome.unwrap());
        *found[miner].entry((outcome, line.late)).or_default() += 1;
        *counts.entry((kinds[miner], outcome.as_str(), line.late)).or_default() += 1;
        assert_eq!(line.scored, outcome == O::Completed, "{line:?}");
        let flaky = line.reason.as_deref().is_some_and(|reason| reason.contains("flaky"));
        assert_eq!(flaky, kinds[miner] == Kind::Flaky, "{line:?}");
    }
    for ((kind, outcome, late), count) in &counts {
        println!("{kind:?}: {count} {outcome}{}", if *late { ", late" } else { "" });
    }
    for (miner, kind) in kinds.iter().enumerate() {
        let (_, _, lines) = EXPECTED.iter().find(|(other, ..)| other == kind).unwrap();
        let expected: BTreeMap<(O, bool), usize> =
            lines.iter().map(|(outcome, late, count)| ((*outcome, *late), *count)).collect();
        assert_eq!(found[miner], expected, "miner {miner}, {kind:?}, seed {seed}");
    }
    let took = bench.now.mono - began.mono;
    let summary = Summary::new(seed, Ending::Complete, tally, (Duration::ZERO, took), limits);
    println!("{}", summary.table());
    let repeats = bench.batch.progress().repeats;
    println!("virtual time {took:.0?}, real time {:.1?}, {repeats} repeats", real.elapsed());
    let limit = Duration::from_secs(RUN_LIMIT as u64);
    assert!(took > limit && took < limit + Duration::from_secs(600), "{took:?}");
    assert!(!summary.is_flagged(), "{:?}", summary.flags);
}
