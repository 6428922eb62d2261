//! What is outside of the settings: folders, ports, peers and their clocks, certificates. Each look has a limit.

use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::report::Report;
use crate::base::clock;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::timer::Timer;
use crate::facilitator::VALIDATOR_PATH;
use crate::identity::KeyPair;
use crate::net::http::client::HttpClient;
use crate::net::http::date::unix_seconds;
use crate::net::tls::{day, facts_of};
use crate::ops::expiry::{Ends, Expiry};
use crate::ops::overview::words::bytes;
#[cfg(feature = "celery")]
use crate::redis::{Connection as RedisConnection, RedisConfig};
use crate::store::FolderLock;
use crate::store::StoreError;
use crate::store::look::{FolderState, look, room};
use crate::transport::ws::WsDialer;
use crate::transport::{DialRequest, Dialer, SocketLimits, TransportError};
use crate::validator::MinerAddress;
use crate::validator::manifests::fetch::THREADS;
use crate::validator::manifests::{Fetched, Fetcher, MinerDialer};

/// What one look may take.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// Seconds by which two clocks may differ: a miner refuses an authentication that is 10 s off.
const CLOCKS_DIFFER: u64 = 5;

/// Bytes of free disk below which a check warns: a busy role writes as much in a day.
const SCARCE: u64 = 200 << 20;

fn soon() -> Instant {
    Instant::now() + LOOK_TIME
}

impl Report {
    /// Whether a state folder can be had; says whether a running process has it, which has the ports then, too.
    pub(super) fn folder(&mut self, folder: &Path, lock: &str) -> bool {
        let found = look(folder, lock).and_then(|found| FolderLock::look_for_others(folder, lock).map(|()| found));
        match found {
            Ok(state) => match (room(folder), folder.display()) {
                (Err(error), _) => self.wrong(format_args!("--state-dir: {error}")),
                (Ok(free), shown) if free < SCARCE => {
                    let free = bytes(free);
                    self.warn(format_args!("--state-dir: {shown}: only {free} are free there; a full disk stops all"));
                }
                (Ok(free), shown) => {
                    let absent = if state == FolderState::Absent { " is not there, and will be made" } else { "" };
                    self.ok(format_args!("--state-dir: {shown}{absent}; {} are free there", bytes(free)));
                }
            },
            Err(error @ StoreError::InUse { .. }) => {
                self.warn(format_args!("{error}; if that is this role, running, all is well: its ports are not tried"));
                return true;
            }
            Err(error) => self.wrong(error),
        }
        false
    }

    /// Whether an address can be listened on; it is free again at once.
    pub(super) fn port(&mut self, flag: &str, address: SocketAddr, as_said: impl Fn(std::io::Error) -> String) {
        if !self.has(flag) {
            return;
        }
        match TcpListener::bind(address) {
            Ok(_) => self.ok(format_args!("--{flag}: {address} is free")),
            Err(error) => self.wrong(as_said(error)),
        }
    }

    /// The certificate in a file, of this kind.
    pub(super) fn certificate(&mut self, flag: &str, kind: &'static str, file: Option<&Path>) {
        // What cannot be read, the settings' own check says.
        let file = file.filter(|file| file.is_file());
        let Some((file, facts)) = file.and_then(|file| Some((file, facts_of(file).ok()?))) else { return };
        let names = if facts.names.is_empty() { String::new() } else { format!(" for {},", facts.shown_names()) };
        let expiry = Expiry::new(kind, file.display().to_string(), Some(facts.not_after));
        match expiry.ends(clock::now().wall.as_secs()) {
            Some(Ends::Over(text) | Ends::Soon(text)) => self.warn(format_args!("--{flag}: {text}")),
            None => {
                let until = day(facts.not_after);
                self.ok(format_args!("--{flag}: {}{names} of {:?}, good until {until}", file.display(), facts.issuer));
            }
        }
    }

    /// Whether a facilitator takes connections, and how its clock goes. It is not told who we are, so a running
    /// validator with the same key keeps its session.
    pub(super) fn facilitator(&mut self, url: &str, dialer: &WsDialer, http: &HttpClient) {
        let request = DialRequest { url, headers: &[], limits: SocketLimits::default(), deadline: soon() };
        match dialer.dial(&request, &Shutdown::new(), Level::Drain) {
            Ok(connection) => {
                connection.kick.kick();
                self.ok(format_args!("facilitator: {url} takes connections"));
            }
            // The settings' own check says that.
            Err(TransportError::Url { .. }) => return,
            Err(error) => {
                let path = match error {
                    TransportError::Refused { .. } if !url.contains(VALIDATOR_PATH) => {
                        format!(" (validators connect to {VALIDATOR_PATH})")
                    }
                    _ => String::new(),
                };
                self.warn(format_args!("facilitator: {error}{path}; a validator dials it until it answers"));
                return;
            }
        }
        // The page of an address for WebSockets is a refusal, which has a date all the same.
        let page = url.replacen("ws", "http", 1);
        let asked = Instant::now();
        let answer = http.get(&page, &[], soon()).map_err(|error| error.to_string());
        let theirs = answer.and_then(|answer| {
            let date = answer.headers.iter().find(|(name, _)| name == "date").and_then(|(_, date)| unix_seconds(date));
            date.ok_or_else(|| "the facilitator does not say what time it is".to_owned())
        });
        match theirs {
            Ok(theirs) => self.clock("the facilitator", theirs, asked.elapsed()),
            Err(why) => self.ok(format_args!("clock: not compared: {why}")),
        }
    }

    /// What each miner says that is asked for its manifest, as a validator asks; all of them together within the time
    /// of one look.
    pub(super) fn miners(&mut self, key: KeyPair, miners: &[MinerAddress], dialer: WsDialer) {
        let timer = Timer::start();
        let dialer = MinerDialer { key, dialer: Arc::new(dialer), timer: timer.handle() };
        let ask =
            move |miner: &MinerAddress, until, stop: &Shutdown| dialer.manifest(miner, until, stop, Level::Cancel);
        let fetched = Fetcher::new(THREADS, ask).fetch(miners, soon(), &Shutdown::new());
        drop(timer.stop(LOOK_TIME));
        for Fetched { miner, manifest, error, .. } in fetched {
            let hotkey = miner.hotkey;
            match (manifest, error) {
                (Some(manifest), _) => {
                    let executors: u32 = manifest.executors.values().sum();
                    self.ok(format_args!("miner {hotkey}: takes this validator, offers {executors} executors"));
                }
                (None, Some(why)) => self.warn(format_args!("miner {hotkey}: {why}; it gets no job until it answers")),
                (None, None) => self.warn(format_args!("miner {hotkey}: not asked within {} s", LOOK_TIME.as_secs())),
            }
        }
    }

    /// How our clock differs from a peer's, which is in whole seconds and was true within the last `ago`.
    fn clock(&mut self, peer: impl Display, theirs: u64, ago: Duration) {
        let ours = clock::now().wall.as_secs();
        let (apart, word) = match ours.checked_sub(theirs) {
            Some(ahead) => (ahead.saturating_sub(ago.as_secs()), "ahead of"),
            None => (theirs - ours, "behind"),
        };
        match apart {
            0..=CLOCKS_DIFFER => self.ok(format_args!("clock: within {CLOCKS_DIFFER} s of that of {peer}")),
            apart => self.warn(format_args!(
                "clock: {apart} s {word} that of {peer}; set both by NTP: what is signed is refused when it seems 10 s \
                 off"
            )),
        }
    }

    /// Whether a Redis answers, and how its clock goes.
    #[cfg(feature = "celery")]
    pub(super) fn redis(&mut self, config: &RedisConfig) {
        let opened = RedisConnection::open(config, soon(), &Shutdown::new(), Level::Drain);
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(error) => return self.warn(format_args!("redis: {error}; it is dialled until it answers")),
        };
        self.ok(format_args!("redis: {} answers, version {}", connection.peer(), connection.version()));
        let asked = Instant::now();
        match connection.query::<(u64, u64)>(&redis::cmd("TIME")) {
            Ok((theirs, _)) => self.clock("Redis", theirs, asked.elapsed()),
            Err(error) => self.ok(format_args!("clock: not compared: {error}")),
        }
    }
}
