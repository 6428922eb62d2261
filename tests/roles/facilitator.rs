//! The facilitator's validator side, with scripted validators: authentication, answers in order, dispatch, ghosts,
//! restart, stop.

use crate::testkit::facilitator as facilitator_kit;
use crate::testkit::wait::{far, until};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use facilitator_kit::{Fixture, alice, dave, key, update};
use phalanx::base::thread::{Kick, spawn};
use phalanx::identity::KeyPair;
use phalanx::protocol::{
    JobStatus as S, SignedRequest as _, V0AuthenticationRequest, V0Heartbeat, V0MachineSpecsUpdate,
};
use serde_json::json;

#[test]
fn the_authentication_table_over_sockets() {
    let fix = Fixture::new();
    let good = V0AuthenticationRequest::sign(&alice());
    let wrong = V0AuthenticationRequest::sign(&key("//Bob")).signature;
    let cases = [
        ("unknown validator", V0AuthenticationRequest::sign(&key("//Charlie")), "auth.validator_not_found", 3001),
        (
            "wrong signature",
            V0AuthenticationRequest { signature: wrong, ..good.clone() },
            "auth.signature_invalid",
            3000,
        ),
        ("no hex", V0AuthenticationRequest { signature: "zz".into(), ..good.clone() }, "auth.signature_invalid", 3000),
        ("short", V0AuthenticationRequest { signature: "0x12".into(), ..good.clone() }, "auth.signature_invalid", 3000),
        (
            "0x key",
            V0AuthenticationRequest { public_key: format!("0x{}", good.public_key), ..good.clone() },
            "auth.signature_invalid",
            3000,
        ),
        (
            "bad key",
            V0AuthenticationRequest { public_key: "zz".into(), ..good.clone() },
            "auth.signature_invalid",
            3000,
        ),
    ];
    for (name, request, kind, code) in cases {
        let mut peer = fix.connect();
        peer.say(request);
        assert_eq!(peer.answer(), kind, "{name}");
        assert_eq!(peer.closed(), (Some(code), vec![]), "{name}");
    }

    let mut peer = fix.connect();
    peer.say(V0Heartbeat);
    assert_eq!(peer.answer(), "auth.not_authenticated");
    assert_eq!(peer.report("1e1453f6-0f62-4309-a406-5eeade5e3072", S::Received), "auth.not_authenticated");
    peer.text("PING");
    assert_eq!(peer.answer(), "json_invalid");
    peer.say(good.clone());
    assert_eq!(peer.read(), r#"{"status":"success","errors":[]}"#);
    peer.say(good);
    assert_eq!(
        peer.read(),
        concat!(
            r#"{"status":"error","errors":[{"msg":"Already authenticated","type":"auth.already_authenticated","#,
            r#""help":"You are already authenticated, please do not send authentication request again."}]}"#
        )
    );
    assert_eq!(peer.report("nope", S::Received), "job.not_found");
}

#[test]
fn another_path_is_refused_at_the_handshake() {
    let fix = Fixture::new();
    for path in ["/ws/v0", "/", "/ws/v1/", "/ws/v0/x"] {
        assert_eq!(fix.dial(path).err().unwrap().status(), Some(404), "{path}");
    }
}

#[test]
fn statuses_are_answered_in_order_and_kept() {
    let fix = Fixture::new();
    let token = fix.login(&dave());
    let mut validator = fix.validator(&alice());
    let uuid = fix.submit(&token);
    assert_eq!(validator.job(), uuid);
    // All at once, so that they are on their way together, with frames among them that are answered differently or not.
    for status in [S::Received, S::Accepted, S::Accepted, S::ExecutorReady] {
        validator.say(update(&uuid, status, None));
    }
    validator.text(r#"{"message_type":"V0Heartbeat","x":1}"#);
    validator.say(V0Heartbeat);
    validator.say(update("1e1453f6-0f62-4309-a406-5eeade5e3072", S::Received, None));
    validator.text(format!(r#"{{"message_type":"V0JobStatusUpdate","uuid":"{uuid}","status":"bogus"}}"#));
    let done = json!({"miner_response": {"docker_process_stderr": "e", "docker_process_stdout": "\u{0}o",
        "artifacts": {"/artifacts/a": "YQ=="}, "upload_results": {"b": "{}"}}});
    validator.say(update(&uuid, S::Completed, Some(done)));
    validator.say(update(&uuid, S::Failed, None));
    let answers: Vec<String> = (0..9).map(|_| validator.answer()).collect();
    assert_eq!(
        answers,
        [
            "success",
            "success",
            "job.integrity_error",
            "success",
            "extra_forbidden",
            "job.not_found",
            "success",
            "success",
            "success"
        ]
    );
    let (_, job) = fix.get(&format!("/api/v1/jobs/{uuid}/"), &token);
    let history = facilitator_kit::names(&job["status_history"]);
    assert_eq!(history, ["sent", "received", "accepted", "executor_ready", "completed"]);
    assert_eq!(facilitator_kit::names(&job["other_statuses"]), ["unknown", "failed"]);
    assert_eq!((&job["status"], &job["stdout"], &job["stderr"]), (&json!("Completed"), &json!("\u{0}o"), &json!("e")));
    assert_eq!((&job["artifacts"], &job["upload_results"]), (&json!({"/artifacts/a": "YQ=="}), &json!({"b": "{}"})));
    assert_eq!(validator.report(&uuid, S::VolumesReady), "success");
    assert_eq!(fix.history(&token, &uuid).last().unwrap(), "completed", "an end is final");
}

#[test]
fn a_status_that_the_database_cannot_take_costs_that_status_alone() {
    let fix = Fixture::new();
    let token = fix.login(&dave());
    let mut validator = fix.validator(&alice());
    let uuid = fix.submit(&token);
    assert_eq!(validator.job(), uuid);
    let store = rusqlite::Connection::open(fix.state_dir().join("facilitator.db")).unwrap();
    let poison = "CREATE TRIGGER poison BEFORE INSERT ON statuses WHEN NEW.status = 'executor_ready' BEGIN
         SELECT RAISE(ABORT, 'poisoned'); END;";
    store.execute_batch(poison).unwrap();
    // All at once, so that they share a transaction.
    let statuses = [S::Received, S::ExecutorReady, S::Accepted, S::ExecutorReady, S::VolumesReady];
    for status in statuses {
        validator.say(update(&uuid, status, None));
    }
    let answers = statuses.map(|_| validator.answer());
    assert_eq!(answers, ["success", "job.internal_error", "success", "job.internal_error", "success"]);
    assert_eq!(fix.history(&token, &uuid), ["sent", "received", "accepted", "volumes_ready"]);
    store.execute_batch("DROP TRIGGER poison").unwrap();
    assert_eq!(validator.report(&uuid, S::ExecutorReady), "success", "the connection has stayed");
    let (_, metrics) = fix.http("GET", "/metrics", &[], "");
    let line = r#"phalanx_facilitator_messages_total{type="status",result="failed"} 2"#;
    assert!(metrics.as_str().unwrap().contains(line), "{metrics}");
    // All is answered, so nothing waits.
    for place in ["router", "store"] {
        let line = format!("phalanx_facilitator_queue{{place=\"{place}\"}} 0\n");
        assert!(metrics.as_str().unwrap().contains(&line), "{metrics}");
    }
}

#[test]
fn garbage_of_all_kinds_keeps_the_connection() {
    let fix = Fixture::new();
    let mut validator = fix.validator(&alice());
    let kinds = [
        ("PING", "json_invalid"),
        ("{}", "union_tag_not_found"),
        (r#"{"message_type":"Nope"}"#, "union_tag_invalid"),
        (r#"{"message_type":"V0JobStatusUpdate"}"#, "missing"),
        ("[1,2", "json_invalid"),
    ];
    for (text, kind) in kinds {
        validator.text(text);
        assert_eq!(validator.answer(), kind, "{text}");
    }
    validator.text("x".repeat(1 << 20));
    assert_eq!(validator.answer(), "json_invalid");
    assert_eq!(validator.report("nope", S::Received), "job.not_found");
}

#[test]
fn another_validators_job_is_not_there() {
    let fix = Fixture::new();
    let token = fix.login(&dave());
    let uuid = fix.submit(&token);
    let mut bob = fix.validator(&key("//Bob"));
    assert_eq!(bob.report(&uuid, S::Completed), "job.not_found");
    assert_eq!(fix.validator(&alice()).job(), uuid, "it still waits for its own validator");
    assert_eq!(fix.history(&token, &uuid), ["sent"]);
}

#[test]
fn a_newer_session_takes_over_and_the_older_one_is_closed_and_told_why() {
    let fix = Fixture::with(true, |_| {});
    let token = fix.login(&dave());
    let mut old = fix.validator(&alice());
    let uuid = fix.submit(&token);
    assert_eq!(old.job(), uuid);
    let mut new = fix.validator(&alice());
    assert_eq!(old.closed(), (Some(4001), vec![]));
    assert_eq!(new.job(), uuid, "it may have been a ghost that got it");
    new.connection.kick.kick();
    let mut newest = fix.validator(&alice());
    assert_eq!(newest.job(), uuid);
    assert_eq!(newest.report(&uuid, S::Received), "success");
    let mut last = fix.validator(&alice());
    assert_eq!(last.report(&uuid, S::Received), "job.integrity_error", "it is not sent again once it is received");
    let (_, metrics) = fix.http("GET", "/metrics", &[], "");
    let metrics = metrics.as_str().unwrap();
    for line in [
        r#"phalanx_facilitator_sessions_closed_total{reason="taken_over"} 2"#,
        r#"phalanx_facilitator_messages_total{type="authentication",result="taken"} 4"#,
        r#"phalanx_facilitator_messages_total{type="status",result="taken"} 1"#,
        r#"phalanx_facilitator_messages_total{type="status",result="refused"} 1"#,
        r#"phalanx_facilitator_handler_seconds_count{type="status"} 2"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[test]
fn a_session_without_heartbeats_is_closed_and_its_validator_shown_as_away() {
    let fix = Fixture::with(true, |config| config.ghost_limit = Duration::from_millis(20));
    let mut ghost = fix.connect();
    ghost.say(V0AuthenticationRequest::sign(&alice()));
    assert_eq!(ghost.answer(), "success");
    assert_eq!(ghost.closed(), (Some(4002), vec![]));
    until("nobody is connected", || fix.running().snapshot()["sessions"].as_array().unwrap().is_empty());
    let away = &fix.running().snapshot()["away"];
    let seen = |key: &KeyPair| {
        let of = away.as_array().unwrap().iter().find(|entry| entry["validator"] == key.ss58());
        of.unwrap_or_else(|| panic!("{away}"))["seen_seconds_ago"].clone()
    };
    assert!(seen(&alice()).is_u64() && seen(&key("//Bob")).is_null(), "{away}");
}

#[test]
fn a_ghost_that_never_answers_ends_the_job_as_horde_failed() {
    let fix = Fixture::with(true, |config| config.received_limit = Duration::from_millis(50));
    let token = fix.login(&dave());
    let mut ghost = fix.validator(&alice());
    let uuid = fix.submit(&token);
    assert_eq!(ghost.job(), uuid);
    let (_, job) = fix.get(&format!("/api/v1/jobs/{uuid}/?wait=30&seen=1"), &token);
    assert_eq!(facilitator_kit::names(&job["status_history"]), ["sent", "horde_failed"]);
    let details = &job["status_history"][1]["metadata"]["horde_failure_details"];
    assert_eq!((&details["reported_by"], &details["reason"]), (&json!("facilitator"), &json!("generic_error")));
    assert!(details["message"].as_str().unwrap().contains("did not acknowledge"), "{details}");
    assert_eq!(ghost.report(&uuid, S::Received), "success", "late, but it is answered so");
    assert_eq!(fix.history(&token, &uuid), ["sent", "horde_failed"]);
}

#[test]
fn silence_before_the_authentication_is_closed() {
    let fix = Fixture::with(true, |config| config.auth_limit = Duration::from_millis(20));
    let mut peer = fix.connect();
    assert_eq!(peer.answer(), "auth.not_authenticated");
    assert_eq!(peer.closed().0, Some(3000));
}

#[test]
fn a_restart_keeps_histories_and_sends_what_was_not_received() {
    let mut fix = Fixture::new();
    let token = fix.login(&dave());
    let mut validator = fix.validator(&alice());
    let (first, second) = (fix.submit(&token), fix.submit(&token));
    assert_eq!((validator.job(), validator.job()), (first.clone(), second.clone()));
    assert_eq!(validator.report(&first, S::Received), "success");
    drop(validator);
    fix.restart();
    assert_eq!(fix.history(&token, &first), ["sent", "received"], "the token is still good as well");
    let mut validator = fix.validator(&alice());
    assert_eq!(validator.job(), second);
    assert_eq!(validator.report(&first, S::Received), "job.integrity_error");
    assert_eq!(validator.report(&first, S::Completed), "success");
    assert_eq!(validator.report(&second, S::Rejected), "success");
    assert_eq!(fix.history(&token, &first), ["sent", "received", "completed"]);
}

#[test]
fn a_job_whose_validator_died_ends_after_a_restart_too() {
    // The job's own limits are far below the margin.
    let mut fix = Fixture::with(true, |config| config.silence_margin = Duration::from_secs(3600));
    let token = fix.login(&dave());
    let mut validator = fix.validator(&alice());
    let uuid = fix.submit(&token);
    assert_eq!(validator.job(), uuid);
    assert_eq!(validator.report(&uuid, S::Received), "success");
    drop(validator);
    // As if it had been silent for two hours: only the margin, for its validator to come back, is left.
    assert!(fix.stop().is_clean());
    let store = rusqlite::Connection::open(fix.state_dir().join("facilitator.db")).unwrap();
    assert_eq!(store.execute("UPDATE statuses SET at = at - 7200000000", []).unwrap(), 2);
    drop(store);
    fix.change(|config| config.silence_margin = Duration::from_millis(50));
    fix.start();
    let (_, job) = fix.get(&format!("/api/v1/jobs/{uuid}/?wait=30&seen=2"), &token);
    assert_eq!(facilitator_kit::names(&job["status_history"]), ["sent", "received", "horde_failed"]);
    let details = &job["status_history"][2]["metadata"]["horde_failure_details"];
    assert_eq!((&details["reported_by"], &details["reason"]), (&json!("facilitator"), &json!("generic_error")));
    assert!(details["message"].as_str().unwrap().contains("has reported nothing of the job for"), "{details}");
    let mut validator = fix.validator(&alice());
    assert_eq!(validator.report(&uuid, S::Completed), "success", "late, but it is answered so");
    assert_eq!(fix.history(&token, &uuid), ["sent", "received", "horde_failed"], "an end is final");
}

#[test]
fn specs_are_kept_without_an_answer() {
    let fix = Fixture::with(true, |_| {});
    let mut validator = fix.validator(&alice());
    for cpus in [1, 2] {
        validator.say(V0MachineSpecsUpdate {
            miner_hotkey: key("//Bob").ss58(),
            validator_hotkey: alice().ss58(),
            specs: serde_json::from_value(json!({"cpu": {"count": cpus}})).unwrap(),
            batch_id: "b".to_owned(),
        });
    }
    assert_eq!(validator.report("nope", S::Received), "job.not_found", "the next answer is not theirs");
    let specs = fix.running().specs().unwrap();
    assert_eq!(specs.len(), 1);
    assert_eq!((specs[0].miner.clone(), specs[0].specs.as_str()), (key("//Bob").ss58(), r#"{"cpu":{"count":2}}"#));
}

#[test]
fn a_removed_validator_is_disconnected_with_3001() {
    let fix = Fixture::new();
    let peer = fix.validator(&alice());
    let token = fix.login(&key("//Eve"));
    let reloader = fix.running().reloader();
    for (validators, users) in [(vec![], vec![dave().public()]), (vec![alice().public()], vec![])] {
        let refused = reloader.reload(validators, users).unwrap_err().to_string();
        assert!(refused.contains("there is no "), "{refused}");
    }
    reloader.reload(vec![key("//Bob").public()], vec![dave().public()]).unwrap();
    assert_eq!(fix.get("/api/v1/jobs/", &token).0, 403, "her token is good, but she is no user any more");
    assert_eq!(peer.closed(), (Some(3001), vec![]));
}

/// All updates are sent before the first answer is read, each twice: each is answered once, in order.
#[test]
fn a_flood_of_statuses_is_answered_one_for_one() {
    let fix = Fixture::new();
    let token = fix.login(&dave());
    let mut validator = fix.validator(&alice());
    let uuids: Vec<String> = (0..20).map(|_| fix.submit(&token)).collect();
    for uuid in &uuids {
        assert_eq!(&validator.job(), uuid);
    }
    let statuses = [S::Received, S::Accepted, S::ExecutorReady, S::VolumesReady, S::ExecutionDone, S::Completed];
    let expected = statuses.len() * uuids.len();
    for status in statuses {
        for uuid in &uuids {
            validator.say(update(uuid, status, None));
            validator.say(update(uuid, status, None));
        }
    }
    for n in 0..expected {
        assert_eq!(
            (validator.answer().as_str(), validator.answer().as_str()),
            ("success", "job.integrity_error"),
            "{n}"
        );
    }
    assert_eq!(fix.history(&token, &uuids[19]).len(), 7);
    println!("{} updates answered", 2 * expected);
}

#[test]
fn at_a_stop_all_sessions_are_told_and_no_job_is_lost() {
    let keys: Vec<KeyPair> = (0..10).map(|n| key(&format!("//Drain/{n}"))).collect();
    let mut fix = Fixture::with(true, |config| config.validators = keys.iter().map(KeyPair::public).collect());
    let token = fix.login(&dave());
    let mut peers: Vec<_> = keys.iter().map(|key| fix.validator(key)).collect();
    let mut uuids = Vec::new();
    for (key, peer) in keys.iter().zip(&mut peers) {
        let (status, job) = fix.post_job(&token, &facilitator_kit::job(&dave()), key);
        assert_eq!(status, 201, "{job}");
        uuids.push(job["uuid"].as_str().unwrap().to_owned());
        // It has come, and nothing is reported of it.
        assert_eq!(Some(&peer.job()), uuids.last());
    }
    let readers: Vec<_> = peers
        .into_iter()
        .map(|peer| spawn("t-peer", Kick::dropped("the facilitator's Close"), move || peer.closed()))
        .collect();
    assert!(fix.stop().is_clean());
    for reader in readers {
        assert_eq!(reader.join_by(far()).unwrap(), (Some(1001), vec![]));
    }
    fix.start();
    for (key, uuid) in keys.iter().zip(&uuids) {
        let mut peer = fix.validator(key);
        assert_eq!(&peer.job(), uuid);
        assert_eq!(peer.report(uuid, S::Completed), "success");
    }
}

/// Times from the submission of a job to the news of its end, one job after another, the shortest first.
fn latencies(fix: &Fixture, token: &str, validators: &[KeyPair], rounds: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for validator in (0..rounds).flat_map(|_| validators) {
        let begun = Instant::now();
        let (status, job) = fix.post_job(token, &facilitator_kit::job(&dave()), validator);
        assert_eq!(status, 201, "{job}");
        let uuid = job["uuid"].as_str().unwrap();
        let mut seen = 1;
        loop {
            let (_, job) = fix.get(&format!("/api/v1/jobs/{uuid}/?wait=30&seen={seen}"), token);
            let history = facilitator_kit::names(&job["status_history"]);
            seen = history.len();
            if history.last().unwrap() == "completed" {
                break;
            }
        }
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times
}

/// Validators that read nothing, with large jobs waiting for them and more and more answers owed to them, until the
/// facilitator has had enough of them; and quick ones beside them.
#[test]
fn a_validator_that_does_not_read_slows_nobody() {
    let quick: Vec<KeyPair> = (0..4).map(|n| key(&format!("//Quick/{n}"))).collect();
    let slow: Vec<KeyPair> = (0..4).map(|n| key(&format!("//Slow/{n}"))).collect();
    let fix = Fixture::with(false, |config| {
        config.validators = quick.iter().chain(&slow).map(KeyPair::public).collect();
    });
    let token = fix.login(&dave());
    let serving: Vec<_> =
        quick.iter().map(|key| fix.validator(key).serve(|_| facilitator_kit::completed("quick"))).collect();
    let alone = latencies(&fix, &token, &quick, 5);

    let floods: Vec<_> = slow
        .iter()
        .map(|key| {
            let mut peer = fix.validator(key);
            for _ in 0..8 {
                let mut job = facilitator_kit::job(&dave());
                job.args = vec!["x".repeat(200_000)];
                job.sign(&dave(), crate::testkit::roles::now_ns());
                let (status, job) = fix.post_job(&token, &job, key);
                assert_eq!(status, 201, "{job}");
            }
            // Each is answered; nobody reads that.
            let (kick, waker) = (peer.connection.kick.clone(), peer.connection.kick.clone());
            let flood = spawn("t-flood", Kick::new("connection", move || waker.kick()), move || {
                let mut said = 0_usize;
                while peer.try_text("{}").is_ok() {
                    said += 1;
                }
                said
            });
            (kick, flood)
        })
        .collect();
    let beside = latencies(&fix, &token, &quick, 5);
    let at = |times: &[Duration], part: usize| times[times.len() * part / 100];
    println!(
        "alone: median {:?}, p90 {:?}; beside four that do not read: median {:?}, p90 {:?}",
        at(&alone, 50),
        at(&alone, 90),
        at(&beside, 50),
        at(&beside, 90)
    );
    // Far less than what a job would wait for a peer that does not read: 60 s, until the writer is stuck.
    assert!(at(&beside, 90) < Duration::from_secs(10), "{beside:?}");
    for (kick, flood) in floods {
        kick.kick();
        assert!(flood.join_by(far()).unwrap() > 0);
    }
    for (kick, thread) in serving {
        kick.kick();
        thread.join_by(far()).unwrap();
    }
}

#[test]
fn it_stops_with_all_kinds_of_clients_attached() {
    let mut fix = Fixture::new();
    let token = fix.login(&dave());
    let silent = fix.connect();
    let validator = fix.validator(&alice());
    let idle = fix.http_stream();
    let mut half_head = fix.http_stream();
    half_head.write_all(b"GET /api/v1/jo").unwrap();
    let mut half_body = fix.http_stream();
    half_body.write_all(b"POST /auth/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{").unwrap();
    let uuid = fix.submit(&token);
    let mut waiting = fix.http_stream();
    let wait = format!(
        "GET /api/v1/jobs/{uuid}/?wait=30&seen=1 HTTP/1.1\r\nHost: [::1]\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    waiting.write_all(wait.as_bytes()).unwrap();
    until("a request that waits", || {
        fix.http("GET", "/metrics", &[], "").1.as_str().unwrap().contains("phalanx_facilitator_waiting_requests 1")
    });
    let readers = [validator, silent]
        .map(|peer| spawn("t-peer", Kick::dropped("the facilitator's Close"), move || peer.closed().0));
    let report = fix.stop();
    assert!(report.is_clean(), "{report}");
    for reader in readers {
        assert_eq!(reader.join_by(far()).unwrap(), Some(1001));
    }
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(&uuid), "{answer}");
    for mut client in [idle, half_head, half_body] {
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    }
}

#[test]
fn a_validator_that_does_not_read_is_disconnected_at_the_end_of_its_budget() {
    let mut fix = Fixture::with(true, |_| {});
    let token = fix.login(&dave());
    let _validator = fix.validator(&alice());
    for wire in fix.world.net.wires() {
        wire.stall(phalanx::transport::memory::Side::Listener);
    }
    fix.submit(&token);
    // Its sessions' budget of five seconds ends it: the wire stays stalled.
    let report = fix.stop();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn dropping_it_without_a_stop_ends_every_thread_too() {
    let mut fix = Fixture::new();
    let _peer = fix.validator(&alice());
    let _idle = fix.http_stream();
    drop(fix.facilitator.take());
}

#[test]
fn a_bad_configuration_names_all_its_problems() {
    let fix = Fixture::new();
    let config = phalanx::facilitator::FacilitatorConfig {
        http_connections: 1,
        auth_limit: Duration::ZERO,
        ..phalanx::facilitator::FacilitatorConfig::new("unused")
    };
    assert_eq!(config.validate().len(), 4, "{:?}", config.validate());
    drop(fix);
}

#[test]
fn dropping_a_facilitator_stops_it() {
    let mut fix = Fixture::with(true, |_| {});
    let validator = fix.validator(&alice());
    let token = fix.login(&dave());
    let uuid = fix.submit(&token);
    // A request that waits for news, and a connection that says nothing.
    let mut waiting = fix.http_stream();
    let path = format!("/api/v1/jobs/{uuid}/?wait=30&seen=99");
    write!(waiting, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n").unwrap();
    let idle = fix.http_stream();
    drop(fix.facilitator.take());
    drop((validator, waiting, idle));
    // The fixture now finds no thread left.
}
