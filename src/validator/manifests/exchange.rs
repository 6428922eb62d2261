//! One exchange with one miner, on the calling thread: dial, upgrade, authenticate, manifest, under one deadline.
//!
//! Blocks in: the dial, and reads and writes on the connection. Kick: the deadline's alarm and the caller's stop
//! signal, which both break the connection.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::outcome::{AskOutcome, FirstMessage, MinerManifest, is_of_a_job, read_first, shown};
use crate::base::clock::now;
use crate::base::limits::FIRST_MESSAGE_BYTES;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::timer::TimerHandle;
use crate::identity::{KeyPair, PublicKey};
use crate::link::{Authenticate, Authenticated, NoConnection, Refused, authenticate};
use crate::protocol::{ValidatorAuthForMiner, ValidatorToMiner};
use crate::transport::{Connection, DialRequest, Dialer, SocketLimits, TransportError, Utf8Bytes};
use crate::validator::routing::MinerAddress;

/// Why a miner has not told its manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct ExchangeError {
    /// What it counts as.
    pub outcome: AskOutcome,
    /// In words that may be shown: what the miner said is bounded and in one line.
    pub why: String,
    /// The miner answered and does not want us.
    pub refused: bool,
    /// There was a connection and it broke: somebody is there.
    pub cut: bool,
    /// Our own stop, or a fault of ours, ended it; it says nothing of the miner.
    pub stopped: bool,
}

/// A connection to a miner that has authenticated us. Dropping it breaks it.
#[derive(Debug)]
pub struct OpenMiner {
    /// The connection; nothing is on its way in either direction.
    pub connection: Connection,
    /// What the miner has told at last.
    pub manifest: MinerManifest,
    /// When.
    pub at: Instant,
}

/// What it takes to talk to miners; cheap to clone.
#[derive(Clone)]
pub struct MinerDialer {
    /// The validator's hotkey.
    pub key: KeyPair,
    /// What dials.
    pub dialer: Arc<dyn Dialer>,
    /// For deadlines, which are of its clock.
    pub timer: TimerHandle,
}

impl fmt::Debug for MinerDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MinerDialer({})", self.key.public())
    }
}

impl MinerDialer {
    /// Connects, authenticates and takes the manifest. Blocks until then, until `deadline`, or until `stop` is at
    /// `level`.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub fn open(
        &self,
        miner: &MinerAddress,
        deadline: Instant,
        stop: &Shutdown,
        level: Level,
    ) -> Result<OpenMiner, ExchangeError> {
        self.open_within(miner, SocketLimits::default(), deadline, (stop, level))
    }

    /// Takes the manifest on a connection that is for nothing else: more than [`FIRST_MESSAGE_BYTES`] is not received.
    /// Blocks as [`MinerDialer::open`].
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub fn manifest(
        &self,
        miner: &MinerAddress,
        deadline: Instant,
        stop: &Shutdown,
        level: Level,
    ) -> Result<MinerManifest, ExchangeError> {
        let (message_bytes, frame_bytes) = (FIRST_MESSAGE_BYTES, FIRST_MESSAGE_BYTES);
        let limits = SocketLimits { message_bytes, frame_bytes, ..SocketLimits::default() };
        let open = self.open_within(miner, limits, deadline, (stop, level))?;
        let manifest = open.manifest.clone();
        self.close(open);
        Ok(manifest)
    }

    fn open_within(
        &self,
        miner: &MinerAddress,
        limits: SocketLimits,
        deadline: Instant,
        stop: (&Shutdown, Level),
    ) -> Result<OpenMiner, ExchangeError> {
        let url = miner.url(&self.key.public());
        let request = DialRequest { url: &url, headers: &[], limits, deadline };
        let connection = self.dialer.dial(&request, stop.0, stop.1).map_err(|error| no_connection(error.into()))?;
        self.ask(miner, connection, false, deadline, stop)
    }

    /// Authenticates on an open connection, which the miner answers with its manifest: it lives, and has read all that
    /// was sent before. Blocks as [`MinerDialer::open`].
    ///
    /// # Errors
    /// [`ExchangeError`]; then the connection is over. What the miner still had to tell of a job is passed over.
    pub fn ask_again(
        &self,
        miner: &MinerAddress,
        connection: Connection,
        deadline: Instant,
        stop: &Shutdown,
        level: Level,
    ) -> Result<OpenMiner, ExchangeError> {
        self.ask(miner, connection, true, deadline, (stop, level))
    }

    fn ask(
        &self,
        miner: &MinerAddress,
        mut connection: Connection,
        again: bool,
        deadline: Instant,
        stop: (&Shutdown, Level),
    ) -> Result<OpenMiner, ExchangeError> {
        let mut asking = Asking { key: self.key.clone(), miner: miner.hotkey, again, first: None };
        let asked = authenticate(&mut connection, &mut asking, deadline, &self.timer, stop);
        match (asked, asking.first) {
            (Ok(_), Some(FirstMessage::Manifest(manifest))) => {
                Ok(OpenMiner { connection, manifest, at: self.timer.clock().now() })
            }
            (_, Some(FirstMessage::Unwanted(why))) => Err(ExchangeError {
                outcome: AskOutcome::Unauthorized,
                why: format!("refused: {why}"),
                refused: true,
                cut: false,
                stopped: false,
            }),
            (_, Some(FirstMessage::Wrong(why))) => Err(ExchangeError {
                outcome: AskOutcome::ProtocolError,
                why,
                refused: true,
                cut: false,
                stopped: false,
            }),
            (Err(error), _) => Err(no_connection(error)),
            (Ok(_), None) => unreachable!("an authentication is answered by a text"),
        }
    }

    /// Ends a connection with a Close, whose answer nobody waits for.
    pub fn close(&self, open: OpenMiner) {
        open.connection.close(&self.timer);
    }
}

/// Our part of the authentication; keeps what the miner says.
struct Asking {
    key: KeyPair,
    miner: PublicKey,
    /// The miner may have to tell of a job before it answers.
    again: bool,
    first: Option<FirstMessage>,
}

impl Authenticate for Asking {
    fn hello(&mut self) -> Vec<Utf8Bytes> {
        vec![hello(&self.key, &self.miner)]
    }

    fn answer(&mut self, text: &str) -> Result<Authenticated, Refused> {
        let read = read_first(text);
        if self.again && matches!(read, FirstMessage::Wrong(_)) && is_of_a_job(text) {
            return Ok(Authenticated::NotYet);
        }
        match self.first.insert(read) {
            FirstMessage::Manifest(_) => Ok(Authenticated::Yes),
            FirstMessage::Unwanted(why) => Err(Refused { reason: why.clone(), passing: true, broken: false }),
            FirstMessage::Wrong(why) => Err(Refused { reason: why.clone(), passing: true, broken: true }),
        }
    }
}

/// The first message to a miner. Signed afresh for each time, because a miner refuses what is older than ten seconds.
pub(crate) fn hello(key: &KeyPair, miner: &PublicKey) -> Utf8Bytes {
    let message = ValidatorAuthForMiner::sign(key, &miner.to_ss58(), now().unix_seconds());
    ValidatorToMiner::from(message).encode().into()
}

fn no_connection(error: NoConnection) -> ExchangeError {
    let cut = match &error {
        NoConnection::Transport(error) => error.is_closed(),
        NoConnection::Closed(info) => !info.clean,
        NoConnection::Unanswered(_) | NoConnection::Refused(_) => false,
    };
    let stopped = matches!(&error, NoConnection::Transport(error) if error.is_stopped());
    let outcome = outcome_of(&error);
    let refused = outcome == AskOutcome::Unauthorized;
    ExchangeError { outcome, why: shown(&error.to_string()), refused, cut, stopped }
}

/// What a connection that did not come about counts as.
pub(crate) fn outcome_of(error: &NoConnection) -> AskOutcome {
    use TransportError as E;
    match error {
        NoConnection::Unanswered(_) => AskOutcome::Timeout,
        NoConnection::Closed(_) => AskOutcome::Refused,
        NoConnection::Refused(refused) if refused.broken => AskOutcome::ProtocolError,
        NoConnection::Refused(_) => AskOutcome::Unauthorized,
        NoConnection::Transport(error) if error.is_timeout() => AskOutcome::Timeout,
        NoConnection::Transport(E::Stopped) => AskOutcome::Skipped,
        NoConnection::Transport(E::Refused { status: 401 | 403, .. }) => AskOutcome::Unauthorized,
        // They ask for patience, or say that the server is in trouble.
        NoConnection::Transport(E::Refused { status: 408 | 425 | 429 | 500..=599, .. }) => AskOutcome::Refused,
        NoConnection::Transport(
            E::Refused { .. }
            | E::Moved { .. }
            | E::Handshake { .. }
            | E::Tls { .. }
            | E::TooLarge { .. }
            | E::Protocol { .. }
            | E::Utf8 { .. },
        ) => AskOutcome::ProtocolError,
        NoConnection::Transport(_) => AskOutcome::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::dial::DialError;
    use crate::transport::CloseInfo;
    use std::io;
    use std::time::Duration;

    #[test]
    fn each_way_to_have_no_connection_has_its_outcome() {
        let refused = |status| TransportError::Refused { status, body: "no\nbody".to_owned(), retry_after: None };
        let peer = || "m".to_owned();
        let second = Duration::from_secs(1);
        let broken = || TransportError::Io { doing: "reading", source: io::ErrorKind::ConnectionReset.into() };
        let closed = CloseInfo { code: Some(1011), reason: String::new(), clean: true };
        let no = |broken| Refused { reason: "no".to_owned(), passing: true, broken };
        let cases: [(NoConnection, AskOutcome, bool); 17] = [
            (no(false).into(), AskOutcome::Unauthorized, false),
            (no(true).into(), AskOutcome::ProtocolError, false),
            (DialErrorOf(DialError::Connect { failures: Vec::new() }).into(), AskOutcome::Refused, false),
            (DialErrorOf(DialError::Timeout { address: peer(), after: second }).into(), AskOutcome::Timeout, false),
            (
                TransportError::Timeout { doing: "upgrade", peer: peer(), after: second }.into(),
                AskOutcome::Timeout,
                false,
            ),
            (NoConnection::Unanswered(second), AskOutcome::Timeout, false),
            (TransportError::Stopped.into(), AskOutcome::Skipped, false),
            (broken().into(), AskOutcome::Refused, true),
            (TransportError::Closed.into(), AskOutcome::Refused, true),
            (NoConnection::Closed(closed), AskOutcome::Refused, false),
            (refused(403).into(), AskOutcome::Unauthorized, false),
            (refused(404).into(), AskOutcome::ProtocolError, false),
            (refused(429).into(), AskOutcome::Refused, false),
            (refused(503).into(), AskOutcome::Refused, false),
            (TransportError::Protocol { problem: String::new() }.into(), AskOutcome::ProtocolError, false),
            (
                TransportError::Handshake { peer: peer(), problem: String::new() }.into(),
                AskOutcome::ProtocolError,
                false,
            ),
            (TransportError::TooLarge { size: 2, limit: 1 }.into(), AskOutcome::ProtocolError, false),
        ];
        for (error, outcome, cut) in cases {
            let text = error.to_string();
            let stopped = outcome == AskOutcome::Skipped;
            let found = no_connection(error);
            assert_eq!((found.outcome, found.cut, found.stopped), (outcome, cut, stopped), "{text}");
            assert_eq!(found.refused, outcome == AskOutcome::Unauthorized, "{text}");
            assert!(!found.why.contains('\n'), "{}", found.why);
        }
    }

    struct DialErrorOf(DialError);

    impl From<DialErrorOf> for NoConnection {
        fn from(error: DialErrorOf) -> Self {
            TransportError::from(error.0).into()
        }
    }
}
