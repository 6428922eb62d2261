//! What a miner says of a job's streaming server, before it is kept or passed on. Pure.

use std::net::IpAddr;

use crate::base::limits::{STREAMING_ADDRESS_BYTES, STREAMING_CERTIFICATE_BYTES};
use crate::identity::PublicKey;
use crate::protocol::{StreamingServerDetails, V0StreamingJobReadyRequest};

/// Whether a text can be the host of an address; what it is known by is for whoever connects to find out.
fn is_host(text: &str) -> bool {
    let is_name = || text.split('.').all(|label| !label.is_empty() && label.bytes().all(is_of_name));
    text.parse::<IpAddr>().is_ok() || (is_name() && text.len() <= 253)
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

/// The details for the user, if `miner` has signed them and they are of a size that such things have.
///
/// # Errors
/// What is wrong with them, for people.
pub(super) fn server_details(
    ready: V0StreamingJobReadyRequest,
    miner: PublicKey,
) -> Result<StreamingServerDetails, String> {
    let long =
        |what, bytes: usize, most| Err(format!("the streaming server's {what} has {bytes} bytes, not at most {most}"));
    // The sizes first: what is too long is not even hashed.
    if ready.public_key.len() > STREAMING_CERTIFICATE_BYTES {
        return long("certificate", ready.public_key.len(), STREAMING_CERTIFICATE_BYTES);
    }
    if let Some(address) = ready.ip.as_ref().filter(|address| address.len() > STREAMING_ADDRESS_BYTES) {
        return long("address", address.len(), STREAMING_ADDRESS_BYTES);
    }
    if !(1..=65_535).contains(&ready.port.saturating_i64()) {
        return Err("the streaming server's port is none".to_owned());
    }
    if let Some(address) = ready.ip.as_ref().filter(|address| !is_host(address)) {
        return Err(format!("the streaming server's address {address:?} is no host name and no IP address"));
    }
    if let Err(error) = ready.verify(miner) {
        return Err(format!("the streaming server's details are not signed by the miner: {error}"));
    }
    Ok(StreamingServerDetails {
        streaming_server_cert: Some(ready.public_key),
        streaming_server_address: ready.ip,
        streaming_server_port: Some(ready.port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::KeyPair;

    #[test]
    fn only_details_that_the_miner_has_signed_and_that_can_be_right_are_passed_on() {
        let miner = KeyPair::from_uri("//Bob").unwrap();
        let unsigned = V0StreamingJobReadyRequest {
            job_uuid: "u".to_owned(),
            executor_token: None,
            public_key: "pem".to_owned(),
            ip: Some("203.0.113.7".to_owned()),
            port: 6006.into(),
            miner_signature: None,
        };
        let details = |change: &dyn Fn(&mut V0StreamingJobReadyRequest)| {
            let mut ready = unsigned.clone();
            change(&mut ready);
            ready.sign(&miner);
            server_details(ready, miner.public())
        };
        for good in ["203.0.113.7", "2001:db8::1", "gpu-1.example.com", "localhost"] {
            let given = details(&|ready| ready.ip = Some(good.to_owned())).unwrap();
            assert_eq!(given.streaming_server_address.as_deref(), Some(good));
        }
        assert_eq!(details(&|ready| ready.ip = None).unwrap().streaming_server_address, None);
        type Change = fn(&mut V0StreamingJobReadyRequest);
        let bad: [(Change, &str); 7] = [
            (|ready| ready.public_key = "x".repeat(STREAMING_CERTIFICATE_BYTES + 1), "certificate has 16385 bytes"),
            (|ready| ready.ip = Some("h".repeat(STREAMING_ADDRESS_BYTES + 1)), "address has 257 bytes"),
            (|ready| ready.port = 0.into(), "port is none"),
            (|ready| ready.port = 65_536.into(), "port is none"),
            (|ready| ready.ip = Some("http://h/".to_owned()), "is no host name"),
            (|ready| ready.ip = Some("h\u{1b}[2J".to_owned()), "\\u{1b}[2J\" is no host name"),
            (|ready| ready.ip = Some(String::new()), "is no host name"),
        ];
        for (change, why) in bad {
            let refused = details(&change).unwrap_err();
            assert!(refused.contains(why) && refused.len() < 300, "{refused}");
        }
        let refused = server_details(unsigned.clone(), miner.public()).unwrap_err();
        assert!(refused.contains("are not signed by the miner"), "{refused}");
        let mut ready = unsigned;
        ready.sign(&KeyPair::from_uri("//Eve").unwrap());
        assert!(server_details(ready, miner.public()).unwrap_err().contains("are not signed by the miner"));
    }
}
