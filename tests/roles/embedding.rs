//! The embedding example runs, and leaves no thread.

#[path = "../../examples/embed.rs"]
mod embed;

use std::sync::Arc;
use std::time::Duration;

use phalanx::app::local::{LocalConfig, LocalNetwork, ThreadBackend};
use phalanx::base::thread::Group;
use phalanx::executor::RunnerKind;

use crate::testkit::roles::World;

#[test]
fn the_embedding_example_runs_and_leaves_no_thread() {
    let group = Group::enter();
    assert_eq!(embed::run().unwrap(), "Epaminondas\nIphicrates\nLeonidas\n");
    let left: Vec<_> = group.live().into_iter().map(|t| t.name).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn dropping_a_local_network_stops_it() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let backend = Arc::new(ThreadBackend::new(RunnerKind::Process, world.timer()));
    let config =
        LocalConfig { state_dir: folder.path().to_owned(), executors: 1, backend, drain_time: Duration::from_secs(1) };
    drop(LocalNetwork::start(config, &world.timer()).unwrap());
    // The world now finds no thread left.
}
