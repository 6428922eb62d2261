//! One attempt to have a connection: the hello and its answer, and why there is none.

use super::role::{Authenticate, Authenticated, Refused};
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

/// Why there is no connection, or none any more.
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
}

impl Disconnection {
    pub(super) fn failed(why: String) -> Self {
        Self { why, lasting: false, refused: Some(false), cut: false, code: None }
    }
}

impl From<TransportError> for Disconnection {
    fn from(error: TransportError) -> Self {
        // 408, 425 and 429 ask for patience, not for a change; 5xx is the server's own trouble.
        let lasting = matches!(error, TransportError::Refused { status: 400..=499, .. })
            && !matches!(error, TransportError::Refused { status: 408 | 425 | 429, .. });
        Self { lasting, cut: error.is_closed(), ..Self::failed(error.to_string()) }
    }
}

impl From<Refused> for Disconnection {
    fn from(refused: Refused) -> Self {
        Self { why: refused.to_string(), lasting: !refused.passing, refused: Some(true), cut: false, code: None }
    }
}

/// Says hello and reads until the peer has decided.
pub(super) fn ask(
    connection: &mut Connection,
    authenticate: &mut dyn Authenticate,
) -> Result<Option<Utf8Bytes>, Disconnection> {
    for text in authenticate.hello() {
        connection.writer.write(text)?;
    }
    connection.writer.flush()?;
    let _waiting = waiting("the peer's answer to our authentication", None);
    loop {
        match connection.reader.read()? {
            Incoming::Text(text) => match authenticate.answer(&text) {
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
            Incoming::Closed(info) => {
                let why = format!("closed before the authentication was answered: {info}");
                return Err(Disconnection { code: info.code, cut: !info.clean, ..Disconnection::failed(why) });
            }
        }
    }
}
