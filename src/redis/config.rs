//! Where a Redis is and how to get in: a URL, taken apart. Pure apart from reading a file of certificate authorities.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::error::RedisError;
use crate::base::backoff::BackoffConfig;
use crate::net::tls::{ClientTls, TlsFileError};
use crate::net::{address, percent};

/// What is right, after what was wrong.
const EXAMPLE: &str = "expected redis://[[user]:password@]host[:port][/database], or rediss:// for TLS";

/// The settings of connections to one Redis. Its `Debug` shows no password.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    /// A name or an address.
    pub host: String,
    /// 6379 unless set.
    pub port: u16,
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
    /// `broker_url`. User and password may be percent-encoded. Of Celery's parameters, `ssl_cert_reqs=required` and
    /// `ssl_ca_certs=FILE` are understood.
    ///
    /// # Errors
    /// [`RedisError::Url`] with what is wrong and what would be right, without the password; [`RedisError::Tls`] if the
    /// file of authorities is of no use.
    pub fn parse(url: &str) -> Result<Self, RedisError> {
        let wrong = |problem: &str| RedisError::Url(format!("{problem}; {EXAMPLE}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no redis:// in front"))?;
        let tls = match scheme {
            "redis" => false,
            "rediss" => true,
            "redis+socket" | "unix" | "redis+unix" => {
                return Err(wrong("sockets of the file system are not supported"));
            }
            // Not shown: it may be anything, also a password.
            _ => return Err(wrong("its scheme is neither redis nor rediss")),
        };
        // The last @, so that a password that should have been escaped does not become part of the host's name.
        let (login, address) = rest.rsplit_once('@').map_or((None, rest), |(login, address)| (Some(login), address));
        let (address, query) = address.split_once('?').unwrap_or((address, ""));
        let (address, path) = address.split_once('/').unwrap_or((address, ""));
        let (host, port) =
            host_and_port(address).ok_or_else(|| wrong(&format!("\"{address}\" is not a host and a port")))?;
        let db = match path.trim_end_matches('/') {
            "" => 0,
            db => db.parse().map_err(|_| wrong(&format!("the database \"{db}\" is not a number")))?,
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
        let mut config = Self {
            host,
            port,
            db,
            user,
            password,
            tls: tls.then(ClientTls::public),
            name: "phalanx".to_owned(),
            operation_time: Duration::from_secs(5),
            stall_after: Duration::from_secs(15),
            backoff: BackoffConfig {
                base: Duration::from_millis(100),
                cap: Duration::from_secs(5),
                ..Default::default()
            },
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("ssl_cert_reqs", "required" | "CERT_REQUIRED") if tls => {}
                ("ssl_cert_reqs", _) if tls => {
                    return Err(wrong("certificates are always checked: ssl_cert_reqs=required"));
                }
                ("ssl_ca_certs", file) if tls => {
                    let file =
                        percent::decode_text(file).ok_or_else(|| wrong("ssl_ca_certs is not percent-encoded"))?;
                    config = config.with_ca_file(Path::new(&file))?;
                }
                (name, _) => return Err(wrong(&format!("the parameter \"{name}\" is not known"))),
            }
        }
        Ok(config)
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

    /// Host and port, as errors name them.
    pub fn peer(&self) -> String {
        address::join(&self.host, self.port)
    }
}

impl fmt::Display for RedisConfig {
    /// The URL, with `…` for what the log-in is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        let login = if self.password.is_some() { "…@" } else { "" };
        write!(f, "{scheme}://{login}{}/{}", self.peer(), self.db)
    }
}

fn host_and_port(address: &str) -> Option<(String, u16)> {
    let (host, port) = address::split(address)?;
    let port = if port.is_empty() { 6379 } else { port.parse().ok().filter(|port| *port > 0)? };
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
    fn a_bad_url_says_what_is_wrong_and_never_the_password() {
        for (url, problem) in [
            ("secret@h:1", "it has no redis:// in front"),
            ("http://:secret@h", "its scheme is neither redis nor rediss"),
            ("redis+socket:///tmp/redis.sock", "sockets of the file system are not supported"),
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
