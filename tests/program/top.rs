//! `phalanx top` on a real terminal.

use crate::testkit::network::{NO_OP, Network};
use crate::testkit::process::{nothing_left, phalanx, run};
use crate::testkit::terminal::Terminal;
use crate::testkit::wait::until_some;
use rustix::process::Signal;

/// What gives the cursor and the screen of before back.
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";

#[test]
fn all_roles_are_shown_and_keys_look_into_one() {
    let network = Network::start("info", "text");
    let (uuid, _) = network.job(NO_OP);
    // And one that nobody serves.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut command = phalanx(network.scratch.path());
    command.args(["top", "--interval", "200ms", "--http", &nobody]);
    command.args(network.roles.iter().flat_map(|(_, _, pages)| ["--http", pages]));
    let mut terminal = Terminal::start(command.env("TERM", "xterm"), (80, 24));
    let screen =
        terminal.until(&["validator", "miner", "facilitator", "phalanx top: 3 of 4 ready", "q quit", "cannot"]);
    assert!(screen.lines().count() == 24 && screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    assert!(screen.contains(&format!("> {nobody}")), "{screen}");
    assert!(!terminal.is_as_before());
    // Down to the validator, and into it.
    terminal.press("\u{1b}[B\r");
    let screen = terminal.until(&["validator 0.", ": ready", "jobs:", "completed"]);
    assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    terminal.press("\u{1b}[6~");
    // Line by line to the job, which stands further down the more a validator has to tell.
    let mut before = terminal.screen();
    while !before.as_ref().is_some_and(|screen| screen.contains(&uuid[..8])) {
        terminal.press("\u{1b}[B");
        before =
            Some(until_some("a screen one line on", || terminal.screen().filter(|now| before.as_ref() != Some(now))));
    }
    terminal.press("\u{1b}");
    terminal.until(&["phalanx top: ", "sorted: as given"]);
    terminal.press("s");
    terminal.until(&["sorted: role"]);
    terminal.press("?");
    terminal.until(&["look into the chosen role"]);
    terminal.press("q");
    let (code, stderr) = terminal.finish();
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(terminal.is_as_before());
    until_some("the screen of before", || terminal.written().ends_with(LEAVE).then_some(()));
    drop(terminal);
    network.stop();
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let scratch = tempfile::tempdir().unwrap();
    for (signal, expected) in [(Signal::TERM, 0), (Signal::INT, 0), (Signal::HUP, 0), (Signal::QUIT, 130)] {
        let mut command = phalanx(scratch.path());
        let mut terminal = Terminal::start(command.args(["top", "--http", "127.0.0.1:1"]), (60, 10));
        terminal.until(&["phalanx top: 0 of 1 ready"]);
        assert!(!terminal.is_as_before());
        terminal.signal(signal);
        let (code, stderr) = terminal.finish();
        assert_eq!(code, Some(expected), "{signal:?}: {stderr}");
        assert!(terminal.is_as_before(), "{signal:?}");
        until_some("the screen of before", || terminal.written().ends_with(LEAVE).then_some(()));
    }
    // Raw mode takes Ctrl-C as a key.
    let mut command = phalanx(scratch.path());
    let mut terminal = Terminal::start(command.args(["top", "--http", "127.0.0.1:1"]), (60, 10));
    terminal.until(&["phalanx top: 0 of 1 ready"]);
    terminal.press("\u{3}");
    assert_eq!(terminal.finish().0, Some(0));
    assert!(terminal.is_as_before());
    nothing_left(scratch.path());
}

#[test]
fn without_a_terminal_it_says_what_needs_none() {
    let scratch = tempfile::tempdir().unwrap();
    for (arguments, code, says) in [
        (&["top", "--http", "127.0.0.1:1"][..], 1, "error: top needs a terminal ("),
        (&["top"], 2, "error: --http is missing; give the --http address"),
        (&["top", "--http", "x"], 2, "error: --http \"x\": give"),
        (&["top", "--http", "h:1", "--interval", "1ms"], 2, "error: --interval: the time between two looks is 1ms"),
    ] {
        let finished = run(phalanx(scratch.path()).args(arguments));
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(code), ""), "{finished:?}");
        assert!(finished.stderr.starts_with(says) && finished.stderr.lines().count() == 1, "{finished:?}");
    }
}

#[test]
fn status_looks_again_on_a_terminal_and_fits_into_it() {
    let network = Network::start("info", "text");
    network.job(NO_OP);
    let mut command = phalanx(network.scratch.path());
    command.args(["status", "--watch=200ms"]);
    command.args(network.roles.iter().flat_map(|(_, _, pages)| ["--http", pages]));
    let terminal = Terminal::start(&mut command, (60, 200));
    let screen = terminal.until(&["validator 0.", "miner 0.", "facilitator 0."]);
    assert!(screen.lines().all(|line| line.chars().count() <= 60), "{screen}");
    let (uuid, _) = network.job(NO_OP);
    terminal.until(&[&uuid[..8]]);
    drop(terminal);
    network.stop();
}
