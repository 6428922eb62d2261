//! The client of a facilitator: a connection that comes back, jobs in, updates out, nothing lost.
//!
//! Its life is in its types: a [`FacilitatorClient`] is inert, a [`RunningClient`] runs, a [`StopReport`] is what is
//! left of it. Only a running client gives handles, so nothing can be sent by one that was never started:
//!
//! [`StopReport`]: crate::base::stop::StopReport
//!
//! ```compile_fail,E0599
//! # use phalanx::validator::{ClientConfig, FacilitatorClient};
//! # use phalanx::identity::KeyPair;
//! let key = KeyPair::load("//Alice").unwrap();
//! let client = FacilitatorClient::new(ClientConfig::new("ws://127.0.0.1:9/ws/v0/", key)).unwrap();
//! client.handle(); // no method named `handle` found for struct `FacilitatorClient`
//! ```
//!
//! ```compile_fail,E0382
//! # use phalanx::validator::{ClientConfig, FacilitatorClient, Job};
//! # use phalanx::identity::KeyPair;
//! # use std::time::Duration;
//! # let key = KeyPair::load("//Alice").unwrap();
//! # let client = FacilitatorClient::new(ClientConfig::new("ws://127.0.0.1:9/ws/v0/", key)).unwrap();
//! let running = client.start(|job: Job| drop(job)).unwrap();
//! running.stop(Duration::from_secs(10));
//! running.handle(); // borrow of moved value: `running`
//! ```
//!
//! * [`config`]: its settings and errors.
//! * [`running`]: a client that runs, and the order of its stop.
//! * [`handle`]: what others hold of it.
//! * [`job`]: a job as whoever runs it holds it, and the [`JobHandler`] that gets it.
//! * [`inbound`]: what the facilitator's messages are; the link's classifier. Pure.
//! * `intake`: where they go, on the link's thread.
//! * `work_queue`, `checker`: the threads that check signatures, and what they do.
//! * `authentication`: what the link says first.
//!
//! Owner: whoever holds the [`RunningClient`]. Threads: `val-fac-rd` reads and routes (it never blocks on a job, a
//! signature or a disk), `val-fac-wr` writes, `val-check-n` check signatures and call the handler, `val-store` keeps
//! the updates on disk, `timer`. Each ends in [`RunningClient::stop`], in that of its drop at the latest.

pub mod config;
pub mod handle;
pub mod job;
pub mod running;
pub(in crate::validator) mod work_queue;

mod authentication;
mod checker;
pub mod inbound;
mod intake;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::bounded;

use authentication::FacilitatorAuthentication;
use checker::Checker;
use handle::{ClientShared, Events};
use inbound::classify;
use intake::Intake;
use job::guarded;
use running::ClientParts;
use work_queue::{WorkLimits, WorkQueue};

use super::authorization::Signers;
use super::ledger::{self, Ledger};
use crate::base::limits::{
    FACILITATOR_LINK_MESSAGE_BYTES, SPECS_MINERS, STATUS_BYTES, STATUS_MESSAGES, UNCHECKED_BYTES, UNCHECKED_REQUESTS,
};
use crate::base::shutdown::Shutdown;
use crate::base::timer::{Timer, TimerHandle};
use crate::link::session::Beat;
use crate::link::{Link, LinkConfig, OutboxLimits};
use crate::ops::jobs::{JobFacts, JobMetrics};
use crate::ops::metrics::Metrics;
use crate::protocol::{FacilitatorToValidator, V0Heartbeat, ValidatorToFacilitator, kind_of};
use crate::transport::{MessageTypes, PeerMeters, SocketLimits};

pub use config::{ClientConfig, ClientError};
pub use handle::{ClientEvent, ClientHandle, ClientState, Counted};
pub use job::{Job, JobHandler, LeftJob, RunningJob};
pub use running::RunningClient;

/// Updates that may be unanswered at a time, each of another job. The facilitator answers in order, so this is only how
/// far we run ahead of it.
const ACK_WINDOW: usize = 1024;

/// The facilitator closes with this when our signature is bad; trying again soon does not make it better. Its 3001, for
/// a validator that it does not know, asks to wait and retry, and gets the usual back-off.
const BAD_SIGNATURE: u16 = 3000;

/// Longest that a batch of signature checks may take: 64 of them are some milliseconds, and a handler of jobs only
/// hands them on.
const CHECKS_TIME: Duration = Duration::from_secs(30);

/// A client that does nothing yet.
#[derive(Debug)]
#[must_use = "a client does nothing until it is started"]
pub struct FacilitatorClient {
    config: ClientConfig,
}

impl FacilitatorClient {
    /// Checks the configuration. Starts no thread, touches no file.
    ///
    /// # Errors
    /// [`ClientError::Config`], with all problems at once.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let problems = config.validate();
        if problems.is_empty() { Ok(Self { config }) } else { Err(ClientError::Config(problems)) }
    }

    /// Starts the client; returns at once, connected or not. Blocks only to read the state folder.
    ///
    /// # Errors
    /// [`ClientError::State`]; then nothing was started.
    pub fn start(self, handler: impl JobHandler) -> Result<RunningClient, ClientError> {
        let timer = Timer::start();
        let mut running = self.start_with(Arc::new(handler), timer.handle())?;
        running.timer = Some(timer);
        Ok(running)
    }

    /// As [`FacilitatorClient::start`], with a timer of the caller's.
    pub(in crate::validator) fn start_with(
        self,
        handler: Arc<dyn JobHandler>,
        timer: TimerHandle,
    ) -> Result<RunningClient, ClientError> {
        let Self { config } = self;
        let board = config.board.clone();
        let dialer = meters(&board.metrics).dialer(config.dialer.clone());
        let (link, idle) = Link::new(link_config(&config), dialer, timer.clone());
        let events = Arc::new(Events::default());
        let on_dead = {
            let events = events.clone();
            move |given_up| events.notify(&ClientEvent::GivenUp(given_up))
        };
        let folder = config.state_dir.as_deref();
        let limits = config.limits;
        let ledger = Ledger::new(limits, config.retries, folder.is_some()).with_signature_age(config.max_signature_age);
        let (delivery, store) = ledger::open(folder, ledger, link.clone(), timer, &board, on_dead)?;
        let (alive, all_gone) = bounded(0);
        let stop = Shutdown::new();
        let names = JobMetrics { ended: None, stages: Some("phalanx_validator_job_stage_seconds") };
        board.jobs.measure(&board.metrics, names, &[]);
        for (number, uuid) in delivery.open_jobs() {
            board.jobs.begin(&*uuid, JobFacts::default(), "restored");
            let left = LeftJob::new(uuid, number, delivery.clone(), alive.clone());
            guarded("left", || handler.left(left));
        }
        let signers = Signers::new(config.key.public(), config.trusted_signers, config.max_signature_age);
        let errors = board.errors.clone();
        let checker = Checker { delivery: delivery.clone(), handler, signers, stop: stop.clone(), errors };
        let bounds = WorkLimits { items: UNCHECKED_REQUESTS, bytes: UNCHECKED_BYTES };
        let named = ("val-check", "job requests to check");
        let watched = (&board.health, "checks", CHECKS_TIME);
        let checks = WorkQueue::start(named, config.check_threads, bounds, watched, move |batch| checker.check(batch));
        let shared = Arc::new(ClientShared {
            delivery,
            draining: Shutdown::new(),
            alive: Mutex::new(Some(alive)),
            events,
            last_error: Mutex::default(),
            counted: Counted::new(&board.metrics),
            board,
        });
        let pulse = shared.board.health.pulse("intake");
        let intake = Intake { shared: shared.clone(), checks: checks.handle(), limits, pulse };
        let authenticate = FacilitatorAuthentication { key: config.key };
        let running = idle.start(Some(Box::new(authenticate)), classify, move |event| intake.handle(event));
        let parts = ClientParts { store, checks, link: running, stop, all_gone };
        Ok(RunningClient { parts: Some(parts), handle: ClientHandle { shared, link }, timer: None })
    }
}

/// Counts what goes to the facilitator and comes from it.
fn meters(metrics: &Metrics) -> PeerMeters {
    let sent = MessageTypes::of(ValidatorToFacilitator::TYPES, kind_of);
    let received = MessageTypes { names: FacilitatorToValidator::TYPES, untyped: "Response", type_of: kind_of };
    PeerMeters::new(metrics, "facilitator", sent, received)
}

fn link_config(config: &ClientConfig) -> LinkConfig {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    LinkConfig {
        headers: vec![
            ("X-Validator-Version".to_owned(), version.clone()),
            ("X-Validator-Runner-Version".to_owned(), version),
        ],
        socket: SocketLimits {
            message_bytes: FACILITATOR_LINK_MESSAGE_BYTES,
            frame_bytes: FACILITATOR_LINK_MESSAGE_BYTES,
            ..SocketLimits::default()
        },
        fallbacks: config.fallbacks.clone(),
        dial_time: config.dial_time,
        backoff: config.backoff,
        refused_pause: config.refused_pause,
        refusal_codes: &[BAD_SIGNATURE],
        kind_of,
        beat: Some(Beat {
            every: config.heartbeat_every,
            text: ValidatorToFacilitator::from(V0Heartbeat).encode().into(),
        }),
        // One update of each job at most, and the ledger bounds the jobs; twice that, since ends are always taken.
        outbox: OutboxLimits {
            messages: 2 * STATUS_MESSAGES + SPECS_MINERS,
            bytes: 2 * STATUS_BYTES,
            window: ACK_WINDOW,
        },
        ..LinkConfig::new("val-fac", &config.url)
    }
}

#[cfg(all(test, not(feature = "store")))]
mod tests {
    use super::*;
    use crate::base::thread::Group;
    use crate::identity::KeyPair;

    #[test]
    fn without_its_feature_a_state_folder_is_refused_and_nothing_starts() {
        let group = Group::enter();
        let key = KeyPair::load("//Alice").unwrap();
        let mut config = ClientConfig::new("ws://127.0.0.1:1/ws/v0/", key);
        config.state_dir = Some("somewhere".into());
        let refused = FacilitatorClient::new(config).unwrap().start(|job: Job| drop(job)).unwrap_err();
        assert!(matches!(refused, ClientError::State(_)), "{refused:?}");
        let text = "somewhere cannot be used: this program is built without the feature `store` of phalanx";
        assert!(refused.to_string().contains(text), "{refused}");
        assert!(group.live().is_empty(), "{:?}", group.live());
    }
}
