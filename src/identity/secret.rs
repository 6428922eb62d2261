//! From the texts people keep (mnemonics, seeds, key URIs) to sr25519 secrets.
//!
//! `subxt-signer` takes URIs and mnemonics apart and `schnorrkel` does the cryptography. `subxt-signer` has a key pair
//! as well, but it can be made neither from a private key alone, which is all that some hotkey files hold, nor asked
//! for the seed of a mnemonic.

use pbkdf2::pbkdf2_hmac;
use schnorrkel::derive::{ChainCode, Derivation};
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey, SecretKey};
use sha2::Sha512;
use subxt_signer::bip39::{self, Mnemonic};
use subxt_signer::{DeriveJunction, ExposeSecret, SecretUri};

use super::IdentityError;

/// The 32-byte seed of a mnemonic, as Substrate and Bittensor wallets compute it.
///
/// It comes from the *entropy* behind the words (PBKDF2, HMAC-SHA-512, 2048 rounds, salt `mnemonic` + password, the
/// first half), not from the words themselves as in BIP-39.
///
/// # Errors
/// [`IdentityError::Mnemonic`] for a wrong number of words, an unknown word or a wrong checksum.
pub fn seed_from_mnemonic(mnemonic: &str, password: Option<&str>) -> Result<[u8; 32], IdentityError> {
    let words = mnemonic.split_whitespace().count();
    let mnemonic: Mnemonic = mnemonic.parse().map_err(|error| IdentityError::Mnemonic {
        why: match error {
            bip39::Error::BadWordCount(_) => format!("it has {words} words"),
            bip39::Error::UnknownWord(index) => format!("word {} is not in the list", index + 1),
            bip39::Error::InvalidChecksum => "its checksum does not match, so a word is wrong or out of place".into(),
            other => other.to_string(),
        },
    })?;
    let salt = format!("mnemonic{}", password.unwrap_or_default());
    let mut seed = [0; 64];
    pbkdf2_hmac::<Sha512>(&mnemonic.to_entropy(), salt.as_bytes(), 2048, &mut seed);
    Ok(seed[..32].try_into().expect("half of 64 bytes"))
}

/// Twelve new words, from the randomness of the system.
pub(super) fn new_mnemonic() -> String {
    // A new secret key is the shortest way to random bytes of the system; 16 of them make twelve words.
    let random = MiniSecretKey::generate().to_bytes();
    Mnemonic::from_entropy(&random[..16]).expect("16 bytes are the entropy of twelve words").to_string()
}

pub(super) fn from_seed(seed: &[u8; 32]) -> Keypair {
    let seed = MiniSecretKey::from_bytes(seed).expect("any 32 bytes are a seed");
    seed.expand_to_keypair(ExpansionMode::Ed25519)
}

/// Reads `0x` and the hex of a 32-byte seed or of a 64-byte private key; wallets write either into either field.
pub(super) fn from_hex(text: &str) -> Result<Keypair, IdentityError> {
    let wrong = |why: String| IdentityError::Seed { why };
    let digits = text.strip_prefix("0x").ok_or_else(|| wrong("it does not begin with 0x".into()))?;
    // The decoder's own message would repeat a character of the secret.
    let bytes = hex::decode(digits).map_err(|_| wrong("it has an odd length or characters that are not hex".into()))?;
    match <[u8; 32]>::try_from(bytes.as_slice()) {
        Ok(seed) => Ok(from_seed(&seed)),
        Err(_) if bytes.len() == 64 => SecretKey::from_bytes(&bytes)
            .map(Keypair::from)
            .map_err(|_| wrong("its 64 bytes are no private key".into())),
        Err(_) => Err(wrong(format!("{} hex digits follow the 0x", digits.len()))),
    }
}

/// Reads `[mnemonic or 0x seed][/soft or //hard …][///password]`; without a first part it is the development mnemonic.
pub(super) fn from_uri(uri: &str) -> Result<Keypair, IdentityError> {
    if uri.is_empty() {
        // By the grammar this is the development key itself, but whoever passes it forgot to set a variable.
        return Err(IdentityError::Uri);
    }
    // The grammar knows single spaces only, while words copied from somewhere may have line breaks between them.
    let (phrase, path) = uri.split_at(uri.find('/').unwrap_or(uri.len()));
    let phrase = phrase.split_whitespace().collect::<Vec<_>>().join(" ");
    let uri: SecretUri = format!("{phrase}{path}").parse().map_err(|_| IdentityError::Uri)?;
    let phrase = uri.phrase.expose_secret();
    let root = if phrase.starts_with("0x") {
        from_hex(phrase)?
    } else {
        let password = uri.password.as_ref().map(|password| password.expose_secret());
        from_seed(&seed_from_mnemonic(phrase, password)?)
    };
    let secret = uri.junctions.iter().fold(root.secret.clone(), |secret, junction| match *junction {
        DeriveJunction::Soft(code) => secret.derived_key_simple(ChainCode(code), []).0,
        DeriveJunction::Hard(code) => {
            let seed = secret.hard_derive_mini_secret_key(Some(ChainCode(code)), []).0;
            seed.expand(ExpansionMode::Ed25519)
        }
    });
    Ok(secret.into())
}
