//! What the Python peers signed verifies here, what they refused is refused, the signed bytes are theirs byte for byte,
//! and what we sign verifies: `tests/vectors/signing.json`, all but the sections of `identity` (see
//! `tests/identity.rs`).

use phalanx::identity::{KeyPair, PublicKey, Signature as RawSignature};
use phalanx::protocol::signing::{http_canonical_bytes, signed_hash};
use phalanx::protocol::*;
use serde_json::Value;

fn section(name: &str, count: usize) -> Vec<Value> {
    let path = format!("{}/tests/vectors/signing.json", env!("CARGO_MANIFEST_DIR"));
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let entries = all[name].as_array().unwrap().clone();
    println!("signing.json {name}: {} entries", entries.len());
    assert_eq!(entries.len(), count, "{name}");
    entries
}

fn text<'v>(entry: &'v Value, key: &str) -> &'v str {
    entry[key].as_str().unwrap_or_else(|| panic!("no text {key} in {entry}"))
}

fn valid(entry: &Value) -> bool {
    entry["valid"].as_bool().unwrap()
}

fn alice() -> KeyPair {
    KeyPair::from_uri("//Alice").unwrap()
}

/// Whether the holder of an address signed a text, as the Python peers check it.
fn holds(hotkey: &str, blob: &str, signature: &str) -> bool {
    let key = PublicKey::from_ss58(hotkey).unwrap();
    RawSignature::from_hex(signature).is_ok_and(|signature| key.verify_text(blob, &signature))
}

#[test]
fn authentication() {
    for entry in section("authentication", 17) {
        let frame = text(&entry, "json");
        let Ok(ValidatorToFacilitator::V0AuthenticationRequest(auth)) = ValidatorToFacilitator::decode(frame) else {
            panic!("{frame}");
        };
        let verdict = auth.verify();
        assert_eq!(verdict.is_ok(), valid(&entry), "{} {verdict:?}", entry["why"]);
        if let (Ok(key), Some(address)) = (verdict, entry["ss58_address"].as_str()) {
            assert_eq!(key.to_ss58(), address);
            let ours = V0AuthenticationRequest::sign(&KeyPair::load(text(&entry, "uri")).unwrap());
            assert!(ours.verify().is_ok());
            assert_ne!(ours.signature, auth.signature, "signatures are randomised");
        }
    }
}

#[test]
fn validator_authentication_at_a_miner() {
    let mut frames = 0;
    for entry in section("validator_auth", 7) {
        let (blob, hotkey) = (text(&entry, "blob_for_signing"), text(&entry, "hotkey"));
        assert_eq!(holds(hotkey, blob, text(&entry, "signature")), valid(&entry), "{entry}");
        if let Some(frame) = entry["json"].as_str() {
            let Ok(ValidatorToMiner::ValidatorAuthForMiner(auth)) = ValidatorToMiner::decode(frame) else {
                panic!("{frame}");
            };
            assert_eq!(auth.blob_for_signing(), blob);
            assert_eq!(auth.verify().unwrap().to_ss58(), hotkey);
            let late = ValidatorAuthForMiner { timestamp: Int::from(1), ..auth.clone() };
            assert!(matches!(late.verify(), Err(SigningError::Mismatch(_))));
            frames += 1;
        }
    }
    assert_eq!(frames, 3);
    let ours = ValidatorAuthForMiner::sign(&alice(), "5F", 1_700_000_000);
    assert_eq!(ours.blob_for_signing(), format!("{}:5F:1700000000", alice().ss58()));
    assert_eq!(ours.verify().unwrap(), alice().public());
}

#[test]
fn receipts() {
    let (mut read, mut refused) = (0, Vec::new());
    for entry in section("receipts", 16) {
        let (name, frame) = (text(&entry, "name"), text(&entry, "receipt_json"));
        let blob = text(&entry, "blob_for_signing");
        assert_eq!(hex::encode(blob), text(&entry, "blob_hex"));
        for negative in entry["negatives"].as_array().unwrap() {
            let (hotkey, signature) = (text(negative, "hotkey"), text(negative, "signature"));
            assert_eq!(holds(hotkey, blob, signature), valid(negative), "{name}: {}", negative["why"]);
        }
        let receipt = match Receipt::decode(frame) {
            Ok(receipt) => receipt,
            Err(_) => {
                refused.push(name.to_owned());
                continue;
            }
        };
        assert_eq!(receipt.encode(), frame, "{name}");
        assert_eq!(receipt.payload.blob_for_signing(), blob, "{name}");
        let (validator, miner) = (receipt.verify_validator().unwrap(), receipt.verify_miner().unwrap());
        assert_eq!(validator, KeyPair::from_uri(text(&entry, "validator_uri")).unwrap().public());
        assert_eq!(miner, KeyPair::from_uri(text(&entry, "miner_uri")).unwrap().public());
        let ours = receipt.payload.sign(&alice());
        assert_eq!(receipt.payload.verify(&alice().ss58(), &ours).unwrap(), alice().public());
        assert!(receipt.payload.verify(&miner.to_ss58(), &ours).is_err());
        read += 1;
    }
    println!("{read} receipts read; out of the package's bounds: {refused:?}");
    let bounds = ["started_naive", "started_odd_uuid", "finished_negative", "started_huge_ttl", "finished_year1"];
    assert_eq!((read, refused), (11, bounds.map(str::to_owned).to_vec()));
}

#[test]
fn streaming_ready() {
    let mut frames = 0;
    for entry in section("streaming_ready", 4) {
        let (blob, hotkey) = (text(&entry, "blob_for_signing"), text(&entry, "hotkey"));
        assert_eq!(holds(hotkey, blob, text(&entry, "signature")), valid(&entry), "{entry}");
        if let Some(frame) = entry["json"].as_str() {
            let Ok(MinerToValidator::V0StreamingJobReadyRequest(mut ready)) = MinerToValidator::decode(frame) else {
                panic!("{frame}");
            };
            assert_eq!(ready.blob_for_signing(), blob);
            assert_eq!(hex::encode(blob), text(&entry, "blob_hex"));
            ready.verify(PublicKey::from_ss58(hotkey).unwrap()).unwrap();
            ready.ip = Some("10.0.0.1".into());
            assert!(ready.verify(PublicKey::from_ss58(hotkey).unwrap()).is_err());
            ready.sign(&alice());
            ready.verify(alice().public()).unwrap();
            ready.miner_signature = None;
            assert!(matches!(ready.verify(alice().public()), Err(SigningError::Missing)));
            frames += 1;
        }
    }
    assert_eq!(frames, 2);
}

#[test]
fn messages_signed_by_the_validator() {
    let bob = KeyPair::from_uri("//Bob").unwrap().public();
    for entry in section("validator_signed_messages", 8) {
        let (frame, blob) = (text(&entry, "json"), text(&entry, "blob_for_signing"));
        assert_eq!(hex::encode(blob), text(&entry, "blob_hex"));
        let key = PublicKey::from_ss58(text(&entry, "hotkey")).unwrap();
        assert_eq!(verify_validator_signature(frame, &key).unwrap(), valid(&entry));
        assert!(!verify_validator_signature(frame, &bob).unwrap(), "another key");
        // Neither the order of keys nor the layout counts, but every key and value does, known or not.
        let mut reordered: Value = serde_json::from_str(frame).unwrap();
        let map = reordered.as_object_mut().unwrap();
        *map = map.iter().rev().map(|(key, value)| (key.clone(), value.clone())).collect();
        let reordered = serde_json::to_string_pretty(&reordered).unwrap();
        assert!(verify_validator_signature(&reordered, &key).unwrap());
        let injected = frame.replacen('{', "{\"unknown\":1,", 1);
        assert!(!verify_validator_signature(&injected, &key).unwrap());

        let signed_again = match ValidatorToMiner::decode(frame).unwrap() {
            ValidatorToMiner::V0InitialJobRequest(mut message) => {
                assert_eq!(message.blob_for_signing(), blob);
                message.sign(&alice());
                ValidatorToMiner::from(message).encode()
            }
            ValidatorToMiner::V0JobRequest(mut message) => {
                assert_eq!(message.blob_for_signing(), blob);
                message.sign(&alice());
                ValidatorToMiner::from(message).encode()
            }
            other => panic!("{other:?}"),
        };
        assert_ne!(signed_again, frame, "signatures are randomised");
        assert!(verify_validator_signature(&signed_again, &alice().public()).unwrap());
    }
    assert!(!verify_validator_signature("{\"a\":1}", &bob).unwrap(), "not signed");
    assert!(!verify_validator_signature("{\"validator_signature\":\"0x00\"}", &bob).unwrap());
    for frame in ["", "[]", "{\"a\":"] {
        assert!(matches!(verify_validator_signature(frame, &bob), Err(SigningError::Json(_))), "{frame}");
    }
}

#[test]
fn unknown_keys_are_signed_as_they_came() {
    // A newer validator signs a key we do not know, with numbers that Python writes in its own way.
    let blob = r#"{"a":{"x":1e-07,"y":[1e+16,18446744073709551617,-0.0]},"caf\u00e9":"\ud83d\ude80","z":null}"#;
    let signature = alice().sign_text(blob).to_hex();
    let frame = format!(
        r#"{{"z":null,"café":"🚀","validator_signature":"{signature}",
            "a":{{"y":[1e16,18446744073709551617,-0.0],"x":1E-7,"x":0.0000001}}}}"#
    );
    assert!(verify_validator_signature(&frame, &alice().public()).unwrap());
}

/// Either of the two requests that users sign.
fn signed_request(frame: &str) -> Box<dyn SignedRequest> {
    match FacilitatorToValidator::decode(frame).unwrap() {
        FacilitatorToValidator::V2JobRequest(request) => Box::new(request),
        FacilitatorToValidator::V0JobCheated(request) => Box::new(request),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_signed_by_the_user() {
    let (mut payloads, mut rejected) = (0, 0);
    for entry in section("signed_requests", 62) {
        let frame = text(&entry, "json");
        let place = format!("{} {} {}", entry["type"], entry["name"], entry["why"]);
        let mut request = signed_request(frame);
        let verdict = request.verify();
        assert_eq!(verdict.is_ok(), valid(&entry), "{place}: {verdict:?}");
        rejected += usize::from(verdict.is_err());
        if let (Some(payload), "V2JobRequest") = (entry["signed_payload"].as_str(), text(&entry, "type")) {
            let Ok(FacilitatorToValidator::V2JobRequest(job)) = FacilitatorToValidator::decode(frame) else {
                panic!("{place}");
            };
            assert_eq!(SignedFields::from(&job).encode(), payload, "{place}");
            payloads += 1;
        }
        if let Some(canonical) = entry["canonical_bytes_hex"].as_str() {
            let bytes = request.canonical_bytes();
            assert_eq!(hex::encode(&bytes), canonical, "{place}");
            let timestamp_ns = entry["timestamp_ns"].as_u64().unwrap();
            let hash = signed_hash(&bytes, timestamp_ns);
            assert_eq!(hex::encode(hash), text(&entry, "blake2b512_hex"), "{place}");
            assert_eq!(verdict.unwrap().to_ss58(), text(&entry, "hotkey"), "{place}");
        }
        request.sign(&alice(), 1_700_000_000_000_000_000);
        assert_eq!(request.verify().unwrap(), alice().public(), "{place}");
        let mut later = request.signature().unwrap().clone();
        later.timestamp_ns = Int::from(1_700_000_000_000_000_001_i64);
        request.set_signature(Some(later));
        assert!(matches!(request.verify(), Err(SigningError::Mismatch(_))), "{place}");
        request.set_signature(None);
        assert!(matches!(request.verify(), Err(SigningError::Missing)), "{place}");
    }
    println!("{payloads} payloads, {rejected} rejected");
    assert_eq!((payloads, rejected), (30, 25));
}

#[test]
fn times_that_cannot_be_hashed_are_no_signature() {
    for timestamp in ["-1", "18446744073709551616"] {
        let frame = format!(
            r#"{{"message_type":"V0JobCheated","job_uuid":"","trusted_job_uuid":"","details":null,
                "signature":{{"signatory":"{}","timestamp_ns":{timestamp},"signature":"{}"}}}}"#,
            alice().ss58(),
            alice().sign(b"").to_base64(),
        );
        let error = signed_request(&frame).verify().unwrap_err();
        assert!(matches!(&error, SigningError::Timestamp(at) if at.to_string() == timestamp), "{error}");
    }
}

#[test]
fn signature_field() {
    for entry in section("signature_field_inputs", 11) {
        let input = text(&entry, "input");
        let frame = format!(
            r#"{{"message_type":"V0JobCheated","job_uuid":"","trusted_job_uuid":"","details":null,
                "signature":{input}}}"#
        );
        match FacilitatorToValidator::decode(&frame) {
            Ok(message) => {
                let emitted = message.encode_compact();
                assert!(emitted.contains(text(&entry, "emitted")), "{input}: {emitted}");
            }
            Err(error) => {
                let kinds: Vec<&str> = error.errors.iter().map(|e| e.kind).collect();
                assert_eq!(serde_json::json!(kinds), entry["error_types"], "{input}");
            }
        }
    }
}

#[test]
fn http_requests() {
    for entry in section("http_request_signature", 2) {
        let body = Some(&entry["json"]).filter(|body| !body.is_null());
        let bytes = http_canonical_bytes(text(&entry, "method"), text(&entry, "url"), body);
        assert_eq!(hex::encode(&bytes), text(&entry, "canonical_bytes_hex"));
        let headers = entry["headers"].as_object().unwrap();
        let signature = Signature::from_headers(|name| headers.get(name).and_then(Value::as_str)).unwrap();
        assert_eq!(signature.signature_scope, SignatureScope::FullRequest);
        assert_eq!(signature.verify(&bytes).unwrap().to_ss58(), text(&entry["headers"], "X-CH-Signatory"));
        for (name, value) in signature.to_headers() {
            assert_eq!(value, headers[name], "{name}");
        }
        assert_eq!(signature.to_headers().len(), headers.len());
        for missing in headers.keys().filter(|name| *name != "X-CH-Signature-Scope") {
            let error =
                Signature::from_headers(|name| headers.get(name).filter(|_| name != missing).and_then(Value::as_str))
                    .unwrap_err();
            assert_eq!(error.to_string(), format!("the header {missing} is missing"));
        }
        for kind in ["", "-1", "Bittensor", &"x".repeat(8000)] {
            let other = |name| if name == "X-CH-Signature-Type" { Some(kind) } else { headers[name].as_str() };
            let error = Signature::from_headers(other).unwrap_err().to_string();
            assert!(error.starts_with("the header X-CH-Signature-Type is \"") && error.len() < 200, "{error}");
        }
        let ours = Signature::over(&bytes, &alice(), 5);
        assert_eq!(ours.verify(&bytes).unwrap(), alice().public());
        assert!(ours.verify(b"another").is_err());
    }
    for (url, action) in [
        ("ftp_1://h:1/a//b", "/a//b"),
        ("http://host", ""),
        ("/a?u=http://x/y", "/a?u=http://x/y"),
        ("http:///a", "http:///a"),
    ] {
        let bytes = http_canonical_bytes("get", url, None);
        let expected = format!("{{\"action\": \"GET {action}\", \"json\": null}}");
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}
