//! What a login nonce looks like: the one text of somebody else's that a key of ours signs. Pure.
//!
//! A key signs several kinds of messages, see [`super::signing`], and nothing in the signed bytes says which kind.
//! So a facilitator that is asked for a nonce could answer with the text of another message, and get that signed: a
//! miner authentication (`validator:miner:timestamp`), a streaming server (`job:ip:port:certificate`), a receipt (JSON,
//! perhaps between `<Bytes>` and `</Bytes>`).

use uuid::Uuid;

use crate::identity::PublicKey;

/// Bytes of a nonce, at most: the Python facilitator's have some 80, ours 110.
const NONCE_BYTES: usize = 512;

/// Bytes of a nonce, at least: fewer are no nonce.
const LEAST_BYTES: usize = 8;

/// A text is not signed as a login nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotANonce {
    /// It is too short or too long.
    #[error("it has {0} bytes; a nonce has from {LEAST_BYTES} to {NONCE_BYTES}")]
    Length(usize),
    /// A character that no token has.
    #[error("it has the character {0:?}; a nonce has letters, digits and .:_-=+/~")]
    Character(char),
    /// It could be another message that the key signs.
    #[error("it has the shape of {0}, which could be used in the name of the key that signs it")]
    Other(&'static str),
}

/// Whether `text` is nothing but a login nonce, so that `signer` may sign it.
///
/// # Errors
/// Why not.
pub fn check_login_nonce(text: &str, signer: &PublicKey) -> Result<(), NotANonce> {
    if !(LEAST_BYTES..=NONCE_BYTES).contains(&text.len()) {
        return Err(NotANonce::Length(text.len()));
    }
    if text.as_bytes() == signer.as_bytes() {
        return Err(NotANonce::Other("a validator's authentication"));
    }
    if let Some(other) = text.chars().find(|c| !c.is_ascii_alphanumeric() && !".:_-=+/~".contains(*c)) {
        return Err(NotANonce::Character(other));
    }
    if text.starts_with("0x") {
        return Err(NotANonce::Other("bytes in hex"));
    }
    for part in text.split(':') {
        if PublicKey::from_ss58(part).is_ok() {
            return Err(NotANonce::Other("a miner authentication"));
        }
        // Only with its dashes: the Python facilitator's nonces begin with 32 hex digits.
        if part.len() < text.len() && part.contains('-') && Uuid::try_parse(part).is_ok() {
            return Err(NotANonce::Other("a streaming server's details"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::KeyPair;
    use crate::protocol::{V0StreamingJobReadyRequest, ValidatorAuthForMiner};

    fn key(uri: &str) -> KeyPair {
        KeyPair::from_uri(uri).unwrap()
    }

    fn check(text: &str) -> Result<(), NotANonce> {
        check_login_nonce(text, &key("//Alice").public())
    }

    #[test]
    fn nonces_of_facilitators_are_signed() {
        for nonce in [
            // Django's TimestampSigner, as the Python facilitator makes them.
            "0f9d2c4be11b4c33a1c0b3f2dd0e1f22:1vHq3K:d1oYkq9Z3m-8b_xJt3sZxT4fYwTz3yXUQ0o1C8b9a2E",
            "1764439999.00112233445566778899aabbccddeeff.5f0c1f5fbb7ae3f1c6a1f1d7b7c2",
            "eyJhbGciOiJIUzI1NiJ9.eyJub25jZSI6IjEifQ.c2ln",
            "f47ac10b-58cc-4372-a567-0e02b2c3d479",
        ] {
            assert_eq!(check(nonce), Ok(()), "{nonce}");
        }
    }

    #[test]
    fn the_text_of_another_message_is_not_signed() {
        let (alice, bob) = (key("//Alice"), key("//Bob"));
        let auth = ValidatorAuthForMiner::sign(&alice, &bob.ss58(), 1_764_439_999).blob_for_signing();
        let streaming = V0StreamingJobReadyRequest {
            job_uuid: "f47ac10b-58cc-4372-a567-0e02b2c3d479".to_owned(),
            executor_token: None,
            public_key: "pem".to_owned(),
            ip: Some("1.2.3.4".to_owned()),
            port: 4433.into(),
            miner_signature: None,
        };
        for (text, why) in [
            (auth.as_str(), "a miner authentication"),
            (&format!("x:{}", bob.ss58()), "a miner authentication"),
            (&bob.ss58(), "a miner authentication"),
            (&streaming.blob_for_signing(), "a streaming server's details"),
            (&format!("0x{}", "ab".repeat(32)), "bytes in hex"),
        ] {
            assert_eq!(check(text), Err(NotANonce::Other(why)), "{text}");
        }
        for (text, c) in [
            ("{\"job_uuid\": \"u\"}", '{'),
            ("<Bytes>12345678</Bytes>", '<'),
            ("12345678 9", ' '),
            ("12345678\n", '\n'),
            ("1234567\u{1b}[2J", '\u{1b}'),
            ("12345678ü", 'ü'),
        ] {
            assert_eq!(check(text), Err(NotANonce::Character(c)), "{text:?}");
        }
        for text in ["", "1234567", &"a".repeat(513)] {
            assert_eq!(check(text), Err(NotANonce::Length(text.len())));
        }
        let printable = PublicKey::from_bytes([b'a'; 32]);
        let refused = check_login_nonce(&"a".repeat(32), &printable);
        assert_eq!(refused, Err(NotANonce::Other("a validator's authentication")));
    }
}
