//! What a link needs of its role, and what the role sees of it.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use crate::base::backoff::BackoffConfig;
use crate::base::ids::Epoch;
use crate::base::limits::DIAL_TIME;
use crate::link::heartbeat::LivenessConfig;
use crate::link::outbox::{About, Answered, OutboxLimits};
use crate::link::recorder::KindOf;
use crate::link::session::Beat;
use crate::transport::{CloseInfo, SocketLimits, TransportError, Utf8Bytes};

/// A refused key or address needs a person; five minutes do not hammer the peer, and end soon after the cure.
const REFUSED_PAUSE: Duration = Duration::from_secs(300);

/// What a link needs.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Prefix of the thread names, at most 12 bytes, as `val-fac`.
    pub name: String,
    /// `ws://` or `wss://`.
    pub url: String,
    /// Other addresses of the same peer. When a connection is lost, or an attempt fails, the next one in order is
    /// dialled, and after the last the first; one that asks for a longer pause is left out for that time.
    pub fallbacks: Vec<String>,
    /// Extra headers of the upgrade request.
    pub headers: Vec<(String, String)>,
    /// Limits of the socket.
    pub socket: SocketLimits,
    /// One deadline over look-up, TCP, TLS, upgrade and authentication.
    pub dial_time: Duration,
    /// When to try again.
    pub backoff: BackoffConfig,
    /// When to ping and when to give up.
    pub liveness: LivenessConfig,
    /// The heartbeat of the protocol, if it has one; the first leaves right after authentication.
    pub beat: Option<Beat>,
    /// Bounds of the outbox, which outlives every connection.
    pub outbox: OutboxLimits,
    /// The pause after a refusal that trying again soon does not cure: HTTP 4xx, a redirect, a close code of
    /// `refusal_codes`, an [`Authenticate`] that says so. Half of it to all of it, at random. A `Retry-After` of the
    /// server makes any pause longer, up to this.
    pub refused_pause: Duration,
    /// Close codes by which the peer refuses us for good.
    pub refusal_codes: &'static [u16],
    /// Names the kind of a message, for the flight recorder.
    pub kind_of: KindOf,
    /// Whether a Close with code 1000 from the peer ends the link for good, also when nobody has stopped it.
    pub ends_on_normal_close: bool,
}

impl LinkConfig {
    /// A link to `url` with the default numbers.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            fallbacks: Vec::new(),
            headers: Vec::new(),
            socket: SocketLimits::default(),
            dial_time: DIAL_TIME,
            backoff: BackoffConfig::default(),
            liveness: LivenessConfig::default(),
            beat: None,
            outbox: OutboxLimits::default(),
            refused_pause: REFUSED_PAUSE,
            refusal_codes: &[],
            kind_of: |_| None,
            ends_on_normal_close: false,
        }
    }
}

/// The role's part of a new connection: what to say first, and what the answer means. It runs on the link's thread and
/// must not block.
pub trait Authenticate: Send + 'static {
    /// The texts to send first; signed afresh for each connection.
    fn hello(&mut self) -> Vec<Utf8Bytes>;

    /// Reads one text that came before the link was ready.
    ///
    /// # Errors
    /// [`Refused`], if the peer does not want us; the link closes and tries again later.
    fn answer(&mut self, text: &str) -> Result<Authenticated, Refused>;
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authenticated {
    /// The link is ready, and the text was only about that.
    Yes,
    /// The link is ready, and the text is a message for the role as well.
    YesAndDeliver,
    /// Not yet; read on.
    NotYet,
}

/// The peer does not want us, or says something else than whether it does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", before(.broken))]
pub struct Refused {
    /// The reason that the peer gave.
    pub reason: String,
    /// Whether trying again soon may help; if not, the next attempt comes after [`LinkConfig::refused_pause`].
    pub passing: bool,
    /// Whether its answer is none of the protocol.
    pub broken: bool,
}

fn before(broken: &bool) -> &'static str {
    if *broken { "" } else { "refused: " }
}

/// Why there is no connection that has authenticated.
#[derive(Debug, thiserror::Error)]
pub enum NoConnection {
    /// None came about, or it broke.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The peer did not answer our authentication in time.
    #[error("no answer to the authentication within {0:.1?}")]
    Unanswered(Duration),
    /// The peer closed instead of an answer.
    #[error("closed before the authentication was answered: {0}")]
    Closed(CloseInfo),
    /// The peer answered and does not want us.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What a text of the peer is, as the role's classifier has read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text<M, A = Infallible> {
    /// An answer to one of our messages.
    Answer(About, A),
    /// Anything else.
    Message(M),
    /// A message that answers the last one of ours: the link ends here and leaves its connection open, see
    /// [`Link::detach`](super::Link::detach).
    Last(M),
}

/// What a role sees of its link, in order, on the link's thread.
#[derive(Debug)]
pub enum LinkEvent<M, A = Infallible> {
    /// Authenticated; the heartbeat and what was queued leave now.
    Ready {
        /// The new connection.
        epoch: Epoch,
    },
    /// A text arrived that is no answer.
    Message(M),
    /// Answers that came together, in order, each with the message that it is about. Where it cannot be known which
    /// message is answered, the connection is given up.
    Answered(Vec<Answered<A>>),
    /// The connection ended; the link will be back, unless it is stopping.
    Lost {
        /// Why.
        why: String,
    },
    /// An attempt failed.
    Failed {
        /// Why.
        why: String,
        /// Whether the peer answered and refused us.
        refused: bool,
        /// Whether there was a connection and it broke before it was ready: not a wrong address, more likely a cut.
        cut: bool,
        /// What an attempt failed of; `None` if a connection that was ready was closed with a refusal.
        error: Option<NoConnection>,
        /// The pause before the next attempt.
        next_in: Duration,
    },
}

/// Where a link stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Dialling.
    Connecting,
    /// Connected; the authentication is not answered yet.
    Authenticating,
    /// Authenticated.
    Ready {
        /// The present connection.
        epoch: Epoch,
    },
    /// Waiting before the next attempt.
    Reconnecting {
        /// Why the last attempt or connection ended.
        last_error: String,
        /// The peer has refused us in a way that waits for a person.
        refused: bool,
    },
    /// The link's thread has ended.
    Stopped,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkState::Connecting => f.write_str("connecting"),
            LinkState::Authenticating => f.write_str("authenticating"),
            LinkState::Ready { .. } => f.write_str("ready"),
            LinkState::Reconnecting { last_error, .. } => write!(f, "reconnecting: {last_error}"),
            LinkState::Stopped => f.write_str("stopped"),
        }
    }
}
