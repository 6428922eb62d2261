//! Names of images, as Docker reads them. Pure.

use crate::base::text::truncated;

/// More than the 255 bytes of a repository, with its host, tag and digest.
const BYTES_MAX: usize = 1024;

/// How much of a name that is wrong an error tells.
const SHOWN_BYTES: usize = 80;

/// Whether the engine's client takes it for a name and for nothing else.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check_image_name(name: &str) -> Result<(), String> {
    let shown = truncated(name, SHOWN_BYTES);
    if name.len() > BYTES_MAX {
        return Err(format!("image {shown:?} has a name of {} bytes; at most {BYTES_MAX} fit", name.len()));
    }
    if name.is_empty() || name.starts_with('-') || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("image {shown:?} is not the name of an image, as in ubuntu:latest"));
    }
    Ok(())
}

/// The registry with its port, if the name begins with one: what stands before the first slash is a host if it has a
/// dot or a colon, is `localhost`, or has capitals, which no repository has.
pub(super) fn registry(name: &str) -> Option<&str> {
    let (first, _) = name.split_once('/')?;
    let is_host = first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase);
    is_host.then_some(first)
}

/// The name with what Docker adds: without a registry `docker.io`, without a folder there `library`. It may be a
/// pattern for names, in which `*` stands for any text.
pub(super) fn whole(name: &str) -> String {
    let name = name.strip_prefix("index.docker.io/").map_or(name.to_owned(), |rest| format!("docker.io/{rest}"));
    let with_host = match name.split_once('/') {
        Some((first, _)) if registry(&name).is_some() || first.contains('*') => name,
        Some(_) => format!("docker.io/{name}"),
        // A lone * is about all names of all hosts.
        None if name.starts_with('*') => name,
        None => format!("docker.io/library/{name}"),
    };
    match with_host.strip_prefix("docker.io/") {
        Some(rest) if !rest.contains(['/', '*']) => format!("docker.io/library/{rest}"),
        _ => with_host,
    }
}

/// Whether an engine may take the name for the beginning of this number of an image, `sha256:…`. It does so if no image
/// has the name.
pub(super) fn may_be_number(name: &str, number: &str) -> bool {
    let digits = |text: &'_ str| text.strip_prefix("sha256:").unwrap_or(text).to_owned();
    !digits(name).is_empty() && digits(number).starts_with(&digits(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        for (name, whole_name) in [
            ("busybox", "docker.io/library/busybox"),
            ("docker.io/busybox:1", "docker.io/library/busybox:1"),
            ("index.docker.io/a/b", "docker.io/a/b"),
            ("a/b", "docker.io/a/b"),
            ("EVIL/x", "EVIL/x"),
            ("localhost/x", "localhost/x"),
            ("r:1/x", "r:1/x"),
            ("foo*", "docker.io/library/foo*"),
            ("a/*", "docker.io/a/*"),
            ("*.acme.io/*", "*.acme.io/*"),
            ("*", "*"),
        ] {
            assert_eq!(whole(name), whole_name);
        }
    }

    #[test]
    fn a_number_is_found_by_its_beginning() {
        for (name, is) in [("3f2a", true), ("sha256:3f2a", true), ("f2a", false), ("sha256:", false), ("3f2a:1", false)]
        {
            assert_eq!(may_be_number(name, "sha256:3f2a91"), is, "{name}");
        }
    }
}
