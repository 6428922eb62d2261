//! The bounds of the HTTP server. Pure.

use std::time::Duration;

use crate::net::admission::PlaceLimits;
use crate::net::rate::Rate;

/// Connections beside those whose requests are in work: so that there is always one in which a probe can ask for
/// `/healthz`. At eight, one of several that come at once finds one though slow strangers have the others.
const KEPT: usize = 8;

/// How often one address may connect: each costs a thread for some 50 µs, so this is a twentieth of a core.
const CONNECTS: Rate = Rate::new(10_000, Duration::from_secs(10));

/// The bounds of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Requests in work at a time; more are answered with 503, but those for `/healthz`, `/readyz` and `/metrics`. One
    /// address, and one user, may have half of them, rounded up.
    /// Eight connections more may be open. When none is left, the one that has waited longest for a request, or to be
    /// read, is closed for a new one. One address may have half of them waiting.
    pub connections: usize,
    /// Requests of one address; more are answered with 429. Those for `/healthz`, `/readyz` and `/metrics` count apart.
    pub requests: Rate,
    /// Bytes of a request's head; more is answered with 431.
    pub head_bytes: usize,
    /// Bytes of a request's body, where the route has no smaller limit; more is answered with 413.
    pub body_bytes: usize,
    /// Bytes of all bodies of requests in work; more is answered with 503.
    pub bodies_bytes: usize,
    /// How long a connection may wait for its next request.
    pub idle_time: Duration,
    /// From a head's first byte to its end, and for the handshake of TLS before it; then 408. Also for a body of
    /// somebody who is not known.
    pub head_time: Duration,
    /// For a whole body of somebody who is known; then 408.
    pub body_time: Duration,
    /// For sending a whole response; for one that is streamed, see
    /// [`HttpResponse::stream`](super::HttpResponse::stream), the beginning: then a client has to take 64 KiB in each
    /// second.
    pub write_time: Duration,
    /// How long a client may read nothing at all of its answer.
    pub stall_time: Duration,
}

impl Default for HttpLimits {
    /// 32 requests, 1,000 a second, 16 KiB, 2 MiB, 64 MiB, 60 s, 10 s, 30 s, 30 s, 10 s.
    fn default() -> Self {
        Self {
            connections: 32,
            requests: Rate::new(1000, Duration::from_secs(1)),
            head_bytes: 16 << 10,
            body_bytes: 2 << 20,
            bodies_bytes: 64 << 20,
            idle_time: Duration::from_secs(60),
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(30),
            write_time: Duration::from_secs(30),
            stall_time: Duration::from_secs(10),
        }
    }
}

impl HttpLimits {
    /// Who has a place.
    pub(super) fn places(&self) -> PlaceLimits {
        let total = self.connections + KEPT;
        PlaceLimits { total, strangers: total, address: total.div_ceil(2), connects: CONNECTS, turned_away: 0 }
    }
}
