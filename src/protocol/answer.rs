//! The answers of the peers to a frame that they could not read; the connection stays open after each.
//!
//! A validator answers a miner but never the facilitator. What is quoted of the frame is bounded, so that a frame of
//! 50 MiB does not earn an answer of that size: see [`MAX_ERRORS`](super::MAX_ERRORS),
//! [`MAX_ECHO_BYTES`](super::MAX_ECHO_BYTES) and [`MAX_FRAME_ECHO_CHARS`]. Truncated text says so at its end.

use serde_json::Value;

use super::enums::ResponseStatus;
use super::error::{DecodeError, ErrorDetail, LocItem, truncate};
use super::executor::GenericError;
use super::facilitator::{ErrorItem, Response};
use super::json::{JsonMap, Style, Writer};
use super::repr;

/// How many characters are kept of a frame that an answer quotes as a whole.
pub const MAX_FRAME_ECHO_CHARS: usize = 4096;

/// The facilitator's answer to a validator.
pub fn by_facilitator(error: &DecodeError) -> Response {
    let errors = error.errors.iter().map(|detail| {
        let mut extra = JsonMap::new();
        extra.insert("loc".into(), loc(detail));
        extra.insert("input".into(), detail.input.clone());
        if !detail.ctx.is_empty() {
            extra.insert("ctx".into(), Value::Object(detail.ctx.clone()));
        }
        extra.insert("url".into(), Value::String(detail.url()));
        ErrorItem { msg: detail.msg.clone(), kind: detail.kind.into(), help: String::new(), extra }
    });
    Response { status: ResponseStatus::Error, errors: errors.collect() }
}

/// A miner's answer to a validator or an executor.
pub fn by_miner(error: &DecodeError) -> GenericError {
    let plural = if error.total == 1 { "" } else { "s" };
    let mut details = format!("Malformed message: {} validation error{plural} for {}", error.total, error.expected);
    for detail in &error.errors {
        if !detail.loc.is_empty() {
            details.push_str(&format!("\n{}", detail.path()));
        }
        details.push_str(&format!(
            "\n  {} [type={}, input_value={}, input_type={}]\n    For further information visit {}",
            detail.msg,
            detail.kind,
            detail.input_repr,
            detail.input_type,
            detail.url()
        ));
    }
    GenericError { details: Some(details) }
}

/// An executor's answer to an initial request that is not its first.
pub fn second_initial_request(first_uuid: &str, uuid: &str) -> GenericError {
    duplicate("initial job", first_uuid, uuid)
}

/// An executor's answer to a full request that is not its first.
pub fn second_job_request(first_uuid: &str, uuid: &str) -> GenericError {
    duplicate("full job payload", first_uuid, uuid)
}

fn duplicate(what: &str, first_uuid: &str, uuid: &str) -> GenericError {
    let (first, then) = (repr::string(first_uuid), repr::string(uuid));
    let details =
        format!("Received duplicate {what} request: first self.job_uuid={first} and then msg.job_uuid={then}");
    GenericError { details: Some(details) }
}

/// An executor's answer to a full request that comes before the initial one.
pub fn early_job_request(uuid: &str) -> GenericError {
    let uuid = repr::string(uuid);
    GenericError { details: Some(format!("Received job request before an initial job request msg.job_uuid={uuid}")) }
}

/// A validator's or an executor's answer to the miner that it calls `name`, quoting the frame.
pub fn to_miner(error: &DecodeError, frame: &str, name: &str) -> GenericError {
    let mut errors = Writer::new(Style::COMPACT);
    errors.open('[');
    for detail in &error.errors {
        errors.open('{');
        errors.key("type");
        errors.string(detail.kind);
        errors.key("loc");
        errors.value(&loc(detail));
        errors.key("msg");
        errors.string(&detail.msg);
        errors.key("input");
        errors.value(&detail.input);
        if !detail.ctx.is_empty() {
            errors.key("ctx");
            errors.map(&detail.ctx);
        }
        errors.key("url");
        errors.string(&detail.url());
        errors.close('}');
    }
    errors.close(']');
    let frame = truncate(frame, MAX_FRAME_ECHO_CHARS);
    let details = format!("Malformed message {frame} from miner {name}: {}", errors.into_string());
    GenericError { details: Some(details) }
}

fn loc(detail: &ErrorDetail) -> Value {
    let steps = detail.loc.iter().map(|step| match step {
        LocItem::Key(key) => Value::String(key.to_string()),
        LocItem::Index(index) => Value::from(*index),
    });
    Value::Array(steps.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::MAX_ERRORS;
    use crate::protocol::{FacilitatorToValidator, MinerToValidator, ValidatorToFacilitator, ValidatorToMiner};

    /// The largest frame that the Python validator takes from the facilitator.
    const MIB: usize = 1024 * 1024;

    /// The three answers to a frame, as text.
    fn answers(frame: &str) -> [String; 3] {
        let by_facilitator = by_facilitator(&ValidatorToFacilitator::decode(frame).unwrap_err());
        let error = ValidatorToMiner::decode(frame).unwrap_err();
        let to_miner = to_miner(&MinerToValidator::decode(frame).unwrap_err(), frame, "m");
        [
            FacilitatorToValidator::from(by_facilitator).encode(),
            MinerToValidator::from(by_miner(&error)).encode(),
            ValidatorToMiner::from(to_miner).encode(),
        ]
    }

    #[test]
    fn the_answer_to_a_huge_frame_is_small() {
        let huge = "\u{1}".repeat(2 * MIB);
        let escaped = "\\u0001".repeat(MIB / 2);
        let items = "{},".repeat(MIB / 2);
        let frames = [
            huge.clone(),
            format!("\"{escaped}\""),
            format!("{{\"message_type\":\"{escaped}\"}}"),
            format!("{{\"message_type\":[\"{escaped}\"]}}"),
            format!("{{\"message_type\":\"V0Heartbeat\",\"{escaped}\":\"{escaped}\"}}"),
            format!("[{items}1]"),
            format!("{{\"message_type\":[{items}1]}}"),
            format!("{{\"{escaped}\":1}}"),
        ];
        for frame in frames {
            for answer in answers(&frame) {
                assert!(answer.len() < MIB, "{} bytes for {:.60}", answer.len(), frame);
                assert!(answer.contains("(truncated, ") || answer.contains("..."), "{answer:.200}");
            }
        }
    }

    #[test]
    fn many_errors_are_counted_but_not_all_listed() {
        let escaped = "\\u0001".repeat(200);
        let keys: String = (0..10_000).map(|n| format!(",\"{n}\":\"{escaped:.1200}\"")).collect();
        let frame = format!("{{\"message_type\":\"V0Heartbeat\"{keys}}}");
        let error = ValidatorToFacilitator::decode(&frame).unwrap_err();
        assert_eq!((error.errors.len(), error.total), (MAX_ERRORS, 10_000));
        assert!(error.to_string().ends_with("; and 9950 more"), "{error}");
        let answer = FacilitatorToValidator::from(by_facilitator(&error)).encode();
        assert!(answer.len() < MIB, "{} bytes", answer.len());
    }

    #[test]
    fn deep_nesting_is_an_error_like_any_other() {
        let frame = "[".repeat(100_000);
        let error = ValidatorToFacilitator::decode(&frame).unwrap_err();
        assert_eq!(error.errors[0].kind, "json_invalid");
        assert!(error.errors[0].msg.contains("recursion limit"), "{error}");
    }

    #[test]
    fn a_long_input_is_shown_by_its_ends_as_python_shows_it() {
        let frame =
            r#"{"message_type":"V0JobRequest","a'b":["ż\n",1.5,null,true,{}],"z":"it's \"\u00ad\ufeff\ud83d\ude80"}"#;
        let error = ValidatorToMiner::decode(frame).unwrap_err();
        let shown = &error.errors[0].input_repr;
        assert_eq!(shown, r#"{'message_type': 'V0JobRe...'it\'s "\xad\ufeff🚀'}"#);
        let error = ValidatorToMiner::decode(r#"["it's", 1e-7, -0.0]"#).unwrap_err();
        assert_eq!(error.errors[0].input_repr, r#"["it's", 1e-07, -0.0]"#);
    }

    #[test]
    fn requests_out_of_order_are_answered_in_the_words_of_the_python_executor() {
        let details = |answer: GenericError| answer.details.unwrap();
        assert_eq!(
            details(second_initial_request("a", "b")),
            "Received duplicate initial job request: first self.job_uuid='a' and then msg.job_uuid='b'"
        );
        assert_eq!(
            details(second_job_request("a", "it's")),
            "Received duplicate full job payload request: first self.job_uuid='a' and then msg.job_uuid=\"it's\""
        );
        assert_eq!(
            details(early_job_request("a")),
            "Received job request before an initial job request msg.job_uuid='a'"
        );
    }
}
