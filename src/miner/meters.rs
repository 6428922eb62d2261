//! The miner's metrics that are counted as things happen; what can be looked at is in [`super::MinerStatus`].

use std::sync::Arc;
use std::time::Duration;

use super::router::{Counted, Peer};
use crate::ops::metrics::{Counter, Histogram, Metrics, SECONDS};
use crate::protocol::{ExecutorToMiner, MinerToExecutor, MinerToValidator, ValidatorToMiner, kind_of};
use crate::transport::counted::MetersOf;
use crate::transport::{HandshakeRequest, MessageTypes, PeerMeters};

/// Counts what goes to validators and executors and comes from them.
pub(super) fn of_peer(metrics: &Metrics) -> MetersOf {
    let peer = |peer, sent, received| {
        PeerMeters::new(metrics, peer, MessageTypes::of(sent, kind_of), MessageTypes::of(received, kind_of))
    };
    let validators = peer("validator", MinerToValidator::TYPES, ValidatorToMiner::TYPES);
    let executors = peer("executor", MinerToExecutor::TYPES, ExecutorToMiner::TYPES);
    Arc::new(move |request: &HandshakeRequest| {
        Some(match Peer::from_path(&request.path)? {
            Peer::Validator(_) => validators.clone(),
            Peer::Executor(_) => executors.clone(),
        })
    })
}

/// What the router's thread counts.
#[derive(Debug)]
pub(super) struct Meters {
    metrics: Metrics,
    reservation: Histogram,
    breaches: Counter,
}

impl Meters {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let help = "From a validator's request to its acceptance: the wait for a slot, and its receipt on disk.";
        let breaches = "How often slots were lost or made: a mistake in the program.";
        Self {
            reservation: metrics.histogram("phalanx_miner_reservation_seconds", help, &[], SECONDS),
            breaches: metrics.counter("phalanx_miner_slot_breaches_total", breaches, &[]),
            metrics: metrics.clone(),
        }
    }

    /// A stage of a job that went well.
    pub(super) fn stage_over(&self, stage: &'static str, took: Duration) {
        let help = "How long the stages of jobs took, as the miner saw it.";
        self.metrics.histogram("phalanx_miner_stage_seconds", help, &[("kind", stage)], SECONDS).observe_time(took);
    }

    pub(super) fn count(&self, counted: Counted) {
        match counted {
            Counted::Accepted(after) => self.reservation.observe_time(after),
            Counted::StartFailed(reason) => {
                let help = "Executors that did not come to be ready, by reason.";
                self.metrics.counter("phalanx_miner_start_failures_total", help, &[("reason", reason)]).inc();
            }
            Counted::Quarantined(reason) => {
                let help = "Slots that went into quarantine, by what did not go away.";
                self.metrics.counter("phalanx_miner_quarantined_total", help, &[("reason", reason)]).inc();
            }
            Counted::OverRate(what) => {
                let help = "Connections that were closed because their peer said too much, by what it was.";
                self.metrics.counter("phalanx_miner_over_rate_total", help, &[("kind", what)]).inc();
            }
            Counted::SlotBreach => self.breaches.inc(),
        }
    }
}
