//! Uploads: where the job's output folder goes once it has ended.
//!
//! Everything is opened, checked and packed before the first byte is sent, so that a bad path sends nothing.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::sandbox::ENTRIES;
use super::transfer::{Bounds, of_file};
use super::workspace::{PathError, Workspace, relative};
use crate::base::shutdown::Shutdown;
use crate::base::text::truncate;
use crate::base::tree;
use crate::net::http::client::{Content, FilePart, HttpClient, HttpError, HttpSettings, Response};
use crate::ops::cause::Cause;
use crate::ops::errors::ErrorHandler;
use crate::protocol::{HttpOutputVolumeResponse, OutputUpload, SingleFileUpload, StrMap, ZipUpload};

/// Bytes of one upload (the archive, a single file): 2 GiB, as on the Python executor.
pub const UPLOAD_BYTES: u64 = 2 << 30;

/// Files in the archive of the output. The Python executor takes 1,000; checkpoints in pieces have more.
pub const OUTPUT_FILES: usize = 10_000;

/// Folders inside folders of the output.
const OUTPUT_DEPTH: usize = 100;

/// Bytes that are kept of what a server answers to an upload: enough for an error page or the description of an object.
const ANSWER_BYTES: usize = 64 << 10;

/// The same for all answers of one job together: its result, in which they are quoted twice over, has to stay far below
/// the 32 MiB of the facilitator's link.
const ANSWERS_BYTES: usize = 2 << 20;

/// The archive's name in forms and in `upload_results`, as on the Python executor.
const ZIP_NAME: &str = "output.zip";

/// The archive's key in `upload_results` if it is the `system_output` of a multi-upload.
const SYSTEM_OUTPUT: &str = "system_output";

/// Why the output was not uploaded. The texts are for the wire: reason `upload_failed`, unless it is
/// [`UploadError::is_timeout`] or [`UploadError::is_cancelled`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// A `relative_path` leads out of the output folder.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A file cannot be uploaded: it is missing, no regular file, or too large.
    #[error("output file {path:?}: {source}")]
    File {
        /// The file, below the output folder.
        path: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The output folder cannot be packed.
    #[error("cannot pack the output: {0}")]
    Pack(io::Error),
    /// The request failed, or the server refused; what was uploaded before stays there.
    #[error("upload of {name}: {source}")]
    Http {
        /// What was uploaded, its key in `upload_results`.
        name: String,
        /// Why.
        source: HttpError,
    },
}

impl UploadError {
    /// Whether the deadline was the reason.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Http { source, .. } => matches!(source, HttpError::TimedOut { .. }),
            Self::Pack(source) | Self::File { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            Self::Path(_) => false,
        }
    }

    /// Whose fault it is, and whether the same may succeed later.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Path(_) => Cause::JOB,
            // Its owner, the job, has closed it.
            Self::Pack(source) | Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Cause::JOB
            }
            Self::Pack(source) | Self::File { source, .. } => of_file(source),
            Self::Http { source, .. } => source.cause(),
        }
    }

    /// Whether a cancel was the reason.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Http { source, .. } => matches!(source, HttpError::Cancelled { .. }),
            Self::Pack(source) | Self::File { source, .. } => source.kind() == io::ErrorKind::Interrupted,
            Self::Path(_) => false,
        }
    }
}

/// Uploads outputs.
#[derive(Debug, Clone)]
pub struct Uploader {
    http: HttpClient,
    token: Shutdown,
    errors: ErrorHandler,
}

/// What was uploaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// `upload_results`: name to the JSON text of the server's answer.
    pub results: StrMap,
    /// A sentence for each link and special file that an archive does not have, at most [`tree::Found::OTHERS`].
    pub left_out: Vec<String>,
    /// Bytes of all that was sent, each once.
    pub bytes: u64,
}

/// One request that is ready to be sent.
struct Item {
    /// The key in `upload_results`.
    name: String,
    url: String,
    headers: Vec<(String, String)>,
    method: Method,
    file: File,
    len: u64,
}

enum Method {
    Put,
    Post { form: StrMap, file_name: String, content_type: &'static str },
}

impl Uploader {
    /// An uploader whose work ends when `token` cancels, and that goes where `settings` allow.
    pub fn new(token: Shutdown, settings: impl Into<HttpSettings>) -> Self {
        Self { http: HttpClient::within(settings, token.clone()), token, errors: ErrorHandler::default() }
    }

    /// The same, which tells this handler of what it tries again.
    #[must_use]
    pub fn with_errors(self, errors: ErrorHandler) -> Self {
        Self { errors, ..self }
    }

    /// Uploads the workspace's `output/`. Blocks until all is sent, `deadline` passes or the token cancels.
    ///
    /// An archive is called `output.zip`, or `system_output` in a multi-upload (where it holds all that is not uploaded
    /// as a file of its own, stdout and stderr among it); a file by its `relative_path`. Requests are tried again after
    /// broken connections and 5xx. Of each answer's body at most 64 KiB are kept, of very many answers less; a mark at
    /// the end says so.
    ///
    /// # Errors
    /// See [`UploadError`].
    pub fn upload(
        &self,
        upload: &OutputUpload,
        workspace: &Workspace,
        deadline: Instant,
    ) -> Result<Uploaded, UploadError> {
        let bounds = Bounds { token: &self.token, deadline, errors: &self.errors };
        let (items, left_out) = prepare(upload, workspace, bounds)?;
        let most = ANSWER_BYTES.min(ANSWERS_BYTES / items.len().max(1));
        let (mut results, mut bytes) = (StrMap::new(), 0);
        for item in items {
            let answer = bounds.retry(|_| self.send(&item, deadline));
            let answer = answer.map_err(|source| UploadError::Http { name: item.name.clone(), source })?;
            bytes += item.len;
            results.insert(item.name, encode(&answer, most));
        }
        Ok(Uploaded { results, left_out, bytes })
    }

    fn send(&self, item: &Item, deadline: Instant) -> Result<Response, HttpError> {
        let content = Content::File { file: &item.file, len: item.len };
        match &item.method {
            Method::Put => self.http.put(&item.url, &item.headers, content, deadline),
            Method::Post { form, file_name, content_type } => {
                let part = FilePart { field: "file", file_name, content_type, content };
                self.http.post_multipart(&item.url, &item.headers, form, part, deadline)
            }
        }?
        .ok()
    }
}

/// The answer as `upload_results` has it: header names in lower case, values of one name joined as in HTTP, and at most
/// `most` bytes of the body.
fn encode(answer: &Response, most: usize) -> String {
    let mut headers = StrMap::new();
    for (name, value) in &answer.headers {
        let joined: &mut String = headers.entry(name.clone()).or_default();
        if !joined.is_empty() {
            joined.push_str(", ");
        }
        joined.push_str(value);
    }
    let mut body = answer.text();
    if body.len() > most {
        let all = answer.body.len();
        truncate(&mut body, most);
        body.push_str(&format!("… [truncated: the answer has {all} bytes]"));
    }
    HttpOutputVolumeResponse { headers, body }.encode()
}

/// The requests, and what they leave out.
fn prepare(
    upload: &OutputUpload,
    workspace: &Workspace,
    bounds: Bounds,
) -> Result<(Vec<Item>, Vec<String>), UploadError> {
    let output = tree::open_dir(&workspace.output()).map_err(UploadError::Pack)?;
    let mut left_out = Vec::new();
    let mut zip = |name: &str, upload: ZipUpload, without: &HashSet<PathBuf>| {
        let (file, len, others) = pack(&output, workspace, without, bounds).map_err(UploadError::Pack)?;
        left_out.extend(others.into_iter().map(|path| {
            // Names may hold what a terminal obeys.
            let path = path.to_string_lossy().escape_debug().to_string();
            format!("output {path} is left out: it is neither a file nor a folder")
        }));
        let (url, method) = match upload {
            ZipUpload::Put(put) => (put.url, Method::Put),
            ZipUpload::Post(post) => {
                let form = post.form_fields.unwrap_or_default();
                (post.url, Method::Post { form, file_name: ZIP_NAME.into(), content_type: "application/zip" })
            }
        };
        Ok::<_, UploadError>(Item { name: name.to_owned(), url, headers: Vec::new(), method, file, len })
    };
    let none = HashSet::new();
    let items = match upload {
        OutputUpload::ZipAndHttpPost(post) => vec![zip(ZIP_NAME, ZipUpload::Post(post.clone()), &none)?],
        OutputUpload::ZipAndHttpPut(put) => vec![zip(ZIP_NAME, ZipUpload::Put(put.clone()), &none)?],
        OutputUpload::SingleFilePost(post) => vec![single(SingleFileUpload::Post(post.clone()), &output)?.0],
        OutputUpload::SingleFilePut(put) => vec![single(SingleFileUpload::Put(put.clone()), &output)?.0],
        OutputUpload::Multi(multi) => {
            let mut items = Vec::new();
            let mut apart = HashSet::new();
            for upload in &multi.uploads {
                let (item, path) = single(upload.clone(), &output)?;
                items.push(item);
                apart.insert(path);
            }
            if let Some(upload) = &multi.system_output {
                items.push(zip(SYSTEM_OUTPUT, upload.clone(), &apart)?);
            }
            items
        }
    };
    Ok((items, left_out))
}

/// One file of the output, and its path.
fn single(upload: SingleFileUpload, output: &OwnedFd) -> Result<(Item, PathBuf), UploadError> {
    let (name, url, headers, form) = match upload {
        SingleFileUpload::Put(put) => (put.relative_path, put.url, put.signed_headers, None),
        SingleFileUpload::Post(post) => {
            (post.relative_path, post.url, post.signed_headers, Some(post.form_fields.unwrap_or_default()))
        }
    };
    let path = relative(&name)?;
    let bad = |source| UploadError::File { path: name.clone(), source };
    let (file, len) = tree::open_file(output, &path).map_err(bad)?;
    if len > UPLOAD_BYTES {
        return Err(bad(io::Error::other(format!("it has {len} bytes, more than the allowed {UPLOAD_BYTES}"))));
    }
    let method = match form {
        None => Method::Put,
        Some(form) => {
            let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Method::Post { form, file_name, content_type: "application/octet-stream" }
        }
    };
    let headers = headers.unwrap_or_default().into_iter().collect();
    Ok((Item { name, url, headers, method, file, len }, path))
}

/// Packs the output's regular files, except those in `without`, into a nameless file; gives it with its length,
/// and what is neither file nor folder.
///
/// They are stored without compression, as on the Python executor: what jobs leave is mostly packed already.
fn pack(
    output: &OwnedFd,
    workspace: &Workspace,
    without: &HashSet<PathBuf>,
    bounds: Bounds,
) -> io::Result<(File, u64, Vec<PathBuf>)> {
    let target = tempfile::tempfile_in(workspace.private())?;
    let mut zip = ZipWriter::new(BufWriter::new(&target));
    let mut left = UPLOAD_BYTES;
    let limits = tree::Bounds { entries: ENTRIES, depth: OUTPUT_DEPTH, deadline: bounds.deadline, stop: bounds.token };
    let tree::Found { files, others } = tree::files(output, OUTPUT_FILES, &limits)?;
    for path in files {
        if !without.contains(&path) {
            pack_file(&mut zip, output, &path, &mut left, bounds)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        }
    }
    zip.finish()?.flush()?;
    let len = target.metadata()?.len();
    if len > UPLOAD_BYTES {
        return Err(too_large());
    }
    Ok((target, len, others))
}

fn pack_file(
    zip: &mut ZipWriter<impl Write + Seek>,
    output: &OwnedFd,
    path: &Path,
    left: &mut u64,
    bounds: Bounds,
) -> io::Result<()> {
    let name = path.to_str().ok_or_else(|| io::Error::other("its name is not UTF-8"))?;
    let (mut file, _) = tree::open_file(output, path)?;
    let metadata = file.metadata()?;
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .unix_permissions(metadata.permissions().mode())
        .last_modified_time(zip_time(metadata.mtime(), &TimeZone::system()));
    zip.start_file(name, options)?;
    let written = bounds.copy(&mut file, zip, left.saturating_add(1))?;
    *left = left.checked_sub(written).ok_or_else(too_large)?;
    Ok(())
}

/// A time as archives have it, which is without a zone: that of the executor's, as Python's `zipfile` writes it. What
/// is before or after their years is their first or last moment.
fn zip_time(unix_seconds: i64, zone: &TimeZone) -> zip::DateTime {
    let last = || zip::DateTime::from_date_and_time(2107, 12, 31, 23, 59, 58).unwrap_or_default();
    let range = Timestamp::MIN.as_second()..=Timestamp::MAX.as_second();
    let Ok(moment) = Timestamp::from_second(unix_seconds.clamp(*range.start(), *range.end())) else { return last() };
    let local = zone.to_datetime(moment);
    let date = [local.month(), local.day(), local.hour(), local.minute(), local.second()].map(i8::unsigned_abs);
    let [month, day, hour, minute, second] = date;
    match local.year() {
        ..1980 => zip::DateTime::default(),
        2108.. => last(),
        year => zip::DateTime::from_date_and_time(year.unsigned_abs(), month, day, hour, minute, second)
            .unwrap_or_else(|_| last()),
    }
}

fn too_large() -> io::Error {
    io::Error::other(format!("all files together have more than the allowed {UPLOAD_BYTES} bytes"))
}

#[cfg(test)]
mod tests {
    use super::{TimeZone, zip_time};

    #[test]
    fn archives_have_times_of_their_own_years() {
        for (seconds, time) in [
            (784_111_777, "1994-11-06 08:49:36"),
            (951_782_399, "2000-02-28 23:59:58"),
            (0, "1980-01-01 00:00:00"),
            (-1, "1980-01-01 00:00:00"),
            (i64::MIN, "1980-01-01 00:00:00"),
            (i64::MAX, "2107-12-31 23:59:58"),
        ] {
            assert_eq!(zip_time(seconds, &TimeZone::UTC).to_string(), time);
        }
        // The years are those of the zone.
        let behind = TimeZone::fixed(jiff::tz::offset(-5));
        assert_eq!(zip_time(315_532_800, &behind).to_string(), "1980-01-01 00:00:00");
        assert_eq!(zip_time(315_532_800 + 6 * 3600, &behind).to_string(), "1980-01-01 01:00:00");
        assert_eq!(zip_time(4_354_819_200, &behind).to_string(), "2107-12-31 19:00:00");
    }
}
