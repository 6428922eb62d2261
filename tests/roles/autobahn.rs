//! The Autobahn test suite against both sides of a link: a server with two threads for each connection, one that polls
//! them, and a client; each on plain TCP and on TLS.
//!
//! `make autobahn` runs it: `PHALANX_TEST_WSTEST` has the command of the suite's tool then. In all other runs it is
//! ignored, and the frames of `transport_frames` are the test. The reports stay in `target/tmp/autobahn`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use phalanx::base::timer::{Timer, TimerHandle};
use phalanx::link::heartbeat::LivenessConfig;
use phalanx::link::server::{Server, ServerConfig, ServerEvent, ServerSink};
use phalanx::link::session::{self, Arrival, SessionConfig, SessionEnd};
use phalanx::link::{OutboxLimits, Outgoing, SessionHandle};
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{Connection, Listener, SocketLimits};
use serde_json::{Value, json};

use crate::testkit::transport::{Certificates, dial_ws, read_text};
use crate::testkit::wait::{LONG, until_some};

/// Cases that want a binary message back: a link speaks text, and drops binary messages.
const BINARY: [&str; 5] = ["1.2.*", "9.2.*", "9.4.*", "9.6.*", "9.8.*"];

/// How a case may end. `INFORMATIONAL` is for what the protocol leaves open, `UNIMPLEMENTED` for compression, which no
/// side of ours agrees to.
const GOOD: [&str; 4] = ["OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"];

/// The suite's tool at work, with its report.
struct Suite {
    child: Child,
    folder: PathBuf,
}

impl Suite {
    /// Runs it in one of its modes, as `spec` says; its reports are in a folder of this name.
    fn start(command: &str, mode: &str, name: &str, mut spec: Value) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("autobahn").join(name);
        // There may be none of an earlier run.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        spec["outdir"] = json!(folder);
        spec["cases"] = json!(["*"]);
        spec["exclude-cases"] = json!(BINARY);
        let path = folder.join("spec.json");
        fs::write(&path, spec.to_string()).unwrap();
        let output = File::create(folder.join("output.log")).unwrap();
        let child = Command::new("sh")
            .args(["-c", &format!("exec {command} \"$@\""), "wstest", "--mode", mode, "--spec"])
            .arg(path)
            .args(["--webport", "0"])
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// Waits for its end, and adds what it reports to the table.
    fn finish(mut self, table: &mut Table) {
        self.child.wait().unwrap();
        let report = fs::read(self.folder.join("index.json"))
            .unwrap_or_else(|e| panic!("no report, see output.log in {}: {e}", self.folder.display()));
        let report: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_slice(&report).unwrap();
        for (side, cases) in report {
            assert!(cases.len() > 200, "{side}: only {} cases ran", cases.len());
            for (case, result) in cases {
                let how = result["behavior"].as_str().unwrap().to_owned();
                let close = result["behaviorClose"].as_str().unwrap();
                if !GOOD.contains(&how.as_str()) || !GOOD.contains(&close) {
                    table.bad.push(format!("{side}, case {case}: {how}, its end: {close}"));
                }
                let group: u32 = case.split('.').next().unwrap().parse().unwrap();
                *table.counts.entry((group, how)).or_default().entry(side.clone()).or_default() += 1;
            }
        }
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        // It has ended already, unless the test fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Cases of a group that ended in one way, by side.
#[derive(Default)]
struct Table {
    counts: BTreeMap<(u32, String), BTreeMap<String, usize>>,
    bad: Vec<String>,
}

impl Table {
    fn show(&self) {
        let sides: BTreeSet<_> = self.counts.values().flat_map(BTreeMap::keys).collect();
        println!("| group | ended | {} |", sides.iter().map(|side| side.as_str()).collect::<Vec<_>>().join(" | "));
        for ((group, how), counts) in &self.counts {
            let counts: Vec<_> = sides.iter().map(|side| counts.get(*side).copied().unwrap_or(0).to_string()).collect();
            println!("| {group} | {how} | {} |", counts.join(" | "));
        }
    }
}

/// Answers each text with itself.
fn echo() -> ServerSink {
    let handles: Mutex<HashMap<_, SessionHandle>> = Mutex::default();
    Arc::new(move |event| match event {
        ServerEvent::Opened { id, handle, .. } => drop(handles.lock().unwrap().insert(id, handle)),
        ServerEvent::Text { id, text } => {
            let handle = handles.lock().unwrap().get(&id).cloned().unwrap();
            handle.send(Outgoing::once(text)).unwrap();
        }
        ServerEvent::Closed { id, .. } => drop(handles.lock().unwrap().remove(&id)),
    })
}

/// The suite's client goes through all cases with each of our servers.
fn servers(command: &str, certificates: &Certificates, timer: &TimerHandle, table: &mut Table) {
    let (mut running, mut spec) = (Vec::new(), Vec::new());
    for (name, threaded, tls) in [
        ("server, threads", usize::MAX, false),
        ("server, threads, TLS", usize::MAX, true),
        ("server, poll", 0, false),
        ("server, poll, TLS", 0, true),
    ] {
        let listener = WsListener::bind("127.0.0.1:0", tls.then(|| certificates.server())).unwrap();
        spec.push(json!({"agent": name, "url": listener.url()}));
        let config = ServerConfig { threaded, ..ServerConfig::new("tst") };
        running.push(Server::start(config, Box::new(listener), timer.clone(), Arc::new(|_| Ok(())), echo()));
    }
    Suite::start(command, "fuzzingclient", "servers", json!({ "servers": spec })).finish(table);
}

/// Our client goes through all cases of the suite's server.
fn client(command: &str, certificates: &Certificates, timer: &TimerHandle, tls: bool, table: &mut Table) {
    let name = if tls { "client, TLS" } else { "client" };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("{}://127.0.0.1:{port}", if tls { "wss" } else { "ws" });
    let mut spec = json!({ "url": url });
    if tls {
        spec["key"] = json!(certificates.path("key.pem"));
        spec["cert"] = json!(certificates.path("cert.pem"));
    }
    let suite = Suite::start(command, "fuzzingserver", name, spec);
    let dialer = if tls { WsDialer::new(certificates.client()) } else { WsDialer::default() };
    let dial = |path: &str| dial_ws(&dialer, &format!("{url}{path}"), &SocketLimits::default());
    let mut connection = until_some("the suite listens", || dial("/getCaseCount").ok());
    let cases: u32 = read_text(connection.reader.as_mut()).parse().unwrap();
    let agent = name.replace(", ", "%2C%20");
    for case in 1..=cases {
        echo_until_closed(dial(&format!("/runCase?case={case}&agent={agent}")).unwrap(), timer);
    }
    echo_until_closed(dial(&format!("/updateReports?agent={agent}")).unwrap(), timer);
    drop(dial("/stopServer"));
    suite.finish(table);
}

fn echo_until_closed(connection: Connection, timer: &TimerHandle) -> SessionEnd {
    let config = SessionConfig { writer_name: "t-write".to_owned(), liveness: LivenessConfig::default(), beat: None };
    let handle = SessionHandle::new(OutboxLimits::default(), timer.clone());
    session::run(connection, &handle, &config, |arrival| {
        if let Arrival::Text(text) = arrival {
            handle.send(Outgoing::once(text)).unwrap();
        }
    })
}

#[test]
#[ignore = "it takes the suite's tool: make autobahn"]
fn all_cases_of_the_suite_pass() {
    let command = std::env::var("PHALANX_TEST_WSTEST").expect("the command of the suite's tool: make autobahn");
    let (certificates, timer, mut table) = (Certificates::new(), Timer::start(), Table::default());
    servers(&command, &certificates, &timer.handle(), &mut table);
    client(&command, &certificates, &timer.handle(), false, &mut table);
    client(&command, &certificates, &timer.handle(), true, &mut table);
    assert!(timer.stop(LONG).is_clean());
    table.show();
    assert!(table.bad.is_empty(), "{:#?}", table.bad);
}
