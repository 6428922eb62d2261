//! Two seconds of the facilitator client under faults of every kind, or as long as `PHALANX_STRESS` says (as `60s`,
//! `10m`, `2h`); in the end nothing is lost, overtaken or left, and nothing has grown.
//!
//! `PHALANX_STRESS=60s cargo test --release --test alone -- --nocapture stress::` shows the counts.

use crate::alone;
use crate::testkit::roles;
use crate::testkit::scripted_facilitator as scripted;
use crate::testkit::wait::LONG;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::base::backoff::BackoffConfig;
use phalanx::base::rng::Rng;
use phalanx::base::thread::Group;
use phalanx::ops::process::Process;
use phalanx::protocol::V0JobStatusUpdate;
use phalanx::transport::ws::WsListener;
use phalanx::validator::{ClientConfig, FacilitatorClient, Job, LedgerLimits, Outcome, RetryPolicies, RetryPolicy};
use roles::World;
use scripted::{GOOD, Plan, Reply, ScriptedFacilitator, Welcome, key};

/// Without the environment variable.
const SHORT: Duration = Duration::from_secs(2);

/// Jobs that are asked for and have not ended.
const OUTSTANDING: usize = 300;

/// Jobs that either side remembers after their end, so that the memory has a bound that is soon reached.
const REMEMBERED: usize = 5000;

/// What the allocator may keep beyond its level after the first quarter of the time.
const GROWTH_BYTES: usize = 32 << 20;

fn duration() -> Duration {
    let Ok(text) = std::env::var("PHALANX_STRESS") else { return SHORT };
    let wrong = || panic!("PHALANX_STRESS is {text:?}; it should be a number and s, m or h, as 60s");
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => wrong(),
    };
    Duration::from_secs(seconds * number.parse::<u64>().unwrap_or_else(|_| wrong()))
}

fn usage() -> Process {
    Process::read().expect("a system with /proc")
}

/// Faults of every kind, about one in some hundred updates, until `calm`.
fn faulty(seed: u64, calm: Arc<AtomicBool>) -> Plan {
    let rng = Arc::new(Mutex::new(Rng::new(seed)));
    let below = move |n: u64| match calm.load(Ordering::Relaxed) {
        true => n,
        false => rng.lock().unwrap().next_u64() % n,
    };
    let (upgrading, welcoming) = (below.clone(), below.clone());
    let muted = AtomicUsize::new(0);
    Plan {
        upgrade: Box::new(move |_| (upgrading(5) == 0).then_some(503)),
        welcome: Box::new(move |_| match welcoming(20) {
            0 => Welcome::Silent,
            1 => Welcome::Error("auth.validator_not_found", 3001),
            2 => Welcome::Close(1001),
            _ => Welcome::Accept,
        }),
        update: Box::new(move |_: &V0JobStatusUpdate, _| {
            // A connection that is muted is lost soon, or nobody would ever know.
            match muted.load(Ordering::Relaxed) {
                0 => {}
                1 => {
                    muted.store(0, Ordering::Relaxed);
                    return Reply::DisconnectBefore;
                }
                left => {
                    muted.store(left - 1, Ordering::Relaxed);
                    return Reply::Mute;
                }
            }
            match below(2000) {
                0 => Reply::DisconnectBefore,
                1 => Reply::DisconnectAfter,
                2 => {
                    muted.store(10, Ordering::Relaxed);
                    Reply::Mute
                }
                3..20 => Reply::Refuse("job.not_found"),
                20..25 => Reply::Refuse("job.something_new"),
                _ => Reply::Store,
            }
        }),
        remembers: REMEMBERED,
        ..Plan::default()
    }
}

#[test]
fn a_client_under_faults_loses_overtakes_leaves_and_hoards_nothing() {
    alone("stress::a_client_under_faults_loses_overtakes_leaves_and_hoards_nothing", under_faults);
}

fn under_faults() {
    let seed = Rng::from_entropy().next_u64();
    let length = duration();
    println!("seed {seed}, {length:?}");
    let threads = Group::enter();
    let before = usage();
    let folder = tempfile::tempdir().unwrap();
    let world = World::new();
    let calm = Arc::new(AtomicBool::new(false));
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let facilitator = ScriptedFacilitator::start(listener, world.timer(), faulty(seed, calm.clone()));
    let soon = RetryPolicy { base: Duration::from_millis(1), cap: Duration::from_millis(10), give_up_after: LONG };
    let config = ClientConfig {
        backoff: BackoffConfig {
            base: Duration::from_millis(1),
            cap: Duration::from_millis(20),
            stable_after: Duration::from_secs(60),
        },
        dial_time: Duration::from_millis(500),
        trusted_signers: vec![key("//User").public()],
        state_dir: Some(folder.path().to_owned()),
        retries: RetryPolicies { not_found: soon, step: soon, terminal: soon },
        limits: LedgerLimits { remembered: REMEMBERED, ..LedgerLimits::default() },
        ..ClientConfig::new(&facilitator.url, key("//Validator"))
    };
    let client = FacilitatorClient::new(config).unwrap().start(|job: Job| {
        let job = job.receive();
        GOOD[1..5].iter().for_each(|status| job.report(*status));
        job.end(Outcome::completed("", "")).unwrap();
    });
    let client = client.unwrap();
    let handle = client.handle();

    let begun = Instant::now();
    let (mut asked, mut warm) = (0, None::<Process>);
    while begun.elapsed() < length {
        facilitator.wait("jobs end", |state| asked - state.ended < OUTSTANDING);
        for _ in 0..OUTSTANDING / 10 {
            facilitator.submit(roles::job(&key("//User")));
            asked += 1;
        }
        if warm.is_none() && asked > 2 * REMEMBERED && begun.elapsed() > length / 4 {
            warm = Some(usage());
        }
    }
    let took = begun.elapsed();
    calm.store(true, Ordering::Relaxed);
    // A connection that was muted in the last moment is not lost by itself any more.
    facilitator.disconnect();
    facilitator.wait("all have ended", |state| state.ended == asked);
    handle.flush(LONG).unwrap();
    facilitator.assert_sound();
    let end = usage();
    for history in facilitator.state().histories.values() {
        assert_eq!(history.statuses, GOOD);
    }
    let report = client.stop(LONG);
    assert!(report.is_clean(), "{report}");
    let (totals, counted) = (handle.totals(), handle.counted());
    {
        let state = facilitator.state();
        println!(
            "{asked} jobs, {:.0}/s; {} updates, {} repeats; {} dials, {} connections; {totals:?}; {counted:?}",
            asked as f64 / took.as_secs_f64(),
            state.updates,
            state.repeats,
            state.dials,
            state.welcomed,
        );
        println!("{report}; {warm:?} when warm, {end:?} at the end");
        assert_eq!(state.stored, 6 * asked);
    }
    assert_eq!((totals.accepted.get(), totals.dead.get()), (6 * asked as u64, 0), "{totals:?}");
    assert_eq!(totals.stored.get(), totals.accepted.get(), "{totals:?}");
    if let Some(warm) = warm {
        let (warm, end) = (warm.resident_memory_bytes, end.resident_memory_bytes);
        assert!(end < warm + GROWTH_BYTES, "memory grows: {} KiB, then {}", warm >> 10, end >> 10);
    }
    facilitator.stop();
    drop(world);
    let left: Vec<_> = threads.live().into_iter().map(|thread| thread.name).collect();
    assert_eq!(left, [] as [String; 0]);
    let after = usage();
    assert_eq!((after.open_fds, after.threads), (before.open_fds, before.threads), "something is left");
}
