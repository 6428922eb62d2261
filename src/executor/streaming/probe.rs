//! Whether the job's server is ready: it answers `GET /health` with 200, as for the Python executor.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown as Direction, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::backoff::exponential;
use crate::base::limits::HANDSHAKE_BYTES;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;
use crate::net::deadline::by;
use crate::net::dial::dial;
use crate::net::http::head::{self, HeadText, Received, ResponseHead};

/// Between the first and the second attempt, and between any two. The Python executor asks each second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// For one answer. A server that starts may take a connection long before it answers.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// What the wait for the server has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// It is ready, there.
    At(SocketAddr),
    /// It is not, and what its last answer was.
    No(String),
    /// The run has ended first.
    Stopped,
}

/// Asks until the server is ready. `address` finds the job, which may not have one yet, or says why it does not know.
/// Blocks until then, until `deadline`, or until `stop` is cancelled.
pub(super) fn until_ready(
    port: u16,
    stop: &Shutdown,
    deadline: Instant,
    mut address: impl FnMut() -> Result<Option<IpAddr>, String>,
) -> Ready {
    let mut found = None;
    for attempt in 0.. {
        let why = match found.map_or_else(&mut address, |ip| Ok(Some(ip))) {
            Ok(None) => "its container has not started".to_owned(),
            Err(why) => why,
            Ok(Some(ip)) => {
                found = Some(ip);
                let server = SocketAddr::new(ip, port);
                match ask(server, stop, deadline.min(Instant::now() + ANSWER_TIME)) {
                    Ok(200) => return Ready::At(server),
                    Ok(status) => format!("it answers GET /health with {status}, not 200"),
                    Err(why) => why,
                }
            }
        };
        log::debug!("the job's server is not ready: {why}");
        let left = deadline.saturating_duration_since(Instant::now());
        let _waiting = waiting("the job's server to be ready", Some(deadline));
        if stop.wait_for(Level::Cancel, left.min(exponential(BACKOFF.0, BACKOFF.1, attempt))) {
            break;
        }
        if Instant::now() >= deadline {
            return Ready::No(why);
        }
    }
    Ready::Stopped
}

/// The status with which the server answers.
fn ask(server: SocketAddr, stop: &Shutdown, deadline: Instant) -> Result<u16, String> {
    let dialled = dial(&server.ip().to_string(), server.port(), deadline, stop, Level::Cancel);
    let stream = Arc::new(dialled.map_err(|error| error.to_string())?);
    let kicked = stream.clone();
    // An error means that it is closed already.
    let _kick = stop.on(Level::Cancel, move || drop(kicked.shutdown(Direction::Both)));
    let request = HeadText::new(format_args!("GET /health HTTP/1.1")).with("Host", server).with("Connection", "close");
    let answered = (&mut &*stream).write_all(request.end().as_bytes()).and_then(|()| {
        head::receive(&mut ByDeadline(&stream, deadline), HANDSHAKE_BYTES, |start| {
            b"HTTP/".starts_with(&start[..start.len().min(5)])
        })
    });
    let head = match answered.map_err(|error| format!("{server} does not answer GET /health: {error}"))? {
        Received::Whole { head, .. } => head,
        Received::Ended => return Err(format!("{server} ends the connection without an answer to GET /health")),
        Received::TooLong | Received::NotHttp(_) => return Err(format!("{server} does not answer in HTTP")),
    };
    ResponseHead::parse(&head)
        .map(|head| head.status)
        .map_err(|error| format!("{server} does not answer in HTTP: {error}"))
}

struct ByDeadline<'s>(&'s TcpStream, Instant);

impl Read for ByDeadline<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Self(mut stream, deadline) = *self;
        by(deadline, |left| {
            stream.set_read_timeout(Some(left))?;
            let _waiting = waiting("the answer of the job's server", Some(deadline));
            stream.read(buffer)
        })
    }
}
