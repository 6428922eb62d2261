//! SS58 addresses: base58 of one prefix byte, 32 key bytes and two checksum bytes.

use blake2::{Blake2b512, Digest};

use super::IdentityError;

/// The network prefix of every address here: 42, the generic Substrate prefix that Bittensor uses.
pub const SS58_PREFIX: u8 = 42;

const KEY_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 2;
const ADDRESS_BYTES: usize = 1 + KEY_BYTES + CHECKSUM_BYTES;

/// 35 bytes take at most 48 base58 digits; a longer text is refused unread, because decoding takes quadratic time.
const MAX_TEXT: usize = 64;

pub(super) fn encode(key: &[u8; KEY_BYTES]) -> String {
    let mut bytes = Vec::with_capacity(ADDRESS_BYTES);
    bytes.push(SS58_PREFIX);
    bytes.extend_from_slice(key);
    let checksum = checksum(&bytes);
    bytes.extend_from_slice(&checksum);
    bs58::encode(bytes).into_string()
}

pub(super) fn decode(text: &str) -> Result<[u8; KEY_BYTES], IdentityError> {
    let wrong = |why: String| IdentityError::Address { text: text.chars().take(MAX_TEXT).collect(), why };
    if text.len() > MAX_TEXT {
        return Err(wrong(format!("it has {} bytes, an address has 48 characters", text.len())));
    }
    let bytes = bs58::decode(text).into_vec().map_err(|error| wrong(error.to_string()))?;
    let Ok(bytes) = <[u8; ADDRESS_BYTES]>::try_from(bytes.as_slice()) else {
        return Err(wrong(format!("it holds {} bytes, an address holds {ADDRESS_BYTES}", bytes.len())));
    };
    let (body, given) = bytes.split_at(1 + KEY_BYTES);
    // The checksum comes first: a mistyped character may change the prefix as well, and the mistake is the typing.
    if given != checksum(body) {
        return Err(wrong("the checksum does not match, so a character is mistyped".into()));
    }
    if body[0] != SS58_PREFIX {
        return Err(wrong(format!("its prefix is {}, so it belongs to another network", body[0])));
    }
    Ok(body[1..].try_into().expect("the body is a prefix byte and the key"))
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Blake2b512::new().chain_update(b"SS58PRE").chain_update(body).finalize();
    [hash[0], hash[1]]
}
