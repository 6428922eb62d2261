//! The facilitator's side of the link, for one client: one thread, one socket, never blocked in a write.
//!
//! The WebSocket frames are taken apart here rather than by a library, as the driver must cost less than any client.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use phalanx_peers::{STATUSES, keys};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::client::Client;
use crate::jobs::Jobs;
use phalanx_peers::meter::{self, Reading};

/// How long nothing may happen.
const STALL: Duration = Duration::from_secs(30);

const SUCCESS: &[u8] = br#"{"status":"success","errors":[]}"#;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What a run measured, from the first timed request to the last `completed`.
pub struct Measured {
    pub wall: Duration,
    /// From request written to `received` read, sorted.
    pub received: Vec<Duration>,
    /// From request written to `completed` read, sorted.
    pub completed: Vec<Duration>,
    pub begin: Reading,
    pub end: Reading,
    /// CPU nanoseconds of the driver's thread.
    pub driver_cpu: u64,
}

/// What one run is to do.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    pub jobs: &'a Jobs,
    /// Jobs before the clock starts.
    pub warm_up: usize,
    /// Jobs in progress at a time.
    pub outstanding: usize,
}

/// Runs a client through all jobs.
///
/// # Errors
/// A history that is not complete, in order and exactly once; anything else that a client may not say; a client that
/// ends or stalls.
pub fn run(command: &[String], plan: Plan<'_>) -> Result<Measured, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("listener: {e}"))?;
    let address = listener.local_addr().map_err(|e| format!("listener: {e}"))?;
    let url = format!("ws://{address}/ws/v0/");
    let mut client = Client::start(command, &url, &plan.jobs.signer)?;
    let measured = drive(&listener, &mut client, plan);
    measured.map_err(|error| format!("{}: {error}\n{}", command.join(" "), client.last_words()))
}

fn drive(listener: &TcpListener, client: &mut Client, plan: Plan<'_>) -> Result<Measured, String> {
    let stream = accept(listener, client)?;
    let mut link = Link::new(stream);
    link.handshake()?;
    let mut run = Run::new(plan, client.pid());
    while !run.over() {
        match link.turn().map_err(|e| format!("connection: {e}"))? {
            true => run.take(&mut link)?,
            false => return Err("it ended the connection".to_owned()),
        }
    }
    // Whatever it still says is read until it is gone, so that an update too many is seen.
    client.terminate()?;
    while link.turn().map_err(|e| format!("connection at the end: {e}"))? {
        run.take(&mut link)?;
    }
    client.wait()?;
    run.measured()
}

fn accept(listener: &TcpListener, client: &mut Client) -> Result<TcpStream, String> {
    let deadline = Instant::now() + STALL;
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        // A client that ends is noticed within this time.
        if poll(&mut fds, PollTimeout::from(100_u8)).map_err(|e| format!("poll: {e}"))? > 0 {
            return listener.accept().map(|(stream, _)| stream).map_err(|e| format!("accept: {e}"));
        }
        if let Some(status) = client.ended() {
            return Err(format!("it ended with {status} before it connected"));
        }
        if Instant::now() > deadline {
            return Err("it did not connect".to_owned());
        }
    }
}

fn check_authentication(text: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Hello {
        message_type: String,
        public_key: String,
        signature: String,
    }
    let hello: Hello = serde_json::from_slice(text).map_err(|e| format!("authentication: {e}"))?;
    let public = hex::decode(&hello.public_key).map_err(|e| format!("authentication: {e}"))?;
    let key = schnorrkel::PublicKey::from_bytes(&public).map_err(|e| format!("authentication: {e}"))?;
    let signature = hello.signature.strip_prefix("0x").ok_or("authentication: the signature has no 0x")?;
    let signature = hex::decode(signature).map_err(|e| format!("authentication: {e}"))?;
    match hello.message_type == "V0AuthenticationRequest" && keys::verify(&key, &public, &signature) {
        true => Ok(()),
        false => Err("authentication: it is not good".to_owned()),
    }
}

/// A frame's kind and the place of its payload in the input.
struct Frame {
    opcode: u8,
    payload: Range<usize>,
}

struct Link {
    stream: TcpStream,
    input: Vec<u8>,
    /// How far the input is taken, and how far it is filled.
    taken: usize,
    filled: usize,
    output: Vec<u8>,
    /// How far the output is written.
    written: usize,
    /// Bytes queued since the handshake, and bytes of these that were written, each with the time before its write.
    queued: u64,
    sent: Vec<(u64, Instant)>,
    /// When the last read returned.
    read_at: Instant,
}

impl Link {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            input: vec![0; 1 << 20],
            taken: 0,
            filled: 0,
            output: Vec::new(),
            written: 0,
            queued: 0,
            sent: vec![(0, Instant::now())],
            read_at: Instant::now(),
        }
    }

    fn handshake(&mut self) -> Result<(), String> {
        let fail = |e: io::Error| format!("handshake: {e}");
        self.stream.set_nodelay(true).map_err(fail)?;
        self.stream.set_read_timeout(Some(STALL)).map_err(fail)?;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            match self.stream.read(&mut self.input).map_err(fail)? {
                0 => return Err("handshake: it ended".to_owned()),
                count => request.extend(&self.input[..count]),
            }
        }
        let request = String::from_utf8_lossy(&request);
        if !request.starts_with("GET /ws/v0/ HTTP/1.1\r\n") {
            return Err(format!("handshake: it asks {:?}", request.lines().next()));
        }
        let key_of = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
        };
        let key = request.lines().find_map(key_of).ok_or("handshake: no Sec-WebSocket-Key")?;
        let accept = derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.stream.write_all(answer.as_bytes()).map_err(fail)?;
        self.stream.set_nonblocking(true).map_err(fail)
    }

    /// Queues a frame; gives the place behind it among all bytes.
    fn queue(&mut self, opcode: u8, payload: &[u8]) -> u64 {
        let before = self.output.len();
        self.output.push(0x80 | opcode);
        match payload.len() {
            short @ 0..126 => self.output.push(short as u8),
            long => {
                self.output.push(126);
                let long = u16::try_from(long).expect("nothing here is longer than 64 KiB");
                self.output.extend(long.to_be_bytes());
            }
        }
        self.output.extend(payload);
        self.queued += (self.output.len() - before) as u64;
        self.queued
    }

    /// The time before the write that took the byte at this place along.
    fn sent_at(&self, place: u64) -> Instant {
        let write = self.sent.partition_point(|(written, _)| *written < place);
        self.sent[write].1
    }

    fn write(&mut self) -> io::Result<()> {
        while self.written < self.output.len() {
            let before = Instant::now();
            let count = self.stream.write(&self.output[self.written..])?;
            self.written += count;
            let unwritten = (self.output.len() - self.written) as u64;
            self.sent.push((self.queued - unwritten, before));
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }

    /// Writes what is queued, and reads what has come or comes next; false once the client is gone.
    fn turn(&mut self) -> io::Result<bool> {
        self.input.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        loop {
            match self.write() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It ended without reading our last answers; what it wrote may still be there to be read.
                Err(error) if gone(&error) => (self.written, self.output) = (0, Vec::new()),
                other => other?,
            }
            match self.stream.read(&mut self.input[self.filled..]) {
                Ok(count) => {
                    self.read_at = Instant::now();
                    self.filled += count;
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if gone(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, !self.output.is_empty());
            let timeout = PollTimeout::try_from(STALL).expect("it fits");
            if poll(&mut [PollFd::new(self.stream.as_fd(), events)], timeout)? == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing"));
            }
        }
    }

    /// The next whole frame of the input, unmasked.
    fn frame(&mut self) -> Result<Option<Frame>, String> {
        let input = &mut self.input[self.taken..self.filled];
        let [first, second, ..] = *input else { return Ok(None) };
        if first & 0xf0 != 0x80 || second & 0x80 == 0 {
            return Err(format!("a frame begins with {first:#x} {second:#x}; it should be whole and masked"));
        }
        let (length, header) = match second & 0x7f {
            126 if input.len() < 4 => return Ok(None),
            126 => (usize::from(u16::from_be_bytes([input[2], input[3]])), 4),
            127 => return Err("a frame is longer than 64 KiB".to_owned()),
            short => (usize::from(short), 2),
        };
        if input.len() < header + 4 + length {
            return Ok(None);
        }
        let (head, body) = input.split_at_mut(header + 4);
        let mask: [u8; 4] = head[header..].try_into().expect("it was split there");
        let (words, rest) = body[..length].as_chunks_mut::<4>();
        for word in words {
            *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
        }
        rest.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
        let begin = self.taken + header + 4;
        self.taken = begin + length;
        Ok(Some(Frame { opcode: first & 0x0f, payload: begin..self.taken }))
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// The histories so far.
struct Run<'a> {
    plan: Plan<'a>,
    pid: u32,
    authenticated: bool,
    started: usize,
    ended: usize,
    progress: Vec<Progress>,
    begin: Option<(Reading, u64, Instant)>,
    end: Option<(Reading, u64, Instant)>,
    received: Vec<Duration>,
    completed: Vec<Duration>,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    /// The place behind its request in the stream.
    place: u64,
    /// Statuses that came.
    statuses: usize,
}

#[derive(Deserialize)]
struct Update<'a> {
    message_type: &'a str,
    uuid: Option<&'a str>,
    status: Option<&'a str>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    miner_response: Option<IgnoredAny>,
}

impl<'a> Run<'a> {
    fn new(plan: Plan<'a>, pid: u32) -> Self {
        let jobs = plan.jobs.all().len();
        Self {
            plan,
            pid,
            authenticated: false,
            started: 0,
            ended: 0,
            progress: vec![Progress::default(); jobs],
            begin: None,
            end: None,
            received: Vec::with_capacity(jobs),
            completed: Vec::with_capacity(jobs),
        }
    }

    fn over(&self) -> bool {
        self.end.is_some()
    }

    /// Queues requests until enough jobs are in progress; the timed ones only once the last of the warm-up has ended.
    fn fill(&mut self, link: &mut Link) -> Result<(), String> {
        if self.ended == self.plan.warm_up && self.begin.is_none() {
            self.begin = Some((meter::read(self.pid)?, meter::own_cpu()?, Instant::now()));
        }
        let jobs = self.plan.jobs.all();
        let limit = if self.begin.is_some() { jobs.len() } else { self.plan.warm_up };
        while self.started < limit && self.started - self.ended < self.plan.outstanding {
            self.progress[self.started].place = link.queue(TEXT, jobs[self.started].text.as_bytes());
            self.started += 1;
        }
        Ok(())
    }

    /// Takes all whole frames of the input.
    fn take(&mut self, link: &mut Link) -> Result<(), String> {
        while let Some(frame) = link.frame()? {
            let payload = frame.payload.clone();
            match frame.opcode {
                TEXT if !self.authenticated => {
                    check_authentication(&link.input[payload])?;
                    link.queue(TEXT, SUCCESS);
                    self.authenticated = true;
                    self.fill(link)?;
                }
                TEXT => self.update(link, payload)?,
                PING => {
                    let payload = link.input[payload].to_vec();
                    link.queue(PONG, &payload);
                }
                PONG => {}
                CLOSE if self.over() => {
                    let payload = link.input[payload].to_vec();
                    link.queue(CLOSE, &payload);
                }
                other => return Err(format!("it sent a frame of kind {other}")),
            }
        }
        Ok(())
    }

    fn update(&mut self, link: &mut Link, payload: Range<usize>) -> Result<(), String> {
        let text = &link.input[payload];
        let wrong = |why: &str| format!("{why}: {}", String::from_utf8_lossy(text));
        let update: Update = serde_json::from_slice(text).map_err(|e| wrong(&e.to_string()))?;
        if update.message_type == "V0Heartbeat" {
            return Ok(());
        }
        let n = update.uuid.and_then(|uuid| self.plan.jobs.find(uuid)).ok_or_else(|| wrong("no job of ours"))?;
        let progress = &mut self.progress[n];
        let due = STATUSES.get(progress.statuses).ok_or_else(|| wrong("a status after the last"))?;
        if update.message_type != "V0JobStatusUpdate" || n >= self.started || update.status != Some(due) {
            return Err(wrong(&format!("the next status should be {due}")));
        }
        progress.statuses += 1;
        let last = progress.statuses == STATUSES.len();
        if last && update.metadata.and_then(|m| m.miner_response).is_none() {
            return Err(wrong("completed without a result"));
        }
        if n >= self.plan.warm_up && (progress.statuses == 1 || last) {
            let latency = link.read_at - link.sent_at(progress.place);
            if last { &mut self.completed } else { &mut self.received }.push(latency);
        }
        link.queue(TEXT, SUCCESS);
        if last {
            self.ended += 1;
            self.fill(link)?;
            if self.ended == self.plan.jobs.all().len() {
                self.end = Some((meter::read(self.pid)?, meter::own_cpu()?, link.read_at));
            }
        }
        Ok(())
    }

    fn measured(mut self) -> Result<Measured, String> {
        let (Some((begin, driver_begin, from)), Some((end, driver_end, to))) = (self.begin, self.end) else {
            return Err("it ended too early".to_owned());
        };
        self.received.sort_unstable();
        self.completed.sort_unstable();
        Ok(Measured {
            wall: to - from,
            received: self.received,
            completed: self.completed,
            begin,
            end,
            driver_cpu: driver_end - driver_begin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as a client sends it.
    fn masked(text: &str) -> Vec<u8> {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let mut frame = vec![0x80 | TEXT, 0x80 | 126];
        frame.extend((text.len() as u16).to_be_bytes());
        frame.extend(mask);
        frame.extend(text.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn update(uuid: &str, status: &str, result: &str) -> String {
        format!(
            r#"{{"message_type": "V0JobStatusUpdate", "uuid": "{uuid}", "status": "{status}",
                "metadata": {{"miner_response": {result}}}}}"#
        )
    }

    /// What the driver says of a client that sends these statuses for its first job, cut after some bytes.
    fn judge(statuses: &[&str], result: &str, cut: usize) -> Result<usize, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let jobs = Jobs::new(3).unwrap();
        let mut run = Run::new(Plan { jobs: &jobs, warm_up: 1, outstanding: 1 }, std::process::id());
        let mut link = Link::new(stream);
        run.authenticated = true;
        run.fill(&mut link).unwrap();
        link.write().unwrap();
        let frames = statuses.iter().map(|status| masked(&update(&jobs.all()[0].uuid, status, result)));
        let frames: Vec<u8> = frames.flatten().collect();
        for part in frames.chunks(cut) {
            link.input[link.filled..][..part.len()].copy_from_slice(part);
            link.filled += part.len();
            run.take(&mut link)?;
        }
        Ok(run.ended)
    }

    #[test]
    fn a_good_history_ends_its_job_however_its_bytes_come() {
        for cut in [1, 7, 100, 1 << 16] {
            assert_eq!(judge(&STATUSES, "{}", cut), Ok(1));
        }
    }

    #[test]
    fn a_history_with_a_fault_fails_the_run() {
        let fault = |statuses: &[&str]| judge(statuses, "{}", 1 << 16).unwrap_err();
        assert!(fault(&STATUSES[1..]).contains("should be received"));
        assert!(fault(&["received", "received"]).contains("should be accepted"));
        assert!(fault(&["received", "executor_ready"]).contains("should be accepted"));
        assert!(fault(&["rejected"]).contains("should be received"));
        assert!(fault(&[&STATUSES[..], &["completed"]].concat()).contains("a status after the last"));
        assert!(judge(&STATUSES, "null", 1 << 16).unwrap_err().contains("without a result"));
    }
}
