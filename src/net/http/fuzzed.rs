//! What a fuzzer gives the readers of HTTP, and what must hold of their answers. Pure.

use super::date::{longest_wait, unix_seconds};
use super::head::{RequestHead, ResponseHead, is_interim};
use super::names::HostNames;
use super::request::{chunk_size, head};

/// Reads bytes as a server does: heads one after the other, and the size line of a chunk.
///
/// # Panics
/// If a head is longer than what was read, or reads otherwise when less follows it.
pub fn request(bytes: &[u8]) {
    let names = HostNames::new(vec!["phalanx.example".to_owned()]);
    let mut rest = bytes;
    while let Ok(Some((request, length))) = head(rest) {
        assert!(0 < length && length <= rest.len(), "a head has bytes, of those that there are");
        let alone = head(&rest[..length]).ok().flatten();
        assert!(alone.is_some_and(|(_, again)| again == length), "what follows a head changes nothing of it");
        assert!(request.path.starts_with('/') || request.path == "*", "a path begins with a slash");
        names.refusal(&request.headers);
        rest = &rest[length..];
    }
    // The one of the WebSocket upgrade.
    if let Ok(Some((_, length))) = RequestHead::parse(bytes) {
        assert!(length <= bytes.len());
    }
    if let Ok(Some((length, _))) = chunk_size(bytes) {
        assert!(0 < length && length <= bytes.len(), "a size line has bytes, of those that there are");
    }
}

/// Reads bytes as a client does: the head of an answer, and the wait that it asks for.
pub fn answer(bytes: &[u8]) {
    is_interim(bytes);
    if let Ok(head) = ResponseHead::parse(bytes) {
        longest_wait(&head.headers, 1_700_000_000);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        unix_seconds(text);
    }
}
