//! What came of asking a miner for its manifest, and what its first message says. Pure.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::limits::{EXECUTORS_MAX, FIRST_MESSAGE_BYTES};
use crate::base::text::truncated;
use crate::ops::redact::OneLine;
use crate::protocol::{ExecutorClass, Manifest, MinerToValidator, V0ExecutorManifestRequest};

/// Executors of one class that a manifest may name: ten times what a miner of ours can have. More is a mistake, or a
/// lie to get more jobs.
pub const COUNT_MAX: i64 = 10 * EXECUTORS_MAX as i64;

/// Bytes of what a miner says that are shown.
const SHOWN_BYTES: usize = 300;

/// Classes that we do not know and that are named in a warning; a manifest may invent any number.
const UNKNOWN_SHOWN: usize = 8;

/// What came of asking one miner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskOutcome {
    /// It has told its manifest.
    Ok,
    /// Nobody is there, or the connection was refused or broken.
    Refused,
    /// It did not answer in time.
    Timeout,
    /// It answered with something else than the protocol says, or with a manifest that cannot be.
    ProtocolError,
    /// It answered that it does not want us.
    Unauthorized,
    /// It was not asked: its breaker is open, or there was no time.
    Skipped,
}

impl AskOutcome {
    /// All, in the order in which they are counted.
    pub const ALL: [Self; 6] =
        [Self::Ok, Self::Refused, Self::Timeout, Self::ProtocolError, Self::Unauthorized, Self::Skipped];

    /// The word for it in results, metrics and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::ProtocolError => "protocol_error",
            Self::Unauthorized => "unauthorized",
            Self::Skipped => "skipped",
        }
    }

    /// Whether the same question may have another answer soon.
    pub const fn passes(self) -> bool {
        matches!(self, Self::Refused | Self::Timeout)
    }
}

impl fmt::Display for AskOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Executors that a miner offers, by class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MinerManifest {
    /// How many of each class.
    pub executors: BTreeMap<ExecutorClass, u32>,
    /// Classes that we do not know, as they may be shown; the first few.
    pub unknown: Vec<String>,
}

/// What the first message of a miner means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstMessage {
    /// We are welcome.
    Manifest(MinerManifest),
    /// We are not, and why, as it may be shown.
    Unwanted(String),
    /// It should have been something else; what is wrong, as it may be shown.
    Wrong(String),
}

/// Reads the first message of a miner after our authentication.
pub fn read_first(text: &str) -> FirstMessage {
    if text.len() > FIRST_MESSAGE_BYTES {
        let bytes = text.len();
        return FirstMessage::Wrong(format!(
            "its first message has {bytes} bytes; at most {FIRST_MESSAGE_BYTES} are read"
        ));
    }
    match MinerToValidator::decode(text) {
        Ok(MinerToValidator::V0ExecutorManifestRequest(message)) => judge(&message.manifest, Vec::new()),
        Ok(MinerToValidator::GenericError(error)) => FirstMessage::Unwanted(shown(&error.details.unwrap_or_default())),
        Ok(MinerToValidator::UnauthorizedError(error)) => {
            let details = error.details.unwrap_or_default();
            FirstMessage::Unwanted(shown(format!("{} {details}", error.code).trim_end()))
        }
        Ok(_) => FirstMessage::Wrong("its first message is not its manifest".to_owned()),
        Err(error) => without_unknown(text).unwrap_or_else(|| {
            FirstMessage::Wrong(format!("its first message cannot be read: {}", shown(&error.to_string())))
        }),
    }
}

/// Whether what should have been the first message of a miner tells of a job instead: it may have to do that before.
pub(crate) fn is_of_a_job(text: &str) -> bool {
    use MinerToValidator as M;
    MinerToValidator::decode(text).is_ok_and(|message| {
        !matches!(message, M::V0ExecutorManifestRequest(_) | M::GenericError(_) | M::UnauthorizedError(_))
    })
}

/// A manifest that names classes that we do not know: those are left out. `None` if that is not what is wrong.
fn without_unknown(text: &str) -> Option<FirstMessage> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    let manifest = value.get_mut("manifest")?.as_object_mut()?;
    let unknown: Vec<String> = manifest.keys().filter(|name| name.parse::<ExecutorClass>().is_err()).cloned().collect();
    for name in &unknown {
        manifest.remove(name);
    }
    match MinerToValidator::decode(&value.to_string()) {
        Ok(MinerToValidator::V0ExecutorManifestRequest(message)) if !unknown.is_empty() => {
            Some(judge(&message.manifest, unknown.iter().take(UNKNOWN_SHOWN).map(|name| shown(name)).collect()))
        }
        _ => None,
    }
}

fn judge(manifest: &Manifest, unknown: Vec<String>) -> FirstMessage {
    let mut executors = BTreeMap::new();
    for (class, count) in manifest {
        match u32::try_from(count.saturating_i64()) {
            Ok(count) if i64::from(count) <= COUNT_MAX => {
                executors.insert(*class, count);
            }
            _ => {
                let count = shown(&count.to_string());
                return FirstMessage::Wrong(format!(
                    "its manifest names {count} executors of class {class}; it should be 0 to {COUNT_MAX}"
                ));
            }
        }
    }
    FirstMessage::Manifest(MinerManifest { executors, unknown })
}

impl MinerManifest {
    /// What a message tells.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn of(message: &V0ExecutorManifestRequest) -> Result<Self, String> {
        match judge(&message.manifest, Vec::new()) {
            FirstMessage::Manifest(manifest) => Ok(manifest),
            FirstMessage::Unwanted(why) | FirstMessage::Wrong(why) => Err(why),
        }
    }

    /// The same as routing has it.
    pub(crate) fn counts(&self) -> HashMap<ExecutorClass, i64> {
        self.executors.iter().map(|(class, count)| (*class, i64::from(*count))).collect()
    }

    /// The message by which a miner tells it; classes that we do not know are not in it.
    pub fn message(&self) -> MinerToValidator {
        let manifest = self.executors.iter().map(|(class, count)| (*class, i64::from(*count).into())).collect();
        V0ExecutorManifestRequest { manifest }.into()
    }
}

/// What a peer wrote, bounded and in one line.
pub(crate) fn shown(text: &str) -> String {
    let kept = truncated(text, SHOWN_BYTES);
    let rest = if kept.len() < text.len() { "…" } else { "" };
    format!("{}{rest}", OneLine(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> FirstMessage {
        read_first(&format!(r#"{{"message_type":"V0ExecutorManifestRequest","manifest":{text}}}"#))
    }

    fn offers(counts: &[(ExecutorClass, u32)], unknown: &[&str]) -> FirstMessage {
        let unknown = unknown.iter().map(|name| (*name).to_owned()).collect();
        FirstMessage::Manifest(MinerManifest { executors: counts.iter().copied().collect(), unknown })
    }

    fn wrong(first: FirstMessage) -> String {
        match first {
            FirstMessage::Wrong(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_manifest_is_what_it_says() {
        let (test, gpu) = (ExecutorClass::AlwaysOnTest, ExecutorClass::AlwaysOnGpu24gb);
        assert_eq!(manifest("{}"), offers(&[], &[]));
        let told = manifest(r#"{"always_on.test":2,"always_on.gpu-24gb":0}"#);
        assert_eq!(told, offers(&[(test, 2), (gpu, 0)], &[]));
        let most = manifest(r#"{"always_on.gpu-24gb":10000}"#);
        assert_eq!(most, offers(&[(gpu, 10_000)], &[]));
    }

    #[test]
    fn negative_and_absurd_counts_are_no_manifest() {
        for count in ["-1", "10001", "99999999999999999999999", "-99999999999999999999999"] {
            let why = wrong(manifest(&format!(r#"{{"always_on.test":1,"always_on.gpu-24gb":{count}}}"#)));
            assert!(why.starts_with(&format!("its manifest names {count} executors of class")), "{why}");
        }
        assert!(wrong(manifest(r#"{"always_on.test":"many"}"#)).starts_with("its first message cannot be read"));
    }

    #[test]
    fn classes_that_nobody_knows_are_told_and_left_out() {
        let told = manifest(r#"{"always_on.test":1,"always_on.h\n100":4}"#);
        assert_eq!(told, offers(&[(ExecutorClass::AlwaysOnTest, 1)], &["always_on.h\\n100"]));
        let many: Vec<_> = (0..50).map(|n| format!(r#""class-{n}":1"#)).collect();
        match manifest(&format!("{{{}}}", many.join(","))) {
            FirstMessage::Manifest(told) => assert_eq!((told.executors.len(), told.unknown.len()), (0, UNKNOWN_SHOWN)),
            other => panic!("{other:?}"),
        }
        // The rest of it must be right.
        assert!(wrong(manifest(r#"{"class":1,"always_on.test":-3}"#)).contains("-3 executors"));
        assert!(wrong(manifest(r#"{"class":1,"always_on.test":[]}"#)).starts_with("its first message cannot be read"));
    }

    #[test]
    fn errors_say_that_we_are_not_wanted_and_the_rest_is_wrong() {
        let generic = read_first(r#"{"message_type":"GenericError","details":"Unknown\nvalidator"}"#);
        assert_eq!(generic, FirstMessage::Unwanted("Unknown\\nvalidator".to_owned()));
        let code = read_first(r#"{"message_type":"UnauthorizedError","code":"VALIDATOR_INACTIVE"}"#);
        assert_eq!(code, FirstMessage::Unwanted("VALIDATOR_INACTIVE".to_owned()));
        let other = read_first(r#"{"message_type":"V0AcceptJobRequest","job_uuid":"u"}"#);
        assert_eq!(wrong(other), "its first message is not its manifest");
        for garbage in ["", "{}", "[[[[", "PING", r#"{"message_type":"V0ExecutorManifestRequest"}"#] {
            assert!(wrong(read_first(garbage)).starts_with("its first message cannot be read"), "{garbage}");
        }
    }

    #[test]
    fn what_a_miner_says_is_bounded() {
        let error =
            |details: String| read_first(&format!(r#"{{"message_type":"GenericError","details":"{details}"}}"#));
        match error("ä".repeat(30 << 10)) {
            FirstMessage::Unwanted(why) => assert!(why.len() <= SHOWN_BYTES + 3, "{}", why.len()),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            wrong(error("x".repeat(FIRST_MESSAGE_BYTES))),
            "its first message has 65580 bytes; at most 65536 are read"
        );
    }
}
