//! What the messages of the facilitator are. Pure.

use crate::base::limits::JOB_UUID_BYTES;
use crate::base::text::truncated;
use crate::link::{About, Text};
use crate::protocol::{FacilitatorToValidator, Response, ResponseStatus, V0JobCheated, V2JobRequest};
use crate::transport::Utf8Bytes;
use crate::validator::authorization::is_uuid_of_job;
use crate::validator::ledger::Reply;

/// What the facilitator sends besides its answers.
#[derive(Debug)]
pub enum Inbound {
    /// A job request.
    Job {
        /// Bytes of its text.
        bytes: usize,
        /// The request.
        request: Box<V2JobRequest>,
    },
    /// A report of cheating.
    Cheated {
        /// Bytes of its text.
        bytes: usize,
        /// The report.
        report: Box<V0JobCheated>,
    },
    /// A sign of life, as a text.
    Ping,
    /// Something that cannot be read; why.
    Unreadable(String),
}

/// Reads a text of the facilitator; the link's classifier.
pub fn classify(text: Utf8Bytes) -> Text<Inbound, Reply> {
    let bytes = text.len();
    Text::Message(match FacilitatorToValidator::decode(&text) {
        Ok(FacilitatorToValidator::Response(response)) => return answer(&response),
        Ok(FacilitatorToValidator::V2JobRequest(request)) if !is_uuid_of_job(&request.uuid) => {
            unreadable_uuid("V2JobRequest", &request.uuid)
        }
        Ok(FacilitatorToValidator::V0JobCheated(report))
            if !is_uuid_of_job(&report.job_uuid) || !is_uuid_of_job(&report.trusted_job_uuid) =>
        {
            unreadable_uuid("V0JobCheated", &report.job_uuid)
        }
        Ok(FacilitatorToValidator::V2JobRequest(request)) => Inbound::Job { bytes, request: Box::new(request) },
        Ok(FacilitatorToValidator::V0JobCheated(report)) => Inbound::Cheated { bytes, report: Box::new(report) },
        Err(_) if text.as_str() == PING => Inbound::Ping,
        Err(error) => Inbound::Unreadable(error.to_string()),
    })
}

/// A uuid is remembered, logged and answered with, so one that is none is not even refused.
fn unreadable_uuid(what: &str, uuid: &str) -> Inbound {
    let (shown, bytes) = (truncated(uuid, JOB_UUID_BYTES), uuid.len());
    Inbound::Unreadable(format!("{what}: its job has a uuid of {bytes} bytes, not at most {JOB_UUID_BYTES}: {shown:?}"))
}

/// The facilitator's sign of life.
pub(super) const PING: &str = "PING";

/// What an answer says, and of which message: only status updates get a success or an error about a job; machine specs
/// are answered with other errors; an error about the authentication may come at any time.
fn answer(response: &Response) -> Text<Inbound, Reply> {
    let has = |prefix: &str| response.errors.iter().any(|error| error.kind.starts_with(prefix));
    if response.status == ResponseStatus::Success {
        return Text::Answer(About::Kept, Reply::Stored);
    }
    let about = match () {
        () if has("auth.") => About::Unknown,
        () if has("job.") => About::Kept,
        () => About::KeptOrNewest,
    };
    let is_repeat = |error: &crate::protocol::ErrorItem| error.kind == "job.integrity_error";
    let reply = match () {
        () if !response.errors.is_empty() && response.errors.iter().all(is_repeat) => Reply::StoredBefore,
        () if has("job.not_found") => Reply::NotFound(describe(response)),
        () => Reply::Refused(describe(response)),
    };
    Text::Answer(about, reply)
}

/// An answer in words.
pub(super) fn describe(response: &Response) -> String {
    let errors: Vec<String> = response.errors.iter().map(|e| format!("{}: {}", e.kind, e.msg)).collect();
    format!("{} {}", response.status, errors.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ErrorItem;

    fn read(kinds: &[&str]) -> (About, Reply) {
        let status = if kinds.is_empty() { ResponseStatus::Success } else { ResponseStatus::Error };
        let error = |kind: &&str| ErrorItem {
            msg: "m".to_owned(),
            kind: (*kind).to_owned(),
            help: String::new(),
            extra: Default::default(),
        };
        let response = Response { status, errors: kinds.iter().map(error).collect() };
        match classify(FacilitatorToValidator::from(response).encode().into()) {
            Text::Answer(about, reply) => (about, reply),
            Text::Message(message) | Text::Last(message) => panic!("{message:?}"),
        }
    }

    #[test]
    fn each_answer_says_what_it_is_about() {
        let refused = |text: &str| Reply::Refused(text.to_owned());
        assert_eq!(read(&[]), (About::Kept, Reply::Stored));
        assert_eq!(read(&["job.integrity_error"]), (About::Kept, Reply::StoredBefore));
        let both = "error job.integrity_error: m; job.other: m";
        assert_eq!(read(&["job.integrity_error", "job.other"]), (About::Kept, refused(both)));
        let missing = "error job.not_found: m";
        assert_eq!(read(&["job.not_found"]), (About::Kept, Reply::NotFound(missing.to_owned())));
        assert_eq!(read(&["specs.invalid"]), (About::KeptOrNewest, refused("error specs.invalid: m")));
        let unknown = read(&["auth.not_authenticated", "job.other"]);
        assert_eq!(unknown, (About::Unknown, refused("error auth.not_authenticated: m; job.other: m")));
    }

    #[test]
    fn what_is_no_answer_is_a_message() {
        assert!(matches!(classify("PING".into()), Text::Message(Inbound::Ping)));
        assert!(matches!(classify("{}".into()), Text::Message(Inbound::Unreadable(_))));
    }
}
