//! What a server does with a text, whichever server it is, and what its clients say.

use phalanx_peers::keys;
use schnorrkel::{Keypair, PublicKey};
use serde::Deserialize;

/// What is answered to an authentication and to a probe.
pub const SUCCESS: &str = r#"{"status":"success","errors":[]}"#;

/// A heartbeat.
pub const HEARTBEAT: &str = r#"{"message_type":"V0Heartbeat"}"#;

/// A text that is answered at once.
pub const PROBE: &str = r#"{"message_type":"Probe"}"#;

#[derive(Deserialize)]
#[serde(tag = "message_type")]
#[allow(clippy::enum_variant_names)] // The names of the wire.
enum Text {
    V0AuthenticationRequest { public_key: String, signature: String },
    V0Heartbeat {},
    Probe {},
}

/// One connection, as the server knows it.
#[derive(Default)]
pub struct Session {
    key: Option<PublicKey>,
    beats: u64,
}

impl Session {
    /// Takes a text; gives the answer, if it has one.
    pub fn take(&mut self, text: &str) -> Result<Option<&'static str>, String> {
        match serde_json::from_str(text).map_err(|error| format!("a text that cannot be read: {error}"))? {
            Text::V0AuthenticationRequest { public_key, signature } => {
                let bytes = hex::decode(&public_key).map_err(|error| format!("public key: {error}"))?;
                let key = PublicKey::from_bytes(&bytes).map_err(|error| format!("public key: {error}"))?;
                let signature =
                    hex::decode(signature.trim_start_matches("0x")).map_err(|error| format!("signature: {error}"))?;
                if !keys::verify(&key, &bytes, &signature) {
                    return Err("the signature is of another key".to_owned());
                }
                self.key = Some(key);
                Ok(Some(SUCCESS))
            }
            Text::V0Heartbeat {} if self.key.is_some() => {
                self.beats += 1;
                Ok(None)
            }
            Text::Probe {} if self.key.is_some() => Ok(Some(SUCCESS)),
            Text::V0Heartbeat {} | Text::Probe {} => Err("it has not said who it is".to_owned()),
        }
    }
}

/// The authentication of a key.
pub fn authentication(key: &Keypair) -> String {
    let public = key.public.to_bytes();
    let signature = hex::encode(keys::sign(key, &public));
    let public = hex::encode(public);
    format!(r#"{{"message_type":"V0AuthenticationRequest","public_key":"{public}","signature":"0x{signature}"}}"#)
}
