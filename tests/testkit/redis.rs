//! A real Redis on a port of its own, and a proxy before it that does harm.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown as End, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use phalanx::base::backoff::BackoffConfig;
use phalanx::base::lock::{lock, wait, wait_timeout};
use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::net::dial::dial;
use phalanx::redis::{Connection, RedisConfig};
use redis::FromRedisValue;
use rustix::process::{Pid, Signal, kill_process};

use super::wait::{LONG, far};

/// A redis-server with its data in a temporary folder; stopped when dropped.
///
/// Each write is with the system before it is answered, so a `kill -9` loses nothing of it; it never waits for the
/// disk, which on a busy machine takes seconds.
pub struct RedisServer {
    folder: tempfile::TempDir,
    port: u16,
    options: Vec<String>,
    running: Option<Process>,
}

struct Process {
    child: Child,
    output: Thread<()>,
}

impl RedisServer {
    /// Starts one; `None` without redis-server, which is reported, and fails with `PHALANX_TEST_REQUIRE_ALL=1`.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// Starts one with more options, as `--maxmemory 3mb`, each word of its own.
    pub fn start_with(options: &[&str]) -> Option<Self> {
        if Command::new("redis-server").arg("--version").output().is_err() {
            let required = std::env::var("PHALANX_TEST_REQUIRE_ALL").is_ok_and(|value| value == "1");
            assert!(!required, "there is no redis-server");
            eprintln!("SKIPPED: there is no redis-server; it is in the system's package of that name");
            return None;
        }
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        for _ in 0..20 {
            let folder = tempfile::tempdir().unwrap();
            let mut server = Self { folder, port: free_port(), options: options.clone(), running: None };
            // Somebody else may have taken the port meanwhile.
            if server.launch() {
                return Some(server);
            }
        }
        panic!("redis-server does not start");
    }

    /// A server of which only the port is known: nothing listens there until [`RedisServer::start_again`].
    pub fn away() -> Option<Self> {
        let mut server = Self::start()?;
        server.kill();
        Some(server)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub fn config(&self) -> RedisConfig {
        RedisConfig::parse(&self.url()).unwrap()
    }

    /// Stops it as an operator would, so that its data is on disk, and starts it with it.
    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// Stops it as an operator would.
    pub fn stop(&mut self) {
        if let Some(process) = &self.running {
            kill_process(Pid::from_child(&process.child), Signal::TERM).unwrap();
        }
        self.reap();
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(process) = &mut self.running {
            process.child.kill().unwrap();
        }
        self.reap();
    }

    /// Starts it on the same port with the same data, and waits until it answers.
    pub fn start_again(&mut self) {
        assert!(self.running.is_none(), "it runs");
        assert!(self.launch(), "redis-server does not start again on port {}", self.port);
    }

    /// From its next start on it is a replica of the server of that port.
    pub fn follow(&mut self, master: u16) {
        const REPLICA_OF: &str = "--replicaof";
        if let Some(at) = self.options.iter().position(|option| option == REPLICA_OF) {
            self.options.drain(at..at + 3);
        }
        self.options.extend([REPLICA_OF.to_owned(), "127.0.0.1".to_owned(), master.to_string()]);
    }

    /// Freezes it: connections stay, and nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// A connection for assertions.
    pub fn connection(&self) -> Connection {
        Connection::open(&self.config().named("test"), far(), &Shutdown::new(), Level::Drain).unwrap()
    }

    /// Runs one command, as redis-cli would, and gives its reply.
    pub fn cli<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        self.connection().query(&command).unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    fn signal(&self, signal: Signal) {
        let process = self.running.as_ref().expect("it runs");
        kill_process(Pid::from_child(&process.child), signal).unwrap();
    }

    /// Whether it got ready, which it says on its output.
    fn launch(&mut self) -> bool {
        let mut child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--daemonize", "no"])
            .args(["--appendonly", "yes", "--appendfsync", "no", "--loglevel", "notice", "--dir"])
            .arg(self.folder.path())
            .args(&self.options)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (report, ready): (_, Receiver<()>) = bounded(1);
        let output = spawn("t-redis", Kick::dropped("the process"), move || {
            for line in stdout.lines() {
                let Ok(line) = line else { return };
                if line.contains("eady to accept connections") {
                    // Notified once, or nobody waits any more.
                    let _ = report.try_send(());
                }
            }
        });
        let started = ready.recv_timeout(LONG).is_ok();
        self.running = Some(Process { child, output });
        if !started {
            self.kill();
        }
        started
    }

    fn reap(&mut self) {
        if let Some(Process { mut child, output }) = self.running.take() {
            child.wait().unwrap();
            output.join_by(far()).unwrap();
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(process) = &mut self.running {
            // It may have ended already.
            let _ = process.child.kill();
        }
        self.reap();
    }
}

/// A Sentinel that watches a master, which it calls `blue`; ended when dropped.
pub struct Sentinel {
    _folder: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Sentinel {
    pub fn start(master: u16) -> Self {
        let port = free_port();
        Self::start_with(master, port, &format!("port {port}\n"))
    }

    /// `more` are lines of its settings, which have it listen on this port.
    pub fn start_with(master: u16, port: u16, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = format!(
            "bind 127.0.0.1\nsentinel monitor blue 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds blue 1000\nsentinel failover-timeout blue 3000\n{more}"
        );
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).arg("--sentinel").current_dir(folder.path()).stdout(Stdio::null());
        Self { child: command.spawn().unwrap(), _folder: folder, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it answers to a line; nothing as long as it is not there.
    pub fn ask(&self, line: &str) -> String {
        let stream = dial("127.0.0.1", self.port, far(), &Shutdown::new(), Level::Drain);
        let Ok(mut stream) = stream else { return String::new() };
        stream.write_all(format!("{line}\r\nPING\r\n").as_bytes()).unwrap();
        let (mut answer, mut some) = (Vec::new(), [0; 4096]);
        while !answer.ends_with(b"+PONG\r\n") {
            match stream.read(&mut some).unwrap() {
                0 => break,
                n => answer.extend_from_slice(&some[..n]),
            }
        }
        String::from_utf8(answer).unwrap()
    }

    /// Whether it knows the server of this port as the only replica that is good for a fail-over.
    pub fn has_replica(&self, port: u16) -> bool {
        let told = self.ask("SENTINEL replicas blue");
        told.contains(&format!("\r\n{port}\r\n")) && told.contains("master-link-status\r\n$2\r\nok")
    }

    /// Whether it names the server of this port as the master.
    pub fn has_master(&self, port: u16) -> bool {
        self.ask("SENTINEL get-master-addr-by-name blue").contains(&format!("\r\n{port}\r\n"))
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Redis that is looked for often when it is away, so that a test need not wait for it.
pub fn often(redis: RedisConfig) -> RedisConfig {
    let (base, cap) = (Duration::from_millis(20), Duration::from_millis(200));
    RedisConfig { backoff: BackoffConfig { base, cap, ..redis.backoff }, ..redis }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Forwards connections to a server, and does harm on request. Stopped when dropped.
pub struct FaultyProxy {
    address: SocketAddr,
    shared: Arc<Proxy>,
    accept: Option<Thread<()>>,
}

struct Proxy {
    faults: Mutex<Faults>,
    changed: Condvar,
    target: u16,
    stop: Shutdown,
    open: Mutex<Open>,
}

#[derive(Default, Clone)]
struct Faults {
    delay: Duration,
    /// Bytes of replies after which the connection that carries them is closed.
    disconnect_after: Option<usize>,
    refuse: bool,
    black_hole: bool,
    stopped: bool,
}

#[derive(Default)]
struct Open {
    sockets: Vec<TcpStream>,
    threads: Vec<Thread<()>>,
    accepted: usize,
}

impl FaultyProxy {
    pub fn before(server: &RedisServer) -> Self {
        Self::to(server.port())
    }

    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Proxy {
            faults: Mutex::default(),
            changed: Condvar::new(),
            target: port,
            stop: Shutdown::new(),
            open: Mutex::default(),
        });
        let running = shared.clone();
        let accept = spawn("t-proxy", Kick::dropped("a connection to itself"), move || running.accept(&listener));
        Self { address, shared, accept: Some(accept) }
    }

    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    pub fn config(&self) -> RedisConfig {
        RedisConfig::parse(&self.url()).unwrap()
    }

    /// Each piece of a reply comes that much later.
    pub fn delay(&self, delay: Duration) {
        self.set(|faults| faults.delay = delay);
    }

    /// Forwards that many bytes of replies and then closes the connection they are on; once.
    pub fn disconnect_after(&self, bytes: usize) {
        self.set(|faults| faults.disconnect_after = Some(bytes));
    }

    /// Whether that has not happened yet.
    pub fn is_armed(&self) -> bool {
        lock(&self.shared.faults).disconnect_after.is_some()
    }

    /// New connections are ended as soon as they are there.
    pub fn refuse(&self) {
        self.set(|faults| faults.refuse = true);
    }

    /// Nothing arrives any more, either way; what is under way arrives late, after [`FaultyProxy::heal`].
    pub fn black_hole(&self) {
        self.set(|faults| faults.black_hole = true);
    }

    /// Ends all connections.
    pub fn disconnect_all(&self) {
        for socket in &lock(&self.shared.open).sockets {
            // It may have ended already.
            let _ = socket.shutdown(End::Both);
        }
    }

    /// No more harm.
    pub fn heal(&self) {
        self.set(|faults| *faults = Faults::default());
    }

    /// Connections that came so far.
    pub fn accepted(&self) -> usize {
        lock(&self.shared.open).accepted
    }

    fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.shared.faults));
        self.shared.changed.notify_all();
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.set(|faults| faults.stopped = true);
        self.shared.stop.cancel();
        let shared = self.shared.clone();
        drop(dial(&self.address.ip().to_string(), self.address.port(), far(), &Shutdown::new(), Level::Drain));
        self.disconnect_all();
        if let Some(accept) = self.accept.take() {
            accept.join_by(far()).unwrap();
        }
        self.disconnect_all();
        let threads = std::mem::take(&mut lock(&shared.open).threads);
        for thread in threads {
            thread.join_by(far()).unwrap();
        }
    }
}

impl Proxy {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let Ok((client, _)) = listener.accept() else { return };
            let faults = lock(&self.faults).clone();
            if faults.stopped {
                return;
            }
            lock(&self.open).accepted += 1;
            if faults.refuse {
                continue;
            }
            let Ok(server) = dial("127.0.0.1", self.target, far(), &self.stop, Level::Cancel) else { continue };
            client.set_nodelay(true).unwrap();
            let (up, down) = (self.clone(), self.clone());
            let (c, s) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let mut open = lock(&self.open);
            open.sockets.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
            open.threads.push(spawn("t-proxy-up", Kick::dropped("its sockets"), move || up.forward(&c, &s, false)));
            open.threads.push(spawn("t-proxy-down", Kick::dropped("its sockets"), move || {
                down.forward(&server, &client, true)
            }));
        }
    }

    fn forward(&self, mut from: &TcpStream, mut to: &TcpStream, replies: bool) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let n = from.read(&mut buffer).unwrap_or(0);
            let (pass, close) = self.pass(n, replies);
            if n == 0 || to.write_all(&buffer[..pass]).is_err() || close {
                break;
            }
        }
        for socket in [from, to] {
            // The other thread may have ended it.
            let _ = socket.shutdown(End::Both);
        }
    }

    /// How much of what came may pass, once it may, and whether the connection ends then.
    fn pass(&self, n: usize, replies: bool) -> (usize, bool) {
        let mut faults = lock(&self.faults);
        let due = Instant::now() + if replies { faults.delay } else { Duration::ZERO };
        while !faults.stopped && n > 0 {
            let left = due.saturating_duration_since(Instant::now());
            if faults.black_hole {
                faults = wait(&self.changed, faults);
            } else if !left.is_zero() {
                faults = wait_timeout(&self.changed, faults, left);
            } else {
                break;
            }
        }
        match faults.disconnect_after.filter(|_| replies) {
            Some(limit) if n >= limit => {
                faults.disconnect_after = None;
                (limit, true)
            }
            Some(limit) => {
                faults.disconnect_after = Some(limit - n);
                (n, false)
            }
            None => (n, faults.stopped),
        }
    }
}
