//! The facilitator's metrics.

use super::router::Frame;
use crate::ops::metrics::{Counter, Gauge, Metrics};
use crate::store::jobs::StatusOutcome;

/// What the router's thread counts.
#[derive(Debug)]
pub(super) struct Meters {
    pub sessions: Gauge,
    pub waiting: Gauge,
    pub bad_signature: Counter,
    pub unknown_validator: Counter,
    frames: [Counter; 5],
    statuses: [Counter; 5],
}

impl Meters {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let frame = |labels| metrics.counter("phalanx_facilitator_frames_total", "Frames from validators.", labels);
        let status =
            |labels| metrics.counter("phalanx_facilitator_statuses_total", "Status updates by outcome.", labels);
        let auth = |labels| {
            metrics.counter("phalanx_facilitator_sessions_closed_total", "Sessions closed by the facilitator.", labels)
        };
        Self {
            sessions: metrics.gauge("phalanx_facilitator_sessions", "Open validator connections.", &[]),
            waiting: metrics.gauge(
                "phalanx_facilitator_waiting_jobs",
                "Jobs of which their validator has reported nothing yet.",
                &[],
            ),
            bad_signature: auth(&[("reason", "bad_signature")]),
            unknown_validator: auth(&[("reason", "unknown_validator")]),
            frames: [
                frame(&[("type", "authentication")]),
                frame(&[("type", "status")]),
                frame(&[("type", "specs")]),
                frame(&[("type", "heartbeat")]),
                frame(&[("type", "bad")]),
            ],
            statuses: [
                status(&[("outcome", "stored")]),
                status(&[("outcome", "late")]),
                status(&[("outcome", "duplicate")]),
                status(&[("outcome", "not_found")]),
                status(&[("outcome", "failed")]),
            ],
        }
    }

    pub(super) fn frame(&self, frame: &Frame) {
        let kind = match frame {
            Frame::Authentication(_) => 0,
            Frame::Status(_) => 1,
            Frame::Specs(_) => 2,
            Frame::Heartbeat => 3,
            Frame::Bad(_) => 4,
        };
        self.frames[kind].inc();
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
