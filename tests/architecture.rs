//! The two rules of the house, held by reading `src/`: the direction in which modules may use one another, and what a pure
//! file may not touch. Also: no async runtime in the tree of dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module may use those of later levels; modules of one level do not know each other.
const LEVELS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["app"],
    &["facilitator", "validator", "miner", "executor"],
    &["dispatch", "celery", "link"],
    &["redis", "transport"],
    &["tasks"],
    &["protocol"],
    &["identity"],
    &["store"],
    &["net", "proc"],
    &["ops"],
    &["base"],
];

/// Work and wire meet only in a role.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("dispatch", &["link", "transport", "protocol"]),
    ("tasks", &["transport", "protocol"]),
    ("link", &["tasks", "protocol"]),
];

/// Policy: no thread, channel, socket or clock.
const PURE: &[&str] = &[
    "base/backoff.rs",
    "ops/throttle.rs",
    "ops/redact.rs",
    "link/heartbeat.rs",
    "link/outbox.rs",
    "tasks/deadlines.rs",
    "tasks/queue.rs",
    "tasks/retry.rs",
    "tasks/state.rs",
    "tasks/store.rs",
    "validator/client/inbound.rs",
    "validator/ledger/queue.rs",
    "validator/ledger/record.rs",
    "validator/routing.rs",
    "miner/executor_pool.rs",
    "miner/router/mod.rs",
    "miner/router/executors.rs",
    "miner/router/jobs.rs",
    "miner/router/validators.rs",
    "facilitator/router.rs",
    "facilitator/router/open.rs",
    "protocol/stages.rs",
    "celery/mod.rs",
    "celery/client/polls.rs",
    "celery/envelope.rs",
    "celery/message.rs",
    "celery/meta.rs",
    "celery/moment.rs",
    "celery/repr.rs",
    "celery/task.rs",
    "celery/value.rs",
    "celery/worker/control.rs",
    "celery/worker/held.rs",
    "celery/worker/outcome.rs",
    "celery/worker/registry.rs",
    "celery/worker/restore.rs",
    "celery/worker/revoked.rs",
    "celery/worker/scripts.rs",
    "redis/error.rs",
    "redis/messaging/envelope.rs",
    "redis/proof.rs",
    "redis/request.rs",
    "redis/resp.rs",
    "redis/script.rs",
];

const IMPURE: &[&str] = &["std::thread", "crossbeam_channel", "std::net", "Instant::now", "SystemTime::now", "Mutex"];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// The text of a file without its comments and without its unit tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(src()).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The top modules that a text names after `crate::` or, in the binary, `phalanx::`.
fn used(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for prefix in ["crate::", "phalanx::"] {
        for (at, _) in text.match_indices(prefix) {
            let rest = &text[at + prefix.len()..];
            match rest.strip_prefix('{') {
                Some(list) => found.extend(top_names(list)),
                None => found.extend(first_name(rest)),
            }
        }
    }
    found
}

fn first_name(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

/// The names at the top of a list that may hold lists, up to its closing brace.
fn top_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut fresh) = (0, Vec::new(), true);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && !c.is_whitespace() => {
                names.extend(first_name(&list[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&module))
}

#[test]
fn modules_use_only_what_stands_below_them() {
    let mut all = Vec::new();
    files(&src(), &mut all);
    assert!(all.len() > 40, "only {} files found", all.len());
    let mut wrong = BTreeMap::new();
    for path in &all {
        let module = module_of(path);
        if module == "lib" {
            continue;
        }
        let own = level(&module).unwrap_or_else(|| panic!("{} is in no level of this test", path.display()));
        for name in used(&code(path)) {
            let Some(other) = level(&name) else { continue };
            let forbidden = FORBIDDEN.iter().any(|(m, names)| *m == module && names.contains(&name.as_str()));
            if name != module && (other <= own || forbidden) {
                wrong.insert(format!("{} uses {name}", path.strip_prefix(src()).unwrap().display()), ());
            }
        }
    }
    assert!(wrong.is_empty(), "against the direction: {:#?}", wrong.keys().collect::<Vec<_>>());
}

#[test]
fn the_checker_sees_a_wrong_use() {
    assert_eq!(used("use crate::link::{Link};\nfn f() { crate::app::exit::usage(1) }"), set(&["link", "app"]));
    assert_eq!(used("use crate::{base::{a, b}, store::open,\n    ops};"), set(&["base", "store", "ops"]));
    assert!(level("base") > level("link") && level("link") > level("validator"));
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn pure_files_are_pure() {
    for file in PURE {
        let text = code(&src().join(file));
        let found: Vec<_> = IMPURE.iter().filter(|word| text.contains(**word)).collect();
        assert!(found.is_empty(), "{file} is pure and must not use {found:?}");
    }
}

#[test]
fn no_unsafe_and_no_async_runtime() {
    let lib = fs::read_to_string(src().join("lib.rs")).unwrap();
    assert!(lib.contains("#![forbid(unsafe_code)]"));
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "-e", "normal", "--prefix", "none", "--offline", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains("tungstenite") && names.len() > 50, "{} packages", names.len());
    for runtime in ["tokio", "async-std", "smol", "futures-executor", "async-io", "actix-rt", "monoio", "glommio"] {
        assert!(!names.contains(runtime), "{runtime} is in the tree");
    }
}
