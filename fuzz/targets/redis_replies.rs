//! See `redis_replies` in tests/testkit/fuzzed.rs.
#![no_main]

#[path = "../../tests/testkit/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::redis_replies(bytes));
