//! Whose jobs somebody sees on the pages, which operators read as well as users.

use super::shared::Api;
use crate::net::http::{HttpRequest, HttpResponse};
use crate::ops::jobs::Viewer;

/// Fields by which a proxy tells for whom it asks: its own address says nothing then.
const FORWARDED: [&str; 3] = ["Forwarded", "X-Forwarded-For", "X-Real-IP"];

impl Api {
    /// A user who is logged in sees the own jobs, from anywhere; without a token an operator sees all, and whoever else
    /// asks sees none.
    ///
    /// # Errors
    /// The answer to a token that does not count.
    pub(in crate::facilitator) fn viewer(&self, request: &HttpRequest) -> Result<Viewer, HttpResponse> {
        // The password that a proxy has asked for is no token.
        let has_token = request
            .header("Authorization")
            .and_then(|value| value.get(..7))
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("Bearer "));
        if has_token {
            return Ok(Viewer::User(self.user(request)?.to_ss58()));
        }
        let is_forwarded = FORWARDED.into_iter().any(|name| request.header(name).is_some());
        let is_operator = !is_forwarded && self.operators.has(request.peer.ip());
        Ok(if is_operator { Viewer::Operator } else { Viewer::Nobody })
    }
}
