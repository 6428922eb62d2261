//! Whose fault a failure of something external is, and whether trying again may help: one table for HTTP servers,
//! registries, the Docker Engine and the operating system. Pure.
//!
//! What has a number (a status, an error of the system) is read by it. Words are read only where the other side gives
//! nothing else, as an engine that passes on what a registry said. What no row knows is passing and the network's: an
//! unknown failure blames no user, and one more try is cheap.

use std::io;
use std::time::Duration;

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
    /// A server shows a certificate that is refused. It may have ended, its authority may not be known to this machine,
    /// or this machine's clock may be wrong: all will be the same at the next try, and none is what a job asks for.
    pub const CERTIFICATE: Self = Self::NETWORK;
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
        Self::in_words(&text.to_lowercase()).unwrap_or(Self::NETWORK_PASSING)
    }

    /// The same of a pull. The job has chosen the image's name, so no word of it may take the blame off the job; nor
    /// may a registry's, which may be the job's own.
    pub fn of_pull(text: &str, image: &str) -> Self {
        let (text, image) = (text.to_lowercase(), image.to_lowercase());
        if let Some(cause) = of_registry(&text) {
            return cause;
        }
        let repository = image.split('@').next().unwrap_or_default();
        let (path, tag) = match repository.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (repository, ""),
        };
        // Engines quote the name whole, without its tag, and without its host.
        let local = path.split_once('/').map_or("", |(_, local)| local);
        let names = [image.as_str(), repository, path, local, tag].into_iter().filter(|name| !name.is_empty());
        let without = names.fold(text.clone(), |text, name| text.replace(name, ""));
        // What is left of the words may be too little to be known, if the name is as common as "a".
        let blamed = || Self::in_words(&text).filter(|cause| cause.fault == Fault::Job);
        Self::in_words(&without).or_else(blamed).unwrap_or(Self::NETWORK_PASSING)
    }

    fn in_words(text: &str) -> Option<Self> {
        let known = || ENGINE_WORDS.iter().find(|(words, _)| text.contains(words)).map(|(_, cause)| *cause);
        quoted_status(text).map(Self::of_status).or_else(known)
    }
}

/// What a registry says with an error code, or what it says in place of what it should: the words behind are its own,
/// so they tell nothing. A status before a code counts, as in the text of an engine.
fn of_registry(text: &str) -> Option<Cause> {
    let place = |words: &str| {
        let begins = |at: &usize| *at == 0 || text[..*at].ends_with(": ") || text[..*at].ends_with('\n');
        text.match_indices(words).map(|(at, _)| at).find(begins)
    };
    let places = REGISTRY_WORDS.iter().filter_map(|(words, cause)| Some((place(words)?, words.len(), *cause)));
    let (at, len, cause) = places.min_by_key(|(at, ..)| *at)?;
    // With the number of a status that is among those words.
    let known = text.get(..at + len + "503".len()).unwrap_or(&text[..at]);
    Some(quoted_status(known).map_or(cause, Cause::of_status))
}

/// How it begins, in lower case: the codes of the distribution specification and of the registries that have more,
/// which engines write without underlines, and the words for answers that are wrong.
const REGISTRY_WORDS: &[(&str, Cause)] = &[
    ("denied: ", Cause::JOB),
    ("unauthorized: ", Cause::JOB),
    ("manifest unknown: ", Cause::JOB),
    ("name unknown: ", Cause::JOB),
    ("name invalid: ", Cause::JOB),
    ("tag invalid: ", Cause::JOB),
    ("insufficient_scope: ", Cause::JOB),
    ("toomanyrequests: ", Cause::NETWORK_PASSING),
    ("unknown: ", Cause::NETWORK_PASSING),
    ("unavailable: ", Cause::NETWORK_PASSING),
    ("unsupported: ", Cause::NETWORK_PASSING),
    ("blob unknown: ", Cause::NETWORK_PASSING),
    ("manifest blob unknown: ", Cause::NETWORK_PASSING),
    ("manifest invalid: ", Cause::NETWORK_PASSING),
    ("manifest unverified: ", Cause::NETWORK_PASSING),
    ("digest invalid: ", Cause::NETWORK_PASSING),
    ("size invalid: ", Cause::NETWORK_PASSING),
    ("range invalid: ", Cause::NETWORK_PASSING),
    ("blob upload unknown: ", Cause::NETWORK_PASSING),
    ("blob upload invalid: ", Cause::NETWORK_PASSING),
    ("server message: ", Cause::JOB),
    ("unsupported media type ", Cause::JOB),
    // A certificate has names, and so has the place that a registry leads to.
    ("x509: ", Cause::CERTIFICATE),
    ("lookup ", Cause::NETWORK_PASSING),
    ("received unexpected http status: ", Cause::NETWORK_PASSING),
    ("malformed ", Cause::NETWORK_PASSING),
];

/// How long the other side asks us to wait, in the text of an engine: `retry-after: 887.29µs`, as registries write it,
/// or whole seconds, as HTTP has it.
pub fn retry_after(text: &str) -> Option<Duration> {
    let text = text.to_lowercase();
    let rest = text.split_once("retry-after:").or_else(|| text.split_once("retry after"))?.1.trim_start();
    let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    let value: f64 = number.parse().ok()?;
    let unit: String = rest[number.len()..].chars().take_while(|c| c.is_alphabetic()).collect();
    let seconds = match unit.as_str() {
        "ns" => value / 1e9,
        "us" | "µs" | "μs" => value / 1e6,
        "ms" => value / 1e3,
        "m" | "min" => value * 60.0,
        "h" => value * 3600.0,
        _ => value,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

/// What engines say, in lower case; the first row that is found counts. Machines that are full or broken come first:
/// what they say is wrapped in words about what they were doing.
const ENGINE_WORDS: &[(&str, Cause)] = &[
    ("no space left", Cause::OPERATOR),
    ("disk quota exceeded", Cause::OPERATOR),
    ("read-only file system", Cause::OPERATOR),
    ("too many open files", Cause::OPERATOR_PASSING),
    ("cannot allocate memory", Cause::OPERATOR_PASSING),
    ("device or resource busy", Cause::OPERATOR_PASSING),
    ("input/output error", Cause::OPERATOR_PASSING),
    ("permission denied while trying to connect", Cause::OPERATOR),
    ("cannot connect to the docker daemon", Cause::OPERATOR_PASSING),
    ("cannot connect to podman", Cause::OPERATOR_PASSING),
    ("unable to connect to podman", Cause::OPERATOR_PASSING),
    ("is the docker daemon running", Cause::OPERATOR_PASSING),
    ("error during connect", Cause::OPERATOR_PASSING),
    ("dial unix", Cause::OPERATOR_PASSING),
    ("shutting down", Cause::OPERATOR_PASSING),
    ("containerd.sock", Cause::OPERATOR_PASSING),
    ("is already in use by", Cause::OPERATOR_PASSING),
    ("database is locked", Cause::OPERATOR_PASSING),
    // The machine lacks what its settings ask for.
    ("runtime name", Cause::OPERATOR),
    ("unknown runtime", Cause::OPERATOR),
    ("could not select device driver", Cause::OPERATOR),
    ("default oci runtime", Cause::OPERATOR),
    ("requested oci runtime", Cause::OPERATOR),
    ("container-init binary not found", Cause::OPERATOR),
    ("error setting rlimit", Cause::OPERATOR),
    ("setrlimit `", Cause::OPERATOR),
    ("unresolvable cdi devices", Cause::OPERATOR),
    ("nvidia-container", Cause::OPERATOR),
    ("toomanyrequests", Cause::NETWORK_PASSING),
    ("too many requests", Cause::NETWORK_PASSING),
    ("manifest unknown", Cause::JOB),
    ("manifest for", Cause::JOB),
    ("name unknown", Cause::JOB),
    ("no such image", Cause::JOB),
    ("image not known", Cause::JOB),
    ("did not resolve to an alias", Cause::JOB),
    ("repository does not exist", Cause::JOB),
    ("pull access denied", Cause::JOB),
    ("access to the resource is denied", Cause::JOB),
    ("access to the requested resource is not authorized", Cause::JOB),
    ("insufficient_scope", Cause::JOB),
    ("no basic auth credentials", Cause::JOB),
    ("unauthorized", Cause::JOB),
    ("authentication required", Cause::JOB),
    ("denied: ", Cause::JOB),
    (": denied", Cause::JOB),
    ("invalid reference format", Cause::JOB),
    ("repository name must be lowercase", Cause::JOB),
    ("no matching manifest for", Cause::JOB),
    ("no image found in", Cause::JOB),
    ("does not match the specified platform", Cause::JOB),
    ("cannot be used on this platform", Cause::JOB),
    ("unsupported media type", Cause::JOB),
    ("max depth exceeded", Cause::JOB),
    ("x509:", Cause::CERTIFICATE),
    ("server gave http response to https client", Cause::NETWORK),
    ("first record does not look like a tls handshake", Cause::NETWORK),
    // Of containers: what the image or the request asks for.
    ("no command specified", Cause::JOB),
    ("no command or entrypoint provided", Cause::JOB),
    ("a command that was not found", Cause::JOB),
    ("oci runtime command not found", Cause::JOB),
    ("executable file not found", Cause::JOB),
    ("exec format error", Cause::JOB),
    ("unable to find user", Cause::JOB),
    ("no matching entries in passwd", Cause::JOB),
    ("is inside /proc", Cause::JOB),
    ("must be mounted on ordinary mountpoint", Cause::JOB),
    ("mount a directory onto a file", Cause::JOB),
    ("not a directory", Cause::JOB),
    ("working directory", Cause::JOB),
    ("workdir \"", Cause::JOB),
];

/// The HTTP status in a text like `received unexpected HTTP status: 503 Service Unavailable`, `StatusCode: 502, ""` or
/// `unexpected status from GET request to https://r/v2/x: 429 Too Many Requests`: the first number of three digits that
/// stands by itself behind the word status, or behind the words of a body that could not be read.
fn quoted_status(text: &str) -> Option<u16> {
    let start = ["status", "error parsing http"].iter().filter_map(|word| text.find(word)).min()?;
    let words = text[start..].split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '(' | ')' | '"'));
    // The number of a port or of a line is a part of a longer word.
    let numbers = words.map(|word| word.trim_end_matches([':', '.'])).filter(|word| word.len() == 3);
    numbers.filter_map(|word| word.parse().ok()).find(|status| (300..600).contains(status))
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
            // Numbers come before words, whoever quotes them.
            (
                "error parsing HTTP 429 response body: invalid character '<': \"<html>unauthorized\"",
                Cause::NETWORK_PASSING,
            ),
            ("reading manifest 1 in r/app: StatusCode: 502, \"denied: \"", Cause::NETWORK_PASSING),
            ("invalid status code from registry 429 (Too Many Requests)", Cause::NETWORK_PASSING),
            (
                "unexpected status code https://r:443/v2/app/manifests/1: 503 Service Unavailable",
                Cause::NETWORK_PASSING,
            ),
            ("unexpected status from HEAD request to https://r/v2/app/manifests/1: 403 Forbidden", Cause::JOB),
            ("received unexpected HTTP status: 404 Not Found", Cause::JOB),
            // Podman's, containerd's and registries' own words.
            ("writing blob: storing blob to file \"/var/tmp/x\": write: no space left on device", Cause::OPERATOR),
            ("Error: unable to connect to Podman socket: Get \"http://d/_ping\"", Cause::OPERATOR_PASSING),
            ("Cannot connect to Podman. Please verify your connection", Cause::OPERATOR_PASSING),
            ("error during connect: Get \"http://x/v1.41/version\": EOF", Cause::OPERATOR_PASSING),
            ("Error response from daemon: dial unix /run/containerd/containerd.sock: connect", Cause::OPERATOR_PASSING),
            ("Error: short-name \"app\" did not resolve to an alias and no registries are defined", Cause::JOB),
            ("denied: access forbidden", Cause::JOB),
            ("pinging container registry r: Get \"https://r/v2/\": dial tcp: i/o timeout", Cause::NETWORK_PASSING),
            ("dial tcp 10.0.0.1:443: connect: connection refused", Cause::NETWORK_PASSING),
            ("Get \"https://r/v2/\": x509: certificate signed by unknown authority", Cause::NETWORK),
            ("filesystem layer verification failed for digest sha256:00", Cause::NETWORK_PASSING),
            // Of containers.
            ("unknown or invalid runtime name: runsc", Cause::OPERATOR),
            ("could not select device driver \"\" with capabilities: [[gpu]]", Cause::OPERATOR),
            ("No command specified", Cause::JOB),
            ("OCI runtime create failed: cannot be mounted because it is inside /proc", Cause::JOB),
            ("something new", Cause::NETWORK_PASSING),
        ] {
            assert_eq!(Cause::of_engine(text), cause, "{text}");
        }
    }

    #[test]
    fn what_podman_says() {
        let (source, reading) =
            ("Error: initializing source docker://r:5000/app:1: ", "reading manifest 1 in r:5000/app: ");
        for (text, cause) in [
            ("manifest unknown: manifest unknown", Cause::JOB),
            ("name unknown", Cause::JOB),
            ("unauthorized", Cause::JOB),
            ("denied", Cause::JOB),
            ("StatusCode: 404, <html>not here</html>", Cause::JOB),
            ("StatusCode: 403, <html>no</html>", Cause::JOB),
            ("toomanyrequests", Cause::NETWORK_PASSING),
            ("too many requests to registry", Cause::NETWORK_PASSING),
            ("received unexpected HTTP status: 503 Service Unavailable", Cause::NETWORK_PASSING),
            ("received unexpected HTTP status: 507 Insufficient Storage", Cause::NETWORK),
        ] {
            assert_eq!(Cause::of_pull(&format!("{source}{reading}{text}"), "r:5000/app:1"), cause, "{text}");
        }
        let pinging = format!("{source}pinging container registry r:5000: Get \"https://r:5000/v2/\": ");
        for (text, cause) in [
            ("tls: first record does not look like a TLS handshake", Cause::NETWORK),
            ("http: server gave HTTP response to HTTPS client", Cause::NETWORK),
            ("x509: certificate signed by unknown authority", Cause::CERTIFICATE),
            ("dial tcp 10.0.0.1:5000: connect: connection refused", Cause::NETWORK_PASSING),
            ("dial tcp: lookup r on 10.0.0.53:53: no such host", Cause::NETWORK_PASSING),
        ] {
            assert_eq!(Cause::of_pull(&format!("{pinging}{text}"), "r:5000/app:1"), cause, "{text}");
        }
        for (text, cause) in [
            ("Error: copying system image from manifest list: writing blob: no space left on device", Cause::OPERATOR),
            (
                "Error: short-name \"a\" did not resolve to an alias and no unqualified-search registries are",
                Cause::JOB,
            ),
            ("Error: repository name must be lowercase", Cause::JOB),
            ("Error: nosuch:1: image not known", Cause::JOB),
            ("Error: no image found in manifest list for architecture \"amd64\", OS \"linux\"", Cause::JOB),
            // Of containers.
            ("Error: default OCI runtime \"runsc\" not found: invalid argument", Cause::OPERATOR),
            ("Error: requested OCI runtime runsc is not available: invalid argument", Cause::OPERATOR),
            ("Error: container-init binary not found on the host: stat /usr/libexec/podman/catatonit", Cause::OPERATOR),
            ("Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all", Cause::OPERATOR),
            ("Error: runc: runc create failed: error setting rlimit type 7: operation not permitted", Cause::OPERATOR),
            ("Error: allocating lock for new container: no space left on device", Cause::OPERATOR),
            ("Error: adding container id to database: database is locked", Cause::OPERATOR_PASSING),
            ("Error: creating container storage: the container name \"x\" is already in use by 5ab0.", {
                Cause::OPERATOR_PASSING
            }),
            ("Error: no command or entrypoint provided, and no CMD or ENTRYPOINT from image", Cause::JOB),
            (
                "Error: runc: exec: \"x\": executable file not found in $PATH: OCI runtime attempted to invoke",
                Cause::JOB,
            ),
            (
                "Error: crun: executable file `x` not found in $PATH: No such file or directory: OCI runtime attempted \
                to invoke a command that was not found",
                Cause::JOB,
            ),
            ("Error: executable file `x` not found in $PATH: OCI runtime command not found error", Cause::JOB),
            ("Error: unable to find user nobodyx: no matching entries in passwd file", Cause::JOB),
            ("Error: workdir \"/none\" does not exist on container 5e3d", Cause::JOB),
            ("Error: workdir \"/bin/sh\" exists on container 8eb5, but is not a directory", Cause::JOB),
            ("Error: OCI runtime error: runc: cannot be mounted because it is inside /proc", Cause::JOB),
        ] {
            assert_eq!(Cause::of_engine(text), cause, "{text}");
        }
    }

    #[test]
    fn a_name_that_a_job_has_chosen_tells_nothing() {
        let image = "r.io/toomanyrequests/app:unauthorized";
        for (text, cause) in [
            ("pull access denied for toomanyrequests/app, repository does not exist", Cause::JOB),
            ("Error response from daemon: Get \"https://r.io/v2/toomanyrequests/app/x\": EOF", Cause::NETWORK_PASSING),
            ("manifest for r.io/toomanyrequests/app:unauthorized not found", Cause::JOB),
            ("r.io/toomanyrequests/app:unauthorized: i/o timeout", Cause::NETWORK_PASSING),
            ("toomanyrequests: slow down", Cause::NETWORK_PASSING),
        ] {
            assert_eq!(Cause::of_pull(text, image), cause, "{text}");
        }
        for image in ["a", "manifest", "unknown:1"] {
            assert_eq!(Cause::of_pull("manifest unknown: manifest unknown", image), Cause::JOB, "{image}");
        }
    }

    #[test]
    fn what_a_registry_says_behind_its_code_tells_nothing() {
        let denied = "pull access denied for acme/app, repository does not exist or may require 'docker login': denied";
        for (before, cause) in [
            (denied, Cause::JOB),
            ("unauthorized", Cause::JOB),
            ("manifest for acme/app:1 not found: manifest unknown", Cause::JOB),
            ("repository acme/app not found: name unknown", Cause::JOB),
            ("errors:\ndenied: no\nunauthorized", Cause::JOB),
            ("toomanyrequests", Cause::NETWORK_PASSING),
            ("unknown", Cause::NETWORK_PASSING),
            ("unsupported", Cause::NETWORK_PASSING),
            ("received unexpected HTTP status: 299", Cause::NETWORK_PASSING),
            ("received unexpected HTTP status: 507", Cause::NETWORK),
            ("Get \"https://acme/v2/\": x509: certificate is valid for a", Cause::CERTIFICATE),
            ("Get \"https://a/\": dial tcp: lookup containerd.sock on 10.0.0.53", Cause::NETWORK_PASSING),
            ("net/http: HTTP/1.x transport connection broken: malformed MIME header", Cause::NETWORK_PASSING),
            ("unexpected status from GET request to https://acme/v2/: 429 Too Many Requests: denied", {
                Cause::NETWORK_PASSING
            }),
        ] {
            for words in ["no space left on device", "nvidia-container-cli: x", "status: 503", "ö"] {
                let text = format!("Error response from daemon: {before}: {words}");
                assert_eq!(Cause::of_pull(&text, "acme/app:1"), cause, "{text}");
            }
        }
        // The engine's own words.
        for text in
            ["failed to register layer: write /a: no space left on device", "write /denied: read-only file system"]
        {
            assert_eq!(Cause::of_pull(text, "denied"), Cause::OPERATOR, "{text}");
        }
    }

    #[test]
    fn a_wait_that_is_asked_for_is_found_in_words() {
        for (text, wait) in [
            ("toomanyrequests: retry-after: 887.29µs, allowed: 44000/minute", Some(Duration::from_nanos(887_290))),
            ("429 Too Many Requests (Retry-After: 3)", Some(Duration::from_secs(3))),
            ("retry after 250ms", Some(Duration::from_millis(250))),
            ("retry-after: 2m", Some(Duration::from_secs(120))),
            ("retry-after: soon", None),
            ("toomanyrequests", None),
        ] {
            assert_eq!(retry_after(text), wait, "{text}");
        }
    }
}
