//! Where an engine is: what the client finds by itself, a socket, TLS, or SSH.
//!
//! An engine's API is root on its machine. So plain TCP is refused, and the `ssh` that the client starts for `ssh://`
//! is ours: it passes on to the real one with options that come before those of any configuration, so that a host whose
//! key is not known, or is another one now, is never talked to.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::tool::ToolError;
use crate::ops::redact::{OneLine, secrets};

/// What is right, for every error of an address.
const RIGHT: &str = "use local, unix:///path, tcp://host:port with TLS files, or ssh://user@host[:port]";

/// What the real `ssh` is told before all else: no question, no unknown key, the same for loopback; and a machine that
/// is silent for a minute is gone.
const SSH_OPTIONS: [&str; 5] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "NoHostAuthenticationForLocalhost=no",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
];

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

/// The most that is shown of what a client says of an engine elsewhere.
const SHOWN_CHARS: usize = 400;

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
    /// and sees whether there are the files that it needs.
    ///
    /// # Errors
    /// One line that names what is wrong and what would be right.
    pub fn parse(text: &str, tls: Option<TlsFiles>) -> Result<Self, String> {
        let place = Place::parse(text, tls)?;
        let ssh = match &place {
            Place::Ssh(_) => {
                let made = StrictSsh::create();
                Some(Arc::new(made.map_err(|e| format!("cannot write the ssh of {}: {e}", place.url()))?))
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

    /// Whether it is the client's own choice, and not one of our settings.
    pub fn is_local(&self) -> bool {
        self.place == Place::Local
    }

    /// A program of the engine's machine, if it can be run from here: there, or over SSH. `None` behind TLS, and where
    /// the client finds an engine elsewhere by itself.
    pub(crate) fn program(&self, program: &Path, args: &[&str]) -> Option<Command> {
        match &self.place {
            Place::Local => {
                let host = std::env::var("DOCKER_HOST").unwrap_or_default();
                if !host.is_empty() && !host.starts_with("unix://") {
                    return None;
                }
            }
            Place::Unix(_) => {}
            Place::Tcp(..) => return None,
            Place::Ssh(_) => {
                let mut command = Command::new("ssh");
                command.args(["-T", "--", &self.place.url()]).arg(program).args(args);
                if let Some(ssh) = &self.ssh {
                    command.env("PATH", ssh.path());
                }
                return Some(command);
            }
        }
        let mut command = Command::new(program);
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

/// A folder with an `ssh` in it that checks host keys whatever the configuration says. It is removed when dropped.
#[derive(Debug)]
struct StrictSsh(tempfile::TempDir);

impl StrictSsh {
    fn create() -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("phalanx-ssh-").tempdir()?;
        if folder.path().to_string_lossy().contains(':') {
            return Err(io::Error::other("the folder of temporary files has a colon in its name"));
        }
        let options: String = SSH_OPTIONS.iter().map(|option| format!(" -o {option}")).collect();
        // Without the folder itself, which is the first of the path.
        let script = format!("#!/bin/sh\nPATH=${{PATH#*:}}\nexec ssh{options} \"$@\"\n");
        let file = folder.path().join("ssh");
        let mut made = fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&file)?;
        io::Write::write_all(&mut made, script.as_bytes())?;
        Ok(Self(folder))
    }

    /// A path on which it comes first. If somebody has removed it (folders of temporary files are swept), nothing else
    /// is on the path: no other `ssh` takes its place.
    fn path(&self) -> OsString {
        let ours = |file: &fs::Metadata| {
            file.is_file() && file.uid() == rustix::process::geteuid().as_raw() && file.mode() & 0o077 == 0
        };
        let mut path = self.0.path().as_os_str().to_owned();
        if fs::symlink_metadata(self.0.path().join("ssh")).is_ok_and(|file| ours(&file)) {
            path.push(":");
            path.push(std::env::var_os("PATH").unwrap_or_default());
        } else {
            log::error!("{} has no ssh of ours any more; restart the program, or reload it", self.0.path().display());
        }
        path
    }
}

/// What the words of `docker`, `ssh` and TLS mean, in lower case; the first that is found counts.
const REASONS: &[(&str, &str)] = &[
    (
        "remote host identification has changed",
        "its host key is not the one in known_hosts: somebody is in between, or the machine was set up anew (then \
         remove the old key with ssh-keygen -R)",
    ),
    (
        "host key is known for",
        "its host key is not in known_hosts: compare it with the machine's and add it, by connecting once by hand",
    ),
    ("host key verification failed", "its host key was not accepted"),
    ("revoked host key", "its host key is revoked"),
    ("permission denied (", "it refuses our ssh key or user"),
    ("could not resolve hostname", "its name cannot be resolved"),
    ("certificate has expired or is not yet valid", "its certificate has expired or is not valid yet, by this clock"),
    ("signed by unknown authority", "its certificate is not of the CA that the settings name"),
    ("x509: certificate is valid for", "its certificate is for another name than the address has"),
    ("x509: certificate is not valid for any names", "its certificate is for another name than the address has"),
    ("doesn't contain any ip sans", "its certificate is for another name than the address has"),
    ("tls: certificate required", "it asks for a client certificate and got none"),
    ("tls: bad certificate", "it refuses our certificate: it has expired, or is not of the CA that the engine trusts"),
    ("seems invalid", "our CA is not a PEM file"),
    ("tls: unknown certificate authority", "it refuses our certificate: it is not of the CA that the engine trusts"),
    ("tls: expired certificate", "it refuses our certificate: it has expired"),
    ("tls: private key does not match public key", "our certificate and our key do not belong together"),
    ("tls: failed to find any pem data", "our certificate or key is not a PEM file"),
    ("first record does not look like a tls handshake", "it does not speak TLS"),
    ("docker: not found", "there is no docker program on that machine for this user"),
    ("docker: command not found", "there is no docker program on that machine for this user"),
    ("connection refused", "nothing answers at that port"),
    ("connection timed out", "it does not answer"),
    ("no route to host", "there is no way to it"),
];

/// What clients say when they could not talk to an engine, in lower case. All else is the engine's own answer, with
/// words of others in it.
const NOT_CONNECTED: [&str; 5] = [
    "error during connect",
    "cannot connect to the docker daemon",
    "failed to connect to the docker api",
    "the server probably has client authentication",
    "failed to retrieve context tls info",
];

fn reason(text: &str) -> Option<String> {
    let lower = text.to_lowercase();
    NOT_CONNECTED.iter().find(|words| lower.contains(*words))?;
    if let Some((_, reason)) = REASONS.iter().find(|(words, _)| lower.contains(words)) {
        return Some((*reason).to_owned());
    }
    let said = text.split_once("stderr=").map_or(text, |(_, said)| said).trim();
    Some(OneLine(&said.chars().take(SHOWN_CHARS).collect::<String>()).to_string())
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
        assert!(EngineAddress::default().is_local() && EngineAddress::parse("local", None).unwrap().is_local());
        let ssh = EngineAddress::parse("ssh://me@engine", None).unwrap();
        assert_eq!(ssh, EngineAddress::parse("ssh://me@engine/", None).unwrap());
        assert_eq!(ssh.to_string(), "ssh://…@engine");
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
            let problem = EngineAddress::parse(text, tls).unwrap_err();
            assert!(problem.contains(says) && problem.ends_with(RIGHT), "{text}: {problem}");
            assert!(!problem.contains("me:secret") && !problem.contains('\n'), "{text}: {problem}");
        }
        let missing = EngineAddress::parse("tcp://engine:2376", files()).unwrap_err();
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

    #[test]
    fn the_ssh_of_a_client_is_ours_and_passes_on_to_the_real_one() {
        let address = EngineAddress::parse("ssh://me@engine:22", None).unwrap();
        let (args, envs) = command(&address);
        assert_eq!(args, ["--host", "ssh://me@engine:22"]);
        let path = envs.iter().find_map(|(name, value)| (name == "PATH").then(|| value.clone())).flatten().unwrap();
        let (ours, rest) = path.split_once(':').unwrap();
        assert_eq!(rest, std::env::var("PATH").unwrap());
        let real = tempfile::tempdir().unwrap();
        let stand_in = real.path().join("ssh");
        let echo = std::env::split_paths(rest).map(|at| at.join("echo")).find(|at| at.exists()).unwrap();
        std::os::unix::fs::symlink(echo, stand_in).unwrap();
        // By the shell: another test's child may still have the file open that was just written.
        let mut ssh = Command::new("/bin/sh");
        ssh.arg(Path::new(ours).join("ssh"));
        let path = format!("{ours}:{}:{rest}", real.path().display());
        let said = ssh.args(["-T", "--", "engine", "docker"]).env("PATH", path).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.starts_with("-o BatchMode=yes -o StrictHostKeyChecking=yes "), "{said}");
        assert!(said.ends_with(" -T -- engine docker\n"), "{said}");
        // One that is gone is not replaced by another.
        fs::remove_file(Path::new(ours).join("ssh")).unwrap();
        let (_, envs) = command(&address);
        assert!(envs.contains(&("PATH".to_owned(), Some(ours.to_owned()))), "{envs:?}");
        drop(address);
        assert!(!Path::new(ours).exists());
    }

    #[test]
    fn the_reason_is_found_in_many_lines() {
        let said = "error during connect: Get \"http://x/v1/version\": command [ssh -T -- h docker system dial-stdio] \
            has exited with exit status 255, make sure the URL is valid: stderr=";
        for (text, wanted) in [
            (
                format!("{said}@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n"),
                "is not the one in known_hosts",
            ),
            (
                format!(
                    "{said}No ED25519 host key is known for h and you have requested strict checking.\r\nHost key \
                    verification failed.\r\n"
                ),
                "is not in known_hosts",
            ),
            (format!("{said}me@h: Permission denied (publickey).\r\n"), "refuses our ssh key"),
            (format!("{said}kex: odd\r\nend\u{7}"), "kex: odd\\r\\nend\\u{7}"),
            ("error during connect: x509: certificate has expired or is not yet valid: now is".into(), "has expired"),
            ("error during connect: remote error: tls: certificate required".into(), "asks for a client certificate"),
        ] {
            let error = ToolError::Failed { doing: "ask", text };
            let address = EngineAddress { place: Place::Ssh("h".to_owned()), ssh: None };
            let shown = address.explained(error).to_string();
            assert!(shown.starts_with("cannot ask: ssh://h: ") && shown.contains(wanted), "{shown}");
            assert!(!shown.contains('\n'), "{shown}");
        }
        // The engine's own words stay.
        let text = "Error response from daemon: dial tcp 10.0.0.1:443: connect: connection refused";
        let error = || ToolError::Failed { doing: "ask", text: text.to_owned() };
        let address = EngineAddress { place: Place::Ssh("h".to_owned()), ssh: None };
        assert_eq!(address.explained(error()).to_string(), error().to_string());
    }
}
