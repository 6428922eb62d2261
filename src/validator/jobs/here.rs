//! Jobs on threads of this process, each with a connection to a miner.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::asking::Asking;
use super::{AskedStatus, DISPATCH_CLOSE_TIME, JobRunner};
use crate::base::lock::lock;
use crate::base::stop::Stopping;
use crate::identity::PublicKey;
use crate::ops::status::Board;
use crate::tasks::TasksStatus;
use crate::validator::client::Job;
use crate::validator::connections::KeptConnections;
use crate::validator::organic::{self, Miners};
use crate::validator::receipt_store::KeptReceipts;
use crate::validator::routing::MinerAddress;
use crate::validator::workers::Workers;

/// Drives each job on a miner, on a thread of its own.
pub(in crate::validator) struct Here {
    workers: Workers,
    miners: Arc<Miners>,
    asking: Asking,
    /// Taken by the stop.
    kept: Mutex<Option<KeptConnections>>,
    receipts: Mutex<Option<KeptReceipts>>,
}

impl Here {
    /// At most `limit` jobs at a time; the miners are asked for their manifests every `interval`, unless it is zero.
    pub(in crate::validator) fn new(
        limit: usize,
        (miners, kept, receipts): (Miners, KeptConnections, Option<KeptReceipts>),
        interval: Duration,
        board: &Board,
    ) -> Self {
        let miners = Arc::new(miners);
        Self {
            workers: Workers::new("val-work", limit),
            asking: Asking::new(miners.clone(), interval, board),
            miners,
            kept: Mutex::new(Some(kept)),
            receipts: Mutex::new(receipts),
        }
    }
}

impl JobRunner for Here {
    fn run(&self, job: Job) {
        let (miners, uuid) = (self.miners.clone(), job.request().uuid.clone());
        // A job that the workers do not take is dropped, which turns it away.
        self.workers.submit(&uuid, move |cancel| organic::run(&miners, job.receive(), cancel));
    }

    fn blacklist(&self, miner: PublicKey, time: Duration) {
        lock(&self.miners.routing).blacklist(&miner, self.miners.clock().now(), time);
    }

    fn miners(&self) -> Option<&Miners> {
        Some(&self.miners)
    }

    fn set_miners(&self, miners: Vec<MinerAddress>) {
        self.miners.replace(miners);
    }

    fn begin(&self) {
        self.asking.begin();
    }

    fn asked(&self) -> Option<AskedStatus> {
        Some(self.asking.asked().status())
    }

    fn running(&self) -> usize {
        self.workers.running()
    }

    fn tasks(&self) -> Option<TasksStatus> {
        Some(self.workers.status())
    }

    fn stop_in(&self, stopping: &mut Stopping, drain: Duration) -> usize {
        self.asking.stop_in(stopping);
        let cancelled = stopping.step("validator jobs", drain, |step| self.workers.stop_in(step));
        if let Some(kept) = lock(&self.kept).take() {
            stopping.step("miner connections", DISPATCH_CLOSE_TIME, |step| kept.stop_in(step));
        }
        if let Some(receipts) = lock(&self.receipts).take() {
            stopping.step("miner receipts", DISPATCH_CLOSE_TIME, |step| receipts.stop_in(step));
        }
        cancelled
    }
}
