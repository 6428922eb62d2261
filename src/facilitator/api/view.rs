//! A kept job as the JSON that the official SDK reads, written piece by piece.
//!
//! The SDK takes the last entry of `status_history` for the job's status and knows no status `unknown`; older ones take
//! `status`, and know its labels only. So the history holds what led to the job's end and nothing behind it; late and
//! unknown statuses are listed apart, in `other_statuses`.
//!
//! What is kept is JSON of ours already, so its parts are copied and never built as values.

use std::io::{self, Write};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::protocol::json::{Style, Writer};
use crate::protocol::{DateTime, JobStatus};
use crate::store::jobs::{JobRow, StatusRow};

/// Whether a status is part of the history.
pub fn is_listed(status: &StatusRow) -> bool {
    !status.late && status.status != JobStatus::Unknown.as_str()
}

/// A status as the field `status` has it, and as the SDK of 2024 knows it.
pub fn label(status: JobStatus) -> &'static str {
    match status {
        JobStatus::Unknown => "Unknown",
        JobStatus::Sent => "Sent",
        JobStatus::Received => "Received",
        JobStatus::Accepted => "Accepted",
        JobStatus::ExecutorReady => "Executor Ready",
        JobStatus::StreamingReady => "Streaming Ready",
        JobStatus::VolumesReady => "Volumes Ready",
        JobStatus::ExecutionDone => "Execution Done",
        JobStatus::Completed => "Completed",
        JobStatus::Rejected => "Rejected",
        // The older ones have no other word for it.
        JobStatus::Failed | JobStatus::HordeFailed => "Failed",
    }
}

/// The beginning of a page, up to its jobs.
pub fn page_head(count: u64, next: Option<&str>, previous: Option<&str>) -> String {
    let mut out = Writer::new(Style::COMPACT);
    out.open('{');
    out.key("count");
    out.literal(&count.to_string());
    for (key, link) in [("next", next), ("previous", previous)] {
        out.key(key);
        match link {
            Some(link) => out.string(link),
            None => out.literal("null"),
        }
    }
    out.key("results");
    out.open('[');
    out.into_string()
}

/// The end of a page.
pub const PAGE_END: &[u8] = b"]}";

/// Writes one job.
///
/// # Errors
/// The writer's.
pub fn job(out: &mut dyn Write, row: &JobRow) -> io::Result<()> {
    let mut out = Out { sink: out, json: Writer::new(Style::COMPACT) };
    out.json.open('{');
    out.text("uuid", &row.job.uuid)?;
    match serde_json::from_str(&row.job.request) {
        Ok(request) => write_request(&mut out, &request)?,
        // What is stored was encoded by us, so this is another release's file.
        Err(error) => log::error!("job {}: its stored request cannot be read: {error}", row.job.uuid),
    }
    out.text("target_validator_hotkey", &row.job.validator)?;
    out.text("tag", &row.job.tag)?;
    out.time("created_at", row.job.created_at)?;
    let last = row.statuses.iter().rfind(|status| is_listed(status));
    if let Some(last) = last {
        out.text("status", last.status.parse().map_or(last.status.as_str(), |status| label(status)))?;
        out.time("last_update", last.at)?;
    }
    write_result(&mut out, row, last)?;
    write_statuses(&mut out, "status_history", row.statuses.iter().filter(|status| is_listed(status)))?;
    write_statuses(&mut out, "other_statuses", row.statuses.iter().filter(|status| !is_listed(status)))?;
    out.raw("details_omitted", if row.details_omitted { "true" } else { "false" })?;
    out.json.close('}');
    out.put()
}

/// A text that leaves as it is written.
struct Out<'a> {
    sink: &'a mut dyn Write,
    json: Writer,
}

impl Out<'_> {
    fn put(&mut self) -> io::Result<()> {
        self.sink.write_all(self.json.take().as_bytes())
    }

    fn text(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.json.key(key);
        self.json.string(value);
        self.put()
    }

    fn time(&mut self, key: &str, unix_micros: i64) -> io::Result<()> {
        self.text(key, &DateTime::from_unix_micros(unix_micros).to_string())
    }

    /// A value that is JSON text.
    fn raw(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.json.key(key);
        self.json.literal("");
        self.put()?;
        self.sink.write_all(value.as_bytes())
    }

    fn part(&mut self, key: &str, value: Option<&RawValue>, without: &str) -> io::Result<()> {
        self.raw(key, value.map_or(without, RawValue::get))
    }
}

/// The message to the validator; each value as it stands there.
#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    executor_class: Option<&'a RawValue>,
    docker_image: Option<&'a RawValue>,
    job_namespace: Option<&'a RawValue>,
    args: Option<&'a RawValue>,
    env: Option<&'a RawValue>,
    use_gpu: Option<&'a RawValue>,
    artifacts_dir: Option<&'a RawValue>,
    on_trusted_miner: Option<&'a RawValue>,
    volume: Option<&'a RawValue>,
    output_upload: Option<&'a RawValue>,
    download_time_limit: Option<&'a RawValue>,
    execution_time_limit: Option<&'a RawValue>,
    streaming_start_time_limit: Option<&'a RawValue>,
    upload_time_limit: Option<&'a RawValue>,
    streaming_details: Option<Streaming<'a>>,
}

#[derive(Deserialize)]
struct Streaming<'a> {
    #[serde(borrow)]
    public_key: Option<&'a RawValue>,
}

/// A volume or an upload that may be several.
#[derive(Deserialize)]
struct Several<'a> {
    #[serde(borrow)]
    volumes: Option<&'a RawValue>,
    uploads: Option<&'a RawValue>,
}

fn write_request(out: &mut Out<'_>, request: &Request<'_>) -> io::Result<()> {
    for (key, value, without) in [
        ("executor_class", request.executor_class, "\"\""),
        ("docker_image", request.docker_image, "\"\""),
        ("job_namespace", request.job_namespace, "null"),
        ("args", request.args, "[]"),
        ("env", request.env, "{}"),
        ("use_gpu", request.use_gpu, "false"),
        ("artifacts_dir", request.artifacts_dir, "null"),
        ("on_trusted_miner", request.on_trusted_miner, "false"),
        ("download_time_limit", request.download_time_limit, "0"),
        ("execution_time_limit", request.execution_time_limit, "0"),
        ("streaming_start_time_limit", request.streaming_start_time_limit, "0"),
        ("upload_time_limit", request.upload_time_limit, "0"),
    ] {
        out.part(key, value, without)?;
    }
    for (key, part) in [("volumes", request.volume), ("uploads", request.output_upload)] {
        let several = part.and_then(|part| serde_json::from_str::<Several<'_>>(part.get()).ok());
        match (part, several.and_then(|several| several.volumes.or(several.uploads))) {
            (_, Some(list)) => out.raw(key, list.get())?,
            (Some(one), None) => {
                out.raw(key, "[")?;
                out.sink.write_all(one.get().as_bytes())?;
                out.sink.write_all(b"]")?;
            }
            (None, None) => out.raw(key, "[]")?,
        }
    }
    // Empty for other jobs, as the Python facilitator shows it.
    let certificate = request.streaming_details.as_ref().and_then(|details| details.public_key);
    out.part("streaming_client_cert", certificate, "\"\"")
}

/// What is told with a status; each value as it stands there.
#[derive(Default, Deserialize)]
struct Details<'a> {
    #[serde(borrow)]
    miner_response: Option<Output<'a>>,
    job_failure_details: Option<Output<'a>>,
    streaming_details: Option<Server<'a>>,
}

#[derive(Default, Deserialize)]
struct Output<'a> {
    #[serde(borrow)]
    docker_process_stdout: Option<&'a RawValue>,
    docker_process_stderr: Option<&'a RawValue>,
    artifacts: Option<&'a RawValue>,
    upload_results: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Server<'a> {
    #[serde(borrow)]
    streaming_server_cert: Option<&'a RawValue>,
    streaming_server_address: Option<&'a RawValue>,
    streaming_server_port: Option<&'a RawValue>,
}

fn write_result(out: &mut Out<'_>, row: &JobRow, last: Option<&StatusRow>) -> io::Result<()> {
    let end = last.map(|last| details_of(last, &row.job.uuid)).unwrap_or_default();
    let response = end.miner_response.unwrap_or_default();
    let failure = end.job_failure_details.unwrap_or_default();
    out.part("stdout", response.docker_process_stdout.or(failure.docker_process_stdout), "\"\"")?;
    out.part("stderr", response.docker_process_stderr.or(failure.docker_process_stderr), "\"\"")?;
    out.part("artifacts", response.artifacts, "{}")?;
    out.part("upload_results", response.upload_results, "{}")?;
    let ready = row.statuses.iter().find(|status| status.status == JobStatus::StreamingReady.as_str());
    let ready = ready.map(|status| details_of(status, &row.job.uuid)).unwrap_or_default();
    let server = ready.streaming_details.unwrap_or_default();
    out.part("streaming_server_cert", server.streaming_server_cert, "null")?;
    out.part("streaming_server_address", server.streaming_server_address, "null")?;
    out.part("streaming_server_port", server.streaming_server_port, "null")
}

fn details_of<'a>(status: &'a StatusRow, uuid: &str) -> Details<'a> {
    let read = serde_json::from_str::<Option<Details<'a>>>(status.metadata.as_deref().unwrap_or("null"));
    let read = read.inspect_err(|error| log::error!("job {uuid}: its stored details cannot be read: {error}"));
    read.ok().flatten().unwrap_or_default()
}

fn write_statuses<'a>(out: &mut Out<'_>, key: &str, statuses: impl Iterator<Item = &'a StatusRow>) -> io::Result<()> {
    out.json.key(key);
    out.json.open('[');
    for status in statuses {
        out.json.open('{');
        out.text("status", &status.status)?;
        out.time("created_at", status.at)?;
        out.raw("metadata", status.metadata.as_deref().unwrap_or("null"))?;
        out.json.close('}');
    }
    out.json.close(']');
    out.put()
}
