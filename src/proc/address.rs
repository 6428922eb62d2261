//! Where an engine is: what the client finds by itself, a socket, TLS, or SSH.
//!
//! An engine's API is root on its machine. So plain TCP is refused, and the `ssh` that the client starts for `ssh://`
//! is ours: it passes on to the real one with options that come before those of any configuration, so that a host whose
//! key is not known, or is another one now, is never talked to.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::explained::reason;
pub use super::strict_ssh::SshPlace;
use super::strict_ssh::StrictSsh;
use super::tool::ToolError;
use crate::ops::redact::secrets;

/// What is right, for every error of an address.
const RIGHT: &str = "use local, unix:///path, tcp://host:port with TLS files, or ssh://user@host[:port]";

/// Variables that say where the engine is; they count for [`EngineAddress::local`] only.
const SAYS_WHERE: [&str; 8] = [
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_TLS",
    "DOCKER_TLS_VERIFY",
    "DOCKER_CERT_PATH",
    "CONTAINER_HOST",
    "CONTAINER_CONNECTION",
    "CONTAINER_SSHKEY",
];

/// What proves both ends of a TLS connection: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that has issued the engine's certificate.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Its key, without a passphrase.
    pub key: PathBuf,
}

/// Where an engine is. Cheap to clone; shown without secrets.
#[derive(Debug, Clone, Default)]
pub struct EngineAddress {
    place: Place,
    /// With [`Place::Ssh`] always.
    ssh: Option<Arc<StrictSsh>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Local,
    Unix(String),
    Tcp(String, TlsFiles),
    Ssh(String),
}

/// The same place; whether each has an `ssh` of its own does not matter.
impl PartialEq for EngineAddress {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl Eq for EngineAddress {}

impl EngineAddress {
    /// What the client finds by itself: `DOCKER_HOST`, its context, the socket of this machine.
    pub fn local() -> Self {
        Self::default()
    }

    /// Reads `local` (or nothing), `unix:///path`, `tcp://host:port`, which takes `tls`, or `ssh://user@host[:port]`,
    /// and sees whether there are the files that it needs. What is behind `ssh://` is reached once
    /// [`EngineAddress::write_ssh`] has succeeded.
    ///
    /// # Errors
    /// One line that names what is wrong and what would be right.
    pub fn parse(text: &str, tls: Option<TlsFiles>, ssh: &SshPlace) -> Result<Self, String> {
        let place = Place::parse(text, tls)?;
        let ssh = match &place {
            Place::Ssh(_) => {
                let made = StrictSsh::at(ssh);
                Some(Arc::new(made.map_err(|e| format!("{}: its ssh, which checks host keys: {e}", place.url()))?))
            }
            Place::Tcp(_, TlsFiles { ca, cert, key }) => {
                for (what, file) in [("CA", ca), ("certificate", cert), ("key", key)] {
                    let readable = File::open(file);
                    readable.map_err(|e| format!("{}: {what} {}: {e}", place.url(), file.display()))?;
                }
                None
            }
            Place::Local | Place::Unix(_) => None,
        };
        Ok(Self { place, ssh })
    }

    /// Writes the `ssh` that checks host keys, if the engine is behind SSH.
    ///
    /// # Errors
    /// One line.
    pub fn write_ssh(&self) -> Result<(), String> {
        let made = self.ssh.as_ref().map_or(Ok(()), |ssh| ssh.create());
        made.map_err(|e| format!("{}: its ssh, which checks host keys: {e}", self.place.url()))
    }

    /// Whether it is the client's own choice, and not one of our settings.
    pub fn is_local(&self) -> bool {
        self.place == Place::Local
    }

    /// Whether it is reached by SSH.
    pub(super) fn is_ssh(&self) -> bool {
        matches!(self.place, Place::Ssh(_))
    }

    /// A program of the engine's machine, if it can be run from here: there, or over SSH; `None` behind TLS. Where the
    /// client finds an engine by itself, or by a socket, it is one of this machine, which may be another one.
    pub(crate) fn program(&self, program: &Path, args: &[&str]) -> Option<Command> {
        let mut command = match &self.place {
            Place::Local | Place::Unix(_) => Command::new(program),
            Place::Tcp(..) => return None,
            Place::Ssh(_) => {
                // Found on that path, where nothing is if it cannot be trusted.
                let mut command = Command::new("ssh");
                command.env("PATH", self.ssh.as_ref()?.path());
                command.args(["-T", "--", &self.place.url()]).arg(program);
                command
            }
        };
        command.args(args);
        Some(command)
    }

    /// Whether the engine is one of this machine, so that what it runs on the host's network finds this machine's
    /// loopback.
    pub fn is_on_this_machine(&self) -> bool {
        matches!(self.place, Place::Local | Place::Unix(_))
    }

    /// Makes a client, whose arguments are yet to come, talk to this engine.
    pub(super) fn apply(&self, command: &mut Command) {
        if self.is_local() {
            return;
        }
        SAYS_WHERE.iter().for_each(|name| {
            command.env_remove(name);
        });
        // A flag, because podman looks at other variables, and would take the engine of this machine.
        command.args(["--host", &self.place.url()]);
        if let Place::Tcp(_, TlsFiles { ca, cert, key }) = &self.place {
            command.args(["--tlsverify", "--tlscacert"]).arg(ca).arg("--tlscert").arg(cert).arg("--tlskey").arg(key);
        }
        if let Some(ssh) = &self.ssh {
            command.env("PATH", ssh.path());
        }
    }

    /// Puts the reason why an engine elsewhere is not reached for the many lines of client, `ssh` and TLS.
    pub(crate) fn explained(&self, error: ToolError) -> ToolError {
        match error {
            ToolError::Failed { doing, text } if !self.is_local() => {
                let text = match reason(&text) {
                    Some(reason) => format!("{self}: {reason}"),
                    None => text,
                };
                ToolError::Failed { doing, text }
            }
            error => error,
        }
    }
}

impl fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&secrets(&self.place.url()))
    }
}

impl Place {
    fn url(&self) -> String {
        match self {
            Place::Local => "local".to_owned(),
            Place::Unix(path) => format!("unix://{path}"),
            Place::Tcp(host, _) => format!("tcp://{host}"),
            Place::Ssh(host) => format!("ssh://{host}"),
        }
    }

    fn parse(text: &str, tls: Option<TlsFiles>) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("engine address {:?} {what}; {RIGHT}", secrets(text)));
        let (scheme, rest) = match text.split_once("://") {
            Some(parts) => parts,
            None if matches!(text, "" | "local") => ("", ""),
            None => return wrong("has no scheme"),
        };
        if tls.is_some() && scheme != "tcp" {
            return wrong("takes no TLS files");
        }
        match (scheme, tls) {
            ("", _) => Ok(Place::Local),
            ("unix", _) if rest.starts_with('/') && !rest.chars().any(char::is_control) => {
                Ok(Place::Unix(rest.to_owned()))
            }
            ("unix", _) => wrong("has no absolute path"),
            ("tcp", None) => {
                let why = "names a port without TLS, and that is root for everybody who reaches it";
                wrong(&format!("{why}: name a CA, a certificate and a key"))
            }
            ("tcp", Some(files)) => match split(rest) {
                Ok((None, host, Some(port))) => Ok(Place::Tcp(format!("{host}:{port}"), files)),
                Ok((Some(_), ..)) => wrong("has a user or a password, which an engine behind TLS does not take"),
                Ok((None, _, None)) => wrong("has no port; engines behind TLS have 2376"),
                Err(what) => wrong(what),
            },
            ("ssh", _) => match split(rest) {
                Ok((Some(user), ..)) if user.contains(':') => {
                    wrong("has a password, which would be for everybody to see; use a key")
                }
                Ok((user, host, port)) => {
                    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
                    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
                    Ok(Place::Ssh(format!("{user}{host}{port}")))
                }
                Err(what) => wrong(what),
            },
            ("http" | "https", _) => wrong("is of a website"),
            _ => wrong("has an unknown scheme"),
        }
    }
}

/// The user, the host and the port of an address behind its scheme. All have only characters that neither a shell nor a
/// program that takes options reads as anything else.
fn split(rest: &str) -> Result<(Option<&str>, &str, Option<u16>), &'static str> {
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, rest),
    };
    let plain = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    if user.is_some_and(|user| !plain(user.split(':').next().unwrap_or_default(), "._-\\")) {
        return Err("has a user that is not one");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err("has something behind its host");
    }
    // An address of version 6 stands in brackets.
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
            let host = &rest[..address.len() + 2];
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').unwrap_or("?")) })
        }
        Some(_) => return Err("has no host"),
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    if !host.starts_with('[') && !plain(host, "._-") {
        return Err("has no host");
    }
    match port.map(str::parse) {
        None => Ok((user, host, None)),
        Some(Ok(0) | Err(_)) => Err("has a port that is not one"),
        Some(Ok(port)) => Ok((user, host, Some(port))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Option<TlsFiles> {
        let file = |name: &str| PathBuf::from(format!("/tls/{name}"));
        Some(TlsFiles { ca: file("ca"), cert: file("cert"), key: file("key") })
    }

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, tls, shown) in [
            ("", None, "local"),
            ("local", None, "local"),
            ("unix:///run/docker.sock", None, "unix:///run/docker.sock"),
            ("tcp://engine.example:2376", files(), "tcp://engine.example:2376"),
            ("tcp://[::1]:2376/", files(), "tcp://[::1]:2376"),
            ("ssh://engine", None, "ssh://engine"),
            ("ssh://me@engine_1.example:2222", None, "ssh://me@engine_1.example:2222"),
            ("ssh://me@[fe80::1]", None, "ssh://me@[fe80::1]"),
        ] {
            assert_eq!(Place::parse(text, tls).map(|place| place.url()), Ok(shown.to_owned()), "{text}");
        }
        assert!(EngineAddress::default().is_local());
        let ssh = |text| EngineAddress { place: Place::parse(text, None).unwrap(), ssh: None };
        assert_eq!(ssh("ssh://me@engine"), ssh("ssh://me@engine/"));
        assert_eq!(ssh("ssh://me@engine").to_string(), "ssh://…@engine");
    }

    #[test]
    fn mistakes_are_named_with_what_would_be_right_and_without_passwords() {
        for (text, tls, says) in [
            ("engine", None, "has no scheme"),
            ("unix://run/docker.sock", None, "has no absolute path"),
            ("unix:///run/docker.sock", files(), "takes no TLS files"),
            ("tcp://engine:2375", None, "is root for everybody who reaches it"),
            ("tcp://engine", files(), "has no port"),
            ("tcp://engine:0", files(), "has a port that is not one"),
            ("tcp://engine:x", files(), "has a port that is not one"),
            ("tcp://[::1]2376", files(), "has a port that is not one"),
            ("tcp://[engine]:2376", files(), "has no host"),
            ("tcp://:2376", files(), "has no host"),
            ("tcp://me:secret@engine:1", files(), "has a user or a password"),
            ("ssh://me:secret@engine", None, "has a password"),
            ("ssh://-oProxyCommand=secret", None, "has no host"),
            ("ssh://-secret@engine", None, "has a user that is not one"),
            ("ssh://me@engine/run/docker.sock", None, "has something behind its host"),
            ("ssh://a b", None, "has no host"),
            ("ssh://", None, "has no host"),
            ("https://engine", None, "is of a website"),
            ("npipe:////./pipe", None, "has an unknown scheme"),
        ] {
            let problem = Place::parse(text, tls).unwrap_err();
            assert!(problem.contains(says) && problem.ends_with(RIGHT), "{text}: {problem}");
            assert!(!problem.contains("me:secret") && !problem.contains('\n'), "{text}: {problem}");
        }
        let missing = EngineAddress::parse("tcp://engine:2376", files(), &SshPlace::below("/")).unwrap_err();
        assert!(missing.starts_with("tcp://engine:2376: CA /tls/ca: No such file"), "{missing}");
    }

    fn command(address: &EngineAddress) -> (Vec<String>, Vec<(String, Option<String>)>) {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", "tcp://evil").env("DOCKER_CONTEXT", "other");
        address.apply(&mut command);
        let text = |text: &std::ffi::OsStr| text.to_str().unwrap().to_owned();
        let envs = command.get_envs().map(|(name, value)| (text(name), value.map(text)));
        (command.get_args().map(text).collect(), envs.collect())
    }

    #[test]
    fn a_client_is_told_by_flags_and_no_variable_says_otherwise() {
        let (args, envs) = command(&EngineAddress::local());
        assert_eq!((args.len(), envs.len()), (0, 2));
        let place = Place::Tcp("engine:2376".to_owned(), files().unwrap());
        let (args, envs) = command(&EngineAddress { place, ssh: None });
        let wanted = "--host tcp://engine:2376 --tlsverify --tlscacert /tls/ca --tlscert /tls/cert --tlskey /tls/key";
        assert_eq!(args.join(" "), wanted);
        assert!(envs.iter().all(|(_, value)| value.is_none()), "{envs:?}");
    }
}
