//! Receipts: the signed word of a validator that a miner has done something for it.
//!
//! The bounds are those of the published package; the public source of January 2026 takes any value.

use jiter::JsonValue;
use uuid::Uuid;

use super::datetime::DateTime;
use super::enums::{ExecutorClass, ReceiptType};
use super::error::{Errors, Fault, truncate};
use super::repr;
use super::scalars::{int_within, list_of};
use super::schema::{Wire, message, tagged_union};
#[cfg(feature = "roles")]
use crate::store::receipts::ReceiptRow;

/// The longest time a receipt may count for: 30 days.
pub const MAX_TTL_SECONDS: i64 = 30 * 24 * 60 * 60;
/// The longest job a receipt may tell of: 365 days.
pub const MAX_TIME_TOOK_US: i64 = 365 * 24 * 60 * 60 * 1_000_000;
/// The highest number of a block.
pub const MAX_BLOCK_NUMBER: i64 = 1 << 32;
/// The most blocks that one job is paid with.
pub const MAX_BLOCK_NUMBERS: usize = 10_000;
/// The longest score, in characters.
pub const MAX_SCORE_STR_LENGTH: usize = 256;
/// The years that receipts come from; their end is not included.
pub const RECEIPT_YEARS: std::ops::Range<u16> = 2000..2100;

message! {
    /// A job was started.
    Ignore struct JobStartedReceiptPayload {
        /// The job, as a UUID in its canonical spelling.
        job_uuid: String [job_uuid],
        /// Who runs it (SS58).
        miner_hotkey: String,
        /// Who gave it (SS58).
        validator_hotkey: String,
        /// When the receipt was written.
        timestamp: DateTime [receipt_time],
        @"receipt_type" = ReceiptType::JobStartedReceipt,
        /// On what it runs.
        executor_class: ExecutorClass,
        /// Whether a user wants it, rather than the validator as a test.
        is_organic: bool,
        /// For how many seconds from `timestamp` the job may hold its executor.
        ttl: i64 [ttl_seconds],
    }
}

message! {
    /// A job was accepted.
    Ignore struct JobAcceptedReceiptPayload {
        /// The job, as a UUID in its canonical spelling.
        job_uuid: String [job_uuid],
        /// Who runs it (SS58).
        miner_hotkey: String,
        /// Who gave it (SS58).
        validator_hotkey: String,
        /// When the receipt was written.
        timestamp: DateTime [receipt_time],
        @"receipt_type" = ReceiptType::JobAcceptedReceipt,
        /// When the job was accepted.
        time_accepted: DateTime [receipt_time],
        /// For how many seconds from `timestamp` the job may hold its executor.
        ttl: i64 [ttl_seconds],
    }
}

message! {
    /// A job was finished.
    Ignore struct JobFinishedReceiptPayload {
        /// The job, as a UUID in its canonical spelling.
        job_uuid: String [job_uuid],
        /// Who ran it (SS58).
        miner_hotkey: String,
        /// Who gave it (SS58).
        validator_hotkey: String,
        /// When the receipt was written.
        timestamp: DateTime [receipt_time],
        @"receipt_type" = ReceiptType::JobFinishedReceipt,
        /// When the job was started.
        time_started: DateTime [receipt_time],
        /// How long it took, in microseconds.
        time_took_us: i64 [time_took],
        /// What it is worth: an unsigned decimal.
        score_str: String [score],
        /// The blocks it was paid with.
        block_numbers: Vec<i64> [block_numbers] = Vec::new(),
    }
}

tagged_union! {
    /// What a receipt says.
    pub enum ReceiptPayload by "receipt_type" {
        ReceiptType::JobStartedReceipt => /// A job was started.
        JobStarted(JobStartedReceiptPayload),
        ReceiptType::JobAcceptedReceipt => /// A job was accepted.
        JobAccepted(JobAcceptedReceiptPayload),
        ReceiptType::JobFinishedReceipt => /// A job was finished.
        JobFinished(JobFinishedReceiptPayload),
    }
}

impl ReceiptPayload {
    /// The validator that wrote it (SS58).
    pub fn validator_hotkey(&self) -> &str {
        match self {
            ReceiptPayload::JobStarted(payload) => &payload.validator_hotkey,
            ReceiptPayload::JobAccepted(payload) => &payload.validator_hotkey,
            ReceiptPayload::JobFinished(payload) => &payload.validator_hotkey,
        }
    }

    /// The miner it was written for (SS58).
    pub fn miner_hotkey(&self) -> &str {
        match self {
            ReceiptPayload::JobStarted(payload) => &payload.miner_hotkey,
            ReceiptPayload::JobAccepted(payload) => &payload.miner_hotkey,
            ReceiptPayload::JobFinished(payload) => &payload.miner_hotkey,
        }
    }

    /// What it tells.
    pub fn kind(&self) -> ReceiptType {
        match self {
            ReceiptPayload::JobStarted(_) => ReceiptType::JobStartedReceipt,
            ReceiptPayload::JobAccepted(_) => ReceiptType::JobAcceptedReceipt,
            ReceiptPayload::JobFinished(_) => ReceiptType::JobFinishedReceipt,
        }
    }

    /// When it was written.
    pub fn timestamp(&self) -> DateTime {
        match self {
            ReceiptPayload::JobStarted(payload) => payload.timestamp,
            ReceiptPayload::JobAccepted(payload) => payload.timestamp,
            ReceiptPayload::JobFinished(payload) => payload.timestamp,
        }
    }

    /// The job it tells of.
    pub fn job_uuid(&self) -> &str {
        match self {
            ReceiptPayload::JobStarted(payload) => &payload.job_uuid,
            ReceiptPayload::JobAccepted(payload) => &payload.job_uuid,
            ReceiptPayload::JobFinished(payload) => &payload.job_uuid,
        }
    }
}

message! {
    /// A receipt that both sides have signed.
    Ignore struct Receipt {
        /// What it says.
        payload: ReceiptPayload,
        /// The validator's signature over it (`0x` hex).
        validator_signature: String,
        /// The miner's signature over it (`0x` hex).
        miner_signature: String,
    }
}

#[cfg(feature = "roles")]
impl From<&Receipt> for ReceiptRow {
    fn from(receipt: &Receipt) -> Self {
        Self {
            validator_hotkey: receipt.payload.validator_hotkey().to_owned(),
            job_uuid: receipt.payload.job_uuid().to_owned(),
            kind: receipt.payload.kind().as_str().to_owned(),
            written_us: receipt.payload.timestamp().unix_micros(),
            payload: receipt.payload.blob_for_signing(),
            validator_signature: receipt.validator_signature.clone(),
            miner_signature: receipt.miner_signature.clone(),
        }
    }
}

impl Receipt {
    /// Reads a receipt from its JSON text, as stores and exports hold it.
    pub fn decode(text: &str) -> Result<Self, super::DecodeError> {
        super::schema::decode_frame(text, || "Receipt".to_owned())
    }

    /// The JSON text.
    pub fn encode(&self) -> String {
        super::schema::encode_compact(self)
    }
}

fn job_uuid(value: &JsonValue<'_>, errors: &mut Errors) -> Option<String> {
    let text = String::decode(value, errors)?;
    match Uuid::try_parse(&text).map(|uuid| uuid.to_string()) {
        Ok(canonical) if canonical == text => Some(text),
        Ok(canonical) => {
            let shown = repr::string(&text);
            let why = format!("job_uuid must be in canonical form ({canonical}), got {shown}");
            errors.fail(Fault::value(why), value)
        }
        Err(_) => {
            let shown = repr::string(&truncate(&text, 64));
            errors.fail(Fault::value(format!("job_uuid is not a UUID: {shown}")), value)
        }
    }
}

fn receipt_time(value: &JsonValue<'_>, errors: &mut Errors) -> Option<DateTime> {
    let time = DateTime::decode(value, errors)?;
    if RECEIPT_YEARS.contains(&time.year()) {
        return Some(time);
    }
    let (first, end) = (RECEIPT_YEARS.start, RECEIPT_YEARS.end);
    let shown = time.to_string().replace('Z', "+00:00");
    let why = format!("Timestamp year must be within [{first}, {end}), got {shown}");
    errors.fail(Fault::value(why), value)
}

fn ttl_seconds(value: &JsonValue<'_>, errors: &mut Errors) -> Option<i64> {
    int_within(value, 0, MAX_TTL_SECONDS, errors)
}

fn time_took(value: &JsonValue<'_>, errors: &mut Errors) -> Option<i64> {
    int_within(value, 0, MAX_TIME_TOOK_US, errors)
}

/// Reads digits, perhaps with more digits behind a dot: no sign, no exponent.
fn score(value: &JsonValue<'_>, errors: &mut Errors) -> Option<String> {
    let text = String::decode(value, errors)?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, "0"));
    if text.len() <= MAX_SCORE_STR_LENGTH && digits(whole) && digits(fraction) {
        return Some(text);
    }
    let shown = repr::string(&truncate(&text, MAX_SCORE_STR_LENGTH));
    errors.fail(Fault::value(format!("Malformed score_str: {shown}")), value)
}

fn block_numbers(value: &JsonValue<'_>, errors: &mut Errors) -> Option<Vec<i64>> {
    match value {
        JsonValue::Array(items) if items.len() > MAX_BLOCK_NUMBERS => {
            let actual = items.len();
            let msg = format!("List should have at most {MAX_BLOCK_NUMBERS} items after validation, not {actual}");
            let fault = Fault::new("too_long", msg)
                .with("field_type", "List")
                .with("max_length", MAX_BLOCK_NUMBERS)
                .with("actual_length", actual);
            errors.fail(fault, value)
        }
        _ => list_of(value, |item, errors| int_within(item, 0, MAX_BLOCK_NUMBER, errors), errors),
    }
}
