//! What can be wrong with an identity. Pure.

use std::path::PathBuf;

/// What is wrong with a key, an address, a signature or a hotkey file.
///
/// All of them are bad input: nothing was changed, and the same input fails again. No message repeats a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A text that is no SS58 address of this network.
    #[error("{text:?} is not an SS58 address with prefix 42: {why}")]
    Address {
        /// The text as it was given, truncated when it is too long to be an address.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A public key in hex that cannot be read.
    #[error("a public key is 64 hex digits without 0x: {why}")]
    PublicKey {
        /// What is wrong with it.
        why: String,
    },
    /// A signature in hex that cannot be read.
    #[error("a signature is 0x and 128 hex digits: {why}")]
    SignatureHex {
        /// What is wrong with it.
        why: String,
    },
    /// A signature in base64 that cannot be read.
    #[error("a signature is the base64 of 64 bytes: {why}")]
    SignatureBase64 {
        /// What is wrong with it.
        why: String,
    },
    /// A mnemonic that cannot be read.
    #[error("a mnemonic is 12, 15, 18, 21 or 24 words of the English BIP-39 list: {why}")]
    Mnemonic {
        /// What is wrong with it; says the place of a word, never the word.
        why: String,
    },
    /// A seed or a private key in hex that cannot be read.
    #[error("a seed is 0x and 64 hex digits: {why}")]
    Seed {
        /// What is wrong with it.
        why: String,
    },
    /// A key URI that cannot be taken apart.
    #[error(
        "a key URI is a mnemonic or 0x seed or nothing, then //hard or /soft junctions, then ///password: this is none"
    )]
    Uri,
    /// A `--key` value that is neither a key nor a file.
    #[error("{shown} is neither a key ({why}) nor the path of a hotkey file ({cause})")]
    NoSuchKey {
        /// The value, or a description of it where it may be a secret.
        shown: String,
        /// Why it is not a key.
        why: &'static str,
        /// Why it is not a file.
        cause: std::io::Error,
    },
    /// A hotkey file that cannot be read or written.
    #[error("hotkey file {}: {cause}", path.display())]
    HotkeyFileIo {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// A hotkey file that is not one, or not a usable one.
    #[error("hotkey file {}: {why}", path.display())]
    HotkeyFile {
        /// The file.
        path: PathBuf,
        /// Which field or part is wrong, and what would be right.
        why: String,
    },
}
