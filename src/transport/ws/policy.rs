//! Whom a listener takes: no page of another site, and none without a certificate where one is asked for.

use crate::net::http::HostNames;
use crate::transport::{HandshakeRequest, Refusal};

/// Whom a listener takes, before its user is asked.
#[derive(Debug)]
pub(super) struct ClientPolicy {
    pub(super) names: HostNames,
    pub(super) without_certificate: fn(path: &str) -> bool,
}

impl ClientPolicy {
    /// Why it does not take that one.
    pub(super) fn refusal(&self, request: &HandshakeRequest, lacks_certificate: bool) -> Option<Refusal> {
        if let Some((status, why)) = self.names.refusal_of_page(&request.headers) {
            return Some(Refusal { status, body: why + "\n", retry_after: None });
        }
        if lacks_certificate && !(self.without_certificate)(&request.path) {
            let body = "a client certificate of an authority that this server knows is missing\n".to_owned();
            return Some(Refusal { status: 403, body, retry_after: None });
        }
        None
    }
}
