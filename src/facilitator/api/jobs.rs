//! What users read: one job, now or when there is news of it, and pages of jobs. Answers are sent as they are read from
//! the store, one job at a time, each when there is room for it in memory.

use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::budget::{Budget, Room};
use super::shared::{Answer, Api, Problem};
use super::view;
use crate::base::limits::JOB_REQUEST_BYTES;
use crate::base::shutdown::Shutdown;
use crate::base::waits::waiting;
use crate::facilitator::disk::StoreHandle;
use crate::net::http::{HttpRequest, HttpResponse};
use crate::protocol::JobStatus;
use crate::store::jobs::{JobHead, JobQuery, JobRow};

/// Jobs of a page if the client does not say.
const PAGE_SIZE: u64 = 10;
/// Jobs of a page at most.
const PAGE_SIZE_MAX: u64 = 256;
/// The longest wait for news of a job.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Bytes of jobs in a page, as they are kept; the rest of the page comes without what was reported of its jobs. Two of
/// the largest, or 64 with messages of the largest size.
const PAGE_BYTES: u64 = 64 << 20;

/// Reads a user's jobs.
pub(super) struct Reader {
    store: StoreHandle,
    budget: Budget,
    user: String,
    stop: Shutdown,
}

impl Reader {
    pub(super) fn new(api: &Api, user: String, stop: &Shutdown) -> Self {
        Self { store: api.store.clone(), budget: api.budget.clone(), user, stop: stop.clone() }
    }

    pub(super) fn head(&self, uuid: &str) -> Result<JobHead, Problem> {
        self.store.head(&self.user, uuid, &self.stop)?.ok_or_else(|| no_job(uuid))
    }

    /// The job, and the room that it takes while it is there.
    fn read(&self, uuid: &str, bytes: u64, details: bool) -> Result<(JobRow, Room), Problem> {
        let room = self.budget.room(&self.user, bytes, &self.stop);
        let room = room.ok_or_else(|| Problem::later(503, "too many large jobs are being read, try again later", 5))?;
        let row = self.store.job(&self.user, uuid, details, &self.stop)?.ok_or_else(|| no_job(uuid))?;
        Ok((row, room))
    }

    /// The job, without what was reported of it.
    pub(super) fn request(&self, uuid: &str) -> Result<(JobRow, Room), Problem> {
        self.read(uuid, JOB_REQUEST_BYTES as u64, false)
    }

    /// An answer with the job.
    pub(super) fn job(&self, status: u16, uuid: &str) -> Answer {
        let (row, room) = self.read(uuid, self.head(uuid)?.bytes, true)?;
        Ok(HttpResponse::streamed(status, "application/json", move |out| {
            let sent = view::job(out, &row);
            drop(room);
            sent
        }))
    }

    /// Writes the jobs of a page, but for those that are gone since it was listed.
    fn page(&self, out: &mut dyn Write, head: &str, jobs: &[(String, u64)], details: bool) -> io::Result<()> {
        out.write_all(head.as_bytes())?;
        let (mut sent, mut is_first) = (0, true);
        for (uuid, bytes) in jobs {
            let details = details && (sent + bytes <= PAGE_BYTES || is_first);
            let bytes = if details { *bytes } else { (*bytes).min(JOB_REQUEST_BYTES as u64) };
            let (row, _room) = match self.read(uuid, bytes, details) {
                Ok(read) => read,
                Err(Problem { status: 404, .. }) => continue,
                Err(problem) => return Err(io::Error::new(ErrorKind::TimedOut, problem.detail)),
            };
            if !is_first {
                out.write_all(b",")?;
            }
            view::job(out, &row)?;
            is_first = false;
            sent += bytes;
        }
        out.write_all(view::PAGE_END)
    }
}

fn no_job(uuid: &str) -> Problem {
    Problem::new(404, format!("you have no job {uuid}"))
}

/// A uuid as jobs have it; what is none is no job's, and is not repeated.
pub(super) fn uuid(text: &str) -> Result<String, Problem> {
    let uuid = uuid::Uuid::try_parse(text);
    uuid.map(|uuid| uuid.to_string()).map_err(|_| Problem::new(404, "you have no job of that uuid, which is none"))
}

impl Api {
    pub(super) fn jobs(&self, request: &HttpRequest) -> Answer {
        let user = self.user(request)?.to_ss58();
        let page = number(request, "page")?.unwrap_or(1);
        let page_size = number(request, "page_size")?.unwrap_or(PAGE_SIZE).clamp(1, PAGE_SIZE_MAX);
        let no_page = || Problem::new(404, format!("there is no page {page}"));
        let newest_first = match request.query("ordering") {
            None | Some("created_at") => false,
            Some("-created_at") => true,
            Some(_) => return Err(Problem::new(400, "ordering should be created_at or -created_at")),
        };
        let wrong = |_| Problem::new(400, "uuid should be a UUID");
        let of_uuid = request.query("uuid").map(uuid::Uuid::try_parse).transpose().map_err(wrong)?;
        let query = JobQuery {
            user: user.clone(),
            uuid: of_uuid.map(|uuid| uuid.to_string()),
            tag: request.query("tag").map(str::to_owned),
            statuses: statuses(request)?,
            newest_first,
            page: page.checked_sub(1).ok_or_else(no_page)?,
            page_size,
        };
        let details = match request.query("details") {
            None | Some("true") => true,
            Some("false") => false,
            Some(_) => return Err(Problem::new(400, "details should be true or false")),
        };
        let found = self.store.jobs(query, &request.shutdown)?;
        if found.jobs.is_empty() && page > 1 {
            return Err(no_page());
        }
        let link = |page: u64| link(self.scheme, request, page, page_size);
        let next = (page.saturating_mul(page_size) < found.count).then(|| link(page + 1));
        let previous = (page > 1).then(|| link(page - 1));
        let head = view::page_head(found.count, next.as_deref(), previous.as_deref());
        let reader = Reader::new(self, user, &request.shutdown);
        Ok(HttpResponse::streamed(200, "application/json", move |out| reader.page(out, &head, &found.jobs, details)))
    }

    pub(super) fn job(&self, request: &HttpRequest, named: &str) -> Answer {
        let user = self.user(request)?.to_ss58();
        let wait = number(request, "wait")?.map_or(Duration::ZERO, Duration::from_secs).min(WAIT_MAX);
        let seen = number(request, "seen")?.unwrap_or(0);
        let uuid = uuid(named)?;
        let reader = Reader::new(self, user, &request.shutdown);
        let deadline = Instant::now() + wait;
        if !wait.is_zero()
            && reader.head(&uuid)?.listed <= seen
            && let Some(_place) = self.place()
        {
            let waiter = self.changes.wait_for(&uuid);
            // Read after the waiting has begun, so that no news falls between.
            while reader.head(&uuid)?.listed <= seen && Instant::now() < deadline {
                let _waiting = waiting("news of a job", Some(deadline));
                select! {
                    recv(waiter.news()) -> _ => {}
                    recv(request.shutdown.drain_receiver()) -> _ => break,
                    default(deadline.saturating_duration_since(Instant::now())) => {}
                }
            }
        }
        reader.job(200, &uuid)
    }
}

/// The address of another page of the same list. A proxy before us says by which scheme it was asked.
fn link(scheme: &str, request: &HttpRequest, page: u64, page_size: u64) -> String {
    let is_https = request.header("X-Forwarded-Proto").is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let scheme = if is_https { "https" } else { scheme };
    let mut link = match request.header("Host").filter(|host| !host.is_empty()) {
        Some(host) => format!("{scheme}://{host}/api/v1/jobs/"),
        // As HTTP/1.0 may ask.
        None => "/api/v1/jobs/".to_owned(),
    };
    link += &format!("?page={page}&page_size={page_size}");
    for name in ["uuid", "tag", "status", "ordering", "details"] {
        if let Some(value) = request.query(name) {
            link += &format!("&{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        }
    }
    link
}

/// The statuses that are asked for: names or labels, in any case, separated by commas.
fn statuses(request: &HttpRequest) -> Result<Vec<String>, Problem> {
    let names = request.query("status").into_iter().flat_map(|list| list.split(','));
    let status = |name: &str| match name.trim().to_ascii_lowercase().replace(' ', "_").parse::<JobStatus>() {
        Ok(status) if status != JobStatus::Unknown => Ok(status.as_str().to_owned()),
        _ => Err(Problem::new(400, "status should be names like sent or horde_failed, separated by commas")),
    };
    // As many as there are.
    names.take(16).map(status).collect()
}

fn number(request: &HttpRequest, name: &str) -> Result<Option<u64>, Problem> {
    let parsed = request.query(name).map(str::parse).transpose();
    parsed.map_err(|_| Problem::new(400, format!("{name} should be a whole number")))
}
