//! Keys and signatures of the Python peers, `vectors/signing.json`, get the verdicts that the peers gave.

use blake2::{Blake2b512, Digest};
use phalanx::identity::{IdentityError, KeyPair, PublicKey, Signature};
use serde_json::Value;

fn section(name: &str) -> Vec<Value> {
    let text = include_str!("../vectors/signing.json");
    let mut vectors: Value = serde_json::from_str(text).unwrap();
    match vectors[name].take() {
        Value::Array(cases) => cases,
        other => panic!("{name} is no list: {other}"),
    }
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("no {field} in {case}"))
}

#[test]
fn vectors_keys() {
    let mut counts = (0, 0, 0);
    for case in section("keys") {
        let public = PublicKey::from_hex(text(&case, "public_key_hex")).unwrap();
        let address = text(&case, "ss58_address");
        assert_eq!(public.to_ss58(), address);
        assert_eq!(PublicKey::from_ss58(address).unwrap(), public);
        assert_eq!(public.to_hex(), text(&case, "public_key_hex"));
        if let Some(uri) = case["uri"].as_str() {
            counts.0 += 1;
            assert_eq!(KeyPair::load(uri).unwrap().public(), public, "{uri}");
            assert_eq!(KeyPair::from_uri(uri).unwrap().ss58(), address);
        } else if let Some(mnemonic) = case["mnemonic"].as_str() {
            counts.1 += 1;
            assert_eq!(KeyPair::from_mnemonic(mnemonic, None).unwrap().public(), public);
            assert_eq!(KeyPair::load(mnemonic).unwrap().public(), public);
        }
        if let Some(seed) = case["mini_secret_hex"].as_str() {
            counts.2 += 1;
            let bytes: [u8; 32] = hex::decode(seed).unwrap().try_into().unwrap();
            assert_eq!(KeyPair::from_seed(bytes).public(), public);
            assert_eq!(KeyPair::load(&format!("0x{seed}")).unwrap().public(), public);
        }
    }
    println!("keys: {} URIs, {} mnemonic, {} seeds agree", counts.0, counts.1, counts.2);
    assert_eq!(counts, (4, 1, 2));
}

#[test]
fn vectors_authentication() {
    /// The facilitator's side: both fields must be read, and the signature must cover the raw key.
    fn verdict(message: &Value) -> Result<bool, IdentityError> {
        let public = PublicKey::from_hex(text(message, "public_key"))?;
        let signature = Signature::from_hex(text(message, "signature"))?;
        Ok(public.verify(public.as_bytes(), &signature))
    }
    let (mut valid, mut invalid, mut unreadable) = (0, 0, 0);
    for case in section("authentication") {
        let message: Value = serde_json::from_str(text(&case, "json")).unwrap();
        let verdict = verdict(&message);
        assert_eq!(verdict.as_ref().is_ok_and(|valid| *valid), case["valid"] == true, "{case}");
        match verdict {
            Ok(true) => valid += 1,
            Ok(false) => invalid += 1,
            Err(error) => {
                unreadable += 1;
                // What we cannot even read, the peer calls a ValueError instead of a verdict.
                assert!(text(&case, "outcome").starts_with("ValueError"), "{error}: {case}");
            }
        }
        if let Some(bytes) = case["signed_bytes_hex"].as_str() {
            assert_eq!(PublicKey::from_ss58(text(&case, "ss58_address")).unwrap().to_hex(), bytes);
        }
    }
    println!("authentication: {valid} valid, {invalid} invalid, {unreadable} unreadable");
    assert_eq!((valid, invalid, unreadable), (8, 4, 5));
}

#[test]
fn vectors_wrapping() {
    let mut counts = [0, 0];
    for case in section("wrapping") {
        let signer = PublicKey::from_ss58(text(&case, "hotkey")).unwrap();
        let signature = Signature::from_hex(text(&case, "signature")).unwrap();
        let valid = case["valid"] == true;
        assert_eq!(signer.verify_text(text(&case, "verified_against"), &signature), valid, "{case}");
        assert_eq!(signer.verify(text(&case, "verified_against").as_bytes(), &signature), valid);
        assert!(signer.verify(text(&case, "signed_over").as_bytes(), &signature), "{case}");
        counts[usize::from(valid)] += 1;
    }
    println!("wrapping: {} valid, {} invalid", counts[1], counts[0]);
    assert_eq!(counts, [7, 7]);
}

#[test]
fn vectors_hex_text_quirk() {
    let cases = section("hex_text_quirk");
    for case in &cases {
        let signer = PublicKey::from_ss58(text(case, "hotkey")).unwrap();
        let signature = Signature::from_hex(text(case, "signature")).unwrap();
        let spelled = hex::decode(text(case, "valid_against_bytes_hex")).unwrap();
        assert_eq!(signer.verify_text(text(case, "text"), &signature), case["valid_against_text_via_peer"] == true);
        assert!(signer.verify(&spelled, &signature));
        assert_eq!(signer.verify(text(case, "text").as_bytes(), &signature), case["valid_against_ascii_bytes"] == true);
    }
    println!("hex_text_quirk: {} case", cases.len());
    assert_eq!(cases.len(), 1);
}

#[test]
fn signed_requests_carry_readable_base64() {
    // These carry a signature as base64 over a known payload, so they check the whole way from text to verdict.
    let cases = section("http_request_signature");
    for case in &cases {
        let headers = &case["headers"];
        let signer = PublicKey::from_ss58(text(headers, "X-CH-Signatory")).unwrap();
        let signature = Signature::from_base64(text(headers, "X-CH-Signature")).unwrap();
        let timestamp: u64 = text(headers, "X-CH-Timestamp-NS").parse().unwrap();
        let payload = hex::decode(text(case, "canonical_bytes_hex")).unwrap();
        let hash = Blake2b512::new().chain_update(timestamp.to_be_bytes()).chain_update(payload).finalize();
        assert!(signer.verify(&hash, &signature), "{case}");
        assert_eq!(signature.to_base64(), text(headers, "X-CH-Signature"));
    }
    assert_eq!(cases.len(), 2);
}
