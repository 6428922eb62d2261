//! Uploads: where the output of a job goes.

use jiter::JsonValue;

use super::enums::OutputUploadType;
use super::error::{Errors, Fault};
use super::json::Writer;
use super::scalars::StrMap;
use super::schema::{Wire, message, tagged_union};

/// The longest name that file systems take.
const MAX_NAME_BYTES: usize = 255;

tagged_union! {
    /// Where the output of a job goes.
    pub enum OutputUpload by "output_upload_type" {
        OutputUploadType::SingleFilePost => /// One file, by POST.
        SingleFilePost(SingleFilePostUpload),
        OutputUploadType::SingleFilePut => /// One file, by PUT.
        SingleFilePut(SingleFilePutUpload),
        OutputUploadType::ZipAndHttpPost => /// All of it as a zip, by POST.
        ZipAndHttpPost(ZipAndHttpPostUpload),
        OutputUploadType::ZipAndHttpPut => /// All of it as a zip, by PUT.
        ZipAndHttpPut(ZipAndHttpPutUpload),
        OutputUploadType::MultiUpload => /// Several files.
        Multi(MultiUpload),
    }
}

tagged_union! {
    /// One file of a [`MultiUpload`].
    pub enum SingleFileUpload by "output_upload_type" {
        OutputUploadType::SingleFilePost => /// By POST.
        Post(SingleFilePostUpload),
        OutputUploadType::SingleFilePut => /// By PUT.
        Put(SingleFilePutUpload),
    }
}

message! {
    /// All output as a zip, by POST.
    Ignore struct ZipAndHttpPostUpload {
        @"output_upload_type" = OutputUploadType::ZipAndHttpPost,
        /// The address.
        url: String,
        /// What else the form holds.
        form_fields: Option<StrMap> = None,
    }
}

message! {
    /// All output as a zip, by PUT.
    Ignore struct ZipAndHttpPutUpload {
        @"output_upload_type" = OutputUploadType::ZipAndHttpPut,
        /// The address.
        url: String,
    }
}

message! {
    /// One file, by POST.
    Ignore struct SingleFilePostUpload {
        @"output_upload_type" = OutputUploadType::SingleFilePost,
        /// The address.
        url: String,
        /// What else the form holds.
        form_fields: Option<StrMap> = None,
        /// The file, below the output; always in its one canonical spelling.
        relative_path: String [canonical_path],
        /// Headers to send along.
        signed_headers: Option<StrMap> = None,
    }
}

message! {
    /// One file, by PUT.
    Ignore struct SingleFilePutUpload {
        @"output_upload_type" = OutputUploadType::SingleFilePut,
        /// The address.
        url: String,
        /// The file, below the output; always in its one canonical spelling.
        relative_path: String [canonical_path],
        /// Headers to send along.
        signed_headers: Option<StrMap> = None,
    }
}

message! {
    /// Several files, and perhaps what the container printed.
    Ignore struct MultiUpload {
        @"output_upload_type" = OutputUploadType::MultiUpload,
        /// The files.
        uploads: Vec<SingleFileUpload>,
        /// Where stdout and stderr go.
        system_output: Option<ZipUpload> = None,
    }
}

/// Where stdout and stderr of a job go; the user's signature does not cover it.
#[derive(Debug, Clone, PartialEq)]
pub enum ZipUpload {
    /// As a zip, by POST.
    Post(ZipAndHttpPostUpload),
    /// As a zip, by PUT.
    Put(ZipAndHttpPutUpload),
}

impl Wire for ZipUpload {
    /// Takes the first member that fits: here the tag may be missing, and POST comes first then.
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        let start = errors.mark();
        let post = errors.at("ZipAndHttpPostUpload", |errors| Wire::decode(value, errors));
        if let Some(post) = post {
            return Some(ZipUpload::Post(post));
        }
        let put = errors.at("ZipAndHttpPutUpload", |errors| Wire::decode(value, errors))?;
        errors.forget(start);
        Some(ZipUpload::Put(put))
    }

    fn encode(&self, out: &mut Writer) {
        match self {
            ZipUpload::Post(post) => post.encode(out),
            ZipUpload::Put(put) => put.encode(out),
        }
    }
}

message! {
    /// What the server of an upload answered; travels as JSON text in `upload_results`.
    Ignore struct HttpOutputVolumeResponse {
        /// Its headers.
        headers: StrMap,
        /// Its body.
        body: String,
    }
}

impl HttpOutputVolumeResponse {
    /// Reads the JSON text that stands in `upload_results`.
    pub fn decode(text: &str) -> Result<Self, super::DecodeError> {
        super::schema::decode_frame(text, || "HttpOutputVolumeResponse".to_owned())
    }

    /// The JSON text that stands in `upload_results`.
    pub fn encode(&self) -> String {
        super::schema::encode_compact(self)
    }
}

/// Reads a path that can name nothing above the folder it is taken from: relative, without `.`, `..`, empty parts,
/// backslashes or NUL (the rule of the published package; the public source of January 2026 takes any text).
fn canonical_path(value: &JsonValue<'_>, errors: &mut Errors) -> Option<String> {
    let path = String::decode(value, errors)?;
    match path_problem(&path) {
        None => Some(path),
        Some(problem) => errors.fail(Fault::value(format!("{path}: {problem}")), value),
    }
}

fn path_problem(path: &str) -> Option<&'static str> {
    let parts = || path.split('/');
    if path.is_empty() {
        Some("must not be empty")
    } else if path.contains('\0') {
        Some("must not contain NUL bytes")
    } else if path.contains('\\') {
        Some("must not contain backslashes")
    } else if path.starts_with('/') {
        Some("must be relative, not absolute")
    } else if parts().any(|part| matches!(part, "" | "." | "..")) {
        Some("must not contain empty, '.' or '..' components or end with '/'")
    } else if parts().any(|part| part.len() > MAX_NAME_BYTES) {
        Some("must not have components longer than 255 bytes")
    } else {
        None
    }
}
