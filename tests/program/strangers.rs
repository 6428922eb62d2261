//! What strangers can do to a facilitator and a miner: the attacks of `docs/limits.md` on the real binary, with the
//! memory of the victim and the time until an honest peer is served.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use phalanx::base::thread::{Kick, spawn};
use phalanx::identity::KeyPair;
use phalanx::protocol::{V0AuthenticationRequest, V0Heartbeat, ValidatorToFacilitator};
use rustix::process::{Signal, geteuid};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::process::{ALICE, start_miner};
use crate::testkit::process::{Running, in_scratch, phalanx};
use crate::testkit::transport::{REQUEST, frame, raw_client, read_frame, read_head};
use crate::testkit::wait::{LONG, far, until};

/// A facilitator as a process, and where validators connect to it.
struct Victim {
    process: Running,
    address: SocketAddr,
    http: Option<SocketAddr>,
    path: String,
    _folders: [tempfile::TempDir; 2],
}

fn arguments(command: &mut Command, folder: &Path) {
    command.args(["facilitator", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    command.args(["--validator", ALICE, "--user", ALICE, "--state-dir"]).arg(folder.join("facilitator"));
}

impl Victim {
    fn facilitator() -> Self {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut command = phalanx(folders[1].path());
        arguments(&mut command, folders[0].path());
        Self::started(&mut command, folders)
    }

    fn started(command: &mut Command, folders: [tempfile::TempDir; 2]) -> Self {
        let mut process = Running::start(command);
        let line: Value = serde_json::from_str(&process.line()).unwrap();
        let address = |key: &str| line[key].as_str().unwrap().parse().unwrap();
        let (address, http) = (address("listening"), Some(address("http")));
        Self { process, address, http, path: "/ws/v0/".to_owned(), _folders: folders }
    }

    fn miner() -> Self {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let runner = ["--runner", "process"];
        let (process, listening) = start_miner((folders[0].path(), folders[1].path()), "127.0.0.1:0", false, &runner);
        let (address, path) = (listening.parse().unwrap(), format!("/v0.1/validator_interface/{ALICE}"));
        Self { process, address, http: None, path, _folders: folders }
    }

    /// The largest that its resident memory was, in KiB.
    fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// A connection from that address of this machine; `None` if it was refused.
    fn connect(&self, from: [u8; 4]) -> Option<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&self.address.into()).ok()?;
        let mut stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(REQUEST.replace("GET / ", &format!("GET {} ", self.path)).as_bytes()).ok()?;
        Some(stream)
    }

    /// The same, upgraded.
    fn open(&self, from: [u8; 4]) -> TcpStream {
        let mut stream = self.connect(from).unwrap();
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        stream
    }

    /// How long it takes until a validator that is known is served, at its first try.
    fn serves_an_honest_one_within(&self) -> Duration {
        let began = Instant::now();
        let mut stream = self.open([127, 0, 0, 1]);
        let alice = KeyPair::from_uri("//Alice").unwrap();
        let hello = ValidatorToFacilitator::from(V0AuthenticationRequest::sign(&alice)).encode();
        stream.write_all(&frame(0x81, true, hello.as_bytes())).unwrap();
        let (_, answer) = read_frame(&mut stream);
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("success"), "{answer}");
        began.elapsed()
    }

    fn page(&self, path: &str) -> String {
        let mut stream = raw_client(self.http.unwrap());
        write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

fn text(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, 0x80 | 127];
    bytes.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// Threat 3.
#[test]
fn eight_frames_of_brackets_cost_the_victim_nothing_and_are_closed_with_1009() {
    for victim in [Victim::facilitator(), Victim::miner()] {
        let before = victim.peak_kib();
        let brackets = text(0x81, &vec![b'['; 30 << 20]);
        let strangers: Vec<_> = (0..8).map(|_| victim.open([127, 0, 0, 2])).collect();
        let senders: Vec<_> = strangers
            .iter()
            .map(|stranger| {
                let (mut stranger, brackets) = (stranger.try_clone().unwrap(), brackets.clone());
                // It is closed in the middle.
                spawn("t-brackets", Kick::dropped("the victim"), move || drop(stranger.write_all(&brackets)))
            })
            .collect();
        for mut stranger in strangers {
            // The rest of what it sends may reset the connection before it has read why.
            let mut close = Vec::new();
            let read = stranger.read_to_end(&mut close);
            assert!(read.is_err() || close[..1] == [0x88] && close[2..4] == 1009_u16.to_be_bytes(), "{close:?}");
        }
        senders.into_iter().for_each(|sender| sender.join_by(far()).unwrap());
        let grown = victim.peak_kib() - before;
        println!("brackets: {before} KiB, and {grown} KiB more");
        assert!(grown < 24 << 10, "it has grown by {grown} KiB from {before} KiB");
        assert_eq!(victim.process.stop(Signal::TERM).code, Some(0));
    }
}

/// Threat 8.
#[test]
fn a_thousand_silent_sockets_that_are_reopened_keep_no_honest_validator_out() {
    let victim = Victim::facilitator();
    let before = victim.peak_kib();
    let open = |n: usize| victim.connect([127, 0, 0, 2 + (n % 8) as u8]);
    let mut silent: Vec<_> = (0..1016).map(open).collect();
    let mut longest = Duration::ZERO;
    for round in 0..10 {
        // Those that were closed for others come again.
        silent.iter_mut().skip(round * 100).take(100).enumerate().for_each(|(n, socket)| *socket = open(n));
        longest = longest.max(victim.serves_an_honest_one_within());
    }
    let grown = victim.peak_kib() - before;
    println!("silent sockets: {before} KiB, and {grown} KiB more; served within {longest:?}");
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    let status = victim.page("/status.json");
    let status: Value = serde_json::from_str(status.split_once("\r\n\r\n").unwrap().1).unwrap();
    let connections = &status["details"]["connections"];
    assert!(connections["strangers"].as_u64().unwrap() <= 256, "{status}");
    assert!(connections["refused"]["oldest_stranger"].as_u64() > Some(0), "{status}");
    let metrics = victim.page("/metrics");
    let counted = "phalanx_facilitator_refused_connections_total{reason=\"oldest_stranger\"}";
    assert!(metrics.contains(counted), "{metrics}");
    drop(silent);
    assert_eq!(victim.process.stop(Signal::TERM).code, Some(0));
}

/// Threat 12: bad frames, and what is said of them.
#[test]
fn a_flood_of_bad_frames_is_closed_and_fills_no_log() {
    for victim in [Victim::facilitator(), Victim::miner()] {
        let began = Instant::now();
        let mut closes = 0;
        while began.elapsed() < Duration::from_secs(2) {
            let mut stranger = victim.open([127, 0, 0, 2]);
            let bad = frame(0x81, true, "x\u{1b}[2J".repeat(500).as_bytes());
            (0..20).for_each(|_| drop(stranger.write_all(&bad)));
            let mut answers = Vec::new();
            // It does not answer the Close, so the end comes later.
            stranger.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = stranger.read_to_end(&mut answers);
            let code = 4029_u16.to_be_bytes();
            closes += usize::from(answers.windows(4).any(|frame| frame[0] == 0x88 && frame[2..] == code));
        }
        let finished = victim.process.stop(Signal::TERM);
        println!("bad frames: {closes} closed, {} bytes of log", finished.stderr.len());
        assert!(closes > 0 && finished.stderr.len() < 64 << 10, "{closes} {}", finished.stderr.len());
        assert_eq!(finished.code, Some(0));
    }
}

/// Threat 15.
#[test]
fn a_stranger_that_never_reads_its_answers_costs_nothing_and_is_closed_when_its_time_is_over() {
    let victim = Victim::facilitator();
    let before = victim.peak_kib();
    let mut stranger = victim.open([127, 0, 0, 2]);
    let began = Instant::now();
    let beat = ValidatorToFacilitator::from(V0Heartbeat {}).encode();
    let beats = frame(0x81, true, beat.as_bytes()).repeat(1000);
    stranger.set_write_timeout(Some(LONG)).unwrap();
    // Until it is closed.
    while stranger.write_all(&beats).is_ok() {}
    let closed = began.elapsed();
    let grown = victim.peak_kib() - before;
    println!("never reads: {before} KiB, and {grown} KiB more; closed after {closed:?}");
    assert!(grown < 16 << 10, "it has grown by {grown} KiB from {before} KiB");
    assert!(victim.serves_an_honest_one_within() < Duration::from_secs(5));
    assert_eq!(victim.process.stop(Signal::TERM).code, Some(0));
}

/// The same command under a limit of tasks, as a user that has no other tasks.
fn limited(command: &Command, uid: u32, tasks: u32) -> Command {
    let mut limited = Command::new("setpriv");
    limited.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups"]);
    limited.args(["prlimit", &format!("--nproc={tasks}")]).arg(command.get_program()).args(command.get_args());
    limited
}

/// A copy of the binary where that user may run it, in a folder that is its own.
fn folders_of(uid: u32) -> ([tempfile::TempDir; 2], Command) {
    let folders = [tempfile::tempdir_in("/tmp").unwrap(), tempfile::tempdir_in("/tmp").unwrap()];
    for folder in &folders {
        std::os::unix::fs::chown(folder.path(), Some(uid), Some(uid)).unwrap();
    }
    let binary = folders[1].path().join("phalanx");
    std::fs::copy(env!("CARGO_BIN_EXE_phalanx"), &binary).unwrap();
    let mut command = in_scratch(Command::new(binary), folders[1].path());
    arguments(&mut command, folders[0].path());
    (folders, command)
}

/// Threat 9.
#[test]
fn under_a_limit_of_tasks_connections_are_refused_and_the_process_goes_on() {
    if !geteuid().is_root() {
        return;
    }
    const UID: u32 = 61_009;
    let (folders, command) = folders_of(UID);
    let victim = Victim::started(&mut limited(&command, UID, 40), folders);
    let strangers: Vec<_> = (0..100).filter_map(|n| victim.connect([127, 0, 0, 2 + (n % 4) as u8])).collect();
    until("it has no thread left", || victim.process.stderr().contains("gives no further thread"));
    drop(strangers);
    // Their threads end, and then there are some for others.
    until("an honest one is served", || {
        victim.connect([127, 0, 0, 1]).is_some_and(|mut stream| {
            let mut first = [0; 12];
            stream.read_exact(&mut first).is_ok() && &first == b"HTTP/1.1 101"
        })
    });
    victim.serves_an_honest_one_within();
    let finished = victim.process.stop(Signal::TERM);
    assert!(finished.code == Some(0) && !finished.stderr.contains("panicked"), "{}", finished.stderr);
    let lines = finished.stderr.lines().count();
    assert!(lines < 20, "{lines}: {}", finished.stderr);
}

#[test]
fn a_role_that_has_no_thread_to_start_with_says_so_in_a_line() {
    if !geteuid().is_root() {
        return;
    }
    const UID: u32 = 61_010;
    for tasks in 1..=8 {
        let (_folders, command) = folders_of(UID);
        let process = Running::start(&mut limited(&command, UID, tasks));
        if !process.ended_within(Duration::from_millis(1500)) {
            // From here on it has what it needs.
            assert!(tasks > 2, "{tasks} tasks are enough");
            assert_eq!(process.stop(Signal::TERM).code, Some(0));
            break;
        }
        let finished = process.finish();
        let errors: Vec<_> = finished.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(finished.code == Some(1) && errors.len() == 1, "{tasks}: {:?} {}", finished.code, finished.stderr);
        assert!(!finished.stderr.contains("panicked"), "{tasks}: {}", finished.stderr);
    }
}
