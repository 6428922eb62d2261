//! What validators and executors say in the miner's tests.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use phalanx::identity::KeyPair;
use phalanx::protocol::{
    DateTime, DockerRunOptionsPreset, ExecutorClass, ExecutorTimingDetails, ExecutorToMiner, JobAcceptedReceiptPayload,
    JobFinishedReceiptPayload, JobStartedReceiptPayload, MachineSpecs, StrMap, StreamingDetails,
    V0ExecutionDoneRequest, V0ExecutorReadyRequest, V0InitialJobRequest, V0JobAcceptedReceiptRequest,
    V0JobFinishedReceiptRequest, V0JobFinishedRequest, V0JobRequest, V0MachineSpecsRequest, V0StreamingJobReadyRequest,
    V0VolumesReadyRequest, ValidatorAuthForMiner, ValidatorToMiner,
};

pub const CLASS: ExecutorClass = ExecutorClass::AlwaysOnTest;
pub const SECOND: Duration = Duration::from_secs(1);

/// A validator that writes to one miner.
#[derive(Clone)]
pub struct Pen {
    pub key: KeyPair,
    pub miner: KeyPair,
}

pub fn unix() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

pub fn uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl Pen {
    pub fn new(validator: &str) -> Self {
        Self { key: KeyPair::from_uri(validator).unwrap(), miner: KeyPair::from_uri("//Bob").unwrap() }
    }

    pub fn auth(&self, timestamp: i64) -> String {
        ValidatorToMiner::from(ValidatorAuthForMiner::sign(&self.key, &self.miner.ss58(), timestamp)).encode()
    }

    /// Every stage has a second, and so has the leeway.
    pub fn initial(&self, job: &str) -> V0InitialJobRequest {
        let payload = JobStartedReceiptPayload {
            job_uuid: job.to_owned(),
            miner_hotkey: self.miner.ss58(),
            validator_hotkey: self.key.ss58(),
            timestamp: DateTime::from(SystemTime::now()),
            executor_class: CLASS,
            is_organic: true,
            ttl: 30,
        };
        let mut request = V0InitialJobRequest {
            validator_signature: None,
            job_uuid: job.to_owned(),
            executor_class: CLASS,
            docker_image: Some("image".to_owned()),
            timeout_seconds: None,
            volume: None,
            job_started_receipt_signature: payload.sign(&self.key),
            job_started_receipt_payload: payload,
            streaming_details: None,
            executor_timing: Some(ExecutorTimingDetails {
                allowed_leeway: 1.into(),
                download_time_limit: 1.into(),
                execution_time_limit: 1.into(),
                upload_time_limit: 1.into(),
                streaming_start_time_limit: 1.into(),
            }),
        };
        request.sign(&self.key);
        request
    }

    pub fn ask(&self, job: &str) -> String {
        ValidatorToMiner::from(self.initial(job)).encode()
    }

    pub fn ask_streaming(&self, job: &str) -> String {
        let mut initial = self.initial(job);
        initial.streaming_details = Some(StreamingDetails { public_key: "pem".to_owned(), executor_ip: None });
        initial.sign(&self.key);
        ValidatorToMiner::from(initial).encode()
    }

    pub fn full(&self, job: &str) -> V0JobRequest {
        let mut request = V0JobRequest {
            validator_signature: None,
            job_uuid: job.to_owned(),
            executor_class: CLASS,
            docker_image: "image".to_owned(),
            raw_script: None,
            docker_run_options_preset: DockerRunOptionsPreset::None,
            docker_run_cmd: vec!["echo".to_owned()],
            env: StrMap::new(),
            volume: None,
            output_upload: None,
            artifacts_dir: None,
        };
        request.sign(&self.key);
        request
    }

    pub fn request(&self, job: &str) -> String {
        ValidatorToMiner::from(self.full(job)).encode()
    }

    pub fn accepted_receipt(&self, job: &str) -> String {
        let now = DateTime::from(SystemTime::now());
        let payload = JobAcceptedReceiptPayload {
            job_uuid: job.to_owned(),
            miner_hotkey: self.miner.ss58(),
            validator_hotkey: self.key.ss58(),
            timestamp: now,
            time_accepted: now,
            ttl: 30,
        };
        let signature = payload.sign(&self.key);
        ValidatorToMiner::from(V0JobAcceptedReceiptRequest { payload, signature }).encode()
    }

    pub fn finished_receipt(&self, job: &str) -> String {
        let now = DateTime::from(SystemTime::now());
        let payload = JobFinishedReceiptPayload {
            job_uuid: job.to_owned(),
            miner_hotkey: self.miner.ss58(),
            validator_hotkey: self.key.ss58(),
            timestamp: now,
            time_started: now,
            time_took_us: 1,
            score_str: "1".to_owned(),
            block_numbers: Vec::new(),
        };
        let signature = payload.sign(&self.key);
        ValidatorToMiner::from(V0JobFinishedReceiptRequest { payload, signature }).encode()
    }
}

/// What an executor says of a job, in the order of a job.
pub struct Says<'a>(pub &'a str);

impl Says<'_> {
    fn job(&self) -> String {
        self.0.to_owned()
    }

    pub fn ready(&self) -> String {
        ExecutorToMiner::from(V0ExecutorReadyRequest { job_uuid: self.job(), executor_token: None }).encode()
    }

    pub fn volumes(&self) -> String {
        ExecutorToMiner::from(V0VolumesReadyRequest { job_uuid: self.job() }).encode()
    }

    pub fn streaming(&self) -> String {
        ExecutorToMiner::from(V0StreamingJobReadyRequest {
            job_uuid: self.job(),
            executor_token: None,
            public_key: "server pem".to_owned(),
            ip: None,
            port: 4433.into(),
            miner_signature: None,
        })
        .encode()
    }

    pub fn done(&self) -> String {
        ExecutorToMiner::from(V0ExecutionDoneRequest { job_uuid: self.job() }).encode()
    }

    pub fn specs(&self) -> String {
        let specs = MachineSpecs { specs: Default::default() };
        ExecutorToMiner::from(V0MachineSpecsRequest { job_uuid: self.job(), specs }).encode()
    }

    pub fn finished(&self, stdout: &str) -> String {
        ExecutorToMiner::from(V0JobFinishedRequest {
            job_uuid: self.job(),
            docker_process_stdout: stdout.to_owned(),
            docker_process_stderr: String::new(),
            artifacts: None,
            upload_results: None,
        })
        .encode()
    }
}

/// The type of a message, or for an error its first words.
pub fn kind(text: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    let details = value["details"].as_str().map(|details| format!("! {details}"));
    let reason = value["reason"].as_str().map(|reason| format!(" {reason}")).unwrap_or_default();
    details.unwrap_or_else(|| {
        let kind = value["message_type"].as_str().unwrap();
        format!("{}{reason}", kind.trim_start_matches("V0").trim_end_matches("Request"))
    })
}
