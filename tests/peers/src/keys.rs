//! sr25519 keys and their SS58 addresses.

use std::collections::HashMap;

use blake2::{Blake2b512, Digest};
use schnorrkel::{ExpansionMode, Keypair, MiniSecretKey, PublicKey, Signature};

/// The signing context of all sr25519 signatures of the network.
const CONTEXT: &[u8] = b"substrate";

/// The network's address prefix.
const PREFIX: u8 = 42;

/// The key of a seed of 32 bytes in hex.
///
/// # Errors
/// What is wrong with the hex.
pub fn keypair(seed: &str) -> Result<Keypair, String> {
    let seed = hex::decode(seed.trim_start_matches("0x")).map_err(|e| format!("seed: {e}"))?;
    let secret = MiniSecretKey::from_bytes(&seed).map_err(|e| format!("seed: {e}"))?;
    Ok(secret.expand_to_keypair(ExpansionMode::Ed25519))
}

fn checksum(body: &[u8]) -> [u8; 2] {
    let hash = Blake2b512::new().chain_update(b"SS58PRE").chain_update(body).finalize();
    [hash[0], hash[1]]
}

/// The SS58 address.
pub fn ss58(key: &PublicKey) -> String {
    let mut body = vec![PREFIX];
    body.extend(key.to_bytes());
    body.extend(checksum(&body));
    bs58::encode(body).into_string()
}

/// Reads an SS58 address.
///
/// # Errors
/// What is wrong with it.
pub fn from_ss58(address: &str) -> Result<PublicKey, String> {
    let bytes = bs58::decode(address).into_vec().map_err(|e| format!("address {address}: {e}"))?;
    let Some((body, sum)) = bytes.split_last_chunk::<2>() else {
        return Err(format!("address {address}: it is too short"));
    };
    if body.len() != 33 || body[0] != PREFIX || checksum(body) != *sum {
        return Err(format!("address {address}: it should be an SS58 address with prefix {PREFIX}"));
    }
    PublicKey::from_bytes(&body[1..]).map_err(|e| format!("address {address}: {e}"))
}

/// Signs bytes as they are.
pub fn sign(key: &Keypair, data: &[u8]) -> [u8; 64] {
    key.sign_simple(CONTEXT, data).to_bytes()
}

/// Whether the key signed these bytes, as they are or in the wrapping that browser wallets add.
pub fn verify(key: &PublicKey, data: &[u8], signature: &[u8]) -> bool {
    let Ok(signature) = Signature::from_bytes(signature) else {
        return false;
    };
    let signed = |message: &[u8]| key.verify_simple(CONTEXT, message, &signature).is_ok();
    signed(data) || signed(&[b"<Bytes>", data, b"</Bytes>"].concat())
}

/// Whether each key signed its hash, unwrapped; checked together, which is cheaper than one by one. False says only
/// that not all are good.
pub fn verify_all(keys: &[PublicKey], hashes: &[[u8; 64]], signatures: &[[u8; 64]]) -> bool {
    let signatures: Result<Vec<_>, _> = signatures.iter().map(|bytes| Signature::from_bytes(bytes)).collect();
    let context = schnorrkel::signing_context(CONTEXT);
    let transcripts = hashes.iter().map(|hash| context.bytes(hash));
    signatures.is_ok_and(|signatures| schnorrkel::verify_batch(transcripts, &signatures, keys, true).is_ok())
}

/// Who may sign jobs: their keys, decompressed once.
pub type Trusted = HashMap<String, PublicKey>;

/// The keys of these addresses.
///
/// # Errors
/// The first address that is none.
pub fn trusted<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Trusted, String> {
    addresses.into_iter().map(|address| Ok((address.to_owned(), from_ss58(address)?))).collect()
}
