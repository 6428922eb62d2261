//! The lock-and-channel parts under a controlled scheduler: the shutdown latch, the hand-over of the outbox, the
//! matching of acknowledgements, the wake-ups of the poll, stop against reconnect, the end of a task, the slots of a
//! miner, the pool kit.
//!
//! The files of `src/` are compiled here a second time, as they are, against locks that let a scheduler choose who runs
//! next ([`base::sync`]). Each model runs under thousands of schedules, half of them random, half with few and
//! deliberate changes of thread (PCT). A schedule that hangs is reported as a deadlock; each failure comes with its
//! schedule, which `shuttle::replay` repeats. This is search, not proof: weak memory orders and the passing of time are
//! not modelled.
//!
//! Planted bugs ([`seed::Seed`]) show that the search finds what it looks for.

// The modelled files offer more than the models use.
#[allow(dead_code)]
mod base;

mod handover;
#[allow(dead_code)]
mod leases;
#[allow(dead_code)]
mod link;
mod poll;
#[allow(dead_code)]
mod pool;
mod protocol;

mod seed;

mod shutdown;
#[allow(dead_code)]
mod tasks;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use phalanx::base::rng::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

use seed::Seed;

/// Places in a schedule where PCT takes the processor from the thread that has it.
const PCT_DEPTH: usize = 4;

/// Runs `model` under `schedules` schedules; panics at the first that fails.
fn explore(schedules: usize, model: impl Fn() + Clone + Send + Sync + 'static) {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut config = Config::new();
    config.silence_warnings = true;
    Runner::new(RandomScheduler::new_from_seed(seed, schedules / 2), config.clone()).run(model.clone());
    Runner::new(PctScheduler::new_from_seed(seed, PCT_DEPTH, schedules / 2), config).run(model);
}

/// What the search says of `model` with a bug planted; panics if it finds nothing in `schedules` schedules.
fn failure(seed: Seed, schedules: usize, model: fn()) -> String {
    let tried = Arc::new(AtomicUsize::new(0));
    let counted = tried.clone();
    let search = move || {
        explore(schedules, move || {
            counted.fetch_add(1, Relaxed);
            model();
        });
    };
    let panic = seed.plant(|| catch_unwind(AssertUnwindSafe(search))).expect_err("the planted bug is not found");
    let found = panic.downcast_ref::<String>().expect("a panic with a text").clone();
    println!("{seed:?}: schedule {} of {schedules}: {found}", tried.load(Relaxed));
    found
}

/// Where a modelled file took a lock from elsewhere, the scheduler would not see it, and the models would pass in
/// silence.
#[test]
fn the_modelled_files_take_their_locks_from_base_sync() {
    for file in [
        "base/drained.rs",
        "base/lock.rs",
        "base/shutdown.rs",
        "link/handover.rs",
        "link/poll/news.rs",
        "link/poll/runs.rs",
        "link/outbox/mod.rs",
        "link/outbox/message.rs",
        "tasks/cell.rs",
        "miner/executor_pool.rs",
        "miner/host.rs",
        "pool/breaker.rs",
        "pool/breakers.rs",
        "pool/budget.rs",
        "pool/bulkhead.rs",
        "pool/connections.rs",
        "pool/policy.rs",
        "pool/until.rs",
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let text = fs::read_to_string(path).unwrap();
        for elsewhere in ["std::sync", "std::thread", "crossbeam"] {
            assert!(!text.contains(elsewhere), "{file} uses {elsewhere}; see base/sync.rs");
        }
    }
}
