//! The facilitator's HTTP job API, call by call: who may do what, and what the answers say.

use crate::testkit::facilitator as facilitator_kit;
use std::time::Duration;

use facilitator_kit::{Fixture, alice, bearer, dave, job, key, names};
use phalanx::base::limits::JOB_REQUEST_BYTES;
use phalanx::facilitator::api::submission::body_of;
use phalanx::identity::KeyPair;
use phalanx::net::http::HostNames;
use phalanx::ops::status::Board;
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
    fix.running().reloader().reload(vec![alice().public()], vec![key("//Eve").public()]).unwrap();
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
    let refusal = body_of(&request, &alice().public(), "").unwrap_err().to_string();
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
    let mut other_type = good.clone();
    other_type.signature.as_mut().unwrap().signature_type = "-1".to_owned();
    let (status, why) = refused(&other_type, &alice());
    assert_eq!((status, why.contains("X-CH-Signature-Type")), (400, true), "{why}");
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
    assert_eq!(page["next"], "http://[::1]/api/v1/jobs/?page=2&page_size=5");
    let uuids_of = |page: &Value| -> Vec<String> {
        page["results"].as_array().unwrap().iter().map(|j| j["uuid"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(uuids_of(&page), uuids[..5], "the newest last");
    let newest = fix.get("/api/v1/jobs/?page_size=2&ordering=-created_at", &dave_token).1;
    assert_eq!(uuids_of(&newest), [uuids[11].clone(), uuids[10].clone()]);
    let one = fix.get(&format!("/api/v1/jobs/?uuid={}", uuids[3]), &dave_token).1;
    assert_eq!((&one["count"], uuids_of(&one)), (&json!(1), vec![uuids[3].clone()]));
    assert_eq!(fix.get("/api/v1/jobs/?status=Sent,completed", &dave_token).1["count"], 12);
    assert_eq!(fix.get("/api/v1/jobs/?status=horde_failed", &dave_token).1["count"], 0);
    let behind_a_proxy = [bearer(&dave_token), ("X-Forwarded-Proto", "https".to_owned())];
    let page = fix.http("GET", "/api/v1/jobs/?page=2&page_size=5&tag=a%20b&ordering=created_at", &behind_a_proxy, "");
    assert_eq!(page.0, 404, "nothing has that tag");
    let page = fix.http("GET", "/api/v1/jobs/?page=2&page_size=5&status=sent&tag=", &behind_a_proxy, "").1;
    assert_eq!(page["previous"], "https://[::1]/api/v1/jobs/?page=1&page_size=5&tag=&status=sent");
    let last = fix.get("/api/v1/jobs/?page=3&page_size=5", &dave_token).1;
    assert_eq!((last["results"].as_array().unwrap().len(), &last["next"]), (2, &Value::Null));
    assert_eq!(fix.get("/api/v1/jobs", &dave_token).1["results"].as_array().unwrap().len(), 10);
    assert_eq!(fix.get("/api/v1/jobs/?page_size=9999", &dave_token).0, 200);
    for (path, expected) in [
        ("?page=4&page_size=5", 404),
        ("?page=0", 404),
        ("?page=x", 400),
        ("?page_size=-1", 400),
        ("?uuid=x", 400),
        ("?status=lost", 400),
        ("?ordering=tag", 400),
    ] {
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
fn a_report_of_a_cheat_reaches_the_jobs_validator_once() {
    let fix = memory();
    let (token, other) = (fix.login(&dave()), fix.login(&key("//Eve")));
    let uuid = fix.submit(&token);
    let mut trusted = job(&dave());
    trusted.on_trusted_miner = true;
    trusted.sign(&dave(), 4);
    let trusted = fix.post_job(&token, &trusted, &alice()).1;
    assert_eq!(trusted["on_trusted_miner"], true);
    let trusted = trusted["uuid"].as_str().unwrap().to_owned();
    let details = json!({"why": "x", "a": 1});
    let report = |job: &str, trusted: &str, user: &KeyPair| {
        let (job_uuid, trusted_job_uuid) = (job.to_owned(), trusted.to_owned());
        let mut report = V0JobCheated { signature: None, job_uuid, trusted_job_uuid, details: details.clone() };
        report.sign(user, 5);
        report
    };
    let post = |report: &V0JobCheated, signature: &Signature, token: &str| {
        let body = json!({"job_uuid": report.job_uuid, "trusted_job_uuid": report.trusted_job_uuid,
            "details": report.details});
        let headers: Vec<_> = signature.to_headers().into_iter().chain([bearer(token)]).collect();
        fix.http("POST", "/api/v1/cheated-job/", &headers, &body.to_string())
    };
    let signed = |report: &V0JobCheated, token: &str| post(report, report.signature.as_ref().unwrap(), token);
    let good = report(&uuid, &trusted, &dave());
    let away = signed(&good, &token);
    assert_eq!((away.0, detail(&away).contains("is not connected")), (503, true), "{away:?}");
    let mut validator = fix.validator(&alice());
    assert_eq!([validator.job(), validator.job()], [uuid.clone(), trusted.clone()]);
    let nil = uuid::Uuid::nil().to_string();
    let (long, longer) = ("x".repeat(32 << 10), "x".repeat(900 << 10));
    for (job, of, status, why) in [
        (&longer, &trusted, 413, "at most 65536 bytes"),
        (&uuid, &uuid, 404, "Trusted job not found"),
        (&uuid, &nil, 404, "Trusted job not found"),
        (&nil, &trusted, 404, "you have no job"),
        (&long, &trusted, 404, "which is none"),
        (&uuid, &long, 404, "which is none"),
    ] {
        let refused = signed(&report(job, of, &dave()), &token);
        assert_eq!((refused.0, detail(&refused).contains(why)), (status, true), "{why}: {refused:?}");
        assert!(detail(&refused).len() < 200, "what is long is not repeated");
    }
    assert_eq!(signed(&report(&uuid, &trusted, &key("//Eve")), &other).0, 404, "they are not Eve's jobs");
    // The SDK signs the text of the payload instead.
    let text = String::from_utf8(good.canonical_bytes()).unwrap();
    let quoted = Value::String(text).to_string();
    assert_eq!(post(&good, &Signature::over(b"else", &dave(), 6), &token).0, 400);
    assert_eq!(post(&good, &Signature::over(quoted.as_bytes(), &key("//Eve"), 6), &token).0, 403);
    let taken = signed(&good, &token);
    assert_eq!(taken, (201, json!({"job_uuid": uuid, "validator": alice().ss58()})));
    let FacilitatorToValidator::V0JobCheated(sent) = FacilitatorToValidator::decode(&validator.read()).unwrap() else {
        panic!("no report came");
    };
    assert_eq!(sent, good);
    let again = post(&good, &Signature::over(quoted.as_bytes(), &dave(), 6), &token);
    assert_eq!((again.0, detail(&again).contains("was reported already")), (400, true), "{again:?}");
}

#[test]
fn a_job_for_a_validator_that_is_away_is_refused_at_once() {
    let fix = Fixture::with(true, |config| config.hold_jobs = false);
    let token = fix.login(&dave());
    let away = fix.post_job(&token, &job(&dave()), &alice());
    assert_eq!((away.0, detail(&away).contains("is not connected")), (400, true), "{away:?}");
    assert_eq!(fix.get("/api/v1/jobs/", &token).1["count"], 0);
    let mut validator = fix.validator(&alice());
    let uuid = fix.submit(&token);
    assert_eq!(validator.job(), uuid);
    assert_eq!(fix.post_job(&token, &job(&dave()), &key("//Bob")).0, 400);
}

#[test]
fn a_job_shows_all_that_was_asked_for_and_labels_that_old_clients_know() {
    let fix = memory();
    let token = fix.login(&dave());
    let mut validator = fix.validator(&alice());
    let mut request = job(&dave());
    let inline = InlineVolume { contents: "UEsFBg==".to_owned(), relative_path: Some("in".to_owned()) };
    request.volume = Some(Volume::Multi(phalanx::protocol::MultiVolume { volumes: vec![inline.into()] }));
    let single = SingleFilePutUpload { url: "https://h/o".to_owned(), relative_path: "o".into(), signed_headers: None };
    request.output_upload = Some(OutputUpload::SingleFilePut(single));
    request.download_time_limit = 3.into();
    request.sign(&dave(), 9);
    let mut body: Value =
        serde_json::from_str(&body_of(&request, &alice().public(), "nightly build").unwrap()).unwrap();
    let mut headers = vec![bearer(&token)];
    headers.extend(request.signature.as_ref().unwrap().to_headers());
    let (status, created) = fix.http("POST", "/api/v1/job-docker/", &headers, &body.to_string());
    assert_eq!((status, &created["status"], &created["tag"]), (201, &json!("Sent"), &json!("nightly build")));
    assert_eq!(
        (&created["volumes"][0]["contents"], created["volumes"].as_array().unwrap().len()),
        (&json!("UEsFBg=="), 1)
    );
    assert_eq!(
        (&created["uploads"][0]["url"], created["uploads"].as_array().unwrap().len()),
        (&json!("https://h/o"), 1)
    );
    assert_eq!((&created["on_trusted_miner"], &created["download_time_limit"]), (&json!(false), &json!(3)));
    let uuid = created["uuid"].as_str().unwrap();
    assert_eq!(validator.job(), uuid);
    for (status, label) in [
        (S::Received, "Received"),
        (S::Accepted, "Accepted"),
        (S::ExecutorReady, "Executor Ready"),
        (S::VolumesReady, "Volumes Ready"),
        (S::StreamingReady, "Streaming Ready"),
        (S::ExecutionDone, "Execution Done"),
        (S::HordeFailed, "Failed"),
    ] {
        assert_eq!(validator.report(uuid, status), "success");
        let (_, seen) = fix.get(&format!("/api/v1/jobs/{uuid}/"), &token);
        assert_eq!(
            (&seen["status"], seen["status_history"].as_array().unwrap().last().unwrap()["status"].as_str()),
            (&json!(label), Some(status.as_str()))
        );
    }
    let tagged = fix.get("/api/v1/jobs/?tag=nightly+build", &token).1;
    assert_eq!((&tagged["count"], &tagged["results"][0]["uuid"]), (&json!(1), &json!(uuid)));
    assert_eq!(fix.get("/api/v1/jobs/?tag=other", &token).1["count"], 0);
    for wrong in [json!(1), json!("x".repeat(256))] {
        body["tag"] = wrong;
        let refused = fix.http("POST", "/api/v1/job-docker/", &headers, &body.to_string());
        assert_eq!((refused.0, detail(&refused).contains("tag should be")), (400, true), "{refused:?}");
    }
    for (method, path, status) in [("POST", "cancel/", 501), ("DELETE", "", 405)] {
        let refused = fix.http(method, &format!("/api/v1/jobs/{uuid}/{path}"), &[bearer(&token)], "");
        assert_eq!((refused.0, detail(&refused).contains("cannot be cancelled")), (status, true), "{refused:?}");
    }
}

#[test]
fn a_user_has_a_share_and_is_told_when_to_ask_again() {
    let fix = Fixture::with(true, |config| {
        config.user_quota.jobs = 2;
        config.user_rate = phalanx::link::Rate::new(8, Duration::from_secs(3600));
    });
    let mut validator = fix.validator(&alice());
    let token = fix.login(&dave());
    let uuids = [fix.submit(&token), fix.submit(&token)];
    let third = fix.post_job(&token, &job(&dave()), &alice());
    assert_eq!((third.0, detail(&third).contains("you have 2 open jobs")), (429, true), "{third:?}");
    assert_eq!([validator.job(), validator.job()], uuids);
    let eve = fix.login(&key("//Eve"));
    assert_eq!(fix.post_job(&eve, &job(&key("//Eve")), &alice()).0, 201, "Eve has her own share");
    validator.job();
    assert_eq!(validator.report(&uuids[0], S::Rejected), "success");
    fix.submit(&token);
    // With the four requests so far.
    (0..4).for_each(|_| assert_eq!(fix.get("/api/v1/jobs/", &token).0, 200));
    let often = fix.get("/api/v1/jobs/", &token);
    assert_eq!((often.0, detail(&often).contains("a user may ask 8 times")), (429, true), "{often:?}");
    assert_eq!(fix.get("/api/v1/jobs/", &eve).0, 200);
    let metrics = fix.http("GET", "/metrics", &[], "").1;
    for reason in ["quota", "rate"] {
        let line = format!("phalanx_facilitator_users_over_total{{reason=\"{reason}\"}} 1\n");
        assert!(metrics.as_str().unwrap().contains(&line), "{metrics}");
    }
}

#[test]
fn jobs_that_have_ended_are_forgotten_and_open_ones_are_not() {
    let fix = Fixture::with(true, |config| config.keep.time = Duration::ZERO);
    let mut validator = fix.validator(&alice());
    let token = fix.login(&dave());
    let uuids = [fix.submit(&token), fix.submit(&token)];
    assert_eq!([validator.job(), validator.job()], uuids);
    assert_eq!(validator.report(&uuids[0], S::Completed), "success");
    let path = |n: usize| format!("/api/v1/jobs/{}/", uuids[n]);
    crate::testkit::wait::until("it is forgotten", || fix.get(&path(0), &token).0 == 404);
    assert_eq!(fix.get(&path(1), &token).0, 200);
    assert_eq!(validator.report(&uuids[0], S::Failed), "job.not_found");
    assert_eq!(validator.report(&uuids[1], S::Received), "success");
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
fn on_the_pages_a_user_sees_the_own_jobs_an_operator_all_and_whoever_else_none() {
    let mut fix = memory();
    let [dave_token, eve_token] = ["//Dave", "//Eve"].map(|user| fix.login(&key(user)));
    let of_dave = fix.submit(&dave_token);
    let (status, posted) = fix.post_job(&eve_token, &job(&key("//Eve")), &alice());
    assert_eq!(status, 201, "{posted}");
    let of_eve = posted["uuid"].as_str().unwrap().to_owned();
    let no_token: &[(&str, String)] = &[];
    let proxied = [("X-Forwarded-For", "192.0.2.1".to_owned())];
    let look = |fix: &Fixture, headers: &[(&str, String)], expected: [bool; 2]| {
        let (status, shown) = fix.http("GET", "/status.json", headers, "");
        assert_eq!((status, &shown["jobs"]["open"]), (200, &json!(2)), "{shown}");
        let listed = shown["jobs"]["open_jobs"].as_array().unwrap();
        let in_list = [&of_dave, &of_eve].map(|uuid| listed.iter().any(|job| job["uuid"] == **uuid));
        assert_eq!((in_list, listed.len()), (expected, expected.iter().filter(|is| **is).count()), "{shown}");
        assert_eq!(shown["jobs"]["own_only"], expected != [true; 2]);
        let (status, page) = fix.http("GET", "/", headers, "");
        let page = page.as_str().unwrap();
        assert_eq!((status, [&of_dave, &of_eve].map(|uuid| page.contains(uuid.as_str()))), (200, expected), "{page}");
        // All of it, and not in what is said elsewhere either.
        let text = shown.to_string();
        assert_eq!([&of_dave, &of_eve].map(|uuid| text.contains(uuid.as_str())), expected, "{shown}");
        let is_nobody = expected == [false; 2];
        assert_eq!((shown["details"] == json!({}), shown["threads"] == json!([])), (is_nobody, is_nobody), "{shown}");
    };
    look(&fix, no_token, [true, true]);
    look(&fix, &[bearer(&dave_token)], [true, false]);
    look(&fix, &[bearer(&eve_token)], [false, true]);
    look(&fix, &proxied, [false, false]);
    assert_eq!(fix.http("GET", "/status.json", &[bearer("nonsense")], "").0, 401);
    let links = |headers: &[(&str, String)]| fix.http("GET", "/links.json", headers, "").0;
    assert_eq!((links(no_token), links(&[bearer(&dave_token)]), links(&proxied)), (200, 403, 403));
    for path in ["/metrics", "/readyz"] {
        let text = fix.http("GET", path, &proxied, "").1.to_string();
        assert!(!text.contains(&of_dave) && !text.contains(&of_eve), "{path}: {text}");
    }
    // Jobs of before a restart are their users', too; and an operator may be nobody.
    fix.stop();
    (fix.config.operators, fix.config.board) = ("none".parse().unwrap(), Board::new());
    fix.start();
    look(&fix, no_token, [false, false]);
    look(&fix, &[bearer(&dave_token)], [true, false]);
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
