//! What is signed of the messages, byte for byte as the Python peers build it, and the signing and checking itself.
//!
//! | what | signed bytes | by |
//! | --- | --- | --- |
//! | [`V0AuthenticationRequest`] | the 32 bytes of the public key | the validator |
//! | [`ValidatorAuthForMiner`] | `validator:miner:timestamp` | the validator |
//! | receipts | key-sorted JSON with spaces | the validator, then the miner |
//! | [`V0InitialJobRequest`], [`V0JobRequest`] | key-sorted JSON without spaces, as received | the validator |
//! | [`V0StreamingJobReadyRequest`] | `job:ip:port:certificate` | the miner |
//! | [`V2JobRequest`], [`V0JobCheated`], HTTP requests | BLAKE2b-512 of time and payload | the user |
//! | a login nonce | the nonce itself, see [`super::nonce`] | the user |
//!
//! A valid signature says who wrote a message, not that it is new: age and repetition are for the caller to judge.

use blake2::{Blake2b512, Digest};
use jiter::JsonValue;
use serde_json::Value;

use super::enums::SignatureScope;
use super::executor::{V0InitialJobRequest, V0JobRequest, V0StreamingJobReadyRequest};
use super::facilitator::{Base64Bytes, Signature, SignedFields, V0AuthenticationRequest, V0JobCheated, V2JobRequest};
use super::int::Int;
use super::json::{self, Style, Writer, sort_keys, to_value};
use super::miner::ValidatorAuthForMiner;
use super::receipt::{
    JobAcceptedReceiptPayload, JobFinishedReceiptPayload, JobStartedReceiptPayload, Receipt, ReceiptPayload,
};
use super::schema::{Wire, encode_compact, lookup};
use super::upload::OutputUpload;
use super::volume::Volume;
use crate::base::text::truncated;
use crate::identity::{IdentityError, KeyPair, PublicKey, Signature as RawSignature, verify_batch};

/// The only kind of key there is.
const SIGNATURE_TYPE: &str = "bittensor";

/// Why a signature does not count. Nothing was changed; the same message fails again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// The message carries no signature.
    #[error("the message is not signed")]
    Missing,
    /// The key or the address of the signer cannot be read.
    #[error("the signer cannot be read")]
    Signer(#[source] IdentityError),
    /// The signature is no signature at all.
    #[error("the signature cannot be read")]
    Malformed(#[source] IdentityError),
    /// The signature of a job request is not 64 bytes long.
    #[error("a signature is 64 bytes long, this one {0}")]
    Length(usize),
    /// The signer did not sign this.
    #[error("the signature is not by {0} over this message")]
    Mismatch(PublicKey),
    /// The time of a job request's signature cannot be hashed.
    #[error("timestamp_ns {0} is not between 0 and 2^64")]
    Timestamp(Int),
    /// The message is no JSON object.
    #[error("the message is not a JSON object: {0}")]
    Json(String),
    /// One of the HTTP headers of a signature is missing or cannot be read.
    #[error("the header {name} {why}")]
    Header {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// Checks a signature in `0x` hex over a text.
fn check_text(signer: PublicKey, text: &str, signature: &str) -> Result<PublicKey, SigningError> {
    let signature = RawSignature::from_hex(signature).map_err(SigningError::Malformed)?;
    match signer.verify_text(text, &signature) {
        true => Ok(signer),
        false => Err(SigningError::Mismatch(signer)),
    }
}

fn signer(ss58: &str) -> Result<PublicKey, SigningError> {
    PublicKey::from_ss58(ss58).map_err(SigningError::Signer)
}

/// Our own compact text with its keys sorted.
fn sorted(compact: &str, style: Style, without: Option<&str>) -> String {
    sort_keys(compact, style, without).expect("what the encoder writes is JSON")
}

/// A text as Python's `json.dumps` writes it.
fn json_string(text: &str) -> Vec<u8> {
    let mut out = Writer::new(Style::PYTHON);
    out.string(text);
    out.into_string().into_bytes()
}

impl V0AuthenticationRequest {
    /// The first frame of the validator that holds `key`.
    pub fn sign(key: &KeyPair) -> Self {
        let public = key.public();
        let signature = key.sign(public.as_bytes()).to_hex();
        V0AuthenticationRequest { public_key: public.to_hex(), signature }
    }

    /// Gives the key whose holder sent this.
    pub fn verify(&self) -> Result<PublicKey, SigningError> {
        let public = PublicKey::from_hex(&self.public_key).map_err(SigningError::Signer)?;
        let signature = RawSignature::from_hex(&self.signature).map_err(SigningError::Malformed)?;
        match public.verify(public.as_bytes(), &signature) {
            true => Ok(public),
            false => Err(SigningError::Mismatch(public)),
        }
    }
}

impl ValidatorAuthForMiner {
    /// The validator's first frame to a miner, at `timestamp` seconds of Unix time.
    pub fn sign(key: &KeyPair, miner_hotkey: &str, timestamp: i64) -> Self {
        let mut auth = ValidatorAuthForMiner {
            validator_hotkey: key.ss58(),
            miner_hotkey: miner_hotkey.to_owned(),
            timestamp: timestamp.into(),
            signature: String::new(),
        };
        auth.signature = key.sign_text(&auth.blob_for_signing()).to_hex();
        auth
    }

    /// The signed text.
    pub fn blob_for_signing(&self) -> String {
        format!("{}:{}:{}", self.validator_hotkey, self.miner_hotkey, self.timestamp)
    }

    /// Gives the key of `validator_hotkey`, which signed this; whether the miner and the time are right is not looked
    /// at.
    pub fn verify(&self) -> Result<PublicKey, SigningError> {
        check_text(signer(&self.validator_hotkey)?, &self.blob_for_signing(), &self.signature)
    }
}

/// Gives each kind of receipt its signed text, and the signing and checking of it.
macro_rules! signed_receipt {
    ($($name:ident),*) => {$(
        impl $name {
            /// The signed text.
            pub fn blob_for_signing(&self) -> String {
                sorted(&encode_compact(self), Style::PYTHON, None)
            }

            /// A signature over the receipt (`0x` hex).
            pub fn sign(&self, key: &KeyPair) -> String {
                key.sign_text(&self.blob_for_signing()).to_hex()
            }

            /// Checks that the holder of the address `hotkey` signed the receipt, and gives the key.
            pub fn verify(&self, hotkey: &str, signature: &str) -> Result<PublicKey, SigningError> {
                check_text(signer(hotkey)?, &self.blob_for_signing(), signature)
            }
        }
    )*};
}
signed_receipt!(JobStartedReceiptPayload, JobAcceptedReceiptPayload, JobFinishedReceiptPayload, ReceiptPayload);

impl Receipt {
    /// Checks the validator's signature, and gives the validator's key.
    pub fn verify_validator(&self) -> Result<PublicKey, SigningError> {
        self.payload.verify(self.payload.validator_hotkey(), &self.validator_signature)
    }

    /// Checks the miner's signature, and gives the miner's key.
    pub fn verify_miner(&self) -> Result<PublicKey, SigningError> {
        self.payload.verify(self.payload.miner_hotkey(), &self.miner_signature)
    }
}

impl V0StreamingJobReadyRequest {
    /// The signed text; a missing address is `None` in it, as Python writes it.
    pub fn blob_for_signing(&self) -> String {
        let ip = self.ip.as_deref().unwrap_or("None");
        format!("{}:{ip}:{}:{}", self.job_uuid, self.port, self.public_key)
    }

    /// Fills in the miner's signature; to be done last, as it covers the address.
    pub fn sign(&mut self, miner: &KeyPair) {
        self.miner_signature = Some(miner.sign_text(&self.blob_for_signing()).to_hex());
    }

    /// Checks that the miner signed this.
    pub fn verify(&self, miner: PublicKey) -> Result<(), SigningError> {
        let signature = self.miner_signature.as_deref().ok_or(SigningError::Missing)?;
        check_text(miner, &self.blob_for_signing(), signature).map(drop)
    }
}

const VALIDATOR_SIGNATURE: &str = "validator_signature";

/// Gives the messages that a validator signs as a whole their signed text and the signing of it.
macro_rules! signed_by_validator {
    ($($name:ident),*) => {$(
        impl $name {
            /// The signed text of the message as we write it; of one that came, [`verify_validator_signature`] takes
            /// the frame itself.
            pub fn blob_for_signing(&self) -> String {
                sorted(&encode_compact(self), Style::PYTHON_TIGHT, Some(VALIDATOR_SIGNATURE))
            }

            /// Fills in the validator's signature; to be done last, as it covers everything else.
            pub fn sign(&mut self, validator: &KeyPair) {
                self.validator_signature = Some(validator.sign_text(&self.blob_for_signing()).to_hex());
            }
        }
    )*};
}
signed_by_validator!(V0InitialJobRequest, V0JobRequest);

/// Checks the `validator_signature` of a [`V0InitialJobRequest`] or [`V0JobRequest`] over the rest of the frame as it
/// came, keys included that we do not know.
///
/// A frame without a signature, or with one that cannot be read, is not signed by anybody. Fails only for a frame that
/// is no JSON object.
pub fn verify_validator_signature(frame: &str, validator: &PublicKey) -> Result<bool, SigningError> {
    let parsed = json::parse(frame).map_err(|error| SigningError::Json(error.description(frame)))?;
    let JsonValue::Object(entries) = &parsed else {
        return Err(SigningError::Json("it is another kind of value".to_owned()));
    };
    let Some(JsonValue::Str(signature)) = lookup(entries, VALIDATOR_SIGNATURE) else {
        return Ok(false);
    };
    let Ok(signature) = RawSignature::from_hex(signature) else {
        return Ok(false);
    };
    let blob = json::sorted(&parsed, Style::PYTHON_TIGHT, Some(VALIDATOR_SIGNATURE));
    Ok(validator.verify_text(&blob, &signature))
}

/// A message that a user signs, so that validators need not trust the facilitator.
pub trait SignedRequest {
    /// The user's signature, if there is one.
    fn signature(&self) -> Option<&Signature>;

    /// Takes another signature, or none.
    fn set_signature(&mut self, signature: Option<Signature>);

    /// What is hashed behind the time.
    fn canonical_bytes(&self) -> Vec<u8>;

    /// Signs the message, at `timestamp_ns` nanoseconds of Unix time.
    fn sign(&mut self, user: &KeyPair, timestamp_ns: u64) {
        let signature = Signature::over(&self.canonical_bytes(), user, timestamp_ns);
        self.set_signature(Some(signature));
    }

    /// Gives the key of `signatory`, which signed this; whether that user may send it is for the caller to judge.
    fn verify(&self) -> Result<PublicKey, SigningError> {
        self.signature().ok_or(SigningError::Missing)?.verify(&self.canonical_bytes())
    }
}

/// That somebody signed a hash, not checked yet.
struct Claim {
    signer: PublicKey,
    hash: [u8; 64],
    signature: RawSignature,
}

impl Claim {
    fn judged(self, valid: bool) -> Result<PublicKey, SigningError> {
        if valid { Ok(self.signer) } else { Err(SigningError::Mismatch(self.signer)) }
    }
}

/// What [`SignedRequest::verify`] gives for each of the requests, at a fraction of its price where there are many.
///
/// It works for as long as that takes (see [`verify_batch`]) and cannot be interrupted: the caller bounds the number.
pub fn verify_job_requests<'r>(
    requests: impl IntoIterator<Item = &'r V2JobRequest>,
) -> Vec<Result<PublicKey, SigningError>> {
    let claim =
        |request: &V2JobRequest| request.signature().ok_or(SigningError::Missing)?.claim(&request.canonical_bytes());
    let claims: Vec<_> = requests.into_iter().map(claim).collect();
    let readable: Vec<_> = claims.iter().flatten().map(|c| (c.signer, &c.hash[..], c.signature)).collect();
    let mut verdicts = verify_batch(&readable).into_iter();
    let mut judge = |claim: Claim| claim.judged(verdicts.next().expect("every claim has a verdict"));
    claims.into_iter().map(|claim| claim.and_then(&mut judge)).collect()
}

impl SignedRequest for V2JobRequest {
    fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    fn set_signature(&mut self, signature: Option<Signature>) {
        self.signature = signature;
    }

    /// The payload is a text to Python, so that its JSON is that of a string, and key order inside counts.
    fn canonical_bytes(&self) -> Vec<u8> {
        json_string(&SignedFields::from(self).encode())
    }
}

impl SignedRequest for V0JobCheated {
    fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    fn set_signature(&mut self, signature: Option<Signature>) {
        self.signature = signature;
    }

    fn canonical_bytes(&self) -> Vec<u8> {
        let mut payload = Writer::new(Style::COMPACT);
        payload.open('{');
        payload.key("job_uuid");
        payload.string(&self.job_uuid);
        payload.key("trusted_job_uuid");
        payload.string(&self.trusted_job_uuid);
        payload.key("details");
        payload.value(&self.details);
        payload.close('}');
        sorted(&payload.into_string(), Style::PYTHON, None).into_bytes()
    }

    /// The message's own rule is to sign the payload, the SDK (0.0.19) signs the text of it as it does for jobs: both
    /// count.
    fn verify(&self) -> Result<PublicKey, SigningError> {
        let signature = self.signature().ok_or(SigningError::Missing)?;
        let payload = self.canonical_bytes();
        signature.verify(&payload).or_else(|_| {
            let text = String::from_utf8(payload).expect("JSON is UTF-8");
            signature.verify(&json_string(&text))
        })
    }
}

impl From<&V2JobRequest> for SignedFields {
    fn from(job: &V2JobRequest) -> Self {
        let volumes = match &job.volume {
            None => Vec::new(),
            Some(Volume::Multi(multi)) => multi.volumes.iter().map(value_of).collect(),
            Some(single) => vec![value_of(single)],
        };
        let uploads = match &job.output_upload {
            None => Vec::new(),
            Some(OutputUpload::Multi(multi)) => multi.uploads.iter().map(value_of).collect(),
            Some(single) => vec![value_of(single)],
        };
        SignedFields {
            executor_class: job.executor_class.to_string(),
            docker_image: job.docker_image.clone(),
            args: job.args.clone(),
            env: job.env.clone(),
            use_gpu: job.use_gpu,
            artifacts_dir: job.artifacts_dir.clone().unwrap_or_default(),
            on_trusted_miner: job.on_trusted_miner,
            download_time_limit: job.download_time_limit.clone(),
            execution_time_limit: job.execution_time_limit.clone(),
            upload_time_limit: job.upload_time_limit.clone(),
            streaming_start_time_limit: job.streaming_start_time_limit.clone(),
            streaming_details: job.streaming_details.clone(),
            volumes,
            uploads,
        }
    }
}

/// A part of a message as a free-form value.
fn value_of(part: &impl Wire) -> Value {
    let text = encode_compact(part);
    to_value(&JsonValue::parse(text.as_bytes(), false).expect("what the encoder writes is JSON"))
}

/// What is signed of a payload at a time: a BLAKE2b-512 of the time as 8 bytes, the highest first, and the payload.
pub fn signed_hash(canonical_bytes: &[u8], timestamp_ns: u64) -> [u8; 64] {
    let hasher = Blake2b512::new().chain_update(timestamp_ns.to_be_bytes());
    hasher.chain_update(canonical_bytes).finalize().into()
}

/// The canonical bytes of an HTTP request, as the SDK signs it: the method, the address without scheme and host, and
/// the JSON body.
pub fn http_canonical_bytes(method: &str, url: &str, body: Option<&Value>) -> Vec<u8> {
    let mut payload = Writer::new(Style::COMPACT);
    payload.open('{');
    payload.key("action");
    payload.string(&format!("{} {}", method.to_uppercase(), without_host(url)));
    payload.key("json");
    payload.value(body.unwrap_or(&Value::Null));
    payload.close('}');
    sorted(&payload.into_string(), Style::PYTHON, None).into_bytes()
}

fn without_host(url: &str) -> &str {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url;
    };
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let path = rest.find('/').unwrap_or(rest.len());
    if scheme.is_empty() || !scheme.chars().all(word) || path == 0 { url } else { &rest[path..] }
}

/// How much of a header that is wrong an error tells.
const SHOWN_BYTES: usize = 80;

const TYPE_HEADER: &str = "X-CH-Signature-Type";
const SIGNATORY_HEADER: &str = "X-CH-Signatory";
const TIMESTAMP_HEADER: &str = "X-CH-Timestamp-NS";
const SIGNATURE_HEADER: &str = "X-CH-Signature";
const SCOPE_HEADER: &str = "X-CH-Signature-Scope";

impl Signature {
    /// Signs canonical bytes, at `timestamp_ns` nanoseconds of Unix time.
    pub fn over(canonical_bytes: &[u8], user: &KeyPair, timestamp_ns: u64) -> Self {
        let signature = user.sign(&signed_hash(canonical_bytes, timestamp_ns));
        Signature {
            signature_type: SIGNATURE_TYPE.to_owned(),
            signatory: user.ss58(),
            timestamp_ns: timestamp_ns.into(),
            signature: Base64Bytes(signature.to_bytes().to_vec()),
            signature_scope: SignatureScope::SignedFields,
        }
    }

    /// Gives the key of `signatory`, which signed these canonical bytes at this time. The type and the scope are not
    /// signed, and not looked at.
    pub fn verify(&self, canonical_bytes: &[u8]) -> Result<PublicKey, SigningError> {
        let claim = self.claim(canonical_bytes)?;
        let valid = claim.signer.verify(&claim.hash, &claim.signature);
        claim.judged(valid)
    }

    /// What there is to check, once everything can be read.
    fn claim(&self, canonical_bytes: &[u8]) -> Result<Claim, SigningError> {
        let signer = signer(&self.signatory)?;
        let bytes = &self.signature.0;
        let signature = bytes.as_slice().try_into().map_err(|_| SigningError::Length(bytes.len()))?;
        let timestamp_ns =
            self.timestamp_ns.as_u64().ok_or_else(|| SigningError::Timestamp(self.timestamp_ns.clone()))?;
        let hash = signed_hash(canonical_bytes, timestamp_ns);
        Ok(Claim { signer, hash, signature: RawSignature::from_bytes(signature) })
    }

    /// The headers that carry the signature with an HTTP request.
    pub fn to_headers(&self) -> [(&'static str, String); 5] {
        use base64::Engine as _;
        let signature = base64::engine::general_purpose::STANDARD.encode(&self.signature.0);
        [
            (TYPE_HEADER, self.signature_type.clone()),
            (SIGNATORY_HEADER, self.signatory.clone()),
            (TIMESTAMP_HEADER, self.timestamp_ns.to_string()),
            (SIGNATURE_HEADER, signature),
            (SCOPE_HEADER, self.signature_scope.to_string()),
        ]
    }

    /// Reads the signature of an HTTP request; `header` gives the value of a header by its name. The type is
    /// `bittensor`; a missing scope is `SignedFields`.
    pub fn from_headers<'h>(header: impl Fn(&'static str) -> Option<&'h str>) -> Result<Self, SigningError> {
        let wrong = |name, why: String| SigningError::Header { name, why };
        let needed = |name| header(name).ok_or_else(|| wrong(name, "is missing".to_owned()));
        let timestamp = needed(TIMESTAMP_HEADER)?;
        let signature_type = needed(TYPE_HEADER)?;
        if signature_type != SIGNATURE_TYPE {
            let shown = truncated(signature_type, SHOWN_BYTES);
            return Err(wrong(TYPE_HEADER, format!("is {shown:?}; it should be {SIGNATURE_TYPE}")));
        }
        Ok(Signature {
            signature_type: signature_type.to_owned(),
            signatory: needed(SIGNATORY_HEADER)?.to_owned(),
            timestamp_ns: timestamp.trim().parse().map_err(|error| wrong(TIMESTAMP_HEADER, format!("is {error}")))?,
            signature: Base64Bytes::from_text(needed(SIGNATURE_HEADER)?)
                .map_err(|why| wrong(SIGNATURE_HEADER, format!("cannot be read: {why}")))?,
            signature_scope: match header(SCOPE_HEADER) {
                None => SignatureScope::SignedFields,
                Some(scope) => scope.parse().map_err(|error| wrong(SCOPE_HEADER, format!("is {error}")))?,
            },
        })
    }
}
