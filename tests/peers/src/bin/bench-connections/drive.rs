//! All clients, on one thread.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::work::{HEARTBEAT, PROBE};

/// Connections that are made at a time.
const AT_ONCE: usize = 64;

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
    pub authentication: String,
}

/// Connections that are open, each with its halves.
pub struct Clients {
    sinks: Vec<SplitSink<Socket, Message>>,
    /// They read, and so answer pings.
    readers: JoinSet<String>,
}

async fn connect(target: &Target) -> Result<Socket, String> {
    let address = target.url.split_once("://").map_or("", |(_, address)| address);
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
    let url = format!("ws://{address}/");
    let (mut socket, _) =
        client_async_with_config(url, stream, Some(config)).await.map_err(|error| format!("upgrade: {error}"))?;
    let hello = Message::Text(target.authentication.as_str().into());
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

async fn read(mut stream: SplitStream<Socket>) -> String {
    loop {
        match stream.next().await {
            Some(Ok(Message::Close(why))) => return format!("closed: {why:?}"),
            Some(Ok(_)) => {}
            Some(Err(error)) => return error.to_string(),
            None => return "the connection ended".to_owned(),
        }
    }
}

impl Clients {
    pub fn none() -> Self {
        Self { sinks: Vec::new(), readers: JoinSet::new() }
    }

    /// Makes connections until there are so many, each authenticated; gives the seconds that it took.
    pub async fn grow(&mut self, target: &Target, count: usize) -> Result<f64, String> {
        let begin = Instant::now();
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let mut making = JoinSet::new();
        for _ in self.sinks.len()..count {
            let (target, places) = (target.clone(), places.clone());
            making.spawn(async move {
                let _place = places.acquire().await.map_err(|error| error.to_string())?;
                connect(&target).await
            });
        }
        while let Some(made) = making.join_next().await {
            let (sink, stream) = made.map_err(|error| error.to_string())??.split();
            self.sinks.push(sink);
            self.readers.spawn(read(stream));
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Sends heartbeats, of each client once in `every`, for a while; fails if a connection ends meanwhile.
    pub async fn beat(&mut self, every: Duration, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        let step = Duration::from_millis(10);
        let mut steps = interval_at(Instant::now() + step, step);
        let (mut at, mut owed) = (0, 0.0);
        while Instant::now() < end {
            steps.tick().await;
            owed += self.sinks.len() as f64 * step.as_secs_f64() / every.as_secs_f64();
            while owed >= 1.0 {
                owed -= 1.0;
                at = (at + 1) % self.sinks.len();
                self.sinks[at].send(Message::Text(HEARTBEAT.into())).await.map_err(|error| error.to_string())?;
            }
        }
        self.check()
    }

    /// Fails if a connection has ended.
    pub fn check(&mut self) -> Result<(), String> {
        match self.readers.try_join_next() {
            Some(ended) => Err(format!("a connection has ended: {}", ended.unwrap_or_else(|error| error.to_string()))),
            None => Ok(()),
        }
    }
}

/// Microseconds of so many probes, one every four milliseconds, on a connection of its own.
pub async fn probe(target: &Target, count: usize) -> Result<Vec<f64>, String> {
    let mut socket = connect(target).await?;
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
