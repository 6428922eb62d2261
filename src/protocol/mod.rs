//! The wire protocol: the messages of the four links, read and written as the Python peers do. Nothing here does I/O.
//!
//! Read in this order: [`facilitator`], [`miner`] and [`executor`] hold the messages and, per direction, the enum of
//! every message ([`FacilitatorToValidator`] and so on, each with `decode` and `encode`); [`volume`],
//! [`upload`], [`receipt`], [`enums`], [`Int`] and [`DateTime`] what they are made of; [`signing`] what is signed of
//! them; [`answer`] what to say to a frame that cannot be read. `schema` is the layer beneath: fields, coercions and
//! errors of pydantic 2.14, whose JSON parser this crate shares.
//!
//! Two releases of the Python peers are about: the public source of January 2026 and the newer published package
//! 0.0.27. We write the form of the package and read both, except where the package refuses on purpose what the
//! source took: receipts out of bounds, times without an offset, and upload paths that are not canonical.

pub mod answer;
mod datetime;
pub mod enums;
mod error;
pub mod executor;
pub mod facilitator;
mod int;
pub mod json;
mod kind;
pub mod miner;
pub mod nonce;
pub mod receipt;
mod repr;
mod scalars;
mod schema;
pub mod signing;
pub mod stages;
pub mod upload;
pub mod volume;

pub use datetime::{DateTime, ParseDateTimeError};
pub use enums::*;
pub use error::{DecodeError, ERROR_URL_PREFIX, ErrorDetail, LocItem, MAX_ECHO_BYTES, MAX_ERRORS, UnknownName};
pub use executor::*;
pub use facilitator::*;
pub use int::{Int, ParseIntError};
pub use json::JsonMap;
pub use kind::kind_of;
pub use miner::*;
pub use receipt::*;
pub use scalars::{Manifest, StrMap};
pub use signing::{SignedRequest, SigningError, verify_validator_signature};
pub use upload::*;
pub use volume::*;
