//! The beginning of a connection: to the host that is named, to a socket of the file system, or to the master that
//! Sentinels name.

use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;

use socket2::{Domain, SockAddr, Socket, Type};

use super::config::{RedisConfig, Sentinels};
use super::connection::Connection;
use super::error::RedisError;
use crate::base::shutdown::{Level, Shutdown};
use crate::net::address;
use crate::net::dial::dial;

impl Connection {
    /// Connects, logs in, and asks for RESP3, the database and a name: one round trip after TCP and TLS.
    ///
    /// Blocks until `deadline` at most, or until `shutdown` reaches `level`. The deadline also holds for the first
    /// requests: see [`Connection::set_deadline`].
    ///
    /// # Errors
    /// [`RedisError::Dial`], [`RedisError::Tls`], [`RedisError::TooOld`], [`RedisError::Mode`],
    /// [`RedisError::Sentinel`], [`RedisError::Auth`], [`RedisError::Timeout`], [`RedisError::Protocol`] where no Redis
    /// listens, `LOADING` as [`RedisError::Server`]
    /// while Redis reads its data, and [`RedisError::Stopped`].
    pub fn open(
        config: &RedisConfig,
        deadline: Instant,
        shutdown: &Shutdown,
        level: Level,
    ) -> Result<Self, RedisError> {
        let connection = match (&config.socket, &config.sentinels) {
            (Some(path), _) => {
                let parts = (unix(path, &config.peer())?, &*config.host, config.peer());
                Self::greeted(config, parts, deadline, shutdown, level)?
            }
            (None, None) => tcp(config, &config.host, config.port, deadline, shutdown, level)?,
            (None, Some(sentinels)) => {
                let (host, port) = master(config, sentinels, deadline, shutdown, level)?;
                tcp(config, &host, port, deadline, shutdown, level)?
            }
        };
        let peer = connection.peer().to_owned();
        let problem = match connection.mode() {
            "cluster" => {
                "it is a Redis Cluster, whose keys are on several machines; use a Redis without cluster mode, or \
                 Sentinels for a fail-over"
            }
            "sentinel" => "it is a Sentinel; use sentinel://host:port;…?master_name=NAME",
            // Sentinels learn of a fail-over one after the other.
            _ if config.sentinels.is_some() && connection.role() != "master" => {
                let message = format!("{peer} is no master any more");
                return Err(RedisError::Server { code: "READONLY".to_owned(), message });
            }
            _ => return Ok(connection),
        };
        Err(RedisError::Mode { peer, problem: problem.to_owned() })
    }
}

fn tcp(
    config: &RedisConfig,
    host: &str,
    port: u16,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<Connection, RedisError> {
    let socket = dial(host, port, deadline, shutdown, level)?;
    Connection::greeted(config, (socket, host, address::join(host, port)), deadline, shutdown, level)
}

/// Connects at once or not at all, so there is nothing to interrupt.
fn unix(path: &Path, peer: &str) -> Result<TcpStream, RedisError> {
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)?;
        // What is used of the type is to send, receive and shut down, which is the same for both.
        Ok(TcpStream::from(socket))
    };
    connect().map_err(|error: std::io::Error| {
        let why = format!("no connection: {error}");
        RedisError::Closed { peer: peer.to_owned(), why, unknown: false }
    })
}

/// Asks one Sentinel after the other.
fn master(
    config: &RedisConfig,
    sentinels: &Sentinels,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<(String, u16), RedisError> {
    let mut problems = Vec::new();
    for (at, (host, port)) in sentinels.addresses.iter().enumerate() {
        // One that does not answer leaves time for the others, and for the master.
        let left = deadline.saturating_duration_since(Instant::now());
        let parts = u32::try_from(sentinels.addresses.len() - at + 1).unwrap_or(u32::MAX);
        let one = RedisConfig {
            host: host.clone(),
            port: *port,
            sentinels: None,
            user: sentinels.login.user.clone(),
            password: sentinels.login.password.clone(),
            tls: sentinels.login.tls.clone(),
            db: 0,
            ..config.clone()
        };
        match ask(&one, &sentinels.master, Instant::now() + left / parts, shutdown, level) {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => problems.push(format!("{} knows none of this name", one.peer())),
            Err(RedisError::Stopped) => return Err(RedisError::Stopped),
            Err(error) => problems.push(error.to_string()),
        }
    }
    Err(RedisError::Sentinel { master: sentinels.master.clone(), problem: problems.join("; ") })
}

fn ask(
    one: &RedisConfig,
    master: &str,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<Option<(String, u16)>, RedisError> {
    let mut connection = tcp(one, &one.host, one.port, deadline, shutdown, level)?;
    connection.query(redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(master))
}
