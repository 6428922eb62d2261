//! Connections to miners that are kept when a job is over, so that the next one does not dial: a [`Pool`] of them.
//!
//! An idle connection is watched by one thread for all of them ([`crate::transport::idle`]), which answers pings and
//! takes a Close. Before it is used again the validator authenticates once more on it: the miner's manifest in answer
//! shows that it lives, and is fresh. Within [`FRESH_TIME`] of the last manifest that is spared, unless that was empty:
//! a pause may be over.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::manifests::{AskOutcome, ExchangeError, MinerDialer, MinerManifest, OpenMiner};
use super::routing::MinerAddress;
use crate::base::limits::LONGEST_TIME;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::{Step, StopReport, stop_alone};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::pool::{self, AcquireError, Connections, Connector, Pool, PoolConfig, PoolNumbers, Until};
use crate::transport::idle::{IdleConnection, IdleHandle, IdleWatch};

/// Connections to miners, in use or kept, unless the configuration says otherwise: each is a descriptor and some 20
/// KiB. As many jobs as may run have one each, and 64 miners are asked for manifests beside them.
pub const CONNECTIONS_MAX: usize = 2048;

/// How long after its miner's last manifest a connection is used without asking whether it lives: it was alive a moment
/// ago, and if it broke since, that is found at once.
pub const FRESH_TIME: Duration = Duration::from_secs(1);

/// How long a miner may take to show that it is still there; then it is dialled anew.
pub const PROOF_TIME: Duration = Duration::from_secs(3);

/// How long a connection is kept that nobody uses: five rounds of manifests.
pub const IDLE_TIME: Duration = Duration::from_secs(300);

/// How old a connection may grow, so that a miner that has moved is dialled anew some time.
pub const LIFE_TIME: Duration = Duration::from_secs(1800);

/// No job lasts for longer, so who has a connection for this long has forgotten it.
pub const LEAK_TIME: Duration = Duration::from_secs(24 * 3600);

/// Owns the connections and the threads that look after them. Dropping it stops it; what is in use then is closed when
/// it comes back.
#[derive(Debug)]
pub struct KeptConnections {
    connections: MinerConnections,
    pool: Pool<MinerConnector>,
    watch: Option<IdleWatch>,
}

/// Connections to miners; clones are the same, and may outlive their owner.
#[derive(Debug, Clone)]
pub struct MinerConnections {
    dialer: MinerDialer,
    pool: Connections<MinerConnector>,
}

/// How the pool makes and checks them.
struct MinerConnector {
    dialer: MinerDialer,
    /// `None` if the system has no descriptor for the watch; then none is kept.
    watch: Option<IdleHandle>,
}

/// A connection in the pool.
struct KeptMiner {
    miner: MinerAddress,
    watch: Option<IdleHandle>,
    state: KeptState,
    manifest: MinerManifest,
    at: Instant,
}

/// Where its connection is.
enum KeptState {
    /// About to be used: made, or asked for its manifest, a moment ago.
    Open(Box<OpenMiner>),
    /// Watched until it is used.
    Idle(IdleConnection),
    /// In use, or ended.
    Gone,
}

impl KeptMiner {
    fn take(&mut self) -> Option<OpenMiner> {
        match std::mem::replace(&mut self.state, KeptState::Gone) {
            KeptState::Open(open) => Some(*open),
            KeptState::Idle(idle) => {
                Some(OpenMiner { connection: idle.take()?, manifest: self.manifest.clone(), at: self.at })
            }
            KeptState::Gone => None,
        }
    }

    /// Nobody uses it for now; it ends if nobody can watch it.
    fn rest(&mut self, open: OpenMiner) {
        let OpenMiner { connection, manifest, at } = open;
        (self.manifest, self.at) = (manifest, at);
        self.state = match &self.watch {
            Some(watch) => KeptState::Idle(watch.keep(connection)),
            None => KeptState::Gone,
        };
    }
}

impl Connector for MinerConnector {
    type Key = MinerAddress;
    type Connection = KeptMiner;
    type Error = ExchangeError;

    fn connect(&self, miner: &MinerAddress, until: Until<'_>) -> Result<KeptMiner, ExchangeError> {
        let open = self.dialer.open(miner, until.deadline, until.shutdown, until.level)?;
        let watch = self.watch.clone();
        let (miner, manifest, at) = (miner.clone(), open.manifest.clone(), open.at);
        Ok(KeptMiner { miner, watch, state: KeptState::Open(Box::new(open)), manifest, at })
    }

    fn validate(&self, kept: &mut KeptMiner, until: Until<'_>) -> Result<(), ExchangeError> {
        let is_empty = kept.manifest.executors.is_empty() && kept.manifest.unknown.is_empty();
        if !is_empty && self.dialer.timer.clock().now() < kept.at + FRESH_TIME {
            return Ok(());
        }
        let Some(open) = kept.take() else { return Err(ended()) };
        let Until { deadline, shutdown, level } = until;
        let open = self.dialer.ask_again(&kept.miner, open.connection, deadline, shutdown, level)?;
        (kept.manifest, kept.at) = (open.manifest.clone(), open.at);
        kept.state = KeptState::Open(Box::new(open));
        Ok(())
    }

    fn is_broken(&self, kept: &mut KeptMiner) -> bool {
        match &kept.state {
            KeptState::Open(_) => false,
            KeptState::Idle(idle) => !idle.is_open(),
            KeptState::Gone => true,
        }
    }

    fn close(&self, kept: KeptMiner) {
        match kept.state {
            KeptState::Open(open) => self.dialer.close(*open),
            KeptState::Idle(idle) => idle.close(),
            KeptState::Gone => {}
        }
    }
}

fn ended() -> ExchangeError {
    let why = "the miner has ended the connection".to_owned();
    ExchangeError { outcome: AskOutcome::Refused, why, refused: false, cut: true, stopped: false }
}

/// How the connections are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct ConnectionsStatus {
    /// Kept, and not in use.
    pub idle: usize,
    /// In use.
    pub leased: usize,
    /// Being made, or asked whether they live.
    pub connecting: usize,
    /// Callers that wait for one.
    pub waiting: usize,
    /// Made since the start.
    pub dialled: u64,
    /// Could not be made, since the start.
    pub failed: u64,
    /// Used once more since the start.
    pub reused: u64,
    /// Ended since the start: by the miner, by an unclean end of a job, by age.
    pub ended: u64,
    /// Held for so long that the holder was named in the log.
    pub leaked: u64,
    /// Callers that got none: there were none within their time, or too many waited.
    pub not_given: u64,
}

impl From<PoolNumbers> for ConnectionsStatus {
    fn from(numbers: PoolNumbers) -> Self {
        let PoolNumbers { leased, idle, connecting, waiting, connected, reused, .. } = numbers;
        let ended = numbers.invalid + numbers.idled + numbers.retired + numbers.evicted + numbers.discarded;
        let not_given = numbers.gave_up + numbers.full;
        let (failed, leaked) = (numbers.connect_failed, numbers.leaked);
        Self { idle, leased, connecting, waiting, dialled: connected, failed, reused, ended, leaked, not_given }
    }
}

/// A connection for one user; dropping it without [`Lease::give_back`] ends it.
#[derive(Debug)]
pub struct Lease {
    lease: pool::Lease<MinerConnector>,
    open: Option<OpenMiner>,
}

impl KeptConnections {
    /// At most `limit` connections, in use or kept, and at least one; more callers wait. None is made before it is
    /// asked for.
    pub fn start(dialer: MinerDialer, limit: usize, errors: &ErrorHandler) -> Self {
        let watch = IdleWatch::start("val-mi-idle", dialer.timer.clone());
        let tell =
            |error: &_| errors.report(ErrorClass::Rejected, "kept-connections", &format_args!("none is kept: {error}"));
        let watch = watch.inspect_err(tell).ok();
        let config = PoolConfig {
            connections_max: limit.max(1),
            per_key_max: limit.max(1),
            waiting_max: CONNECTIONS_MAX,
            idle_time: IDLE_TIME,
            life_time: LIFE_TIME,
            // The miner's last word counts, not the last use.
            validate_after: Duration::ZERO,
            validate_time: PROOF_TIME,
            // Those who ask say by when.
            connect_time: LONGEST_TIME,
            leak_after: LEAK_TIME,
            ..PoolConfig::default()
        };
        let connector = MinerConnector { dialer: dialer.clone(), watch: watch.as_ref().map(IdleWatch::handle) };
        let pool = Pool::start(config, connector);
        Self { connections: MinerConnections { dialer, pool: pool.connections() }, pool, watch }
    }

    /// What others use.
    pub fn handle(&self) -> MinerConnections {
        self.connections.clone()
    }

    /// Stops it alone, within `budget`, as [`KeptConnections::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("miner connections", budget, |step| self.stop_in(step))
    }

    /// Gives none any more, closes those that are kept, waits for those in use within the step, and joins the threads.
    pub fn stop_in(self, step: &mut Step) {
        let Self { pool, watch, .. } = self;
        pool.stop_in(step);
        if let Some(watch) = watch {
            watch.stop_in(step);
        }
    }
}

impl MinerConnections {
    /// A connection that has authenticated, kept or new. Blocks until then, until `deadline`, or until `stop` is at
    /// cancel.
    ///
    /// # Errors
    /// Why there is none.
    #[track_caller]
    pub fn acquire(&self, miner: &MinerAddress, deadline: Instant, stop: &Shutdown) -> Result<Lease, ExchangeError> {
        let until = Until::new(deadline, stop).at_level(Level::Cancel);
        loop {
            let mut lease = self.pool.acquire(miner, until).map_err(none)?;
            match lease.take() {
                Some(open) => return Ok(Lease { lease, open: Some(open) }),
                // One that was idle and that its miner has ended just now; the pool has one less.
                None if until.left().is_zero() => return Err(ended()),
                None => lease.discard(),
            }
        }
    }

    /// What the miner offers: asked on a kept connection, or on a new one, which is kept. Blocks as
    /// [`MinerConnections::acquire`].
    ///
    /// # Errors
    /// Why it has not told.
    pub fn ask(&self, miner: &MinerAddress, until: Instant, stop: &Shutdown) -> Result<MinerManifest, ExchangeError> {
        let until = Until::new(until, stop).at_level(Level::Cancel);
        let mut lease = self.pool.acquire(miner, until).map_err(none)?;
        if let Some(open) = lease.take() {
            lease.rest(open);
        }
        Ok(lease.manifest.clone())
    }

    /// What talks to miners.
    pub fn dialer(&self) -> &MinerDialer {
        &self.dialer
    }

    /// How they are.
    pub fn status(&self) -> ConnectionsStatus {
        self.pool.numbers().into()
    }
}

/// Why the pool has none.
fn none(error: AcquireError<ExchangeError>) -> ExchangeError {
    let (outcome, stopped) = match error {
        AcquireError::ConnectFailed { error, .. } => return error,
        AcquireError::Stopped { .. } | AcquireError::PoolStopped => (AskOutcome::Skipped, true),
        AcquireError::TimedOut { .. } => (AskOutcome::Timeout, false),
        _ => (AskOutcome::Skipped, false),
    };
    ExchangeError { outcome, why: error.to_string(), refused: false, cut: false, stopped }
}

impl fmt::Debug for MinerConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MinerConnector")
    }
}

impl fmt::Debug for KeptMiner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeptMiner({})", self.miner.hotkey)
    }
}

impl Lease {
    /// The connection; nothing if it was taken already.
    pub fn take(&mut self) -> Option<OpenMiner> {
        self.open.take()
    }

    /// The job is over and nothing is on its way: the connection may serve another.
    pub fn give_back(mut self, open: OpenMiner) {
        self.lease.rest(open);
    }
}
