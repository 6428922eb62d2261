//! A kept job as the JSON that the official SDK reads. Pure.
//!
//! The SDK takes the last entry of `status_history` for the job's status and knows no status `unknown`. So the history
//! holds what led to the job's end and nothing behind it; late and unknown statuses are listed apart, in
//! `other_statuses`.

use crate::protocol::json::{Style, Writer};
use crate::protocol::{DateTime, FacilitatorToValidator, JobStatus, JobStatusMetadata, StrMap, V2JobRequest};
use crate::store::jobs::{JobPage, JobRow, StatusRow};

/// Whether a status is part of the history.
pub fn is_listed(status: &StatusRow) -> bool {
    !status.late && status.status != JobStatus::Unknown.as_str()
}

/// One job.
pub fn job(row: &JobRow) -> String {
    let mut out = Writer::new(Style::COMPACT);
    write_job(&mut out, row);
    out.into_string()
}

/// A page of jobs; `page` counts from 1.
pub fn page(found: &JobPage, page: u64, page_size: u64) -> String {
    let mut out = Writer::new(Style::COMPACT);
    let link = |page: u64| format!("/api/v1/jobs/?page={page}&page_size={page_size}");
    out.open('{');
    out.key("count");
    out.literal(&found.count.to_string());
    optional(&mut out, "next", (page.saturating_mul(page_size) < found.count).then(|| link(page + 1)).as_deref());
    optional(&mut out, "previous", (page > 1).then(|| link(page - 1)).as_deref());
    out.key("results");
    out.open('[');
    for row in &found.jobs {
        write_job(&mut out, row);
    }
    out.close(']');
    out.close('}');
    out.into_string()
}

fn write_job(out: &mut Writer, row: &JobRow) {
    out.open('{');
    text(out, "uuid", &row.job.uuid);
    match FacilitatorToValidator::decode(&row.job.request) {
        Ok(FacilitatorToValidator::V2JobRequest(request)) => write_request(out, &request),
        // What is stored was encoded by us, so this is another release's file.
        other => log::error!("job {}: its stored request cannot be read: {other:?}", row.job.uuid),
    }
    text(out, "target_validator_hotkey", &row.job.validator);
    time(out, "created_at", row.job.created_at);
    let last = row.statuses.iter().rfind(|status| is_listed(status));
    if let Some(last) = last {
        text(out, "status", &last.status);
        time(out, "last_update", last.at);
    }
    write_result(out, row, last);
    write_statuses(out, "status_history", row.statuses.iter().filter(|status| is_listed(status)));
    write_statuses(out, "other_statuses", row.statuses.iter().filter(|status| !is_listed(status)));
    out.key("details_omitted");
    out.literal(if row.details_omitted { "true" } else { "false" });
    out.close('}');
}

fn write_request(out: &mut Writer, request: &V2JobRequest) {
    text(out, "executor_class", request.executor_class.as_str());
    text(out, "docker_image", &request.docker_image);
    optional(out, "job_namespace", request.job_namespace.as_deref());
    out.key("args");
    out.open('[');
    for arg in &request.args {
        out.string(arg);
    }
    out.close(']');
    map(out, "env", Some(&request.env));
    out.key("use_gpu");
    out.literal(if request.use_gpu { "true" } else { "false" });
    optional(out, "artifacts_dir", request.artifacts_dir.as_deref());
    for (key, limit) in [
        ("download_time_limit", &request.download_time_limit),
        ("execution_time_limit", &request.execution_time_limit),
        ("streaming_start_time_limit", &request.streaming_start_time_limit),
        ("upload_time_limit", &request.upload_time_limit),
    ] {
        out.key(key);
        out.literal(&limit.to_string());
    }
    // Empty for other jobs, as the Python facilitator shows it.
    text(out, "streaming_client_cert", request.streaming_details.as_ref().map_or("", |s| s.public_key.as_str()));
}

fn write_result(out: &mut Writer, row: &JobRow, last: Option<&StatusRow>) {
    let details = |status: &StatusRow| JobStatusMetadata::decode(status.metadata.as_deref()?).ok();
    let end = last.and_then(details);
    let response = end.as_ref().and_then(|end| end.miner_response.as_ref());
    let failure = end.as_ref().and_then(|end| end.job_failure_details.as_ref());
    let stdout = response.map(|r| &r.docker_process_stdout).or_else(|| failure?.docker_process_stdout.as_ref());
    let stderr = response.map(|r| &r.docker_process_stderr).or_else(|| failure?.docker_process_stderr.as_ref());
    text(out, "stdout", stdout.map_or("", String::as_str));
    text(out, "stderr", stderr.map_or("", String::as_str));
    map(out, "artifacts", response.and_then(|r| r.artifacts.as_ref()));
    map(out, "upload_results", response.and_then(|r| r.upload_results.as_ref()));
    let ready = row.statuses.iter().find(|status| status.status == JobStatus::StreamingReady.as_str());
    let streaming = ready.and_then(details).and_then(|details| details.streaming_details);
    let streaming = streaming.as_ref();
    optional(out, "streaming_server_cert", streaming.and_then(|s| s.streaming_server_cert.as_deref()));
    optional(out, "streaming_server_address", streaming.and_then(|s| s.streaming_server_address.as_deref()));
    out.key("streaming_server_port");
    let port = streaming.and_then(|s| s.streaming_server_port.as_ref());
    out.literal(&port.map_or("null".to_owned(), ToString::to_string));
}

fn write_statuses<'a>(out: &mut Writer, key: &str, statuses: impl Iterator<Item = &'a StatusRow>) {
    out.key(key);
    out.open('[');
    for status in statuses {
        out.open('{');
        text(out, "status", &status.status);
        time(out, "created_at", status.at);
        out.key("metadata");
        // It is JSON text of ours, kept as it was encoded.
        out.literal(status.metadata.as_deref().unwrap_or("null"));
        out.close('}');
    }
    out.close(']');
}

fn text(out: &mut Writer, key: &str, value: &str) {
    out.key(key);
    out.string(value);
}

fn optional(out: &mut Writer, key: &str, value: Option<&str>) {
    out.key(key);
    match value {
        Some(value) => out.string(value),
        None => out.literal("null"),
    }
}

fn time(out: &mut Writer, key: &str, unix_micros: i64) {
    text(out, key, &DateTime::from_unix_micros(unix_micros).to_string());
}

fn map(out: &mut Writer, key: &str, map: Option<&StrMap>) {
    out.key(key);
    out.open('{');
    for (name, value) in map.into_iter().flatten() {
        text(out, name, value);
    }
    out.close('}');
}
