//! The HTTP job API, as the official SDK (`compute-horde-sdk` 0.0.19) calls it.
//!
//! | call | does |
//! | --- | --- |
//! | `GET auth/nonce` | `{nonce}`, good for five minutes and one login |
//! | `POST auth/login` `{hotkey, signature, nonce}` | `{token}`; the signature (hex) is over the nonce's text |
//! | `POST api/v1/job-docker/` | stores and sends a job signed in the `X-CH-*` headers; 201 with the job |
//! | `GET api/v1/jobs/?page=1&page_size=10` | `{count, next, previous, results}`, newest first, 256 a page at most |
//! | `GET api/v1/jobs/{uuid}/` | one job |
//! | `POST api/v1/cheated-job/` | tells the job's validator that a miner cheated; 503 while it is not connected |
//!
//! Everything under `api/` wants `Authorization: Bearer TOKEN`, and shows users only their own jobs. Errors are
//! `{"detail": …}`; 401 with `Token expired` makes the SDK log in again.
//!
//! An extra of ours: `GET api/v1/jobs/{uuid}/?wait=SECONDS&seen=N` answers as soon as the job's `status_history` has
//! more than N entries, or after that many seconds (at most 30); so a client can follow a job without polling.

pub mod submission;
pub mod token;
pub mod view;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, select};
use serde_json::{Value, json};

use self::submission::Refusal;
use self::token::Tokens;
use super::changes::Changes;
use super::disk::{CallError, StoreHandle};
use super::router::{Dispatch, RouterStatus};
use super::router_thread::Event;
use super::waiting::Waiting;
use crate::base::clock::now;
use crate::base::lock::lock;
use crate::base::waits::waiting;
use crate::identity::{PublicKey, Signature};
use crate::net::http::{HttpRequest, HttpResponse};
use crate::ops::metrics::{Counter, Gauge};
use crate::protocol;
use crate::store::jobs::{JobRow, NewJob};

/// Jobs of a page if the client does not say.
const PAGE_SIZE: u64 = 10;
/// Jobs of a page at most.
const PAGE_SIZE_MAX: u64 = 256;
/// The longest wait for news of a job.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What the API stands on.
pub(super) struct Api {
    pub store: StoreHandle,
    pub events: Sender<Event>,
    /// What the router was like after its last input.
    pub status: Arc<Mutex<RouterStatus>>,
    pub changes: Changes,
    pub tokens: Mutex<Tokens>,
    pub users: Arc<Mutex<HashSet<PublicKey>>>,
    pub waiting: Waiting,
    /// Requests that wait for news, and how many may: beyond it they are answered at once.
    pub waiters: AtomicUsize,
    pub waiters_max: usize,
    pub waiting_requests: Gauge,
    pub submitted: Counter,
    pub refused: Counter,
}

/// Counts one request that waits for news, until it is dropped.
struct Place<'a>(&'a Api);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let before = self.0.waiters.fetch_sub(1, Ordering::Relaxed);
        self.0.waiting_requests.set(before - 1);
    }
}

/// An answer that is no success.
struct Problem(u16, String);

type Answer = Result<HttpResponse, Problem>;

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Problem(503, error.to_string())
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Signatory(_) => 403,
            Refusal::Size(_) => 413,
            _ => 400,
        };
        Problem(status, refusal.to_string())
    }
}

impl From<Problem> for HttpResponse {
    fn from(Problem(status, detail): Problem) -> Self {
        HttpResponse::json(status, &json!({ "detail": detail }))
    }
}

fn json_text(status: u16, text: String) -> HttpResponse {
    HttpResponse::new(status, "application/json", text)
}

/// Seconds since 1970.
fn unix_seconds() -> u64 {
    now().wall.as_secs()
}

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
            _ => return Problem(404, format!("there is nothing at {}", request.path)).into(),
        };
        if request.method != method && !(request.method == "HEAD" && method == "GET") {
            let problem: HttpResponse = Problem(405, format!("use {method} at {}", request.path)).into();
            return problem.with_header("Allow", method);
        }
        answer().unwrap_or_else(HttpResponse::from)
    }

    fn nonce(&self) -> Answer {
        let nonce = lock(&self.tokens).nonce(unix_seconds());
        Ok(HttpResponse::json(200, &json!({ "nonce": nonce })))
    }

    fn login(&self, request: &HttpRequest) -> Answer {
        let now = unix_seconds();
        let body: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
        let (Some(hotkey), Some(signature), Some(nonce)) =
            (body["hotkey"].as_str(), body["signature"].as_str(), body["nonce"].as_str())
        else {
            return Err(Problem(400, "the body should be a JSON object with hotkey, signature and nonce".to_owned()));
        };
        let user = PublicKey::from_ss58(hotkey).map_err(|error| Problem(400, format!("hotkey: {error}")))?;
        if !lock(&self.tokens).check_nonce(nonce, now) {
            return Err(Problem(401, "the nonce was not made here, has expired or was used: get a new one".to_owned()));
        }
        // The SDK leaves the 0x out.
        let hex = signature.strip_prefix("0x").unwrap_or(signature);
        let signature =
            Signature::from_hex(&format!("0x{hex}")).map_err(|error| Problem(400, format!("signature: {error}")))?;
        if !user.verify(nonce.as_bytes(), &signature) {
            return Err(Problem(401, format!("the signature is not by {hotkey} over the nonce")));
        }
        if !lock(&self.users).contains(&user) {
            return Err(Problem(403, format!("{hotkey} is not a user of this facilitator")));
        }
        let mut tokens = lock(&self.tokens);
        if !tokens.spend(nonce, now) {
            return Err(Problem(401, "the nonce was used: get a new one".to_owned()));
        }
        Ok(HttpResponse::json(200, &json!({ "token": tokens.issue(hotkey, now) })))
    }

    /// The user who is logged in.
    fn user(&self, request: &HttpRequest) -> Result<PublicKey, Problem> {
        let credentials = request.header("Authorization").and_then(|value| value.split_once(' '));
        let (_, token) = credentials
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"))
            .ok_or_else(|| Problem(401, "log in first: the header Authorization: Bearer is missing".to_owned()))?;
        let user =
            lock(&self.tokens).user(token.trim(), unix_seconds()).map_err(|error| Problem(401, error.to_string()))?;
        match PublicKey::from_ss58(&user) {
            Ok(user) if lock(&self.users).contains(&user) => Ok(user),
            _ => Err(Problem(403, format!("{user} is not a user of this facilitator any more"))),
        }
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
        let submission = submission::job(&request.body, signature, user, &uuid)?;
        let validator = submission.validator;
        if !lock(&self.status).validators.contains(&validator) {
            return Err(Problem(
                400,
                format!("target_validator_hotkey: {validator} is not a validator of this facilitator"),
            ));
        }
        let ticket = self
            .waiting
            .enter(submission.text.len())
            .ok_or_else(|| Problem(503, "too many jobs wait for their validators, try again later".to_owned()))?;
        let job = NewJob {
            uuid: uuid.clone(),
            user: user.to_ss58(),
            validator: validator.to_ss58(),
            request: submission.text.clone(),
            created_at: now().unix_micros(),
        };
        let job_time = submission.job_time;
        let dispatch = Dispatch { uuid: uuid.clone(), validator, text: submission.text, job_time, ticket };
        self.store.insert(job, dispatch, &request.shutdown)?;
        let row = self.read(request, &user, &uuid)?;
        Ok(json_text(201, view::job(&row)))
    }

    fn cheated(&self, request: &HttpRequest) -> Answer {
        let user = self.user(request)?;
        let (report, text) = submission::cheated(&request.body, signature(request)?, user)?;
        let job = self.read(request, &user, &report.job_uuid)?;
        let validator = PublicKey::from_ss58(&job.job.validator).map_err(|error| Problem(500, error.to_string()))?;
        let (reply, sent) = bounded(1);
        let _waiting = waiting("the router", None);
        select! {
            send(self.events, Event::SendOnce { validator, text, reply }) -> _ => {}
            recv(request.shutdown.cancel_receiver()) -> _ => {}
        }
        let sent = select! {
            recv(sent) -> sent => sent.unwrap_or(false),
            recv(request.shutdown.cancel_receiver()) -> _ => false,
        };
        match sent {
            true => {
                Ok(HttpResponse::json(200, &json!({ "job_uuid": report.job_uuid, "validator": job.job.validator })))
            }
            false => Err(Problem(503, format!("validator {validator} is not connected, try again later"))),
        }
    }

    fn jobs(&self, request: &HttpRequest) -> Answer {
        let user = self.user(request)?;
        let page = number(request, "page")?.unwrap_or(1);
        let page_size = number(request, "page_size")?.unwrap_or(PAGE_SIZE).clamp(1, PAGE_SIZE_MAX);
        let no_page = || Problem(404, format!("there is no page {page}"));
        let index = page.checked_sub(1).ok_or_else(no_page)?;
        let found = self.store.jobs(&user.to_ss58(), index, page_size, &request.shutdown)?;
        if found.jobs.is_empty() && page > 1 {
            return Err(no_page());
        }
        Ok(json_text(200, view::page(&found, page, page_size)))
    }

    fn job(&self, request: &HttpRequest, uuid: &str) -> Answer {
        let user = self.user(request)?;
        let wait = number(request, "wait")?.map_or(Duration::ZERO, Duration::from_secs).min(WAIT_MAX);
        let seen = number(request, "seen")?.unwrap_or(0);
        let deadline = Instant::now() + wait;
        let mut row = self.read(request, &user, uuid)?;
        let fresh = |row: &JobRow| row.statuses.iter().filter(|status| view::is_listed(status)).count() as u64 > seen;
        if !wait.is_zero()
            && !fresh(&row)
            && let Some(_place) = self.place()
        {
            let waiter = self.changes.wait_for(uuid);
            loop {
                // Read after the waiting has begun, so that no news falls between.
                row = self.read(request, &user, uuid)?;
                if fresh(&row) || Instant::now() >= deadline {
                    break;
                }
                let _waiting = waiting("news of a job", Some(deadline));
                select! {
                    recv(waiter.news()) -> _ => {}
                    recv(request.shutdown.drain_receiver()) -> _ => break,
                    default(deadline.saturating_duration_since(Instant::now())) => {}
                }
            }
        }
        Ok(json_text(200, view::job(&row)))
    }

    fn read(&self, request: &HttpRequest, user: &PublicKey, uuid: &str) -> Result<JobRow, Problem> {
        let row = self.store.job(&user.to_ss58(), uuid, &request.shutdown)?;
        row.ok_or_else(|| Problem(404, format!("you have no job {uuid}")))
    }

    /// A place among the requests that wait for news, if there is one.
    fn place(&self) -> Option<Place<'_>> {
        let before = self.waiters.fetch_add(1, Ordering::Relaxed);
        self.waiting_requests.set(before + 1);
        let place = Place(self);
        (before < self.waiters_max).then_some(place)
    }
}

fn signature(request: &HttpRequest) -> Result<protocol::Signature, Problem> {
    protocol::Signature::from_headers(|name| request.header(name)).map_err(|error| Problem(400, error.to_string()))
}

fn number(request: &HttpRequest, name: &str) -> Result<Option<u64>, Problem> {
    let parsed = request.query(name).map(str::parse).transpose();
    parsed.map_err(|_| Problem(400, format!("{name} should be a whole number")))
}
