//! A facilitator with a folder of its own, raw validators and a raw HTTP client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Instant, SystemTime};

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::stop::{StopReport, Stopping};
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::base::timer::{Alarm, TimerHandle};
use phalanx::facilitator::api::submission::body_of;
use phalanx::facilitator::{Facilitator, FacilitatorConfig};
use phalanx::identity::KeyPair;
use phalanx::net::dial::dial;
use phalanx::protocol::{
    FacilitatorToValidator, JobStatus, JobStatusMetadata, SignedRequest, V0AuthenticationRequest, V0Heartbeat,
    V0JobStatusUpdate, V2JobRequest, ValidatorToFacilitator,
};
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{
    ClientTls, Connection, ConnectionKick, DialRequest, Dialer, Incoming, SocketLimits, TransportError, Utf8Bytes,
};
use serde_json::{Value, json};

use super::roles::World;
use super::wait::LONG;

pub fn key(uri: &str) -> KeyPair {
    KeyPair::from_uri(uri).unwrap()
}

/// The validator that the facilitator knows.
pub fn alice() -> KeyPair {
    key("//Alice")
}

/// The user that it knows.
pub fn dave() -> KeyPair {
    key("//Dave")
}

pub struct Fixture {
    pub facilitator: Option<Facilitator>,
    /// Of the next start.
    pub config: FacilitatorConfig,
    over_memory: bool,
    folder: tempfile::TempDir,
    pub world: World,
}

impl Fixture {
    /// Over loopback sockets.
    pub fn new() -> Self {
        Self::with(false, |_| {})
    }

    pub fn with(over_memory: bool, change: impl FnOnce(&mut FacilitatorConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = FacilitatorConfig::new(folder.path());
        config.validators = vec![alice().public(), key("//Bob").public()];
        config.users = vec![dave().public(), key("//Eve").public()];
        // Tests submit before and after validators connect.
        config.hold_jobs = true;
        change(&mut config);
        let mut fix = Self { facilitator: None, config, over_memory, folder, world: World::new() };
        fix.start();
        fix
    }

    /// Another configuration for the next start.
    pub fn change(&mut self, change: impl FnOnce(&mut FacilitatorConfig)) {
        change(&mut self.config);
    }

    pub fn start(&mut self) {
        let http = TcpListener::bind("127.0.0.1:0").unwrap();
        let timer = self.world.timer();
        let config = self.config.clone();
        let facilitator = if self.over_memory {
            Facilitator::start(config, Box::new(self.world.net.listener("facilitator")), http, timer)
        } else {
            Facilitator::start(config, Box::new(WsListener::bind("127.0.0.1:0", None).unwrap()), http, timer)
        };
        self.facilitator = Some(facilitator.unwrap());
    }

    pub fn stop(&mut self) -> StopReport {
        let mut stopping = Stopping::alone();
        self.facilitator.take().unwrap().stop_in(&mut stopping);
        stopping.finish()
    }

    pub fn restart(&mut self) {
        assert!(self.stop().is_clean());
        self.start();
    }

    pub fn state_dir(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub fn running(&self) -> &Facilitator {
        self.facilitator.as_ref().unwrap()
    }

    /// A connection to that path.
    pub fn dial(&self, path: &str) -> Result<Peer, phalanx::transport::TransportError> {
        let url = format!("{}{path}", self.running().ws_url());
        let headers = [("X-Validator-Version".to_owned(), "v1".to_owned())];
        let deadline = Instant::now() + LONG;
        let request = DialRequest { url: &url, headers: &headers, limits: SocketLimits::default(), deadline };
        let dialer: Box<dyn Dialer> = if self.over_memory {
            Box::new(self.world.net.dialer())
        } else {
            Box::new(WsDialer::new(ClientTls::default()))
        };
        let connection = dialer.dial(&request, &Shutdown::new(), Level::Cancel)?;
        Ok(Peer { connection, timer: self.world.timer() })
    }

    pub fn connect(&self) -> Peer {
        self.dial("/ws/v0/").unwrap()
    }

    /// An authenticated validator that has sent its first heartbeat.
    pub fn validator(&self, key: &KeyPair) -> Peer {
        let mut peer = self.connect();
        peer.say(V0AuthenticationRequest::sign(key));
        assert_eq!(peer.answer(), "success");
        peer.say(V0Heartbeat);
        peer
    }

    pub fn http_stream(&self) -> TcpStream {
        let address: SocketAddr = self.running().http_addr();
        let stream = dial("127.0.0.1", address.port(), Instant::now() + LONG, &Shutdown::new(), Level::Cancel).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// One request on a connection of its own.
    pub fn http(&self, method: &str, path: &str, headers: &[(&str, String)], body: &str) -> (u16, Value) {
        let mut stream = self.http_stream();
        let extra: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\
             Content-Length: {length}\r\n{extra}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {answer:?}")).parse().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let body = if head.contains("\r\nTransfer-Encoding: chunked") { whole(body) } else { body.to_owned() };
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    pub fn get(&self, path: &str, token: &str) -> (u16, Value) {
        self.http("GET", path, &[bearer(token)], "")
    }

    pub fn try_login(&self, user: &KeyPair, nonce: &str) -> (u16, Value) {
        let signature = user.sign(nonce.as_bytes()).to_hex();
        let body = json!({"hotkey": user.ss58(), "signature": signature.trim_start_matches("0x"), "nonce": nonce});
        self.http("POST", "/auth/login", &[], &body.to_string())
    }

    pub fn nonce(&self) -> String {
        self.http("GET", "/auth/nonce", &[], "").1["nonce"].as_str().unwrap().to_owned()
    }

    pub fn login(&self, user: &KeyPair) -> String {
        let (status, body) = self.try_login(user, &self.nonce());
        assert_eq!(status, 200, "{body}");
        body["token"].as_str().unwrap().to_owned()
    }

    pub fn post_job(&self, token: &str, request: &V2JobRequest, target: &KeyPair) -> (u16, Value) {
        let mut headers = vec![bearer(token)];
        headers.extend(request.signature.iter().flat_map(|signature| signature.to_headers()));
        self.http("POST", "/api/v1/job-docker/", &headers, &body_of(request, &target.public(), "").unwrap())
    }

    /// Submits a job of Dave's for Alice; gives its uuid.
    pub fn submit(&self, token: &str) -> String {
        let (status, job) = self.post_job(token, &job(&dave()), &alice());
        assert_eq!(status, 201, "{job}");
        job["uuid"].as_str().unwrap().to_owned()
    }

    /// The names of a job's statuses.
    pub fn history(&self, token: &str, uuid: &str) -> Vec<String> {
        let (status, job) = self.get(&format!("/api/v1/jobs/{uuid}/"), token);
        assert_eq!(status, 200, "{job}");
        names(&job["status_history"])
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if self.facilitator.is_some() {
            let report = self.stop();
            if !std::thread::panicking() {
                assert!(report.is_clean(), "{report}");
            }
        }
    }
}

/// A body that came in chunks, which has to have an end.
fn whole(mut chunks: &str) -> String {
    let mut body = String::new();
    loop {
        let (size, rest) = chunks.split_once("\r\n").expect("the size of a chunk");
        match usize::from_str_radix(size, 16).unwrap() {
            0 => return body,
            size => body += &rest[..size],
        }
        chunks = &rest[usize::from_str_radix(size, 16).unwrap() + 2..];
    }
}

pub fn bearer(token: &str) -> (&'static str, String) {
    ("Authorization", format!("Bearer {token}"))
}

pub fn names(statuses: &Value) -> Vec<String> {
    statuses.as_array().unwrap().iter().map(|s| s["status"].as_str().unwrap().to_owned()).collect()
}

/// A job, signed now.
pub fn job(user: &KeyPair) -> V2JobRequest {
    let mut job = super::roles::job(user);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    job.sign(user, now.as_nanos() as u64);
    job
}

pub fn update(uuid: &str, status: JobStatus, metadata: Option<Value>) -> V0JobStatusUpdate {
    let metadata = metadata.map(|metadata| JobStatusMetadata::decode(&metadata.to_string()).unwrap());
    V0JobStatusUpdate { uuid: uuid.to_owned(), status, metadata }
}

/// A raw validator: sends what it is given and reads in order.
pub struct Peer {
    pub connection: Connection,
    timer: TimerHandle,
}

impl Peer {
    pub fn say(&mut self, message: impl Into<ValidatorToFacilitator>) {
        self.text(message.into().encode());
    }

    pub fn text(&mut self, text: impl Into<Utf8Bytes>) {
        self.try_text(text).unwrap();
    }

    /// Waits for as long as the facilitator takes nothing.
    pub fn try_text(&mut self, text: impl Into<Utf8Bytes>) -> Result<(), TransportError> {
        self.connection.writer.write(text.into())?;
        self.connection.writer.flush()
    }

    fn alarm(&self) -> Alarm {
        let kick = self.connection.kick.clone();
        self.timer.at(Instant::now() + LONG, move || kick.kick())
    }

    /// The next text.
    pub fn read(&mut self) -> String {
        let _alarm = self.alarm();
        loop {
            match self.connection.reader.read().expect("a text should come") {
                Incoming::Text(text) => return text.to_string(),
                Incoming::Control => self.connection.writer.flush().unwrap(),
                Incoming::Pong => {}
                other => panic!("expected a text, got {other:?}"),
            }
        }
    }

    /// The next text, which is an answer: `success` or the type of its first error.
    pub fn answer(&mut self) -> String {
        let text = self.read();
        match FacilitatorToValidator::decode(&text).unwrap() {
            FacilitatorToValidator::Response(response) => {
                response.errors.first().map_or("success".to_owned(), |error| error.kind.clone())
            }
            other => panic!("expected an answer, got {other:?}"),
        }
    }

    /// The next text, which is a job: its uuid.
    pub fn job(&mut self) -> String {
        let text = self.read();
        match FacilitatorToValidator::decode(&text).unwrap() {
            FacilitatorToValidator::V2JobRequest(request) => {
                request.verify().unwrap();
                request.uuid
            }
            other => panic!("expected a job, got {other:?}"),
        }
    }

    /// Reads until the facilitator closes; gives the code and the texts before it.
    pub fn closed(mut self) -> (Option<u16>, Vec<String>) {
        let _alarm = self.alarm();
        let mut texts = Vec::new();
        loop {
            match self.connection.reader.read() {
                Ok(Incoming::Text(text)) => texts.push(text.to_string()),
                Ok(Incoming::Closed(info)) => {
                    // The answer to the Close; the facilitator may have gone already.
                    let _ = self.connection.writer.flush();
                    return (info.code, texts);
                }
                Ok(_) => self.connection.writer.flush().unwrap(),
                Err(error) => panic!("no close came: {error}"),
            }
        }
    }

    /// Reports a status and reads its answer.
    pub fn report(&mut self, uuid: &str, status: JobStatus) -> String {
        self.say(update(uuid, status, None));
        self.answer()
    }
}

impl Peer {
    /// Runs every job that comes: reports what `run` says, until the facilitator closes or the connection is kicked.
    pub fn serve(
        mut self,
        run: impl Fn(&V2JobRequest) -> Vec<(JobStatus, Option<Value>)> + Send + 'static,
    ) -> (ConnectionKick, Thread<()>) {
        let kick = self.connection.kick.clone();
        let thread_kick = kick.clone();
        let thread = spawn("t-validator", Kick::new("connection", move || thread_kick.kick()), move || {
            loop {
                match self.connection.reader.read() {
                    Ok(Incoming::Text(text)) => match FacilitatorToValidator::decode(&text).unwrap() {
                        FacilitatorToValidator::V2JobRequest(job) => {
                            for (status, metadata) in run(&job) {
                                self.say(update(&job.uuid, status, metadata));
                            }
                        }
                        FacilitatorToValidator::Response(response) => {
                            assert!(response.errors.is_empty(), "{response:?}")
                        }
                        FacilitatorToValidator::V0JobCheated(_) => {}
                    },
                    Ok(Incoming::Closed(_)) | Err(_) => {
                        // The answer to its Close; it may have gone already.
                        let _ = self.connection.writer.flush();
                        return;
                    }
                    Ok(_) => self.connection.writer.flush().unwrap(),
                }
            }
        });
        (kick, thread)
    }
}

/// The statuses of a job that completes with that output.
pub fn completed(stdout: &str) -> Vec<(JobStatus, Option<Value>)> {
    use JobStatus as S;
    let steps = [S::Received, S::Accepted, S::ExecutorReady, S::VolumesReady, S::ExecutionDone];
    let result = json!({"miner_response": {"docker_process_stdout": stdout, "docker_process_stderr": "",
        "artifacts": {"/artifacts/a.bin": "AP8="},
        "upload_results": {"out.txt": r#"{"headers": {"etag": "x"}, "body": "b"}"#}}});
    steps.into_iter().map(|step| (step, None)).chain([(S::Completed, Some(result))]).collect()
}
