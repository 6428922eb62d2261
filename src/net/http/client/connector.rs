//! Connections for `ureq`: made by [`crate::net::dial`], bounded by the request's deadline, ended by the shutdown
//! signal.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ureq::Timeout;
use ureq::config::Config;
use ureq::http::{Uri, uri::Scheme};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};

use super::proxied;
use crate::base::limits::DIAL_TIME;
use crate::base::shutdown::{KickRegistration, Level, Shutdown};
use crate::base::waits::waiting;
use crate::net::address::{join, without_brackets};
use crate::net::deadline::by;
use crate::net::dial::{DialError, dial, dial_within};
use crate::net::proxy::Proxies;
use crate::net::reach::Reach;

/// Dials and ties the connection to the shutdown signal.
#[derive(Debug)]
pub(super) struct KickedConnector {
    pub(super) reach: Reach,
    pub(super) proxies: Proxies,
    pub(super) shutdown: Shutdown,
}

impl Connector for KickedConnector {
    type Out = KickedTransport;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<KickedTransport>, ureq::Error> {
        let bad = || ureq::Error::BadUri(details.uri.to_string());
        let host = details.uri.host().ok_or_else(bad)?;
        let default = if details.uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
        let time: Duration = (*details.timeout.after).min(DIAL_TIME);
        let port = details.uri.port_u16().unwrap_or(default);
        let end = Instant::now() + time;
        let with_tls = details.needs_tls();
        let proxy = self.proxies.of(with_tls, host, port);
        let dialled = match proxy {
            None => dial_within(&self.reach, host, port, end, &self.shutdown, Level::Cancel),
            // It is the operator's, so it may be anywhere; what it is asked for may not.
            Some(proxy) => proxied::check_reach(&self.reach, host)
                .and_then(|()| dial(&proxy.host, proxy.port, end, &self.shutdown, Level::Cancel)),
        };
        let stream = dialled.map_err(|error| match error {
            // The request's own deadline; a dial that ends before that may be tried again.
            DialError::Timeout { .. } if time < DIAL_TIME => ureq::Error::Timeout(Timeout::Connect),
            error @ DialError::OutOfReach { .. } => ureq::Error::Io(io::Error::other(error)),
            error => match proxy {
                Some(proxy) => proxied::failed(proxy, error.to_string()),
                None => ureq::Error::Io(io::Error::other(error)),
            },
        })?;
        let kicked = stream.try_clone()?;
        let kick = self.shutdown.on(Level::Cancel, move || {
            // An error means that the connection has gone already.
            let _ = kicked.shutdown(std::net::Shutdown::Both);
        });
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        let mut begin = None;
        match proxy {
            Some(proxy) if with_tls => proxied::open_tunnel(proxy, &stream, &join(without_brackets(host), port), end)?,
            Some(proxy) => {
                begin = Some(proxied::RequestLine::new(proxy, details.uri.authority().map_or(host, |a| a.as_str())))
            }
            None => {}
        }
        Ok(Some(KickedTransport { stream, buffers, begin, _kick: kick }))
    }
}

/// A TCP connection that ends when the signal cancels.
pub(super) struct KickedTransport {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// What becomes of the first line that is sent, to a proxy.
    begin: Option<proxied::RequestLine>,
    _kick: KickRegistration,
}

impl fmt::Debug for KickedTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KickedTransport").field(&self.stream).finish()
    }
}

impl Transport for KickedTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let end = end_of(timeout);
        let output = &self.buffers.output()[..amount];
        let output = match self.begin.take() {
            Some(begin) => Cow::Owned(begin.rewrite(output)?),
            None => Cow::Borrowed(output),
        };
        let mut rest = &*output;
        while !rest.is_empty() {
            let written = by(end, |left| {
                self.stream.set_write_timeout(Some(left))?;
                let _waiting = waiting("an HTTP server to read", Some(end));
                self.stream.write(rest)
            });
            match written.map_err(|error| broken(error, timeout))? {
                0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                n => rest = &rest[n..],
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let end = end_of(timeout);
        let Self { stream, buffers, .. } = self;
        let received = by(end, |left| {
            stream.set_read_timeout(Some(left))?;
            let _waiting = waiting("an HTTP server's answer", Some(end));
            stream.read(buffers.input_append_buf())
        });
        let n = received.map_err(|error| broken(error, timeout))?;
        self.buffers.input_appended(n);
        Ok(n > 0)
    }

    fn is_open(&mut self) -> bool {
        // Only asked for connections that are kept, and none is.
        false
    }
}

/// The moment at which a call must end; a request without a limit has a year.
fn end_of(timeout: NextTimeout) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + (*timeout.after).min(YEAR)
}

fn broken(error: io::Error, timeout: NextTimeout) -> ureq::Error {
    match error.kind() {
        io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => error.into(),
    }
}

/// Looks nothing up, because `dial` does; `ureq` insists on an address.
pub(super) struct NoResolver;

impl fmt::Debug for NoResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoResolver")
    }
}

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(([0, 0, 0, 0], 0).into());
        Ok(addresses)
    }
}
