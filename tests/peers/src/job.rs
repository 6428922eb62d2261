//! The job request of the facilitator link, and what of it is signed.

use std::borrow::Cow;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2b512, Digest};
use indexmap::IndexMap;
use schnorrkel::Keypair;
use serde::{Deserialize, Serialize, Serializer};

use crate::keys::{self, Trusted};

/// A map that keeps its order, which is signed.
type Strings = IndexMap<String, String>;

/// `V2JobRequest`.
#[derive(Debug, Serialize, Deserialize)]
pub struct JobRequest<'a> {
    /// The user's signature.
    #[serde(borrow)]
    pub signature: Option<Signature<'a>>,
    /// `job.new`
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    /// `V2JobRequest`
    #[serde(borrow)]
    pub message_type: Cow<'a, str>,
    /// The job.
    #[serde(borrow)]
    pub uuid: Cow<'a, str>,
    /// Not signed.
    #[serde(borrow)]
    pub job_namespace: Option<Cow<'a, str>>,
    /// On what it runs.
    #[serde(borrow)]
    pub executor_class: Cow<'a, str>,
    /// The container's image.
    #[serde(borrow)]
    pub docker_image: Cow<'a, str>,
    /// Its command.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Strings,
    /// Without effect.
    pub use_gpu: bool,
    /// Input.
    pub volume: Option<Volume>,
    /// Output.
    pub output_upload: Option<Upload>,
    /// Folder of artifacts.
    #[serde(borrow)]
    pub artifacts_dir: Option<Cow<'a, str>>,
    /// Whether the validator's own miner runs it.
    pub on_trusted_miner: bool,
    /// Seconds.
    pub download_time_limit: i64,
    /// Seconds.
    pub execution_time_limit: i64,
    /// Seconds.
    pub upload_time_limit: i64,
    /// Seconds.
    pub streaming_start_time_limit: i64,
    /// For streaming jobs.
    #[serde(borrow)]
    pub streaming_details: Option<StreamingDetails<'a>>,
}

/// The signature of a job.
#[derive(Debug, Serialize, Deserialize)]
pub struct Signature<'a> {
    /// `bittensor`
    #[serde(borrow)]
    pub signature_type: Cow<'a, str>,
    /// Who signed (SS58).
    #[serde(borrow)]
    pub signatory: Cow<'a, str>,
    /// When.
    pub timestamp_ns: u64,
    /// Base64.
    #[serde(borrow)]
    pub signature: Cow<'a, str>,
    /// `SignedFields`
    #[serde(borrow)]
    pub signature_scope: Cow<'a, str>,
}

/// Who may connect to a streaming job.
#[derive(Debug, Serialize, Deserialize)]
pub struct StreamingDetails<'a> {
    /// A certificate.
    #[serde(borrow)]
    pub public_key: Cow<'a, str>,
    /// Filled in by the miner.
    #[serde(borrow)]
    pub executor_ip: Option<Cow<'a, str>>,
}

/// One pattern or several.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Patterns {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// What a job finds under `/volume/`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "volume_type", rename_all = "snake_case")]
#[allow(missing_docs)] // The wire names say it all.
pub enum Volume {
    Inline {
        contents: String,
        relative_path: Option<String>,
    },
    ZipUrl {
        contents: String,
        relative_path: Option<String>,
    },
    SingleFile {
        url: String,
        relative_path: String,
    },
    HuggingfaceVolume {
        repo_id: String,
        repo_type: Option<String>,
        revision: Option<String>,
        relative_path: Option<String>,
        allow_patterns: Option<Patterns>,
        token: Option<String>,
    },
    MultiVolume {
        volumes: Vec<Volume>,
    },
}

/// Where a job's output goes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "output_upload_type", rename_all = "snake_case")]
#[allow(missing_docs)] // The wire names say it all.
pub enum Upload {
    ZipAndHttpPost {
        url: String,
        form_fields: Option<Strings>,
    },
    ZipAndHttpPut {
        url: String,
    },
    #[rustfmt::skip] // In one line it is a column too wide.
    SingleFilePost {
        url: String,
        form_fields: Option<Strings>,
        relative_path: String,
        signed_headers: Option<Strings>,
    },
    SingleFilePut {
        url: String,
        relative_path: String,
        signed_headers: Option<Strings>,
    },
    MultiUpload {
        uploads: Vec<Upload>,
        system_output: Option<Box<Upload>>,
    },
}

/// What the user signs.
#[derive(Serialize)]
struct SignedFields<'a> {
    executor_class: &'a str,
    docker_image: &'a str,
    args: &'a [String],
    env: &'a Strings,
    use_gpu: bool,
    artifacts_dir: &'a str,
    on_trusted_miner: bool,
    download_time_limit: i64,
    execution_time_limit: i64,
    upload_time_limit: i64,
    streaming_start_time_limit: i64,
    streaming_details: &'a Option<StreamingDetails<'a>>,
    #[serde(serialize_with = "volumes")]
    volumes: &'a Option<Volume>,
    #[serde(serialize_with = "uploads")]
    uploads: &'a Option<Upload>,
}

fn volumes<S: Serializer>(volume: &Option<Volume>, out: S) -> Result<S::Ok, S::Error> {
    match volume {
        Some(Volume::MultiVolume { volumes }) => out.collect_seq(volumes),
        other => out.collect_seq(other),
    }
}

fn uploads<S: Serializer>(upload: &Option<Upload>, out: S) -> Result<S::Ok, S::Error> {
    match upload {
        Some(Upload::MultiUpload { uploads, .. }) => out.collect_seq(uploads),
        other => out.collect_seq(other),
    }
}

/// A text as Python's `json.dumps` writes it: in ASCII.
fn python_string(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 4 + 2);
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend(b"\\\""),
            '\\' => out.extend(b"\\\\"),
            '\n' => out.extend(b"\\n"),
            '\r' => out.extend(b"\\r"),
            '\t' => out.extend(b"\\t"),
            '\x08' => out.extend(b"\\b"),
            '\x0c' => out.extend(b"\\f"),
            ' '..='~' => out.push(c as u8),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.extend(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
    }
    out.push(b'"');
    out
}

impl JobRequest<'_> {
    /// What is hashed behind the time.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let fields = SignedFields {
            executor_class: &self.executor_class,
            docker_image: &self.docker_image,
            args: &self.args,
            env: &self.env,
            use_gpu: self.use_gpu,
            artifacts_dir: self.artifacts_dir.as_deref().unwrap_or_default(),
            on_trusted_miner: self.on_trusted_miner,
            download_time_limit: self.download_time_limit,
            execution_time_limit: self.execution_time_limit,
            upload_time_limit: self.upload_time_limit,
            streaming_start_time_limit: self.streaming_start_time_limit,
            streaming_details: &self.streaming_details,
            volumes: &self.volume,
            uploads: &self.output_upload,
        };
        python_string(&serde_json::to_string(&fields).expect("the fields are JSON"))
    }

    /// What is signed: a BLAKE2b-512 of the time and the canonical bytes.
    pub fn signed_hash(&self, timestamp_ns: u64) -> [u8; 64] {
        let hasher = Blake2b512::new().chain_update(timestamp_ns.to_be_bytes());
        hasher.chain_update(self.canonical_bytes()).finalize().into()
    }

    /// Signs the job.
    pub fn sign(&mut self, key: &Keypair, timestamp_ns: u64) {
        let signature = keys::sign(key, &self.signed_hash(timestamp_ns));
        self.signature = Some(Signature {
            signature_type: "bittensor".into(),
            signatory: keys::ss58(&key.public).into(),
            timestamp_ns,
            signature: STANDARD.encode(signature).into(),
            signature_scope: "SignedFields".into(),
        });
    }

    /// Checks that one of the trusted signed the job.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn verify(&self, trusted: &Trusted) -> Result<(), String> {
        let signature = self.signature.as_ref().ok_or("the job is not signed")?;
        let key = trusted.get(&*signature.signatory).ok_or("the signatory may not sign jobs")?;
        let bytes = STANDARD.decode(signature.signature.as_bytes()).map_err(|e| format!("the signature is {e}"))?;
        match keys::verify(key, &self.signed_hash(signature.timestamp_ns), &bytes) {
            true => Ok(()),
            false => Err("the signature is not over this job".to_owned()),
        }
    }

    /// Whether the trusted signed all of these; false says only that [`JobRequest::verify`] has to look at each.
    pub fn verify_all(jobs: &[Self], trusted: &Trusted) -> bool {
        let parts = jobs.iter().map(|job| {
            let signature = job.signature.as_ref()?;
            let key = trusted.get(&*signature.signatory)?;
            let bytes: [u8; 64] = STANDARD.decode(signature.signature.as_bytes()).ok()?.try_into().ok()?;
            Some((*key, (job.signed_hash(signature.timestamp_ns), bytes)))
        });
        let parts: Option<(Vec<_>, (Vec<_>, Vec<_>))> = parts.collect();
        parts.is_some_and(|(keys, (hashes, signatures))| keys::verify_all(&keys, &hashes, &signatures))
    }

    /// The text as the facilitator sends it: with the spaces of Python's `json.dumps`.
    pub fn encode(&self) -> String {
        let mut out = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonSpaces);
        self.serialize(&mut serializer).expect("a job is JSON");
        String::from_utf8(out).expect("JSON is UTF-8")
    }
}

struct PythonSpaces;

impl serde_json::ser::Formatter for PythonSpaces {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// A job as they are: a zipped input, a script, artifacts. `n` makes each job's payload its own.
pub fn sample<'a>(n: usize, uuid: &'a str, key: &Keypair, timestamp_ns: u64) -> JobRequest<'a> {
    let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
    let mut job = JobRequest {
        signature: None,
        kind: "job.new".into(),
        message_type: "V2JobRequest".into(),
        uuid: uuid.into(),
        job_namespace: Some("bench.v1".into()),
        executor_class: "always_on.llm.a6000".into(),
        docker_image: "python:3.11-slim".into(),
        args: owned(&["python", "-c", "print(\"hi\")", &format!("--seed={n}")]),
        env: [("MODEL", "llama-3-8b")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        use_gpu: true,
        volume: Some(Volume::ZipUrl { contents: format!("https://data.example/in/{n}.zip"), relative_path: None }),
        output_upload: None,
        artifacts_dir: Some("/artifacts".into()),
        on_trusted_miner: false,
        download_time_limit: 10,
        execution_time_limit: 60,
        upload_time_limit: 10,
        streaming_start_time_limit: 5,
        streaming_details: None,
    };
    job.sign(key, timestamp_ns);
    job
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn recorded_job_requests_are_judged_as_recorded() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/signing.json");
        let vectors: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let everybody: Vec<&str> =
            vectors["keys"].as_array().unwrap().iter().map(|k| k["ss58_address"].as_str().unwrap()).collect();
        let trusted = keys::trusted(everybody).unwrap();
        let mut verdicts = [0, 0];
        for case in vectors["signed_requests"].as_array().unwrap() {
            if case["type"] != "V2JobRequest" {
                continue;
            }
            let text = case["json"].as_str().unwrap();
            let valid = case["valid"].as_bool().unwrap();
            // The peers read no integers past 63 bits, as no job here has one.
            let job: JobRequest = match serde_json::from_str(text) {
                Ok(job) => job,
                Err(error) => {
                    assert!(error.to_string().contains("invalid type: floating point") || !valid, "{error} in {text}");
                    continue;
                }
            };
            assert_eq!(job.verify(&trusted).is_ok(), valid, "{} {}: {text}", case["name"], case["why"]);
            verdicts[usize::from(valid)] += 1;
        }
        assert!(verdicts[0] >= 8 && verdicts[1] >= 20, "too few cases: {verdicts:?}");
    }

    #[test]
    fn a_job_signed_here_is_good_here_and_a_changed_one_is_not() {
        let key = keys::keypair("0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20").unwrap();
        assert_eq!(keys::ss58(&key.public), "5CShbTqxKUgKZBRDu1VGVpivm3m415stz86A5GBdoV7wrU1d");
        let trusted = keys::trusted([keys::ss58(&key.public).as_str()]).unwrap();
        let text = sample(7, "3f2504e0-4f89-41d3-9a0c-0305e82c3301", &key, 1700000000123456789).encode();
        assert!((850..1000).contains(&text.len()), "{} bytes", text.len());
        let job: JobRequest = serde_json::from_str(&text).unwrap();
        job.verify(&trusted).unwrap();
        let other = sample(8, "3f2504e0-4f89-41d3-9a0c-0305e82c3302", &key, 6).encode();
        let mut both = vec![job, serde_json::from_str(&other).unwrap()];
        assert!(JobRequest::verify_all(&both, &trusted));
        both[0].env.insert("X".to_owned(), "1".to_owned());
        assert!(both[0].verify(&trusted).is_err() && both[1].verify(&trusted).is_ok());
        assert!(!JobRequest::verify_all(&both, &trusted));
    }
}
