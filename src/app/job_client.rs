//! The user's side of the facilitator's job API: log in, submit, ask.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::base::clock::now;
use crate::base::limits::{FACILITATOR_LINK_MESSAGE_BYTES, JOB_REQUEST_BYTES};
use crate::base::shutdown::Shutdown;
use crate::facilitator::api::submission::body_of;
use crate::identity::{KeyPair, PublicKey};
use crate::net::address;
use crate::net::http::client::{Content, HttpClient, HttpError, HttpSettings, Response};
use crate::net::proxy::Proxies;
use crate::net::tls::ClientTls;
use crate::ops::foreign::Foreign;
use crate::protocol::json::too_much;
use crate::protocol::nonce::check_login_nonce;
use crate::protocol::{DateTime, JobStatus, SignedRequest, V2JobRequest};

/// Time for one request, beyond the wait that it asks for.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// How long the facilitator is asked to wait for news of a job; it waits at most 30 s.
const NEWS_TIME: Duration = Duration::from_secs(25);

/// Jobs that one request for a list asks for.
const PAGE_SIZE: u64 = 100;

/// Bytes of a page of jobs: their messages, and what is left of their histories.
const PAGE_BYTES: usize = PAGE_SIZE as usize * (JOB_REQUEST_BYTES + (16 << 10));

/// Bytes of a job as the facilitator shows it: its result twice, in the history and by itself, each as the message
/// that it came in; its request; and a megabyte for the rest.
const JOB_BYTES: usize = 2 * FACILITATOR_LINK_MESSAGE_BYTES + JOB_REQUEST_BYTES + (1 << 20);

/// A user who talks to a facilitator.
#[derive(Clone)]
pub struct JobClient {
    http: HttpClient,
    base: String,
    key: KeyPair,
    token: String,
}

/// Without the token.
impl std::fmt::Debug for JobClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobClient").field("base", &self.base).field("key", &self.key).finish_non_exhaustive()
    }
}

/// A job as the facilitator shows it; the fields that are used here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct SubmittedJob {
    /// Its number, which is one: in its usual form.
    #[serde(deserialize_with = "uuid")]
    pub uuid: String,
    /// What happened so far, the newest last.
    pub status_history: Vec<StatusEntry>,
    /// Its output, once it has ended; may be truncated in the middle.
    pub stdout: Foreign,
    /// Its other output.
    pub stderr: Foreign,
    /// What the user calls it; mostly empty.
    #[serde(default)]
    pub tag: Foreign,
    /// When it was submitted (RFC 3339).
    #[serde(default)]
    pub created_at: Foreign,
    /// Its image.
    #[serde(default)]
    pub docker_image: Foreign,
    /// Its command.
    #[serde(default)]
    pub args: Vec<Foreign>,
    /// The class of machine that it runs on.
    #[serde(default)]
    pub executor_class: Foreign,
    /// The validator it is for (SS58).
    #[serde(default)]
    pub target_validator_hotkey: Foreign,
    /// Whether it runs on the validator's own miner.
    #[serde(default)]
    pub on_trusted_miner: bool,
    /// Seconds for its volumes; null if the facilitator does not say.
    #[serde(default)]
    pub download_time_limit: Value,
    /// Seconds until its server is ready.
    #[serde(default)]
    pub streaming_start_time_limit: Value,
    /// Seconds for its command.
    #[serde(default)]
    pub execution_time_limit: Value,
    /// Seconds for its uploads.
    #[serde(default)]
    pub upload_time_limit: Value,
    #[serde(default)]
    artifacts: Value,
}

/// Which jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Those of that tag.
    pub tag: Option<String>,
    /// Those whose newest status is one of these; all if there is none.
    pub statuses: Vec<JobStatus>,
}

/// The newest jobs of a user, the newest first, without what was reported of them.
#[derive(Debug, Clone, PartialEq)]
pub struct JobsFound {
    /// How many there are in all.
    pub count: u64,
    /// Some of them.
    pub jobs: Vec<SubmittedJob>,
}

/// A UUID that is none would be part of a path here.
fn uuid<'de, D: Deserializer<'de>>(text: D) -> Result<String, D::Error> {
    let text = String::deserialize(text)?;
    uuid::Uuid::try_parse(&text).map(|uuid| uuid.to_string()).map_err(serde::de::Error::custom)
}

/// One status of a job.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StatusEntry {
    /// The status.
    pub status: Foreign,
    /// When the facilitator got it (RFC 3339).
    pub created_at: Foreign,
    #[serde(default)]
    metadata: Value,
}

impl StatusEntry {
    /// Where the job's streaming server listens, as `203.0.113.7:6006`, and its certificate (PEM), if this tells it.
    pub fn streaming_server(&self) -> Option<(Foreign, Foreign)> {
        let details = &self.metadata["streaming_details"];
        let (host, port) = (details["streaming_server_address"].as_str()?, details["streaming_server_port"].as_u64()?);
        let address = address::join(host, u16::try_from(port).ok()?);
        Some((address.into(), details["streaming_server_cert"].as_str()?.into()))
    }
}

impl SubmittedJob {
    /// The newest status.
    pub fn status(&self) -> Foreign {
        self.status_history.last().map_or_else(|| Foreign::from("unknown"), |entry| entry.status.clone())
    }

    /// Whether nothing more will happen.
    pub fn has_ended(&self) -> bool {
        self.status().as_written().parse().is_ok_and(JobStatus::is_terminal)
    }

    /// Whether it ended well.
    pub fn is_completed(&self) -> bool {
        self.status().as_written() == JobStatus::Completed.as_str()
    }

    /// Time from the submission to the newest status.
    pub fn took(&self) -> Duration {
        let micros = |entry: Option<&StatusEntry>| {
            entry?.created_at.as_written().parse::<DateTime>().ok().map(|t| t.unix_micros())
        };
        let (first, last) = (micros(self.status_history.first()), micros(self.status_history.last()));
        let took = last.zip(first).map_or(0, |(last, first)| last.saturating_sub(first));
        Duration::from_micros(u64::try_from(took).unwrap_or(0))
    }

    /// The exit code of its command, if that ran to its end.
    pub fn exit_code(&self) -> Option<i64> {
        let metadata = &self.status_history.last()?.metadata;
        let failed = || metadata["job_failure_details"]["docker_process_exit_status"].as_i64();
        if self.is_completed() { Some(0) } else { failed() }
    }

    /// Why it did not end well, as `reason: message`.
    pub fn error(&self) -> Option<Foreign> {
        let metadata = &self.status_history.last()?.metadata;
        let kinds = ["job_rejection_details", "job_failure_details", "horde_failure_details"];
        let details = kinds.iter().map(|kind| &metadata[kind]).find(|details| details.is_object())?;
        let text = |key: &str| details[key].as_str().unwrap_or_default().to_owned();
        let (reason, message) = (text("reason"), text("message"));
        Some(if message.is_empty() { reason.into() } else { format!("{reason}: {message}").into() })
    }

    /// Its artifacts, once it has completed: the path in the container and the content, `None` for one that is not
    /// base64.
    pub fn artifacts(&self) -> impl Iterator<Item = (Foreign, Option<Vec<u8>>)> {
        let all = self.artifacts.as_object().into_iter().flatten();
        all.map(|(path, content)| {
            let content = content.as_str().and_then(|text| STANDARD.decode(text).ok());
            (path.as_str().into(), content)
        })
    }
}

impl JobClient {
    /// Logs in at `base`, as `http://127.0.0.1:8080`. Blocks until the answers, at most a minute; `stop` at cancel
    /// interrupts this and every later call.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn login(base: &str, key: KeyPair, stop: &Shutdown) -> Result<Self, HttpError> {
        Self::login_by(HttpSettings::of_chosen(ClientTls::default(), Proxies::none()), base, key, stop)
    }

    /// [`JobClient::login`] with other trust, or by a proxy.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn login_by(settings: HttpSettings, base: &str, key: KeyPair, stop: &Shutdown) -> Result<Self, HttpError> {
        let http = HttpClient::within(settings, stop.clone());
        let mut client = Self { http, base: base.trim_end_matches('/').to_owned(), key, token: String::new() };
        client.authenticate()?;
        Ok(client)
    }

    fn authenticate(&mut self) -> Result<(), HttpError> {
        #[derive(Deserialize)]
        struct Nonce {
            nonce: String,
        }
        #[derive(Deserialize)]
        struct Token {
            token: String,
        }
        let deadline = Instant::now() + REQUEST_TIME;
        let url = self.url("auth/nonce");
        let Nonce { nonce } = self.http.get(&url, &[], deadline)?.ok()?.json()?;
        // The facilitator chooses what is signed here, so it is to be good for nothing else.
        check_login_nonce(&nonce, &self.key.public())
            .map_err(|why| HttpError::Answer { url, why: format!("its login nonce is not signed: {why}") })?;
        let signature = self.key.sign(nonce.as_bytes()).to_hex();
        let body = json!({"hotkey": self.key.ss58(), "signature": signature, "nonce": nonce});
        let answer = self.http.post_json(&self.url("auth/login"), &[], &body, deadline)?;
        let Token { token } = answer.ok()?.json()?;
        self.token = token;
        Ok(())
    }

    /// Submits a job for the validator `target`; the request is signed here. Blocks until the answer, at most half a
    /// minute.
    ///
    /// # Errors
    /// See [`HttpError`]. After a broken connection or a time-out the job may have been taken nevertheless.
    pub fn submit(&mut self, request: V2JobRequest, target: &PublicKey) -> Result<SubmittedJob, HttpError> {
        self.submit_as(request, target, "")
    }

    /// [`JobClient::submit`] of a job that is called `tag` at the facilitator, if that is not empty.
    ///
    /// # Errors
    /// As [`JobClient::submit`].
    pub fn submit_as(
        &mut self,
        mut request: V2JobRequest,
        target: &PublicKey,
        tag: &str,
    ) -> Result<SubmittedJob, HttpError> {
        let now = now().wall;
        request.sign(&self.key.clone(), u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        let signature = request.signature().map(crate::protocol::Signature::to_headers);
        let url = self.url("api/v1/job-docker/");
        let body = body_of(&request, target, tag)
            .map_err(|refusal| HttpError::Request { url: url.clone(), why: refusal.to_string() })?;
        self.authorized(|http, authorization| {
            let mut headers = vec![authorization, ("Content-Type".to_owned(), "application/json".to_owned())];
            headers.extend(signature.iter().flatten().map(|(name, value)| ((*name).to_owned(), value.clone())));
            http.post(&url, &headers, Content::Bytes(body.as_bytes()), Instant::now() + REQUEST_TIME)
        })
    }

    /// The job as soon as its history has more than `seen` entries, or else after 25 s.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn news(&mut self, uuid: &str, seen: usize) -> Result<SubmittedJob, HttpError> {
        self.news_within(uuid, seen, NEWS_TIME)
    }

    fn news_within(&mut self, uuid: &str, seen: usize, time: Duration) -> Result<SubmittedJob, HttpError> {
        // Whole seconds, and never none, so that a wait is not a row of questions.
        let seconds = time.min(NEWS_TIME).as_secs().max(1);
        let url = self.url(&format!("api/v1/jobs/{uuid}/?wait={seconds}&seen={seen}"));
        self.get(&url, JOB_BYTES, NEWS_TIME + REQUEST_TIME)
    }

    /// The job once it has ended ([`SubmittedJob::has_ended`]), or else as it is after `timeout`. Blocks until then,
    /// and for the answer under way, at most half a minute more.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn wait_for(&mut self, uuid: &str, timeout: Duration) -> Result<SubmittedJob, HttpError> {
        let until = Instant::now().checked_add(timeout);
        let left = || until.map_or(NEWS_TIME, |until| until.saturating_duration_since(Instant::now()));
        let mut job = self.job(uuid)?;
        while !job.has_ended() && !left().is_zero() {
            job = self.news_within(uuid, job.status_history.len(), left())?;
        }
        Ok(job)
    }

    /// The job as it is now. Blocks until the answer, at most half a minute.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn job(&mut self, uuid: &str) -> Result<SubmittedJob, HttpError> {
        let url = self.url(&format!("api/v1/jobs/{uuid}/"));
        self.get(&url, JOB_BYTES, REQUEST_TIME)
    }

    /// The newest jobs, at most `limit`, the newest first. Blocks for a request for each hundred, at most half a minute
    /// each.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn newest(&mut self, filter: &JobFilter, limit: u64) -> Result<JobsFound, HttpError> {
        #[derive(Deserialize)]
        struct Page {
            count: u64,
            results: Vec<SubmittedJob>,
        }
        let page_size = limit.clamp(1, PAGE_SIZE);
        let mut path = format!("api/v1/jobs/?ordering=-created_at&details=false&page_size={page_size}");
        if let Some(tag) = &filter.tag {
            path += &format!("&tag={}", utf8_percent_encode(tag, NON_ALPHANUMERIC));
        }
        if !filter.statuses.is_empty() {
            let names: Vec<&str> = filter.statuses.iter().map(|status| status.as_str()).collect();
            path += &format!("&status={}", names.join(","));
        }
        let mut jobs = Vec::new();
        for page in 1.. {
            let found: Page = self.get(&self.url(&format!("{path}&page={page}")), PAGE_BYTES, REQUEST_TIME)?;
            let is_last = found.results.is_empty();
            jobs.extend(found.results);
            if is_last || jobs.len() as u64 >= limit.min(found.count) {
                jobs.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
                return Ok(JobsFound { count: found.count, jobs });
            }
        }
        unreachable!("there is a last page")
    }

    fn get<T: DeserializeOwned>(&mut self, url: &str, bytes: usize, time: Duration) -> Result<T, HttpError> {
        self.authorized(|http, authorization| {
            http.get_within(url, &[authorization], bytes as u64, Instant::now() + time)
        })
    }

    /// Sends a request with the token, and once more with a new one if that has expired.
    fn authorized<T: DeserializeOwned>(
        &mut self,
        send: impl Fn(&HttpClient, (String, String)) -> Result<Response, HttpError>,
    ) -> Result<T, HttpError> {
        let authorization = |token: &str| ("Authorization".to_owned(), format!("Bearer {token}"));
        let mut answer = send(&self.http, authorization(&self.token))?;
        if answer.status == 401 && answer.text().contains("Token expired") {
            self.authenticate()?;
            answer = send(&self.http, authorization(&self.token))?;
        }
        let answer = answer.ok()?;
        if let Some(why) = too_much(&String::from_utf8_lossy(&answer.body)) {
            let why = format!("it has {why}");
            return Err(HttpError::Answer { url: self.url("api/v1/"), why });
        }
        answer.json()
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(uuid: &str, artifacts: Value) -> Result<SubmittedJob, serde_json::Error> {
        let job = json!({"uuid": uuid, "status_history": [], "stdout": "", "stderr": "", "artifacts": artifacts});
        serde_json::from_value(job)
    }

    #[test]
    fn a_job_has_a_uuid_that_can_be_part_of_a_path() {
        let uuid = "3F3D3B38-8B0F-4A8C-A5CB-7A4C0F3B3E10";
        assert_eq!(job(uuid, json!({})).unwrap().uuid, uuid.to_lowercase());
        for wrong in ["", "..", "../../x", "a/b", "3f3d3b38-8b0f-4a8c-a5cb-7a4c0f3b3e10/.."] {
            job(wrong, json!({})).unwrap_err();
        }
    }

    #[test]
    fn artifacts_are_what_their_base64_says() {
        let job = job(&uuid::Uuid::nil().to_string(), json!({"/a/b": "AP8=", "c": "AP8", "d": null, "e": ""})).unwrap();
        let expected = [("/a/b", Some(vec![0_u8, 255])), ("c", None), ("d", None), ("e", Some(Vec::new()))];
        let expected = expected.map(|(path, content)| (Foreign::from(path), content));
        assert_eq!(job.artifacts().collect::<Vec<_>>(), expected);
        for none in [json!(null), json!([1]), json!("x")] {
            assert_eq!(self::job(&job.uuid, none).unwrap().artifacts().count(), 0);
        }
    }
}
