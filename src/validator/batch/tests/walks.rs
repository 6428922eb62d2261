//! Random walks: whatever miners say and whenever, each job has one end, nothing counts twice, the gate opens once at
//! most, and all is closed. The bench checks that at each step.

use std::time::Duration;

use super::bench::*;
use crate::base::rng::Rng;
use crate::protocol::{Code, ExecutorClass, UnauthorizedError};
use crate::validator::batch::state::{Ending, Input, MinerInput};
use crate::validator::manifests::AskOutcome;

const WALKS: u64 = 200;
const STEPS: usize = 300;

fn walk(seed: u64) -> (Ending, usize) {
    let mut rng = Rng::new(seed);
    let mut below = move |n: u64| (rng.next_u64() % n) as usize;
    let miners = 1 + below(6);
    let mut config = config(seed);
    config.connects = 1 + below(4);
    config.retries = below(3) as u32;
    config.gate = Duration::from_secs(below(40) as u64);
    config.late = Duration::from_secs(below(200) as u64);
    config.limit = Duration::from_secs(1 + below(2000) as u64);
    config.max_fail = (below(4) == 0).then(|| below(101) as u8);
    config.per_miner = (below(3) == 0).then(|| 1 + below(4));
    config.state_dir = (below(2) == 0).then(|| "somewhere".into());
    let mut bench = Bench::new(config, miners, Vec::new());
    bench.feed(Input::Start);
    let classes = [CLASS, ExecutorClass::AlwaysOnCpu8c16gb, ExecutorClass::AlwaysOnGpu24gb];
    for _ in 0..STEPS {
        let miner = below(miners as u64);
        // Mostly of its own jobs, sometimes of another's, or of none.
        let planned = bench.planned.len();
        let uuid = match below(12) {
            0 => "5a1c0000-0000-4000-8000-000000000000".to_owned(),
            1 if planned > 0 => bench.planned[below(planned as u64)].uuid.clone(),
            _ => {
                let own: Vec<_> = bench.planned.iter().filter(|row| row.place.miner == miner).collect();
                if own.is_empty() { String::new() } else { own[below(own.len() as u64)].uuid.clone() }
            }
        };
        match below(30) {
            0..=3 => {
                // One that cannot be ends its miner.
                let count = if below(40) == 0 { -1 } else { below(3) as i64 };
                bench.says(miner, manifest(&[(classes[below(3)], count), (CLASS, below(3) as i64)]));
            }
            4..=8 => bench.says(miner, accept(&uuid)),
            9..=13 => bench.says(miner, ready(&uuid)),
            14..=15 => bench.says(miner, volumes(&uuid)),
            16 => bench.says(miner, execution_done(&uuid)),
            17..=18 => bench.says(miner, finished(&uuid, if below(2) == 0 { RIGHT } else { "wrong" })),
            19 => bench.says(miner, failed(&uuid)),
            20 => bench.says(miner, horde_failed(&uuid)),
            21 => bench.says(miner, decline(&uuid)),
            22 => {
                let (refused, outcome) = (below(8) == 0, AskOutcome::ALL[below(6)]);
                let failed = MinerInput::Failed { why: "Connection refused".to_owned(), refused, outcome };
                bench.feed(Input::Miner(miner, failed));
            }
            23 => drop(bench.feed(Input::Miner(miner, MinerInput::Lost("cut".to_owned())))),
            24 => drop(bench.feed(Input::Miner(miner, MinerInput::Unreadable))),
            25 if below(20) == 0 => {
                bench.says(miner, UnauthorizedError { code: Code::TokenTooOld, details: None });
            }
            26 if below(30) == 0 => drop(bench.feed(Input::Miner(miner, MinerInput::NotSent("full".to_owned())))),
            27 if below(15) == 0 => drop(bench.feed(Input::Cancel)),
            28 => bench.wait(below(100_000) as u64),
            _ => bench.wait(below(2_000) as u64),
        }
        if bench.ending.is_some() {
            break;
        }
    }
    bench.run_to_its_end();
    let progress = bench.batch.progress();
    if bench.ending == Some(Ending::Complete) {
        assert_eq!(bench.lines.iter().filter(|line| line.job_uuid.is_some()).count(), progress.jobs);
    }
    (bench.ending.unwrap(), bench.gates)
}

#[test]
fn whatever_miners_say_each_job_ends_once_and_all_is_closed() {
    let seed = Rng::from_entropy().next_u64() >> 1;
    println!("seed {seed}");
    let (mut opened, mut endings) = (0, [0; 3]);
    for n in 0..WALKS {
        let (ending, gates) = walk(seed.wrapping_add(n));
        opened += gates;
        endings[match ending {
            Ending::Complete => 0,
            Ending::Cancelled => 1,
            Ending::Aborted => 2,
        }] += 1;
    }
    println!("{opened} gates opened; complete, cancelled, aborted: {endings:?}");
    // Some 18 gates of 200 walks, and as many of the rarest ending: less than three is no accident.
    assert!(opened > 2 && endings.iter().all(|count| *count > 0), "the walks see too little");
}
