//! What the facilitator and the validators say to each other.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiter::JsonValue;
use serde_json::Value;

use super::DecodeError;
use super::enums::{
    ExecutorClass, HordeFailureReason, JobFailureReason, JobParticipantType, JobRejectionReason, JobStage, JobStatus,
    ResponseStatus, SignatureScope,
};
use super::error::{Errors, Fault};
use super::executor::StreamingDetails;
use super::int::Int;
use super::json::{JsonMap, Style, Writer};
use super::scalars::StrMap;
use super::schema::{
    Entries, Literal, Wire, decode_frame, direction, encode, encode_compact, entries, forbid_extra, lookup, message,
    tagged, unknown_tag,
};
use super::upload::OutputUpload;
use super::volume::Volume;

direction! {
    /// What a validator says to the facilitator.
    pub enum ValidatorToFacilitator {
        V0AuthenticationRequest,
        V0JobStatusUpdate,
        V0MachineSpecsUpdate,
        V0Heartbeat,
    }
}

/// What the facilitator says to a validator.
///
/// `Response` carries no `message_type`: a frame without one is read as a `Response`.
#[derive(Debug, Clone, PartialEq)]
// A message is moved once or twice on its way; a box for the large ones would burden every match.
#[allow(clippy::large_enum_variant)]
pub enum FacilitatorToValidator {
    /// See [`Response`].
    Response(Response),
    /// See [`V2JobRequest`].
    V2JobRequest(V2JobRequest),
    /// See [`V0JobCheated`].
    V0JobCheated(V0JobCheated),
}

impl FacilitatorToValidator {
    /// The `message_type` of each that has one; [`Response`] has none.
    pub const TYPES: &[&str] = &["V2JobRequest", "V0JobCheated"];

    /// Reads one text frame.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        decode_frame(text, || "Response, V2JobRequest or V0JobCheated".to_owned())
    }

    /// Writes the text frame, byte for byte as the facilitator does: job requests and reports of cheats go through
    /// Python's `json.dumps`, answers do not.
    pub fn encode(&self) -> String {
        match self {
            FacilitatorToValidator::Response(_) => encode_compact(self),
            _ => encode(self, Style::PYTHON),
        }
    }

    /// Writes the message as pydantic does, without spaces and in Unicode; every peer reads that as well.
    pub fn encode_compact(&self) -> String {
        encode_compact(self)
    }
}

impl Wire for FacilitatorToValidator {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        const BY: &str = "message_type";
        match value {
            JsonValue::Object(entries) if lookup(entries, BY).is_none() => {
                errors.at("Response", |errors| Response::decode(value, errors)).map(Self::Response)
            }
            _ => match tagged(value, BY, errors)?.as_ref() {
                "V2JobRequest" => {
                    errors.at("V2JobRequest", |errors| Wire::decode(value, errors)).map(Self::V2JobRequest)
                }
                "V0JobCheated" => {
                    errors.at("V0JobCheated", |errors| Wire::decode(value, errors)).map(Self::V0JobCheated)
                }
                tag => {
                    let tags = ["V2JobRequest", "V0JobCheated"].map(|tag| tag.shown());
                    errors.fail(unknown_tag(tag, BY, &tags), value)
                }
            },
        }
    }

    fn encode(&self, out: &mut Writer) {
        match self {
            Self::Response(message) => message.encode(out),
            Self::V2JobRequest(message) => message.encode(out),
            Self::V0JobCheated(message) => message.encode(out),
        }
    }
}

impl From<Response> for FacilitatorToValidator {
    fn from(message: Response) -> Self {
        Self::Response(message)
    }
}

impl From<V2JobRequest> for FacilitatorToValidator {
    fn from(message: V2JobRequest) -> Self {
        Self::V2JobRequest(message)
    }
}

impl From<V0JobCheated> for FacilitatorToValidator {
    fn from(message: V0JobCheated) -> Self {
        Self::V0JobCheated(message)
    }
}

message! {
    /// The facilitator's answer to an authentication, a status update or a message it could not read; answers carry no
    /// id and come in the order of what they answer.
    Forbid struct Response {
        /// Whether it was taken.
        status: ResponseStatus,
        /// Why not.
        errors: Vec<ErrorItem> = Vec::new(),
    }
}

message! {
    /// One reason of a [`Response`] (`Error` in Python).
    Allow struct ErrorItem {
        /// The reason as a sentence.
        msg: String,
        /// Its type, such as `job.not_found` or a type of pydantic's.
        kind as "type": String,
        /// What to do about it.
        help: String = String::new(),
        ..
        /// Whatever else stood there: `loc`, `input`, `ctx` and `url` for a message that could not be read.
        extra
    }
}

message! {
    /// A user's signature over a request; see [`super::signing`].
    Forbid struct Signature {
        /// The kind of key, `bittensor`; not signed and not checked.
        signature_type: String = String::new(),
        /// Who signed (SS58).
        signatory: String = String::new(),
        /// When, in nanoseconds of Unix time.
        timestamp_ns: Int = Int::default(),
        /// The signature; in base64 on the wire.
        signature: Base64Bytes,
        /// What it covers; not signed.
        signature_scope: SignatureScope = SignatureScope::SignedFields,
    }
}

/// Bytes that travel as base64, read as leniently as Python does: what is no base64 character is skipped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Base64Bytes(pub Vec<u8>);

impl Wire for Base64Bytes {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        let JsonValue::Str(text) = value else {
            return errors.fail(Fault::new("bytes_type", "Input should be a valid bytes"), value);
        };
        match Base64Bytes::from_text(text) {
            Ok(bytes) => Some(bytes),
            Err(why) => errors.fail(Fault::value(why), value),
        }
    }

    fn encode(&self, out: &mut Writer) {
        out.string(&STANDARD.encode(&self.0));
    }
}

impl Base64Bytes {
    /// Reads up to the first complete padding, as Python's `base64.b64decode` does.
    pub(super) fn from_text(text: &str) -> Result<Self, String> {
        let mut digits = String::with_capacity(text.len());
        let mut pads = 0;
        for c in text.chars() {
            let open = digits.len() % 4;
            if c == '=' && open >= 2 {
                pads += 1;
                if open + pads == 4 {
                    digits.extend(std::iter::repeat_n('=', pads));
                    break;
                }
            } else if c.is_ascii_alphanumeric() || c == '+' || c == '/' {
                pads = 0;
                digits.push(c);
            }
        }
        match digits.len() % 4 {
            0 => {}
            1 => {
                return Err(format!(
                    "Invalid base64-encoded string: number of data characters ({}) cannot be 1 more than a \
                     multiple of 4",
                    digits.len()
                ));
            }
            _ => return Err("Incorrect padding".to_owned()),
        }
        // Python ignores bits behind the last byte, so the strict decoder is configured to do the same.
        let engine = base64::engine::GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            base64::engine::GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
        );
        engine.decode(digits).map(Base64Bytes).map_err(|error| error.to_string())
    }
}

message! {
    /// A user's job for a validator. The signature covers the fields from `executor_class` to `streaming_details`, but
    /// of a multi-upload not `system_output`; so one signature serves any `uuid`.
    Forbid struct V2JobRequest {
        /// The user's signature.
        signature: Option<Signature> = None,
        @"type" = "job.new",
        @"message_type" = "V2JobRequest",
        /// The job; any text.
        uuid: String,
        /// What the user files it under.
        job_namespace: Option<String> = None,
        /// On what it runs.
        executor_class: ExecutorClass,
        /// The image of its container.
        docker_image: String,
        /// The command in the container.
        args: Vec<String>,
        /// The container's environment.
        env: StrMap,
        /// Without effect.
        use_gpu: bool = true,
        /// What it finds under `/volume/`.
        volume: Option<Volume> = None,
        /// Where its output goes.
        output_upload: Option<OutputUpload> = None,
        /// A folder of the container whose files come back in the result.
        artifacts_dir: Option<String> = None,
        /// Whether it runs on the validator's own miner.
        on_trusted_miner: bool = false,
        /// Seconds for the volumes.
        download_time_limit: Int,
        /// Seconds for the command.
        execution_time_limit: Int,
        /// Seconds for the output.
        upload_time_limit: Int,
        /// Seconds for the streaming server.
        streaming_start_time_limit: Int,
        /// Who may connect to the streaming server; set for streaming jobs.
        streaming_details: Option<StreamingDetails> = None,
    }
}

message! {
    /// A user's word that a miner cheated at a job.
    Forbid struct V0JobCheated {
        /// The user's signature.
        signature: Option<Signature> = None,
        @"type" = "job.cheated",
        @"message_type" = "V0JobCheated",
        /// The job.
        job_uuid: String,
        /// The same job on the trusted miner.
        trusted_job_uuid: String,
        /// What differs; anything.
        details: Value,
    }
}

message! {
    /// What the user signs of a job; the facilitator's job API takes the same fields.
    Ignore struct SignedFields {
        /// As in [`V2JobRequest`].
        executor_class: String,
        /// As in [`V2JobRequest`].
        docker_image: String,
        /// As in [`V2JobRequest`].
        args: Vec<String>,
        /// As in [`V2JobRequest`]; its order counts.
        env: StrMap,
        /// As in [`V2JobRequest`].
        use_gpu: bool,
        /// Empty where the request has none.
        artifacts_dir: String,
        /// As in [`V2JobRequest`].
        on_trusted_miner: bool,
        /// As in [`V2JobRequest`].
        download_time_limit: Int,
        /// As in [`V2JobRequest`].
        execution_time_limit: Int,
        /// As in [`V2JobRequest`].
        upload_time_limit: Int,
        /// As in [`V2JobRequest`].
        streaming_start_time_limit: Int,
        /// As in [`V2JobRequest`].
        streaming_details: Option<StreamingDetails> = None,
        /// The volume, or the parts of a multi-volume.
        volumes: Vec<Value>,
        /// The upload, or the files of a multi-upload.
        uploads: Vec<Value>,
    }
}

impl SignedFields {
    /// Reads the fields from their JSON text.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        decode_frame(text, || "SignedFields".to_owned())
    }

    /// The JSON text; it is what the user signs, before it is hashed.
    pub fn encode(&self) -> String {
        encode_compact(self)
    }
}

message! {
    /// The validator's first frame: its key, and its signature over the 32 bytes of the key.
    Forbid struct V0AuthenticationRequest {
        @"message_type" = "V0AuthenticationRequest",
        /// The key (hex without `0x`).
        public_key: String,
        /// The signature (`0x` hex).
        signature: String,
    }
}

/// A sign of life; a validator counts as connected for 3 minutes after one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct V0Heartbeat;

// The one message without a field.
impl Wire for V0Heartbeat {
    fn decode(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Self> {
        let found: &Entries<'_> = entries(value, "V0Heartbeat", errors)?;
        let before = errors.mark();
        "V0Heartbeat".check(found, "message_type", errors);
        forbid_extra(found, &["message_type"], errors);
        (errors.mark() == before).then_some(V0Heartbeat)
    }

    fn encode(&self, out: &mut Writer) {
        out.open('{');
        out.key("message_type");
        out.string("V0Heartbeat");
        out.close('}');
    }
}

message! {
    /// How far a job has come (`JobStatusUpdate` in Python); answered with exactly one [`Response`].
    Forbid struct V0JobStatusUpdate {
        @"message_type" = "V0JobStatusUpdate",
        /// The job.
        uuid: String,
        /// How far it has come.
        status: JobStatus,
        /// Details.
        metadata: Option<JobStatusMetadata> = None,
    }
}

message! {
    /// The details of a status; each part belongs to one status.
    Allow struct JobStatusMetadata {
        /// For `completed`, and for `failed` where there is output.
        miner_response: Option<JobResultDetails> = None,
        /// For `rejected`.
        job_rejection_details: Option<JobRejectionDetails> = None,
        /// For `failed`.
        job_failure_details: Option<JobFailureDetails> = None,
        /// For `horde_failed`.
        horde_failure_details: Option<HordeFailureDetails> = None,
        /// For `streaming_ready`.
        streaming_details: Option<StreamingServerDetails> = None,
        ..
        /// Whatever else stood there, such as the `comment` of older validators.
        extra
    }
}

impl JobStatusMetadata {
    /// Reads the JSON text that [`JobStatusMetadata::encode`] writes, as it is kept apart from its status.
    pub fn decode(text: &str) -> Result<Self, DecodeError> {
        decode_frame(text, || "JobStatusMetadata".to_owned())
    }

    /// The JSON text as it stands in a status update.
    pub fn encode(&self) -> String {
        encode_compact(self)
    }
}

message! {
    /// What a job gave.
    Allow struct JobResultDetails {
        /// What it wrote to stderr, perhaps truncated.
        docker_process_stderr: String,
        /// What it wrote to stdout, perhaps truncated.
        docker_process_stdout: String,
        /// Its artifacts: path to base64.
        artifacts: Option<StrMap> = None,
        /// What the servers of its uploads answered: name to JSON text.
        upload_results: Option<StrMap> = None,
        ..
        /// Whatever else stood there.
        extra
    }
}

message! {
    /// Why nobody took a job.
    Ignore struct JobRejectionDetails {
        /// Who turned it away.
        rejected_by: JobParticipantType,
        /// Why.
        reason: JobRejectionReason,
        /// Why, as a sentence.
        message: String,
        /// More about it.
        context: Option<JsonMap> = None,
    }
}

message! {
    /// Why a job itself failed.
    Ignore struct JobFailureDetails {
        /// Why.
        reason: JobFailureReason,
        /// When.
        stage: JobStage,
        /// Why, as a sentence.
        message: String,
        /// More about it.
        context: Option<JsonMap> = None,
        /// The exit status of its container.
        docker_process_exit_status: Option<Int> = None,
        /// What it wrote to stdout, perhaps truncated.
        docker_process_stdout: Option<String> = None,
        /// What it wrote to stderr, perhaps truncated.
        docker_process_stderr: Option<String> = None,
    }
}

message! {
    /// Why the horde failed a job.
    Ignore struct HordeFailureDetails {
        /// Who says so.
        reported_by: JobParticipantType,
        /// Why.
        reason: HordeFailureReason,
        /// Why, as a sentence.
        message: String,
        /// More about it.
        context: Option<JsonMap> = None,
    }
}

message! {
    /// Where the streaming server of a job listens.
    Forbid struct StreamingServerDetails {
        /// Its certificate (PEM).
        streaming_server_cert: Option<String> = None,
        /// Its address.
        streaming_server_address: Option<String> = None,
        /// Its port.
        streaming_server_port: Option<Int> = None,
    }
}

message! {
    /// The machine that a miner's executor runs on; not answered.
    Forbid struct V0MachineSpecsUpdate {
        @"message_type" = "V0MachineSpecsUpdate",
        /// The miner (SS58).
        miner_hotkey: String,
        /// The validator (SS58).
        validator_hotkey: String,
        /// The machine; anything.
        specs: JsonMap,
        /// The batch of jobs that found it out.
        batch_id: String,
    }
}
