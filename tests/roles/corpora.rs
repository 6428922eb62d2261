//! The corpora of the fuzz targets: what real peers send, and what a fuzzer has found once, holds still.

use std::fs;
use std::path::Path;

use crate::testkit::fuzzed::TARGETS;

#[test]
fn what_was_fuzzed_once_holds_still() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut folders: Vec<_> = fs::read_dir(&corpora)
        .expect("the corpora")
        .map(|entry| entry.expect("a folder").file_name().into_string().expect("a name"))
        .collect();
    folders.sort();
    assert_eq!(folders, TARGETS.map(|(name, _)| name), "each target has a corpus, each corpus a target");
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpora.join(name)).expect("a corpus") {
            let path = entry.expect("an input").path();
            // A panic names the input.
            println!("{}", path.display());
            target(&fs::read(&path).expect("an input"));
            inputs += 1;
        }
        assert!(inputs > 0, "the corpus of {name} is empty");
    }
}
