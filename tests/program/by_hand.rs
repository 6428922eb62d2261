//! The network by hand of the docs, as it is written: each paragraph of the block in a shell of its own, as in a
//! terminal.
//!
//! One thing may differ: a port that is taken on this machine is replaced, wherever it is named, by one that is free.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::testkit::process::{Finished, Running, in_scratch, nothing_left};

/// How the line before the block begins.
const MARK: &str = "A network by hand";

/// The paragraphs of the block, from whichever document has it.
fn paragraphs(root: &Path) -> Vec<String> {
    let mut documents: Vec<PathBuf> = vec![root.join("README.md")];
    documents.extend(fs::read_dir(root.join("docs")).into_iter().flatten().map(|entry| entry.unwrap().path()));
    let texts: Vec<_> = documents.iter().map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
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
        shell.env("PATH", format!("{}:{path}", folder.join("bin").display()));
        Self(Some(Running::start(shell.args(["-c", paragraph]).current_dir(folder).process_group(0))))
    }

    fn signal(&self, signal: Signal) {
        let group = Pid::from_raw(i32::try_from(self.0.as_ref().unwrap().id()).unwrap()).unwrap();
        // All of it may have ended.
        let _ = kill_process_group(group, signal);
    }

    fn line(&mut self) -> String {
        self.0.as_mut().unwrap().line()
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

#[test]
fn the_network_by_hand_works_as_it_is_written() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(folder.path().join("bin")).unwrap();
    symlink(env!("CARGO_BIN_EXE_phalanx"), folder.path().join("bin/phalanx")).unwrap();
    symlink(root.join("examples"), folder.path().join("examples")).unwrap();
    let paragraphs = with_free_ports(paragraphs(root));
    let [facilitator, miner, validator, submit, status] = &paragraphs[..] else {
        panic!("five terminals: {paragraphs:#?}")
    };
    let open = |paragraph: &str| Terminal::open(scratch.path(), folder.path(), paragraph);
    // A role that says where it listens is up.
    let roles = [facilitator, miner, validator].map(|paragraph| {
        let mut terminal = open(paragraph);
        assert!(terminal.line().starts_with('{'));
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
