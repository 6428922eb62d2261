//! Job files: what `phalanx submit` and `phalanx demo` run, one JSON object a file.
//!
//! | key | value | default |
//! | --- | --- | --- |
//! | `executor_class` | as `always_on.test` | needed |
//! | `docker_image` | the image | needed |
//! | `args` (or `command`) | list of strings: the command in the container | `[]` |
//! | `env` | object of strings | `{}` |
//! | `files` | object: path under `/volume/` to a text, `{"base64": …}` or `{"path": …}` (beside the job file) | none |
//! | `volume` | as on the wire: `{"volume_type": "zip_url", "contents": URL}`; unpacked after `files` | none |
//! | `output_upload` | as on the wire: `zip_and_http_put`, `single_file_put`, `multi_upload`, … | none |
//! | `artifacts_dir` | folder of the container whose files come back with the result | none |
//! | `download_time_limit`, `upload_time_limit` | whole seconds | 30 |
//! | `execution_time_limit` | whole seconds | 60 |
//! | `streaming_start_time_limit` | whole seconds | 5 |
//! | `streaming_details` | `{"public_key": PEM}`, the client's certificate, makes it a streaming job | none |
//! | `use_gpu`, `on_trusted_miner` | boolean | `false` |
//! | `job_namespace` | text to file it under | none |
//!
//! `files` become one zip inside the message, which has at most 1 MiB; larger inputs are given by URL.

pub mod schema;

use std::fs;
use std::io::{self, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::hint::hint;
use crate::base::limits::JOB_REQUEST_BYTES;
use crate::base::text;
use crate::facilitator::api::submission::not_carried;
use crate::protocol::{FacilitatorToValidator, V2JobRequest};

/// Bytes of a job file and of each file that it names: more would not fit into the message.
const FILE_BYTES: u64 = JOB_REQUEST_BYTES as u64;

/// Bytes that a submission adds to the unsigned message: the signature with its names, and an uuid.
const SIGNATURE_BYTES: usize = 512;

/// Keys with the time limits that stand in for missing ones, in seconds.
const TIME_LIMITS: [(&str, u64); 4] = [
    ("download_time_limit", 30),
    ("execution_time_limit", 60),
    ("upload_time_limit", 30),
    ("streaming_start_time_limit", 5),
];

/// Keys that are taken as they are on the wire.
const AS_ON_THE_WIRE: [&str; 8] = [
    "executor_class",
    "docker_image",
    "output_upload",
    "artifacts_dir",
    "streaming_details",
    "use_gpu",
    "on_trusted_miner",
    "job_namespace",
];

/// Keys with a treatment of their own.
const OTHERS: [&str; 5] = ["args", "command", "env", "files", "volume"];

/// Why a job file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobFileError {
    /// It cannot be read.
    #[error("job file {}: cannot read it: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// It is no job.
    #[error("job file {}: {}", path.display(), problems.join("; "))]
    Content {
        /// The file.
        path: PathBuf,
        /// All that is wrong: each with its key and what would be right.
        problems: Vec<String>,
    },
}

/// A job that is ready to be signed.
#[derive(Debug, Clone, PartialEq)]
pub struct JobSpec(V2JobRequest);

impl JobSpec {
    /// Runs the job in another image.
    pub fn set_image(&mut self, image: &str) {
        image.clone_into(&mut self.0.docker_image);
    }

    /// The request without uuid and signature.
    pub fn unsigned(&self) -> &V2JobRequest {
        &self.0
    }
}

/// Reads the text of a job file that the program carries with it; `name` stands for its path.
///
/// # Errors
/// As [`load`].
pub fn parse_text(name: &str, text: &str) -> Result<JobSpec, JobFileError> {
    parse(text.as_bytes(), Path::new("")).map_err(|problems| JobFileError::Content { path: name.into(), problems })
}

/// Reads the text of a job file whose files are in `folder`. Blocks on the disk, if it names any.
///
/// # Errors
/// All that is wrong: each with its key and what would be right.
pub fn parse_in(folder: &Path, text: &str) -> Result<JobSpec, Vec<String>> {
    parse(text.as_bytes(), folder)
}

/// Reads a job file, and the files that it names. Blocks on the disk.
///
/// # Errors
/// [`JobFileError`], with all problems at once.
pub fn load(path: &Path) -> Result<JobSpec, JobFileError> {
    let bytes = read(path).map_err(|source| JobFileError::Read { path: path.to_owned(), source })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    parse(&bytes, folder).map_err(|problems| JobFileError::Content { path: path.to_owned(), problems })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES} bytes; give large inputs by URL")));
    }
    Ok(bytes)
}

/// The problems found so far; each is reported with its key.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, key: &str, what: impl std::fmt::Display) {
        self.0.push(format!("{key}: {what}"));
    }
}

fn parse(bytes: &[u8], folder: &Path) -> Result<JobSpec, Vec<String>> {
    let text = text::of_file(bytes).map_err(|why| vec![why])?;
    let mut keys = match serde_json::from_str(text) {
        Ok(Value::Object(keys)) => keys,
        Ok(_) => return Err(vec!["it should be one JSON object".to_owned()]),
        Err(error) => return Err(vec![format!("it is not JSON: {error}")]),
    };
    let mut problems = Problems::default();
    let known: Vec<&str> = TIME_LIMITS.iter().map(|(key, _)| *key).chain(AS_ON_THE_WIRE).chain(OTHERS).collect();
    for key in keys.keys().filter(|key| !known.contains(&key.as_str())) {
        problems.0.push(format!("unknown key {key:?}{}", hint(key, &known)));
    }
    let mut message = Map::new();
    message.insert("message_type".to_owned(), "V2JobRequest".into());
    message.insert("uuid".to_owned(), "".into());
    message.insert("use_gpu".to_owned(), false.into());
    for key in AS_ON_THE_WIRE {
        message.extend(keys.shift_remove_entry(key));
    }
    if message.get("docker_image").is_some_and(|image| image == "") {
        problems.add("docker_image", "it should name an image, as busybox");
    }
    for (key, default) in TIME_LIMITS {
        let limit = keys.shift_remove(key).unwrap_or(default.into());
        if limit.as_u64().is_none() {
            problems.add(key, format_args!("{limit} should be a whole number of seconds, as {default}"));
        }
        message.insert(key.to_owned(), limit);
    }
    let command = match (keys.shift_remove("args"), keys.shift_remove("command")) {
        (Some(_), Some(_)) => {
            problems.add("command", "it is another name of args; give one of them");
            None
        }
        (args, command) => args.or(command),
    };
    message.insert("args".to_owned(), command.unwrap_or(json!([])));
    message.insert("env".to_owned(), keys.shift_remove("env").unwrap_or(json!({})));
    let files = keys.shift_remove("files").and_then(|files| zipped(&files, folder, &mut problems));
    let volume = keys.shift_remove("volume").filter(|volume| !volume.is_null());
    message.extend(together(files, volume).map(|volume| ("volume".to_owned(), volume)));
    finish(message, problems)
}

/// One volume of what there is.
fn together(files: Option<Value>, volume: Option<Value>) -> Option<Value> {
    match (files, volume) {
        (Some(files), Some(mut volume)) => {
            let parts = match volume.get_mut("volumes").map(Value::take) {
                Some(Value::Array(parts)) => parts,
                _ => vec![volume],
            };
            let volumes: Vec<Value> = std::iter::once(files).chain(parts).collect();
            Some(json!({"volume_type": "multi_volume", "volumes": volumes}))
        }
        (files, volume) => files.or(volume),
    }
}

/// Lets the protocol judge the rest, and checks the size.
fn finish(message: Map<String, Value>, mut problems: Problems) -> Result<JobSpec, Vec<String>> {
    let given = Value::Object(message);
    let decoded = FacilitatorToValidator::decode(&given.to_string());
    let request = match decoded {
        Ok(FacilitatorToValidator::V2JobRequest(request)) => {
            let text = FacilitatorToValidator::from(request.clone()).encode_compact();
            let kept = serde_json::from_str(&text).expect("what the encoder writes is JSON");
            left_out(&given, &kept, "", &mut problems);
            problems.0.extend(not_carried(&request).map(str::to_owned));
            Some(request)
        }
        Ok(_) => None,
        Err(error) => {
            for detail in error.errors {
                let path = detail.path();
                let path = path.strip_prefix("V2JobRequest.").unwrap_or(&path);
                let time_limit = TIME_LIMITS.iter().any(|(key, _)| *key == path);
                // A bad time limit has been reported already, in words about seconds.
                if !time_limit {
                    problems.add(path, &detail.msg);
                }
            }
            None
        }
    };
    match request {
        Some(request) if problems.0.is_empty() => {
            let size = FacilitatorToValidator::from(request.clone()).encode().len() + SIGNATURE_BYTES;
            if size > JOB_REQUEST_BYTES {
                let what = format!(
                    "the job is {size} bytes as a message, at most {JOB_REQUEST_BYTES} are possible: give large inputs \
                     by URL, as volume: {{\"volume_type\": \"zip_url\", \"contents\": URL}}"
                );
                return Err(vec![what]);
            }
            Ok(JobSpec(request))
        }
        _ => Err(problems.0),
    }
}

/// Reports keys of the file that the message has no place for, wherever they are.
fn left_out(given: &Value, kept: &Value, path: &str, problems: &mut Problems) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            let known: Vec<&str> = kept.keys().map(String::as_str).collect();
            for (key, value) in given {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match kept.get(key) {
                    Some(kept) => left_out(value, kept, &path, problems),
                    None => problems.0.push(format!("unknown key {path:?}{}", hint(key, &known))),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (n, (given, kept)) in given.iter().zip(kept).enumerate() {
                left_out(given, kept, &format!("{path}.{n}"), problems);
            }
        }
        _ => {}
    }
}

/// An inline volume of the files.
fn zipped(files: &Value, folder: &Path, problems: &mut Problems) -> Option<Value> {
    let Value::Object(files) = files else {
        problems.add("files", "it should be an object of paths, as {\"notes/a.txt\": \"text\"}");
        return None;
    };
    let before = problems.0.len();
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        let key = format!("files.{name}");
        if let Err(what) = check_path(name, files) {
            problems.add(&key, what);
            continue;
        }
        match bytes_of(content, folder) {
            Err(what) => problems.add(&key, what),
            Ok(bytes) => {
                // A script keeps its right to run; without a date the same files give the same bytes.
                let mode = if bytes.starts_with(b"#!") { 0o755 } else { 0o644 };
                let options = SimpleFileOptions::default().unix_permissions(mode);
                let written = zip.start_file(name, options).map_err(io::Error::from);
                written.and_then(|()| zip.write_all(&bytes)).expect("a zip in memory can be written");
            }
        }
    }
    let bytes = zip.finish().expect("a zip in memory can be written").into_inner();
    (problems.0.len() == before).then(|| json!({"volume_type": "inline", "contents": STANDARD.encode(bytes)}))
}

fn check_path(name: &str, files: &Map<String, Value>) -> Result<(), String> {
    let parts: Vec<&str> = name.split('/').collect();
    if parts.iter().any(|part| matches!(*part, "" | "." | "..")) || name.contains(['\\', '\0']) {
        return Err("it should be a path under /volume/, as notes/a.txt".to_owned());
    }
    let parents = (1..parts.len()).map(|n| parts[..n].join("/"));
    match parents.into_iter().find(|parent| files.contains_key(parent)) {
        Some(parent) => Err(format!("{parent} is a file, so nothing can be in it")),
        None => Ok(()),
    }
}

fn bytes_of(content: &Value, folder: &Path) -> Result<Vec<u8>, String> {
    let wrong = || "it should be a text, {\"base64\": TEXT} or {\"path\": FILE}".to_owned();
    match content {
        Value::String(text) => Ok(text.clone().into_bytes()),
        Value::Object(object) if object.len() == 1 => match (object.get("base64"), object.get("path")) {
            (Some(Value::String(text)), None) => {
                STANDARD.decode(text).map_err(|error| format!("its base64 cannot be read: {error}"))
            }
            (None, Some(Value::String(path))) => {
                read(&folder.join(path)).map_err(|error| format!("cannot read {path}: {error}"))
            }
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests;
