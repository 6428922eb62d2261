//! The words of engines, and of registries that they quote. Pure.

use std::time::Duration;

use super::kind::Cause;

/// What a text in lower case says.
pub(super) fn in_words(text: &str) -> Option<Cause> {
    let of_words = || WORDS.iter().find(|(words, _)| text.contains(words)).map(|(_, cause)| *cause);
    let of_job = || (begins_a_part(text, "denied: ").is_some() || is_unresolved(text)).then_some(Cause::JOB);
    quoted_status(text).map(Cause::of_status).or_else(|| of_machine(text)).or_else(of_words).or_else(of_job)
}

/// Where words stand at the beginning of what one of the speakers says.
fn begins_a_part(text: &str, words: &str) -> Option<usize> {
    let begins = |at: &usize| *at == 0 || [": ", "\n", "\""].iter().any(|end| text[..*at].ends_with(end));
    text.match_indices(words).map(|(at, _)| at).find(begins)
}

/// What containerd says of a name that its registry does not know.
fn is_unresolved(text: &str) -> bool {
    text.contains("failed to resolve ") && text.trim_end().ends_with(": not found")
}

/// What a text says of the machine, or of a job that tries to look like one. A job chooses names that engines quote in
/// the middle of what they say: of users, folders, commands and files of its image. So words count here where no name
/// can be: at the beginning, and what the system says of a call at the end.
fn of_machine(text: &str) -> Option<Cause> {
    let (said, by_runtime) = unwrapped(text);
    let begins =
        |words: &str| said.strip_prefix("error ").unwrap_or(said).starts_with(words) || said.starts_with(words);
    if let Some((_, cause)) = BEGINNINGS.iter().find(|(words, _)| begins(words)) {
        return Some(*cause);
    }
    if NOT_BY_THE_MACHINE.iter().any(|words| begins(words)) {
        return None;
    }
    let (_, cause) = ENDS.iter().find(|(words, _)| said.ends_with(words))?;
    match by_runtime {
        false => Some(*cause),
        // A runtime works in the folders that the job asks for: those of the kernel are read-only, others are of any
        // kind.
        true => said.ends_with(READ_ONLY).then_some(Cause::JOB),
    }
}

/// What is said, without the words about who says it and without what is printed before it; and whether it is the OCI
/// runtime that does.
fn unwrapped(text: &str) -> (&str, bool) {
    let mut said = text.trim();
    while let Some((line, rest)) = said.split_once('\n')
        && PROGRESS.iter().any(|words| line.starts_with(words))
    {
        said = rest.trim_start();
    }
    let mut by_runtime = false;
    loop {
        if let Some(rest) = SPEAKERS.iter().find_map(|who| said.strip_prefix(who)) {
            said = rest;
        } else if let Some(rest) = RUNTIMES.iter().find_map(|who| said.strip_prefix(who)) {
            (said, by_runtime) = (rest, true);
        } else if let Some(hook) = said.strip_prefix("error running ").filter(|_| by_runtime) {
            // What it prints begins with its own name.
            said = hook.find(NVIDIA).map_or("", |at| &hook[at..]);
        } else {
            return (said.trim_end_matches('.').trim_end_matches(": unknown"), by_runtime);
        }
    }
}

/// What a registry says with an error code, or what it says in place of what it should: the words behind are its own,
/// so they tell nothing. A status before a code counts, as in the text of an engine.
pub(super) fn of_registry(text: &str) -> Option<Cause> {
    let places =
        REGISTRY_WORDS.iter().filter_map(|(words, cause)| Some((begins_a_part(text, words)?, words.len(), *cause)));
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

/// How the lines begin that engines print before their error.
const PROGRESS: &[&str] = &[
    "copying ",
    "getting image source",
    "resolved ",
    "resolving ",
    "storing signatures",
    "time=\"",
    "trying to pull ",
    "unable to find image ",
    "warning: ",
    "writing manifest",
];

/// Who says it, before what is said.
const SPEAKERS: &[&str] = &[
    "docker: ",
    "error: ",
    "error response from daemon: ",
    "failed to create task for container: ",
    "failed to create shim task: ",
    "failed to create shim: ",
    "failed to register layer: ",
];

/// The same of the OCI runtime.
const RUNTIMES: &[&str] = &[
    "oci runtime create failed: ",
    "oci runtime error: ",
    "runc create failed: ",
    "runc: ",
    "crun: ",
    "unable to start container process: ",
    "error during container init: ",
];

const NVIDIA: &str = "nvidia-container-cli: ";

const READ_ONLY: &str = "read-only file system";

/// How engines begin, in lower case and without the word error.
const BEGINNINGS: &[(&str, Cause)] = &[
    ("permission denied while trying to connect", Cause::OPERATOR),
    ("got permission denied while trying to connect", Cause::OPERATOR),
    ("cannot connect to the docker daemon", Cause::OPERATOR_PASSING),
    ("failed to connect to the docker api", Cause::OPERATOR_PASSING),
    ("cannot connect to podman", Cause::OPERATOR_PASSING),
    ("unable to connect to podman", Cause::OPERATOR_PASSING),
    ("during connect: ", Cause::OPERATOR_PASSING),
    ("dial unix", Cause::OPERATOR_PASSING),
    ("connection error: desc", Cause::OPERATOR_PASSING),
    ("creating temporary lease: ", Cause::OPERATOR_PASSING),
    ("conflict. the container name", Cause::OPERATOR_PASSING),
    ("creating container storage: the container name", Cause::OPERATOR_PASSING),
    // The machine lacks what its settings ask for.
    ("unknown or invalid runtime name", Cause::OPERATOR),
    ("unknown runtime", Cause::OPERATOR),
    ("could not select device driver", Cause::OPERATOR),
    ("default oci runtime", Cause::OPERATOR),
    ("requested oci runtime", Cause::OPERATOR),
    ("container-init binary not found", Cause::OPERATOR),
    ("setting rlimit", Cause::OPERATOR),
    ("setrlimit `", Cause::OPERATOR),
    ("cdi device injection failed", Cause::OPERATOR),
    ("setting up cdi devices", Cause::OPERATOR),
    ("devmapper: thin pool has ", Cause::OPERATOR),
    ("unable to apply cgroup configuration", Cause::OPERATOR_PASSING),
    ("fork/exec ", Cause::OPERATOR_PASSING),
    // Its other errors are of what an image asks for or has in the places of the driver's files.
    ("nvidia-container-cli: initialization error", Cause::OPERATOR),
    ("nvidia-container-cli: detection error", Cause::OPERATOR),
];

/// How engines end if the machine is full, broken or stopping.
const ENDS: &[(&str, Cause)] = &[
    ("no space left on device", Cause::OPERATOR),
    ("disk quota exceeded", Cause::OPERATOR),
    (READ_ONLY, Cause::OPERATOR),
    ("too many open files", Cause::OPERATOR_PASSING),
    ("too many open files in system", Cause::OPERATOR_PASSING),
    ("cannot allocate memory", Cause::OPERATOR_PASSING),
    ("device or resource busy", Cause::OPERATOR_PASSING),
    ("input/output error", Cause::OPERATOR_PASSING),
    ("shutting down", Cause::OPERATOR_PASSING),
    ("database is locked", Cause::OPERATOR_PASSING),
    (": unavailable", Cause::OPERATOR_PASSING),
];

/// How engines begin if the end is by somebody else: a name of the job's, or the text of a registry, which a job can
/// choose as well. The codes are those of the distribution API; engines know no others.
const NOT_BY_THE_MACHINE: &[&str] = &[
    "cannot mount volume over existing file",
    "invalid ",
    "errors:",
    "blob unknown",
    "blob upload",
    "denied: ",
    "digest invalid",
    "manifest ",
    "name invalid",
    "name unknown",
    "size invalid",
    "tag invalid",
    "toomanyrequests: ",
    "unauthorized",
    "unavailable: ",
    "unknown: ",
    "unsupported: ",
    "pull access denied",
    "repository ",
    "get \"",
    "head \"",
    "parsing http",
    "received unexpected http status",
    "initializing source",
    "pinging container registry",
    "reading manifest",
    "failed to resolve reference",
];

/// What engines say of images and requests, wherever they say it, in lower case; the first row that is found counts.
const WORDS: &[(&str, Cause)] = &[
    ("toomanyrequests", Cause::NETWORK_PASSING),
    ("too many requests", Cause::NETWORK_PASSING),
    ("manifest unknown", Cause::JOB),
    ("manifest for", Cause::JOB),
    ("name unknown", Cause::JOB),
    ("no such image", Cause::JOB),
    ("image not known", Cause::JOB),
    ("did not resolve to an alias", Cause::JOB),
    ("repository does not exist", Cause::JOB),
    ("does not exist or no pull access", Cause::JOB),
    ("pull access denied", Cause::JOB),
    ("access to the resource is denied", Cause::JOB),
    ("access to the requested resource is not authorized", Cause::JOB),
    ("insufficient_scope", Cause::JOB),
    ("no basic auth credentials", Cause::JOB),
    ("unauthorized", Cause::JOB),
    ("authentication required", Cause::JOB),
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
    ("unable to find group", Cause::JOB),
    ("uids and gids must be in range", Cause::JOB),
    ("cannot mount volume over existing file", Cause::JOB),
    ("invalid volume specification", Cause::JOB),
    ("invalid mount path", Cause::JOB),
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

/// Whether an engine that was to use an image does not have it.
pub(super) fn is_image_gone(text: &str) -> bool {
    let (said, _) = unwrapped(text);
    said.starts_with("no such image: ") || said.ends_with(": image not known")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cause::Fault;

    #[test]
    fn names_that_a_registry_does_not_know() {
        for text in [
            "Error response from daemon: failed to resolve reference \"r/x:1\": r/x:1: not found",
            "Error response from daemon: repository r/x not found: does not exist or no pull access",
        ] {
            assert_eq!(Cause::of_pull(text, "r/x:1"), Cause::JOB, "{text}");
        }
        let text = "failed to resolve reference \"r/x:1\": failed to do request: dial tcp: lookup r: no such host";
        assert_eq!(Cause::of_pull(text, "r/x:1"), Cause::NETWORK_PASSING);
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
            // A runtime's own troubles are no registry's refusal.
            ("OCI runtime create failed: open /proc/self/attr/apparmor/exec: permission denied: unknown", {
                Cause::NETWORK_PASSING
            }),
            ("OCI runtime create failed: error mounting \"proc\" to rootfs: permission denied: unknown.", {
                Cause::NETWORK_PASSING
            }),
            ("devmapper: Thin Pool has 0 free data blocks which is less than minimum required", Cause::OPERATOR),
            ("failed to register layer: devmapper: Thin Pool has 0 free data blocks", Cause::OPERATOR),
            // It was there when it was pulled.
            ("Error response from daemon: No such image: app:1", Cause::OPERATOR_PASSING),
            ("Unable to find image 'app:1' locally\ndocker: Error response from daemon: No such image: app:1.", {
                Cause::OPERATOR_PASSING
            }),
            ("Error: app:1: image not known", Cause::OPERATOR_PASSING),
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
    fn no_name_of_a_job_s_choice_is_the_machine_s_trouble() {
        let docker = "docker: Error response from daemon: ";
        let runc = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
            container process: ";
        let ends = ENDS.iter().map(|(words, _)| *words);
        for words in ends.chain(BEGINNINGS.iter().map(|(words, _)| *words)) {
            for name in [words.to_owned(), format!("/a: {words}"), format!("a\nerror: {words}: {words}\n: {words}")] {
                for text in [
                    format!("unable to find user {name}: no matching entries in passwd file"),
                    format!("{docker}unable to find group {name}: no matching entries in group file"),
                    format!("{docker}lstat /var/lib/docker/overlay2/0/merged/file/{name}: not a directory."),
                    format!("{docker}Cannot mkdir: {name} is not a directory"),
                    format!("{docker}cannot mount volume over existing file, file exists /overlay2/0/merged/{name}"),
                    format!("{docker}invalid mount path: '{name}' mount path must be absolute"),
                    format!("{runc}exec: \"{name}\": executable file not found in $PATH: unknown"),
                    format!("{runc}exec: \"{name}\": stat {name}: not a directory: unknown"),
                    format!("{runc}error during container init: mkdir /sys/{name}: read-only file system: unknown"),
                    format!(
                        "{docker}{runc}error during container init: error mounting \"/var/lib/docker/volumes/0/_data\" \
                        to rootfs at \"/sys/{name}\": mkdir /sys/{name}: read-only file system: unknown"
                    ),
                    format!("Error: unable to find user {name}: no matching entries in passwd file"),
                    format!("Error: creating container 8b9c workdir: mkdir /overlay/0/merged/{name}: not a directory"),
                    format!("Error: workdir \"{name}\" exists on container 8eb5, but is not a directory"),
                    format!(
                        "Error: crun: executable file `{name}` not found in $PATH: No such file or directory: OCI \
                        runtime attempted to invoke a command that was not found"
                    ),
                    format!("Error: crun: mkdir `/sys/{name}`: Read-only file system"),
                ] {
                    assert_eq!(Cause::of_engine(&text), Cause::JOB, "{text}");
                }
            }
        }
        // Whose fault these are is not known, but not that of the machine.
        for text in [
            "mkdir /dev/x: cannot allocate memory: unknown",
            "error running prestart hook #0: exit status 1, stdout: , stderr: nvidia-container-cli: requirement error: \
                unsatisfied condition: cuda>=99: nvidia-container-cli: initialization error: unknown",
            "error running hook #0: exit status 1, stderr: nvidia-container-cli: device error: x: unknown device",
        ] {
            assert_ne!(Cause::of_engine(&format!("{docker}{runc}{text}")).fault, Fault::Operator, "{text}");
        }
        let hook = "error running prestart hook #0: exit status 1, stdout: , stderr: Auto-detected mode as 'legacy'\n\
            nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown";
        assert_eq!(Cause::of_engine(&format!("{docker}{runc}{hook}")), Cause::OPERATOR);
    }

    #[test]
    fn no_word_of_a_registry_or_of_a_file_s_name_is_the_machine_s_trouble() {
        for (words, _) in ENDS.iter().chain(BEGINNINGS) {
            for text in [
                format!("Error response from daemon: unknown: {words}"),
                format!("Error response from daemon: Get \"https://r/v2/\": {words}"),
                format!("errors:\ndenied: {words}\nunknown: {words}"),
                format!("failed to register layer: mkdir /x: {words}: file exists"),
                format!(
                    "Trying to pull r:5000/app:1...\nError: initializing source docker://r:5000/app:1: reading \
                    manifest 1 in r:5000/app: unknown: {words}"
                ),
            ] {
                for image in ["r:5000/app:1", "initializing:source", "reading/manifest", "unknown", "error"] {
                    assert_ne!(Cause::of_pull(&text, image).fault, Fault::Operator, "{image}: {text}");
                }
            }
        }
        for text in [
            "failed to register layer: write /x: no space left on device",
            "Trying to pull r:5000/app:1...\nGetting image source signatures\nError: writing blob: storing blob to \
                file \"/var/tmp/x\": write: no space left on device",
        ] {
            assert_eq!(Cause::of_pull(text, "r:5000/app:1"), Cause::OPERATOR, "{text}");
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
