//! The run of a streaming job, with its proxy in front.
//!
//! Owner of the thread `exe-st-watch`: [`StreamingServer::run`]. Blocks in: the probe, then until the run ends or has
//! lasted for its limit. Kick: the signal that the run has ended. Ends: with the run, after the proxy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::certificate::ServerCertificate;
use super::error::StreamingError;
use super::ports::{PortRange, listen};
use super::probe::{self, Ready};
use super::proxy::Proxy;
use crate::base::clock;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::CANCEL_BUDGET;
use crate::base::thread::{JoinError, Kick, spawn};
use crate::net::accept::KickableListener;
use crate::ops::errors::ErrorHandler;
use crate::protocol::StreamingDetails;

/// The port on which a job listens in its container, as for the Python executor.
pub const JOB_PORT: u16 = 8000;

/// What a job's clients will reach: the port is taken and the certificate made, but nobody is let in yet.
pub(in crate::executor) struct StreamingServer {
    pub(super) listener: KickableListener,
    pub(super) tls: Arc<rustls::ServerConfig>,
    pub(super) certificate: String,
    pub(super) errors: ErrorHandler,
}

/// What clients must know of a job that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// The server's certificate, PEM.
    pub certificate: String,
    /// Where it listens.
    pub port: u16,
}

/// How long a streaming job may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamingLimits {
    /// By when its server is ready.
    pub start_by: Instant,
    /// How long it may run from then on.
    pub run_time: Duration,
}

/// What was found out beside a run.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::executor) enum Watched {
    /// Its server was ready, and the run ended by itself.
    Served,
    /// Its server was ready, but the run lasted for too long and was ended.
    TooLong,
    /// Its server was not ready in time, and why, so the run was ended.
    NotReady(String),
    /// The run ended before its server was ready.
    Early,
}

impl StreamingServer {
    /// Makes what clients need; of those that cannot be let in `errors` is told. Blocks for nothing.
    pub(in crate::executor) fn open(
        details: &StreamingDetails,
        ports: PortRange,
        errors: ErrorHandler,
    ) -> Result<Self, StreamingError> {
        let address = details.executor_ip.as_deref().ok_or(StreamingError::NoAddress)?;
        let certificate = ServerCertificate::make(address, clock::now().wall)?;
        let pem = certificate.pem.clone();
        let tls = certificate.server(&details.public_key)?;
        let listener = listen(address, ports).and_then(KickableListener::new);
        let listener = listener.map_err(|source| StreamingError::Port { ports, source })?;
        Ok(Self { listener, tls, certificate: pem, errors })
    }

    /// Runs the job by `run`, whose signal ends it, and lets clients through from the moment at which its server is
    /// ready, which `report` is told. `address` finds the job. Blocks until `run` has returned and all clients have
    /// gone; ends the run after its limits, or when `cancel` is cancelled.
    pub(in crate::executor) fn run<R>(
        self,
        limits: StreamingLimits,
        cancel: &Shutdown,
        address: impl FnMut(&Shutdown, Instant) -> Result<Option<IpAddr>, String> + Send + 'static,
        report: impl FnOnce(Serving) + Send + 'static,
        run: impl FnOnce(&Shutdown) -> R,
    ) -> (R, Result<Watched, String>) {
        let (run_stop, over) = (cancel.child(), Shutdown::new());
        let watch = Watch { server: self, limits, run: run_stop.clone(), over: over.clone(), cancel: cancel.clone() };
        let kicked = over.clone();
        let kick = Kick::new("the run has ended", move || kicked.cancel());
        let thread = spawn("exe-st-watch", kick, move || watch.run(address, report));
        let ran = run(&run_stop);
        over.cancel();
        let watched = match thread.join_by(Instant::now() + CANCEL_BUDGET) {
            Ok(watched) => Ok(watched),
            Err(JoinError::Panicked(why)) => Err(why),
            Err(JoinError::Late(thread)) => {
                thread.abandon("a client of the job does not end");
                Err("its clients do not end".to_owned())
            }
        };
        (ran, watched)
    }
}

struct Watch {
    server: StreamingServer,
    limits: StreamingLimits,
    /// Ends the run.
    run: Shutdown,
    /// The run has ended.
    over: Shutdown,
    /// The job is cancelled.
    cancel: Shutdown,
}

impl Watch {
    fn run(
        self,
        mut address: impl FnMut(&Shutdown, Instant) -> Result<Option<IpAddr>, String>,
        report: impl FnOnce(Serving),
    ) -> Watched {
        let Self { server, limits, run, over, cancel } = self;
        let StreamingServer { listener, tls, certificate, errors } = server;
        let ready = probe::until_ready(JOB_PORT, &over, limits.start_by, || address(&over, limits.start_by));
        let job = match ready {
            Ready::At(job) => job,
            Ready::Stopped => return Watched::Early,
            Ready::No(why) => {
                run.cancel();
                return Watched::NotReady(why);
            }
        };
        let port = listener.local_addr().port();
        let proxy = Proxy::start(listener, tls, job, errors);
        log::info!("the job's server is ready at {job}; clients are let in on port {port}");
        report(Serving { certificate, port });
        let in_time = over.wait_for(Level::Cancel, limits.run_time);
        if !in_time {
            run.cancel();
        }
        proxy.stop(!in_time || cancel.is_cancelled());
        if in_time { Watched::Served } else { Watched::TooLong }
    }
}
