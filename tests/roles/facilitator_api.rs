//! The facilitator's HTTP job API, call by call: who may do what, and what the answers say.

use crate::testkit::facilitator as facilitator_kit;
use std::time::Duration;

use facilitator_kit::{Fixture, alice, bearer, dave, job, key, names};
use phalanx::base::limits::JOB_REQUEST_BYTES;
use phalanx::facilitator::api::submission::body_of;
use phalanx::identity::KeyPair;
use phalanx::net::http::HostNames;
use phalanx::protocol::{
    FacilitatorToValidator, InlineVolume, JobStatus as S, MultiUpload, OutputUpload, Signature, SignedRequest,
    SingleFilePutUpload, SingleFileUpload, StreamingDetails, V0JobCheated, Volume, ZipAndHttpPostUpload,
    ZipAndHttpPutUpload, ZipUpload,
};
use serde_json::{Value, json};

fn memory() -> Fixture {
    Fixture::with(true, |_| {})
}

fn detail(answer: &(u16, Value)) -> &str {
    answer.1["detail"].as_str().unwrap_or_else(|| panic!("no detail in {answer:?}"))
}

#[test]
fn login_takes_a_fresh_nonce_signed_by_a_user() {
    let fix = memory();
    let nonce = fix.nonce();
    assert_eq!(fix.try_login(&dave(), &nonce).0, 200);
    let again = fix.try_login(&dave(), &nonce);
    assert_eq!((again.0, detail(&again).contains("get a new one")), (401, true), "{again:?}");
    assert_eq!(fix.try_login(&dave(), "made.up.nonce").0, 401);
    let stranger = fix.try_login(&key("//Stranger"), &fix.nonce());
    assert_eq!(
        (stranger.0, detail(&stranger).contains("is not a user of this facilitator")),
        (403, true),
        "{stranger:?}"
    );
    let nonce = fix.nonce();
    let forged =
        json!({"hotkey": dave().ss58(), "signature": key("//Eve").sign(nonce.as_bytes()).to_hex(), "nonce": nonce});
    let forged = fix.http("POST", "/auth/login", &[], &forged.to_string());
    assert_eq!((forged.0, detail(&forged).contains("is not by")), (401, true), "{forged:?}");
    assert_eq!(fix.try_login(&dave(), &nonce).0, 200, "a failed login does not use the nonce up");
    for body in ["", "[]", "{}", r#"{"hotkey": "x", "signature": "y", "nonce": "z"}"#] {
        assert_eq!(fix.http("POST", "/auth/login", &[], body).0, 400, "{body}");
    }
}

#[test]
fn everything_wants_a_good_token() {
    let fix = memory();
    let anonymous = fix.http("GET", "/api/v1/jobs/", &[], "");
    assert_eq!((anonymous.0, detail(&anonymous).contains("log in first")), (401, true), "{anonymous:?}");
    let forged = fix.get("/api/v1/jobs/", "a.b.c");
    assert_eq!((forged.0, detail(&forged)), (401, "Invalid token"));
    let token = fix.login(&dave());
    let lower = fix.http("GET", "/api/v1/jobs/", &[("authorization", format!("bearer  {token}"))], "");
    assert_eq!(lower.0, 200, "{lower:?}");
    fix.running().reload(vec![alice().public()], vec![key("//Eve").public()]);
    let removed = fix.get("/api/v1/jobs/", &token);
    assert_eq!((removed.0, detail(&removed).contains("not a user of this facilitator any more")), (403, true));

    let fix = Fixture::with(true, |config| config.token_time = Duration::ZERO);
    let token = fix.login(&dave());
    let expired = fix.get("/api/v1/jobs/", &token);
    assert_eq!((expired.0, detail(&expired)), (401, "Token expired"));
}

#[test]
fn a_job_goes_out_with_the_users_own_signature() {
    let fix = memory();
    let token = fix.login(&dave());
    let mut validator = fix.validator(&alice());
    let mut request = job(&dave());
    request.env.insert("B".to_owned(), "ż".to_owned());
    request.env.insert("A".to_owned(), String::new());
    request.job_namespace = Some("SN1.0".to_owned());
    request.artifacts_dir = Some("/artifacts".to_owned());
    // The SDK posts lists, which become a multi-volume even when there is one; so it is signed in either form.
    let inline = InlineVolume { contents: "UEsFBg==".to_owned(), relative_path: Some("in".to_owned()) };
    request.volume = Some(Volume::Inline(inline));
    request.streaming_details = Some(StreamingDetails { public_key: "PEM".to_owned(), executor_ip: None });
    request.streaming_start_time_limit = 7.into();
    request.sign(&dave(), 1_700_000_000_000_000_001);
    let (status, created) = fix.post_job(&token, &request, &alice());
    assert_eq!(status, 201, "{created}");
    assert_eq!(names(&created["status_history"]), ["sent"]);
    assert_eq!(created["env"], json!({"B": "ż", "A": ""}));
    assert_eq!(created["args"], json!(["echo", "hi"]));
    assert_eq!((&created["streaming_client_cert"], &created["streaming_start_time_limit"]), (&json!("PEM"), &json!(7)));
    assert!(created["created_at"].as_str().unwrap().ends_with('Z'), "{created}");
    let text = validator.read();
    assert!(text.contains(r#""env": {"B": "\u017c", "A": ""}"#), "{text}");
    let FacilitatorToValidator::V2JobRequest(sent) = FacilitatorToValidator::decode(&text).unwrap() else {
        panic!("{text}");
    };
    assert_eq!(sent.signature, request.signature);
    assert_eq!(sent.verify().unwrap(), dave().public());
    assert_eq!(sent.uuid, created["uuid"]);
    assert!(matches!(sent.volume, Some(Volume::Multi(multi)) if multi.volumes.len() == 1));
}

#[test]
fn every_upload_that_a_signature_covers_goes_out() {
    let fix = memory();
    let token = fix.login(&dave());
    let mut validator = fix.validator(&alice());
    let zip = || ZipAndHttpPutUpload { url: "https://h/zip".to_owned() };
    let single =
        || SingleFilePutUpload { url: "https://h/o".to_owned(), relative_path: "o".into(), signed_headers: None };
    let multi = |system_output| MultiUpload { uploads: vec![SingleFileUpload::Put(single())], system_output };
    let post = ZipAndHttpPostUpload { url: "https://h/zip".to_owned(), form_fields: None };
    for (upload, sent_as) in [
        (OutputUpload::ZipAndHttpPut(zip()), OutputUpload::ZipAndHttpPut(zip())),
        (OutputUpload::ZipAndHttpPost(post.clone()), OutputUpload::ZipAndHttpPost(post)),
        (OutputUpload::SingleFilePut(single()), OutputUpload::Multi(multi(None))),
        (OutputUpload::Multi(multi(None)), OutputUpload::Multi(multi(None))),
    ] {
        let mut request = job(&dave());
        request.output_upload = Some(upload);
        request.sign(&dave(), 1_700_000_000_000_000_001);
        assert_eq!(fix.post_job(&token, &request, &alice()).0, 201);
        let text = validator.read();
        let Ok(FacilitatorToValidator::V2JobRequest(sent)) = FacilitatorToValidator::decode(&text) else {
            panic!("{text}");
        };
        assert_eq!((sent.verify().unwrap(), &sent.output_upload), (dave().public(), &Some(sent_as)));
    }
    let mut request = job(&dave());
    request.output_upload = Some(OutputUpload::Multi(multi(Some(ZipUpload::Put(zip())))));
    let refusal = body_of(&request, &alice().public()).unwrap_err().to_string();
    assert!(refusal.starts_with("output_upload.system_output: no facilitator takes it from a user"), "{refusal}");
    let uploads = json!([
        {"output_upload_type": "zip_and_http_put", "url": "https://h/zip"},
        {"output_upload_type": "single_file_put", "url": "https://h/o", "relative_path": "o"},
    ]);
    let body = json!({"target_validator_hotkey": alice().ss58(), "uploads": uploads}).to_string();
    let mut headers = vec![bearer(&token)];
    headers.extend(request.signature.as_ref().unwrap().to_headers());
    let answer = fix.http("POST", "/api/v1/job-docker/", &headers, &body);
    assert_eq!((answer.0, detail(&answer).contains("should be the only upload")), (400, true), "{answer:?}");
}

#[test]
fn what_is_not_taken_says_why() {
    let fix = memory();
    let token = fix.login(&dave());
    let good = job(&dave());
    let refused = |request: &phalanx::protocol::V2JobRequest, target: &KeyPair| {
        let answer = fix.post_job(&token, request, target);
        (answer.0, detail(&answer).to_owned())
    };
    let mut changed = good.clone();
    changed.docker_image = "other".to_owned();
    let (status, why) = refused(&changed, &alice());
    assert_eq!((status, why.contains("the signature is not by")), (400, true), "{why}");
    let (status, why) = refused(&job(&key("//Eve")), &alice());
    assert_eq!((status, why.contains("not by the user who is logged in")), (403, true), "{why}");
    let (status, why) = refused(&good, &key("//Charlie"));
    assert_eq!((status, why.contains("is not a validator of this facilitator")), (400, true), "{why}");
    let mut unsigned = good.clone();
    unsigned.signature = None;
    let (status, why) = refused(&unsigned, &alice());
    assert_eq!((status, why.contains("X-CH-")), (400, true), "{why}");
    let mut large = good.clone();
    large.args = vec!["x".repeat(JOB_REQUEST_BYTES)];
    large.sign(&dave(), 1);
    let (status, why) = refused(&large, &alice());
    assert_eq!((status, why.contains("give large inputs by URL")), (413, true), "{why}");

    let mut headers = vec![bearer(&token)];
    headers.extend(good.signature.as_ref().unwrap().to_headers());
    let target = alice().ss58();
    for (body, expected) in [
        ("nonsense".to_owned(), "the body should be a JSON object"),
        ("{}".to_owned(), "target_validator_hotkey"),
        (json!({"target_validator_hotkey": target}).to_string(), "docker_image"),
        (json!({"target_validator_hotkey": target, "surprise": 1}).to_string(), "\"surprise\" is no field of a job"),
        (json!({"target_validator_hotkey": target, "volumes": 1}).to_string(), "volumes should be a list"),
    ] {
        let answer = fix.http("POST", "/api/v1/job-docker/", &headers, &body);
        assert_eq!((answer.0, detail(&answer).contains(expected)), (400, true), "{body}: {answer:?}");
    }
    assert_eq!(fix.get("/api/v1/jobs/", &token).1["count"], 0, "nothing of it was stored");
}

#[test]
fn users_see_their_own_jobs_page_by_page() {
    let fix = memory();
    let (dave_token, eve_token) = (fix.login(&dave()), fix.login(&key("//Eve")));
    let uuids: Vec<String> = (0..12).map(|_| fix.submit(&dave_token)).collect();
    let (status, page) = fix.get("/api/v1/jobs/?page=1&page_size=5", &dave_token);
    assert_eq!((status, &page["count"], &page["previous"]), (200, &json!(12), &Value::Null));
    assert_eq!(page["next"], "/api/v1/jobs/?page=2&page_size=5");
    let listed: Vec<&str> = page["results"].as_array().unwrap().iter().map(|j| j["uuid"].as_str().unwrap()).collect();
    assert_eq!(listed, uuids.iter().rev().take(5).map(String::as_str).collect::<Vec<_>>(), "the newest first");
    let last = fix.get("/api/v1/jobs/?page=3&page_size=5", &dave_token).1;
    assert_eq!((last["results"].as_array().unwrap().len(), &last["next"]), (2, &Value::Null));
    assert_eq!(fix.get("/api/v1/jobs", &dave_token).1["results"].as_array().unwrap().len(), 10);
    assert_eq!(fix.get("/api/v1/jobs/?page_size=9999", &dave_token).0, 200);
    for (path, expected) in [("?page=4&page_size=5", 404), ("?page=0", 404), ("?page=x", 400), ("?page_size=-1", 400)] {
        assert_eq!(fix.get(&format!("/api/v1/jobs/{path}"), &dave_token).0, expected, "{path}");
    }
    assert_eq!(fix.get("/api/v1/jobs/", &eve_token).1["count"], 0);
    let theirs = fix.get(&format!("/api/v1/jobs/{}/", uuids[0]), &eve_token);
    assert_eq!((theirs.0, detail(&theirs).contains("you have no job")), (404, true));
}

#[test]
fn news_of_a_job_come_at_once_and_never_late() {
    let fix = memory();
    let token = fix.login(&dave());
    let mut validator = fix.validator(&alice());
    let uuid = fix.submit(&token);
    assert_eq!(validator.job(), uuid);
    let (_, job) = fix.get(&format!("/api/v1/jobs/{uuid}/?wait=30&seen=0"), &token);
    assert_eq!(names(&job["status_history"]), ["sent"], "there is more than 0, so nothing is waited for");
    let (_, job) = fix.get(&format!("/api/v1/jobs/{uuid}/?wait=0&seen=1"), &token);
    assert_eq!(names(&job["status_history"]), ["sent"]);
    // The update is on its way while the request waits, or just before it comes: either way it is in the answer.
    validator.say(facilitator_kit::update(&uuid, S::Received, None));
    let (_, job) = fix.get(&format!("/api/v1/jobs/{uuid}/?wait=30&seen=1"), &token);
    assert_eq!(names(&job["status_history"]), ["sent", "received"]);
    assert_eq!(fix.get(&format!("/api/v1/jobs/{uuid}/?wait=soon"), &token).0, 400);
}

#[test]
fn a_report_of_a_cheat_reaches_the_jobs_validator() {
    let fix = memory();
    let token = fix.login(&dave());
    let uuid = fix.submit(&token);
    let mut report = V0JobCheated {
        signature: None,
        job_uuid: uuid.clone(),
        trusted_job_uuid: uuid.clone(),
        details: json!({"why": "x", "a": 1}),
    };
    let body = json!({"job_uuid": uuid, "trusted_job_uuid": uuid, "details": report.details}).to_string();
    report.sign(&dave(), 5);
    let post = |signature: &Signature| {
        let headers: Vec<_> = signature.to_headers().into_iter().chain([bearer(&token)]).collect();
        fix.http("POST", "/api/v1/cheated-job/", &headers, &body)
    };
    let signature = report.signature.clone().unwrap();
    let away = post(&signature);
    assert_eq!((away.0, detail(&away).contains("is not connected")), (503, true), "{away:?}");
    let mut validator = fix.validator(&alice());
    assert_eq!(validator.job(), uuid);
    assert_eq!(post(&signature).0, 200);
    let FacilitatorToValidator::V0JobCheated(sent) = FacilitatorToValidator::decode(&validator.read()).unwrap() else {
        panic!("no report came");
    };
    assert_eq!(sent, report);
    // The SDK signs the text of the payload instead.
    let text = String::from_utf8(report.canonical_bytes()).unwrap();
    let quoted = Value::String(text).to_string();
    assert_eq!(post(&Signature::over(quoted.as_bytes(), &dave(), 6)).0, 200);
    assert_eq!(post(&Signature::over(b"else", &dave(), 6)).0, 400);
    assert_eq!(post(&Signature::over(quoted.as_bytes(), &key("//Eve"), 6)).0, 403);
    let other = fix.login(&key("//Eve"));
    let mut theirs = report.clone();
    theirs.sign(&key("//Eve"), 7);
    let headers: Vec<_> = theirs.signature.unwrap().to_headers().into_iter().chain([bearer(&other)]).collect();
    assert_eq!(fix.http("POST", "/api/v1/cheated-job/", &headers, &body).0, 404, "it is not Eve's job");
}

#[test]
fn only_pages_of_its_own_names_may_ask() {
    let fix = Fixture::with(true, |config| config.http_names = HostNames::new(vec!["api.example".to_owned()]));
    let ask = |path: &str, headers: &[(&str, String)]| fix.http("GET", path, headers, "");
    let foreign = ask("http://evil.example/auth/nonce", &[]);
    assert_eq!(
        foreign,
        (421, json!("this server is not \"evil.example\"; --http-host NAME adds a name\n")),
        "a name that was made to lead here"
    );
    for path in ["http://API.example:8080/auth/nonce", "http://localhost/auth/nonce", "http://[::1]/auth/nonce"] {
        assert_eq!(ask(path, &[]).0, 200, "{path}");
    }
    let page = |origin: &str| ask("/auth/nonce", &[("Origin", origin.to_owned())]).0;
    assert_eq!((page("https://evil.example"), page("https://api.example"), page("null")), (403, 200, 403));
    // Who is refused here ends what is alive.
    assert_eq!(ask("http://evil.example/healthz", &[("Origin", "null".to_owned())]).0, 200);
    assert_eq!(ask("http://evil.example/readyz", &[]).0, 421);
}

#[test]
fn paths_and_methods() {
    let fix = memory();
    assert_eq!(fix.http("GET", "/nothing/here", &[], "").0, 404);
    assert_eq!(fix.http("GET", "/auth/login", &[], "").0, 405);
    assert_eq!(fix.http("POST", "/api/v1/jobs/", &[], "").0, 405);
    assert_eq!(fix.http("GET", "/healthz", &[], ""), (200, Value::String("ok\n".to_owned())));
    assert_eq!(fix.http("GET", "/readyz", &[], "").0, 200);
    let validator = fix.validator(&alice());
    let (_, status) = fix.http("GET", "/status.json", &[], "");
    assert_eq!(
        (&status["role"], &status["details"]["sessions"][0]["live"]),
        (&json!("facilitator"), &json!(true)),
        "{status}"
    );
    assert_eq!(status["details"]["sessions"][0]["validator"], alice().ss58());
    let (_, metrics) = fix.http("GET", "/metrics", &[], "");
    assert!(metrics.as_str().unwrap().contains("phalanx_facilitator_sessions 1\n"), "{metrics}");
    assert!(!metrics.as_str().unwrap().contains(&alice().ss58()));
    drop(validator);
}
