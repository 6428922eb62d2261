//! How a job of a batch ended, as it is kept, shown and counted. Pure.

use serde::{Deserialize, Serialize};

use crate::base::now::Now;
use crate::base::text::truncated;
use crate::ops::redact::OneLine;
use crate::protocol::{HordeFailureDetails, JobFailureDetails, JobRejectionDetails};
use crate::validator::manifests::AskOutcome;
use crate::validator::status::Outcome;

/// Bytes of a reason: enough for a sentence of ours and one of the miner's.
const REASON_BYTES: usize = 500;

/// How a job of a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchOutcome {
    /// The answer came in time, and the judge took it.
    Completed,
    /// The job itself failed, or the judge did not take its answer.
    Failed,
    /// The miner or the batch itself failed the job.
    HordeFailed,
    /// The miner did not take the job, or has no executor for any.
    Declined,
    /// The miner did not say in time what was due.
    Timeout,
    /// The miner does not keep to the protocol.
    ProtocolError,
    /// The miner does not want this validator.
    Unauthorized,
    /// There is no connection to the miner.
    Refused,
}

impl BatchOutcome {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Completed,
        Self::Failed,
        Self::HordeFailed,
        Self::Declined,
        Self::Timeout,
        Self::ProtocolError,
        Self::Unauthorized,
        Self::Refused,
    ];

    /// Its word, as `horde_failed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::HordeFailed => "horde_failed",
            Self::Declined => "declined",
            Self::Timeout => "timeout",
            Self::ProtocolError => "protocol_error",
            Self::Unauthorized => "unauthorized",
            Self::Refused => "refused",
        }
    }

    /// What an attempt to connect that failed makes of its miner.
    pub(super) fn of_no_connection(outcome: AskOutcome) -> Self {
        match outcome {
            AskOutcome::Timeout => Self::Timeout,
            AskOutcome::ProtocolError => Self::ProtocolError,
            AskOutcome::Unauthorized => Self::Unauthorized,
            AskOutcome::Ok | AskOutcome::Refused | AskOutcome::Skipped => Self::Refused,
        }
    }
}

/// One job of a batch, ended, or planned in a dry run; or a miner that got none. As JSON it is one line of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobLine {
    /// The miner's hotkey (SS58).
    pub miner: String,
    /// The job; `None` for a miner that got none.
    pub job_uuid: Option<String>,
    /// The class of the executor that was asked for, as `always_on.test`.
    pub class: Option<String>,
    /// How it ended; `None` in a dry run.
    pub outcome: Option<BatchOutcome>,
    /// Why, in one line of at most some 500 bytes; what others wrote is escaped.
    pub reason: Option<String>,
    /// When the miner had accepted it. All times are RFC 3339, read from the wall clock when it happened.
    pub accepted_at: Option<String>,
    /// When its executor was ready.
    pub ready_at: Option<String>,
    /// Right before the job request was sent.
    pub sent_at: Option<String>,
    /// When the last message about the job had come.
    pub answered_at: Option<String>,
    /// From the sending of the job request to the answer, by the monotonic clock.
    pub seconds: Option<f64>,
    /// Whether the answer came after its time.
    pub late: bool,
    /// Whether it counts for the miner: in time, and right.
    pub scored: bool,
    /// Whether it does not count against the miner, which did not take it and has shown with what it is busy, or had
    /// less than its time to connect; kept, and not part of the output, where the reason says it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub excused: bool,
    /// Microseconds from the opening of the gate to the end of the sending; kept, and not part of the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_after_us: Option<u64>,
}

impl JobLine {
    /// A miner that got no job.
    pub(super) fn of_miner(miner: String, outcome: BatchOutcome, reason: &str) -> Self {
        Self {
            miner,
            job_uuid: None,
            class: None,
            outcome: Some(outcome),
            reason: Some(one_line(reason)),
            accepted_at: None,
            ready_at: None,
            sent_at: None,
            answered_at: None,
            seconds: None,
            late: false,
            scored: false,
            excused: false,
            sent_after_us: None,
        }
    }

    /// Its line of the output, without the line's end.
    pub fn to_json(&self) -> String {
        Self { sent_after_us: None, excused: false, ..self.clone() }.to_record()
    }

    /// All of it, for the disk.
    pub(super) fn to_record(&self) -> String {
        serde_json::to_string(self).expect("texts, numbers and flags can be written as JSON")
    }
}

/// What others may have written, escaped and bounded.
pub(super) fn one_line(text: &str) -> String {
    let line = OneLine(truncated(text, REASON_BYTES)).to_string();
    if text.len() > REASON_BYTES { line + "…" } else { line }
}

/// A moment as the output has it: always to the microsecond, so that the texts sort as the times do.
pub(super) fn stamp(now: Now) -> String {
    let text = crate::protocol::DateTime::from_unix_micros(now.unix_micros()).to_string();
    match text.strip_suffix('Z') {
        Some(whole) if !whole.contains('.') => format!("{whole}.000000Z"),
        _ => text,
    }
}

/// A reason with what was said of it, if anything was.
fn reason_in_words(reason: impl std::fmt::Display, message: &str) -> Option<String> {
    Some(one_line(&if message.is_empty() { reason.to_string() } else { format!("{reason}: {message}") }))
}

/// An outcome of the network in the words of a batch, with its reason.
pub(super) fn in_words(outcome: &Outcome) -> (BatchOutcome, Option<String>) {
    match outcome {
        Outcome::Completed(_) => (BatchOutcome::Completed, None),
        Outcome::Rejected(JobRejectionDetails { reason, message, .. }) => {
            (BatchOutcome::Declined, reason_in_words(reason, message))
        }
        Outcome::Failed(JobFailureDetails { reason, message, .. }) => {
            (BatchOutcome::Failed, reason_in_words(reason, message))
        }
        Outcome::HordeFailed(HordeFailureDetails { reason, message, .. }) => {
            (BatchOutcome::HordeFailed, reason_in_words(reason, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_fields_of_the_contract_and_is_one_line() {
        let mut line = JobLine::of_miner("5F".to_owned(), BatchOutcome::Refused, &format!("a\nb{}", "é".repeat(600)));
        (line.sent_after_us, line.excused) = (Some(5), true);
        let json: serde_json::Value = serde_json::from_str(&line.to_json()).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(
            keys.join(" "),
            "miner job_uuid class outcome reason accepted_at ready_at sent_at answered_at seconds late scored"
        );
        let reason = json["reason"].as_str().unwrap();
        assert!(reason.starts_with("a\\nb") && reason.ends_with('…') && reason.len() < 520, "{reason}");
        assert_eq!(serde_json::from_str::<JobLine>(&line.to_record()).unwrap(), line);
        for outcome in BatchOutcome::ALL {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), format!("{:?}", outcome.as_str()));
        }
    }
}
