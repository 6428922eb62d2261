//! See `websocket` in tests/testkit/fuzzed.rs.
#![no_main]

#[path = "../../tests/testkit/fuzzed.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzed::websocket(bytes));
