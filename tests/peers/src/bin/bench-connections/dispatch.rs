//! A table of validators at a facilitator: ours, and one on tokio.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use phalanx_peers::job::sample;
use phalanx_peers::meter::{self, Reading};
use phalanx_peers::{keys, table};
use schnorrkel::Keypair;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval_at};

use crate::compare::Server;
use crate::drive::{Clients, Target};
use crate::work;

#[derive(clap::Args)]
pub struct Args {
    /// Validators, one table row each
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000])]
    validators: Vec<usize>,
    /// Jobs, one after the other
    #[arg(long, default_value_t = 500)]
    jobs: usize,
    /// Seconds between two heartbeats of one validator
    #[arg(long, default_value_t = 10)]
    heartbeat: u64,
    /// The program
    #[arg(long, default_value = "target/release/phalanx")]
    phalanx: PathBuf,
}

/// Time from one job to the next.
const JOB_EVERY: Duration = Duration::from_millis(20);

/// The seed of the user; public.
const USER: &str = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";

const HEAD: [&str; 9] = [
    "facilitator",
    "validators",
    "all authenticated, s",
    "resident, MiB",
    "KiB each",
    "threads",
    "CPU while all beat",
    "dispatch p50, ms",
    "p99, ms",
];

/// The key of a validator.
pub fn validator(number: usize) -> Result<Keypair, String> {
    keys::keypair(&format!("{:064x}", number + 1))
}

/// Where validators and users connect.
struct Addresses {
    validators: String,
    users: String,
}

fn start(mut command: Command) -> Result<(Server, Addresses), String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("facilitator: {error}"))?;
    let output = child.stdout.take().ok_or("the facilitator has no output")?;
    let server = Server(child);
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).map_err(|error| error.to_string())?;
    let said: Value = serde_json::from_str(&line).map_err(|error| format!("it does not start: {error}"))?;
    let address = |name: &str| said[name].as_str().map(str::to_owned).ok_or_else(|| format!("no {name} in {line}"));
    let addresses = Addresses { validators: format!("ws://{}/ws/v0/", address("listening")?), users: address("http")? };
    Ok((server, addresses))
}

fn ours(args: &Args, keys: &[Keypair], user: &str, folder: &Path) -> Result<Command, String> {
    let validators: Vec<_> = keys.iter().map(|key| keys::ss58(&key.public)).collect();
    let settings = format!(
        "[facilitator]\nlisten = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nuser = [\"{user}\"]\n\
         validator = {validators:?}\nstate-dir = {:?}\n\
         # All come from one address, and at once.\n\
         handshake-rate = \"100000/10s\"\nauth-rate = \"100000/10s\"\n",
        folder.join("state")
    );
    let file = folder.join("settings.toml");
    fs::write(&file, settings).map_err(|error| error.to_string())?;
    let mut command = Command::new(&args.phalanx);
    command.args(["facilitator", "--config"]).arg(file).env("RUST_LOG", "warn");
    Ok(command)
}

fn on_tokio(count: usize, user: &str) -> Result<Command, String> {
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    command.args(["serve-facilitator", &count.to_string(), user]);
    Ok(command)
}

/// A user who submits jobs.
struct User {
    stream: tokio::io::BufReader<TcpStream>,
    host: String,
    key: Keypair,
    token: String,
}

impl User {
    async fn login(host: &str, key: Keypair) -> Result<Self, String> {
        let stream = TcpStream::connect(host).await.map_err(|error| format!("{host}: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let stream = tokio::io::BufReader::new(stream);
        let mut user = Self { stream, host: host.to_owned(), key, token: String::new() };
        let nonce = user.ask("GET /auth/nonce", "", "").await?["nonce"].as_str().unwrap_or_default().to_owned();
        let signature = format!("0x{}", hex::encode(keys::sign(&user.key, nonce.as_bytes())));
        let login = json!({"hotkey": keys::ss58(&user.key.public), "signature": signature, "nonce": nonce});
        let answer = user.ask("POST /auth/login", "", &login.to_string()).await?;
        user.token = answer["token"].as_str().ok_or_else(|| format!("no token: {answer}"))?.to_owned();
        Ok(user)
    }

    async fn ask(&mut self, what: &str, headers: &str, body: &str) -> Result<Value, String> {
        let io = |error: std::io::Error| format!("{what}: {error}");
        let (host, length) = (&self.host, body.len());
        let request = format!(
            "{what} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             {headers}\r\n{body}"
        );
        self.stream.write_all(request.as_bytes()).await.map_err(io)?;
        let (mut status, mut length) = (String::new(), 0);
        self.stream.read_line(&mut status).await.map_err(io)?;
        loop {
            let mut field = String::new();
            self.stream.read_line(&mut field).await.map_err(io)?;
            let Some((name, value)) = field.trim().split_once(": ") else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().map_err(|error| format!("{what}: {field}: {error}"))?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await.map_err(io)?;
        if !status.contains(" 20") {
            return Err(format!("{what}: {} {}", status.trim(), String::from_utf8_lossy(&answer)));
        }
        serde_json::from_slice(&answer).map_err(|error| format!("{what}: {error}"))
    }

    /// The headers and the body of a job for a validator.
    fn job(&self, number: usize, target: &str) -> Result<(String, String), String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
        let job = sample(number, "", &self.key, u64::try_from(now.as_nanos()).map_err(|error| error.to_string())?);
        let signature = job.signature.as_ref().ok_or("a sample is signed")?;
        let headers = format!(
            "Authorization: Bearer {}\r\nX-CH-Signature-Type: {}\r\nX-CH-Signatory: {}\r\nX-CH-Timestamp-NS: {}\r\n\
             X-CH-Signature: {}\r\nX-CH-Signature-Scope: {}\r\n",
            self.token,
            signature.signature_type,
            signature.signatory,
            signature.timestamp_ns,
            signature.signature,
            signature.signature_scope
        );
        let mut body = serde_json::to_value(&job).map_err(|error| error.to_string())?;
        let fields = body.as_object_mut().ok_or("a job is an object")?;
        for name in ["signature", "type", "message_type", "uuid", "output_upload", "streaming_details"] {
            fields.remove(name);
        }
        let volume = fields.remove("volume").unwrap_or_default();
        fields.insert("volumes".to_owned(), json!([volume]));
        fields.insert("target_validator_hotkey".to_owned(), target.into());
        Ok((headers, body.to_string()))
    }
}

async fn measure(args: &Args, name: &str, command: Command, keys: &[Keypair]) -> Result<Vec<String>, String> {
    let (server, addresses) = start(command)?;
    let pid = server.0.id();
    let authentications = Arc::new(keys.iter().map(work::authentication).collect());
    let target = Target { url: addresses.validators, tls: None, authentications };
    let mut user = User::login(&addresses.users, keys::keypair(USER)?).await?;
    let empty = meter::read(pid)?;
    let mut clients = Clients::awaiting("job.new");
    let count = keys.len();
    let seconds = clients.grow(&target, count).await?;
    let heart = Duration::from_secs(args.heartbeat);
    let busy = meter::cpu(pid)?;
    clients.beat(heart, heart).await?;
    let busy = (meter::cpu(pid)? - busy) as f64 / 1e9 / heart.as_secs_f64() * 100.0;
    let mut took = Vec::new();
    let mut turns = interval_at(Instant::now() + JOB_EVERY, JOB_EVERY);
    let mut beats = clients.beats(heart);
    for number in 0..args.jobs {
        turns.tick().await;
        clients.beat_once(&mut beats).await?;
        let to = number * 7919 % count;
        let (headers, body) = user.job(number, &keys::ss58(&keys[to].public))?;
        let begin = Instant::now();
        clients.await_texts(1);
        let (answer, arrived) = tokio::join!(user.ask("POST /api/v1/job-docker/", &headers, &body), clients.arrived());
        took.push((arrived? - begin).as_secs_f64() * 1e3);
        let uuid = answer?["uuid"].as_str().ok_or("the answer has no uuid")?.to_owned();
        for status in ["received", "accepted", "completed"] {
            let update = json!({"message_type": "V0JobStatusUpdate", "uuid": uuid, "status": status});
            clients.say(to, update.to_string()).await?;
        }
    }
    clients.check()?;
    took.sort_by(f64::total_cmp);
    let Reading { resident_kib, threads, .. } = meter::read(pid)?;
    let row = [
        name.to_owned(),
        count.to_string(),
        format!("{seconds:.2}"),
        format!("{:.0}", resident_kib as f64 / 1024.0),
        format!("{:.1}", resident_kib.saturating_sub(empty.resident_kib) as f64 / count as f64),
        threads.to_string(),
        format!("{busy:.1} %"),
        format!("{:.2}", took[took.len() / 2]),
        format!("{:.2}", took[took.len() * 99 / 100]),
    ];
    eprintln!("{}", row.join(" | "));
    Ok(row.to_vec())
}

pub fn dispatch(args: &Args) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let user = keys::ss58(&keys::keypair(USER)?.public);
    let mut rows = Vec::new();
    for &count in &args.validators {
        let keys: Vec<Keypair> = (0..count).map(validator).collect::<Result<_, _>>()?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let commands = [("phalanx", ours(args, &keys, &user, folder.path())?), ("tokio", on_tokio(count, &user)?)];
        for (name, command) in commands {
            rows.push(runtime.block_on(measure(args, name, command, &keys))?);
        }
    }
    println!("{}", table::markdown(HEAD, rows.into_iter()));
    Ok(())
}
