//! What the docs promise of the code's structure, held by reading its files: the direction in which modules use one
//! another, no circle of files, what a pure file may not touch, the tree of threads, no async runtime, and how the text
//! is written.

#[path = "architecture/docs.rs"]
mod docs;
#[path = "architecture/logs.rs"]
mod logs;
#[path = "architecture/packaging.rs"]
mod packaging;
#[path = "architecture/source.rs"]
mod source;
#[path = "architecture/threads.rs"]
mod threads;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use source::Source;
use threads::Spawned;

/// A module may use those of later levels; modules of one level do not know each other.
const LEVELS: &[&[&str]] = &[
    &["main"],
    &["cli", "prelude"],
    &["app"],
    &["facilitator", "validator", "miner", "executor"],
    &["celery", "link", "pool"],
    &["redis", "transport"],
    &["tasks"],
    &["protocol"],
    &["identity"],
    &["store"],
    &["net", "proc"],
    &["ops"],
    &["base"],
];

/// Work and wire meet only in a role, and neither knows what the messages say.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("celery", &["link", "transport", "protocol"]),
    ("redis", &["link", "transport", "protocol"]),
    ("tasks", &["link", "transport", "protocol"]),
    ("link", &["celery", "redis", "tasks", "protocol"]),
    ("transport", &["celery", "redis", "tasks", "protocol"]),
    ("pool", &["redis", "transport", "tasks", "protocol", "identity", "store", "net", "proc", "ops"]),
];

/// What a pure file may not name, nor any file whose functions it calls: no thread, channel, lock, socket, disk or
/// clock. The types of other files are data to it.
const IMPURE: &[&str] = &[
    "std::thread",
    "std::net",
    "std::fs",
    "std::process",
    "std::env",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::Condvar",
    "std::sync::mpsc",
    "std::time::Instant::now",
    "std::time::SystemTime::now",
    "crossbeam_channel",
    "rusqlite",
    "rustix",
];

/// What of it is only data.
const DATA: &[&str] = &[
    "std::net::SocketAddr",
    "std::net::IpAddr",
    "std::net::Ipv4Addr",
    "std::net::Ipv6Addr",
    "std::net::AddrParseError",
    "rustix::process::Signal",
];

/// Longest line of a file, in characters.
const COLUMNS: usize = 120;

fn root() -> PathBuf {
    // At run time, so that a checkout elsewhere can be judged by the same program.
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

fn source() -> &'static Source {
    static SOURCE: LazyLock<Source> = LazyLock::new(|| Source::read(&root().join("src"), "phalanx"));
    assert!(SOURCE.files().len() > 100, "only {} files found", SOURCE.files().len());
    &SOURCE
}

fn level(module: &str) -> Option<usize> {
    LEVELS.iter().position(|level| level.contains(&module))
}

/// Every use of a module by another that goes up, aside, or where it is forbidden.
fn wrong_directions(source: &Source) -> BTreeSet<String> {
    let mut wrong = BTreeSet::new();
    for (number, file) in source.files().iter().enumerate().filter(|(_, file)| file.module() != "lib") {
        let module = file.module();
        let Some(own) = level(module) else {
            wrong.insert(format!("{} is in no level of this test", file.name));
            continue;
        };
        for used in source.uses(number) {
            let other = source.files()[used].module();
            let Some(below) = level(other) else { continue };
            let forbidden = FORBIDDEN.iter().any(|(name, names)| *name == module && names.contains(&other));
            if other != module && (below <= own || forbidden) {
                wrong.insert(format!("{} uses {}", file.name, source.name(used)));
            }
        }
    }
    wrong
}

#[test]
fn modules_use_only_what_stands_below_them() {
    let wrong = wrong_directions(source());
    assert!(wrong.is_empty(), "against the direction: {wrong:#?}");
}

#[test]
fn a_wrong_direction_is_found() {
    let files = [
        ("lib.rs", "pub mod base; pub mod link; pub mod protocol; pub mod validator;"),
        ("base/mod.rs", "pub mod text;"),
        ("base/text.rs", "fn f() { println!(\"{}\", crate::{validator as up}::LIMIT) }"),
        ("link/mod.rs", "use crate::protocol; fn g() { protocol::encode() }"),
        ("protocol/mod.rs", "pub fn encode() {} use crate::base::text::{self, *}; // crate::link::Link"),
        ("validator/mod.rs", "use super::link::{Link as L}; pub const LIMIT: u8 = 1;"),
        ("dispatch/mod.rs", ""),
    ];
    let wrong = wrong_directions(&Source::made_up(&files));
    assert_eq!(wrong, set(&["dispatch/mod.rs is in no level of this test", "link/mod.rs uses protocol/mod.rs"]));
    let upward = Source::made_up(&[
        ("lib.rs", "pub mod base; pub mod validator;"),
        (
            "base/mod.rs",
            "fn f() { vec![crate::validator::LIMIT] }\n#[cfg(test)] mod tests { use crate::validator::role; }",
        ),
        ("validator/mod.rs", "pub use role::LIMIT; mod role;"),
        ("validator/role.rs", "pub const LIMIT: u8 = 1;"),
    ]);
    assert_eq!(wrong_directions(&upward), set(&["base/mod.rs uses validator/role.rs"]));
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// Files that use one another in a circle, each circle by its names in order.
fn circles(source: &Source) -> Vec<Vec<String>> {
    let uses: Vec<BTreeSet<usize>> = (0..source.files().len()).map(|n| source.uses(n)).collect();
    // The shortest way from a file back to itself; a circle that is found is not reported again by its other files.
    let mut found: BTreeMap<BTreeSet<usize>, Vec<String>> = BTreeMap::new();
    for start in 0..uses.len() {
        let mut from: BTreeMap<usize, usize> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(file) = queue.pop_front() {
            for next in &uses[file] {
                if !from.contains_key(next) {
                    from.insert(*next, file);
                    queue.push_back(*next);
                }
            }
        }
        if from.contains_key(&start) {
            let way = way_round(&from, start);
            let members = way.iter().copied().collect();
            found.entry(members).or_insert_with(|| way.iter().map(|n| source.name(*n).to_owned()).collect());
        }
    }
    found.into_values().collect()
}

/// The way from `start` back to it, by what each file was reached from.
fn way_round(from: &BTreeMap<usize, usize>, start: usize) -> Vec<usize> {
    let mut way = vec![start];
    let mut at = from[&start];
    while at != start {
        way.push(at);
        at = from[&at];
    }
    way[1..].reverse();
    way
}

#[test]
fn no_files_use_one_another_in_a_circle() {
    let circles = circles(source());
    assert!(circles.is_empty(), "{} circles: {circles:#?}", circles.len());
}

#[test]
fn a_planted_circle_is_found() {
    let files = [
        ("lib.rs", "pub mod module;"),
        // Declares and passes on: no arrow to the parts. What it does with a part itself is one.
        (
            "module/mod.rs",
            "mod a; mod b; mod c; mod d; pub use a::A; pub use b::{B, make as made}; pub use c::*; pub use d::D;",
        ),
        ("module/a.rs", "use super::made; pub struct A; use super::D;"),
        ("module/b.rs", "pub struct B; pub fn make() { crate::module::seen(3) }"),
        ("module/c.rs", "pub fn seen(n: u8) { assert!(n > super::a::A::LEAST) }"),
        ("module/d.rs", "pub struct D; #[cfg(test)] mod tests { use super::super::A; }"),
    ];
    assert_eq!(circles(&Source::made_up(&files)), [["module/a.rs", "module/b.rs", "module/c.rs"]]);
    let back = [
        ("module.rs", "mod a; pub struct Limit; pub use a::A; fn f(a: A) {}"),
        ("module/a.rs", "pub struct A(super::Limit);"),
    ];
    assert_eq!(circles(&Source::made_up(&back)), [["module.rs", "module/a.rs"]]);
    let straight = [
        ("module.rs", "mod a; pub struct Limit; pub use a::A; #[cfg(test)] mod tests;"),
        ("module/a.rs", "pub struct A(super::Limit);"),
        ("module/tests.rs", "use super::*; fn f(a: A, l: super::Limit) {}"),
    ];
    assert_eq!(circles(&Source::made_up(&straight)), [] as [Vec<String>; 0]);
}

/// Whether the head of a file says that it is pure: in its own words, not in its list of other files, and without
/// "apart from".
fn says_pure(head: &str) -> bool {
    let own: Vec<_> = head.lines().take_while(|line| !line.trim_start().starts_with("* ")).collect();
    let own = own.join(" ");
    let word =
        own.split(|c: char| !c.is_alphanumeric() && c != ' ').find(|part| part.split(' ').any(|word| word == "Pure"));
    word.is_some_and(|part| !part.contains("Pure apart"))
}

/// What pure files call that is not: each with the way to it.
fn impurities(source: &Source) -> BTreeSet<String> {
    let calls: Vec<BTreeSet<usize>> = (0..source.files().len()).map(|n| source.calls(n)).collect();
    let touches = |file: usize| {
        let outside = source.outside(file);
        let is_of = |path: &str, words: &[&str]| {
            words.iter().any(|word| path == *word || path.starts_with(&format!("{word}::")))
        };
        outside.into_iter().find(|path| is_of(path, IMPURE) && !is_of(path, DATA))
    };
    let mut found = BTreeSet::new();
    for start in (0..calls.len()).filter(|n| says_pure(&source.files()[*n].head)) {
        let mut ways = BTreeMap::from([(start, source.name(start).to_owned())]);
        let mut queue = VecDeque::from([start]);
        while let Some(file) = queue.pop_front() {
            if let Some(path) = touches(file) {
                found.insert(format!("{}: {path}", ways[&file]));
                continue;
            }
            for next in &calls[file] {
                if !ways.contains_key(next) {
                    ways.insert(*next, format!("{} -> {}", ways[&file], source.name(*next)));
                    queue.push_back(*next);
                }
            }
        }
    }
    found
}

#[test]
fn pure_files_are_pure_and_so_is_what_they_call() {
    let source = source();
    let pure = source.files().iter().filter(|file| says_pure(&file.head)).count();
    assert!(pure > 30, "only {pure} files say that they are pure");
    let found = impurities(source);
    assert!(found.is_empty(), "not pure: {found:#?}");
}

#[test]
fn a_planted_impurity_is_found() {
    let files = [
        ("lib.rs", "pub mod base; pub mod module;"),
        ("base/mod.rs", "pub mod clock; pub mod sync; pub mod now;"),
        ("base/clock.rs", "//! Reads the clock.\nuse std::time; pub fn now() { time::Instant::now() }"),
        ("base/sync.rs", "pub use std::sync::{Arc, Mutex};"),
        ("base/now.rs", "//! A moment. Pure: it is given.\nuse std::time::Instant; pub struct Now(Instant);"),
        (
            "module/mod.rs",
            "//! * [`a`]: a part. Pure.\n//! * [`b`]\nuse std::fs; pub mod a; pub mod b; pub mod c; pub mod d;",
        ),
        ("module/a.rs", "//! Policy. Pure.\nuse crate::base::now::Now; fn f() { super::b::g() }"),
        ("module/b.rs", "pub fn g() { crate::base::clock::now() }"),
        ("module/c.rs", "//! Counts. Pure apart from one lock.\nuse crate::base::sync::Mutex;"),
        ("module/d.rs", "//! Counts. Pure: no thread, no\n//! lock.\nuse crate::base::sync; type T = sync::Mutex<u8>;"),
    ];
    let expected =
        ["module/a.rs -> module/b.rs -> base/clock.rs: std::time::Instant::now", "module/d.rs: std::sync::Mutex"];
    assert_eq!(impurities(&Source::made_up(&files)), set(&expected));
}

/// Titles of the tree, and threads that are not spawned by us: the main thread and the one of the crate `ctrlc`.
const NOT_SPAWNED: [&str; 8] = ["main", "ctrl-c", "facilitator", "validator", "worker", "miner", "watcher", "executor"];

/// The text of the document that has the tree.
fn thread_tree() -> String {
    let mut documents = vec![root().join("README.md"), root().join("ARCHITECTURE.md")];
    documents.extend(fs::read_dir(root().join("docs")).into_iter().flatten().map(|entry| entry.unwrap().path()));
    let texts = documents.into_iter().filter_map(|path| fs::read_to_string(path).ok());
    let is_heading = |line: &str| line.starts_with('#') && line.ends_with(" The thread tree");
    let mut found: Vec<_> = texts.filter(|text| text.lines().any(is_heading)).collect();
    assert_eq!(found.len(), 1, "documents with the heading `The thread tree`");
    found.remove(0)
}

/// Where the names of the source and those of the tree differ.
fn differences(spawned: &Spawned, tree: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = spawned.unknown.iter().map(|site| format!("what name is this? {site}")).collect();
    for (template, file) in &spawned.templates {
        if !tree.iter().any(|name| spawned.matches(template, name)) {
            found.insert(format!("not in the tree: {} of {file}", threads::shown(template)));
        }
    }
    for name in tree.iter().filter(|name| !NOT_SPAWNED.contains(&name.as_str())) {
        if !spawned.templates.iter().any(|(template, _)| spawned.matches(template, name)) {
            found.insert(format!("nobody spawns {name}"));
        }
    }
    found
}

#[test]
fn the_thread_tree_is_what_the_source_spawns() {
    let spawned = Spawned::read(&root().join("src"));
    assert!(spawned.templates.len() > 20, "only {:?}", spawned.templates);
    let found = differences(&spawned, &threads::tree(&thread_tree()));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn each_thread_is_watched_or_has_a_reason() {
    let (document, code) = (thread_tree(), code());
    let rows = threads::watched(&document);
    let mut tree = threads::tree(&document);
    tree.retain(|name| !NOT_SPAWNED.contains(&name.as_str()));
    let in_rows: Vec<&String> = rows.iter().flat_map(|(names, _)| names).collect();
    let known: BTreeSet<String> = in_rows.iter().map(|name| (*name).clone()).collect();
    assert_eq!(known.len(), in_rows.len(), "a thread has two rows");
    assert_eq!(tree.symmetric_difference(&known).collect::<Vec<_>>(), [""; 0]);
    // A part is one that the source watches.
    let marks = ["pulse", ".beat(", ".watch("];
    for part in rows.iter().filter_map(|(_, part)| part.as_ref()) {
        let literal = format!("\"{part}\"");
        let is_there =
            code.iter().any(|(_, text)| text.contains(&literal) && marks.iter().any(|mark| text.contains(mark)));
        assert!(is_there || part == "cel-take", "nothing watches a part {part}");
    }
}

#[test]
fn a_thread_that_is_missing_on_either_side_is_found() {
    let source = r#"
        fn start(config: Config) {
            let name = format!("{}-{number}", config.name);
            spawn(name, kick, run);
            spawn("fac-store", kick, run);
            let pipes = (pump("job-out", 1), pump("job-err", 2));
            thread::spawn(config.writer_name.clone(), kick, run);
        }
        fn pump(name: &str, n: u8) { spawn(name, kick, run) }
        fn config(n: u8) -> Config { Config { writer_name: format!("val-mi-{n}-wr"), name: "work" } }
        impl<T: Read> Worker<T> {
            fn start(self, name: &str) { tasks.spawn("no", f); spawn(format!("{name}-accept"), k, f) }
        }
        #[cfg(test)]
        mod tests { fn f() { spawn("t-test", kick, run) } }
    "#;
    let spawned = Spawned::of(&[("module.rs".to_owned(), source.to_owned())]);
    let document = "## The thread tree\n\n```\nmain     waits\n├─ facilitator (a role)\n│   ├─ fac-store  disk\n\
        └─ work-n      jobs ── val-mi-n-wr: one link, with job-out, job-in\n    └─ job-out, -err   pipes\n```\n";
    let tree = threads::tree(document);
    assert_eq!(tree, set(&["main", "facilitator", "fac-store", "work-n", "val-mi-n-wr", "job-out", "job-err"]));
    assert_eq!(differences(&spawned, &tree), set(&["not in the tree: *-accept of module.rs"]));
    let more = tree.into_iter().chain(["work-accept".to_owned(), "lost-n".to_owned()]).collect();
    assert_eq!(differences(&spawned, &more), set(&["nobody spawns lost-n"]));
}

/// The packages that a program gets with the library, by name.
fn dependencies(features: &[&str]) -> BTreeSet<String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "-e", "normal", "--prefix", "none", "--offline", "--locked"])
        .args(features)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn a_program_compiles_only_what_its_features_need() {
    let heavy = ["clap", "indicatif", "redis", "rusqlite", "rustls", "schnorrkel", "serde_json", "tungstenite", "ureq"];
    for (features, needed) in [
        ("", vec![]),
        ("ops", vec!["serde_json"]),
        ("net", vec!["rustls", "serde_json"]),
        ("store", vec!["rusqlite", "serde_json"]),
        ("client", vec!["rustls", "schnorrkel", "serde_json", "tungstenite"]),
        ("client,store", vec!["rusqlite", "rustls", "schnorrkel", "serde_json", "tungstenite"]),
        ("celery", vec!["redis", "rustls", "serde_json"]),
        ("roles", vec!["rusqlite", "rustls", "schnorrkel", "serde_json", "tungstenite", "ureq"]),
        ("cli,celery", heavy.to_vec()),
    ] {
        let all = dependencies(&["--no-default-features", "--features", features]);
        assert!(!features.is_empty() || all.len() < 20, "a task manager alone: {all:?}");
        let found: Vec<&str> = heavy.into_iter().filter(|name| all.contains(*name)).collect();
        assert_eq!(found, needed, "with the features {features:?}");
    }
}

#[test]
fn no_unsafe_and_no_async_runtime() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("\nunsafe_code = \"forbid\"\n"));
    let names = dependencies(&[]);
    assert!(names.contains("tungstenite") && names.len() > 50, "{} packages", names.len());
    // Those of `make deny`, which this holds also where cargo-deny cannot be had.
    let bans = fs::read_to_string(root().join("deny.toml")).unwrap();
    let bans = bans.lines().filter(|line| line.contains(r#"reason = "async runtime""#));
    let runtimes: Vec<_> = bans.map(|line| line.split('"').nth(1).unwrap()).collect();
    assert!(runtimes.contains(&"tokio"), "{runtimes:?}");
    for runtime in runtimes {
        assert!(!names.contains(runtime), "{runtime} is in the tree");
    }
}

/// The lines of all Rust files, each with its place.
fn lines(folders: &[&str]) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    for folder in folders {
        source::rust_files(&root().join(folder), &mut paths);
    }
    assert!(paths.len() > 50, "only {} files found", paths.len());
    let mut lines = Vec::new();
    for path in paths {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        lines.extend(text.lines().enumerate().map(|(n, line)| (format!("{name}:{}", n + 1), line.to_owned())));
    }
    lines
}

#[test]
fn no_line_is_wider_than_the_formatter_allows() {
    let wide = lines(&["src", "tests", "examples"]).into_iter().filter(|(_, line)| line.chars().count() > COLUMNS);
    let wide: Vec<_> = wide.map(|(place, _)| place).collect();
    assert!(wide.is_empty(), "{} lines over {COLUMNS} columns: {wide:#?}", wide.len());
}

/// The owner of each `stop` of the library, with whether that has the shape of all.
fn stops(lines: &[(String, String)]) -> BTreeMap<String, bool> {
    let mut owner = String::new();
    let mut stops = BTreeMap::new();
    for (_, line) in lines {
        if let Some(of) = line.strip_prefix("impl").filter(|_| line.ends_with('{')) {
            let of = of.rsplit(" for ").next().unwrap_or(of).trim_end_matches(" {");
            let of = of.rsplit("> ").next().unwrap_or(of).trim();
            owner = of.split('<').next().unwrap_or(of).to_owned();
        }
        if line.trim_start().starts_with("pub fn stop(") {
            stops.insert(owner.clone(), line.ends_with("self, budget: Duration) -> StopReport {"));
        }
    }
    stops
}

#[test]
fn every_owner_of_threads_has_the_same_stop_and_is_in_the_table() {
    let made_up = ["impl<C: Connector> Pool<C> {", "    pub fn stop(mut self, budget: Duration) -> StopReport {"];
    let made_up = made_up.map(|line| (String::new(), line.to_owned()));
    assert_eq!(stops(&made_up), BTreeMap::from([("Pool".to_owned(), true)]));
    let document = fs::read_to_string(root().join("docs/embedding.md")).unwrap();
    let stops = stops(&lines(&["src"]));
    assert!(stops.len() > 20, "{stops:?}");
    for (owner, alike) in stops {
        assert!(alike, "{owner}::stop should take `budget: Duration` and give a `StopReport`");
        // The handlers of signals are those of the whole process, so no test has them.
        let row = document.lines().any(|line| line.starts_with("| `") && line.contains(&format!("`{owner}`")));
        assert!(row || owner == "Signals", "{owner} is not in the table of docs/embedding.md");
    }
}

#[test]
fn the_rust_of_every_document_is_compiled() {
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let with_rust = docs::documents(&root()).into_iter().filter(|(_, text)| text.contains("\n```rust"));
    let with_rust: Vec<_> = with_rust.collect();
    assert!(with_rust.len() > 3, "{} documents", with_rust.len());
    for (name, text) in with_rust {
        // A block without a name would be compiled as Rust.
        let begins = text.lines().filter(|line| line.starts_with("```")).step_by(2);
        assert!(begins.into_iter().all(|line| line != "```"), "{name}: a block should name its language, as ```text");
        let included = library.contains(&format!("include_str!(\"../{name}\")"));
        assert!(included, "src/lib.rs should include {name} in its `documents`, so that its Rust is compiled");
    }
}

/// The error enums of a file of the library, each with its variants.
fn errors(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut errors: Vec<(&str, Vec<&str>)> = Vec::new();
    let (mut derived, mut inside) = (false, false);
    for line in text.lines() {
        if line.starts_with("#[derive(") || line.starts_with("#[error(") {
            derived |= line.contains("thiserror::Error");
        } else if let Some(rest) = line.strip_prefix("pub enum ").filter(|_| derived) {
            errors.push((word(rest), Vec::new()));
            (derived, inside) = (false, true);
        } else if line == "}" || line.starts_with("pub struct ") {
            (derived, inside) = (false, false);
        } else if inside
            && let Some(rest) = line.strip_prefix("    ").filter(|rest| rest.starts_with(char::is_uppercase))
            && let Some((_, variants)) = errors.last_mut()
        {
            variants.push(word(rest));
        }
    }
    errors
}

fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or(text)
}

#[test]
fn every_variant_of_a_public_error_is_in_the_catalogue() {
    let made_up = "#[derive(Debug, thiserror::Error)]\npub enum E<T> {\n    /// One.\n    One(T),\n\
        \x20   Two {\n        x: u8,\n    },\n}\n";
    assert_eq!(errors(made_up), [("E", vec!["One", "Two"])]);
    let document = fs::read_to_string(root().join("docs/errors.md")).unwrap();
    let mut paths = Vec::new();
    source::rust_files(&root().join("src"), &mut paths);
    let mut count = 0;
    for path in paths {
        let module = path.strip_prefix(root().join("src")).unwrap().with_extension("").display().to_string();
        let module = module.trim_end_matches("/mod").replace('/', "::");
        for (name, variants) in errors(&fs::read_to_string(&path).unwrap()) {
            let heading = format!("\n### {name} ({module})\n");
            let section = document.split_once(&heading).unwrap_or_else(|| panic!("no section {heading:?}")).1;
            let section = section.split("\n#").next().unwrap();
            let missing: Vec<_> =
                variants.iter().filter(|variant| !section.contains(&format!("\n| `{variant}` | "))).collect();
            assert!(missing.is_empty(), "docs/errors.md lacks {missing:?} of {name} ({module})");
            count += variants.len();
        }
    }
    assert!(count > 200, "{count} variants");
}

/// The part of a file that is test code: all of `tests/` and of a module for tests, else what stands behind the mark.
fn test_code<'a>(name: &str, text: &'a str) -> &'a str {
    if name.starts_with("tests/") || name.ends_with("tests.rs") {
        return text;
    }
    const MARK: &str = "\n#[cfg(test)]\nmod ";
    let is_inline = |at: &usize| text[at + MARK.len()..].lines().next().is_some_and(|line| line.ends_with('{'));
    text.match_indices(MARK).map(|(at, _)| at).find(is_inline).map_or("", |at| &text[at..])
}

#[test]
fn no_test_spins() {
    // A yield of the model checker is a step of its schedule; benchmarks are no tests.
    const ALLOWED: [&str; 4] =
        ["tests/architecture.rs", "tests/model/handover.rs", "tests/model/poll.rs", "tests/peers/"];
    assert!(test_code("src/a.rs", "yield_now();\n#[cfg(test)]\nmod tests {\nx()").ends_with("mod tests {\nx()"));
    assert_eq!(test_code("src/a.rs", "mod b;\n#[cfg(test)]\nmod tests;\nyield_now();"), "");
    let mut paths = Vec::new();
    for folder in ["src", "tests"] {
        source::rust_files(&root().join(folder), &mut paths);
    }
    let spins = |path: &PathBuf| {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        let spins = test_code(&name, &fs::read_to_string(path).unwrap()).contains("yield_now");
        (spins && !ALLOWED.iter().any(|allowed| name.starts_with(allowed))).then_some(name)
    };
    let found: Vec<_> = paths.iter().filter_map(spins).collect();
    assert!(found.is_empty(), "they spin; `base::wait::until` looks again and again: {found:?}");
}

/// The files below `src` with what is no test code.
fn code() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    source::rust_files(&root().join("src"), &mut paths);
    let read = |path: PathBuf| {
        let (name, text) = (path.strip_prefix(root().join("src")).unwrap(), fs::read_to_string(&path).unwrap());
        let name = name.display().to_string();
        (name.clone(), text[..text.len() - test_code(&name, &text).len()].to_owned())
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn errors_are_told_to_the_handler_of_the_role() {
    let code = code();
    let found = logs::lines(&code);
    assert!(found.len() > 10, "only {found:?}");
    assert_eq!(logs::differences(&found), [""; 0]);

    let planted = "fn f() {\n    // log::warn!(\"a\");\n    log::warn!(\"b\");\n}\n";
    let mut with = code.clone();
    with.push(("miner/new.rs".to_owned(), planted.to_owned()));
    assert_eq!(
        logs::differences(&logs::lines(&with)),
        ["miner/new.rs logs 1 errors by itself, not 0: tell `ops::errors::ErrorHandler`"]
    );
}

/// Whether a text names a rule by the number of a document that is not in this repository.
fn names_a_rule(text: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    ["W", "D", "XC", "TM", "MF", "EM", "JD"].iter().any(|prefix| {
        text.match_indices(&format!("{prefix}-")).any(|(at, found)| {
            let digits = text[at + found.len()..].chars().take_while(char::is_ascii_digit).count();
            !text[..at].ends_with(is_part) && digits >= 2
        })
    })
}

#[test]
fn the_code_says_its_rules_in_words() {
    let example = format!("as {}-07 says", "TM");
    assert!(names_a_rule(&example) && !names_a_rule("COMD-07, W-x, D-1") && !names_a_rule("2026-11-28"));
    let named: Vec<_> =
        lines(&["src", "tests", "examples"]).into_iter().filter(|(_, line)| names_a_rule(line)).collect();
    assert!(named.is_empty(), "rules of other documents: {named:#?}");
}

/// All files and folders of the repository that documents name, as paths from the root.
fn paths(folder: &str, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            into.insert(format!("{path}/"));
            paths(&path, into);
        } else {
            into.insert(path);
        }
    }
}

#[test]
fn what_the_documents_name_exists() {
    let mut files = BTreeSet::new();
    ["src", "tests", "examples", "docs"].iter().for_each(|folder| paths(folder, &mut files));
    let mut wrong = BTreeSet::new();
    for (name, text) in docs::documents(&root()) {
        wrong.extend(docs::missing_files(&text, &files).into_iter().map(|path| format!("{name}: no file {path}")));
        let folder = PathBuf::from(&name).parent().unwrap().to_owned();
        for (path, anchor) in docs::links(&text) {
            let target = if path.is_empty() { root().join(&name) } else { root().join(&folder).join(path) };
            // Pictures have no anchors.
            let found = if anchor.is_empty() {
                target.exists()
            } else {
                fs::read_to_string(&target).is_ok_and(|text| docs::anchors(&text).contains(anchor))
            };
            if !found {
                wrong.insert(format!("{name}: no target {path}#{anchor}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    let files = set(&["src/link/outbox.rs", "src/link/"]);
    let text = "## A stop, at last\n`link/outbox.rs`, `link/`, `link/gone.rs`, `/url/`, `a b/`, [x](#a-stop-at-last)\n\
                ```\n`x/`\n```";
    assert_eq!(docs::missing_files(text, &files), set(&["link/gone.rs"]));
    assert_eq!((docs::links(text), docs::anchors(text)), (vec![("", "a-stop-at-last")], set(&["a-stop-at-last"])));
}

#[test]
fn each_reason_and_class_of_errors_has_its_advice() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let (advice, enums, errors) =
        (read("docs/troubleshooting.md"), read("src/protocol/enums.rs"), read("src/ops/errors.rs"));
    let mut texts = docs::texts_of(&errors, "pub fn as_str(self)", "}");
    assert!(texts.contains(&"reconnect"), "{texts:?}");
    for name in ["HordeFailureReason", "JobFailureReason", "JobRejectionReason"] {
        let found = docs::texts_of(&enums, &format!("enum {name} {{"), "}");
        assert!(found.len() > 4 && found.contains(&"unknown"), "{name}: {found:?}");
        texts.extend(found);
    }
    let rows: Vec<&str> = advice.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()).collect();
    let missing: Vec<_> =
        texts.iter().filter(|text| !rows.iter().any(|row| row.contains(&format!("`{text}`")))).collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md has no row for {missing:?}");
}

#[test]
fn the_readme_is_read_in_five_minutes() {
    let words = fs::read_to_string(root().join("README.md")).unwrap().split_whitespace().count();
    assert!(words <= 800, "README.md has {words} words");
}
