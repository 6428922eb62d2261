//! What the receiving side bounds beyond the sizes in `transport_frames`: nesting, which would use up a thread's stack.

#[path = "testkit/transport.rs"]
mod kit;

use kit::{NoThreads, background, connected, join};
use phalanx::protocol::{
    ExecutorToMiner, FacilitatorToValidator, MinerToExecutor, MinerToValidator, ValidatorToFacilitator,
    ValidatorToMiner,
};
use phalanx::transport::Incoming;

/// Whether each link's reader refuses the text.
fn refused_by(text: &str) -> [bool; 6] {
    [
        FacilitatorToValidator::decode(text).is_err(),
        ValidatorToFacilitator::decode(text).is_err(),
        ValidatorToMiner::decode(text).is_err(),
        MinerToValidator::decode(text).is_err(),
        MinerToExecutor::decode(text).is_err(),
        ExecutorToMiner::decode(text).is_err(),
    ]
}

/// A message with a free-form field that is nested `depth` times, closed or not.
fn nested(depth: usize, closed: bool) -> String {
    let close = if closed { "]".repeat(depth) + "}}}" } else { String::new() };
    format!(
        "{{\"message_type\":\"V0MachineSpecsRequest\",\"job_uuid\":\"u\",\"specs\":{{\"specs\":{{\"deep\":{}{close}",
        "[".repeat(depth)
    )
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow_of_the_readers_stack() {
    let _threads = NoThreads::expected();
    let (client, server) = connected(false);
    let mut writer = client.writer;
    let mut reader = server.reader;
    let texts: Vec<String> = [201, 1_000, 100_000, 1_000_000]
        .into_iter()
        .flat_map(|depth| {
            let objects = "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
            ["[".repeat(depth), "[".repeat(depth) + &"]".repeat(depth), objects, nested(depth, false), nested(depth, true)]
        })
        .collect();
    let count = texts.len();
    // The reader's thread, as it is in a link: what overflowed its stack would end the process.
    let reading = background("t-read", move || {
        for _ in 0..count {
            let Incoming::Text(text) = reader.read().unwrap() else { panic!("expected a text") };
            assert_eq!(refused_by(&text), [true; 6], "{}…", &text[..40]);
        }
    });
    for text in texts {
        writer.write(text.into()).unwrap();
    }
    writer.flush().unwrap();
    join(reading);
}

#[test]
fn nesting_up_to_the_limit_passes_whole() {
    let text = nested(190, true);
    assert_eq!(ExecutorToMiner::decode(&text).unwrap().encode(), text);
}
