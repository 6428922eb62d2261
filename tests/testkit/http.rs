//! A tiny HTTP server on loopback that does what the test says, and remembers what it was asked.
//!
//! Owner: the test, through [`Server`]. One thread, `t-http`, blocked in accept or in a connection; kicked by shutting
//! that connection and by a connection of its own; ends with the server. It serves one connection at a time, and each
//! once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, bounded};
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::net::reach::Reach;
use phalanx::net::tls::{ClientTls, Roots, Trust};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::transport::Certificates;

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What the server does with a request.
pub enum Reply {
    /// Answers with status, headers and body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Sends these bytes and closes.
    Raw(Vec<u8>),
    /// Sends these bytes and then nothing until the client closes.
    Hang(Vec<u8>),
}

impl Reply {
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Reply::Answer(200, vec![], body.into())
    }

    pub fn status(status: u16) -> Self {
        Reply::Answer(status, vec![], vec![])
    }
}

type Handler = Box<dyn FnMut(&Request) -> Reply + Send>;

fn tls_config(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Arc<rustls::ServerConfig> {
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

#[derive(Default)]
struct HttpFakeState {
    seen: Mutex<Vec<Request>>,
    current: Mutex<Option<TcpStream>>,
    stop: AtomicBool,
}

pub struct Server {
    address: SocketAddr,
    state: Arc<HttpFakeState>,
    /// A message for each request that was read.
    arrived: Receiver<()>,
    /// What a client of the TLS server must trust.
    root: Option<CertificateDer<'static>>,
    _thread: Thread<()>,
}

impl Server {
    pub fn start(handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        Self::launch(Box::new(handler), None, None)
    }

    pub fn start_tls(handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let root = key.cert.der().clone();
        let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let config = tls_config(vec![root.clone()], private);
        Self::launch(Box::new(handler), Some(config), Some(root))
    }

    /// A TLS server whose certificate is by an authority of one's own.
    pub fn start_with(certificates: &Certificates, handler: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let chain = CertificateDer::pem_file_iter(certificates.path("cert.pem")).unwrap();
        let chain: Vec<_> = chain.collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(certificates.path("key.pem")).unwrap();
        let root = CertificateDer::from_pem_file(certificates.path("ca.pem")).unwrap();
        Self::launch(Box::new(handler), Some(tls_config(chain, key)), Some(root))
    }

    fn launch(
        mut handler: Handler,
        tls: Option<Arc<rustls::ServerConfig>>,
        root: Option<CertificateDer<'static>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(HttpFakeState::default());
        let (kicked, shared) = (state.clone(), state.clone());
        let (tx, arrived) = bounded(1000);
        let kick = Kick::new("its connection and one of its own", move || {
            kicked.stop.store(true, Ordering::SeqCst);
            if let Some(stream) = kicked.current.lock().unwrap().take() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            let timeout = std::time::Duration::from_secs(5);
            #[allow(clippy::disallowed_methods)] // To a listener of this process, which accepts at once.
            let _ = TcpStream::connect_timeout(&address, timeout);
        });
        let thread = spawn("t-http", kick, move || {
            for stream in listener.incoming() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                *shared.current.lock().unwrap() = Some(stream.try_clone().unwrap());
                let closer = stream.try_clone().unwrap();
                let mut on_request = |request: &Request| {
                    shared.seen.lock().unwrap().push(request.clone());
                    tx.send(()).unwrap();
                    handler(request)
                };
                // A client that goes away in the middle is part of many tests.
                let _ = match &tls {
                    None => serve(stream, &mut on_request),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                        serve(rustls::StreamOwned::new(connection, stream), &mut on_request)
                    }
                };
                let _ = closer.shutdown(Shutdown::Both);
            }
        });
        Self { address, state, arrived, root, _thread: thread }
    }

    pub fn url(&self, path: &str) -> String {
        match self.root {
            None => format!("http://{}{path}", self.address),
            Some(_) => format!("https://localhost:{}{path}", self.address.port()),
        }
    }

    /// What trusts it, and nobody else.
    pub fn trusted(&self) -> ClientTls {
        let certificates = vec![self.root.clone().unwrap()];
        ClientTls::trusting(Trust { roots: Roots::None, certificates, ca: None }).unwrap()
    }

    /// Everything that was asked so far.
    pub fn seen(&self) -> Vec<Request> {
        self.state.seen.lock().unwrap().clone()
    }

    pub fn arrivals(&self) -> Receiver<()> {
        self.arrived.clone()
    }
}

fn serve(stream: impl Read + Write, handler: &mut dyn FnMut(&Request) -> Reply) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let request = read_request(&mut stream)?;
    let reply = handler(&request);
    let out = stream.get_mut();
    match reply {
        Reply::Answer(status, headers, body) => {
            write!(out, "HTTP/1.1 {status} Reason\r\ncontent-length: {}\r\n", body.len())?;
            headers.iter().try_for_each(|(name, value)| write!(out, "{name}: {value}\r\n"))?;
            out.write_all(b"\r\n")?;
            out.write_all(&body)?;
        }
        Reply::Raw(bytes) => out.write_all(&bytes)?,
        Reply::Hang(bytes) => {
            out.write_all(&bytes)?;
            out.flush()?;
            while stream.read(&mut [0; 1024])? > 0 {}
        }
    }
    stream.get_mut().flush()
}

fn read_request(stream: &mut impl BufRead) -> std::io::Result<Request> {
    let mut line = || {
        let mut line = String::new();
        match stream.read_line(&mut line)? {
            0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            _ => Ok(line.trim_end().to_owned()),
        }
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request { method, path, headers, body: vec![] };
    assert_eq!(request.header("transfer-encoding"), None, "object stores refuse bodies in chunks");
    let len: usize = request.header("content-length").map_or(0, |len| len.parse().unwrap());
    request.body = vec![0; len];
    stream.read_exact(&mut request.body)?;
    Ok(request)
}

/// A reach that includes the servers of tests.
pub fn loopback() -> Reach {
    Reach::Global(vec!["127.0.0.0/8".parse().unwrap()])
}
