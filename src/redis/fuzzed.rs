//! What a fuzzer gives the reader of Redis's protocol, and what must hold of its answers. Pure.

use redis::Value;

use super::resp::{Malformed, Parser};

/// Reads the bytes at once, and again in the pieces in which a socket may bring them: the first byte says how long
/// they are.
///
/// # Panics
/// If the pieces change what is read.
pub fn replies(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let (whole, malformed) = read(bytes, bytes.len().max(1));
    let (pieces, malformed_in_pieces) = read(bytes, usize::from(*piece).max(1));
    // Not by the values themselves, of which NaN is not equal to itself.
    assert_eq!(format!("{whole:?}"), format!("{pieces:?}"), "as they come changes nothing of what is read");
    // The texts show as much as has come.
    assert_eq!(malformed.is_some(), malformed_in_pieces.is_some(), "nor of how that ends");
}

/// All replies, and what ended them if it was not the end of the bytes.
fn read(bytes: &[u8], piece: usize) -> (Vec<Value>, Option<Malformed>) {
    let (mut parser, mut found, mut buffer) = (Parser::default(), Vec::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        buffer.extend_from_slice(piece);
        let mut input = &buffer[..];
        loop {
            match parser.next(&mut input) {
                Ok(Some(value)) => found.push(value),
                Ok(None) => break,
                Err(malformed) => return (found, Some(malformed)),
            }
        }
        let used = buffer.len() - input.len();
        buffer.drain(..used);
    }
    (found, None)
}
