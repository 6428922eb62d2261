//! One attempt to have a connection: the hello and its answer, and why there is none.

use std::time::{Duration, Instant};

use super::role::{Authenticate, Authenticated, NoConnection};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::timer::TimerHandle;
use crate::base::waits::waiting;
use crate::link::session::SessionEnd;
use crate::ops::errors::ErrorClass;
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
                Self { lasting: error.class() == ErrorClass::Rejected, cut: error.is_closed(), ..failed }
            }
            NoConnection::Unanswered(_) => failed,
            NoConnection::Closed(info) => Self { code: info.code, cut: !info.clean, ..failed },
            NoConnection::Refused(refused) => Self { lasting: !refused.passing, refused: Some(true), ..failed },
        };
        Self { error: Some(error), ..failed }
    }
}

impl Disconnection {
    /// The pause before the next attempt: the usual one, or the long one after what a person must change, half of it to
    /// all of it by `unit`, which is at random from 0 to 1. It is not shorter than what the server asks for, unless
    /// that is longer than the long one.
    pub(super) fn pause(&self, usual: Duration, long: Duration, unit: f64) -> Duration {
        let ours = if self.lasting { long.mul_f64(0.5 + unit / 2.0) } else { usual };
        let asked = match &self.error {
            Some(NoConnection::Transport(error)) => error.retry_after(),
            _ => None,
        };
        ours.max(asked.unwrap_or_default().min(long))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_left_alone_as_long_as_it_asks_and_one_that_refuses_or_moved_for_longer() {
        let seconds = Duration::from_secs;
        let (usual, long) = (seconds(2), seconds(300));
        let refused = |status, after: Option<u64>| TransportError::Refused {
            status,
            body: String::new(),
            retry_after: after.map(seconds),
        };
        let moved = TransportError::Moved { status: 301, to: "wss://new.example/".to_owned() };
        for (error, pause) in [
            (refused(503, None), usual),
            (refused(503, Some(0)), usual),
            (refused(503, Some(60)), seconds(60)),
            (refused(429, Some(60)), seconds(60)),
            (refused(429, Some(u64::MAX)), long),
            (refused(403, Some(60)), seconds(150)),
            (refused(403, Some(200)), seconds(200)),
            (moved, seconds(150)),
            (TransportError::Closed, usual),
        ] {
            let said = error.to_string();
            assert_eq!(Disconnection::from(NoConnection::from(error)).pause(usual, long, 0.0), pause, "{said}");
        }
    }
}
