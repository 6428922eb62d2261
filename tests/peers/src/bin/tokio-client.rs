//! The client of the facilitator link as one writes it on tokio and tokio-tungstenite: batches of feeds with one flush.
//!
//! It does what the stub validator of phalanx must: authenticates, recognises repeated jobs, checks each signature,
//! reports six statuses, keeps each until its answer has come, and sends heartbeats. It does not reconnect.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use futures_util::{FutureExt, SinkExt, StreamExt};
use phalanx_peers::STATUSES;
use phalanx_peers::job::JobRequest;
use phalanx_peers::keys::{self, Trusted};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Interval, interval};
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Jobs between two flushes: enough to share a system call, few enough to keep the facilitator busy meanwhile.
const BATCH: usize = 64;

/// Jobs on their way to the writer; a full queue holds the job tasks back.
const QUEUE: usize = 1024;

const HEARTBEAT_EVERY: Duration = Duration::from_secs(60);

/// A client of the facilitator link on tokio-tungstenite
#[derive(Parser)]
struct Args {
    /// The facilitator's URL
    #[arg(long)]
    facilitator: String,
    /// The validator's seed, 64 hex digits
    #[arg(long)]
    key: String,
    /// Who may sign jobs (SS58)
    #[arg(long)]
    trusted_signer: Vec<String>,
    /// Take jobs without looking at their signatures
    #[arg(long)]
    no_verify: bool,
    /// Check the signatures of jobs that are there at the same time together; on one thread only
    #[arg(long)]
    batch_verify: bool,
    /// Worker threads of the runtime; with 0 everything is on one thread
    #[arg(long, default_value_t = 0)]
    workers: usize,
}

/// What every message shows at first sight; of an answer it is all.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    message_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uuid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow)]
    errors: Option<&'a RawValue>,
}

#[derive(Serialize)]
#[serde(tag = "message_type")]
#[allow(clippy::enum_variant_names)] // The names of the wire.
enum Outgoing<'a> {
    V0AuthenticationRequest { public_key: String, signature: String },
    V0Heartbeat {},
    V0JobStatusUpdate { uuid: &'a str, status: &'a str, metadata: Option<Metadata<'a>> },
}

#[derive(Serialize, Default)]
struct Metadata<'a> {
    miner_response: Option<MinerResponse>,
    job_rejection_details: Option<Rejection<'a>>,
    job_failure_details: Option<()>,
    horde_failure_details: Option<()>,
    streaming_details: Option<()>,
}

#[derive(Serialize, Default)]
struct MinerResponse {
    docker_process_stderr: &'static str,
    docker_process_stdout: &'static str,
    artifacts: Option<()>,
    upload_results: Option<()>,
}

#[derive(Serialize)]
struct Rejection<'a> {
    rejected_by: &'static str,
    reason: &'static str,
    message: &'a str,
    context: Option<()>,
}

impl Outgoing<'_> {
    fn encode(&self) -> Utf8Bytes {
        serde_json::to_string(self).expect("a message is JSON").into()
    }
}

/// Runs one job; gives its updates.
fn run(job: &JobRequest, trusted: Option<&Trusted>) -> Vec<Utf8Bytes> {
    let update = |status, metadata| Outgoing::V0JobStatusUpdate { uuid: &job.uuid, status, metadata }.encode();
    if let Some(Err(message)) = trusted.map(|trusted| job.verify(trusted)) {
        let rejection =
            Rejection { rejected_by: "validator", reason: "invalid_signature", message: &message, context: None };
        let metadata = Metadata { job_rejection_details: Some(rejection), ..Metadata::default() };
        return vec![update("rejected", Some(metadata))];
    }
    let last = STATUSES.len() - 1;
    let mut updates: Vec<_> = STATUSES[..last].iter().map(|status| update(status, None)).collect();
    let metadata = Metadata { miner_response: Some(MinerResponse::default()), ..Metadata::default() };
    updates.push(update(STATUSES[last], Some(metadata)));
    updates
}

/// What came, as far as the reader looks at it.
enum Incoming {
    Job(Utf8Bytes),
    Answer { refused: Option<String> },
    Nothing,
}

#[derive(Default)]
struct Reader {
    seen: HashSet<String>,
}

impl Reader {
    fn read(&mut self, message: Message) -> Result<Incoming, Failure> {
        let text = match message {
            Message::Text(text) if text.as_str() != "PING" => text,
            Message::Close(_) => return Err("the facilitator closed".into()),
            _ => return Ok(Incoming::Nothing),
        };
        let envelope: Envelope = serde_json::from_str(&text)?;
        match (envelope.message_type.as_deref(), envelope.uuid, envelope.status) {
            (None, _, Some(status)) => {
                let refused = (status != "success").then(|| envelope.errors.map_or("", RawValue::get).to_owned());
                Ok(Incoming::Answer { refused })
            }
            (Some("V2JobRequest"), Some(uuid), _) if self.seen.insert(uuid.to_string()) => Ok(Incoming::Job(text)),
            (Some("V2JobRequest"), ..) => Ok(Incoming::Nothing),
            _ => Err(format!("a message of no known kind: {text}").into()),
        }
    }
}

/// Updates without an answer yet.
#[derive(Default)]
struct Unanswered(VecDeque<Utf8Bytes>);

impl Unanswered {
    fn answered(&mut self, refused: Option<String>) -> Result<(), Failure> {
        let update = self.0.pop_front().ok_or("an answer without a question")?;
        if let Some(why) = refused {
            eprintln!("refused {update}: {why}");
        }
        Ok(())
    }
}

async fn connect(args: &Args) -> Result<Socket, Failure> {
    let key = keys::keypair(&args.key)?;
    let public = key.public.to_bytes();
    let (mut socket, _) = connect_async_with_config(&args.facilitator, None, true).await?;
    let signature = format!("0x{}", hex::encode(keys::sign(&key, &public)));
    let hello = Outgoing::V0AuthenticationRequest { public_key: hex::encode(public), signature };
    socket.send(Message::Text(hello.encode())).await?;
    let answer = socket.next().await.ok_or("no answer to the authentication")??;
    match Reader::default().read(answer)? {
        Incoming::Answer { refused: None } => {}
        _ => return Err("the authentication was refused".into()),
    }
    socket.send(Message::Text(Outgoing::V0Heartbeat {}.encode())).await?;
    Ok(socket)
}

async fn heartbeats() -> Interval {
    let mut beat = interval(HEARTBEAT_EVERY);
    beat.tick().await; // The first comes at once, and was sent.
    beat
}

/// Everything in one task: takes what is there, then flushes.
async fn one_task(args: &Args, trusted: Option<&Trusted>) -> Result<(), Failure> {
    let mut socket = connect(args).await?;
    let mut reader = Reader::default();
    let mut unanswered = Unanswered::default();
    let mut beat = heartbeats().await;
    loop {
        let mut next = tokio::select! {
            message = socket.next() => Some(message),
            _ = beat.tick() => {
                socket.send(Message::Text(Outgoing::V0Heartbeat {}.encode())).await?;
                continue;
            }
        };
        let mut texts = Vec::new();
        while let Some(message) = next {
            match reader.read(message.ok_or("the connection ended")??)? {
                Incoming::Job(text) => texts.push(text),
                Incoming::Answer { refused } => unanswered.answered(refused)?,
                Incoming::Nothing => {}
            }
            next = if texts.len() < BATCH { socket.next().now_or_never() } else { None };
        }
        let jobs: Vec<JobRequest> = texts.iter().map(|text| serde_json::from_str(text)).collect::<Result<_, _>>()?;
        // A single signature is cheaper to check alone.
        let together = |trusted| args.batch_verify && jobs.len() > 1 && JobRequest::verify_all(&jobs, trusted);
        let unchecked = trusted.filter(|trusted| !together(trusted));
        for update in jobs.iter().flat_map(|job| run(job, unchecked)) {
            unanswered.0.push_back(update.clone());
            socket.feed(Message::Text(update)).await?;
        }
        socket.flush().await?;
    }
}

/// A reading task, a task for each job, and a writing task.
async fn many_tasks(args: &Args, trusted: Option<Trusted>) -> Result<(), Failure> {
    let (mut sink, mut stream) = connect(args).await?.split();
    let trusted = Arc::new(trusted);
    let unanswered = Arc::new(Mutex::new(Unanswered::default()));
    let (jobs, mut done) = mpsc::channel::<Vec<Utf8Bytes>>(QUEUE);
    let asked = unanswered.clone();
    let mut writer = tokio::spawn(async move {
        let mut beat = heartbeats().await;
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                count = done.recv_many(&mut batch, BATCH) => if count == 0 { return Ok(()) },
                _ = beat.tick() => sink.feed(Message::Text(Outgoing::V0Heartbeat {}.encode())).await?,
            }
            for update in batch.drain(..).flatten() {
                asked.lock().expect("nobody panics with it").0.push_back(update.clone());
                sink.feed(Message::Text(update)).await?;
            }
            sink.flush().await?;
        }
    });
    let reader = async {
        let mut reader = Reader::default();
        loop {
            match reader.read(stream.next().await.ok_or("the connection ended")??)? {
                Incoming::Job(text) => {
                    let (jobs, trusted) = (jobs.clone(), trusted.clone());
                    tokio::spawn(async move {
                        match serde_json::from_str(&text) {
                            // Without a writer the client is about to end.
                            Ok(job) => drop(jobs.send(run(&job, trusted.as_ref().as_ref())).await),
                            Err(error) => eprintln!("ignored a job that cannot be read: {error}"),
                        }
                    });
                }
                Incoming::Answer { refused } => {
                    unanswered.lock().expect("nobody panics with it").answered(refused)?;
                }
                Incoming::Nothing => {}
            }
        }
    };
    tokio::select! {
        ended = reader => ended,
        ended = &mut writer => ended?.map_err(|error: tungstenite::Error| error.into()),
    }
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let trusted = keys::trusted(args.trusted_signer.iter().map(String::as_str))?;
    let trusted = (!args.no_verify).then_some(trusted);
    if args.workers == 0 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(one_task(&args, trusted.as_ref()));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(args.workers).enable_all().build()?;
    // A task of its own, as the thread that blocks on the runtime is none of its workers.
    runtime.block_on(async { tokio::spawn(async move { many_tasks(&args, trusted).await }).await })?
}
