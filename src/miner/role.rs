//! The start and the stop of a miner, all steps in order.
//!
//! Start → the watcher (a process, see `watch`), two threads for each host (`min-engine-N`, whether jobs can run there,
//! and `min-reap-N`), `min-store` (the receipts), `min-image` (the images of jobs), `min-route` (the router),
//! `min-accept`, two threads for each connection (`min-rd-N`, `min-wr-N`), and one for each executor (`min-ex-N`). Stop
//! → see [`Miner::stop`]. What each blocks in and what kicks it is in `host_threads`, `disk`, `images`,
//! `router_thread`, `executor_manager` and `link::server`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};

use super::check::UNKNOWN;
use super::config::{MinerConfig, MinerLimits};
use super::disk::{self, Saves};
use super::engine::LATE;
use super::executor_manager::{Backends, ExecutorManager, Owner};
use super::host::HostName;
use super::host_threads::{CheckReports, HostThreads, Reports};
use super::images::{Floor, ImagesStatus, Keeper};
use super::meters::{self, Meters};
use super::reaper::Reaper;
use super::router::{Action, ExecutorFrame, HostPlan, Input, MinerStatus, Router, Settings};
use super::router_thread::{self, Event, RouterEnd, RouterThread};
use super::trace::{Trace, Traces};
use super::watch::Watcher;
use crate::base::clock::now;
use crate::base::limits::{LONGEST_TIME, ROLE_EVENTS};
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::{StopReport, Stopping, drop_role};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::timer::TimerHandle;
use crate::base::waits::waiting;
use crate::link::ServerConfig;
use crate::link::server::{AcceptState, Server, ServerConnections, ServerPlaces};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::jobs::JobMetrics;
use crate::ops::status::Board;
use crate::store::StoreError;
use crate::store::miner::{MinerStore, Turn};
use crate::store::spool::{Spool, Spooled};
use crate::transport::Listener;
use crate::transport::counted::counted_listener;

/// How long the threads of connections, the store and the accepting may take to end, each step.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// What is counted of jobs; their stages are measured as the miner has them, see `meters`.
const JOB_METRICS: JobMetrics = JobMetrics { ended: Some("phalanx_miner_jobs_ended_total"), stages: None };

/// How jobs end on a miner.
const OUTCOMES: [&str; 4] = ["completed", "failed", "horde_failed", router_thread::DECLINED];

/// Why a miner could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MinerError {
    /// The configuration is wrong.
    #[error("the miner's configuration is wrong: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The database could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl MinerError {
    /// Whether the same start may succeed later without a change of the settings.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Store(error) if error.may_pass())
    }
}

/// A running miner. Dropping it stops it as a stop that is cancelled at once.
pub struct Miner {
    /// Taken by the stop.
    parts: Option<MinerParts>,
    status: Arc<Mutex<MinerStatus>>,
    traces: Arc<Mutex<Traces>>,
    images: Arc<Mutex<ImagesStatus>>,
    accept: AcceptState,
    places: ServerPlaces,
    connections: ServerConnections,
    board: Board,
    url: String,
    limits: MinerLimits,
}

/// What a stop ends.
struct MinerParts {
    router: Thread<RouterEnd>,
    images: Option<Thread<()>>,
    server: Server,
    watcher: Option<Watcher>,
    disk: Thread<()>,
    events: Sender<Event>,
    stop: Shutdown,
}

impl fmt::Debug for Miner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Miner").field("url", &self.url).field("status", &self.status()).finish_non_exhaustive()
    }
}

/// Changes the settings of a running miner; may outlive it. Cheap to clone.
#[derive(Clone)]
pub struct Reloader(Sender<Event>);

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reloader")
    }
}

impl Reloader {
    /// From now on the validators, the blacklist, the times, the hosts with their executors and back ends, and the
    /// placement of `config` count; the rest of it takes a restart. Executors that run are not touched: where fewer are
    /// declared, or none, the free slots go at once and the others when their executors have ended. Connections of
    /// those who are no longer validators are closed. Does not block.
    ///
    /// # Errors
    /// If the configuration is wrong, or the miner takes nothing at present; then nothing has changed.
    pub fn reload(&self, config: MinerConfig) -> Result<(), String> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let (settings, backends) = settings(&config);
        match self.0.try_send(Event::Settings(Box::new(settings), backends)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => Err("the miner is busy; send the signal again".to_owned()),
            Err(TrySendError::Disconnected(_)) => Err("the miner has stopped".to_owned()),
        }
    }
}

/// What of a configuration may change while a miner runs.
fn settings(config: &MinerConfig) -> (Settings, Backends) {
    let MinerConfig { validators, blacklist, limits, placement, .. } = config.clone();
    let hosts = config.all_hosts();
    let backends = hosts.iter().map(|host| (host.name, host.backend.clone())).collect();
    let hosts = hosts.into_iter().map(HostPlan::from).collect();
    (Settings { validators, blacklist, limits, hosts, placement }, backends)
}

/// Looks at a miner, also after it has stopped; cheap to clone.
#[derive(Debug, Clone)]
pub struct Observer {
    status: Arc<Mutex<MinerStatus>>,
    traces: Arc<Mutex<Traces>>,
    images: Arc<Mutex<ImagesStatus>>,
    accept: AcceptState,
    places: ServerPlaces,
    connections: ServerConnections,
    board: Board,
}

impl Observer {
    /// Numbers for people, as of the last event.
    pub fn status(&self) -> MinerStatus {
        lock(&self.status).clone()
    }

    /// The way of the jobs of this uuid, the newest first; at most one for each validator. A thousand jobs are
    /// remembered.
    pub fn trace(&self, uuid: &str) -> Vec<Trace> {
        lock(&self.traces).of(uuid)
    }

    /// Why no connection is accepted at present, if that is so.
    pub fn accept_trouble(&self) -> Option<String> {
        self.accept.trouble(Instant::now())
    }

    /// Who has a place among the connections.
    pub fn places(&self) -> &ServerPlaces {
        &self.places
    }

    /// What is measured of the open connections.
    pub fn connections(&self) -> &ServerConnections {
        &self.connections
    }

    /// What is known of the images of jobs, as of the last look.
    pub fn images(&self) -> ImagesStatus {
        lock(&self.images).clone()
    }

    /// What the miner's threads report to.
    pub fn board(&self) -> &Board {
        &self.board
    }
}

impl Miner {
    /// The longest that [`Miner::stop`] takes, the sum of its steps.
    pub fn stop_budget(limits: &MinerLimits) -> Duration {
        limits.drain_time + limits.end_time + 5 * CLOSE_TIME
    }

    /// Starts a miner that serves validators and executors on `listener`. Blocks to open the database, and
    /// until every host has answered once, or has not within its limit: then the miner offers nothing there until it
    /// does. Security checks are not waited for any longer: executors of an earlier process want to be answered.
    ///
    /// # Errors
    /// [`MinerError`]; then nothing is left running.
    pub fn start(config: MinerConfig, listener: Box<dyn Listener>, timer: TimerHandle) -> Result<Self, MinerError> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(MinerError::Config(problems));
        }
        let (store, jobs) = MinerStore::open(&config.state_dir, now().unix_micros())?;
        let Turn { instance, epoch } = store.turn().clone();
        let owner = Owner { miner: config.key.ss58(), instance, epoch };

        // Before anything is made that it is to remove.
        let errors = config.board.errors.clone();
        let watch = |command| Watcher::start(command, &owner, &config.state_dir, errors.clone());
        let watcher = config.watch.clone().map(watch);
        let url = listener.url();
        let address = config.executor_address.clone().unwrap_or_else(|| url.clone());
        let reapers = owner.clone();
        let mut router = Router::new(&config, address, owner);
        let stop = Shutdown::new();
        let traces = Arc::<Mutex<Traces>>::default();
        let (events, inbox) = bounded::<Event>(ROLE_EVENTS);
        let (orders, queue) = bounded(ROLE_EVENTS);

        let spool = Spool::new(config.state_dir.join(super::SPOOL));
        let (spooled, reports, told) = (spool.clone(), events.clone(), errors.clone());
        let reports: Reports = Arc::new(move |input| {
            // It may have left what it could not say. That counts before its end does.
            if matches!(input, Input::ExecutorEnded { .. }) {
                take_spooled(&spooled, &reports, &told);
            }
            // Once the router has ended, nobody wants to know.
            drop(reports.send(Event::Input(input)));
        });
        let (settings, backends) = settings(&config);
        let executors = ExecutorManager::new(backends.clone(), stop.clone());
        let answered = executors.answered();
        let Board { health, metrics, .. } = config.board.clone();
        let dry_run = config.reap_dry_run;
        let floor = config.images.as_ref().and_then(Floor::of);
        let (looked_after, board) = (watcher.clone(), config.board.clone());
        let reaper = Reaper { answered: answered.clone(), owner: reapers, dry_run, watcher: looked_after, board };
        let found = events.clone();
        let checked: CheckReports = Arc::new(move |input, of| drop(found.send(Event::Checked(input, of))));
        let mut hosts = HostThreads::new(reaper, floor, stop.clone(), (reports.clone(), checked));
        for (host, backend) in &backends {
            hosts.check(*host, backend.clone(), router_thread::checks(&settings), None);
        }
        // The first checks are waited for, so that whoever connects first is told what there is.
        let more = backends.values().map(|backend| backend.more_time()).max().unwrap_or_default();
        let limit = Instant::now() + config.limits.checks.limit + more + LATE;
        for found in first_checks(&inbox, backends.keys().copied().collect(), limit, &errors) {
            router.handle(found, now());
        }
        let first = router.restore(jobs, now());
        for action in &first {
            if let Action::Adopt(spec, _) = action {
                // Before the reaper looks for the first time.
                answered.answer_for(&spec.run);
            }
        }
        for (host, backend) in backends {
            hosts.reap(host, backend);
        }
        let saves = Saves::default();
        let status = Arc::new(Mutex::new(router.status()));
        let (report, key, to_save) = (events.clone(), config.key.clone(), saves.clone());
        let meters = Meters::new(&metrics);
        config.board.jobs.measure(&metrics, JOB_METRICS, &OUTCOMES);
        let (router_health, of_disk) = (health.clone(), errors.clone());
        let disk = spawn("min-store", Kick::dropped("the router's sender"), move || {
            // Once the router has ended, nobody waits for the outcome.
            disk::run(&queue, &to_save, store, &key, (&health, &of_disk), |input| {
                drop(report.send(Event::Input(input)))
            });
        });
        let keeper = config.images.map(|care| Keeper::new(care, config.board.clone()));
        let known_images = keeper.as_ref().map(Keeper::status).unwrap_or_default();
        let images = keeper.map(|keeper| {
            let (kicked, until) = (stop.clone(), stop.clone());
            let kick = Kick::new("stop signal of the miner", move || kicked.cancel());
            spawn("min-image", kick, move || keeper.run(&until))
        });
        let end_time = config.limits.end_time;
        let thread = RouterThread {
            router,
            executors,
            hosts,
            reports,
            orders,
            saves,
            first,
            status: status.clone(),
            traces: traces.clone(),
            meters,
            health: router_health,
            errors: errors.clone(),
            jobs: config.board.jobs.clone(),
            pause: config.board.pause.clone(),
            end_time,
        };
        let (kicked, running) = (stop.clone(), stop.clone());
        let kick = Kick::new("stop signal of the miner", move || kicked.cancel());
        let router = spawn("min-route", kick, move || thread.run(&inbox, &running));
        take_spooled(&spool, &events, &errors);
        let sink = router_thread::sink(events.clone(), config.rates);
        let listener = counted_listener(listener, meters::of_peer(&metrics));
        let server =
            ServerConfig { health: config.board.health.clone(), errors: errors.clone(), ..config.server.clone() };
        let server = Server::start(server, listener, timer, router_thread::accept_path(), sink);
        let (accept, places, connections) = (server.accept_state(), server.places(), server.connections());
        log::info!("miner {} serves on {url}", config.key.ss58());
        let parts = Some(MinerParts { router, images, server, watcher, disk, events, stop });
        let (images, board, limits) = (known_images, config.board, config.limits);
        Ok(Self { parts, status, traces, images, accept, places, connections, board, url, limits })
    }

    /// Where validators and executors dial, `ws://address:port`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The bound address, `address:port`.
    pub fn ws_addr(&self) -> &str {
        self.url.split_once("://").map_or(self.url.as_str(), |(_, address)| address)
    }

    /// Numbers for people, as of the last event.
    pub fn status(&self) -> MinerStatus {
        lock(&self.status).clone()
    }

    /// What changes its settings while it runs.
    pub fn reloader(&self) -> Reloader {
        let parts = self.parts.as_ref().expect("only the stop takes them, which consumes the miner");
        Reloader(parts.events.clone())
    }

    /// What looks at this miner; may outlive it.
    pub fn observer(&self) -> Observer {
        let (status, traces, images) = (self.status.clone(), self.traces.clone(), self.images.clone());
        let (accept, places, connections) = (self.accept.clone(), self.places.clone(), self.connections.clone());
        Observer { status, traces, images, accept, places, connections, board: self.board.clone() }
    }

    /// Stops it alone, within `budget`, as [`Miner::stop_in`] does; what is left then is cancelled.
    pub fn stop(self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::within(budget);
        self.stop_in(&mut stopping);
        stopping.finish()
    }

    /// Stops: declines new jobs and waits for those that run (at most [`MinerLimits::drain_time`], or until the stop is
    /// cancelled); then fails what is left, telling its validators, ends the executors, closes the connections with
    /// 1001, and joins all threads. Executors dial the miner, so it accepts connections for as long as it waits for
    /// jobs.
    pub fn stop_in(mut self, stopping: &mut Stopping) {
        self.end(stopping);
    }

    fn end(&mut self, stopping: &mut Stopping) {
        let Some(MinerParts { router, images, mut server, watcher, disk, events, stop }) = self.parts.take() else {
            return;
        };
        let limits = &self.limits;
        let cancel = stop.clone();
        let _at_once = stopping.shutdown().on(Level::Cancel, move || cancel.cancel());
        stopping.step("miner: jobs", limits.drain_time, |step| {
            let (idle, when_idle) = bounded(0);
            let asked = [Event::Input(Input::Stop(Level::Drain)), Event::WhenIdle(idle)];
            // A router that does not take them ends with the executors.
            if asked.into_iter().all(|event| events.send_deadline(event, step.deadline()).is_ok()) {
                let _waiting = waiting("the jobs to end", Some(step.deadline()));
                select! {
                    recv(when_idle) -> _ => {}
                    recv(step.shutdown().cancel_receiver()) -> _ => {}
                    default(step.deadline().saturating_duration_since(Instant::now())) => {}
                }
            }
        });
        stopping.step("miner: accept", CLOSE_TIME, |step| server.stop_accepting(step));
        let end = stopping.step("miner: executors", limits.end_time + CLOSE_TIME, |step| {
            stop.drain();
            let end = step.join(router).map(|RouterEnd { executors, hosts, cancelled_jobs }| {
                step.join_all(executors);
                // What these wait for is worth no executor's time.
                step.join_all(hosts);
                cancelled_jobs
            });
            images.map(|images| step.join(images));
            end
        });
        stopping.cancelled_jobs(end.unwrap_or(0));
        stopping.step("miner: connections", CLOSE_TIME, |step| {
            server.stop_in(step, "the miner is stopping");
        });
        stopping.step("miner: receipts", CLOSE_TIME, |step| step.join(disk).unwrap_or(()));
        stopping.step("miner: watcher", CLOSE_TIME, |step| {
            watcher.iter().for_each(|watcher| watcher.finish(step.deadline()));
        });
    }
}

/// What the first check of each host has found, by `deadline`; nobody else reports anything yet.
fn first_checks(
    inbox: &Receiver<Event>,
    mut hosts: BTreeSet<HostName>,
    deadline: Instant,
    errors: &ErrorHandler,
) -> Vec<Input> {
    let mut found = Vec::new();
    let _waiting = waiting("the first check of the hosts", Some(deadline));
    while !hosts.is_empty() {
        let Ok(event) = inbox.recv_deadline(deadline) else { break };
        let Event::Checked(input, _) = event else { continue };
        if let Input::Checked { host, .. } = &input {
            hosts.remove(host);
        }
        found.push(input);
    }
    // It counts when it answers after all.
    let missing = |host: HostName| {
        let what = format_args!("host {host}: {UNKNOWN}, so no job is taken there until it has");
        errors.report_of(ErrorClass::Reconnect, "host", host.as_str(), &what);
        Input::Checked { host, found: Err(UNKNOWN.to_owned()), images: Vec::new(), due: deadline + LONGEST_TIME }
    };
    found.extend(hosts.into_iter().map(missing));
    found
}

/// Hands what executors have left in the spool to the router. Blocks while the router's queue is full.
fn take_spooled(spool: &Spool, events: &Sender<Event>, errors: &ErrorHandler) {
    let taken = spool.take(|Spooled { token, messages }| {
        let frames = messages.iter().map(|text| ExecutorFrame::read(text)).collect();
        // A router that has ended knows no job.
        drop(events.send(Event::Input(Input::Spooled { token, frames })));
    });
    if let Err(error) = taken {
        errors.report(ErrorClass::Fatal, "spool", &error);
    }
}

impl Drop for Miner {
    fn drop(&mut self) {
        if self.parts.is_some() {
            drop_role("a miner", |stopping| self.end(stopping));
        }
    }
}
