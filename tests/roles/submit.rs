//! `phalanx submit` as a library, against a real facilitator with a scripted validator.

use crate::testkit::facilitator as facilitator_kit;
use crate::testkit::wait::{LONG, until};
use std::time::Instant;

use facilitator_kit::{Fixture, alice, completed, dave, key};
use phalanx::app::jobfile::{self, JobSpec};
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::cli::job_text::Form;
use phalanx::cli::submit::{Plan, User, submit};
use phalanx::ops::status::Board;
use phalanx::protocol::JobStatus as S;
use serde_json::{Value, json};

fn plan(fix: &Fixture, wait: bool, form: Form) -> Plan {
    let base = format!("http://{}/", fix.running().http_addr());
    let (user, target, tag) = (User::new(base, dave()), alice().public(), String::new());
    Plan { user, target, tag, wait, at_once: None, form, output: None }
}

fn jobs(n: usize) -> Vec<(String, JobSpec)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.json");
    let job =
        json!({"executor_class": "always_on.test", "docker_image": "busybox", "args": ["echo"], "files": {"a": "b"}});
    std::fs::write(&path, job.to_string()).unwrap();
    (0..n).map(|n| (format!("job-{n}.json"), jobfile::load(&path).unwrap())).collect()
}

fn lines(out: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(out).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn all_jobs_are_followed_to_their_ends() {
    let fix = Fixture::new();
    let (kick, validator) =
        fix.validator(&alice()).serve(|job| completed(&format!("{} {:?}\n", job.args[0], job.volume.is_some())));
    let mut out = Vec::new();
    assert_eq!(submit(&plan(&fix, true, Form::Json), jobs(20), &Shutdown::new(), &mut out), Ok(true));
    let lines = lines(&out);
    assert_eq!(lines.len(), 20);
    for line in &lines {
        assert_eq!(
            (&line["status"], &line["stdout"], &line["error"]),
            (&json!("completed"), &json!("echo true\n"), &Value::Null)
        );
        assert_eq!(line["history"].as_array().unwrap().len(), 7, "{line}");
        assert!(line["history"][0]["at"].is_string() && line["seconds"].is_number(), "{line}");
    }
    let mut files: Vec<&str> = lines.iter().map(|line| line["file"].as_str().unwrap()).collect();
    files.sort_unstable();
    files.dedup();
    assert_eq!(files.len(), 20);
    kick.kick();
    validator.join_by(Instant::now() + LONG).unwrap();
}

#[test]
fn a_job_that_fails_makes_it_fail_and_says_why() {
    let fix = Fixture::new();
    let rejected =
        json!({"job_rejection_details": {"rejected_by": "validator", "reason": "busy", "message": "no miner is free"}});
    let (kick, validator) =
        fix.validator(&alice()).serve(move |_| vec![(S::Received, None), (S::Rejected, Some(rejected.clone()))]);
    let mut out = Vec::new();
    assert_eq!(submit(&plan(&fix, true, Form::Short), jobs(1), &Shutdown::new(), &mut out), Ok(false));
    let out = String::from_utf8(out).unwrap();
    assert!(out.starts_with("job-0.json  rejected  ") && out.contains("busy: no miner is free"), "{out}");
    kick.kick();
    validator.join_by(Instant::now() + LONG).unwrap();
}

#[test]
fn what_a_job_wrote_is_shown_from_its_beginning_and_escaped_and_kept_whole() {
    const HOSTILE: &str = "\u{1b}[2J\u{9b}31m\u{202e}\r\n2\n3\n4\n";
    let fix = Fixture::new();
    let (kick, validator) = fix.validator(&alice()).serve(|_| completed(HOSTILE));
    let folder = tempfile::tempdir().unwrap();
    let shown = |form, output| {
        let mut out = Vec::new();
        let plan = Plan { form, output, ..plan(&fix, true, form) };
        assert_eq!(submit(&plan, jobs(1), &Shutdown::new(), &mut out), Ok(true));
        String::from_utf8(out).unwrap()
    };
    let text = shown(Form::Short, Some(folder.path().to_owned()));
    let shown_lines: Vec<&str> = text.lines().skip(1).collect();
    let artifact = "    artifact /artifacts/a.bin, 2 bytes";
    let expected =
        ["    | \\u{1b}[2J\\u{9b}31m\\u{202e}", "    | 2", "    | 3", "    | … (17 characters in all)", artifact];
    assert_eq!(shown_lines, expected);
    let uuid = text.lines().next().unwrap().rsplit("  ").next().unwrap();
    for (name, content) in [("stdout", HOSTILE.as_bytes()), ("stderr", b""), ("artifacts/a.bin", &[0, 255])] {
        assert_eq!(std::fs::read(folder.path().join(uuid).join(name)).unwrap(), content, "{name}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    assert!(shown(Form::Raw, None).contains(&format!("\n{HOSTILE}{artifact}\n")));
    let json = shown(Form::Json, None);
    assert!(!json.contains(|c: char| c != '\n' && c.is_control() || c == '\u{202e}'), "{json:?}");
    let job = &lines(json.as_bytes())[0];
    assert_eq!(job["stdout"], HOSTILE);
    let fields: Vec<&str> = job.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields.join(" "), "file uuid status history stdout stderr exit_code error seconds");
    kick.kick();
    validator.join_by(Instant::now() + LONG).unwrap();
}

#[test]
fn a_result_with_large_artifacts_arrives() {
    let fix = Fixture::new();
    let (kick, validator) = fix.validator(&alice()).serve(|_| {
        let mut statuses = completed("");
        // Of 6 MiB, and the facilitator shows it twice.
        statuses.last_mut().unwrap().1.as_mut().unwrap()["miner_response"]["artifacts"] =
            json!({"/artifacts/large": "A".repeat(8 << 20)});
        statuses
    });
    let mut out = Vec::new();
    assert_eq!(submit(&plan(&fix, true, Form::Short), jobs(1), &Shutdown::new(), &mut out), Ok(true));
    let out = String::from_utf8(out).unwrap();
    assert!(out.ends_with("    artifact /artifacts/large, 6291456 bytes\n"), "{out}");
    kick.kick();
    validator.join_by(Instant::now() + LONG).unwrap();
}

#[test]
fn an_output_that_cannot_be_kept_ends_it() {
    let fix = Fixture::new();
    let (kick, validator) = fix.validator(&alice()).serve(|_| completed(""));
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan { output: Some(folder.path().join("gone")), ..plan(&fix, true, Form::Short) };
    let error = submit(&plan, jobs(1), &Shutdown::new(), &mut Vec::new()).unwrap_err().why;
    assert!(error.starts_with("job-0.json: its output cannot be written to ") && error.contains("gone"), "{error}");
    kick.kick();
    validator.join_by(Instant::now() + LONG).unwrap();
}

#[test]
fn without_wait_it_ends_when_all_are_taken() {
    let fix = Fixture::new();
    let mut out = Vec::new();
    assert_eq!(submit(&plan(&fix, false, Form::Json), jobs(3), &Shutdown::new(), &mut out), Ok(true));
    let lines = lines(&out);
    assert_eq!(lines.iter().map(|line| line["status"].as_str().unwrap()).collect::<Vec<_>>(), ["sent"; 3]);
    until("three jobs waiting", || fix.running().snapshot()["waiting_jobs"] == 3);
}

#[test]
fn an_interrupt_while_waiting_ends_it_at_once() {
    let fix = Fixture::new();
    let plan = plan(&fix, true, Form::Json);
    let stop = Shutdown::new();
    let cancel = stop.clone();
    let running = spawn("t-submit", Kick::new("stop signal", move || cancel.cancel()), {
        let stop = stop.clone();
        let jobs = jobs(3);
        move || submit(&plan, jobs, &stop, &mut Vec::new())
    });
    let following = || fix.http("GET", "/metrics", &[], "").1.as_str().unwrap().contains("_waiting_requests 3\n");
    until("all followed", following);
    stop.cancel();
    let error = running.join_by(Instant::now() + LONG).unwrap().unwrap_err();
    assert_eq!((error.why.as_str(), error.going_on.len()), ("interrupted; 3 of the jobs go on", 3), "{error}");
}

#[test]
fn refusals_come_in_plain_words() {
    let fix = Fixture::new();
    let fail = |plan: Plan| submit(&plan, jobs(1), &Shutdown::new(), &mut Vec::new()).unwrap_err().why;
    let base = plan(&fix, true, Form::Json).user.base;
    let error = fail(Plan { user: User::new(&base, key("//Stranger")), ..plan(&fix, true, Form::Json) });
    assert!(error.contains("is not a user of this facilitator"), "{error}");
    let error = fail(Plan { target: key("//Charlie").public(), ..plan(&fix, true, Form::Json) });
    assert!(error.contains("job-0.json") && error.contains("is not a validator of this facilitator"), "{error}");
    assert!(!error.contains('{'), "what it says, not its JSON: {error}");
    let error = fail(Plan { user: User::new("http://127.0.0.1:1", dave()), ..plan(&fix, true, Form::Json) });
    assert!(error.contains("cannot talk to http://127.0.0.1:1"), "{error}");
}

/// Asked for a nonce, it answers with the text of a miner authentication in the name of whoever logs in.
#[test]
fn a_facilitator_gets_no_signature_but_one_over_a_nonce() {
    use phalanx::net::http::{HttpLimits, HttpRequest, HttpResponse, HttpServer};
    use phalanx::protocol::ValidatorAuthForMiner;
    let _none = crate::testkit::threads::NoThreads::expected();
    let (user, miner) = (dave(), key("//Bob"));
    let mut auth = ValidatorAuthForMiner::sign(&user, &miner.ss58(), 1_764_439_999);
    let text = auth.blob_for_signing();
    let (logins, seen) = crossbeam_channel::bounded(16);
    let handler = move |request: &HttpRequest| {
        if request.path == "/auth/login" {
            let body: Value = serde_json::from_slice(&request.body(4096).unwrap()).unwrap();
            logins.send(body["signature"].as_str().unwrap().to_owned()).unwrap();
        }
        HttpResponse::json(200, &json!({"nonce": text, "token": "t"}))
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server =
        HttpServer::start("nonce", listener, std::sync::Arc::new(handler), HttpLimits::default(), &Board::new())
            .unwrap();
    let base = format!("http://{}", server.local_addr());
    let (target, tag) = (alice().public(), String::new());
    let plan =
        Plan { user: User::new(base, user), target, tag, wait: true, at_once: None, form: Form::Json, output: None };
    let refused = submit(&plan, jobs(1), &Shutdown::new(), &mut Vec::new()).map(|_| ());
    let signature = seen.try_recv();
    let mut stopping = phalanx::base::stop::Stopping::alone();
    stopping.step("server", LONG, |step| server.stop_in(step));
    assert!(stopping.finish().is_clean());
    // What it would be good for.
    if let Ok(signature) = signature {
        auth.signature = format!("0x{}", signature.trim_start_matches("0x"));
        panic!("it was signed, and a miner says: {:?}", auth.verify());
    }
    let error = refused.unwrap_err().why;
    let why = "/auth/nonce cannot be read: its login nonce is not signed: it has the shape of a miner authentication";
    assert!(error.contains(why), "{error}");
}

#[test]
fn a_facilitator_that_restarts_is_waited_for() {
    let mut fix = Fixture::new();
    let mut plan = plan(&fix, true, Form::Json);
    // A fixed address is needed to come back to, so a plain forwarder stands before the facilitator's changing port.
    let proxy = Proxy::start(fix.running().http_addr());
    plan.user.base = format!("http://{}", proxy.address);
    let running = spawn("t-submit", Kick::dropped("its end"), {
        let jobs = jobs(2);
        move || {
            let mut out = Vec::new();
            submit(&plan, jobs, &Shutdown::new(), &mut out).map(|good| (good, out))
        }
    });
    until("two jobs waiting", || fix.running().snapshot()["waiting_jobs"] == 2);
    fix.restart();
    proxy.forward_to(fix.running().http_addr());
    let (kick, validator) = fix.validator(&alice()).serve(|_| completed("back\n"));
    let (good, out) = running.join_by(Instant::now() + LONG).unwrap().unwrap();
    assert!(good);
    assert_eq!(lines(&out).len(), 2);
    kick.kick();
    validator.join_by(Instant::now() + LONG).unwrap();
    proxy.stop();
}

/// Answers every request by asking the facilitator where it is now.
struct Proxy {
    address: std::net::SocketAddr,
    target: std::sync::Arc<std::sync::Mutex<std::net::SocketAddr>>,
    server: phalanx::net::http::HttpServer,
}

impl Proxy {
    fn start(target: std::net::SocketAddr) -> Self {
        use phalanx::net::http::client::{Content, HttpClient};
        use phalanx::net::http::{HttpLimits, HttpResponse, HttpServer};
        let target = std::sync::Arc::new(std::sync::Mutex::new(target));
        let to = target.clone();
        let handler = move |request: &phalanx::net::http::HttpRequest| {
            let query: Vec<String> = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let url = format!("http://{}{}?{}", *to.lock().unwrap(), request.path, query.join("&"));
            let dropped = ["host", "connection", "content-length", "user-agent", "accept", "accept-encoding"];
            let headers: Vec<(String, String)> = request
                .headers
                .iter()
                .filter(|(name, _)| !dropped.contains(&name.to_ascii_lowercase().as_str()))
                .cloned()
                .collect();
            let client = HttpClient::new(request.shutdown.clone());
            let deadline = Instant::now() + LONG;
            let answer = match request.method.as_str() {
                "GET" => client.get(&url, &headers, deadline),
                _ => client.post(&url, &headers, Content::Bytes(&request.body(usize::MAX).unwrap()), deadline),
            };
            match answer {
                Ok(answer) => HttpResponse::new(answer.status, "application/json", answer.body),
                Err(error) => HttpResponse::text(503, error.to_string()),
            }
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server =
            HttpServer::start("prx", listener, std::sync::Arc::new(handler), HttpLimits::default(), &Board::new())
                .unwrap();
        Self { address: server.local_addr(), target, server }
    }

    fn forward_to(&self, address: std::net::SocketAddr) {
        *self.target.lock().unwrap() = address;
    }

    fn stop(self) {
        let mut stopping = phalanx::base::stop::Stopping::alone();
        stopping.step("proxy", LONG, |step| self.server.stop_in(step));
        assert!(stopping.finish().is_clean());
    }
}
