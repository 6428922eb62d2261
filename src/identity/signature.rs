//! A signature and its two spellings on the wire.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};

use super::IdentityError;

/// Length of a signature in bytes.
const BYTES: usize = 64;

/// Reads base64 as the Python peers do, which mind neither unused bits in the last digit nor foreign characters.
const LENIENT: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// An sr25519 signature: 64 bytes, not yet held against any key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature([u8; BYTES]);

impl Signature {
    /// Takes the bytes as they are; whether they are a signature shows when they are verified.
    pub fn from_bytes(bytes: [u8; BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn to_bytes(self) -> [u8; BYTES] {
        self.0
    }

    /// The signature in parts; none for bytes that are no sr25519 signature.
    pub(super) fn read(&self) -> Option<schnorrkel::Signature> {
        schnorrkel::Signature::from_bytes(&self.0).ok()
    }

    /// Reads `0x` and 128 hex digits of either case, the form in all messages but signed requests.
    ///
    /// The prefix is required and must be a small `0x`, as with the Python peers.
    pub fn from_hex(text: &str) -> Result<Self, IdentityError> {
        let wrong = |why: String| IdentityError::SignatureHex { why };
        let digits = text.strip_prefix("0x").ok_or_else(|| wrong("it does not begin with 0x".into()))?;
        let mut bytes = [0; BYTES];
        if digits.len() != 2 * BYTES {
            return Err(wrong(format!("{} characters follow the 0x", digits.len())));
        }
        hex::decode_to_slice(digits, &mut bytes).map_err(|error| wrong(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// `0x` and 128 small hex digits.
    pub fn to_hex(self) -> String {
        format!("0x{}", hex::encode(self.0))
    }

    /// Reads base64 of the standard alphabet with padding, the form in signed requests.
    ///
    /// Characters outside the alphabet are passed over, as the Python peers do.
    pub fn from_base64(text: &str) -> Result<Self, IdentityError> {
        let wrong = |why: String| IdentityError::SignatureBase64 { why };
        let digits: Vec<u8> =
            text.bytes().filter(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(byte)).collect();
        let bytes = LENIENT.decode(digits).map_err(|error| wrong(error.to_string()))?;
        let bytes = bytes.try_into().map_err(|bytes: Vec<u8>| wrong(format!("it holds {} bytes", bytes.len())))?;
        Ok(Self(bytes))
    }

    /// Base64 of the standard alphabet with padding.
    pub fn to_base64(self) -> String {
        STANDARD.encode(self.0)
    }
}

/// `0x` and 128 small hex digits.
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}
