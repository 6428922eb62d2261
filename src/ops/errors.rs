//! What a loop does about an error.

/// What a loop does about an error; it decides by nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Try again.
    Retry,
    /// Connect again.
    Reconnect,
    /// Give up.
    Rejected,
    /// Return.
    Cancelled,
    /// End.
    Fatal,
}
