//! The loop around the [`Drive`] of one organic job: runs on a worker of the validator's back end.
//!
//! Owner: the worker. Blocks in: [`MinerClient::next`], always with the deadline of the present stage, and in what
//! `Reports` says. Kick: the job's cancel signal. Ends: with the job.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::client::job::Reports;
use super::connections::{CONNECTIONS_MAX, KeptConnections, Lease, MinerConnections};
use super::drive::{Action, Drive, Input};
use super::job_messages::JobTimes;
use super::manifests::{ExchangeError, MinerDialer};
use super::miner_client::{BACKOFF, MinerClient, MinerEvent, NoEvent, miner_meters};
use super::receipt_store::OnExcused;
use super::receipts::{Declines, FinishedReceipts};
use super::routing::reliability::Incident;
use super::routing::{Ask, BreakerView, ExplainedMiner, MinerAddress, MinerView, NoMiner, Routing};
use crate::base::backoff::Backoff;
use crate::base::clock::Clock;
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::scope;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::Stopping;
use crate::base::timer::TimerHandle;
use crate::base::waits::waiting;
use crate::identity::{KeyPair, PublicKey};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::metrics::Counter;
use crate::ops::status::Board;
use crate::pool::breakers::Event;
use crate::pool::breakers::Permit;
use crate::pool::{Breakers, BreakersConfig, BudgetConfig, RetryBudget};
use crate::protocol::{ExecutorClass, MinerToValidator, V0DeclineJobRequest, ValidatorToMiner};
use crate::transport::Dialer;

/// The miners, and what it takes to talk to them.
pub(super) struct Miners {
    pub(super) job_times: JobTimes,
    pub(super) routing: Mutex<Routing>,
    pub(super) connections: MinerConnections,
    /// Validators whose jobs excuse a miner that is busy, besides this one.
    pub(super) known: Arc<[PublicKey]>,
    /// Takes the receipts that excuse miners.
    pub(super) on_excused: Option<OnExcused>,
    receipts: Mutex<FinishedReceipts>,
    declines: Mutex<Declines>,
    /// Whether a miner answers; shared by all that call miners.
    pub(super) breakers: Breakers<PublicKey>,
    /// Second tries; shared by all that call miners.
    pub(super) budget: RetryBudget,
    /// By [`Incident`].
    incidents: [Counter; Incident::ALL.len()],
    /// Tells the threads of several jobs apart.
    next_link: AtomicU64,
    errors: ErrorHandler,
}

impl Miners {
    /// The second value owns their kept connections.
    pub(super) fn new(
        addresses: Vec<MinerAddress>,
        key: KeyPair,
        job_times: JobTimes,
        dialer: Arc<dyn Dialer>,
        timer: TimerHandle,
        half_life: Duration,
        board: &Board,
    ) -> (Self, KeptConnections) {
        let routing = Mutex::new(Routing::new(addresses, half_life));
        let incidents = Incident::ALL.map(|incident| {
            let help = "What miners did wrong.";
            board.metrics.counter("phalanx_validator_incidents_total", help, &[("kind", incident.name())])
        });
        let began = timer.clock().now();
        let dialer = miner_meters(&board.metrics).dialer(dialer);
        let kept = KeptConnections::start(MinerDialer { key, dialer, timer }, CONNECTIONS_MAX, &board.errors);
        let miners = Self {
            job_times,
            routing,
            connections: kept.handle(),
            known: Arc::default(),
            on_excused: None,
            receipts: Mutex::default(),
            declines: Mutex::default(),
            breakers: Breakers::new(BreakersConfig::default()),
            budget: RetryBudget::new(BudgetConfig::default(), began),
            incidents,
            next_link: AtomicU64::new(0),
            errors: board.errors.clone(),
        };
        (miners, kept)
    }

    /// That of the jobs. Rounds of manifests, which share the breakers and the budget, go by the system's.
    pub(super) fn clock(&self) -> &Clock {
        self.connections.dialer().timer.clock()
    }

    /// New jobs go to these.
    pub(super) fn replace(&self, miners: Vec<MinerAddress>) {
        let listed: HashSet<PublicKey> = miners.iter().map(|miner| miner.hotkey).collect();
        lock(&self.routing).replace(miners, self.clock().now());
        // One that is gone is never asked again, so its breaker would stay as it is and count against the others.
        self.breakers.retain(|hotkey| listed.contains(hotkey));
    }

    /// Counts against a miner what it did wrong; not while most miners fail at once, which is our own fault.
    pub(super) fn incident(&self, miner: &PublicKey, incident: Incident, why: &str) {
        let now = self.clock().now();
        if incident.may_be_us() && self.breakers.outage(now).is_some() {
            return log::debug!("miner {miner}: {why}: not counted, because most miners fail at once");
        }
        self.incidents[incident as usize].inc();
        lock(&self.routing).incident(miner, incident, why, now);
    }

    /// All miners as they are shown.
    pub(super) fn views(&self) -> Vec<MinerView> {
        let now = self.clock().now();
        lock(&self.routing).miners(&|hotkey| self.breaker(hotkey, now), now)
    }

    /// One miner with all that decides about it; `None` if it is not known.
    pub(super) fn explain(&self, hotkey: &PublicKey) -> Option<ExplainedMiner> {
        let now = self.clock().now();
        lock(&self.routing).explain(hotkey, &|hotkey| self.breaker(hotkey, now), now)
    }

    /// Logs what the breakers have done since this was last called.
    pub(super) fn tell_of_breakers(&self) {
        for event in self.breakers.take_events() {
            let hotkey = |key: &PublicKey| key.to_ss58();
            match event {
                Event::Changed { key, change } => log::info!("miner {}: its breaker: {change}", hotkey(&key)),
                Event::Capped { key, open } => {
                    let left = format!("{open} others are left alone");
                    let what = format_args!("miner {} is called although it fails: {left}", hotkey(&key));
                    self.errors.report(ErrorClass::Reconnect, "breakers", &what);
                }
                outage @ Event::OutageBegan(_) => self.errors.report(ErrorClass::Reconnect, "outage", &outage),
                over @ Event::OutageEnded { .. } => log::info!("{over}"),
            }
        }
    }

    /// The jobs of ours among the receipts of a refusal that the miner declined, too, that are known not to have run
    /// there, or that have ended there; notes the one that it declines now.
    fn declines(
        &self,
        miner: PublicKey,
        decline: &V0DeclineJobRequest,
        did_not_run: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let own = self.connections.dialer().key.ss58();
        let receipts = decline.receipts.iter().filter(|receipt| receipt.payload.validator_hotkey() == own);
        let jobs: Vec<&str> = receipts.map(|receipt| receipt.payload.job_uuid()).collect();
        let mut declines = lock(&self.declines);
        let now = self.clock().now_and_wall().unix_micros();
        let has_ended = |uuid: &str| {
            let receipt = lock(&self.receipts).of(miner, uuid);
            receipt.is_some_and(|receipt| now - receipt.payload.timestamp.unix_micros() > ENDED_LATELY_US)
        };
        let is_none = |uuid: &&str| declines.of(miner, uuid).is_some() || did_not_run(uuid) || has_ended(uuid);
        let before = jobs.into_iter().filter(is_none).map(str::to_owned).collect();
        declines.keep(miner, &decline.job_uuid, ());
        before
    }

    fn breaker(&self, hotkey: &PublicKey, now: Instant) -> Option<BreakerView> {
        let line = self.breakers.explain(hotkey, now)?.line(now);
        Some(BreakerView { is_open: self.breakers.refuses(hotkey, now).is_some(), line })
    }
}

/// How long after its end a job may still excuse a miner: it was asked for another up to a reservation (7 s) before it
/// declined that, and its clock and the news of the end may be some seconds behind.
const ENDED_LATELY_US: i64 = 10_000_000;

/// How long after a deadline what has come before it is still taken in.
const QUEUED_TIME: Duration = Duration::from_secs(1);

/// How long the link to the miner may take to close after the job.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// The same where the job has ended on a miner that is there: enough for a connection that is cut for ten seconds just
/// when the finished-receipt leaves.
const RECEIPT_TIME: Duration = Duration::from_secs(15);

/// Runs the job and reports it.
pub(super) fn run(miners: &Miners, job: impl Reports, cancel: &Shutdown) {
    let request = job.authorized().request().clone();
    let _job = scope::job(request.uuid.as_str());
    let key = miners.connections.dialer().key.clone();
    let drive = Drive::new(key, miners.job_times, request.clone(), job.avoid(), job.begun_on());
    let drive = drive.knowing(miners.known.clone());
    let (uuid, class) = (request.uuid.as_str(), request.executor_class);
    let trusted = request.on_trusted_miner;
    Runner {
        miners,
        uuid,
        class,
        trusted,
        job: Some(job),
        cancel,
        client: None,
        lease: None,
        miner: None,
        clean: true,
        slot: None,
        permit: None,
        drive,
    }
    .run();
}

/// One job under way.
struct Runner<'a, R> {
    miners: &'a Miners,
    uuid: &'a str,
    class: ExecutorClass,
    trusted: bool,
    /// Until its end is reported.
    job: Option<R>,
    cancel: &'a Shutdown,
    client: Option<MinerClient>,
    /// The connection that the client has begun on.
    lease: Option<Lease>,
    /// To whom.
    miner: Option<MinerAddress>,
    /// The miner has answered everything on that connection so far.
    clean: bool,
    slot: Option<MinerSlot<'a>>,
    /// That of the miner's breaker and since when, until it is known whether the miner answers.
    permit: Option<(Permit<PublicKey>, Instant)>,
    drive: Drive,
}

impl<R: Reports> Runner<'_, R> {
    fn run(mut self) {
        let mut input = Some(Input::Start);
        while let Some(happened) = input.take() {
            self.take(happened);
            input = self.next();
        }
    }

    fn take(&mut self, input: Input) {
        // Whatever else ends a job leaves something on its way.
        self.clean &= matches!(input, Input::Message(_) | Input::Start | Input::Reserved(_));
        if let (Input::Message(message), Some(slot)) = (&input, &self.slot)
            && let MinerToValidator::V0DeclineJobRequest(decline) = &**message
            && decline.job_uuid == self.uuid
            && self.drive.may_be_declined()
        {
            let job = self.job.as_ref();
            let did_not_run = |uuid: &str| job.is_some_and(|job| job.did_not_run_on(uuid, &slot.hotkey));
            self.drive.not_running(self.miners.declines(slot.hotkey, decline, did_not_run));
        }
        let mut actions = VecDeque::from(self.drive.handle(input, self.miners.clock().now_and_wall()));
        while let Some(action) = actions.pop_front() {
            if let Some(input) = self.act(action) {
                actions.extend(self.drive.handle(input, self.miners.clock().now_and_wall()));
            }
        }
    }

    fn now(&self) -> Instant {
        self.miners.clock().now()
    }

    /// Reports what went wrong with the job's miner.
    fn error(&self, class: ErrorClass, place: &'static str, why: &dyn fmt::Display) {
        let (uuid, miner) = (self.uuid, self.miner.as_ref().map(|miner| miner.hotkey.to_string()).unwrap_or_default());
        self.miners.errors.report(class, place, &format_args!("job {uuid}: miner {miner}: {why}"));
    }

    /// Waits for the next input; `None` once the job is over.
    fn next(&self) -> Option<Input> {
        let (Some(client), Some(deadline)) = (&self.client, self.drive.next_wake()) else { return None };
        loop {
            // A miner that never stops speaking does not put its deadline off.
            if self.now() >= deadline + QUEUED_TIME {
                return Some(Input::Tick);
            }
            return Some(match client.next(deadline, self.cancel) {
                // The manifest follows at once, and the drive decides what it means. What cannot be read says nothing.
                Ok(MinerEvent::Ready) => continue,
                Ok(MinerEvent::Unreadable { why, .. }) => {
                    self.error(ErrorClass::Rejected, "miner-message", &why);
                    continue;
                }
                Ok(MinerEvent::Message(message)) => Input::Message(message),
                Ok(MinerEvent::Lost { why }) => {
                    self.error(ErrorClass::Reconnect, "miner-link", &why);
                    Input::Lost { why }
                }
                Ok(MinerEvent::Failed { why, refused, cut, .. }) => {
                    let class = if refused { ErrorClass::Rejected } else { ErrorClass::Reconnect };
                    self.error(class, "miner-link", &why);
                    Input::ConnectFailed { why, refused, cut }
                }
                Err(NoEvent::Deadline) => Input::Tick,
                Err(NoEvent::Cancelled) => self.cancelled(),
            });
        }
    }

    /// Does one thing; gives what the drive has to know of it at once.
    fn act(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Reserve { same, avoid } => return Some(Input::Reserved(self.reserve(same, &avoid))),
            Action::Connect(miner) => {
                let now = self.now();
                // One whose breaker is open is asked where there is no other.
                self.permit = self.miners.breakers.ask(&miner.hotkey, now).ok().map(|permit| (permit, now));
                return self.connect(&miner);
            }
            Action::Send(message) => {
                if let (ValidatorToMiner::V0JobFinishedReceiptRequest(receipt), Some(slot)) = (&*message, &self.slot) {
                    lock(&self.miners.receipts).keep(slot.hotkey, &receipt.payload.job_uuid, receipt.clone());
                }
                let sent = self.client.as_ref()?.send(*message);
                return sent.err().map(|full| Input::NotSent(full.to_string()));
            }
            Action::Confirm(miner, uuid) => {
                let receipt = lock(&self.miners.receipts).of(miner, &uuid)?;
                if let Err(full) = self.client.as_ref()?.send(receipt) {
                    let what = format_args!("job {uuid}: its miner does not get it: {full}");
                    self.miners.errors.report(ErrorClass::Rejected, "finished-receipt", &what);
                }
            }
            Action::Manifest(miner, manifest) => {
                if let Some((permit, since)) = self.permit.take() {
                    permit.succeeded(self.now() - since);
                    self.miners.budget.succeeded(self.now());
                    self.miners.tell_of_breakers();
                }
                lock(&self.miners.routing).manifest(&miner, manifest, self.now());
            }
            Action::Excused(_, receipts) => {
                if let Some(on_excused) = &self.miners.on_excused {
                    on_excused(receipts);
                }
            }
            Action::CoolDown(miner) => lock(&self.miners.routing).cool_down(&miner, self.now()),
            Action::Completed(miner) => lock(&self.miners.routing).completed(&miner, self.now()),
            Action::Incident(miner, incident, why) => {
                if let Some((permit, since)) = self.permit.take_if(|_| incident == Incident::Unreachable) {
                    permit.failed(self.now() - since);
                    self.miners.tell_of_breakers();
                }
                self.miners.incident(&miner, incident, &why);
            }
            Action::Error(place, what) => self.miners.errors.report(ErrorClass::Rejected, place, &what),
            Action::Release => self.slot = None,
            Action::WaitUntilKnown => {
                if let Err(error) = self.job.as_ref()?.wait_until_known() {
                    let what = format_args!("job {}: {error}", self.uuid);
                    self.miners.errors.report(ErrorClass::Retry, "job-update", &what);
                }
            }
            Action::Report(status) => self.job.as_ref()?.report(status),
            Action::StreamingReady(details) => self.job.as_ref()?.streaming_ready(details),
            Action::RunsOn(miner) => {
                // One that goes on with the job of a lost worker may be asked again.
                lock(&self.miners.declines).forget(miner, self.uuid);
                lock(&self.miners.receipts).forget(miner, self.uuid);
                self.job.as_ref()?.runs_on(miner);
            }
            Action::MachineSpecs(specs) => self.job.as_ref()?.machine_specs(*specs),
            Action::End(outcome) => self.job.take()?.end(*outcome),
            Action::Cancelled => self.job.take()?.cancelled(),
            Action::Close => {
                self.permit = None;
                self.close();
            }
        }
        None
    }

    fn reserve(&mut self, same: Option<PublicKey>, avoid: &[PublicKey]) -> Result<MinerAddress, NoMiner> {
        let (miners, class) = (self.miners, self.class);
        let mut routing = lock(&miners.routing);
        let same = same.and_then(|miner| routing.reserve_again(&miner, class));
        let miner = same.map_or_else(
            || {
                let now = miners.clock().now();
                let is_open = |miner: &PublicKey| miners.breakers.refuses(miner, now).is_some();
                let ask = Ask { class, trusted: self.trusted, tried: avoid, is_open: &is_open };
                routing.reserve(&ask, now)
            },
            Ok,
        )?;
        self.slot = Some(MinerSlot { miners, hotkey: miner.hotkey, class });
        Ok(miner)
    }

    /// Has a connection to the miner, a kept one if there is one; gives what the drive has to know if there is none.
    /// Blocks as long as the drive has time for it.
    fn connect(&mut self, miner: &MinerAddress) -> Option<Input> {
        let deadline = self.drive.next_wake()?;
        let (mut backoff, mut rng, clock) = (Backoff::new(BACKOFF), Rng::from_entropy(), self.miners.clock());
        loop {
            let error = match self.miners.connections.acquire(miner, deadline, self.cancel) {
                Ok(mut lease) => {
                    let number = self.miners.next_link.fetch_add(1, Ordering::Relaxed);
                    let dialer = self.miners.connections.dialer();
                    let open = lease.take()?;
                    self.client = Some(MinerClient::start_on(miner, dialer, number, open));
                    (self.lease, self.miner, self.clean) = (Some(lease), Some(miner.clone()), true);
                    return None;
                }
                Err(error) => error,
            };
            if self.cancel.is_cancelled() {
                return Some(self.cancelled());
            }
            let delay = backoff.next_delay(clock.now(), rng.unit());
            let ExchangeError { why, refused, cut, .. } = error;
            let class = if refused { ErrorClass::Rejected } else { ErrorClass::Reconnect };
            let what = format_args!("job {}: miner {}: {why}", self.uuid, miner.hotkey);
            self.miners.errors.report(class, "miner-link", &what);
            // Somebody is there: another attempt is worth it while there is time, and while not all miners need one.
            if !cut || clock.now() + delay >= deadline || !self.miners.budget.withdraw(clock.now()) {
                return Some(Input::ConnectFailed { why, refused, cut: false });
            }
            let _waiting = waiting("its next try to connect", Some(clock.now() + delay));
            if clock.wait(self.cancel, Level::Cancel, delay) {
                return Some(self.cancelled());
            }
        }
    }

    fn cancelled(&self) -> Input {
        Input::Cancel { goes_on: self.job.as_ref().is_some_and(|job| job.goes_on()) }
    }

    /// Sends what is left for the miner, and keeps the connection for the next job; if something of this one may still
    /// be on its way, it ends instead. A miner that does not close in time is not the job's trouble.
    fn close(&mut self) {
        let Some(client) = self.client.take() else { return };
        let (lease, slot) = (self.lease.take(), self.miner.take());
        // Whoever cancels the job waits for it, and no longer than a stop does for what it cancels.
        let mut stopping = Stopping::new(self.cancel).with_cancel_budget(CLOSE_TIME);
        // With the job's end reported, only this thread waits.
        let time = if self.job.is_none() && client.is_ready() { RECEIPT_TIME } else { CLOSE_TIME };
        let key = &self.miners.connections.dialer().key;
        stopping.step("miner link", time, |step| match (lease, slot) {
            (Some(lease), Some(miner)) if self.clean => {
                if let Some(open) = client.give_back(&miner, key, step) {
                    lease.give_back(open);
                }
            }
            _ => client.stop_in(step),
        });
        let report = stopping.finish();
        if !report.is_clean() {
            let what = format_args!("job {}: its end: {report}", self.uuid);
            self.miners.errors.report(ErrorClass::Rejected, "miner-link", &what);
        }
    }
}

/// A job counts against its miner until this is dropped, also by a panic.
struct MinerSlot<'a> {
    miners: &'a Miners,
    hotkey: PublicKey,
    class: ExecutorClass,
}

impl Drop for MinerSlot<'_> {
    fn drop(&mut self) {
        lock(&self.miners.routing).release(&self.hotkey, self.class);
    }
}
