//! Keys, addresses and signatures agree with the Python peers, and bad ones are refused with a helpful line.
//!
//! Addresses given here without a source were computed by `bittensor-wallet` 4.1.1.

use std::collections::{BTreeSet, HashSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2b512, Digest};
use phalanx::identity::{IdentityError, KeyPair, PublicKey, Signature, seed_from_mnemonic};

const DEV_MNEMONIC: &str = "bottom drive obey lake curtain smoke basket hold race lonely fit walk";
const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
const ALICE_HOT: &str = "5G6Fyo6U2fDhJXDJGp4Dr6XViVCdPcryiyLBDsusguSRcYvJ";
/// The address of the seed 0x0102…20.
const COUNTING: &str = "5CShbTqxKUgKZBRDu1VGVpivm3m415stz86A5GBdoV7wrU1d";

/// The message about a `--key` value that cannot be used.
fn complaint(key: &str) -> String {
    KeyPair::load(key).expect_err("the key must be refused").to_string()
}

#[test]
fn texts_are_signed_as_the_python_wallet_signs_them() {
    let alice = KeyPair::from_uri("//Alice").unwrap();
    // The bytes that the wallet signs for each text; none where it refuses to sign.
    let cases: [(&str, Option<&[u8]>); 10] = [
        ("", Some(b"")),
        ("0x", Some(b"")),
        ("0x1234", Some(b"\x12\x34")),
        ("0xABcd", Some(b"\xab\xcd")),
        ("0X1234", Some(b"0X1234")),
        ("1234", Some(b"1234")),
        (" 0x12", Some(b" 0x12")),
        ("0x1", None),
        ("0xzz", None),
        ("0x12 34", None),
    ];
    for (text, bytes) in cases {
        let signature = alice.sign_text(text);
        assert!(alice.public().verify(bytes.unwrap_or(text.as_bytes()), &signature), "{text:?}");
        assert_eq!(alice.public().verify_text(text, &signature), bytes.is_some(), "{text:?}");
        if bytes.is_some_and(|bytes| bytes != text.as_bytes()) {
            assert!(!alice.public().verify(text.as_bytes(), &signature), "{text:?}");
        }
    }
    let wrapped = alice.sign(b"<Bytes>\x12\x34</Bytes>");
    assert!(alice.public().verify_text("0x1234", &wrapped));
    let wrapped_letters = alice.sign(b"<Bytes>0x1234</Bytes>");
    assert!(!alice.public().verify_text("0x1234", &wrapped_letters));
}

#[test]
fn what_we_sign_we_verify_and_nobody_else() {
    let pairs = ["//Alice", "//Bob", "//Alice//hot"].map(|uri| KeyPair::from_uri(uri).unwrap());
    let messages: [&[u8]; 4] = [b"", b"hello", b"\x00\xff\x80", &[7; 100_000]];
    for (index, pair) in pairs.iter().enumerate() {
        for message in messages {
            let signature = pair.sign(message);
            for (other, verifier) in pairs.iter().enumerate() {
                assert_eq!(verifier.public().verify(message, &signature), index == other);
            }
            let longer = [message, b"!"].concat();
            assert!(!pair.public().verify(&longer, &signature));
        }
    }
}

#[test]
fn signatures_are_randomised() {
    let alice = KeyPair::from_uri("//Alice").unwrap();
    let signatures: HashSet<Signature> = (0..20).map(|_| alice.sign(b"same")).collect();
    assert_eq!(signatures.len(), 20);
    assert!(signatures.iter().all(|signature| alice.public().verify(b"same", signature)));
}

#[test]
fn every_flipped_bit_breaks_a_signature() {
    let alice = KeyPair::from_uri("//Alice").unwrap();
    let good = alice.sign(b"hello").to_bytes();
    for byte in 0..64 {
        let mut bad = good;
        bad[byte] ^= 1 << (byte % 8);
        assert!(!alice.public().verify(b"hello", &Signature::from_bytes(bad)), "byte {byte}");
    }
}

#[test]
fn a_key_that_is_no_point_verifies_nothing() {
    let nobody = PublicKey::from_bytes([0xff; 32]);
    let signature = KeyPair::from_uri("//Alice").unwrap().sign(b"hello");
    assert!(!nobody.verify(b"hello", &signature));
    assert_eq!(PublicKey::from_ss58(&nobody.to_ss58()).unwrap(), nobody);
}

#[test]
fn uris_derive_as_the_python_wallet_does() {
    let seed = format!("0x{}", hex::encode(counting_seed()));
    let cases = [
        ("//Alice".into(), ALICE),
        (format!("{DEV_MNEMONIC}//Alice"), ALICE),
        ("//Alice//hot".into(), ALICE_HOT),
        ("//Alice/soft".into(), "5C8PhJPLE54x23RjmqBcEEnALryCDWdTJM5xLaoL9W8XEpnt"),
        ("/soft".into(), "5F4g82upwXKNJWdotdSwkALpdNRNnuNBLQeZ6YUYBoSK3rcj"),
        ("//1".into(), "5GBNeWRhZc2jXu7D55rBimKYDk8PGk8itRYFTPfC8RJLKG5o"),
        ("//Alice//0".into(), "5Dc96kiTPTfZHmq6yTFSqejJzfUNfQQjneNesRWf9MDppJsd"),
        ("//Alice///pw".into(), "5CVNhgaHCEe41RKB2QgscUnzJmfZScb6EgYdXrJshoCY8CjY"),
        (format!("{DEV_MNEMONIC}///pw"), "5HVquMWVR2cemSfuHeWupmEEgiTDjdNpCrPk4iKeBmL9qnKD"),
        (seed.clone(), COUNTING),
        (format!("{seed}//a"), "5F92nqoiUZwwMmzTfTvX4P1UVezFPbVUNH5cB9h8v4ixD1Ze"),
        (format!("{}art", "abandon ".repeat(23)), "5EPCUjPxiHAcNooYipQFWr9NmmXJKpNG5RhcntXwbtUySrgH"),
    ];
    for (uri, address) in &cases {
        assert_eq!(KeyPair::from_uri(uri).unwrap().ss58(), *address, "{uri}");
    }
    println!("{} URIs derive the same address", cases.len());
    let with_password = KeyPair::from_mnemonic(DEV_MNEMONIC, Some("pw")).unwrap();
    assert_eq!(with_password.ss58(), "5HVquMWVR2cemSfuHeWupmEEgiTDjdNpCrPk4iKeBmL9qnKD");
    let spread = format!("  {}\n", DEV_MNEMONIC.replace(' ', "\n  "));
    assert_eq!(KeyPair::load(&spread).unwrap().ss58(), "5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV");
}

fn counting_seed() -> [u8; 32] {
    std::array::from_fn(|index| index as u8 + 1)
}

#[test]
fn generated_keys_come_back_from_their_words() {
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let (pair, mnemonic) = KeyPair::generate();
        assert_eq!(mnemonic.split(' ').count(), 12);
        assert_eq!(KeyPair::load(&mnemonic).unwrap().public(), pair.public());
        let seed = seed_from_mnemonic(&mnemonic, None).unwrap();
        assert_eq!(KeyPair::from_seed(seed).public(), pair.public());
        seen.insert(pair.public());
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn debug_shows_the_address_and_no_secret() {
    let pair = KeyPair::from_uri("//Alice").unwrap();
    assert_eq!(format!("{pair:?}"), format!("KeyPair({ALICE})"));
    assert_eq!(format!("{pair:#?}"), format!("KeyPair({ALICE})"));
    assert_eq!(format!("{:?} {}", pair.public(), pair.public()), format!("PublicKey({ALICE}) {ALICE}"));
}

#[test]
fn bad_keys_are_explained_without_repeating_them() {
    let cases = [
        ("", "an empty text is neither a key (nothing is given) nor"),
        ("   ", "an empty text"),
        ("0x1234", "a seed is 0x and 64 hex digits: 4 hex digits follow the 0x"),
        ("0xzz", "a seed is 0x and 64 hex digits: it has an odd length or characters that are not hex"),
        ("//", "a key URI is"),
        (
            "hotkeys/none",
            "\"hotkeys/none\" is neither a key (that is //Alice, a mnemonic, or 0x and 64 hex digits) nor",
        ),
        ("/no/such/file", "\"/no/such/file\" is neither a key (that is //Alice"),
        ("/no such/file of mine", "\"/no such/file of mine\" is neither a key (that is //Alice"),
        ("bottom drive obey", "this text of 3 words is neither a key (a mnemonic has at least 12) nor"),
        (&"ab".repeat(32), "this text of hex digits is neither a key (a seed begins with 0x) nor"),
    ];
    for (key, expected) in cases {
        let line = complaint(key);
        assert!(line.starts_with(expected), "{key:?}: {line}");
    }
    for key in ["hotkeys/none", "bottom drive obey", ""] {
        let line = complaint(key);
        assert!(line.contains("nor the path of a hotkey file (No such file"), "{line}");
    }
    assert!(complaint(&"x".repeat(5000)).contains("File name too long"));
    assert!(matches!(KeyPair::from_uri(""), Err(IdentityError::Uri)));
}

#[test]
fn bad_mnemonics_name_the_place_and_not_the_word() {
    let cases = [
        (DEV_MNEMONIC.replace("obey", "obeyy"), "word 3 is not in the list"),
        (DEV_MNEMONIC.replace("walk", "lake"), "its checksum does not match, so a word is wrong or out of place"),
        (format!("{DEV_MNEMONIC} walk"), "it has 13 words"),
        (DEV_MNEMONIC.repeat(3).replace("walkbottom", "walk bottom"), "it has 36 words"),
    ];
    for (mnemonic, why) in cases {
        let expected = format!("a mnemonic is 12, 15, 18, 21 or 24 words of the English BIP-39 list: {why}");
        assert_eq!(complaint(&mnemonic), expected);
        assert_eq!(KeyPair::from_mnemonic(&mnemonic, None).unwrap_err().to_string(), expected);
        assert_eq!(complaint(&format!("{mnemonic}//hot")), expected);
    }
}

/// An SS58 text of any prefix and length, with a good checksum.
fn ss58(prefix: &[u8], key: &[u8]) -> String {
    let mut bytes = [prefix, key].concat();
    let hash = Blake2b512::new().chain_update(b"SS58PRE").chain_update(&bytes).finalize();
    bytes.extend_from_slice(&hash[..2]);
    bs58::encode(bytes).into_string()
}

#[test]
fn bad_addresses_are_explained() {
    let alice = PublicKey::from_ss58(ALICE).unwrap();
    assert_eq!(ss58(&[42], alice.as_bytes()), ALICE);
    let cases = [
        (ALICE.replacen('G', "H", 1), "the checksum does not match, so a character is mistyped"),
        (format!("{}Z", &ALICE[..47]), "the checksum does not match, so a character is mistyped"),
        (ss58(&[0], alice.as_bytes()), "its prefix is 0, so it belongs to another network"),
        (ss58(&[5], alice.as_bytes()), "its prefix is 5, so it belongs to another network"),
        (ss58(&[0x50, 0x40], alice.as_bytes()), "it holds 36 bytes, an address holds 35"),
        (ss58(&[42], &alice.as_bytes()[..31]), "it holds 34 bytes, an address holds 35"),
        (ALICE[..40].into(), "bytes, an address holds 35"),
        (String::new(), "it holds 0 bytes, an address holds 35"),
        ("5".repeat(1_000_000), "it has 1000000 bytes, an address has 48 characters"),
        (ALICE.replace('Q', "0"), "invalid character '0'"),
        (ALICE.replace('Q', "ż"), "non-ascii character"),
        (alice.to_hex(), "invalid character '0'"),
    ];
    for (address, why) in &cases {
        let line = PublicKey::from_ss58(address).expect_err(address).to_string();
        assert!(line.contains("is not an SS58 address with prefix 42: ") && line.contains(why), "{line}");
        assert!(line.len() < 200, "{line}");
    }
    // No single mistyped character goes unnoticed.
    let digits = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let mut accepted = 0;
    for place in 0..ALICE.len() {
        for digit in digits.chars().filter(|digit| !ALICE[place..].starts_with(*digit)) {
            let typo = format!("{}{digit}{}", &ALICE[..place], &ALICE[place + 1..]);
            accepted += usize::from(PublicKey::from_ss58(&typo).is_ok());
        }
    }
    assert_eq!(accepted, 0);
}

#[test]
fn bad_public_keys_in_hex_are_explained() {
    let good = PublicKey::from_ss58(ALICE).unwrap().to_hex();
    let cases = [
        (format!("0x{good}"), "it begins with 0x"),
        ("aabb".into(), "it has 4 characters"),
        (format!("{good}00"), "it has 66 characters"),
        (good.replacen('d', "g", 1), "Invalid character 'g' at position 0"),
    ];
    for (text, why) in cases {
        let line = PublicKey::from_hex(&text).unwrap_err().to_string();
        assert_eq!(line, format!("a public key is 64 hex digits without 0x: {why}"));
    }
}

#[test]
fn signatures_have_two_spellings() {
    let signature = Signature::from_bytes(std::array::from_fn(|index| index as u8));
    let digits = signature.to_hex();
    assert_eq!(&digits[..10], "0x00010203");
    assert_eq!(Signature::from_hex(&digits).unwrap(), signature);
    assert_eq!(Signature::from_hex(&format!("0x{}", digits[2..].to_uppercase())).unwrap(), signature);
    assert_eq!(format!("{signature} {signature:?}"), format!("{digits} Signature({digits})"));
    let cases = [
        (digits[2..].to_string(), "it does not begin with 0x"),
        (digits.replacen("0x", "0X", 1), "it does not begin with 0x"),
        (format!(" {digits}"), "it does not begin with 0x"),
        (digits[..128].to_string(), "126 characters follow the 0x"),
        (format!("{digits}00"), "130 characters follow the 0x"),
        (digits.replace("3f", "3z"), "Invalid character 'z' at position 127"),
    ];
    for (text, why) in cases {
        let line = Signature::from_hex(&text).unwrap_err().to_string();
        assert_eq!(line, format!("a signature is 0x and 128 hex digits: {why}"));
    }

    let base64 = signature.to_base64();
    assert_eq!(base64, STANDARD.encode(signature.to_bytes()));
    // Python decodes each of these to the same 64 bytes.
    for text in [base64.clone(), format!("{}\n {}", &base64[..40], &base64[40..]), base64.replace("Pw==", "Px==")] {
        assert_eq!(Signature::from_base64(&text).unwrap(), signature, "{text}");
    }
    for (text, why) in [
        ("AAEC".into(), "it holds 3 bytes"),
        (String::new(), "it holds 0 bytes"),
        (format!("AAEC{base64}"), "it holds 67 bytes"),
        (base64.replace("==", ""), "Invalid padding"),
    ] {
        let line = Signature::from_base64(&text).unwrap_err().to_string();
        assert_eq!(line, format!("a signature is the base64 of 64 bytes: {why}"));
    }
}
