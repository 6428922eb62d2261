//! The state machines of facilitator, validator and miner, as they are in `src/`, under a clock that goes from one
//! event to the next: many of them in one thread, with delays, cuts, partitions, crashes and full restarts from what
//! was on disk. All that happens follows from one seed, which is printed.
//!
//! `make simulate` runs it large; what it found is in `docs/simulation.md`.

mod book;
mod clock;
mod disk;
mod executor;
mod facilitator;
mod growth;
mod link;
mod machine;
mod network;
mod page;
mod validator;
mod world;

use phalanx::base::rng::Rng;

use self::page::Page;
use self::world::{Config, World};

/// Runs a world to its end and shows what came of it.
fn simulate(config: Config) -> Page {
    println!("{config}");
    let page = World::new(config).run();
    println!("{page}");
    page
}

/// What is asked for: words `name=number` of the variable, as `make simulate` hands them on.
fn asked() -> Config {
    let words = std::env::var("PHALANX_SIMULATE").unwrap_or_default();
    Config::small(Rng::from_entropy().next_u64() >> 32).with(&words)
}

#[test]
fn a_horde_loses_no_job_and_keeps_nothing_over_cuts_partitions_and_crashes() {
    let page = simulate(asked());
    assert!(page.faults() > 0 && page.completed() > 0, "the run shows something");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let config = Config { jobs: 80, ..Config::small(7) };
    let [one, other] = [simulate(config), simulate(config)];
    assert_eq!(one.digest(), other.digest());
    assert_ne!(one.digest(), simulate(Config { seed: 8, ..config }).digest());
}

/// A facilitator that forgets a job at a crash is found out.
#[test]
fn a_lost_job_is_found() {
    let found = (0..50).find_map(|seed| {
        let config = Config { jobs: 60, faults: 90, forgets: true, ..Config::small(seed) };
        std::panic::catch_unwind(|| simulate(config)).err()
    });
    let why = *found.expect("a job is lost").downcast::<String>().expect("it says why");
    assert!(why.contains("was acknowledged and has no end"), "{why}");
}
