//! How the facilitator learns who we are.

use super::inbound::{PING, describe};
use crate::identity::KeyPair;
use crate::link::{Authenticate, Authenticated, Refused};
use crate::protocol::{
    FacilitatorToValidator, Response, ResponseStatus, V0AuthenticationRequest, ValidatorToFacilitator,
};
use crate::transport::Utf8Bytes;

/// Ours, signed for each connection.
pub(super) struct FacilitatorAuthentication {
    pub(super) key: KeyPair,
}

impl Authenticate for FacilitatorAuthentication {
    fn hello(&mut self) -> Vec<Utf8Bytes> {
        vec![ValidatorToFacilitator::from(V0AuthenticationRequest::sign(&self.key)).encode().into()]
    }

    fn answer(&mut self, text: &str) -> Result<Authenticated, Refused> {
        match FacilitatorToValidator::decode(text) {
            Ok(FacilitatorToValidator::Response(response)) if response.status == ResponseStatus::Success => {
                Ok(Authenticated::Yes)
            }
            Ok(FacilitatorToValidator::Response(response)) => {
                Err(Refused { passing: !is_bad_signature(&response), reason: describe(&response), broken: false })
            }
            // A job for an older connection of ours may overtake the answer; it will be sent again to this one.
            Ok(_) => Ok(Authenticated::NotYet),
            Err(_) if text == PING => Ok(Authenticated::NotYet),
            Err(error) => {
                Err(Refused { reason: format!("its answer cannot be read: {error}"), passing: true, broken: true })
            }
        }
    }
}

fn is_bad_signature(response: &Response) -> bool {
    response.errors.iter().any(|error| error.kind == "auth.signature_invalid")
}
