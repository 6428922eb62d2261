//! The answers of the peers to a frame that they could not read; the connection stays open after each.
//!
//! A validator answers a miner but never the facilitator. What is quoted of the frame is bounded (see
//! [`MAX_ERRORS`](super::MAX_ERRORS), [`MAX_ECHO_BYTES`] and [`MAX_FRAME_ECHO_CHARS`]), so that a frame of 50 MiB does
//! not earn an answer of that size; cut text says so at its end.

use serde_json::Value;

use super::enums::ResponseStatus;
#[allow(unused_imports, reason = "named in the module's documentation")]
use super::error::MAX_ECHO_BYTES;
use super::error::{DecodeError, ErrorDetail, LocItem, cut};
use super::executor::GenericError;
use super::facilitator::{ErrorItem, Response};
use super::json::{JsonMap, Style, Writer};

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
    let frame = cut(frame, MAX_FRAME_ECHO_CHARS);
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
