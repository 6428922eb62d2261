//! Signatures that are checked in a batch get the verdicts, and the words, that each gets alone.

use std::collections::BTreeSet;
use std::error::Error;

use phalanx::base::rng::Rng;
use phalanx::identity::{KeyPair, PublicKey, Signature as RawSignature, verify_batch};
use phalanx::protocol::signing::verify_job_requests;
use phalanx::protocol::*;

/// The order of the curve's group, the lowest byte first: a scalar plus this is the same scalar, wrongly spelled.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

fn seeded() -> Rng {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    Rng::new(seed)
}

fn below(rng: &mut Rng, limit: usize) -> usize {
    (rng.next_u64() % limit as u64) as usize
}

fn users() -> Vec<KeyPair> {
    ["//Alice", "//Bob", "//Charlie"].map(|uri| KeyPair::from_uri(uri).unwrap()).to_vec()
}

/// The signature with another scalar: `number` is added to its second half, the lowest byte first.
fn shifted(signature: [u8; 64], number: [u8; 32]) -> [u8; 64] {
    let mut shifted = signature;
    let mut carry = 0;
    for (byte, more) in shifted[32..].iter_mut().zip(number) {
        let sum = u16::from(*byte) + u16::from(more) + carry;
        *byte = sum as u8;
        carry = sum >> 8;
    }
    shifted
}

/// A number that adds as minus one does.
const MINUS_ONE: [u8; 32] = [0xff; 32];
const ONE: [u8; 32] = {
    let mut one = [0; 32];
    one[0] = 1;
    one
};

/// A scalar this small neither overflows into the mark in its last byte nor runs below zero when it is shifted by one.
fn sign_with_room(user: &KeyPair, message: &[u8]) -> [u8; 64] {
    let has_room = |bytes: &[u8; 64]| bytes[63] < 0x8f && bytes[32] != 0;
    std::iter::repeat_with(|| user.sign(message).to_bytes()).find(has_room).unwrap()
}

/// One item, and what it is.
fn item(
    rng: &mut Rng,
    users: &[KeyPair],
    message: &'static [u8],
) -> (&'static str, (PublicKey, &'static [u8], RawSignature)) {
    let user = &users[below(rng, users.len())];
    let (mut key, mut data, mut bytes) = (user.public(), message, sign_with_room(user, message));
    let what = match below(rng, 14) {
        0 => {
            key = users[below(rng, users.len())].public();
            "perhaps another key"
        }
        1 => {
            data = b"another message";
            "another message"
        }
        2 => {
            let bit = below(rng, 512);
            bytes[bit / 8] ^= 1 << (bit % 8);
            "a flipped bit"
        }
        3 => {
            bytes[63] &= 0x7f;
            "no mark of sr25519"
        }
        4 => {
            bytes = shifted(bytes, ORDER);
            "the scalar spelled too large"
        }
        5 => {
            // The prime of the field is 2^255 - 19, so these bytes stand for a smaller number.
            bytes[..32].fill(0xff);
            bytes[31] = 0x7f;
            "a point spelled too large"
        }
        6 => {
            key = PublicKey::from_bytes([0xff; 32]);
            "a key that is no point"
        }
        7 => {
            // Zero times this key is nothing, and so is the signature: valid, if worthless.
            (key, bytes) = (PublicKey::from_bytes([0; 32]), [0; 64]);
            bytes[63] = 0x80;
            "nothing, signed by nobody"
        }
        8 => {
            bytes = user.sign(&[b"<Bytes>", message, b"</Bytes>"].concat()).to_bytes();
            "wrapped"
        }
        _ => "good",
    };
    (what, (key, data, RawSignature::from_bytes(bytes)))
}

#[test]
fn a_batch_gives_the_verdicts_of_single_checks() {
    let (mut rng, users) = (seeded(), users());
    let mut counts = [0, 0];
    for size in [0, 1, 2, 5, 33] {
        let made: Vec<_> = (0..size).map(|_| item(&mut rng, &users, b"hello")).collect();
        let items: Vec<_> = made.iter().map(|(_, item)| *item).collect();
        let verdicts = verify_batch(&items);
        assert_eq!(verdicts.len(), size);
        for ((what, (key, data, signature)), verdict) in made.iter().zip(verdicts) {
            assert_eq!(verdict, key.verify(data, signature), "{what}: {key} {signature} in a batch of {size}");
            counts[usize::from(verdict)] += 1;
        }
    }
    println!("{} valid, {} invalid", counts[1], counts[0]);
    assert!(counts[0] > 2 && counts[1] > 2);
}

#[test]
fn every_kind_of_item_is_judged_as_meant() {
    let (mut rng, users) = (seeded(), users());
    let mut left = vec![
        ("another message", false),
        ("a flipped bit", false),
        ("no mark of sr25519", false),
        ("the scalar spelled too large", false),
        ("a point spelled too large", false),
        ("a key that is no point", false),
        ("nothing, signed by nobody", true),
        ("wrapped", true),
        ("good", true),
    ];
    // Beside a good one, so that it is the batch that judges.
    let alice = &users[0];
    let good = (alice.public(), &b"hello"[..], alice.sign(b"hello"));
    while !left.is_empty() {
        let (what, item) = item(&mut rng, &users, b"hello");
        if let Some(at) = left.iter().position(|(kind, _)| *kind == what) {
            let (_, valid) = left.remove(at);
            assert_eq!(verify_batch(&[good, item, good]), [true, valid, true], "{what}");
        }
    }
}

#[test]
fn errors_that_cancel_out_are_still_seen() {
    let alice = &users()[0];
    let bytes = sign_with_room(alice, b"hello");
    let item = |number| (alice.public(), &b"hello"[..], RawSignature::from_bytes(shifted(bytes, number)));
    // Their sum is that of two good signatures.
    let (above, mut below) = (item(ONE), item(MINUS_ONE));
    assert_eq!(verify_batch(&[above, below]), [false, false]);
    // The same with keys and points that differ.
    let bob = &users()[1];
    let bytes = sign_with_room(bob, b"bye");
    below = (bob.public(), b"bye", RawSignature::from_bytes(shifted(bytes, MINUS_ONE)));
    assert_eq!(verify_batch(&[above, item([0; 32]), below]), [false, true, false]);
}

fn request(n: usize) -> V2JobRequest {
    let text = format!(
        r#"{{"message_type": "V2JobRequest", "uuid": "job-{n}", "executor_class": "always_on.test",
            "docker_image": "image:{n}", "args": ["a"], "env": {{"KEY": "ż"}}, "download_time_limit": 1,
            "execution_time_limit": 1, "upload_time_limit": 1, "streaming_start_time_limit": 1}}"#
    );
    match FacilitatorToValidator::decode(&text).unwrap() {
        FacilitatorToValidator::V2JobRequest(request) => request,
        other => panic!("{other:?}"),
    }
}

/// Does something to a signed request, most often nothing.
fn meddle(rng: &mut Rng, request: &mut V2JobRequest, users: &[KeyPair]) {
    let case = below(rng, 20);
    let signature = request.signature.as_mut().unwrap();
    match case {
        0 => request.docker_image.push('!'),
        1 => request.uuid.push_str(" is not signed"),
        2 => signature.signatory = users[below(rng, users.len())].ss58(),
        3 => signature.signatory = "nobody".into(),
        4 => signature.signatory = PublicKey::from_bytes([0xff; 32]).to_ss58(),
        5 => drop(signature.signature.0.pop()),
        6 => signature.signature.0.clear(),
        7 => {
            let bit = below(rng, 512);
            signature.signature.0[bit / 8] ^= 1 << (bit % 8);
        }
        8 => signature.timestamp_ns = Int::from(-1),
        9 => signature.timestamp_ns = "18446744073709551616".parse().unwrap(),
        10 => signature.timestamp_ns = Int::from(7),
        11 => request.signature = None,
        _ => {}
    }
}

/// Everything that a verdict says, down to the last cause.
fn notified(verdict: &Result<PublicKey, SigningError>) -> Vec<String> {
    match verdict {
        Ok(signer) => vec![format!("signed by {signer}")],
        Err(error) => {
            let mut lines = vec![format!("{error:?}")];
            let mut cause: Option<&dyn Error> = Some(error);
            while let Some(error) = cause {
                lines.push(error.to_string());
                cause = error.source();
            }
            lines
        }
    }
}

#[test]
fn job_requests_get_the_verdicts_that_each_gets_alone() {
    let (mut rng, users) = (seeded(), users());
    let (mut good, mut errors) = (0, BTreeSet::new());
    let kinds = ["Length", "Mismatch", "Missing", "Signer", "Timestamp"];
    let mut size = 0;
    // Chance may take some rounds more to show everything.
    while size < 16 || errors.len() < kinds.len() || good <= 10 {
        let mut requests: Vec<V2JobRequest> = (0..size).map(request).collect();
        for request in &mut requests {
            request.sign(&users[below(&mut rng, users.len())], rng.next_u64());
            meddle(&mut rng, request, &users);
        }
        // The same request twice, and two that carry each other's signature.
        if size > 4 {
            requests[1] = requests[0].clone();
            let (left, right) = requests.split_at_mut(3);
            std::mem::swap(&mut left[2].signature, &mut right[0].signature);
        }
        let verdicts = verify_job_requests(&requests);
        assert_eq!(verdicts.len(), size);
        for (request, verdict) in requests.iter().zip(&verdicts) {
            let notified = notified(verdict);
            assert_eq!(notified, self::notified(&request.verify()), "{request:?}");
            match verdict {
                Ok(_) => good += 1,
                // `Debug` begins with the name of the variant.
                Err(_) => drop(errors.insert(notified[0].split('(').next().unwrap().to_owned())),
            }
        }
        size += 1 + below(&mut rng, 12);
    }
    println!("{good} good, errors of the kinds {errors:?}");
    assert!(errors.iter().eq(&kinds), "{errors:?}");
}
