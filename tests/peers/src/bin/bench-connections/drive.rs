//! All clients, on one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, interval_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::work::{HEARTBEAT, PROBE, SUCCESS};

/// Connections that are made at a time.
const AT_ONCE: usize = 64;

/// Probes that are on their way at a time under load, each on another connection.
const PROBES_AT_ONCE: usize = 64;

/// The client's side of a connection, plain or TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

type Socket = WebSocketStream<Box<dyn Stream>>;

/// Where to connect to, and what to say.
#[derive(Clone)]
pub struct Target {
    /// `ws://address:port` or `wss://…`.
    pub url: String,
    pub tls: Option<TlsConnector>,
    /// Of one client after the other, over and over.
    pub authentications: Arc<Vec<String>>,
}

/// Connections that are open, each with its halves.
pub struct Clients {
    sinks: Vec<SplitSink<Socket, Message>>,
    /// They read, and so answer pings.
    readers: JoinSet<String>,
    answers: Arc<Answers>,
}

/// Texts that are awaited.
struct Answers {
    /// What is in them, and in no other text.
    with: &'static str,
    owed: AtomicUsize,
    all: Notify,
}

/// When heartbeats are due.
pub struct Beats {
    every: Duration,
    since: Instant,
    sent: usize,
}

async fn connect(target: &Target, number: usize) -> Result<Socket, String> {
    let place = target.url.split_once("://").map_or("", |(_, place)| place);
    let address = place.split('/').next().unwrap_or_default();
    let tcp = TcpStream::connect(address).await.map_err(|error| format!("connecting: {error}"))?;
    tcp.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream: Box<dyn Stream> = match &target.tls {
        None => Box::new(tcp),
        Some(connector) => {
            let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
            Box::new(connector.connect(name, tcp).await.map_err(|error| format!("tls: {error}"))?)
        }
    };
    let config = WebSocketConfig::default().read_buffer_size(512);
    let url = format!("ws://{place}");
    let (mut socket, _) =
        client_async_with_config(url, stream, Some(config)).await.map_err(|error| format!("upgrade: {error}"))?;
    let hello = &target.authentications[number % target.authentications.len()];
    let hello = Message::Text(hello.as_str().into());
    socket.send(hello).await.map_err(|error| format!("authenticating: {error}"))?;
    answer(&mut socket).await?;
    Ok(socket)
}

/// The next text.
async fn answer(
    socket: &mut (impl StreamExt<Item = Result<Message, impl std::fmt::Display>> + Unpin),
) -> Result<(), String> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(_))) => return Ok(()),
            Some(Ok(Message::Close(why))) => return Err(format!("closed instead of answered: {why:?}")),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(format!("no answer: {error}")),
            None => return Err("no answer: the connection ended".to_owned()),
        }
    }
}

async fn read(mut stream: SplitStream<Socket>, answers: Arc<Answers>) -> String {
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) if text.contains(answers.with) => {
                if answers.owed.fetch_sub(1, Ordering::Relaxed) == 1 {
                    answers.all.notify_one();
                }
            }
            Some(Ok(Message::Close(why))) => return format!("closed: {why:?}"),
            Some(Ok(_)) => {}
            Some(Err(error)) => return error.to_string(),
            None => return "the connection ended".to_owned(),
        }
    }
}

impl Clients {
    pub fn none() -> Self {
        Self::awaiting(SUCCESS)
    }

    /// None yet; they wait for texts that have this in them.
    pub fn awaiting(with: &'static str) -> Self {
        let answers = Answers { with, owed: AtomicUsize::new(0), all: Notify::new() };
        Self { sinks: Vec::new(), readers: JoinSet::new(), answers: Arc::new(answers) }
    }

    /// Makes connections until there are so many, each authenticated; gives the seconds that it took.
    pub async fn grow(&mut self, target: &Target, count: usize) -> Result<f64, String> {
        let begin = Instant::now();
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut making = JoinSet::new();
        for number in self.sinks.len()..count {
            let (target, places) = (target.clone(), places.clone());
            making.spawn(async move {
                let _place = places.acquire().await.map_err(|error| error.to_string())?;
                connect(&target, number).await.map(|socket| (number, socket))
            });
        }
        let mut made = Vec::new();
        while let Some(one) = making.join_next().await {
            made.push(one.map_err(|error| error.to_string())??);
        }
        made.sort_by_key(|(number, _)| *number);
        for (_, socket) in made {
            let (sink, stream) = socket.split();
            self.sinks.push(sink);
            self.readers.spawn(read(stream, self.answers.clone()));
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Sends heartbeats, of each client once in `every`, for a while; fails if a connection ends meanwhile.
    pub async fn beat(&mut self, every: Duration, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        let step = Duration::from_millis(10);
        let mut steps = interval_at(Instant::now() + step, step);
        let mut beats = self.beats(every);
        while Instant::now() < end {
            steps.tick().await;
            self.beat_once(&mut beats).await?;
        }
        self.check()
    }

    /// Heartbeats from now on, of each client once in `every`.
    pub fn beats(&self, every: Duration) -> Beats {
        Beats { every, since: Instant::now(), sent: 0 }
    }

    /// Sends the heartbeats that are due.
    pub async fn beat_once(&mut self, beats: &mut Beats) -> Result<(), String> {
        let due = self.sinks.len() as f64 * beats.since.elapsed().as_secs_f64() / beats.every.as_secs_f64();
        while beats.sent < due as usize {
            beats.sent += 1;
            self.say(beats.sent % self.sinks.len(), HEARTBEAT.to_owned()).await?;
        }
        Ok(())
    }

    /// Sends a text on one connection.
    pub async fn say(&mut self, number: usize, text: String) -> Result<(), String> {
        self.sinks[number].send(Message::Text(text.into())).await.map_err(|error| error.to_string())
    }

    /// Says how many texts are to come, from now on.
    pub fn await_texts(&self, count: usize) {
        self.answers.owed.store(count, Ordering::Relaxed);
    }

    /// When all of them have come; fails if a connection ends first.
    pub async fn arrived(&mut self) -> Result<Instant, String> {
        tokio::select! {
            () = self.answers.all.notified() => Ok(Instant::now()),
            Some(ended) = self.readers.join_next() => Err(ending(ended)),
        }
    }

    /// Sends probes on one connection after the other, the next ones when all are answered, for a while; gives how
    /// many.
    pub async fn load(&mut self, time: Duration) -> Result<usize, String> {
        let end = Instant::now() + time;
        let (mut at, mut count) = (0, 0);
        let round = PROBES_AT_ONCE.min(self.sinks.len());
        while Instant::now() < end {
            self.await_texts(round);
            for _ in 0..round {
                at = (at + 1) % self.sinks.len();
                self.say(at, PROBE.to_owned()).await?;
            }
            self.arrived().await?;
            count += round;
        }
        Ok(count)
    }

    /// Fails if a connection has ended.
    pub fn check(&mut self) -> Result<(), String> {
        match self.readers.try_join_next() {
            Some(ended) => Err(ending(ended)),
            None => Ok(()),
        }
    }
}

fn ending(ended: Result<String, JoinError>) -> String {
    format!("a connection has ended: {}", ended.unwrap_or_else(|error| error.to_string()))
}

/// Microseconds of so many probes, one every four milliseconds, on a connection of its own.
pub async fn probe(target: &Target, count: usize) -> Result<Vec<f64>, String> {
    let mut socket = connect(target, 0).await?;
    let pause = Duration::from_millis(4);
    let mut turns = interval_at(Instant::now() + pause, pause);
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        turns.tick().await;
        let begin = Instant::now();
        socket.send(Message::Text(PROBE.into())).await.map_err(|error| error.to_string())?;
        answer(&mut socket).await?;
        took.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    took.sort_by(f64::total_cmp);
    Ok(took)
}
