//! What an HTTP server refuses, counted by reason.

use crate::ops::metrics::Metrics;

/// Where it is counted.
pub(super) struct Refusals(pub(super) Metrics);

impl Refusals {
    /// Counts an answer, if it is a refusal.
    pub(super) fn count_answer(&self, status: u16) {
        if let Some(reason) = reason(status) {
            self.count(reason);
        }
    }

    /// Counts a refusal. Those of one address are few in a second, so the metric may be looked up each time.
    pub(super) fn count(&self, reason: &'static str) {
        let help = "HTTP connections and requests that were refused, by reason.";
        self.0.counter("phalanx_http_refused_total", help, &[("reason", reason)]).inc();
    }
}

/// Why an answer with this status is a refusal; `None` if it is none.
fn reason(status: u16) -> Option<&'static str> {
    Some(match status {
        400 | 422 | 501 | 505 => "malformed",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        405 => "method",
        408 => "late",
        413 | 414 | 431 => "too_large",
        421 => "wrong_name",
        429 => "rate",
        503 => "busy",
        402..=499 => "other",
        _ => return None,
    })
}
