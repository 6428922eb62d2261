//! What is to be run, and how a run ended. Pure.

use crate::protocol::{DockerRunOptionsPreset, V0JobRequest};

/// What is to be run, from the initial and the full job request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunSpec {
    /// Goes into the container's name and its label; may hold `[a-zA-Z0-9_.-]` only.
    pub id: String,
    /// The container image; the process runner ignores it.
    pub image: String,
    /// The command with its arguments; empty for the image's own, or for `python /script.py` if there is a script.
    pub command: Vec<String>,
    /// Environment variables, in order.
    pub env: Vec<(String, String)>,
    /// Text of a Python program that the job finds at `/script.py`.
    pub raw_script: Option<String>,
    /// Where a container sees the artifacts folder; absolute. Nothing is mounted for `None` and for an empty text.
    pub artifacts_dir: Option<String>,
    /// Whether the job gets all GPUs (the preset `nvidia_all`).
    pub gpus: bool,
    /// The container network; `None` is the sandbox's. The process runner has the network of its machine.
    pub network: Option<String>,
    /// More labels for the container, for instance of the miner that owns it.
    pub labels: Vec<(String, String)>,
}

impl RunSpec {
    /// What a job request asks for, to be run under `id`: without network and further labels.
    pub fn from_request(id: impl Into<String>, request: &V0JobRequest) -> Self {
        Self {
            id: id.into(),
            image: request.docker_image.clone(),
            command: request.docker_run_cmd.clone(),
            env: request.env.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            raw_script: request.raw_script.clone(),
            artifacts_dir: request.artifacts_dir.clone(),
            gpus: request.docker_run_options_preset == DockerRunOptionsPreset::NvidiaAll,
            ..Self::default()
        }
    }

    /// The command that a job with a script and no command of its own runs, as on the Python executor.
    pub(super) fn command_or_script(&self) -> Vec<String> {
        if self.command.is_empty() && self.raw_script.is_some() {
            return vec!["python".into(), SCRIPT_PATH.into()];
        }
        self.command.clone()
    }

    pub(super) fn artifacts_dir(&self) -> Option<&str> {
        self.artifacts_dir.as_deref().filter(|dir| !dir.is_empty())
    }

    /// What no runner takes; it names the field and the rule.
    pub(super) fn problem(&self) -> Option<String> {
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                let rule = "a name must not be empty nor hold = or NUL, a value must not hold NUL";
                return Some(format!("env {key:?}: {rule}"));
            }
        }
        let arg = self.command.iter().find(|arg| arg.contains('\0'))?;
        Some(format!("command argument {arg:?} must not hold NUL"))
    }
}

/// Where a job sees its `raw_script`.
pub(super) const SCRIPT_PATH: &str = "/script.py";

/// A stream as it is reported: at most a million characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// The whole text, or its first and its last half million characters, joined without a mark as on the wire.
    /// Bytes that are not UTF-8 are replaced by U+FFFD.
    pub text: String,
    /// Bytes that the job wrote.
    pub bytes: u64,
    /// Whether `text` lacks the middle.
    pub truncated: bool,
    /// Whether the file lacks the end, because it was too long.
    pub file_truncated: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// It exited by itself; 126 and 127 also stand for a command that cannot be run or was not found.
    Exited(i32),
    /// A signal ended it that we did not send. Of a container this is what its exit code says, 128 + the signal; a
    /// program that exits with such a code by itself cannot be told apart.
    Signalled(i32),
    /// The system killed it because it used more memory than it may (docker runner).
    OutOfMemory {
        /// The bytes that it may use, if that is known.
        limit: Option<u64>,
    },
    /// It was killed because it used more of the disk than it may.
    OverQuota {
        /// What it may use.
        limit: u64,
        /// What it had used when that was seen.
        used: u64,
        /// Of what: `bytes`, or `files and folders`.
        unit: &'static str,
    },
    /// The deadline passed and it was killed.
    TimedOut,
    /// It was killed because the token was cancelled.
    Cancelled,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOutcome {
    /// How it ended.
    pub end: RunEnd,
    /// Standard output, also of a run that was killed.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
}

impl RunOutcome {
    /// The outcome of a run that was cancelled, perhaps by the watch over its disk.
    pub(super) fn or_over(self, over: Option<RunEnd>) -> Self {
        match over {
            Some(end) if self.end == RunEnd::Cancelled => Self { end, ..self },
            _ => self,
        }
    }

    /// The outcome of a run that could use so much memory.
    pub(super) fn with_memory(self, limit: Option<u64>) -> Self {
        match self.end {
            RunEnd::OutOfMemory { .. } => Self { end: RunEnd::OutOfMemory { limit }, ..self },
            _ => self,
        }
    }

    /// The exit code for `docker_process_exit_status`; 128 + N for signal N and none for a run that we ended.
    pub fn exit_code(&self) -> Option<i32> {
        match self.end {
            RunEnd::Exited(code) => Some(code),
            RunEnd::Signalled(signal) => Some(128 + signal),
            RunEnd::OutOfMemory { .. } => Some(137),
            RunEnd::OverQuota { .. } | RunEnd::TimedOut | RunEnd::Cancelled => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::MinerToExecutor;

    #[test]
    fn a_request_s_fields_become_the_spec_s() {
        let text = r#"{"message_type":"V0JobRequest","job_uuid":"u","executor_class":"always_on.test",
            "docker_image":"ubuntu:latest","raw_script":"print(1)","docker_run_options_preset":"nvidia_all",
            "docker_run_cmd":["python","/script.py"],"env":{"B":"2","A":"1"},"artifacts_dir":"/artifacts"}"#;
        let Ok(MinerToExecutor::V0JobRequest(request)) = MinerToExecutor::decode(text) else { panic!("not decoded") };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let expected = RunSpec {
            id: "token".into(),
            image: "ubuntu:latest".into(),
            command: vec!["python".into(), "/script.py".into()],
            env: vec![pair("B", "2"), pair("A", "1")],
            raw_script: Some("print(1)".into()),
            artifacts_dir: Some("/artifacts".into()),
            gpus: true,
            network: None,
            labels: vec![],
        };
        assert_eq!(RunSpec::from_request("token", &request), expected);
    }
}
