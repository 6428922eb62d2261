//! The start and the stop of a facilitator, all steps in order.
//!
//! Start → `fac-store` (the database), `fac-audit`, `fac-route` (the router), `fac-accept` and two threads for each
//! validator, `fac-http` and one for each HTTP client. Stop → the users first, the database last, see
//! [`Facilitator::stop`].

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use serde_json::{Value, json};

use super::api::token::Tokens;
use super::api::{Api, Budget};
use super::audit;
use super::changes::Changes;
use super::config::{self, FacilitatorConfig, VALIDATOR_PATH};
use super::disk::{self, Bounds, CallError, StoreHandle};
use super::meters::Meters;
use super::router::{self, Dispatch, Input, Router, RouterStatus};
use super::router_thread::{self, Event, NewValidators, RouterThread};
use super::waiting::{Ticket, Waiting};
use crate::base::clock::now;
use crate::base::io::may_pass;
use crate::base::limits::{FACILITATOR_LINK_MESSAGE_BYTES, ROLE_EVENTS};
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{StopReport, Stopping, drop_role};
use crate::base::thread::Thread;
use crate::base::timer::TimerHandle;
use crate::identity::PublicKey;
use crate::link::server::StrangerLimits;
use crate::link::{Buckets, OutboxLimits, Rate, Server, ServerConfig, recorder};
use crate::net::http::pages::pages_for;
use crate::net::http::{HttpLimits, HttpListener, HttpRequest, HttpResponse, HttpServer, guarded};
use crate::ops::errors::ErrorClass;
use crate::ops::health::Health;
use crate::ops::jobs::{JobFacts, JobMetrics, Viewer};
use crate::ops::status::{Board, Frame};
use crate::protocol::{FacilitatorToValidator, ValidatorToFacilitator, kind_of};
use crate::store::StoreError;
use crate::store::audit::AuditLog;
use crate::store::jobs::{JobStore, NewJob, SENT, SpecsRow};
use crate::transport::counted::counted_listener;
use crate::transport::{HandshakeRequest, Listener, MessageTypes, PeerMeters, Refusal, SocketLimits};

/// Messages and bytes that wait for one validator. All jobs that may wait at all (4,096 and 256 MiB) fit, with their
/// answers.
const VALIDATOR_OUTBOX: OutboxLimits = OutboxLimits { messages: 16_384, bytes: 320 << 20, window: 16_384 };

/// Seconds of a stop, step by step: users, accepting, answers and the router, validators, disk.
const STOP_STEPS: [u64; 5] = [5, 1, 5, 5, 5];

/// The facilitator cannot start; whatever had been started was stopped again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FacilitatorError {
    /// Problems of the configuration.
    #[error("facilitator: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The database cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file with the secret of the tokens cannot be used.
    #[error("{path}: {source}")]
    Secret {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The HTTP listener has no address.
    #[error("http listener: {0}")]
    Http(#[source] std::io::Error),
}

impl FacilitatorError {
    /// Whether the same start may succeed later without a change of the settings.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Config(_) => false,
            Self::Store(error) => error.may_pass(),
            Self::Secret { source, .. } | Self::Http(source) => may_pass(source),
        }
    }
}

/// The metrics of connections.
const CONNECTIONS: (&str, &str) = ("phalanx_facilitator_connections", "phalanx_facilitator_refused_connections_total");

/// A running facilitator. Dropping it stops it as a stop that is cancelled at once.
pub struct Facilitator {
    /// Taken by the stop.
    parts: Option<FacilitatorParts>,
    ws_url: String,
    http_addr: SocketAddr,
    events: Sender<Event>,
    store: StoreHandle,
    known: NewValidators,
    users: Arc<Mutex<HashSet<PublicKey>>>,
    status: Arc<Mutex<RouterStatus>>,
    health: Health,
}

/// Changes who is known to a running facilitator; clones are the same.
#[derive(Debug, Clone)]
pub struct Reloader {
    validators: NewValidators,
    users: Arc<Mutex<HashSet<PublicKey>>>,
    events: Sender<Event>,
}

impl Reloader {
    /// From now on these validators and users are known: connections of validators that are no longer are closed with
    /// 3001, and users that are no longer are refused. Never blocks.
    ///
    /// # Errors
    /// [`FacilitatorError::Config`] without a validator or a user; nothing is changed.
    pub fn reload(&self, validators: Vec<PublicKey>, users: Vec<PublicKey>) -> Result<(), FacilitatorError> {
        let problems = config::nobody(&validators, &users);
        if !problems.is_empty() {
            return Err(FacilitatorError::Config(problems));
        }
        *lock(&self.users) = users.into_iter().collect();
        *lock(&self.validators) = Some(validators);
        // A full queue wakes the router as well; and once that has ended, nobody is connected.
        let _ = self.events.try_send(Event::Reloaded);
        Ok(())
    }
}

/// What a stop ends.
struct FacilitatorParts {
    router: Thread<()>,
    disk: Thread<()>,
    audit: Thread<()>,
    server: Server,
    http: HttpServer,
    stop: Shutdown,
}

impl std::fmt::Debug for Facilitator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { ws_url, http_addr, .. } = self;
        f.debug_struct("Facilitator").field("ws_url", ws_url).field("http_addr", http_addr).finish_non_exhaustive()
    }
}

impl Facilitator {
    /// The longest that [`Facilitator::stop`] takes, the sum of its steps.
    pub const STOP_BUDGET: Duration = {
        let [users, accept, answers, sessions, disk] = STOP_STEPS;
        Duration::from_secs(users + accept + answers + sessions + disk)
    };

    /// Opens the database and starts all threads; jobs that no validator has taken up before a restart are sent again,
    /// and those that have not ended are watched again.
    ///
    /// Blocks on the disk only.
    ///
    /// # Errors
    /// See [`FacilitatorError`].
    pub fn start(
        config: FacilitatorConfig,
        listener: Box<dyn Listener>,
        http: impl Into<HttpListener>,
        timer: TimerHandle,
    ) -> Result<Self, FacilitatorError> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(FacilitatorError::Config(problems));
        }
        let store = JobStore::open(&config.state_dir)?;
        let audit = AuditLog::open(&config.state_dir)?;
        let path = config.state_dir.join("jwt.secret");
        let tokens =
            Tokens::load(&path, config.token_time).map_err(|source| FacilitatorError::Secret { path, source })?;
        let (board, stop) = (config.board.clone(), Shutdown::new());
        let Board { health, metrics, .. } = board.clone();
        let (changes, waiting) = (Changes::default(), Waiting::default());

        let mut router = Router::new(config.router(), config.validators);
        board.jobs.measure(&metrics, JOB_METRICS, &OUTCOMES);
        let unreceived = store.unreceived()?.into_iter().filter_map(|job| send_again(&waiting, &board, job));
        let received = store.received()?.into_iter().filter_map(|(job, last_at)| watch_again(&board, job, last_at));
        // One moment for all, so that none is due before the loop runs.
        let start = now();
        for input in unreceived.chain(received) {
            // Nobody is connected and nothing is due yet, so there is nothing to do.
            router.handle(input, start);
        }
        let status = Arc::new(Mutex::new(router.status()));

        let (stored_tx, stored) = bounded(ROLE_EVENTS);
        let bounds = Bounds { quota: config.user_quota, keep: config.keep };
        let (store, disk) = disk::start(store, bounds, stored_tx, changes.clone(), &stop, &board);
        let (audit, audit_thread) = audit::start(audit, &board);
        let (events, event_queue) = router_thread::queue();
        let known = NewValidators::default();
        let router = RouterThread {
            router,
            events: event_queue,
            store: store.clone(),
            stored,
            status: status.clone(),
            stop: stop.clone(),
            health: health.clone(),
            errors: board.errors.clone(),
            meters: Meters::new(&metrics),
            audit,
            known: known.clone(),
        };
        let router = router.start();

        let ws_url = listener.url();
        let sink = router_thread::sink(events.clone(), config.rates, board.clone());
        let sent = MessageTypes { names: FacilitatorToValidator::TYPES, untyped: "Response", type_of: kind_of };
        let received = MessageTypes::of(ValidatorToFacilitator::TYPES, kind_of);
        let meters = PeerMeters::new(&metrics, "validator", sent, received);
        let listener = counted_listener(listener, Arc::new(move |_| Some(meters.clone())));
        let places = server_config(config.auth_limit, config.connections, config.connects);
        let server = Server::start(
            ServerConfig { health: health.clone(), errors: board.errors.clone(), ..places },
            listener,
            timer.clone(),
            Arc::new(accept_path),
            sink,
        );

        let users = Arc::new(Mutex::new(config.users.into_iter().collect::<HashSet<_>>()));
        let submissions = |result| {
            metrics.counter("phalanx_facilitator_submissions_total", "Jobs posted by users, by result.", result)
        };
        let over = |reason| {
            let labels = &[("reason", reason)];
            metrics.counter("phalanx_facilitator_users_over_total", "Requests beyond what a user may have.", labels)
        };
        let http: HttpListener = http.into();
        let api = Arc::new(Api {
            shown: board.jobs.clone(),
            scheme: http.scheme(),
            store: store.clone(),
            events: events.clone(),
            status: status.clone(),
            changes,
            tokens: Mutex::new(tokens),
            users: users.clone(),
            waiting,
            budget: Budget::default(),
            rates: Mutex::new(Buckets::new(config.user_rate)),
            quota: config.user_quota,
            operators: config.operators,
            hold_jobs: config.hold_jobs,
            waiters: AtomicUsize::new(0),
            waiters_max: config.http_connections / 4 * 3,
            waiting_requests: metrics.gauge(
                "phalanx_facilitator_waiting_requests",
                "HTTP requests that wait for news of a job.",
                &[],
            ),
            submitted: submissions(&[("result", "accepted")]),
            refused: submissions(&[("result", "refused")]),
            over_quota: over("quota"),
            over_rate: over("rate"),
        });
        let (shown, queues) = (status.clone(), (events.clone(), store.clone()));
        let (places, connections) = (server.places(), server.connections());
        let frame = Frame {
            role: "facilitator",
            since: Instant::now(),
            board: board.clone(),
            stop: stop.clone(),
            timer: timer.clone(),
            look: Box::new(move |_, metrics| {
                let (router, store) = &queues;
                for (place, depth) in [("router", router.len()), ("store", store.queue().len())] {
                    let help = "Events and requests that wait for the router's or the database's thread, of 1,024.";
                    metrics.gauge("phalanx_facilitator_queue", help, &[("place", place)]).set(depth);
                }
                places.measure(metrics, CONNECTIONS);
                connections.measure(metrics, "phalanx_facilitator_round_trip_seconds");
                // Made of a copy: the router waits for the lock.
                let copy = lock(&shown).clone();
                let mut shown = snapshot(&copy);
                shown["connections"] = places.counts().json();
                shown
            }),
        };
        let viewers = api.clone();
        let pages = pages_for(frame, Box::new(move |request| viewers.viewer(request)));
        let handler = move |request: &HttpRequest| -> HttpResponse {
            pages(request).or_else(|| links(&api, request)).unwrap_or_else(|| api.answer(request))
        };
        let (connections, requests) = (config.http_connections, config.http_requests);
        let limits = HttpLimits { connections, requests, ..HttpLimits::default() };
        let handler = guarded(config.http_names, Arc::new(handler));
        let http = HttpServer::start("fac", http, handler, limits, &board).map_err(FacilitatorError::Http)?;
        let http_addr = http.local_addr();
        log::info!("facilitator: validators at {ws_url}{VALIDATOR_PATH}, users at {}", http.url());
        let parts = Some(FacilitatorParts { router, disk, audit: audit_thread, server, http, stop });
        Ok(Self { parts, ws_url, http_addr, events, store, known, users, status, health })
    }

    /// Where validators connect, as `127.0.0.1:1234`.
    pub fn ws_addr(&self) -> &str {
        self.ws_url.split_once("://").map_or(&self.ws_url, |(_, address)| address)
    }

    /// Where validators connect, with the scheme and without the path.
    pub fn ws_url(&self) -> &str {
        &self.ws_url
    }

    /// Where users connect.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// What is up.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Validator connections, jobs that wait for their validator: as `/status.json` shows them under `details`.
    pub fn snapshot(&self) -> Value {
        snapshot(&lock(&self.status).clone())
    }

    /// The newest specs that validators reported of each miner. Blocks on the disk, at most ten seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn specs(&self) -> Result<Vec<SpecsRow>, CallError> {
        self.store.specs()
    }

    /// Changes who is known while it runs.
    pub fn reloader(&self) -> Reloader {
        Reloader { validators: self.known.clone(), users: self.users.clone(), events: self.events.clone() }
    }

    /// Stops it alone, within `budget`, as [`Facilitator::stop_in`] does; what is left then is cancelled.
    pub fn stop(self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::within(budget);
        self.stop_in(&mut stopping);
        stopping.finish()
    }

    /// Stops in order: users (requests in work are answered), new connections, the answers that validators are owed and
    /// the router, their connections (close 1001), then the database. At most [`Facilitator::STOP_BUDGET`], less when
    /// `stopping` is cancelled.
    pub fn stop_in(mut self, stopping: &mut Stopping) {
        self.end(stopping);
    }

    fn end(&mut self, stopping: &mut Stopping) {
        let Some(FacilitatorParts { router, disk, audit, mut server, http, stop }) = self.parts.take() else { return };
        let [http_time, accept_time, answer_time, session_time, disk_time] = STOP_STEPS.map(Duration::from_secs);
        stopping.step("facilitator http", http_time, |step| http.stop_in(step));
        stopping.step("facilitator accept", accept_time, |step| server.stop_accepting(step));
        stopping.step("facilitator answers", answer_time, |step| {
            router_thread::settle(&self.events, step.deadline(), step.shutdown());
            // Before the connections: their threads may wait for it to take something.
            stop.cancel();
            step.join(router);
        });
        stopping.step("facilitator sessions", session_time, |step| {
            server.stop_in(step, "the facilitator is stopping");
        });
        stopping.step("facilitator database", disk_time, |step| {
            step.join(disk);
            step.join(audit);
        });
    }
}

impl Drop for Facilitator {
    fn drop(&mut self) {
        if self.parts.is_some() {
            drop_role("a facilitator", |stopping| self.end(stopping));
        }
    }
}

/// What is counted of jobs.
const JOB_METRICS: JobMetrics = JobMetrics {
    ended: Some("phalanx_facilitator_jobs_ended_total"),
    stages: Some("phalanx_facilitator_job_stage_seconds"),
};

/// How jobs end.
const OUTCOMES: [&str; 4] = ["completed", "failed", "rejected", "horde_failed"];

/// What the links have carried, which operators see: it names peers and where they are.
fn links(api: &Api, request: &HttpRequest) -> Option<HttpResponse> {
    if request.path != recorder::PATH {
        return None;
    }
    match api.viewer(request) {
        Ok(Viewer::Operator) => recorder::page(request),
        Ok(_) => Some(HttpResponse::text(403, "this page is for operators, see --operators\n")),
        Err(refusal) => Some(refusal),
    }
}

/// The stage of a job that had come further before the restart.
const RESTORED: &str = "restored";

fn server_config(auth_limit: Duration, connections: usize, connects: Rate) -> ServerConfig {
    let mut config = ServerConfig::new("fac");
    config.places.total = connections;
    config.places.connects = connects;
    config.strangers = Some(StrangerLimits::of_role(auth_limit));
    config.socket = SocketLimits {
        message_bytes: FACILITATOR_LINK_MESSAGE_BYTES,
        frame_bytes: FACILITATOR_LINK_MESSAGE_BYTES,
        ..SocketLimits::default()
    };
    config.receiving_bytes = 4 * FACILITATOR_LINK_MESSAGE_BYTES;
    config.outbox = VALIDATOR_OUTBOX;
    config
}

fn accept_path(request: &HandshakeRequest) -> Result<(), Refusal> {
    if request.path == VALIDATOR_PATH {
        return Ok(());
    }
    Err(Refusal { status: 404, body: format!("validators connect to {VALIDATOR_PATH}\n"), retry_after: None })
}

/// A job of before the restart that no validator has received goes out again, with a new time limit.
fn send_again(waiting: &Waiting, board: &Board, job: NewJob) -> Option<Input<Ticket>> {
    let (validator, job_time) = known_again(board, &job, SENT)?;
    let NewJob { uuid, request: text, .. } = job;
    let ticket = waiting.enter_anyway(text.len());
    Some(Input::Dispatch(Dispatch { uuid, validator, text, job_time, ticket }))
}

/// A job of before the restart that a validator has received, last heard of at `last_at`, is watched again.
fn watch_again(board: &Board, job: NewJob, last_at: i64) -> Option<Input<Ticket>> {
    let (validator, job_time) = known_again(board, &job, RESTORED)?;
    let silent = now().unix_micros().saturating_sub(last_at);
    // A clock that was set back counts as no silence.
    let silent_for = Duration::from_micros(u64::try_from(silent).unwrap_or(0));
    Some(Input::Resume { uuid: job.uuid, validator, job_time, silent_for })
}

/// Shows a job of before the restart; gives its validator, and how long it may take.
fn known_again(board: &Board, job: &NewJob, stage: &'static str) -> Option<(PublicKey, Duration)> {
    let uuid = &job.uuid;
    let trouble = |why: &dyn std::fmt::Display| {
        let what = format_args!("job {uuid} cannot be taken up again: {why}");
        board.errors.report(ErrorClass::Rejected, "earlier-jobs", &what);
    };
    let validator = PublicKey::from_ss58(&job.validator).inspect_err(|error| trouble(error)).ok()?;
    match FacilitatorToValidator::decode(&job.request) {
        Ok(FacilitatorToValidator::V2JobRequest(request)) => {
            let namespace = request.job_namespace.as_deref().unwrap_or_default();
            let (class, tag) = (request.executor_class.as_str(), if job.tag.is_empty() { namespace } else { &job.tag });
            board.jobs.begin(uuid.as_str(), JobFacts { peer: &job.validator, class, tag, user: &job.user }, stage);
            Some((validator, router::job_time(&request)))
        }
        _ => {
            trouble(&"what is stored of it is no job request");
            None
        }
    }
}

fn snapshot(status: &RouterStatus) -> Value {
    let now = Instant::now();
    let seconds = |since: Instant| now.saturating_duration_since(since).as_secs();
    let sessions: Vec<Value> = status
        .sessions
        .iter()
        .map(|session| {
            json!({
                "validator": session.validator.map(|key| key.to_ss58()),
                "peer": &*session.peer,
                "version": &*session.version,
                "age_seconds": seconds(session.opened),
                "heartbeat_seconds_ago": seconds(session.heartbeat),
                "live": session.is_live(now),
            })
        })
        .collect();
    let live: HashSet<PublicKey> =
        status.sessions.iter().filter(|session| session.is_live(now)).filter_map(|session| session.validator).collect();
    let mut away: Vec<Value> = status
        .validators
        .difference(&live)
        .map(
            |key| json!({ "validator": key.to_ss58(), "seen_seconds_ago": status.seen.get(key).copied().map(seconds) }),
        )
        .collect();
    away.sort_by_cached_key(|validator| validator["validator"].to_string());
    json!({ "waiting_jobs": status.waiting_jobs, "sessions": sessions, "away": away })
}
