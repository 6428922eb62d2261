//! What users post, as the messages that go to the validator. Pure.
//!
//! The message carries the user's signature as it came. It is checked against the message itself, which is what the
//! validator checks too, so whatever passes here passes there.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::base::limits::JOB_REQUEST_BYTES;
use crate::facilitator::router::job_time;
use crate::identity::PublicKey;
use crate::protocol::json::too_much;
use crate::protocol::{
    ExecutorClass, FacilitatorToValidator, MultiUpload, OutputUpload, OutputUploadType, Signature, SignedRequest,
    SigningError, V0JobCheated, V2JobRequest,
};

/// Fields of a job that go into the message as they are.
const PLAIN: [&str; 13] = [
    "job_namespace",
    "executor_class",
    "docker_image",
    "args",
    "env",
    "use_gpu",
    "artifacts_dir",
    "on_trusted_miner",
    "download_time_limit",
    "execution_time_limit",
    "upload_time_limit",
    "streaming_start_time_limit",
    "streaming_details",
];

/// Characters of a job's tag.
pub const TAG_CHARS: usize = 255;

/// A post that is not taken: nothing was stored or sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The body is not what it should be.
    #[error("{0}")]
    Body(String),
    /// The signature's headers are missing or cannot be read, or it does not fit.
    #[error("{0}")]
    Signature(#[from] SigningError),
    /// Somebody else signed.
    #[error("the request is signed by {0}, not by the user who is logged in")]
    Signatory(PublicKey),
    /// The message would be too large for the validator.
    #[error(
        "the job is {0} bytes as a message and validators take at most {JOB_REQUEST_BYTES}: give large inputs by URL \
         instead of inline"
    )]
    Size(usize),
}

/// A job that may be stored and sent.
#[derive(Debug)]
pub struct Submission {
    /// Its validator.
    pub validator: PublicKey,
    /// The message.
    pub text: String,
    /// How long it may take by its own limits.
    pub job_time: Duration,
    /// What the user calls it. No validator is told.
    pub tag: String,
    /// The class that it asks for.
    pub class: ExecutorClass,
    /// What the user files it under, which its validator is told.
    pub namespace: Option<String>,
}

/// Makes a user's post of a job the message of that uuid.
///
/// # Errors
/// See [`Refusal`].
pub fn job(body: &[u8], signature: Signature, user: PublicKey, uuid: &str) -> Result<Submission, Refusal> {
    let mut body = object(body)?;
    let target = match body.shift_remove("target_validator_hotkey") {
        Some(Value::String(target)) => target,
        _ => return Err(Refusal::Body("target_validator_hotkey should be the SS58 address of a validator".to_owned())),
    };
    let validator =
        PublicKey::from_ss58(&target).map_err(|error| Refusal::Body(format!("target_validator_hotkey: {error}")))?;
    let tag = match body.shift_remove("tag") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(tag)) if tag.chars().count() <= TAG_CHARS => tag,
        Some(_) => return Err(Refusal::Body(format!("tag should be a text of at most {TAG_CHARS} characters"))),
    };
    let mut message = Map::new();
    message.insert("message_type".to_owned(), "V2JobRequest".into());
    message.insert("uuid".to_owned(), uuid.into());
    for field in PLAIN {
        message.extend(body.shift_remove_entry(field));
    }
    for (field, named, kind, tag) in [
        ("volumes", "volume", "volume_type", "multi_volume"),
        ("uploads", "output_upload", "output_upload_type", "multi_upload"),
    ] {
        match body.shift_remove(field) {
            None | Some(Value::Null) => {}
            Some(Value::Array(parts)) if parts.is_empty() => {}
            // The signature covers the same list either way; a zip of the whole output is no part of a multi-upload.
            Some(Value::Array(mut parts)) if parts.iter().any(is_zip) => match parts.pop() {
                Some(zip) if parts.is_empty() => drop(message.insert(named.to_owned(), zip)),
                _ => {
                    let why = "a zip of the whole output should be the only upload; the others should be single files";
                    return Err(Refusal::Body(format!("{field}: {why}")));
                }
            },
            Some(parts @ Value::Array(_)) => {
                let multi = Map::from_iter([(kind.to_owned(), tag.into()), (field.to_owned(), parts)]);
                message.insert(named.to_owned(), Value::Object(multi));
            }
            Some(_) => return Err(Refusal::Body(format!("{field} should be a list"))),
        }
    }
    if let Some(unknown) = body.keys().next() {
        return Err(Refusal::Body(format!("{unknown:?} is no field of a job")));
    }
    let FacilitatorToValidator::V2JobRequest(mut request) = decode(message)? else {
        return Err(Refusal::Body("this is not a job".to_owned()));
    };
    request.signature = Some(signature);
    signed_by(user, request.verify()?)?;
    let (job_time, class, namespace) = (job_time(&request), request.executor_class, request.job_namespace.clone());
    let text = encode(request)?;
    Ok(Submission { validator, text, job_time, tag, class, namespace })
}

/// Makes a user's report the message to the validator; gives it with the uuid of the job.
///
/// # Errors
/// See [`Refusal`].
pub fn cheated(body: &[u8], signature: Signature, user: PublicKey) -> Result<(V0JobCheated, String), Refusal> {
    let mut body = object(body)?;
    let mut message = Map::new();
    message.insert("message_type".to_owned(), "V0JobCheated".into());
    for field in ["job_uuid", "trusted_job_uuid", "details"] {
        message.insert(field.to_owned(), body.shift_remove(field).unwrap_or(Value::Null));
    }
    if let Some(unknown) = body.keys().next() {
        return Err(Refusal::Body(format!("{unknown:?} is no field of a report")));
    }
    let FacilitatorToValidator::V0JobCheated(mut report) = decode(message)? else {
        return Err(Refusal::Body("this is not a report".to_owned()));
    };
    report.signature = Some(signature);
    signed_by(user, report.verify()?)?;
    let text = encode(report.clone())?;
    Ok((report, text))
}

fn is_zip(upload: &Value) -> bool {
    let zips = [OutputUploadType::ZipAndHttpPost, OutputUploadType::ZipAndHttpPut];
    zips.iter().any(|kind| upload["output_upload_type"] == kind.as_str())
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    if let Some(why) = too_much(&String::from_utf8_lossy(body)) {
        return Err(Refusal::Body(format!("the body has {why}")));
    }
    serde_json::from_slice(body).map_err(|error| Refusal::Body(format!("the body should be a JSON object: {error}")))
}

fn decode(message: Map<String, Value>) -> Result<FacilitatorToValidator, Refusal> {
    FacilitatorToValidator::decode(&Value::Object(message).to_string())
        .map_err(|error| Refusal::Body(error.to_string()))
}

fn signed_by(user: PublicKey, signer: PublicKey) -> Result<(), Refusal> {
    if signer == user { Ok(()) } else { Err(Refusal::Signatory(signer)) }
}

fn encode(message: impl Into<FacilitatorToValidator>) -> Result<String, Refusal> {
    let text = message.into().encode();
    if text.len() > JOB_REQUEST_BYTES { Err(Refusal::Size(text.len())) } else { Ok(text) }
}

/// What of a job no user's post carries, in words.
pub fn not_carried(request: &V2JobRequest) -> Option<&'static str> {
    let Some(OutputUpload::Multi(MultiUpload { system_output: Some(_), .. })) = &request.output_upload else {
        return None;
    };
    Some(
        "output_upload.system_output: no facilitator takes it from a user, whose signature does not cover it; name \
         each file in uploads, or send the whole output by an output_upload of its own, as \
         {\"output_upload_type\": \"zip_and_http_put\", \"url\": URL}",
    )
}

/// The body that [`job`] takes, for a request that is signed, with a tag unless that is empty: what `submit` posts.
///
/// # Errors
/// What of the request it would not carry.
pub fn body_of(request: &V2JobRequest, target: &PublicKey, tag: &str) -> Result<String, Refusal> {
    if let Some(what) = not_carried(request) {
        return Err(Refusal::Body(what.to_owned()));
    }
    let text = FacilitatorToValidator::from(request.clone()).encode_compact();
    let mut message: Map<String, Value> = serde_json::from_str(&text).expect("what the encoder writes is JSON");
    let mut body = Map::new();
    body.insert("target_validator_hotkey".to_owned(), target.to_ss58().into());
    for field in PLAIN {
        // Like the SDK, which leaves out what it has not.
        message.shift_remove_entry(field).filter(|(_, value)| !value.is_null()).map(|(k, v)| body.insert(k, v));
    }
    for (field, named) in [("volumes", "volume"), ("uploads", "output_upload")] {
        if let Some(Value::Object(mut part)) = message.shift_remove(named) {
            let parts = part.shift_remove(field).unwrap_or_else(|| vec![Value::Object(part)].into());
            body.insert(field.to_owned(), parts);
        }
    }
    if !tag.is_empty() {
        body.insert("tag".to_owned(), tag.into());
    }
    Ok(Value::Object(body).to_string())
}
