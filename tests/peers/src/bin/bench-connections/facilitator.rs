//! A facilitator on tokio, as far as a comparison needs one: it authenticates validators, knows when it last heard of
//! each, takes the signed jobs of a user over HTTP, and sends each to its validator. It keeps jobs in memory alone.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures_util::{SinkExt, StreamExt};
use phalanx_peers::job::JobRequest;
use phalanx_peers::keys::{self, Trusted};
use schnorrkel::PublicKey;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::serve::READ_BUFFER_BYTES;
use crate::work::SUCCESS;

/// Jobs on their way to one validator.
const QUEUE: usize = 64;

/// What all connections share.
pub struct Facilitator {
    /// Validators that may come, by their keys in hex, with their addresses.
    validators: HashMap<String, (PublicKey, String)>,
    users: Trusted,
    /// By address.
    sessions: Mutex<HashMap<String, Session>>,
    jobs: Mutex<HashMap<String, Job>>,
    count: AtomicU64,
}

struct Session {
    jobs: mpsc::Sender<String>,
    heard: Instant,
}

struct Job {
    request: String,
    statuses: Vec<(String, Instant)>,
}

#[derive(Deserialize)]
#[serde(tag = "message_type")]
#[allow(clippy::enum_variant_names)] // The names of the wire.
enum Text {
    V0AuthenticationRequest { public_key: String, signature: String },
    V0Heartbeat {},
    V0JobStatusUpdate { uuid: String, status: String },
}

impl Facilitator {
    pub fn new(validators: impl IntoIterator<Item = PublicKey>, user: &str) -> Result<Self, String> {
        let validators = validators.into_iter().map(|key| (hex::encode(key.to_bytes()), (key, keys::ss58(&key))));
        Ok(Self {
            validators: validators.collect(),
            users: keys::trusted([user])?,
            sessions: Mutex::default(),
            jobs: Mutex::default(),
            count: AtomicU64::new(0),
        })
    }

    /// Whose authentication it is.
    fn authenticate(&self, public_key: &str, signature: &str) -> Result<String, String> {
        let (key, address) = self.validators.get(public_key).ok_or("the validator is not known")?;
        let signature = hex::decode(signature.trim_start_matches("0x")).map_err(|error| error.to_string())?;
        match keys::verify(key, &key.to_bytes(), &signature) {
            true => Ok(address.clone()),
            false => Err("the signature is of another key".to_owned()),
        }
    }

    /// A validator's connection.
    pub async fn validator(&self, stream: TcpStream) -> Result<(), String> {
        let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
        let mut socket = accept_async_with_config(stream, Some(config)).await.map_err(|error| error.to_string())?;
        let (jobs, mut waiting) = mpsc::channel(QUEUE);
        let mut known: Option<String> = None;
        loop {
            let answer = tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Text(text))) => self.take(&text, &mut known, &jobs)?,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
                    Some(Ok(_)) => continue,
                },
                Some(job) = waiting.recv() => Some(job),
            };
            if let Some(answer) = answer {
                socket.send(Message::Text(answer.into())).await.map_err(|error| error.to_string())?;
            }
        }
    }

    fn take(
        &self,
        text: &str,
        known: &mut Option<String>,
        jobs: &mpsc::Sender<String>,
    ) -> Result<Option<String>, String> {
        let now = Instant::now();
        let text = serde_json::from_str(text).map_err(|error| format!("a text that cannot be read: {error}"))?;
        let mut sessions = self.sessions.lock().expect("nobody panics with it");
        if let Text::V0AuthenticationRequest { public_key, signature } = &text {
            drop(sessions);
            let address = self.authenticate(public_key, signature)?;
            let session = Session { jobs: jobs.clone(), heard: now };
            self.sessions.lock().expect("nobody panics with it").insert(address.clone(), session);
            *known = Some(address);
            return Ok(Some(SUCCESS.to_owned()));
        }
        let address = known.as_ref().ok_or("it has not said who it is")?;
        sessions.get_mut(address).ok_or("it has no session")?.heard = now;
        if let Text::V0JobStatusUpdate { uuid, status } = text {
            let mut jobs = self.jobs.lock().expect("nobody panics with it");
            jobs.get_mut(&uuid).ok_or("a status of no job")?.statuses.push((status, now));
            return Ok(Some(SUCCESS.to_owned()));
        }
        Ok(None)
    }

    /// A user's connection: one request after the other.
    pub async fn user(&self, stream: TcpStream) -> Result<(), String> {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut line, mut headers) = (String::new(), HashMap::new());
            stream.read_line(&mut line).await.map_err(|error| error.to_string())?;
            if line.is_empty() {
                return Ok(());
            }
            loop {
                let mut field = String::new();
                stream.read_line(&mut field).await.map_err(|error| error.to_string())?;
                let Some((name, value)) = field.trim().split_once(": ") else { break };
                headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
            let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.map_err(|error| error.to_string())?;
            let answer = match line.split(' ').nth(1) {
                Some("/auth/nonce") => Ok(json!({"nonce": "nonce"})),
                Some("/auth/login") => Ok(json!({"token": "token"})),
                Some("/api/v1/job-docker/") => self.submit(&headers, &body).await,
                _ => Err("there is nothing here".to_owned()),
            };
            let (status, body) = match answer {
                Ok(body) => ("201 Created", body.to_string()),
                Err(why) => ("400 Bad Request", why),
            };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.map_err(|error| error.to_string())?;
        }
    }

    async fn submit(&self, headers: &HashMap<String, String>, body: &[u8]) -> Result<Value, String> {
        let mut body: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let header = |name: &str| headers.get(name).cloned().ok_or_else(|| format!("{name} is missing"));
        let fields = body.as_object_mut().ok_or("the body is no object")?;
        let target = fields.remove("target_validator_hotkey").and_then(|target| target.as_str().map(str::to_owned));
        let target = target.ok_or("target_validator_hotkey is missing")?;
        if let Some(Value::Array(mut volumes)) = fields.remove("volumes") {
            fields.insert("volume".to_owned(), volumes.pop().unwrap_or_default());
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let uuid = format!("00000000-4f89-41d3-9a0c-{number:012x}");
        let time = header("x-ch-timestamp-ns")?.parse::<u64>().map_err(|error| error.to_string())?;
        fields.extend([
            ("uuid".to_owned(), uuid.as_str().into()),
            ("type".to_owned(), "job.new".into()),
            ("message_type".to_owned(), "V2JobRequest".into()),
            (
                "signature".to_owned(),
                json!({
                    "signature_type": header("x-ch-signature-type")?,
                    "signatory": header("x-ch-signatory")?,
                    "timestamp_ns": time,
                    "signature": header("x-ch-signature")?,
                    "signature_scope": header("x-ch-signature-scope")?,
                }),
            ),
        ]);
        let job = JobRequest::deserialize(body).map_err(|error| error.to_string())?;
        job.verify(&self.users)?;
        let request = job.encode();
        let kept = Job { request: request.clone(), statuses: vec![("sent".to_owned(), Instant::now())] };
        self.jobs.lock().expect("nobody panics with it").insert(uuid.clone(), kept);
        let session = self.sessions.lock().expect("nobody panics with it").get(&target).map(|one| one.jobs.clone());
        let session = session.ok_or("the validator is away")?;
        session.send(request).await.map_err(|_| "the validator has gone")?;
        let jobs = self.jobs.lock().expect("nobody panics with it");
        Ok(json!({"uuid": uuid, "bytes": jobs[&uuid].request.len(), "statuses": jobs[&uuid].statuses.len()}))
    }
}
