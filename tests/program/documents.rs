//! The shell blocks of the README and of `docs/`, as they are written.
//!
//! The quickstart's first block is a network, beside which each other block runs in a shell of its own, all in one
//! folder. The line before a block may be `<!-- not run: WHY -->` or `<!-- needs PROGRAM -->`. The network by hand has
//! a shell for each paragraph.
//!
//! One thing may differ: ports. The network's are chosen by the system; one of the network by hand that is taken on
//! this machine is replaced, wherever it is named, by one that is free.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::dev;
use crate::testkit::process::{Finished, Running, in_scratch, nothing_left};

/// How the line before the block of the network by hand begins.
const MARK: &str = "A network by hand";

/// The README and the documents, each with its path.
fn documents(root: &Path) -> Vec<(PathBuf, String)> {
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = docs.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    paths.sort();
    paths.insert(0, root.join("README.md"));
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// A block of shell commands.
struct Block {
    /// Document and line.
    place: String,
    text: String,
    /// What stands before it in a comment.
    note: Option<String>,
}

/// The blocks of a document; one without a language is none of commands.
fn blocks(path: &Path, text: &str) -> Vec<Block> {
    let (mut found, mut before) = (Vec::new(), "");
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            before = line;
            continue;
        };
        let inside: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        let place = format!("{}:{}", path.display(), at + 1);
        if ["sh", "bash", "console", "shell"].contains(&language) {
            let note = before.strip_prefix("<!-- ").and_then(|note| note.strip_suffix(" -->")).map(str::to_owned);
            found.push(Block { place, text: inside.join("\n"), note });
        } else if language.is_empty() || language == "text" {
            let commands = inside.iter().filter(|line| ["phalanx ", "$ "].iter().any(|start| line.starts_with(start)));
            assert_eq!(commands.count(), 0, "{place}: commands in a block of {language:?}; it should be one of sh");
        }
    }
    found
}

/// Whether a block is to run here, by what stands before it.
fn is_to_run(block: &Block) -> bool {
    let Some(note) = &block.note else { return true };
    if note.starts_with("not run: ") {
        return false;
    }
    let program = note.strip_prefix("needs ").unwrap_or_else(|| panic!("{}: {note}", block.place));
    let path = std::env::var_os("PATH").unwrap();
    let is_here = std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    assert!(is_here || std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none(), "{program} is required");
    if !is_here {
        println!("SKIPPED: {} needs {program}", block.place);
    }
    is_here
}

/// The paragraphs of the network by hand, from whichever document has it.
fn paragraphs(root: &Path) -> Vec<String> {
    let texts: Vec<String> = documents(root).into_iter().map(|(_, text)| text).collect();
    let mut found = texts.iter().filter_map(|text| text.split_once(&format!("\n{MARK}")));
    let (_, rest) = found.next().expect("a document with the network by hand");
    assert!(found.next().is_none(), "two documents have the network by hand");
    let block = rest.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
    block.split("\n\n").map(str::to_owned).collect()
}

/// What comes before the number of a port.
const PORT_MARKS: [&str; 2] = ["127.0.0.1:", "port = "];

fn ports(text: &str) -> Vec<String> {
    let after = PORT_MARKS.into_iter().flat_map(|mark| text.match_indices(mark));
    let digits = after.map(|(at, mark)| text[at + mark.len()..].chars().take_while(char::is_ascii_digit).collect());
    let mut ports: Vec<String> = digits.collect();
    ports.sort();
    ports.dedup();
    ports
}

/// The block with each port that is taken replaced by a free one.
fn with_free_ports(mut paragraphs: Vec<String>) -> Vec<String> {
    let mut held = Vec::new();
    for port in ports(&paragraphs.concat()) {
        if let Ok(free) = TcpListener::bind(format!("127.0.0.1:{port}")) {
            held.push(free);
            continue;
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = free.local_addr().unwrap().port().to_string();
        println!("port {port} is taken, {other} in its place");
        for paragraph in &mut paragraphs {
            for mark in PORT_MARKS {
                *paragraph = paragraph.replace(&format!("{mark}{port}"), &format!("{mark}{other}"));
            }
        }
        held.push(free);
    }
    paragraphs
}

/// A shell with a process group of its own, as a terminal gives it; ended when dropped.
struct Terminal(Option<Running>);

impl Terminal {
    fn open(scratch: &Path, folder: &Path, paragraph: &str) -> Self {
        let mut shell = in_scratch(Command::new("bash"), scratch);
        let path = std::env::var("PATH").unwrap();
        shell.env("PATH", format!("{}:{path}", folder.join("bin").display())).env("PHALANX_PORT", "0");
        Self(Some(Running::start(shell.args(["-c", paragraph]).current_dir(folder).process_group(0))))
    }

    fn signal(&self, signal: Signal) {
        let group = Pid::from_raw(i32::try_from(self.0.as_ref().unwrap().id()).unwrap()).unwrap();
        // All of it may have ended.
        let _ = kill_process_group(group, signal);
    }

    fn running(&mut self) -> &mut Running {
        self.0.as_mut().unwrap()
    }

    fn finish(mut self) -> Finished {
        self.0.take().unwrap().finish()
    }

    /// Ctrl-C.
    fn interrupt(self) -> Finished {
        self.signal(Signal::INT);
        self.finish()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.signal(Signal::KILL);
        }
    }
}

/// A folder with the program on the path, beside one for what it is not to leave.
fn folders() -> (TempDir, TempDir) {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(folder.path().join("bin")).unwrap();
    symlink(env!("CARGO_BIN_EXE_phalanx"), folder.path().join("bin/phalanx")).unwrap();
    (folder, scratch)
}

#[test]
fn the_quickstart_and_every_other_block_run_as_they_are_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let blocks: Vec<Block> = documents(root).iter().flat_map(|(path, text)| blocks(path, text)).collect();
    let mut blocks = blocks.iter().filter(|block| is_to_run(block));
    let (folder, scratch) = folders();
    let open = |text: &str| Terminal::open(scratch.path(), folder.path(), &format!("set -eo pipefail\n{text}"));
    let quickstart = blocks.next().unwrap();
    assert!(quickstart.text.starts_with("phalanx dev"), "{}", quickstart.text);
    let mut network = open(&quickstart.text);
    dev::wait_until_ready(network.running());
    let mut ran = Vec::new();
    for block in blocks {
        let finished = open(&block.text).finish();
        assert_eq!(finished.code, Some(0), "{}: {finished:?}\n{}", block.place, network.running().stderr());
        ran.push(finished.stdout);
    }
    assert!(ran.len() > 3 && ran[0].contains("completed"), "{ran:?}");
    let finished = network.interrupt();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    nothing_left(scratch.path());
}

#[test]
fn the_network_by_hand_works_as_it_is_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (folder, scratch) = folders();
    symlink(root.join("examples"), folder.path().join("examples")).unwrap();
    let paragraphs = with_free_ports(paragraphs(root));
    let [facilitator, miner, validator, submit, status] = &paragraphs[..] else {
        panic!("five terminals: {paragraphs:#?}")
    };
    let open = |paragraph: &str| Terminal::open(scratch.path(), folder.path(), paragraph);
    // A role that says where it listens is up.
    let roles = [facilitator, miner, validator].map(|paragraph| {
        let mut terminal = open(paragraph);
        assert!(terminal.running().line().starts_with('{'));
        terminal
    });
    let finished = open(submit).finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(finished.stdout.matches("completed").count(), 5, "{}", finished.stdout);
    let finished = open(status).finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for role in roles.into_iter().rev() {
        let finished = role.interrupt();
        assert_eq!(finished.code, Some(0), "{finished:?}");
    }
    nothing_left(scratch.path());
}
