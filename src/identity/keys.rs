//! Key pairs, which sign, and public keys, which verify.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use super::{IdentityError, Signature, secret, ss58};

/// The signing context of Substrate: the same key and message give nothing valid under another one.
pub(super) const CONTEXT: &[u8] = b"substrate";

/// An sr25519 key pair. It is never printed: `Debug` shows the address, and the memory is cleared when it is dropped.
#[derive(Clone)]
pub struct KeyPair(pub(super) schnorrkel::Keypair);

impl KeyPair {
    /// Reads a key URI: a mnemonic, or `0x` and 64 hex digits, or nothing (the public development mnemonic); then
    /// `//hard` and `/soft` junctions; then `///` and a password. `//Alice` and `//Alice//hot` are such URIs.
    ///
    /// # Errors
    /// [`IdentityError::Uri`], [`IdentityError::Mnemonic`] or [`IdentityError::Seed`].
    pub fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        secret::from_uri(uri).map(Self)
    }

    /// The pair of a mnemonic, as Substrate and Bittensor wallets derive it.
    ///
    /// # Errors
    /// [`IdentityError::Mnemonic`].
    pub fn from_mnemonic(mnemonic: &str, password: Option<&str>) -> Result<Self, IdentityError> {
        secret::seed_from_mnemonic(mnemonic, password).map(Self::from_seed)
    }

    /// The pair of a seed of 32 bytes; any bytes are a seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(secret::from_seed(&seed))
    }

    /// A new pair and the twelve words it can be had again from.
    ///
    /// # Panics
    /// When the system has no randomness to give.
    pub fn generate() -> (Self, String) {
        let mnemonic = secret::new_mnemonic();
        let pair = Self::from_mnemonic(&mnemonic, None).expect("the words were made from entropy just now");
        (pair, mnemonic)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public.to_bytes())
    }

    /// The address of the public half.
    pub fn ss58(&self) -> String {
        self.public().to_ss58()
    }

    /// Signs the bytes as they are. Two signatures of the same bytes differ.
    ///
    /// # Panics
    /// When the system has no randomness to give.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign_simple(CONTEXT, message).to_bytes())
    }

    /// Signs a text as the wallet of the Python peers does: a text that begins with `0x` as the bytes it spells, any
    /// other as its UTF-8 bytes.
    ///
    /// For a text that begins with `0x` and is not hex the wallet has no signature at all; here its UTF-8 bytes are
    /// signed, and no verifier of texts accepts the result.
    pub fn sign_text(&self, text: &str) -> Signature {
        self.sign(&signed_bytes(text).unwrap_or(Cow::Borrowed(text.as_bytes())))
    }

    /// The 64 bytes that wallets call the private key: the scalar and the seed of the nonces.
    pub(super) fn private_bytes(&self) -> [u8; 64] {
        self.0.secret.to_bytes()
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.ss58())
    }
}

/// An sr25519 public key: 32 bytes, not checked to be a point of the curve (verifying with one that is none fails).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the bytes as they are.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads an SS58 address; its checksum and its prefix, 42, are checked.
    ///
    /// # Errors
    /// [`IdentityError::Address`].
    pub fn from_ss58(address: &str) -> Result<Self, IdentityError> {
        ss58::decode(address).map(Self)
    }

    /// Reads 64 hex digits of either case *without* `0x`, the form of the wire.
    ///
    /// # Errors
    /// [`IdentityError::PublicKey`].
    pub fn from_hex(digits: &str) -> Result<Self, IdentityError> {
        let wrong = |why: String| IdentityError::PublicKey { why };
        if digits.starts_with("0x") {
            return Err(wrong("it begins with 0x".into()));
        }
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return Err(wrong(format!("it has {} characters", digits.len())));
        }
        hex::decode_to_slice(digits, &mut bytes).map_err(|error| wrong(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// The address, with prefix 42.
    pub fn to_ss58(&self) -> String {
        ss58::encode(&self.0)
    }

    /// 64 small hex digits without `0x`.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether this key signed the data, as it is or as browser wallets sign it, between `<Bytes>` and `</Bytes>`.
    pub fn verify(&self, data: &[u8], signature: &Signature) -> bool {
        match (self.read(), signature.read()) {
            (Some(key), Some(signature)) => holds(&key, data, &signature),
            _ => false,
        }
    }

    /// The point, if the bytes are one; finding it takes about a tenth of the time of a check.
    pub(super) fn read(&self) -> Option<schnorrkel::PublicKey> {
        schnorrkel::PublicKey::from_bytes(&self.0).ok()
    }

    /// Whether this key signed the text, read as in [`KeyPair::sign_text`]; never for a `0x` text that is not hex.
    pub fn verify_text(&self, text: &str, signature: &Signature) -> bool {
        signed_bytes(text).is_some_and(|bytes| self.verify(&bytes, signature))
    }
}

/// Whether the key signed the data, unwrapped or wrapped.
pub(super) fn holds(key: &schnorrkel::PublicKey, data: &[u8], signature: &schnorrkel::Signature) -> bool {
    let signed = |message: &[u8]| key.verify_simple(CONTEXT, message, signature).is_ok();
    signed(data) || signed(&[b"<Bytes>", data, b"</Bytes>"].concat())
}

/// The bytes that a signature of a text covers; none for a text that begins with `0x` and is not hex.
fn signed_bytes(text: &str) -> Option<Cow<'_, [u8]>> {
    match text.strip_prefix("0x") {
        Some(digits) => hex::decode(digits).ok().map(Cow::Owned),
        None => Some(Cow::Borrowed(text.as_bytes())),
    }
}

/// The SS58 address.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_ss58())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// Reads an SS58 address.
impl FromStr for PublicKey {
    type Err = IdentityError;

    fn from_str(address: &str) -> Result<Self, IdentityError> {
        Self::from_ss58(address)
    }
}
