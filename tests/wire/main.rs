//! The wire protocol and identities: vectors, limits of the codec, signatures, wallet files. Pure.

mod codec_limits;
mod hotkey_file;
mod identity;
mod pydantic_values;
mod signing_batch;
mod signing_vectors;
mod vectors;
mod vectors_schema;
mod vectors_signing;
