//! What a miner says of a job's streaming server, before it is kept or passed on. Pure.

use crate::base::limits::{STREAMING_ADDRESS_BYTES, STREAMING_CERTIFICATE_BYTES};
use crate::identity::PublicKey;
use crate::protocol::{StreamingServerDetails, V0StreamingJobReadyRequest};

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
    if let Err(error) = ready.verify(miner) {
        return Err(format!("the streaming server's details are not signed by the miner: {error}"));
    }
    Ok(StreamingServerDetails {
        streaming_server_cert: Some(ready.public_key),
        streaming_server_address: ready.ip,
        streaming_server_port: Some(ready.port),
    })
}
