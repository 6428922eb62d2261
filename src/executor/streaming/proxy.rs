//! The threads in front of a streaming job: one that accepts its clients, one for each of them.
//!
//! Owner: the [`Proxy`]. Blocks in: `accept`; a client's thread where [`tunnel`] says. Kick: that of the listener; for
//! a client the stop signal, which shuts its sockets down. Ends: [`Proxy::stop`] or its drop; a client's also with its
//! connection.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection};

use super::tunnel;
use crate::base::stop::Stopping;
use crate::net::accept::{Acceptor, Admitted, KickableListener, Place, Service};
use crate::net::admission::{Origin, PlaceLimits};
use crate::net::rate::Rate;
use crate::ops::errors::ErrorHandler;

/// Clients at a time: a thread of 8 KiB touched stack and 2 × 16 KiB buffers each, so some 8 MiB. A user's own client
/// is the only one that stays.
const CONNECTIONS: usize = 128;

/// How often one address may connect: a client of a web server may open a connection for each request.
const CONNECTS: Rate = Rate::new(1000, Duration::from_secs(1));

/// How long the clients may take to read the end of what the job has sent.
const LAST_BYTES_TIME: Duration = Duration::from_secs(2);

/// A running proxy. Dropping it breaks all connections.
pub(super) struct Proxy(Acceptor<()>);

impl Proxy {
    /// Lets clients through to the job; of those that it cannot accept or serve `errors` is told.
    pub(super) fn start(
        listener: KickableListener,
        tls: Arc<ServerConfig>,
        job: SocketAddr,
        errors: ErrorHandler,
    ) -> Self {
        // A client's certificate is checked in its handshake, so the oldest without one goes first.
        let limits = PlaceLimits {
            total: CONNECTIONS,
            strangers: CONNECTIONS,
            address: CONNECTIONS,
            connects: CONNECTS,
            turned_away: 0,
        };
        let kick = listener.kick();
        Self(Acceptor::start("exe-st-accept".to_owned(), limits, kick, Clients { listener, tls, job, errors }))
    }

    /// Takes no more clients, and ends the connections: at once, or as soon as they have read what the job has sent.
    pub(super) fn stop(mut self, at_once: bool) {
        let mut stopping = Stopping::alone();
        let budget = if at_once { Duration::ZERO } else { LAST_BYTES_TIME };
        stopping.step("streaming clients", budget, |step| {
            self.0.stop_accepting(step);
            if at_once {
                self.0.cancel();
            }
            self.0.join(step);
        });
        let report = stopping.finish();
        if !report.is_clean() {
            log::info!("the clients of the streaming job were cut off: {report:?}");
        }
    }
}

struct Clients {
    listener: KickableListener,
    tls: Arc<ServerConfig>,
    job: SocketAddr,
    errors: ErrorHandler,
}

impl Service for Clients {
    type Incoming = (TcpStream, SocketAddr);
    type Handle = ();

    fn accept(&self) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        self.listener.accept()
    }

    fn errors(&self) -> ErrorHandler {
        self.errors.clone()
    }

    fn origin(&self, (_, peer): &(TcpStream, SocketAddr)) -> Origin {
        peer.ip().into()
    }

    fn admit(&self, (client, peer): (TcpStream, SocketAddr), place: Place) -> Admitted<()> {
        let Place { number, stop, standing, .. } = place;
        let (tls, job) = (ServerConnection::new(self.tls.clone()), self.job);
        let serve = move || {
            let served =
                tls.map_err(io::Error::other).and_then(|tls| tunnel::serve(client, tls, job, (&stop, &standing)));
            match served {
                Ok(()) => log::debug!("streaming client {peer} is served"),
                Err(error) => log::debug!("streaming client {peer}: {error}"),
            }
        };
        Admitted {
            handle: (),
            thread_name: format!("exe-st-{number}"),
            // The cancel of its stop signal, which comes first, is enough.
            kick: Box::new(|| {}),
            serve: Box::new(serve),
        }
    }

    fn refuse(&self, _: (TcpStream, SocketAddr)) {}
}
