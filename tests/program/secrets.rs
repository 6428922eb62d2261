//! Secrets are never shown: the real binary at its loudest, and all that it wrote is searched for them.

use crate::testkit::network;
use crate::testkit::process;
use crate::testkit::wait::LONG;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use network::{ALICE, NO_OP, Network};
use phalanx::base::shutdown::Shutdown;
use phalanx::executor::ExecutorConfig;
use phalanx::net::http::client::HttpClient;
use process::{Running, phalanx, run};
use rustix::process::Signal;

fn none_of(secrets: &[&str], who: &str, reported: &str) {
    for secret in secrets {
        assert!(secret.len() >= 5, "{secret:?} is too short to be looked for");
        let line = reported.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{who} says {secret}");
    }
}

#[test]
fn a_job_through_all_roles_at_trace_shows_no_secret() {
    let network = Network::start("trace", "text");
    let job = r#"{"executor_class": "always_on.test", "docker_image": "x", "args": ["echo", "done"],
        "env": {"API_KEY": "env-secret-1"}}"#;
    let (uuid, submitted) = network.job(job);
    let token_secret = std::fs::read_to_string(network.folder.path().join("facilitator/jwt.secret")).unwrap();
    // Of an executor's token only the beginning is known; a user's token begins as each JWT does.
    let executor_token = format!("{uuid}-");
    let keys = ["//Alice", "//Bob", "//Charlie"];
    let secrets =
        [&keys[..], &[token_secret.trim(), &executor_token, "eyJhbGciOi", "Bearer ", "env-secret-1"]].concat();
    assert!(submitted.contains("TRACE"), "it was not at its loudest: {submitted}");
    none_of(&secrets, "submit", &submitted);
    for (role, stderr) in network.stop() {
        assert!(stderr.contains(" TRACE ["), "{role} was not at its loudest: {stderr}");
        assert!(role != "miner" || stderr.contains("exec-work"), "the executor was not at its loudest: {stderr}");
        none_of(&secrets, role, &stderr);
    }
}

#[test]
fn a_password_in_an_address_is_shown_nowhere() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = phalanx(scratch.path());
    command.args(["validator", "--facilitator", "ws://user:pass-word@127.0.0.1:1/ws/v0/", "--dispatch", "stub"]);
    command.args(["--http", "127.0.0.1:0", "--state-dir"]).arg(folder.path().join("state"));
    let mut validator = Running::start(command.env("PHALANX_KEY", "//Secret-Path").env("RUST_LOG", "trace"));
    let line = validator.line();
    let http = line.split("\"http\":\"").nth(1).unwrap().trim_end_matches(['"', '}']).to_owned();
    let client = HttpClient::new(Shutdown::new());
    let get = |page: &str| client.get(&format!("http://{http}{page}"), &[], Instant::now() + LONG).unwrap().text();
    let limit = Instant::now() + LONG;
    while !get("/readyz").contains("bad url \"ws://…@127.0.0.1:1/ws/v0/\"") {
        assert!(Instant::now() < limit, "never shown: {}", get("/readyz"));
    }
    let secrets = ["pass-word", "//Secret-Path"];
    for page in ["/readyz", "/healthz", "/metrics", "/status.json"] {
        none_of(&secrets, page, &get(page));
    }
    assert!(get("/status.json").contains("ws://…@127.0.0.1:1"));
    for arguments in [&["--verbose"][..], &["--json"]] {
        let shown = run(phalanx(scratch.path()).args(["status", "--http", &http]).args(arguments));
        assert_eq!(shown.code, Some(1));
        none_of(&secrets, "status", &(shown.stdout + &shown.stderr));
    }
    let finished = validator.stop(Signal::TERM);
    assert!(finished.stderr.contains("bad url \"ws://…@127.0.0.1:1/ws/v0/\""), "{}", finished.stderr);
    none_of(&secrets, "validator", &finished.stderr);
}

#[test]
fn the_token_of_an_executor_is_shown_neither_before_nor_after_its_connection() {
    let scratch = tempfile::tempdir().unwrap();
    let secrets = ["to-ken-3"];
    let executor = |address: &str| {
        let mut command = phalanx(scratch.path());
        command.args(["executor", "--runner", "process"]).env("MINER_ADDRESS", address);
        command.env("EXECUTOR_TOKEN", "to-ken-3").env("RUST_LOG", "trace");
        command
    };
    for address in ["ws://127.0.0.1:1", "ws://me:to-ken-3@127.0.0.1:1", "http://127.0.0.1:1", "ws://127.0.0.1:99999"] {
        let finished = run(&mut executor(address));
        assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
        assert!(finished.stderr.contains("127.0.0.1"), "{finished:?}");
        none_of(&secrets, address, &finished.stderr);
    }
    // A server that is no miner sends back what it was sent.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let running = Running::start(&mut executor(&format!("ws://{}", listener.local_addr().unwrap())));
    let (mut stream, _) = listener.accept().unwrap();
    let mut head = [0; 4096];
    let read = stream.read(&mut head).unwrap();
    let asked = String::from_utf8_lossy(&head[..read]).into_owned();
    assert!(asked.contains("/v0.1/executor_interface/to-ken-3"), "{asked}");
    let answer = format!("HTTP/1.1 403 Forbidden\r\nX-Asked: to-ken-3\r\nContent-Length: {read}\r\n\r\n{asked}");
    stream.write_all(answer.as_bytes()).unwrap();
    drop(stream);
    let finished = running.finish();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("403"), "{finished:?}");
    none_of(&secrets, "executor", &finished.stderr);
}

#[test]
fn a_wrong_key_is_not_repeated() {
    let scratch = tempfile::tempdir().unwrap();
    let words = "bottom drive obey lake curtain smoke basket hold race lonely fit walk-wrong";
    let seed = format!("0x{}", "5eed5".repeat(12));
    for key in [words, &seed, &format!("{seed}zzzz"), &format!("{words}//Hard///my-password")] {
        let finished =
            run(phalanx(scratch.path()).args(["key", "show"]).env("PHALANX_KEY", key).env("RUST_LOG", "trace"));
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(finished.stderr.starts_with("error: --key: "), "{finished:?}");
        none_of(&["walk-wrong", "curtain", "5eed5", "my-password"], "key show", &finished.stderr);
    }
    let help = run(phalanx(scratch.path()).args(["validator", "--help"]).env("PHALANX_KEY", "//Secret-Path"));
    none_of(&["//Secret-Path"], "--help", &help.stdout);
}

#[test]
fn values_with_secrets_do_not_show_them_in_debug() {
    let config = ExecutorConfig::new("ws://127.0.0.1:1", "to-ken-3");
    assert!(format!("{config:?}").contains("127.0.0.1"));
    let key = phalanx::identity::KeyPair::from_uri("//Alice").unwrap();
    assert_eq!(format!("{key:?}"), format!("KeyPair({ALICE})"));
    none_of(&["to-ken-3", "//Alice"], "Debug", &format!("{config:?} {config:#?} {key:?}"));
}

#[test]
fn what_the_roles_keep_is_their_owner_s_alone() {
    let network = Network::start("info", "text");
    network.job(NO_OP);
    let mut state: Vec<PathBuf> = ["facilitator", "miner", "validator"].map(|r| network.folder.path().join(r)).into();
    let batch = network.folder.path().join("deep/batch");
    let _store = phalanx::store::batch::BatchStore::open(&batch).unwrap();
    state.extend([batch.parent().unwrap().to_owned(), batch]);
    let mut databases = Vec::new();
    for folder in &state {
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder), 0o700, "{folder:?}");
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
        {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.contains(".db") || name.ends_with(".lock") {
                assert_eq!(mode(&path), 0o600, "{path:?}");
            }
            databases.extend(name.ends_with(".db").then_some(name));
        }
    }
    databases.sort();
    assert_eq!(databases, ["batch.db", "facilitator.db", "journal.db", "miner.db", "receipts.db"]);
    network.stop();
}
