//! The servers.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::ValueEnum;
use futures_util::{SinkExt, StreamExt};
use phalanx::base::timer::Timer;
use phalanx::link::server::{PlaceLimits, Server, ServerConfig, ServerEvent, StrangerLimits};
use phalanx::link::{Outgoing, Rate};
use phalanx::transport::ws::WsListener;
use phalanx::transport::{Listener, ServerTls, Utf8Bytes};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, interval_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig as TlsConfig};
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::dispatch::validator;
use crate::facilitator::Facilitator;
use crate::work::Session;

/// When a silent client is pinged.
const PING_AFTER: Duration = Duration::from_secs(30);

/// Read buffer of the server on tokio; the library's default is 128 KiB.
pub const READ_BUFFER_BYTES: usize = 4 << 10;

/// A server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Ours, two threads for each connection.
    Threads,
    /// Ours, one poll thread and its workers for all connections.
    Poll,
    /// tokio-tungstenite on a runtime with as many workers as processors.
    Tokio,
}

#[derive(clap::Args)]
pub struct Args {
    kind: Kind,
    /// Serves TLS with `cert.pem` and `key.pem` of this folder
    #[arg(long)]
    tls: Option<PathBuf>,
}

pub fn serve(args: &Args) -> Result<(), String> {
    match args.kind {
        Kind::Threads => ours(usize::MAX, args.tls.as_deref()),
        Kind::Poll => ours(0, args.tls.as_deref()),
        Kind::Tokio => tokio_server(args.tls.as_deref()),
    }
}

/// Says where the server listens.
fn say(url: &str) -> Result<(), String> {
    println!("{url}");
    std::io::stdout().flush().map_err(|error| error.to_string())
}

/// Waits until whoever started this process closes its standard input.
fn wait_for_the_end() -> Result<(), String> {
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop).map_err(|error| error.to_string())
}

fn ours(threaded: usize, tls: Option<&Path>) -> Result<(), String> {
    let tls = tls.map(|folder| ServerTls::from_files(&folder.join("cert.pem"), &folder.join("key.pem")));
    let tls = tls.transpose().map_err(|error| error.to_string())?;
    let listener = WsListener::bind("127.0.0.1:0", tls).map_err(|error| error.to_string())?;
    let url = listener.url();
    let timer = Timer::start();
    let mut config = ServerConfig::new("srv");
    config.threaded = threaded;
    // All clients have one address, and are strangers until the role knows them.
    let all = 20_000;
    let connects = Rate::new(1_000_000, Duration::from_secs(1));
    config.places = PlaceLimits { total: all, strangers: all, address: all, connects, turned_away: 1 };
    config.strangers = Some(StrangerLimits::default());
    let sessions: Mutex<HashMap<_, Arc<Mutex<_>>>> = Mutex::default();
    let sink = move |event| match event {
        ServerEvent::Opened { id, handle, .. } => {
            let session = Arc::new(Mutex::new((handle, Session::default())));
            sessions.lock().expect("nobody panics with it").insert(id, session);
        }
        ServerEvent::Text { id, text } => {
            let session = sessions.lock().expect("nobody panics with it").get(&id).cloned();
            let Some(session) = session else { return };
            let (handle, session) = &mut *session.lock().expect("nobody panics with it");
            match session.take(&text) {
                Ok(None) => {}
                // Full only if the client does not read, and then it is of no use to the measurement.
                Ok(Some(answer)) => {
                    handle.known();
                    drop(handle.send(Outgoing::once(Utf8Bytes::from_static(answer))));
                }
                Err(why) => {
                    eprintln!("{why}");
                    handle.close(4000, &why, PING_AFTER);
                }
            }
        }
        ServerEvent::Closed { id, .. } => {
            sessions.lock().expect("nobody panics with it").remove(&id);
        }
    };
    let server = Server::start(config, Box::new(listener), timer.handle(), Arc::new(|_| Ok(())), Arc::new(sink));
    say(&url)?;
    wait_for_the_end()?;
    drop(server);
    Ok(())
}

fn tell(served: Result<(), String>) {
    if let Err(why) = served {
        eprintln!("{why}");
    }
}

fn tokio_server(tls: Option<&Path>) -> Result<(), String> {
    let acceptor = tls.map(acceptor).transpose()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let scheme = if acceptor.is_some() { "wss" } else { "ws" };
        say(&format!("{scheme}://{address}"))?;
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // As ours has it.
                if let Err(error) = socket.set_nodelay(true) {
                    eprintln!("{error}");
                    continue;
                }
                // Each has a task of its own kind, so that a plain one has no room for TLS.
                match acceptor.clone() {
                    None => tokio::spawn(async move { tell(connection(socket).await) }),
                    Some(acceptor) => tokio::spawn(async move {
                        match acceptor.accept(socket).await {
                            // The handshake's room is given back.
                            Ok(stream) => drop(tokio::spawn(async move { tell(connection(stream).await) })),
                            Err(error) => tell(Err(error.to_string())),
                        }
                    }),
                };
            }
        });
        tokio::task::spawn_blocking(wait_for_the_end).await.map_err(|error| error.to_string())?
    })
}

/// A facilitator on tokio, for so many validators and one user (SS58).
#[derive(clap::Args)]
pub struct FacilitatorArgs {
    validators: usize,
    user: String,
}

pub fn serve_facilitator(args: &FacilitatorArgs) -> Result<(), String> {
    let validators = (0..args.validators).map(|number| validator(number).map(|key| key.public));
    let facilitator = Arc::new(Facilitator::new(validators.collect::<Result<Vec<_>, _>>()?, &args.user)?);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut addresses = Vec::new();
        for of_users in [false, true] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
            addresses.push(listener.local_addr().map_err(|error| error.to_string())?.to_string());
            let facilitator = facilitator.clone();
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let facilitator = facilitator.clone();
                    tokio::spawn(async move {
                        let served = match (socket.set_nodelay(true), of_users) {
                            (Err(error), _) => Err(error.to_string()),
                            (Ok(()), true) => facilitator.user(socket).await,
                            (Ok(()), false) => facilitator.validator(socket).await,
                        };
                        if let Err(why) = served {
                            eprintln!("{why}");
                        }
                    });
                }
            });
        }
        say(&serde_json::json!({"listening": addresses[0], "http": addresses[1]}).to_string())?;
        tokio::task::spawn_blocking(wait_for_the_end).await.map_err(|error| error.to_string())?
    })
}

fn acceptor(folder: &Path) -> Result<TlsAcceptor, String> {
    let chain = CertificateDer::from_pem_file(folder.join("cert.pem")).map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).map_err(|error| error.to_string())?;
    let config = TlsConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .map_err(|error| error.to_string())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), String> {
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
    let mut socket = accept_async_with_config(stream, Some(config)).await.map_err(|error| error.to_string())?;
    let mut session = Session::default();
    let mut ping = interval_at(Instant::now() + PING_AFTER, PING_AFTER);
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    ping.reset();
                    if let Some(answer) = session.take(&text)? {
                        let answer = Message::Text(answer.into());
                        socket.send(answer).await.map_err(|error| error.to_string())?;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
                Some(Ok(_)) => ping.reset(),
            },
            _ = ping.tick() => {
                socket.send(Message::Ping(Bytes::new())).await.map_err(|error| error.to_string())?;
            }
        }
    }
}
