//! What a peer cannot do to the receiving side, beyond the sizes in `transport_frames`: use up a thread's stack by
//! nesting, or bring the reader out of step by any bytes at all.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use std::io::{Read, Write};
use std::net::Shutdown as Half;

use kit::{background, connected, frame, join, raw_client_connected};
use phalanx::base::rng::Rng;
use phalanx::protocol::{
    ExecutorToMiner, FacilitatorToValidator, MinerToExecutor, MinerToValidator, ValidatorToFacilitator,
    ValidatorToMiner,
};
use phalanx::transport::{Connection, Incoming, SocketLimits};

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
    let texts: Vec<String> = [201, 1_000, 100_000]
        .into_iter()
        .flat_map(|depth| {
            let objects = "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
            [
                "[".repeat(depth),
                "[".repeat(depth) + &"]".repeat(depth),
                objects,
                nested(depth, false),
                nested(depth, true),
            ]
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

/// Frames, most of them legal, with some bytes changed.
fn mutated(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + rng.next_u64() % 8 {
        let first = [0x81, 0x81, 0x81, 0x82, 0x01, 0x80, 0x89, 0x88][(rng.next_u64() % 8) as usize];
        let payload: Vec<u8> = (0..rng.next_u64() % 126).map(|_| b'a' + (rng.next_u64() % 26) as u8).collect();
        bytes.extend(frame(first, true, &payload));
    }
    for _ in 0..rng.next_u64() % 3 {
        let at = (rng.next_u64() % bytes.len() as u64) as usize;
        bytes[at] = rng.next_u64() as u8;
    }
    bytes
}

#[test]
fn any_bytes_end_in_an_order_that_the_caller_can_follow() {
    let _threads = NoThreads::expected();
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let limits = SocketLimits { message_bytes: 300, frame_bytes: 200, ..SocketLimits::default() };
    let (mut texts, mut errors) = (0, 0);
    for round in 0..300 {
        let (mut client, server) = raw_client_connected(limits);
        let bytes = if round % 4 == 0 {
            (0..1 + rng.next_u64() % 500).map(|_| rng.next_u64() as u8).collect()
        } else {
            mutated(&mut rng)
        };
        let Connection { mut reader, mut writer, .. } = server;
        client.write_all(&bytes).unwrap();
        client.shutdown(Half::Write).unwrap();
        for step in 0.. {
            assert!(step < 100, "seed {seed}, round {round}: it does not end");
            match reader.read() {
                Ok(Incoming::Control) => writer.flush().unwrap(),
                Ok(Incoming::Text(text)) => {
                    assert!(text.len() <= 300);
                    texts += 1;
                }
                Ok(Incoming::Binary(bytes)) => assert!(bytes.len() <= 300),
                Ok(Incoming::Closed(_)) => break,
                Ok(_) => {}
                Err(error) => {
                    assert!(error.close_code().is_some(), "seed {seed}, round {round}: {error}");
                    errors += 1;
                    break;
                }
            }
        }
        // The end of the stream comes, after whatever the client was owed.
        drop((reader, writer));
        client.read_to_end(&mut Vec::new()).unwrap();
    }
    assert!(texts > 20 && errors > 20, "seed {seed}: {texts} texts and {errors} errors show little");
}
