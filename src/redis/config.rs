//! Where a Redis is and how to get in: a URL, taken apart. Pure apart from reading the files of TLS.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::RedisError;
use crate::base::backoff::BackoffConfig;
use crate::base::limits::REDIS_REPLY_BYTES;
use crate::net::tls::{ClientTls, TlsFileError};
use crate::net::{address, percent};

/// What is right, after what was wrong.
const EXAMPLE: &str = "expected redis://[[user]:password@]host[:port][/database], or rediss:// for TLS";

/// The port of a Redis.
const REDIS_PORT: u16 = 6379;

/// What Sentinel calls the master where nothing else is said: the name in its own example.
const MASTER: &str = "mymaster";

/// The port of a Sentinel.
const SENTINEL_PORT: u16 = 26379;

/// The Sentinels that know where the master is.
#[derive(Debug, Clone)]
pub struct Sentinels {
    /// Host and port of each, asked in this order.
    pub addresses: Vec<(String, u16)>,
    /// What they call the master.
    pub master: String,
    /// How to get in there.
    pub login: SentinelLogin,
}

/// How to get in at Sentinels, which have users, passwords and certificates of their own.
#[derive(Debug, Clone, Default)]
pub struct SentinelLogin {
    /// The user of an access list; without one, the default user.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Password>,
    /// Whom to trust, for TLS.
    pub tls: Option<ClientTls>,
}

/// The settings of connections to one Redis. Its `Debug` shows no password.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// A name or an address; of the first Sentinel, if there are some.
    pub host: String,
    /// 6379 unless set.
    pub port: u16,
    /// A socket of the file system, in place of host and port.
    pub socket: Option<PathBuf>,
    /// Who is asked where the Redis is, for each connection.
    pub sentinels: Option<Sentinels>,
    /// The number of the database: 0 unless set.
    pub db: u32,
    /// The user of an access list; without one, the default user.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Password>,
    /// Whom to trust, for TLS.
    pub tls: Option<ClientTls>,
    /// What `CLIENT LIST` calls our connections: `phalanx` unless set.
    pub name: String,
    /// How long one request may take where its caller names no deadline, and how long a connection may be silent while
    /// an answer is due: 5 s.
    pub operation_time: Duration,
    /// A subscription that has proved nothing for this long has stalled: 15 s.
    pub stall_after: Duration,
    /// Bytes of one reply, 208 MiB unless set; a larger one ends its connection.
    pub reply_bytes: usize,
    /// When to connect again. Its cap is 5 s, so that a Redis that is back is found soon.
    pub backoff: BackoffConfig,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Takes the password in.
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }

    /// The password itself, for the log-in.
    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl RedisConfig {
    /// Takes a URL apart: `redis://[[user]:password@]host[:port][/database]`, or `rediss://` for TLS, as Celery's
    /// `broker_url`. User and password may be percent-encoded. Of Celery's parameters for TLS,
    /// `ssl_cert_reqs=required`, `ssl_ca_certs=FILE`, and for a certificate of our own `ssl_certfile=FILE` and
    /// `ssl_keyfile=FILE` are understood.
    ///
    /// `redis+socket://[[user]:password@]/path[?virtual_host=database]` (also `unix://` and `socket://`) is a socket of
    /// the file system. `sentinel://[[user]:password@]host[:port][;sentinel://host[:port]…][/database]` asks Sentinels
    /// for the master that they call `master_name`, a parameter of ours and an option of Celery's; the log-in is the
    /// master's.
    ///
    /// # Errors
    /// [`RedisError::Url`] with what is wrong and what would be right, without the password; [`RedisError::Tls`] if the
    /// file of authorities is of no use.
    pub fn parse(url: &str) -> Result<Self, RedisError> {
        let wrong = |problem: &str| RedisError::Url(format!("{problem}; {EXAMPLE}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no redis:// in front"))?;
        let (tls, is_socket, is_sentinel) = match scheme {
            "redis" => (false, false, false),
            "rediss" => (true, false, false),
            "redis+socket" | "unix" | "redis+unix" | "socket" => (false, true, false),
            "sentinel" => (false, false, true),
            // Not shown: it may be anything, also a password.
            _ => return Err(wrong("its scheme is none of redis, rediss, redis+socket and sentinel")),
        };
        let (rest, others) = match is_sentinel {
            true => rest.split_once(';').map_or((rest, None), |(first, others)| (first, Some(others))),
            false => (rest, None),
        };
        // The last @, so that a password that should have been escaped does not become part of the host's name.
        let (login, address) = rest.rsplit_once('@').map_or((None, rest), |(login, address)| (Some(login), address));
        let (address, query) = address.split_once('?').unwrap_or((address, ""));
        let number = |db: &str| match db.trim_end_matches('/') {
            "" => Ok(0),
            db => db.parse().map_err(|_| wrong(&format!("the database \"{db}\" is not a number"))),
        };
        let port = if is_sentinel { SENTINEL_PORT } else { REDIS_PORT };
        let place = |address: &str| {
            host_and_port(address, port).ok_or_else(|| wrong(&format!("\"{address}\" is not a host and a port")))
        };
        let (mut socket, mut sentinels, mut parameters) = (None, None, query.to_owned());
        let ((host, port), mut db) = if is_socket {
            let path = percent::decode_text(address).filter(|path| path.starts_with('/') && path.len() > 1);
            let path =
                path.ok_or_else(|| wrong("the path of its socket is missing, as redis+socket:///run/redis.sock"))?;
            socket = Some(PathBuf::from(path));
            (("localhost".to_owned(), REDIS_PORT), 0)
        } else {
            let (address, mut path) = address.split_once('/').unwrap_or((address, ""));
            let first = place(address)?;
            let mut addresses = vec![first.clone()];
            for other in others.into_iter().flat_map(|others| others.split(';')) {
                let other = other.strip_prefix("sentinel://").unwrap_or(other);
                let other = other.rsplit_once('@').map_or(other, |(_, address)| address);
                let (other, more) = other.split_once('?').unwrap_or((other, ""));
                let (other, at) = other.split_once('/').unwrap_or((other, ""));
                path = if at.is_empty() { path } else { at };
                parameters = if more.is_empty() { parameters } else { format!("{parameters}&{more}") };
                addresses.push(place(other)?);
            }
            if is_sentinel {
                sentinels = Some(Sentinels { addresses, master: MASTER.to_owned(), login: SentinelLogin::default() });
            }
            (first, number(path)?)
        };
        let (user, password) = match login {
            None => (None, None),
            Some(login) => {
                let (user, password) = login.split_once(':').map_or((login, None), |(user, pw)| (user, Some(pw)));
                let clear = |text: &str| {
                    percent::decode_text(text).ok_or_else(|| wrong("user or password is not percent-encoded"))
                };
                let user = Some(clear(user)?).filter(|user| !user.is_empty());
                let password = password.map(clear).transpose()?.filter(|pw| !pw.is_empty()).map(Password);
                if user.is_some() && password.is_none() {
                    return Err(wrong("it has a user but no password"));
                }
                (user, password)
            }
        };
        let mut client = (None, None);
        let file = |file: &str, name: &str| {
            percent::decode_text(file)
                .map(PathBuf::from)
                .ok_or_else(|| wrong(&format!("{name} is not percent-encoded")))
        };
        let mut ca = None;
        for pair in parameters.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("ssl_cert_reqs", "required" | "CERT_REQUIRED") if tls => {}
                ("ssl_cert_reqs", _) if tls => {
                    return Err(wrong("certificates are always checked: ssl_cert_reqs=required"));
                }
                ("ssl_ca_certs", path) if tls => ca = Some(file(path, "ssl_ca_certs")?),
                ("ssl_certfile", path) if tls => client.0 = Some(file(path, "ssl_certfile")?),
                ("ssl_keyfile", path) if tls => client.1 = Some(file(path, "ssl_keyfile")?),
                ("virtual_host" | "db", name) if is_socket => db = number(name.trim_start_matches('/'))?,
                ("master_name", name) if is_sentinel && !name.is_empty() => {
                    sentinels = sentinels.map(|sentinels| Sentinels { master: name.to_owned(), ..sentinels });
                }
                (name, _) => return Err(wrong(&format!("the parameter \"{name}\" is not known"))),
            }
        }
        let own = match &client {
            (Some(certificate), Some(key)) => Some((certificate.as_path(), key.as_path())),
            (Some(_), None) => return Err(wrong("ssl_certfile goes with ssl_keyfile")),
            (None, Some(_)) => return Err(wrong("ssl_keyfile goes with ssl_certfile")),
            (None, None) => None,
        };
        let tls = tls.then(|| load_tls(ca.as_deref(), own)).transpose()?;
        Ok(Self {
            host,
            port,
            socket,
            sentinels,
            db,
            user,
            password,
            tls,
            name: "phalanx".to_owned(),
            operation_time: Duration::from_secs(5),
            stall_after: Duration::from_secs(15),
            reply_bytes: REDIS_REPLY_BYTES,
            backoff: BackoffConfig {
                base: Duration::from_millis(100),
                cap: Duration::from_secs(5),
                ..Default::default()
            },
        })
    }

    /// Uses TLS and trusts only the authorities in a PEM file.
    ///
    /// # Errors
    /// [`RedisError::Tls`] if the file cannot be read or has no usable certificate.
    pub fn with_ca_file(mut self, file: &Path) -> Result<Self, RedisError> {
        let tls = ClientTls::from_ca_file(file);
        self.tls = Some(tls.map_err(|TlsFileError { path, problem }| RedisError::Tls { peer: path, problem })?);
        Ok(self)
    }

    /// The same with another name for `CLIENT LIST`.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Asks the Sentinels, if there are some, for the master of this name, if there is one; and gets in there so.
    pub fn with_sentinel(mut self, name: Option<&str>, login: &SentinelLogin) -> Self {
        if let Some(sentinels) = &mut self.sentinels {
            sentinels.master = name.map_or_else(|| sentinels.master.clone(), str::to_owned);
            sentinels.login = login.clone();
        }
        self
    }

    /// Host and port, as errors name them; or the socket, or the master's name and the first Sentinel.
    pub fn peer(&self) -> String {
        let address = address::join(&self.host, self.port);
        match (&self.socket, &self.sentinels) {
            (Some(socket), _) => socket.display().to_string(),
            (None, Some(sentinels)) => format!("{} of {address}", sentinels.master),
            (None, None) => address,
        }
    }

    /// What is the same for two settings of the same database.
    pub(crate) fn place(&self) -> (String, u32) {
        (self.peer(), self.db)
    }
}

impl fmt::Display for RedisConfig {
    /// The URL, with `…` for what the log-in is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let login = if self.password.is_some() { "…@" } else { "" };
        let address = address::join(&self.host, self.port);
        match (&self.socket, &self.sentinels) {
            (Some(socket), _) => write!(f, "redis+socket://{login}{}?virtual_host={}", socket.display(), self.db),
            (None, Some(Sentinels { addresses, master, .. })) => {
                write!(f, "sentinel://{login}")?;
                for (at, (host, port)) in addresses.iter().enumerate() {
                    write!(f, "{}{}", if at == 0 { "" } else { ";sentinel://" }, address::join(host, *port))?;
                }
                write!(f, "/{}?master_name={master}", self.db)
            }
            (None, None) => {
                let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
                write!(f, "{scheme}://{login}{address}/{}", self.db)
            }
        }
    }
}

/// Whom to trust, those of the file or else the public authorities, and a certificate with its key, if there is one.
/// Blocks on the disk.
pub(crate) fn load_tls(ca: Option<&Path>, own: Option<(&Path, &Path)>) -> Result<ClientTls, RedisError> {
    let bad_file = |TlsFileError { path, problem }| RedisError::Tls { peer: path, problem };
    let tls = ca.map_or_else(|| Ok(ClientTls::public()), ClientTls::from_ca_file).map_err(bad_file)?;
    match own {
        Some((certificate, key)) => tls.with_certificate(certificate, key).map_err(bad_file),
        None => Ok(tls),
    }
}

fn host_and_port(address: &str, usual: u16) -> Option<(String, u16)> {
    let (host, port) = address::split(address)?;
    let port = if port.is_empty() { usual } else { port.parse().ok().filter(|port| *port > 0)? };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    // Celery's own default where there is no host.
    let host = if host.is_empty() { "localhost" } else { host };
    host.chars().all(plain).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_as_celery_takes_them() {
        for (url, peer, db, user, password) in [
            ("redis://localhost", "localhost:6379", 0, None, None),
            ("redis://", "localhost:6379", 0, None, None),
            ("redis://:p%40ss@10.0.0.1:7000/3", "10.0.0.1:7000", 3, None, Some("p@ss")),
            ("redis://me:pw@h/", "h:6379", 0, Some("me"), Some("pw")),
            ("redis://:p@ss:w@h:1/2", "h:1", 2, None, Some("p@ss:w")),
            ("redis://[::1]:7000/1", "[::1]:7000", 1, None, None),
        ] {
            let config = RedisConfig::parse(url).unwrap();
            assert_eq!((config.peer().as_str(), config.db, config.user.as_deref()), (peer, db, user), "{url}");
            assert_eq!(config.password.as_ref().map(Password::secret), password, "{url}");
            assert!(config.tls.is_none());
        }
        assert!(RedisConfig::parse("rediss://h?ssl_cert_reqs=required").unwrap().tls.is_some());
    }

    #[test]
    fn sockets_and_sentinels_as_celery_names_them() {
        let config = RedisConfig::parse("redis+socket://:pw@/run/my%20redis.sock?virtual_host=3").unwrap();
        assert_eq!((config.socket.as_deref(), config.db), (Some(Path::new("/run/my redis.sock")), 3));
        assert_eq!(config.to_string(), "redis+socket://…@/run/my redis.sock?virtual_host=3");
        let url = "sentinel://:pw@a:1;sentinel://b;c:3/2?master_name=blue";
        let config = RedisConfig::parse(url).unwrap();
        let sentinels = config.sentinels.clone().unwrap();
        let addresses = [("a".to_owned(), 1), ("b".to_owned(), 26379), ("c".to_owned(), 3)];
        assert_eq!((&sentinels.addresses[..], sentinels.master.as_str(), config.db), (&addresses[..], "blue", 2));
        let shown = "sentinel://…@a:1;sentinel://b:26379;sentinel://c:3/2?master_name=blue";
        assert_eq!((config.to_string().as_str(), config.peer().as_str()), (shown, "blue of a:1"));
        let login = SentinelLogin { password: Some(Password::new("secret")), ..Default::default() };
        let other = config.with_sentinel(Some("red"), &login);
        assert!(!format!("{other:?}").contains("secret"));
        assert_eq!(other.sentinels.unwrap().master, "red");
        let usual = RedisConfig::parse("sentinel://h").unwrap();
        assert_eq!((usual.port, usual.sentinels.unwrap().master.as_str()), (26379, "mymaster"));
    }

    #[test]
    fn a_bad_url_says_what_is_wrong_and_never_the_password() {
        for (url, problem) in [
            ("secret@h:1", "it has no redis:// in front"),
            ("http://:secret@h", "its scheme is none of redis, rediss, redis+socket and sentinel"),
            ("redis+socket://", "the path of its socket is missing, as redis+socket:///run/redis.sock"),
            ("sentinel://:secret@h:1;sentinel://:0", "\":0\" is not a host and a port"),
            ("rediss://h?ssl_certfile=/x", "ssl_certfile goes with ssl_keyfile"),
            ("redis://:secret@h:port", "\"h:port\" is not a host and a port"),
            ("redis://:secret@h:0", "\"h:0\" is not a host and a port"),
            ("redis://:secret@h h", "\"h h\" is not a host and a port"),
            ("redis://:secret@h/x", "the database \"x\" is not a number"),
            ("redis://secret@h", "it has a user but no password"),
            ("redis://:secret%zz@h", "user or password is not percent-encoded"),
            ("redis://:secret@h?ssl_cert_reqs=required", "the parameter \"ssl_cert_reqs\" is not known"),
            ("rediss://:secret@h?ssl_cert_reqs=none", "certificates are always checked: ssl_cert_reqs=required"),
        ] {
            let reported = RedisConfig::parse(url).unwrap_err().to_string();
            assert_eq!(reported, format!("bad Redis URL: {problem}; {EXAMPLE}"));
            assert!(!reported.contains("secret"), "{reported}");
        }
        let config = RedisConfig::parse("rediss://me:secret@h/1").unwrap();
        assert_eq!(config.to_string(), "rediss://…@h:6379/1");
        assert!(!format!("{config:?} {config:#?}").contains("secret"));
        assert!(RedisConfig::parse("rediss://h?ssl_ca_certs=/no/such").unwrap_err().to_string().contains("/no/such"));
    }
}
