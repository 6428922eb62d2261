//! A file or an HTTP endpoint that names miners.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::list::{parse_miners, parse_miners_json};
use crate::base::rng::Rng;
use crate::base::small_file;
use crate::base::stamp::Stamp;
use crate::base::text::{self, truncate};
use crate::net::http::client::HttpClient;
use crate::ops::redact;
use crate::validator::routing::MinerAddress;

/// Bytes of a list of miners: some 10,000 miners.
const LIST_BYTES: u64 = 2 << 20;

/// How often a file is looked at; one look costs a `stat`.
const FILE_INTERVAL: Duration = Duration::from_secs(5);

/// For how long a file must not change before it is read: who writes it in pieces is done by then.
const SETTLE_TIME: Duration = Duration::from_secs(1);

/// What one look may take.
pub const LOOK_TIME: Duration = Duration::from_secs(10);

/// Bytes of what is said of a list that cannot be used.
const PROBLEM_BYTES: usize = 600;

/// Bytes of an `ETag` that is remembered.
const ETAG_BYTES: usize = 1024;

/// A list of miners cannot be used; one line that names where it is, the entry and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {problem}")]
pub struct MinersError {
    /// The file or the address, without a password.
    pub origin: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl MinersError {
    /// The problem may quote what somebody else wrote, so it is cut.
    fn new(origin: String, mut problem: String) -> Self {
        truncate(&mut problem, PROBLEM_BYTES);
        Self { origin, problem }
    }
}

/// Something that names miners.
pub trait MinerSource: Send {
    /// Where it is, for people: without a password.
    fn origin(&self) -> String;

    /// The miners; `None` if they are as at the last look that gave some, unless `whole` asks for them in any case. An
    /// empty list is an error: a validator without miners is a mistake somewhere. Blocks for at most [`LOOK_TIME`].
    ///
    /// # Errors
    /// [`MinersError`]; the same at each look as long as the same is wrong.
    fn look(&mut self, whole: bool) -> Result<Option<Vec<MinerAddress>>, MinersError>;

    /// How long until the next look.
    fn next_look(&mut self) -> Duration;
}

/// Reads and checks a miners file.
///
/// # Errors
/// [`MinersError`] for the first problem in the order of the file.
pub fn load_miners(path: &Path) -> Result<Vec<MinerAddress>, MinersError> {
    let fail = |problem: String| MinersError::new(format!("miners file {}", path.display()), problem);
    let unreadable = |e: std::io::Error| fail(format!("cannot read it: {e}"));
    let bytes = small_file::read(path, LIST_BYTES).map_err(unreadable)?;
    parse_miners(text::of_file(&bytes).map_err(fail)?).map_err(fail)
}

fn not_empty(origin: String, miners: Vec<MinerAddress>) -> Result<Vec<MinerAddress>, MinersError> {
    match miners.is_empty() {
        true => Err(MinersError::new(origin, "it names no miner; name at least one".to_owned())),
        false => Ok(miners),
    }
}

/// A miners file. It is read again when it has changed and then stayed as it is for a second; a pipe is read once.
#[derive(Debug)]
pub struct MinerFile {
    path: PathBuf,
    /// It was read, or at least that was tried.
    is_read: bool,
    /// As it was when it was read last; `None` if it could not be looked at.
    read: Option<Stamp>,
    /// What was wrong then.
    trouble: Option<MinersError>,
    /// As it was at the last look, if it has changed since it was read.
    changed: Option<Stamp>,
}

impl MinerFile {
    /// A file of this name, there or not.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), is_read: false, read: None, trouble: None, changed: None }
    }
}

impl MinerSource for MinerFile {
    fn origin(&self) -> String {
        self.path.display().to_string()
    }

    fn look(&mut self, whole: bool) -> Result<Option<Vec<MinerAddress>>, MinersError> {
        // Why it cannot be looked at, the read says.
        let now = std::fs::metadata(&self.path).ok();
        // A pipe has no second list, and its open would wait for a writer.
        if self.is_read && now.as_ref().is_some_and(|now| !now.is_file()) {
            let now = now.map(Stamp::from);
            // Of a pipe that was read nothing is wrong until somebody wants it read again.
            if whole || self.read.map(|read| read.file) != now.map(|now| now.file) {
                let why = "it is not a regular file, so it is not read again";
                self.trouble = Some(MinersError::new(format!("miners file {}", self.path.display()), why.to_owned()));
                // The file that comes back is read, also if it is the one that was there before.
                self.read = now;
            }
            return self.trouble.clone().map_or(Ok(None), Err);
        }
        let now = now.map(Stamp::from);
        let is_same = now.is_some() && now == self.read;
        let has_settled = now.is_none() || now == self.changed;
        self.changed = now.filter(|_| !is_same);
        if !whole && (is_same || !has_settled) {
            return self.trouble.clone().map_or(Ok(None), Err);
        }
        (self.is_read, self.read, self.changed) = (true, now, None);
        let miners = load_miners(&self.path);
        let miners = miners.and_then(|miners| not_empty(format!("miners file {}", self.path.display()), miners));
        self.trouble = miners.as_ref().err().cloned();
        miners.map(Some)
    }

    fn next_look(&mut self) -> Duration {
        if self.changed.is_some() { SETTLE_TIME } else { FILE_INTERVAL }
    }
}

/// An HTTP or HTTPS address that answers with a list of miners as JSON. It is asked at an interval, give or take a
/// fifth, so that many validators do not ask at once; by its `ETag`, if it gives one.
#[derive(Debug)]
pub struct MinersUrl {
    url: String,
    client: HttpClient,
    interval: Duration,
    etag: Option<String>,
    rng: Rng,
}

impl MinersUrl {
    /// The list at this address; the client's signal interrupts a look.
    pub fn new(url: impl Into<String>, client: HttpClient, interval: Duration) -> Self {
        Self { url: url.into(), client, interval, etag: None, rng: Rng::from_entropy() }
    }
}

impl MinerSource for MinersUrl {
    fn origin(&self) -> String {
        // A query may hold a token.
        let shown = self.url.split(['?', '#']).next().unwrap_or_default();
        redact::secrets(shown).into_owned()
    }

    fn look(&mut self, whole: bool) -> Result<Option<Vec<MinerAddress>>, MinersError> {
        let fail = |problem: String| MinersError::new(format!("miners of {}", self.origin()), problem);
        let etag = self.etag.as_ref().filter(|_| !whole);
        let mut headers = vec![("accept".to_owned(), "application/json".to_owned())];
        headers.extend(etag.map(|etag| ("if-none-match".to_owned(), etag.clone())));
        let answer = self.client.get_within(&self.url, &headers, LIST_BYTES, Instant::now() + LOOK_TIME);
        let answer = answer.map_err(|e| fail(e.to_string()))?;
        if answer.status == 304 && etag.is_some() {
            return Ok(None);
        }
        let answer = answer.ok().map_err(|e| fail(e.to_string()))?;
        let miners = parse_miners_json(&answer.body).map_err(fail)?;
        let miners = not_empty(format!("miners of {}", self.origin()), miners)?;
        let etag = answer.headers.into_iter().find(|(name, _)| name == "etag").map(|(_, etag)| etag);
        self.etag = etag.filter(|etag| etag.len() <= ETAG_BYTES);
        Ok(Some(miners))
    }

    fn next_look(&mut self) -> Duration {
        self.interval.mul_f64(0.8 + 0.4 * self.rng.unit())
    }
}
