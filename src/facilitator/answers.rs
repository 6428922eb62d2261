//! What the facilitator answers to validators, word for word as the Python one. Pure.

use crate::identity::PublicKey;
use crate::protocol::{ErrorItem, FacilitatorToValidator, Response, ResponseStatus};

/// Close code after a bad signature.
pub(super) const CLOSE_SIGNATURE: u16 = 3000;
/// Close code for a validator that is not, or no longer, known.
pub(super) const CLOSE_UNKNOWN: u16 = 3001;
/// Close code of ours for a session whose validator has authenticated on a newer one.
pub(super) const CLOSE_TAKEN_OVER: u16 = 4001;
/// Close code of ours for a session whose validator sends no heartbeats.
pub(super) const CLOSE_NO_HEARTBEAT: u16 = 4002;
/// Close code when an update cannot be stored now (RFC 6455: the server met something unexpected).
pub(super) const CLOSE_NOT_STORED: u16 = 1011;

/// The frame of a response.
pub(super) fn frame(response: Response) -> String {
    FacilitatorToValidator::from(response).encode()
}

/// It was taken.
pub(super) fn success() -> Response {
    Response { status: ResponseStatus::Success, errors: Vec::new() }
}

fn error(msg: &str, kind: &str, help: impl Into<String>) -> Response {
    let item = ErrorItem { msg: msg.into(), kind: kind.into(), help: help.into(), extra: Default::default() };
    Response { status: ResponseStatus::Error, errors: vec![item] }
}

/// `auth.validator_not_found`, followed by a close with [`CLOSE_UNKNOWN`].
pub(super) fn validator_not_found(validator: &PublicKey) -> Response {
    let help = format!(
        "Validator with hotkey {validator} was not found. If you are sure that the key belongs to an active validator, \
         please wait at least 0:05:00 for the list of active validators to be updated and then retry."
    );
    error("Validator not found", "auth.validator_not_found", help)
}

/// `auth.signature_invalid`, followed by a close with [`CLOSE_SIGNATURE`].
pub(super) fn signature_invalid() -> Response {
    error("Invalid signature", "auth.signature_invalid", "The signature provided does not match the public key")
}

/// `auth.already_authenticated`; the session stays.
pub(super) fn already_authenticated() -> Response {
    let help = "You are already authenticated, please do not send authentication request again.";
    error("Already authenticated", "auth.already_authenticated", help)
}

/// `auth.not_authenticated`; the session stays.
pub(super) fn not_authenticated() -> Response {
    error("Not authenticated", "auth.not_authenticated", "Please send authentication request first")
}

/// `job.not_found`.
pub(super) fn job_not_found() -> Response {
    error("Job not found", "job.not_found", "Job with this UUID was not found")
}

/// `job.integrity_error`: that status is stored already.
pub(super) fn integrity_error() -> Response {
    error("Integrity error", "job.integrity_error", "Probably you are trying to set the same status twice?")
}

/// The message was read and could not be handled, through a fault here. `kind` says what it was about: validators match
/// an error of kind `job.…` with their oldest status update.
pub(super) fn internal_error(kind: &str) -> Response {
    error("Internal error", kind, "The facilitator could not handle this message. The connection stays.")
}
