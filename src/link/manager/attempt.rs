//! One attempt to have a connection: the hello and its answer, and why there is none.

use std::time::Instant;

use super::role::{Authenticate, Authenticated, NoConnection};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::timer::TimerHandle;
use crate::base::waits::waiting;
use crate::link::session::SessionEnd;
use crate::transport::{Connection, Incoming, TransportError, Utf8Bytes};

/// Whether the peer has closed because it is done with us (1000), rather than that it is away (1001) or broken.
pub(super) fn is_normal_close(end: &SessionEnd) -> bool {
    matches!(end, SessionEnd::Closed(info) if info.clean && info.code == Some(1000))
}

/// Whether the peer closed with a code that refuses us for good.
pub(super) fn is_refusal(end: &SessionEnd, codes: &[u16]) -> bool {
    matches!(end, SessionEnd::Closed(info) if info.code.is_some_and(|code| codes.contains(&code)))
}

/// Why a link has no connection, or none any more.
pub(super) struct Disconnection {
    pub(super) why: String,
    /// Trying again soon does not help.
    pub(super) lasting: bool,
    /// For an attempt: whether the peer answered and refused us.
    pub(super) refused: Option<bool>,
    /// For an attempt: whether a connection was there and broke.
    pub(super) cut: bool,
    /// The close code, if the peer closed.
    pub(super) code: Option<u16>,
    /// For an attempt: what it failed of.
    pub(super) error: Option<NoConnection>,
}

impl From<NoConnection> for Disconnection {
    fn from(error: NoConnection) -> Self {
        let why = error.to_string();
        let failed = Self { why, lasting: false, refused: Some(false), cut: false, code: None, error: None };
        let failed = match &error {
            NoConnection::Transport(error) => {
                // 408, 425 and 429 ask for patience, not for a change; 5xx is the server's own trouble.
                let lasting = matches!(error, TransportError::Refused { status: 400..=499, .. })
                    && !matches!(error, TransportError::Refused { status: 408 | 425 | 429, .. });
                Self { lasting, cut: error.is_closed(), ..failed }
            }
            NoConnection::Unanswered(_) => failed,
            NoConnection::Closed(info) => Self { code: info.code, cut: !info.clean, ..failed },
            NoConnection::Refused(refused) => Self { lasting: !refused.passing, refused: Some(true), ..failed },
        };
        Self { error: Some(error), ..failed }
    }
}

/// Authenticates on an open connection, for the first time or again; gives the text that is also a message for the
/// role. Whoever calls it again knows that nobody else reads or writes there, and that the peer answers once more.
///
/// Blocks until the peer has decided, the deadline, or `stop` at `level`; with an error the connection is over.
///
/// # Errors
/// [`NoConnection`]; [`TransportError::Stopped`] in it if the stop came first.
pub fn authenticate(
    connection: &mut Connection,
    role: &mut dyn Authenticate,
    deadline: Instant,
    timer: &TimerHandle,
    (stop, level): (&Shutdown, Level),
) -> Result<Option<Utf8Bytes>, NoConnection> {
    let begun = timer.clock().now();
    let kick = connection.kick.clone();
    let _deadline = timer.at(deadline, move || kick.kick());
    let kick = connection.kick.clone();
    let _stop = stop.on(level, move || kick.kick());
    match ask(connection, role) {
        Err(NoConnection::Transport(_) | NoConnection::Closed(_)) if timer.clock().now() >= deadline => {
            Err(NoConnection::Unanswered(deadline.saturating_duration_since(begun)))
        }
        Err(NoConnection::Transport(_)) if stop.level() >= level => Err(TransportError::Stopped.into()),
        answered => answered,
    }
}

/// Says hello and reads until the peer has decided.
fn ask(connection: &mut Connection, role: &mut dyn Authenticate) -> Result<Option<Utf8Bytes>, NoConnection> {
    for text in role.hello() {
        connection.writer.write(text)?;
    }
    connection.writer.flush()?;
    let _waiting = waiting("the peer's answer to our authentication", None);
    loop {
        match connection.reader.read()? {
            Incoming::Text(text) => match role.answer(&text) {
                Ok(Authenticated::Yes) => return Ok(None),
                Ok(Authenticated::YesAndDeliver) => return Ok(Some(text)),
                Ok(Authenticated::NotYet) => {}
                Err(refused) => {
                    // Polite only: the peer has refused us, and closes anyway.
                    let _ = connection.writer.close(1000, "");
                    connection.kick.kick();
                    return Err(refused.into());
                }
            },
            Incoming::Control => connection.writer.flush()?,
            Incoming::Pong | Incoming::Binary(_) => {}
            Incoming::Closed(info) => return Err(NoConnection::Closed(info)),
        }
    }
}
