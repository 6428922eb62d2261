//! The facilitator's metrics.

use std::time::Duration;

use super::router::{CloseWhy, Handled, MessageKind};
use crate::ops::metrics::{Counter, Gauge, Histogram, Metrics};
use crate::store::jobs::StatusOutcome;

/// Upper bounds of the time for one message, in seconds: from a heartbeat to a signature on a busy machine, and on to
/// what holds up others.
const HANDLER_SECONDS: &[f64] = &[0.0001, 0.001, 0.01, 0.1, 1.0];

const KINDS: [MessageKind; 5] =
    [MessageKind::Authentication, MessageKind::Status, MessageKind::Specs, MessageKind::Heartbeat, MessageKind::Unread];

const RESULTS: [Handled; 4] = [Handled::Taken, Handled::Refused, Handled::Failed, Handled::Ignored];

const CLOSED: [CloseWhy; 7] = [
    CloseWhy::BadSignature,
    CloseWhy::NoAuthentication,
    CloseWhy::UnknownValidator,
    CloseWhy::Removed,
    CloseWhy::TakenOver,
    CloseWhy::NoHeartbeat,
    CloseWhy::NotStored,
];

/// What the router's thread counts.
#[derive(Debug)]
pub(super) struct Meters {
    pub sessions: Gauge,
    pub waiting: Gauge,
    /// Sessions that were broken because their peer did not read.
    pub not_reading: Counter,
    frames: [Counter; KINDS.len()],
    messages: [[Counter; RESULTS.len()]; KINDS.len()],
    handler: [Histogram; KINDS.len()],
    closed: [Counter; CLOSED.len()],
    statuses: [Counter; 5],
}

impl Meters {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let frame = |kind: MessageKind| {
            let labels = [("type", kind.as_str())];
            metrics.counter("phalanx_facilitator_frames_total", "Frames from validators.", &labels)
        };
        let message = |kind: MessageKind, result: Handled| {
            let labels = [("type", kind.as_str()), ("result", result.as_str())];
            let help = "Messages of validators by what became of them.";
            metrics.counter("phalanx_facilitator_messages_total", help, &labels)
        };
        let handler = |kind: MessageKind| {
            let help = "Time to read a message of a validator, check its signature, and decide on it.";
            let labels = [("type", kind.as_str())];
            metrics.histogram("phalanx_facilitator_handler_seconds", help, &labels, HANDLER_SECONDS)
        };
        let status =
            |labels| metrics.counter("phalanx_facilitator_statuses_total", "Status updates by outcome.", labels);
        let closed = |reason| {
            let help = "Sessions closed by the facilitator.";
            metrics.counter("phalanx_facilitator_sessions_closed_total", help, &[("reason", reason)])
        };
        Self {
            sessions: metrics.gauge("phalanx_facilitator_sessions", "Open validator connections.", &[]),
            waiting: metrics.gauge(
                "phalanx_facilitator_waiting_jobs",
                "Jobs of which their validator has reported nothing yet.",
                &[],
            ),
            not_reading: closed("not_reading"),
            frames: KINDS.map(frame),
            messages: KINDS.map(|kind| RESULTS.map(|result| message(kind, result))),
            handler: KINDS.map(handler),
            closed: CLOSED.map(|why| closed(why.as_str())),
            statuses: [
                status(&[("outcome", "stored")]),
                status(&[("outcome", "late")]),
                status(&[("outcome", "duplicate")]),
                status(&[("outcome", "not_found")]),
                status(&[("outcome", "failed")]),
            ],
        }
    }

    /// A message was read and decided on, in that time.
    pub(super) fn frame(&self, kind: MessageKind, took: Duration) {
        let kind = kind as usize;
        self.frames[kind].inc();
        self.handler[kind].observe_time(took);
    }

    pub(super) fn handled(&self, kind: MessageKind, result: Handled) {
        self.messages[kind as usize][result as usize].inc();
    }

    pub(super) fn closed(&self, why: CloseWhy) {
        self.closed[why as usize].inc();
    }

    pub(super) fn status(&self, outcome: Option<StatusOutcome>) {
        let kind = match outcome {
            Some(StatusOutcome::Stored) => 0,
            Some(StatusOutcome::StoredLate) => 1,
            Some(StatusOutcome::Duplicate) => 2,
            Some(StatusOutcome::NotFound) => 3,
            None => 4,
        };
        self.statuses[kind].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_stands_where_its_label_says() {
        assert!(KINDS.iter().enumerate().all(|(n, kind)| *kind as usize == n));
        assert!(RESULTS.iter().enumerate().all(|(n, result)| *result as usize == n));
        assert!(CLOSED.iter().enumerate().all(|(n, why)| *why as usize == n));
    }
}
