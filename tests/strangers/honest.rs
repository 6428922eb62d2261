//! Who belongs: it asks each 100 ms on a new connection, as often as it must until it is served.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::identity::{KeyPair, PublicKey};
use phalanx::net::dial::dial;
use phalanx::protocol::{V0AuthenticationRequest, ValidatorAuthForMiner, ValidatorToFacilitator, ValidatorToMiner};
use phalanx::transport::ws::WsDialer;
use phalanx::transport::{DialRequest, Dialer, Incoming, SocketLimits};

use crate::testkit::network::BOB;

/// Between two questions.
const EACH: Duration = Duration::from_millis(100);

/// Between two tries of one question.
const AGAIN: Duration = Duration::from_millis(10);

/// After which a try counts as failed.
const TRY: Duration = Duration::from_millis(2500);

/// The validator's key.
pub fn key() -> KeyPair {
    KeyPair::from_uri("//Dave").unwrap()
}

/// What it asks.
#[derive(Debug, Clone, Copy)]
pub enum Honest {
    /// `/healthz` and `/status.json`, in turn.
    Reader,
    /// To be taken as a validator by a facilitator.
    OfFacilitator,
    /// The same by a miner.
    OfMiner,
}

impl Honest {
    /// How long a question takes while nobody else asks: the longest of three.
    pub fn quietly(self, address: SocketAddr) -> Duration {
        let took = |nth| {
            let begun = Instant::now();
            assert!(self.ask(address, nth), "{self:?} is not served though nobody else asks");
            begun.elapsed()
        };
        (0..3).map(took).max().unwrap_or_default()
    }

    /// Asks until the end, at least once; how long each question took.
    pub fn ask_until(self, address: SocketAddr, end: &Shutdown) -> Vec<Duration> {
        let mut waits = Vec::new();
        loop {
            let begun = Instant::now();
            // A question that has begun is answered, whatever ends meanwhile.
            let never = Shutdown::new();
            while !self.ask(address, waits.len()) && begun.elapsed() < Duration::from_secs(20) {
                never.wait(AGAIN);
            }
            waits.push(begun.elapsed());
            if end.wait(EACH.saturating_sub(begun.elapsed())) {
                return waits;
            }
        }
    }

    /// Whether it was served.
    fn ask(self, address: SocketAddr, nth: usize) -> bool {
        match self {
            Self::Reader if nth.is_multiple_of(2) => {
                get(address, "/healthz").is_some_and(|answer| answer.ends_with("ok\n"))
            }
            Self::Reader => get(address, "/status.json").is_some_and(|answer| answer.starts_with("HTTP/1.1 200 ")),
            Self::OfFacilitator => {
                let said: ValidatorToFacilitator = V0AuthenticationRequest::sign(&key()).into();
                let said = said.encode();
                let answer = say(address, "/ws/v0/", said);
                answer.is_some_and(|answer| answer.contains("\"success\""))
            }
            Self::OfMiner => {
                let now = phalanx::base::clock::now().unix_seconds();
                let bob = PublicKey::from_ss58(BOB).unwrap();
                let auth = ValidatorAuthForMiner::sign(&key(), &bob.to_ss58(), now);
                let path = format!("/v0.1/validator_interface/{}", key().public().to_ss58());
                let answer = say(address, &path, ValidatorToMiner::from(auth).encode());
                answer.is_some_and(|answer| answer.contains("Manifest"))
            }
        }
    }
}

/// An answer with its head.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let deadline = Instant::now() + TRY;
    let mut stream = dial("127.0.0.1", address.port(), deadline, &Shutdown::new(), Level::Cancel).ok()?;
    stream.set_read_timeout(Some(TRY)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// What a server for WebSockets answers to the first message.
fn say(address: SocketAddr, path: &str, text: String) -> Option<String> {
    let url = format!("ws://{address}{path}");
    let headers = [("X-Validator-Version".to_owned(), "v1".to_owned())];
    let (limits, deadline) = (SocketLimits::default(), Instant::now() + TRY);
    let request = DialRequest { url: &url, headers: &headers, limits, deadline };
    let mut connection = WsDialer::default().dial(&request, &Shutdown::new(), Level::Cancel).ok()?;
    let kick = connection.kick.clone();
    // A server that says nothing has not served.
    let silent = phalanx::base::timer::Timer::start();
    let _alarm = silent.handle().at(deadline, move || kick.kick());
    connection.writer.write(text.into()).and_then(|()| connection.writer.flush()).ok()?;
    match connection.reader.read().ok()? {
        Incoming::Text(text) => Some(text.to_string()),
        _ => None,
    }
}
