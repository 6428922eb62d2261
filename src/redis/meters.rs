//! What is counted of a commander and of a subscriber; `place` is the name of the thread.

use super::request::QueuedRequest;
use crate::ops::metrics::{Counter, Gauge, Histogram, SECONDS};
use crate::ops::status::Board;

/// What is counted of one commander.
pub(super) struct CommanderMeters {
    pub connected: Gauge,
    pub connects: Counter,
    outcomes: [(&'static str, Counter); 5],
    seconds: Histogram,
}

impl CommanderMeters {
    pub(super) fn new(name: &'static str, board: &Board) -> Self {
        let place = ("place", name);
        let metrics = &board.metrics;
        let outcome = |outcome| {
            let labels = [place, ("outcome", outcome)];
            (outcome, metrics.counter("phalanx_redis_requests_total", "Requests to Redis by their outcome.", &labels))
        };
        Self {
            connected: metrics.gauge("phalanx_redis_connected", "1 while there is a connection to Redis.", &[place]),
            connects: metrics.counter("phalanx_redis_connects_total", "Connections made to Redis.", &[place]),
            outcomes: ["ok", "refused", "timeout", "lost", "stopped"].map(outcome),
            seconds: metrics.histogram(
                "phalanx_redis_request_seconds",
                "Time from handing a request over to its answer.",
                &[place],
                SECONDS,
            ),
        }
    }

    pub(super) fn count(&self, job: &QueuedRequest, outcome: &'static str) {
        self.seconds.observe_time(job.since.elapsed());
        if let Some((_, counter)) = self.outcomes.iter().find(|(name, _)| *name == outcome) {
            counter.inc();
        }
    }
}

/// What is counted of one subscriber.
pub(super) struct SubscriberMeters {
    pub connected: Gauge,
    pub connects: Counter,
    pub messages: Counter,
    pub proofs: Counter,
    pub stalls: Counter,
}

impl SubscriberMeters {
    pub(super) fn new(name: &'static str, board: &Board) -> Self {
        let (metrics, labels) = (&board.metrics, &[("place", name)]);
        Self {
            connected: metrics.gauge("phalanx_redis_connected", "1 while there is a connection to Redis.", labels),
            connects: metrics.counter("phalanx_redis_connects_total", "Connections made to Redis.", labels),
            messages: metrics.counter("phalanx_redis_messages_total", "Messages of subscriptions.", labels),
            proofs: metrics.counter(
                "phalanx_redis_proofs_total",
                "Tokens that came back through a subscription.",
                labels,
            ),
            stalls: metrics.counter(
                "phalanx_redis_stalls_total",
                "Connections given up because no token came back.",
                labels,
            ),
        }
    }
}
