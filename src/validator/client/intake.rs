//! What is done with each message of the facilitator. It runs on the link's thread, and blocks on no job, no signature,
//! no disk.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::checker::Check;
use super::handle::{ClientEvent, ClientShared};
use super::inbound::Inbound;
use super::job::turn_away;
use super::work_queue::WorkQueueHandle;
use crate::base::clock::now;
use crate::base::limits::JOB_REQUEST_BYTES;
use crate::base::lock::lock;
use crate::link::LinkEvent;
use crate::ops::errors::ErrorClass;
use crate::ops::health::Pulse;
use crate::ops::jobs::JobFacts;
use crate::protocol::{JobRejectionReason, V2JobRequest};
use crate::validator::ledger::{Counts, LedgerLimits, Reply};

/// Longest that a message may take: nothing here waits for anything but locks.
const EVENT_TIME: Duration = Duration::from_secs(10);

/// Does what each message of the facilitator asks for; lives on the link's thread.
pub(super) struct Intake {
    pub(super) shared: Arc<ClientShared>,
    pub(super) checks: WorkQueueHandle<Check>,
    pub(super) limits: LedgerLimits,
    /// That of the link's thread.
    pub(super) pulse: Pulse,
}

impl Intake {
    pub(super) fn handle(&self, event: LinkEvent<Inbound, Reply>) {
        self.pulse.begin(Instant::now() + EVENT_TIME);
        self.take(event);
        self.pulse.done();
    }

    fn take(&self, event: LinkEvent<Inbound, Reply>) {
        let draining = self.shared.draining.is_set();
        match event {
            LinkEvent::Ready { epoch } => {
                log::info!("facilitator: authenticated ({epoch})");
                self.shared.counted.connections.inc();
                self.shared.events.notify(&ClientEvent::Ready { epoch });
            }
            LinkEvent::Lost { why } if draining => log::debug!("facilitator: connection ended: {why}"),
            LinkEvent::Lost { why } => {
                self.lost(format!("connection lost: {why}"), false);
            }
            LinkEvent::Failed { why, refused, next_in, .. } => {
                self.lost(format!("{why}; next attempt in {:.1}s", next_in.as_secs_f64()), refused);
            }
            LinkEvent::Message(message) => self.message(message),
            LinkEvent::Answered(answers) => self.shared.delivery.answered(answers),
        }
    }

    fn lost(&self, why: String, refused: bool) {
        let class = if refused { ErrorClass::Rejected } else { ErrorClass::Reconnect };
        self.shared.board.errors.report(class, "facilitator", &why);
        *lock(&self.shared.last_error) = Some(why.clone());
        self.shared.events.notify(&ClientEvent::Lost { why, refused });
    }

    fn message(&self, message: Inbound) {
        match message {
            Inbound::Ping => {}
            Inbound::Job { bytes, request } => self.job(bytes, request),
            Inbound::Cheated { bytes, report } => {
                if self.checks.push(bytes, Check::Cheated(report)).is_err() {
                    let what = "it is ignored: too much waits for its check";
                    self.shared.board.errors.report(ErrorClass::Rejected, "cheating-report", &what);
                }
            }
            // Nothing is sent back for a frame that cannot be read, as the Python validator does.
            Inbound::Unreadable(error) => {
                self.shared.counted.unreadable.inc();
                let what = format!("a message that cannot be read is ignored: {error}");
                self.shared.board.errors.report(ErrorClass::Rejected, "facilitator-message", &what);
            }
        }
    }

    fn job(&self, bytes: usize, request: Box<V2JobRequest>) {
        let ClientShared { delivery, counted, .. } = &*self.shared;
        counted.requests.inc();
        let Some(number) = delivery.take(&request.uuid, request.on_trusted_miner) else {
            counted.repeats.inc();
            return log::info!("job {}: requested again, ignored", request.uuid);
        };
        let room = self.alive_or_full(bytes);
        let (class, tag) = (request.executor_class.as_str(), request.job_namespace.as_deref().unwrap_or_default());
        self.shared.board.jobs.begin(&*request.uuid, JobFacts { class, tag, ..JobFacts::default() }, "requested");
        let full = match room {
            Err(why) => Err((why, request)),
            Ok(alive) => self.checks.push(bytes, Check::Job { number, request, alive }).map_err(|check| match check {
                Check::Job { request, .. } => ("too many jobs wait for their signature check".into(), request),
                Check::Cheated(_) => unreachable!("what is handed back is what was pushed"),
            }),
        };
        if let Err((why, request)) = full {
            counted.turned_away.inc();
            turn_away(delivery, number, &request.uuid, JobRejectionReason::Busy, why);
        }
    }

    /// What a new job holds, or why none can be taken now. Half of the queue is kept for the updates of jobs that were
    /// taken.
    fn alive_or_full(&self, bytes: usize) -> Result<Sender<()>, Cow<'static, str>> {
        let alive = lock(&self.shared.alive).clone().ok_or("the validator is stopping")?;
        if let Some(why) = self.shared.board.pause.why(now().wall) {
            return Err(format!("the validator is {why}").into());
        }
        if bytes > JOB_REQUEST_BYTES {
            return Err("the request is too large".into());
        }
        let Counts { unsent, unsent_bytes, open_jobs, .. } = self.shared.delivery.counts();
        let much = unsent > self.limits.updates / 2 || unsent_bytes > self.limits.bytes / 2;
        if much || open_jobs > self.limits.updates / 2 {
            return Err("too many updates wait for the facilitator".into());
        }
        Ok(alive)
    }
}
