//! Names of images, as Docker reads them. Pure.

use crate::base::text::truncated;

/// More than the 255 bytes of a repository, with its host, tag and digest.
const BYTES_MAX: usize = 1024;

/// Of a repository with its host.
const REPOSITORY_BYTES: usize = 255;

/// Of a tag.
const TAG_BYTES: usize = 128;

/// The fewest that a digest has.
const DIGEST_DIGITS: usize = 32;

/// How much of a name that is wrong an error tells.
const SHOWN_BYTES: usize = 80;

/// Whether it is the name of an image, or its number, by the grammar that engines and registries have for it.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check_image_name(name: &str) -> Result<(), String> {
    let shown = truncated(name, SHOWN_BYTES);
    if name.len() > BYTES_MAX {
        return Err(format!("image {shown:?} has a name of {} bytes; at most {BYTES_MAX} fit", name.len()));
    }
    if !is_reference(name) {
        return Err(format!("image {shown:?} is not the name of an image, as in ubuntu:latest"));
    }
    Ok(())
}

/// Whether it follows the engine's grammar: `[HOST[:PORT]/]PART[/PART…][:TAG][@DIGEST]`. The name becomes part of paths
/// at the engine, so nothing else is let through, above all no part `.` or `..`.
fn is_reference(name: &str) -> bool {
    let (name, digest) = name.split_once('@').map_or((name, None), |(name, digest)| (name, Some(digest)));
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    };
    let host = registry(repository);
    let path = host.map_or(repository, |host| &repository[host.len() + 1..]);
    repository.len() <= REPOSITORY_BYTES
        && host.is_none_or(is_host)
        && path.split('/').all(is_part)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest)
}

fn is_host(host: &str) -> bool {
    let (address, port) = match host.rsplit_once(':') {
        Some((address, port)) if !port.ends_with(']') => (address, Some(port)),
        _ => (host, None),
    };
    let is_name = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !(label.is_empty() || label.starts_with('-') || label.ends_with('-'))
    };
    let is_address = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => !v6.is_empty() && v6.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':'),
        None => address.split('.').all(is_name),
    };
    is_address && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A part of a path: small letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_part(part: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |between: &str| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-');
    part.starts_with(is_word) && part.ends_with(is_word) && part.split(is_word).all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= TAG_BYTES && tag.starts_with(is_word) && tag.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(is_word)
        && hex.len() >= DIGEST_DIGITS
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
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
    fn only_names_of_images_pass() {
        let digest = format!("a@sha256:{}", "0f".repeat(32));
        let (number, long_tag) = ("3f".repeat(32), format!("a:{}", "t".repeat(128)));
        for name in [
            "ubuntu:latest",
            "a/b/c",
            "x/a.b_c__d---e/f",
            "r.io:5000/a/b:V1.0-x_y",
            "localhost/x",
            "EVIL/x",
            "[::1]:5000/x:1",
            "host:5000",
            "3f2a",
            "sha256:3f2a",
            &digest,
            &number,
            &long_tag,
        ] {
            assert_eq!(check_image_name(name), Ok(()));
        }
        let (too_long, tag) = ("a".repeat(256), format!("a:{}", "t".repeat(129)));
        for name in [
            "",
            ".",
            "..",
            "../containers/x",
            "../exec/x",
            "../networks/bridge",
            "a/../b",
            "a/./b",
            "r.io/../x",
            "a/..",
            "a/%2e%2e/b",
            "a?x=1",
            "a#b",
            "/a",
            "a//b",
            "a/",
            "a b",
            "a\nb",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a_.b",
            "Ubuntu",
            "a/B",
            "a:",
            "a:.x",
            "a:b:c",
            "a@sha256:00",
            "a@b",
            "oci:/tmp/x",
            "r.io:x/a",
            "-h.io/a",
            "h..io/a",
            "[]/a",
            "ä",
            &too_long,
            &tag,
        ] {
            assert!(check_image_name(name).unwrap_err().contains("is not the name of an image"), "{name}");
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
