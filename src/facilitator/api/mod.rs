//! The HTTP job API, as the official SDK (`compute-horde-sdk` 0.0.19) calls it.
//!
//! | call | does |
//! | --- | --- |
//! | `GET auth/nonce` | `{nonce}`, good for five minutes and one login |
//! | `POST auth/login` `{hotkey, signature, nonce}` | `{token}`; the signature (hex) is over the nonce's text |
//! | `POST api/v1/job-docker/` | stores and sends a job signed in the `X-CH-*` headers; 201 with the job |
//! | `GET api/v1/jobs/?page=1&page_size=10` | `{count, next, previous, results}`, newest last, 256 a page at most |
//! | `GET api/v1/jobs/{uuid}/` | one job |
//! | `POST api/v1/cheated-job/` | tells the job's validator that a miner cheated; 503 while it is not connected |
//!
//! Everything under `api/` wants `Authorization: Bearer TOKEN`, and shows users only their own jobs. Errors are
//! `{"detail": …}`; 401 with `Token expired` makes the SDK log in again. `docs/facilitator-api.md` has all fields,
//! filters and refusals.
//!
//! Extras of ours: `GET api/v1/jobs/{uuid}/?wait=SECONDS&seen=N` answers as soon as the job's `status_history` has more
//! than N entries, or after that many seconds (at most 30); so a client can follow a job without polling. A list takes
//! `status=` and `ordering=-created_at`.
//!
//! * `shared`: what all calls share. [`submission`]: what users post. [`token`]: nonces and tokens.
//! * `jobs`: what users read. `budget`: how much of it is in memory at a time. [`view`]: a job as JSON.
//! * `viewers`: whose jobs the pages beside the API list, and to whom.

mod budget;
mod jobs;
mod shared;
pub mod submission;
pub mod token;
pub mod view;
mod viewers;

use std::time::Instant;

use crossbeam_channel::{bounded, select};
use serde_json::{Value, json};

pub(crate) use self::budget::Budget;
use self::jobs::Reader;
pub(super) use self::shared::Api;
use self::shared::{Answer, Problem, unix_seconds};
use self::submission::Submission;
use super::router::Dispatch;
use super::router_thread::Event;
use crate::base::clock::now;
use crate::base::limits::JOB_REQUEST_BYTES;
use crate::base::lock::lock;
use crate::base::waits::waiting;
use crate::identity::{PublicKey, Signature};
use crate::net::http::{HttpRequest, HttpResponse};
use crate::ops::jobs::JobFacts;
use crate::protocol;
use crate::protocol::{FacilitatorToValidator, V2JobRequest};
use crate::store::jobs::{InsertOutcome, NewJob, Quota, SENT};

/// Bytes of a login: an address, a signature, a nonce.
const LOGIN_BYTES: usize = 4 << 10;

/// Bytes of the body of a job: twice what a validator gets, because spaces and escapes do not count there.
const JOB_BYTES: usize = 2 * JOB_REQUEST_BYTES;

/// Bytes of the body of a report: three uuids and the details.
const REPORT_BYTES: usize = 64 << 10;

/// Seconds after which a user whose quota is used up may ask again: a job takes some seconds at the least.
const QUOTA_RETRY: u64 = 5;

impl Api {
    /// Answers a request; waits for the disk, and for news if asked to.
    pub(super) fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let path: Vec<&str> = request.path.split('/').filter(|part| !part.is_empty()).collect();
        let (method, answer): (_, &dyn Fn() -> Answer) = match path.as_slice() {
            ["auth", "nonce"] => ("GET", &|| self.nonce()),
            ["auth", "login"] => ("POST", &|| self.login(request)),
            ["api", "v1", "job-docker"] => ("POST", &|| self.submit(request)),
            ["api", "v1", "cheated-job"] => ("POST", &|| self.cheated(request)),
            ["api", "v1", "jobs"] => ("GET", &|| self.jobs(request)),
            ["api", "v1", "jobs", uuid] => ("GET", &|| self.job(request, uuid)),
            ["api", "v1", "jobs", _, "cancel"] => ("POST", &|| self.user(request).and(Err(cannot_cancel()))),
            _ => return Problem::new(404, format!("there is nothing at {}", request.path)).into(),
        };
        if request.method != method && !(request.method == "HEAD" && method == "GET") {
            let why = match request.method.as_str() {
                "DELETE" if matches!(path[..], ["api", "v1", "jobs", _, ..]) => cannot_cancel().detail,
                _ => format!("use {method} at {}", request.path),
            };
            return HttpResponse::from(Problem::new(405, why)).with_header("Allow", method);
        }
        answer().unwrap_or_else(HttpResponse::from)
    }

    fn nonce(&self) -> Answer {
        let nonce = lock(&self.tokens).nonce(unix_seconds());
        Ok(HttpResponse::json(200, &json!({ "nonce": nonce })))
    }

    fn login(&self, request: &HttpRequest) -> Answer {
        let now = unix_seconds();
        let body: Value = serde_json::from_slice(&request.body(LOGIN_BYTES)?).unwrap_or(Value::Null);
        let (Some(hotkey), Some(signature), Some(nonce)) =
            (body["hotkey"].as_str(), body["signature"].as_str(), body["nonce"].as_str())
        else {
            return Err(Problem::new(400, "the body should be a JSON object with hotkey, signature and nonce"));
        };
        let user = PublicKey::from_ss58(hotkey).map_err(|error| Problem::new(400, format!("hotkey: {error}")))?;
        if !lock(&self.tokens).check_nonce(nonce, now) {
            return Err(Problem::new(401, "the nonce was not made here, has expired or was used: get a new one"));
        }
        // The SDK leaves the 0x out.
        let hex = signature.strip_prefix("0x").unwrap_or(signature);
        let signature = Signature::from_hex(&format!("0x{hex}"))
            .map_err(|error| Problem::new(400, format!("signature: {error}")))?;
        if !user.verify(nonce.as_bytes(), &signature) {
            return Err(Problem::new(401, format!("the signature is not by {hotkey} over the nonce")));
        }
        if !lock(&self.users).contains(&user) {
            return Err(Problem::new(403, format!("{hotkey} is not a user of this facilitator")));
        }
        let mut tokens = lock(&self.tokens);
        if !tokens.spend(nonce, now) {
            return Err(Problem::new(401, "the nonce was used: get a new one"));
        }
        Ok(HttpResponse::json(200, &json!({ "token": tokens.issue(hotkey, now) })))
    }

    fn submit(&self, request: &HttpRequest) -> Answer {
        let outcome = self.try_submit(request);
        if outcome.is_ok() {
            self.submitted.inc()
        } else {
            self.refused.inc()
        }
        outcome
    }

    fn try_submit(&self, request: &HttpRequest) -> Answer {
        let user = self.user(request)?;
        let signature = signature(request)?;
        let uuid = uuid::Uuid::new_v4().to_string();
        let submission = submission::job(&request.body(JOB_BYTES)?, signature, user, &uuid)?;
        let Submission { validator, text, job_time, tag, class, namespace } = submission;
        self.check_validator(&validator)?;
        let shown_tag = tag.clone();
        let ticket = self.waiting.enter(text.len()).ok_or_else(|| {
            Problem::later(503, "too many jobs wait for their validators, try again later", QUOTA_RETRY)
        })?;
        let job = NewJob {
            uuid: uuid.clone(),
            user: user.to_ss58(),
            validator: validator.to_ss58(),
            request: text.clone(),
            tag,
            created_at: now().unix_micros(),
        };
        let dispatch = Dispatch { uuid: uuid.clone(), validator, text, job_time, ticket };
        // Before its validator can report anything of it.
        let tag = if shown_tag.is_empty() { namespace.unwrap_or_default() } else { shown_tag };
        let (peer, owner) = (validator.to_ss58(), user.to_ss58());
        let facts = JobFacts { peer: &peer, class: class.as_str(), tag: &tag, user: &owner };
        self.shown.begin(uuid.as_str(), facts, SENT);
        let inserted = self.store.insert(job, dispatch, &request.shutdown);
        if !matches!(inserted, Ok(InsertOutcome::Stored)) {
            self.shown.forget(uuid.as_str());
        }
        match inserted? {
            InsertOutcome::Stored => Reader::new(self, owner, &request.shutdown).job(201, &uuid),
            InsertOutcome::OverQuota { jobs, bytes } => {
                self.over_quota.inc();
                let Quota { jobs: most, bytes: most_bytes } = self.quota;
                let why = format!(
                    "you have {jobs} open jobs with {bytes} bytes, and may have {most} with {most_bytes}: try again \
                     when one has ended"
                );
                Err(Problem::later(429, why, QUOTA_RETRY))
            }
        }
    }

    /// Whether jobs are taken for it now.
    fn check_validator(&self, validator: &PublicKey) -> Result<(), Problem> {
        let status = lock(&self.status);
        let problem = if !status.validators.contains(validator) {
            "is not a validator of this facilitator"
        } else if !self.hold_jobs && !status.reaches(validator, Instant::now()) {
            "is not connected, try again later or name another one"
        } else {
            return Ok(());
        };
        Err(Problem::new(400, format!("target_validator_hotkey: {validator} {problem}")))
    }

    fn cheated(&self, request: &HttpRequest) -> Answer {
        let user = self.user(request)?;
        let (report, text) = submission::cheated(&request.body(REPORT_BYTES)?, signature(request)?, user)?;
        let reader = Reader::new(self, user.to_ss58(), &request.shutdown);
        let (uuid, trusted) = (jobs::uuid(&report.job_uuid)?, jobs::uuid(&report.trusted_job_uuid)?);
        let of_job = reader.request(&uuid)?.0.job.validator;
        let no_trusted =
            || Problem::new(404, "Trusted job not found: it should be a job of yours with on_trusted_miner");
        let trusted_job = match reader.request(&trusted) {
            Err(Problem { status: 404, .. }) => return Err(no_trusted()),
            read => read?.0.job,
        };
        let on_trusted_miner = match FacilitatorToValidator::decode(&trusted_job.request) {
            Ok(FacilitatorToValidator::V2JobRequest(V2JobRequest { on_trusted_miner, .. })) => on_trusted_miner,
            _ => false,
        };
        if !on_trusted_miner {
            return Err(no_trusted());
        }
        let twice = || Problem::new(400, format!("job {uuid} was reported already"));
        if reader.head(&uuid)?.reported {
            return Err(twice());
        }
        let validator = PublicKey::from_ss58(&of_job).map_err(|error| Problem::new(500, error.to_string()))?;
        if !self.send_once(request, validator, text) {
            let why = format!("validator {validator} is not connected, try again later");
            return Err(Problem::later(503, why, QUOTA_RETRY));
        }
        // Noted only now, so that a report that could not be sent can be repeated.
        match self.store.report_cheat(&uuid, &trusted, now().unix_micros(), &request.shutdown)? {
            true => Ok(HttpResponse::json(201, &json!({ "job_uuid": uuid, "validator": of_job }))),
            false => Err(twice()),
        }
    }

    /// Whether the text has gone to the validator.
    fn send_once(&self, request: &HttpRequest, validator: PublicKey, text: String) -> bool {
        let (reply, sent) = bounded(1);
        let _waiting = waiting("the router", None);
        select! {
            send(self.events, Event::SendOnce { validator, text, reply }) -> _ => {}
            recv(request.shutdown.cancel_receiver()) -> _ => {}
        }
        select! {
            recv(sent) -> sent => sent.unwrap_or(false),
            recv(request.shutdown.cancel_receiver()) -> _ => false,
        }
    }
}

fn cannot_cancel() -> Problem {
    Problem::new(
        501,
        "a job cannot be cancelled: the network has no message for it. It ends by itself within its time limits",
    )
}

fn signature(request: &HttpRequest) -> Result<protocol::Signature, Problem> {
    protocol::Signature::from_headers(|name| request.header(name)).map_err(|error| Problem::new(400, error.to_string()))
}
