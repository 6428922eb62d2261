//! What all calls of the API share: what it stands on, who is logged in, and answers that are no success.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_channel::Sender;
use serde_json::json;

use super::budget::Budget;
use super::submission::Refusal;
use super::token::Tokens;
use crate::base::clock::now;
use crate::base::lock::lock;
use crate::base::text::truncated;
use crate::facilitator::changes::Changes;
use crate::facilitator::disk::{CallError, StoreHandle};
use crate::facilitator::operators::Operators;
use crate::facilitator::router::RouterStatus;
use crate::facilitator::router_thread::Event;
use crate::facilitator::waiting::Waiting;
use crate::identity::PublicKey;
use crate::link::{Buckets, Rate};
use crate::net::http::{BodyError, HttpRequest, HttpResponse};
use crate::ops::jobs::Jobs;
use crate::ops::metrics::{Counter, Gauge};
use crate::store::jobs::Quota;

/// Bytes of an error's text: it may repeat what a user wrote.
const DETAIL_BYTES: usize = 1000;

/// What the API stands on.
pub(in crate::facilitator) struct Api {
    /// The jobs that are shown.
    pub shown: Jobs,
    /// How the API's own addresses begin, unless a proxy before it says otherwise.
    pub scheme: &'static str,
    pub store: StoreHandle,
    pub events: Sender<Event>,
    /// What the router was like after its last input.
    pub status: Arc<Mutex<RouterStatus>>,
    pub changes: Changes,
    pub tokens: Mutex<Tokens>,
    pub users: Arc<Mutex<HashSet<PublicKey>>>,
    pub waiting: Waiting,
    /// Jobs in memory on their way to users.
    pub budget: Budget,
    /// How often each user may ask.
    pub rates: Mutex<Buckets<PublicKey>>,
    /// How much of each user may be open.
    pub quota: Quota,
    /// Who sees the jobs of all users on the pages.
    pub operators: Operators,
    /// Whether jobs are taken for validators that are not connected.
    pub hold_jobs: bool,
    /// Requests that wait for news, and how many may: beyond it they are answered at once.
    pub waiters: AtomicUsize,
    pub waiters_max: usize,
    pub waiting_requests: Gauge,
    pub submitted: Counter,
    pub refused: Counter,
    pub over_quota: Counter,
    pub over_rate: Counter,
}

/// Counts one request that waits for news, until it is dropped.
pub(super) struct Place<'a>(&'a Api);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let before = self.0.waiters.fetch_sub(1, Ordering::Relaxed);
        self.0.waiting_requests.set(before - 1);
    }
}

/// An answer that is no success.
pub(super) struct Problem {
    pub status: u16,
    pub detail: String,
    /// Seconds after which it may be otherwise.
    retry: Option<u64>,
}

impl Problem {
    pub(super) fn new(status: u16, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), retry: None }
    }

    pub(super) fn later(status: u16, detail: impl Into<String>, seconds: u64) -> Self {
        Self { retry: Some(seconds), ..Self::new(status, detail) }
    }
}

pub(super) type Answer = Result<HttpResponse, Problem>;

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Problem::later(503, error.to_string(), 1)
    }
}

impl From<BodyError> for Problem {
    fn from(BodyError { status, why }: BodyError) -> Self {
        match status {
            503 => Problem::later(status, why, 1),
            _ => Problem::new(status, why),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Signatory(_) => 403,
            Refusal::Size(_) => 413,
            _ => 400,
        };
        Problem::new(status, refusal.to_string())
    }
}

impl From<Problem> for HttpResponse {
    fn from(Problem { status, detail, retry }: Problem) -> Self {
        let answer = HttpResponse::json(status, &json!({ "detail": truncated(&detail, DETAIL_BYTES) }));
        match retry {
            Some(seconds) => answer.with_header("Retry-After", seconds.to_string()),
            None => answer,
        }
    }
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    now().wall.as_secs()
}

impl Api {
    /// The user who is logged in, and whose request counts.
    pub(super) fn user(&self, request: &HttpRequest) -> Result<PublicKey, Problem> {
        let credentials = request.header("Authorization").and_then(|value| value.split_once(' '));
        let (_, token) = credentials
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"))
            .ok_or_else(|| Problem::new(401, "log in first: the header Authorization: Bearer is missing"))?;
        let user = lock(&self.tokens)
            .user(token.trim(), unix_seconds())
            .map_err(|error| Problem::new(401, error.to_string()))?;
        let user = match PublicKey::from_ss58(&user) {
            Ok(user) if lock(&self.users).contains(&user) => user,
            _ => return Err(Problem::new(403, format!("{user} is not a user of this facilitator any more"))),
        };
        let mut rates = lock(&self.rates);
        if rates.take(user, Instant::now()) {
            let has_place = request.known_as(&user.to_ss58());
            let why = "a user may have half of the requests in work, try again later";
            return has_place.then_some(user).ok_or_else(|| Problem::later(503, why, 1));
        }
        self.over_rate.inc();
        let Rate { count, period } = rates.rate();
        let why = format!("a user may ask {count} times in {:?}, and over time no more often", period);
        Err(Problem::later(429, why, (period / count.max(1)).as_secs() + 1))
    }

    /// A place among the requests that wait for news, if there is one.
    pub(super) fn place(&self) -> Option<Place<'_>> {
        let before = self.waiters.fetch_add(1, Ordering::Relaxed);
        self.waiting_requests.set(before + 1);
        let place = Place(self);
        (before < self.waiters_max).then_some(place)
    }
}
