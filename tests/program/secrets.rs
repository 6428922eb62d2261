//! Secrets are never shown: the real binary at its loudest, and all that it wrote is searched for them.

use crate::testkit::network;
use crate::testkit::process;
use crate::testkit::wait::LONG;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use network::{ALICE, BOB, CHARLIE, NO_OP, Network};
use phalanx::base::shutdown::Shutdown;
use phalanx::executor::ExecutorConfig;
use phalanx::net::http::client::HttpClient;
use process::{Running, for_everybody, phalanx, run};
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
    let of = |facilitator: &str| {
        let mut command = phalanx(scratch.path());
        command.args(["validator", "--facilitator", facilitator, "--dispatch", "stub"]);
        command.args(["--http", "127.0.0.1:0", "--state-dir"]).arg(folder.path().join("state"));
        command.env("PHALANX_KEY", "//Secret-Path").env("RUST_LOG", "trace");
        command
    };
    let refused = run(&mut of("ws://user:pass-word@127.0.0.1:1/ws/v0/"));
    assert!(refused.stderr.contains("bad url \"ws://…@127.0.0.1:1/ws/v0/\"") && refused.code == Some(2), "{refused:?}");
    none_of(&["pass-word", "//Secret-Path"], "a refusal", &refused.stderr);
    let mut validator = Running::start(&mut of("ws://127.0.0.1:1/ws/v0/?token=pass-word"));
    let line = validator.line();
    let http = line.split("\"http\":\"").nth(1).unwrap().trim_end_matches(['"', '}']).to_owned();
    let client = HttpClient::new(Shutdown::new());
    let get = |page: &str| client.get(&format!("http://{http}{page}"), &[], Instant::now() + LONG).unwrap().text();
    let limit = Instant::now() + LONG;
    while !get("/readyz").contains("cannot connect to 127.0.0.1:1") {
        assert!(Instant::now() < limit, "never shown: {}", get("/readyz"));
    }
    let secrets = ["pass-word", "//Secret-Path"];
    for page in ["/readyz", "/healthz", "/metrics", "/status.json"] {
        none_of(&secrets, page, &get(page));
    }
    for arguments in [&["--verbose"][..], &["--json"]] {
        let shown = run(phalanx(scratch.path()).args(["status", "--http", &http]).args(arguments));
        assert_eq!(shown.code, Some(1));
        none_of(&secrets, "status", &(shown.stdout + &shown.stderr));
    }
    let finished = validator.stop(Signal::TERM);
    assert!(finished.stderr.contains("cannot connect to 127.0.0.1:1"), "{}", finished.stderr);
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
        // The thread of the log may tell of itself before.
        assert!(finished.stderr.lines().any(|line| line.starts_with("error: --key: ")), "{finished:?}");
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

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The folder and all in it, with what others than its owner may do with each.
fn walk(folder: &Path, found: &mut Vec<(PathBuf, u32)>) {
    found.push((folder.to_owned(), mode(folder) & 0o077));
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => walk(&path, found),
            false => found.push((path.clone(), mode(&path) & 0o077)),
        }
    }
}

#[test]
fn what_the_roles_keep_is_their_owner_s_alone_whatever_the_umask() {
    let process = |miner: &mut Command| {
        miner.args(["--runner", "process"]);
    };
    let network = Network::start_by("info", "text", process, |command| Running::start(&mut for_everybody(command)));
    network.job(NO_OP);
    let state = |role: &str| network.folder.path().join(role);
    // Nobody listens there, so the batch ends at once.
    let (miners, jobs) = (state("nobody.toml"), state("jobs"));
    std::fs::write(&miners, format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"127.0.0.1\"\nport = 1\n")).unwrap();
    std::fs::write(&jobs, NO_OP.replace('\n', " ")).unwrap();
    let mut batch = phalanx(network.scratch.path());
    batch
        .args(["batch", "--key", "//Alice", "--per-miner", "1", "--gate", "1s", "--miners"])
        .arg(miners)
        .arg("--jobs")
        .arg(jobs);
    let finished = run(&mut for_everybody(batch.arg("--state-dir").arg(state("deep/batch"))));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let mut found = Vec::new();
    ["facilitator", "miner", "validator", "deep"].iter().for_each(|role| walk(&state(role), &mut found));
    let open: Vec<_> = found.iter().filter(|(_, others)| *others != 0).collect();
    assert!(open.is_empty(), "open to others: {open:?}");
    let names = found.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap());
    let mut databases: Vec<_> = names.filter(|name| name.ends_with(".db")).collect();
    databases.sort_unstable();
    assert_eq!(databases, ["batch.db", "facilitator.db", "journal.db", "miner.db", "receipts.db"]);
    network.stop();
}

#[test]
fn a_state_folder_that_was_open_to_others_is_closed_and_one_facilitator_has_it() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = folder.path().join("jwt.secret");
    std::fs::write(&secret, "5ec2e75e".repeat(8)).unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let facilitator = || {
        let mut command = phalanx(scratch.path());
        command.args(["facilitator", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--validator", ALICE]);
        command.args(["--user", CHARLIE, "--state-dir"]).arg(folder.path());
        command
    };
    let mut first = Running::start(&mut facilitator());
    first.line();
    assert_eq!((mode(folder.path()), mode(&secret)), (0o700, 0o600));
    let second = run(&mut facilitator());
    assert_eq!((second.code, second.stdout.as_str(), second.stderr.lines().count()), (Some(1), "", 1), "{second:?}");
    let says = format!("error: the state folder {} is in use by process {}: ", folder.path().display(), first.id());
    assert!(second.stderr.starts_with(&says), "{second:?}");
    let finished = first.stop(Signal::TERM);
    let told: Vec<_> = finished.stderr.lines().filter(|line| line.contains("open to other users")).collect();
    assert!(told.len() == 1 && told[0].contains("WARN") && told[0].contains("2 of the files and folders"), "{told:?}");
    // Once it is closed there is nothing to say.
    let mut again = Running::start(&mut facilitator());
    again.line();
    let finished = again.stop(Signal::TERM);
    assert!(!finished.stderr.contains("open to other users"), "{finished:?}");
}

#[test]
fn a_key_file_that_others_can_read_is_told_and_taken() {
    let scratch = tempfile::tempdir().unwrap();
    let key = scratch.path().join("hotkey");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hotkey.json"), &key).unwrap();
    for (mode, told) in [(0o644, true), (0o600, false)] {
        std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        let finished = run(phalanx(scratch.path()).args(["key", "show", "--key"]).arg(&key));
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let says = format!("the key file {} is open to other users (mode 0644)", key.display());
        let cure = format!("chmod 600 {}", key.display());
        let found = finished.stderr.lines().any(|l| l.contains("WARN") && l.contains(&says) && l.contains(&cure));
        assert_eq!(found, told, "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), usize::from(told), "{finished:?}");
    }
}
