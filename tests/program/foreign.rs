//! What a server says is not obeyed by the terminal of the command that shows it, whatever field it stands in.

use crate::testkit::process::{phalanx, run};
use crate::testkit::wait::LONG;
use std::net::TcpListener;
use std::sync::Arc;

use phalanx::base::stop::Stopping;
use phalanx::net::http::{HttpLimits, HttpRequest, HttpResponse, HttpServer};
use phalanx::ops::status::Board;
use serde_json::{Value, json};

/// What a terminal would obey; a program writes it into JSON as it is, but for the first.
const HOSTILE: &str = "x\u{1b}[2J\u{9b}31m\u{202e}";

const UUID: &str = "3f3d3b38-8b0f-4a8c-a5cb-7a4c0f3b3e10";

/// A role that is none: it answers each page with what the page has, and the worst in it.
fn answer(request: &HttpRequest) -> HttpResponse {
    let body = match request.path.as_str() {
        "/status.json" => json!({
            "role": HOSTILE, "version": HOSTILE, "state": "running", "ready": true, "uptime_seconds": 1,
            "parts": [{"name": HOSTILE, "state": "down", "why": HOSTILE}], "details": {HOSTILE: [HOSTILE]},
            "errors": [], "process": null, "threads": [], "warnings": [HOSTILE],
        }),
        "/miners.json" => json!({"source": {"origin": HOSTILE}, "miners": [{"hotkey": HOSTILE, "port": HOSTILE}]}),
        _ => json!({"jobs": [{
            "job_uuid": HOSTILE, "validator": HOSTILE, "executor_class": HOSTILE, "began": 1.5, "events": [],
            "left_out": 0,
        }]}),
    };
    // Not by `HttpResponse::json`, which escapes.
    HttpResponse::new(200, "application/json", body.to_string())
}

#[test]
fn pages_of_a_hostile_server_are_shown_escaped() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = HttpServer::start("role", listener, Arc::new(answer), HttpLimits::default(), &Board::new()).unwrap();
    let address = server.local_addr().to_string();
    let scratch = tempfile::tempdir().unwrap();
    for command in [&["status", "--verbose"][..], &["miners"], &["job", "trace", UUID]] {
        for json in [false, true] {
            let mut shown = phalanx(scratch.path());
            shown.args(command).args(["--http", &address]).args(json.then_some("--json"));
            let shown = run(&mut shown);
            assert_eq!(shown.code, Some(0), "{command:?}: {shown:?}");
            let obeyed = |c: char| c != '\n' && c.is_control() || c == '\u{202e}';
            assert!(!shown.stdout.contains(obeyed) && !shown.stderr.contains(obeyed), "{command:?}: {shown:?}");
            assert!(shown.stdout.contains("x\\u"), "{command:?}: {shown:?}");
            if json {
                let value: Value = serde_json::from_str(&shown.stdout).unwrap();
                assert!(value.to_string().contains('\u{9b}'), "{command:?}: {value}");
            }
        }
    }
    let mut stopping = Stopping::alone();
    stopping.step("server", LONG, |step| server.stop_in(step));
    assert!(stopping.finish().is_clean());
}

#[test]
fn submit_refuses_what_goes_ill_together_before_anything_is_made() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("job.json");
    std::fs::write(&file, r#"{"executor_class": "always_on.test", "docker_image": "x", "args": ["true"]}"#).unwrap();
    let target = crate::testkit::network::ALICE;
    for (more, why) in [
        (&["--output", "kept"][..], "--output needs --wait: "),
        (&["--wait", "--raw", "--json"], "the argument '--raw' cannot be used with '--json'"),
        (&["--wait", "--output", "job.json"], "--output job.json: "),
    ] {
        let mut submit = phalanx(scratch.path());
        submit.current_dir(scratch.path()).arg("submit").arg(&file).args(["--target", target, "--key", "//Charlie"]);
        let finished = run(submit.args(["--facilitator", "http://127.0.0.1:1"]).args(more));
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(finished.stderr.contains(why), "{finished:?}");
    }
    assert!(!scratch.path().join("kept").exists());
}
