//! What a miner says, as far as a validator takes it: each text, list and map in a message has a bound, and what is cut
//! says so. Pure.
//!
//! A miner may send 52 MiB in one message, and most of what it says is written to the log, kept on disk, or passed on
//! to the facilitator. So everything that a validator reads of a miner comes through [`read`].
//!
//! | field | bound |
//! | --- | --- |
//! | sentences for people | [`SENTENCE_BYTES`] |
//! | uuids, tokens, hotkeys | [`NAME_BYTES`] |
//! | standard output and error | half a million characters at either end, as executors cut them |
//! | `context` | [`CONTEXT_BYTES`] as JSON, else it is left out |
//! | counts of a manifest | 0 to 10,000 of each class, else the message is refused |
//! | machine specs | [`MACHINE_SPECS_BYTES`] as JSON, else the message is refused |
//! | receipts of a refusal | [`EXCUSES`] |
//! | a streaming server's details | see `streaming`; nothing is cut, because they are signed |
//! | artifacts, upload results | that of the whole message to the facilitator, see `client::job::end_message` |

use serde_json::json;

use super::manifests::MinerManifest;
use crate::base::limits::{EXECUTORS_MAX, MACHINE_SPECS_BYTES, OUTPUT_CHARS};
use crate::base::text::truncated;
use crate::protocol::{DecodeError, JsonMap, MinerToValidator};

/// Bytes of a sentence for people: what an engine or a registry says of a failure fits several times.
pub const SENTENCE_BYTES: usize = 8 << 10;

/// Bytes of a uuid, a token or a hotkey, which have some 48.
pub const NAME_BYTES: usize = 128;

/// Bytes of the `context` of a failure, which has the times of a job and what it moved: some 2 KiB.
pub const CONTEXT_BYTES: usize = 64 << 10;

/// Receipts of a refusal: one for each executor that a miner may have.
pub const EXCUSES: usize = EXECUTORS_MAX as usize;

/// What an output may have beyond [`OUTPUT_CHARS`]: the remark of the peer that has cut it.
const REMARK_CHARS: usize = 1024;

/// A miner's message is not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// It cannot be read.
    #[error("{0}")]
    Decode(#[from] DecodeError),
    /// The machine specs are too large to be passed on.
    #[error("its machine specs have {0} bytes, not at most {MACHINE_SPECS_BYTES}")]
    Specs(usize),
    /// It is a manifest that no miner has; what is wrong, as it may be shown.
    #[error("{0}")]
    Manifest(String),
}

/// Reads a text of a miner.
///
/// # Errors
/// [`Unreadable`]; its text has some hundred characters.
pub fn read(text: &str) -> Result<MinerToValidator, Unreadable> {
    bounded(MinerToValidator::decode(text)?)
}

/// Cuts what is too long.
fn bounded(mut message: MinerToValidator) -> Result<MinerToValidator, Unreadable> {
    use MinerToValidator as M;
    match &mut message {
        M::GenericError(m) => some(&mut m.details, sentence),
        M::UnauthorizedError(m) => some(&mut m.details, sentence),
        // Its keys are classes.
        M::V0ExecutorManifestRequest(m) => drop(MinerManifest::of(m).map_err(Unreadable::Manifest)?),
        M::V0MainHotkeyMessage(m) => some(&mut m.main_hotkey, name),
        M::V0DeclineJobRequest(m) => {
            name(&mut m.job_uuid);
            sentence(&mut m.message);
            context(&mut m.context);
            m.receipts.truncate(EXCUSES);
        }
        M::V0AcceptJobRequest(m) => name(&mut m.job_uuid),
        M::V0ExecutorFailedRequest(m) => {
            name(&mut m.job_uuid);
            some(&mut m.executor_token, name);
        }
        M::V0StreamingJobNotReadyRequest(m) => {
            name(&mut m.job_uuid);
            some(&mut m.executor_token, name);
        }
        M::V0ExecutorReadyRequest(m) => {
            name(&mut m.job_uuid);
            some(&mut m.executor_token, name);
        }
        M::V0StreamingJobReadyRequest(m) => {
            // One that is cut is none of ours, so its signature does not matter.
            name(&mut m.job_uuid);
            some(&mut m.executor_token, name);
        }
        M::V0JobFailedRequest(m) => {
            name(&mut m.job_uuid);
            sentence(&mut m.message);
            some(&mut m.docker_process_stdout, output);
            some(&mut m.docker_process_stderr, output);
            context(&mut m.context);
        }
        M::V0VolumesReadyRequest(m) => name(&mut m.job_uuid),
        M::V0ExecutionDoneRequest(m) => name(&mut m.job_uuid),
        M::V0JobFinishedRequest(m) => {
            name(&mut m.job_uuid);
            output(&mut m.docker_process_stdout);
            output(&mut m.docker_process_stderr);
        }
        M::V0MachineSpecsRequest(m) => {
            name(&mut m.job_uuid);
            let bytes = json_bytes(&m.specs.specs);
            if bytes > MACHINE_SPECS_BYTES {
                return Err(Unreadable::Specs(bytes));
            }
        }
        M::V0HordeFailedRequest(m) => {
            name(&mut m.job_uuid);
            sentence(&mut m.message);
            context(&mut m.context);
        }
    }
    Ok(message)
}

fn some(text: &mut Option<String>, cut: fn(&mut String)) {
    if let Some(text) = text {
        cut(text);
    }
}

fn sentence(text: &mut String) {
    cut(text, SENTENCE_BYTES);
}

fn name(text: &mut String) {
    cut(text, NAME_BYTES);
}

fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        *text = format!("{}… (cut, {} bytes in all)", truncated(text, most), text.len());
    }
}

/// Keeps the two ends of an output, as an executor does.
fn output(text: &mut String) {
    // A character has at least a byte, so most texts are not looked at.
    if text.len() <= OUTPUT_CHARS + REMARK_CHARS {
        return;
    }
    let chars = text.chars().count();
    if chars > OUTPUT_CHARS + REMARK_CHARS {
        let half = OUTPUT_CHARS / 2;
        let at = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
        let (head, tail) = (&text[..at(half)], &text[at(chars - half)..]);
        *text = format!("{head}\n… (cut by the validator, {chars} characters in all)\n{tail}");
    }
}

fn context(context: &mut Option<JsonMap>) {
    if let Some(map) = context {
        let bytes = json_bytes(map);
        if bytes > CONTEXT_BYTES {
            let left_out = format!("{bytes} bytes, not at most {CONTEXT_BYTES}");
            *context = json!({"left_out_by_validator": left_out}).as_object().cloned();
        }
    }
}

/// Bytes of the map as JSON.
fn json_bytes(map: &JsonMap) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, map).expect("a map of JSON can be written");
    count.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{
        GenericError, HordeFailureReason, JobParticipantType, MachineSpecs, V0HordeFailedRequest, V0JobFailedRequest,
        V0JobFinishedRequest, V0MachineSpecsRequest, V0VolumesReadyRequest,
    };

    fn taken(message: impl Into<MinerToValidator>) -> MinerToValidator {
        read(&message.into().encode()).unwrap()
    }

    fn finished(stdout: &str) -> V0JobFinishedRequest {
        V0JobFinishedRequest {
            job_uuid: "u".to_owned(),
            docker_process_stdout: stdout.to_owned(),
            docker_process_stderr: String::new(),
            artifacts: None,
            upload_results: None,
        }
    }

    #[test]
    fn what_honest_miners_say_is_not_changed() {
        let whole = "é".repeat(OUTPUT_CHARS);
        let message = MinerToValidator::from(finished(&whole));
        assert_eq!(taken(finished(&whole)), message);
        let failed = V0JobFailedRequest {
            job_uuid: "u".to_owned(),
            message: "m".repeat(SENTENCE_BYTES),
            reason: crate::protocol::JobFailureReason::Timeout,
            stage: crate::protocol::JobStage::Execution,
            docker_process_exit_status: None,
            docker_process_stdout: Some(whole),
            docker_process_stderr: None,
            context: json!({"timeline": ["x".repeat(1000)]}).as_object().cloned(),
        };
        assert_eq!(taken(failed.clone()), failed.into());
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        let MinerToValidator::GenericError(error) = taken(GenericError { details: Some("é".repeat(20 << 20)) }) else {
            panic!("an error")
        };
        let details = error.details.unwrap();
        assert!(details.starts_with("éé") && details.ends_with("é… (cut, 41943040 bytes in all)"));
        assert!(details.len() < SENTENCE_BYTES + 64);

        let MinerToValidator::V0VolumesReadyRequest(ready) =
            taken(V0VolumesReadyRequest { job_uuid: "u".repeat(900_000) })
        else {
            panic!("volumes")
        };
        assert!(ready.job_uuid.len() < NAME_BYTES + 64, "{}", ready.job_uuid.len());

        let MinerToValidator::V0JobFinishedRequest(result) = taken(finished(&format!("a{}z", "é".repeat(10 << 20))))
        else {
            panic!("a result")
        };
        let stdout = result.docker_process_stdout;
        let remark = "é\n… (cut by the validator, 10485762 characters in all)\né";
        assert!(stdout.starts_with('a') && stdout.contains(remark) && stdout.ends_with('z'));
        assert!(stdout.chars().count() < OUTPUT_CHARS + REMARK_CHARS);

        let context = json!({"c": "x".repeat(CONTEXT_BYTES)}).as_object().cloned();
        let MinerToValidator::V0HordeFailedRequest(failed) = taken(V0HordeFailedRequest {
            job_uuid: "u".to_owned(),
            reported_by: JobParticipantType::Miner,
            message: "m".repeat(1 << 20),
            reason: HordeFailureReason::Unknown,
            context,
        }) else {
            panic!("a failure")
        };
        assert!(failed.message.ends_with("(cut, 1048576 bytes in all)"));
        let context = json!(failed.context).to_string();
        assert_eq!(context, r#"{"left_out_by_validator":"65544 bytes, not at most 65536"}"#);
    }

    #[test]
    fn a_manifest_that_no_miner_has_is_refused() {
        let manifest = |count: &str| {
            let manifest = format!(r#"{{"always_on.gpu-24gb":1,"always_on.test":{count}}}"#);
            read(&format!(r#"{{"message_type":"V0ExecutorManifestRequest","manifest":{manifest}}}"#))
        };
        assert!(manifest("0").is_ok() && manifest("10000").is_ok());
        for count in ["-5", "10001", "9223372036854775807", "99999999999999999999999999"] {
            let why = manifest(count).unwrap_err().to_string();
            let expected = format!("its manifest names {count} executors of class always_on.test");
            assert!(why.starts_with(&expected), "{why}");
        }
    }

    #[test]
    fn large_machine_specs_and_deep_brackets_are_refused_in_few_words() {
        let specs = |bytes: usize| {
            let specs = json!({"s": "x".repeat(bytes)}).as_object().cloned().unwrap();
            let job_uuid = "u".to_owned();
            MinerToValidator::from(V0MachineSpecsRequest { job_uuid, specs: MachineSpecs { specs } }).encode()
        };
        assert!(read(&specs(MACHINE_SPECS_BYTES - 8)).is_ok());
        let refused = read(&specs(33 << 20)).unwrap_err();
        assert_eq!(refused.to_string(), "its machine specs have 34603016 bytes, not at most 262144");
        let refused = read(&"[".repeat(1 << 16)).unwrap_err().to_string();
        assert!(refused.contains("recursion limit") && refused.len() < 1000, "{refused}");
    }
}
