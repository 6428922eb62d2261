//! The facilitator: takes jobs from users over HTTP, gives them to validators over WebSocket, and keeps their histories.
//!
//! Start → `fac-store` (the database), `fac-route` (the loop), `fac-accept` and two threads for each validator, `fac-http`
//! and one for each HTTP client. Stop → the same in the reverse order, see [`Facilitator::stop`].
//!
//! * [`router`]: who is connected, which job goes where, what is answered. Pure.
//! * [`answers`]: the texts of the answers. Pure.
//! * `route`: the loop around the router.
//! * [`storage`]: the thread that owns the database.
//! * [`api`]: the HTTP job API.
//!
//! Where we differ from the Python facilitator, on purpose: a malformed authentication is answered with
//! `auth.signature_invalid` and close 3000 (there the TCP connection drops); a wrong path gets HTTP 404 (there 500); a status
//! that is odd in any way (an uuid that is none, NUL in its details) is answered and never ends a session (D-22); a job goes
//! to one session, not to all (D-21); a session that does not authenticate is closed after a while; a job that no validator
//! takes up, or that a validator has taken up and says nothing of for longer than the job may take, ends as `horde_failed`,
//! with `reported_by: facilitator` and `reason: generic_error` in its details.

pub mod answers;
pub mod api;
mod changes;
mod meters;
mod route;
pub mod router;
pub mod storage;
mod waiting;

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Sender, bounded};
use serde_json::{Value, json};

use self::api::Api;
use self::api::token::Tokens;
use self::changes::Changes;
use self::meters::Meters;
use self::route::{Event, Route};
use self::router::{Dispatch, Router, RouterConfig};
use self::storage::{CallError, StoreHandle};
use self::waiting::{Ticket, Waiting};
use crate::base::limits::{FACILITATOR_LINK_MESSAGE_BYTES, ROLE_EVENTS};
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::Stopping;
use crate::base::thread::Thread;
use crate::base::timer::TimerHandle;
use crate::identity::PublicKey;
use crate::link::{OutboxLimits, Server, ServerConfig};
use crate::net::http::pages::pages;
use crate::net::http::{HttpLimits, HttpRequest, HttpResponse, HttpServer};
use crate::ops::health::Health;
use crate::ops::status::{Board, Frame};
use crate::protocol::{DateTime, FacilitatorToValidator};
use crate::store::StoreError;
use crate::store::jobs::{JobStore, NewJob, SpecsRow};
use crate::transport::{HandshakeRequest, Listener, Refusal, SocketLimits};

/// Where validators connect.
pub const VALIDATOR_PATH: &str = "/ws/v0/";

/// Close code of a stop (RFC 6455: going away).
const CLOSE_GOING_AWAY: u16 = 1001;

/// Messages and bytes that wait for one validator. All jobs that may wait at all (4,096 and 256 MiB) fit, with their answers.
const VALIDATOR_OUTBOX: OutboxLimits = OutboxLimits { messages: 16_384, bytes: 320 << 20, window: 16_384 };

/// Time budgets of a stop, step by step: 5 s of users, 1 s, 5 s of answers, 5 s of validators, 5 s of disk.
const STOP_STEPS: [Duration; 5] = [
    Duration::from_secs(5),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(5),
    Duration::from_secs(5),
];

/// What a facilitator needs besides its listeners.
#[derive(Debug, Clone)]
pub struct FacilitatorConfig {
    /// Who may connect as a validator.
    pub validators: Vec<PublicKey>,
    /// Who may submit jobs.
    pub users: Vec<PublicKey>,
    /// Where the database (`facilitator.db`) and the secret of the tokens (`jwt.secret`) are.
    pub state_dir: PathBuf,
    /// A session without a heartbeat for longer gets no jobs (W-04: 3 minutes).
    pub heartbeat_limit: Duration,
    /// A job of which its validator has said nothing for so long ends as `horde_failed`.
    pub received_limit: Duration,
    /// A job that was received ends as `horde_failed` when nothing was heard of it for so long beyond its own limits and
    /// the start of its executor.
    pub silence_margin: Duration,
    /// A validator connection that has not authenticated for so long is closed.
    pub auth_limit: Duration,
    /// How long a user's token is good.
    pub token_time: Duration,
    /// HTTP connections at a time; three quarters of them may wait for news of a job.
    pub http_connections: usize,
}

impl FacilitatorConfig {
    /// The default numbers: 3 min, 60 s, 5 min, 60 s, 1 h, 256 connections; nobody may do anything yet.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            validators: Vec::new(),
            users: Vec::new(),
            state_dir: state_dir.into(),
            heartbeat_limit: Duration::from_secs(180),
            received_limit: Duration::from_secs(60),
            silence_margin: Duration::from_secs(300),
            auth_limit: Duration::from_secs(60),
            token_time: Duration::from_secs(3600),
            http_connections: 256,
        }
    }

    /// All problems of the configuration, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.validators.is_empty() {
            problems.push("there is no validator; name at least one by its SS58 address".to_owned());
        }
        if self.users.is_empty() {
            problems.push("there is no user; name at least one by its SS58 address".to_owned());
        }
        if !(4..=1000).contains(&self.http_connections) {
            problems.push(format!("http_connections is {}; it should be from 4 to 1000", self.http_connections));
        }
        for (name, limit) in [
            ("heartbeat_limit", self.heartbeat_limit),
            ("received_limit", self.received_limit),
            ("silence_margin", self.silence_margin),
            ("auth_limit", self.auth_limit),
        ] {
            if limit.is_zero() {
                problems.push(format!("{name} is 0; it should be some seconds"));
            }
        }
        problems
    }
}

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

/// A running facilitator. Dropping it without [`Facilitator::stop`] breaks all connections.
pub struct Facilitator {
    // In the order in which they may be dropped: each uses those behind it.
    http: HttpServer,
    server: Server,
    route: Thread<()>,
    store_thread: Thread<()>,
    ws_url: String,
    events: Sender<Event>,
    store: StoreHandle,
    users: Arc<Mutex<HashSet<PublicKey>>>,
    router: Arc<Mutex<Router<Ticket>>>,
    health: Health,
    stop: Shutdown,
}

impl std::fmt::Debug for Facilitator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Facilitator").field("ws_url", &self.ws_url).field("http", &self.http).finish_non_exhaustive()
    }
}

impl Facilitator {
    /// The longest that [`Facilitator::stop`] takes, the sum of its steps.
    pub const STOP_BUDGET: Duration = Duration::from_secs(21);

    /// Opens the database and starts all threads; jobs that no validator has taken up before a restart are sent again, and
    /// those that have not ended are watched again.
    ///
    /// Blocks on the disk only.
    ///
    /// # Errors
    /// See [`FacilitatorError`].
    pub fn start(
        config: FacilitatorConfig,
        listener: Box<dyn Listener>,
        http: TcpListener,
        timer: TimerHandle,
    ) -> Result<Self, FacilitatorError> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(FacilitatorError::Config(problems));
        }
        let store = JobStore::open(&config.state_dir.join("facilitator.db"))?;
        let path = config.state_dir.join("jwt.secret");
        let tokens =
            Tokens::load(&path, config.token_time).map_err(|source| FacilitatorError::Secret { path, source })?;
        let (board, stop) = (Board::new(), Shutdown::new());
        let Board { health, metrics, .. } = board.clone();
        let (changes, waiting) = (Changes::default(), Waiting::default());

        let limits = RouterConfig {
            heartbeat_limit: config.heartbeat_limit,
            received_limit: config.received_limit,
            silence_margin: config.silence_margin,
            auth_limit: config.auth_limit,
        };
        let mut router = Router::new(limits, config.validators);
        for job in store.unreceived()? {
            send_again(&mut router, &waiting, job);
        }
        for (job, last_at) in store.received()? {
            watch_again(&mut router, job, last_at);
        }
        let router = Arc::new(Mutex::new(router));

        let (stored_tx, stored) = bounded(ROLE_EVENTS);
        let (store, store_thread) = storage::start(store, stored_tx, changes.clone(), &stop, &health, &metrics);
        let (events, event_queue) = route::queue();
        let route = Route {
            router: router.clone(),
            store: store.clone(),
            stored,
            stop: stop.clone(),
            health: health.clone(),
            meters: Meters::new(&metrics),
        };
        let route = route.start(event_queue);

        let ws_url = listener.url();
        let sink = route::sink(events.clone());
        let server = Server::start(server_config(), listener, timer.clone(), Arc::new(accept_path), sink);

        let users = Arc::new(Mutex::new(config.users.into_iter().collect::<HashSet<_>>()));
        let submissions = |result| {
            metrics.counter("phalanx_facilitator_submissions_total", "Jobs posted by users, by result.", result)
        };
        let api = Api {
            store: store.clone(),
            events: events.clone(),
            router: router.clone(),
            changes,
            tokens: Mutex::new(tokens),
            users: users.clone(),
            waiting,
            waiters: AtomicUsize::new(0),
            waiters_max: config.http_connections / 4 * 3,
            waiting_requests: metrics.gauge(
                "phalanx_facilitator_waiting_requests",
                "HTTP requests that wait for news of a job.",
                &[],
            ),
            submitted: submissions(&[("result", "accepted")]),
            refused: submissions(&[("result", "refused")]),
        };
        let shown = router.clone();
        let frame = Frame {
            role: "facilitator",
            since: Instant::now(),
            board,
            stop: stop.clone(),
            timer: timer.clone(),
            look: Box::new(move |_, _| snapshot(&shown)),
        };
        let pages = pages(frame);
        let handler =
            move |request: &HttpRequest| -> HttpResponse { pages(request).unwrap_or_else(|| api.answer(request)) };
        let limits = HttpLimits { connections: config.http_connections, ..HttpLimits::default() };
        let http = HttpServer::start("fac", http, Arc::new(handler), limits).map_err(FacilitatorError::Http)?;
        log::info!("facilitator: validators at {ws_url}{VALIDATOR_PATH}, users at http://{}", http.local_addr());
        Ok(Self { http, server, route, store_thread, ws_url, events, store, users, router, health, stop })
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
        self.http.local_addr()
    }

    /// What is up.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Validator connections, jobs that wait for their validator: as `/status.json` shows them under `details`.
    pub fn snapshot(&self) -> Value {
        snapshot(&self.router)
    }

    /// The newest specs that validators reported of each miner. Blocks on the disk, at most ten seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn specs(&self) -> Result<Vec<SpecsRow>, CallError> {
        self.store.specs()
    }

    /// From now on these validators and users are known; connections of validators that are no longer are closed with 3001.
    pub fn reload(&self, validators: Vec<PublicKey>, users: Vec<PublicKey>) {
        *lock(&self.users) = users.into_iter().collect();
        // Fails only when the loop has ended, and then nobody is connected.
        let _ = self.events.send(Event::SetValidators(validators));
    }

    /// Stops in order: users (requests in work are answered), new connections, the answers that validators are owed,
    /// their connections (close 1001), then the loop and the database. At most 21 s, less when `stopping` is cancelled.
    pub fn stop(self, stopping: &mut Stopping) {
        let [http_time, accept_time, answer_time, session_time, disk_time] = STOP_STEPS;
        let Self { http, mut server, route, store_thread, events, stop, .. } = self;
        stopping.step("facilitator http", http_time, |step| http.stop(step));
        stopping.step("facilitator accept", accept_time, |step| server.stop_accepting(step));
        stopping.step("facilitator answers", answer_time, |step| {
            route::settle(&events, step.deadline(), step.shutdown());
        });
        stopping.step("facilitator sessions", session_time, |step| {
            server.stop(step, CLOSE_GOING_AWAY, "the facilitator is stopping");
        });
        stopping.step("facilitator loop", disk_time, |step| {
            stop.cancel();
            step.join(route);
            step.join(store_thread);
        });
    }
}

fn server_config() -> ServerConfig {
    let mut config = ServerConfig::new("fac");
    config.socket = SocketLimits {
        message_bytes: FACILITATOR_LINK_MESSAGE_BYTES,
        frame_bytes: FACILITATOR_LINK_MESSAGE_BYTES,
        ..SocketLimits::default()
    };
    config.outbox = VALIDATOR_OUTBOX;
    config
}

fn accept_path(request: &HandshakeRequest) -> Result<(), Refusal> {
    if request.path == VALIDATOR_PATH {
        return Ok(());
    }
    Err(Refusal { status: 404, body: format!("validators connect to {VALIDATOR_PATH}\n") })
}

/// Takes up a job of before the restart that no validator has received, with a new time limit.
fn send_again(router: &mut Router<Ticket>, waiting: &Waiting, job: NewJob) {
    let Some((validator, job_time)) = validator_and_time(&job) else { return };
    let NewJob { uuid, request: text, .. } = job;
    let ticket = waiting.enter_anyway(text.len());
    router.dispatch(Instant::now(), Dispatch { uuid, validator, text, job_time, ticket });
}

/// Takes up a job of before the restart that a validator has received, last heard of at `last_at`.
fn watch_again(router: &mut Router<Ticket>, job: NewJob, last_at: i64) {
    let Some((validator, job_time)) = validator_and_time(&job) else { return };
    let silent = DateTime::from(SystemTime::now()).unix_micros().saturating_sub(last_at);
    // A clock that was set back counts as no silence.
    let silent = Duration::from_micros(u64::try_from(silent).unwrap_or(0));
    router.resume(Instant::now(), job.uuid, validator, job_time, silent);
}

fn validator_and_time(job: &NewJob) -> Option<(PublicKey, Duration)> {
    let uuid = &job.uuid;
    let validator = PublicKey::from_ss58(&job.validator);
    let validator = validator.inspect_err(|error| log::error!("job {uuid} cannot be taken up again: {error}")).ok()?;
    match FacilitatorToValidator::decode(&job.request) {
        Ok(FacilitatorToValidator::V2JobRequest(request)) => Some((validator, router::job_time(&request))),
        _ => {
            log::error!("job {uuid} cannot be taken up again: what is stored of it is no job request");
            None
        }
    }
}

fn snapshot(router: &Mutex<Router<Ticket>>) -> Value {
    let router = lock(router);
    let sessions = router.sessions(Instant::now());
    let sessions: Vec<Value> = sessions
        .iter()
        .map(|session| {
            json!({
                "validator": session.validator.map(|key| key.to_ss58()),
                "peer": session.peer,
                "version": session.version,
                "age_seconds": session.age.as_secs(),
                "heartbeat_seconds_ago": session.since_heartbeat.as_secs(),
                "live": session.live,
            })
        })
        .collect();
    json!({ "waiting_jobs": router.waiting_jobs(), "sessions": sessions })
}
