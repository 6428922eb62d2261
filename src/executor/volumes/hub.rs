//! Repositories of Hugging Face, through its HTTP API.

use std::env;
use std::path::Path;

use serde::Deserialize;

use super::download::{VolumeError, download};
use super::space::Space;
use crate::base::glob;
use crate::executor::transfer::Bounds;
use crate::executor::workspace::relative;
use crate::net::http::client::HttpClient;
use crate::ops::errors::ErrorClass;
use crate::protocol::{AllowPatterns, HuggingfaceVolume};

/// Where the hub is and how to sign in.
#[derive(Clone)]
pub struct Hub {
    /// Address without a slash at the end.
    pub endpoint: String,
    /// The key for volumes that bring none of their own.
    pub token: Option<String>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self { endpoint: "https://huggingface.co".into(), token: None }
    }
}

impl Hub {
    /// The hub that `HF_ENDPOINT` names, as for Hugging Face's own tools; with `HF_TOKEN` if jobs may use it.
    pub fn from_env(with_token: bool) -> Self {
        Self::of_settings(|name| env::var(name).ok(), with_token)
    }

    fn of_settings(setting: impl Fn(&str) -> Option<String>, with_token: bool) -> Self {
        let set = |name| setting(name).filter(|value| !value.is_empty());
        let default = Self::default();
        let endpoint = set("HF_ENDPOINT").map_or(default.endpoint, |url| url.trim_end_matches('/').to_owned());
        Self { endpoint, token: set("HF_TOKEN").filter(|_| with_token) }
    }
}

/// What the hub says of a revision.
#[derive(Deserialize)]
struct Revision {
    /// The commit, so that all files are of the same one.
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Downloads the files of a repository below `into`.
pub(super) fn fetch(
    http: &HttpClient,
    hub: &Hub,
    volume: &HuggingfaceVolume,
    into: &Path,
    space: &mut Space,
    bounds: Bounds,
) -> Result<(), VolumeError> {
    let bad = |why: String| VolumeError::Repository { repo_id: volume.repo_id.clone(), why };
    check_repo_id(&volume.repo_id).map_err(|why| bad(why.to_owned()))?;
    let (kind, prefix) = match volume.repo_type.as_deref() {
        None | Some("" | "model") => ("models", ""),
        Some("dataset") => ("datasets", "datasets/"),
        Some("space") => ("spaces", "spaces/"),
        Some(other) => return Err(bad(format!("repo_type is {other:?}; it must be model, dataset or space"))),
    };
    let token = volume.token.as_ref().or(hub.token.as_ref());
    let headers: Vec<_> =
        token.map(|token| ("authorization".to_owned(), format!("Bearer {token}"))).into_iter().collect();
    let Hub { endpoint, .. } = hub;
    let repo = &volume.repo_id;
    let revision = encode(volume.revision.as_deref().unwrap_or("main"), "");
    let url = format!("{endpoint}/api/{kind}/{repo}/revision/{revision}");
    let found: Revision = bounds.retry(|_| http.get(&url, &headers, bounds.deadline)?.ok()?.json())?;

    let wanted = |name: &str| match &volume.allow_patterns {
        None => true,
        Some(AllowPatterns::One(pattern)) => is_of(pattern, name),
        Some(AllowPatterns::Any(patterns)) => patterns.iter().any(|pattern| is_of(pattern, name)),
    };
    let names: Vec<String> =
        found.siblings.into_iter().map(|sibling| sibling.rfilename).filter(|n| wanted(n)).collect();
    if names.is_empty() {
        let why = format_args!("no file of {repo} is wanted: its allow_patterns match none");
        bounds.errors.report(ErrorClass::Rejected, "volumes", &why);
    }
    let commit = encode(&found.sha, "");
    for name in names {
        let path = into.join(relative(&name)?);
        let url = format!("{endpoint}/{prefix}{repo}/resolve/{commit}/{}", encode(&name, "/"));
        download(http, &url, &headers, (&path, &name), (u64::MAX, space), bounds)?;
    }
    Ok(())
}

/// A pattern that ends with `/` means everything below that folder, as Hugging Face has it.
fn is_of(pattern: &str, name: &str) -> bool {
    match pattern.ends_with('/') {
        true => glob::matches(&format!("{pattern}*"), name),
        false => glob::matches(pattern, name),
    }
}

fn check_repo_id(repo_id: &str) -> Result<(), &'static str> {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.chars().all(allowed) && !part.chars().all(|c| c == '.')
    };
    match repo_id.split('/').collect::<Vec<_>>()[..] {
        [name] if part(name) => Ok(()),
        [owner, name] if part(owner) && part(name) => Ok(()),
        _ => Err("it is not the name of a repository; it must be like owner/name"),
    }
}

/// Percent-encodes what is not unreserved in an address, except the characters in `keep`.
fn encode(text: &str, keep: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-._~".contains(c) || keep.contains(c) {
            out.push(c);
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_s_token_is_for_jobs_only_if_the_operator_says_so() {
        let setting = |name: &str| Some(format!("{name}/"));
        let hub = |with_token| Hub::of_settings(setting, with_token);
        assert_eq!((hub(false).endpoint.as_str(), hub(false).token), ("HF_ENDPOINT", None));
        assert_eq!(hub(true).token.as_deref(), Some("HF_TOKEN/"));
        assert_eq!(Hub::of_settings(|_| Some(String::new()), true).endpoint, "https://huggingface.co");
    }

    #[test]
    fn a_pattern_of_a_folder_is_for_what_is_below() {
        assert!(is_of("onnx/", "onnx/a/model.onnx") && !is_of("onnx/", "onnx") && is_of("*.bin", "a/x.bin"));
    }

    #[test]
    fn names_are_checked_and_encoded() {
        for good in ["gpt2", "org/model", "o-r.g/m_1"] {
            assert!(check_repo_id(good).is_ok(), "{good}");
        }
        for bad in ["", "a/b/c", "../x", "a/..", "a b", "a?b=c", "/a", "a/"] {
            assert!(check_repo_id(bad).is_err(), "{bad}");
        }
        assert_eq!(encode("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/ż?.bin", "/"), "a%20b/%C5%BC%3F.bin");
    }
}
