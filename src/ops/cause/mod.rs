//! Whose fault a failure of something external is, and whether trying again may help: one table for HTTP servers,
//! registries, the Docker Engine and the operating system. Pure.
//!
//! What has a number (a status, an error of the system) is read by it. Words are read only where the other side gives
//! nothing else, as an engine that passes on what a registry said. What no row knows is passing and the network's: an
//! unknown failure blames no user, and one more try is cheap.

mod kind;
mod words;

use std::io;

pub use kind::{Cause, Fault};
pub use words::retry_after;

// Errors of the system that `io::ErrorKind` does not tell apart; the numbers are Linux's.
const EIO: i32 = 5;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

impl Cause {
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

    /// What the stderr of a `docker` or `podman` command says that makes or starts a container. A status that it quotes
    /// counts before its words. Its image was there before, so somebody has removed it.
    pub fn of_engine(text: &str) -> Self {
        let text = text.to_lowercase();
        match words::is_image_gone(&text) {
            true => Self::OPERATOR_PASSING,
            false => words::in_words(&text).unwrap_or(Self::NETWORK_PASSING),
        }
    }

    /// The same of a pull. The job has chosen the image's name, so no word of it may take the blame off the job; nor
    /// may a registry's, which may be the job's own.
    pub fn of_pull(text: &str, image: &str) -> Self {
        let (text, image) = (text.to_lowercase(), image.to_lowercase());
        if let Some(cause) = words::of_registry(&text) {
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
        // What is left of the words may be too little to be known, if the name is as common as "a", or to tell who
        // speaks.
        let whole = words::in_words(&text);
        let is_machine = |cause: Option<Self>| cause.is_some_and(|cause| cause.fault == Fault::Operator);
        match words::in_words(&without) {
            Some(cause) if cause.fault != Fault::Operator || is_machine(whole) => cause,
            _ => whole.filter(|cause| cause.fault == Fault::Job).unwrap_or(Self::NETWORK_PASSING),
        }
    }
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
}
