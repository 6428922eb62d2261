//! Each decoder that meets bytes of others, as a function of bytes that panics when something does not hold. `fuzz/`
//! runs them on what a fuzzer makes up, `tests/roles/corpora.rs` on what it has found.

#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::fs;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use phalanx::base::shutdown::Shutdown;
use phalanx::celery::{Envelope, Meta, TaskMessage};
use phalanx::executor::volumes::{Hub, VolumeLoader};
use phalanx::executor::workspace::Workspace;
use phalanx::net::reach::Reach;
use phalanx::protocol::{
    ExecutorToMiner, FacilitatorToValidator, InlineVolume, MinerToExecutor, MinerToValidator, ValidatorToFacilitator,
    ValidatorToMiner, Volume,
};
use phalanx::store::journal::Journal;

/// A target by its name, as its folder in the corpora is named.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("archive", archive),
    ("celery_message", celery_message),
    ("celery_result", celery_result),
    ("http_answer", http_answer),
    ("http_request", http_request),
    ("journal", journal),
    ("redis_replies", redis_replies),
    ("websocket", websocket),
    ("wire", wire),
];

/// The head of an HTTP request, and the size line of a chunk.
pub fn http_request(bytes: &[u8]) {
    phalanx::net::http::fuzzed::request(bytes);
}

/// The head of an HTTP answer.
pub fn http_answer(bytes: &[u8]) {
    phalanx::net::http::fuzzed::answer(bytes);
}

/// Replies of Redis.
pub fn redis_replies(bytes: &[u8]) {
    phalanx::redis::fuzzed::replies(bytes);
}

/// What a peer sends after the handshake of a WebSocket.
pub fn websocket(bytes: &[u8]) {
    phalanx::transport::ws::fuzzed::frames(bytes);
}

/// A message of one of the six directions, which the first byte chooses: what was read is written, and that reads as
/// the same.
pub fn wire(bytes: &[u8]) {
    let Some((direction, bytes)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    macro_rules! read_and_write {
        ($direction:ty) => {
            if let Ok(message) = <$direction>::decode(text) {
                let written = message.encode();
                let again = <$direction>::decode(&written).expect("what we write can be read");
                assert_eq!(again.encode(), written, "what was read reads the same when it is written");
            }
        };
    }
    match direction % 6 {
        0 => read_and_write!(FacilitatorToValidator),
        1 => read_and_write!(ValidatorToFacilitator),
        2 => read_and_write!(ValidatorToMiner),
        3 => read_and_write!(MinerToValidator),
        4 => read_and_write!(ExecutorToMiner),
        _ => read_and_write!(MinerToExecutor),
    }
}

/// What lies in a Redis list for a Celery worker: a task that was read is written, and that reads as the same.
pub fn celery_message(bytes: &[u8]) {
    let Ok(envelope) = Envelope::read(bytes) else { return };
    // What it says of its payload, readable or not.
    let _ = envelope.payload();
    if let Ok(message) = TaskMessage::read(&envelope) {
        let written = message.write();
        let again = Envelope::read(written.write().as_bytes()).expect("what we write can be read");
        let again = TaskMessage::read(&again).expect("a task that we write can be read");
        assert_eq!(again.id, message.id);
        assert_eq!(again.task, message.task);
    }
}

/// What Celery stores of a task's end.
pub fn celery_result(bytes: &[u8]) {
    let Ok(meta) = Meta::read(bytes) else { return };
    let _ = meta.exception();
    Meta::read(meta.write().as_bytes()).expect("what we write can be read");
}

/// A zip that a job names: nothing of it gets out of its folder, and it takes no more room than it may.
pub fn archive(bytes: &[u8]) {
    const SPACE: u64 = 1 << 20;
    let workspace = Workspace::create().expect("a folder for the job");
    let loader = VolumeLoader::new(Shutdown::new(), Hub::from_env(false), Reach::default()).with_space(SPACE);
    let volume = InlineVolume { contents: STANDARD.encode(bytes), relative_path: None };
    let deadline = Instant::now() + Duration::from_secs(10);
    if let Ok(used) = loader.load(&Volume::Inline(volume), &workspace, deadline) {
        assert!(used <= SPACE, "a job has the room that it has");
    }
}

/// The two files of a journal, whose lengths the first two bytes tell: whatever is in them, reading them ends.
pub fn journal(bytes: &[u8]) {
    let [high, low, bytes @ ..] = bytes else { return };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(bytes.len());
    let (database, log) = bytes.split_at(length);
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("journal.db"), database).expect("the database");
    fs::write(folder.path().join("journal.db-wal"), log).expect("the log");
    if let Ok(recovered) = Journal::read(folder.path()) {
        assert!(recovered.records.len() <= bytes.len(), "no record comes from nothing");
    }
}
