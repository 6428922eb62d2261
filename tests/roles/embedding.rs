//! The embedding example runs, and leaves no thread.

#[path = "../../examples/embed.rs"]
mod embed;

use phalanx::base::thread::Group;

#[test]
fn the_embedding_example_runs_and_leaves_no_thread() {
    let group = Group::enter();
    assert_eq!(embed::run().unwrap(), "Epaminondas\nIphicrates\nLeonidas\n");
    let left: Vec<_> = group.live().into_iter().map(|t| t.name).collect();
    assert!(left.is_empty(), "{left:?}");
}
