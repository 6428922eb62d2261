//! Whose fault a failure of something external is, and whether trying again may help: one table for HTTP servers,
//! registries, the Docker Engine and the operating system. Pure.
//!
//! What has a number (a status, an error of the system) is read by it. Words are read only where the other side gives
//! nothing else, as an engine that passes on what a registry said. What no row knows is passing and the network's: an
//! unknown failure blames no user, and one more try is cheap.

use std::io;

// Errors of the system that `io::ErrorKind` does not tell apart; the numbers are Linux's.
const EIO: i32 = 5;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// What the job asks for cannot be had by anybody: the job has failed.
    Job,
    /// This machine cannot do its part, and its operator has to see to it.
    Operator,
    /// A server or the way to it.
    Network,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cause {
    /// Whose fault it is.
    pub fault: Fault,
    /// Whether the same may succeed later.
    pub passing: bool,
}

impl Cause {
    /// The job asks for what there is not; it will be the same at the next try.
    pub const JOB: Self = Self { fault: Fault::Job, passing: false };
    /// This machine lacks something until somebody sees to it.
    pub const OPERATOR: Self = Self { fault: Fault::Operator, passing: false };
    /// This machine is busy, or a part of it is being started again.
    pub const OPERATOR_PASSING: Self = Self { fault: Fault::Operator, passing: true };
    /// A server is in trouble and will be for longer than a job can wait.
    pub const NETWORK: Self = Self { fault: Fault::Network, passing: false };
    /// A server is busy or the way to it is broken.
    pub const NETWORK_PASSING: Self = Self { fault: Fault::Network, passing: true };

    /// What an HTTP status other than success says of a request that the job asked for (RFC 9110 section 15, RFC 6585):
    /// 408, 425, 429 and most of 5xx ask for another try; everything else will be the same then.
    pub fn of_status(status: u16) -> Self {
        match status {
            408 | 425 | 429 => Self::NETWORK_PASSING,
            // Not implemented, version not supported, too little storage, loop, not extended.
            501 | 505 | 507 | 508 | 510 => Self::NETWORK,
            500..600 => Self::NETWORK_PASSING,
            _ => Self::JOB,
        }
    }

    /// What an error of the system says, for connections and for our own files.
    pub fn of_io(error: &io::Error) -> Self {
        use io::ErrorKind as K;
        match error.kind() {
            K::StorageFull | K::QuotaExceeded | K::ReadOnlyFilesystem | K::PermissionDenied => Self::OPERATOR,
            K::OutOfMemory | K::ResourceBusy => Self::OPERATOR_PASSING,
            _ => match error.raw_os_error() {
                Some(EIO | ENFILE | EMFILE) => Self::OPERATOR_PASSING,
                _ => Self::NETWORK_PASSING,
            },
        }
    }

    /// What the stderr of a `docker` or `podman` command says. A status that it quotes counts before its words.
    pub fn of_engine(text: &str) -> Self {
        let text = text.to_lowercase();
        if let Some(status) = quoted_status(&text) {
            return Self::of_status(status);
        }
        ENGINE_WORDS.iter().find(|(words, _)| text.contains(words)).map_or(Self::NETWORK_PASSING, |(_, cause)| *cause)
    }
}

/// What engines say, in lower case; the first row that is found counts.
const ENGINE_WORDS: &[(&str, Cause)] = &[
    ("no space left on device", Cause::OPERATOR),
    ("disk quota exceeded", Cause::OPERATOR),
    ("read-only file system", Cause::OPERATOR),
    ("too many open files", Cause::OPERATOR_PASSING),
    ("cannot connect to the docker daemon", Cause::OPERATOR_PASSING),
    ("is the docker daemon running", Cause::OPERATOR_PASSING),
    ("permission denied while trying to connect", Cause::OPERATOR),
    ("unable to connect to podman", Cause::OPERATOR_PASSING),
    ("toomanyrequests", Cause::NETWORK_PASSING),
    ("too many requests", Cause::NETWORK_PASSING),
    ("manifest unknown", Cause::JOB),
    ("manifest for", Cause::JOB),
    ("name unknown", Cause::JOB),
    ("no such image", Cause::JOB),
    ("image not known", Cause::JOB),
    ("repository does not exist", Cause::JOB),
    ("pull access denied", Cause::JOB),
    ("requested access to the resource is denied", Cause::JOB),
    ("unauthorized", Cause::JOB),
    ("authentication required", Cause::JOB),
    ("invalid reference format", Cause::JOB),
    ("repository name must be lowercase", Cause::JOB),
    ("no matching manifest for", Cause::JOB),
    ("does not match the specified platform", Cause::JOB),
];

/// The HTTP status in a text like `received unexpected HTTP status: 503 Service Unavailable`.
fn quoted_status(text: &str) -> Option<u16> {
    const BEFORE: [&str; 3] =
        ["unexpected http status: ", "unexpected http status code: ", "invalid status code from registry "];
    let rest = BEFORE.iter().find_map(|before| text.split_once(before))?.1;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_that_ask_for_another_try() {
        for (statuses, cause) in [
            (&[408, 425, 429, 500, 502, 503, 504, 520, 599][..], Cause::NETWORK_PASSING),
            (&[501, 505, 507, 508], Cause::NETWORK),
            (&[304, 307, 400, 401, 403, 404, 410, 413, 416, 451], Cause::JOB),
        ] {
            statuses.iter().for_each(|status| assert_eq!(Cause::of_status(*status), cause, "{status}"));
        }
    }

    #[test]
    fn errors_of_the_system() {
        let raw = |errno: rustix::io::Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for (errno, cause) in [
            (rustix::io::Errno::NOSPC, Cause::OPERATOR),
            (rustix::io::Errno::DQUOT, Cause::OPERATOR),
            (rustix::io::Errno::ROFS, Cause::OPERATOR),
            (rustix::io::Errno::MFILE, Cause::OPERATOR_PASSING),
            (rustix::io::Errno::CONNREFUSED, Cause::NETWORK_PASSING),
            (rustix::io::Errno::CONNRESET, Cause::NETWORK_PASSING),
        ] {
            assert_eq!(Cause::of_io(&raw(errno)), cause, "{errno}");
        }
        assert_eq!(Cause::of_io(&io::Error::other("tls")), Cause::NETWORK_PASSING);
    }

    #[test]
    fn what_engines_say() {
        for (text, cause) in [
            ("toomanyrequests: rate exceeded", Cause::NETWORK_PASSING),
            ("received unexpected HTTP status: 503 Service Unavailable", Cause::NETWORK_PASSING),
            ("received unexpected HTTP status: 403 Forbidden", Cause::JOB),
            ("net/http: TLS handshake timeout", Cause::NETWORK_PASSING),
            ("failed to register layer: write /x: no space left on device", Cause::OPERATOR),
            ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", Cause::OPERATOR_PASSING),
            ("manifest for app:none not found: manifest unknown", Cause::JOB),
            ("pull access denied for app, repository does not exist or may require 'docker login'", Cause::JOB),
            ("Error: initializing source docker://app:1: reading manifest 1 in app: manifest unknown", Cause::JOB),
            ("something new", Cause::NETWORK_PASSING),
        ] {
            assert_eq!(Cause::of_engine(text), cause, "{text}");
        }
    }
}
