//! Both ends of a WebSocket connection over loopback, raw peers, and certificates made on the spot.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::net::dial::{DialError, dial};
use phalanx::net::tls::ClientCertificates;
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{
    ClientTls, Connection, DialRequest, Dialer, HandshakeRequest, Incoming, Listener, ReadHalf, Refusal, ServerTls,
    SocketLimits, TransportError,
};

use super::wait::{LONG, far};

/// Spawns a test's thread; the test ends it by ending the connection it works on.
pub fn background<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Thread<T> {
    spawn(name, Kick::dropped("the other end of its connection"), work)
}

pub fn join<T>(thread: Thread<T>) -> T {
    thread.join_by(far()).unwrap_or_else(|e| panic!("{e}"))
}

/// A certificate for `localhost` and 127.0.0.1 and one for `client.example`, with their keys, and the authority that
/// signed both.
pub struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// Their days are over, but for the authority's.
    pub fn expired() -> Self {
        Self::with(|certificate| certificate.not_after = rcgen::date_time_ymd(2020, 1, 1))
    }

    fn with(change: impl Fn(&mut rcgen::CertificateParams)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        std::fs::write(folder.path().join("ca.pem"), ca_certificate.pem()).unwrap();
        for (prefix, names) in [("", vec!["localhost", "127.0.0.1"]), ("client-", vec!["client.example"])] {
            let key = rcgen::KeyPair::generate().unwrap();
            let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
            let mut certificate = rcgen::CertificateParams::new(names).unwrap();
            change(&mut certificate);
            let certificate = certificate.signed_by(&key, &issuer).unwrap();
            std::fs::write(folder.path().join(format!("{prefix}cert.pem")), certificate.pem()).unwrap();
            std::fs::write(folder.path().join(format!("{prefix}key.pem")), key.serialize_pem()).unwrap();
        }
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn server(&self) -> ServerTls {
        ServerTls::from_files(&self.path("cert.pem"), &self.path("key.pem")).unwrap()
    }

    /// As [`Certificates::server`], for clients that the same authority knows.
    pub fn server_for_clients(&self, asks: ClientCertificates) -> ServerTls {
        ServerTls::with_client_ca(&self.path("cert.pem"), &self.path("key.pem"), &self.path("ca.pem"), asks).unwrap()
    }

    pub fn client(&self) -> ClientTls {
        ClientTls::from_ca_file(&self.path("ca.pem")).unwrap()
    }

    /// As [`Certificates::client`], with the certificate of `client.example`.
    pub fn known_client(&self) -> ClientTls {
        self.client().with_certificate(&self.path("client-cert.pem"), &self.path("client-key.pem")).unwrap()
    }
}

/// A listener and a dialer that trusts it.
pub struct Site {
    pub listener: WsListener,
    pub dialer: WsDialer,
}

impl Site {
    pub fn new(tls: bool) -> Self {
        if tls {
            let certificates = Certificates::new();
            let listener = WsListener::bind("127.0.0.1:0", Some(certificates.server())).unwrap();
            Self { listener, dialer: WsDialer::new(certificates.client()) }
        } else {
            Self { listener: WsListener::bind("127.0.0.1:0", None).unwrap(), dialer: WsDialer::default() }
        }
    }

    /// An open connection, `(client, server)`.
    pub fn connect(self, limits: SocketLimits) -> (Connection, Connection) {
        let Self { listener, dialer } = self;
        let url = listener.url();
        let server = background("t-accept", move || accept(&listener, &limits, |_| Ok(())).unwrap().0);
        let client = dial_ws(&dialer, &url, &limits).unwrap();
        (client, join(server))
    }
}

pub fn connected(tls: bool) -> (Connection, Connection) {
    Site::new(tls).connect(SocketLimits::default())
}

pub fn accept(
    listener: &impl Listener,
    limits: &SocketLimits,
    mut check: impl FnMut(&HandshakeRequest) -> Result<(), Refusal>,
) -> Result<(Connection, HandshakeRequest), TransportError> {
    listener.accept()?.handshake(limits, far(), &Shutdown::new(), Level::Drain, &mut check)
}

pub fn dial_ws(dialer: &impl Dialer, url: &str, limits: &SocketLimits) -> Result<Connection, TransportError> {
    let request = DialRequest { url, headers: &[], limits: *limits, deadline: far() };
    dialer.dial(&request, &Shutdown::new(), Level::Drain)
}

/// A plain TCP connection to `address`.
pub fn raw_client(address: SocketAddr) -> TcpStream {
    try_raw_client(address).unwrap()
}

/// The same, where perhaps nobody listens.
pub fn try_raw_client(address: SocketAddr) -> Result<TcpStream, DialError> {
    dial(&address.ip().to_string(), address.port(), far(), &Shutdown::new(), Level::Drain)
}

/// The same from 127.0.0.`last`, with a limit for reading.
pub fn connect_from(last: u8, address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
    socket.connect_timeout(&address.into(), LONG).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.into()
}

/// A TCP listener of no protocol, and its address as a URL.
pub fn raw_server(scheme: &str) -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    (listener, url)
}

/// A listener whose queue is full, so that a further `connect` hangs for as long as this lives.
pub struct BlackHole {
    _queue: Vec<socket2::Socket>,
    pub address: SocketAddr,
}

impl BlackHole {
    pub fn new() -> Self {
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let listener = socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queue = vec![listener];
        loop {
            let filler = socket();
            if filler.connect_timeout(&address.into(), Duration::from_millis(200)).is_err() {
                return Self { _queue: queue, address };
            }
            queue.push(filler);
        }
    }
}

/// Reads up to the empty line after the headers.
pub fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "the head ended early: {:?}", String::from_utf8_lossy(&head));
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// The request that a correct client sends.
pub const REQUEST: &str = "GET / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";

/// A connection whose client is the test itself, byte by byte.
pub fn raw_client_connected(limits: SocketLimits) -> (TcpStream, Connection) {
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let address = listener.local_addr();
    let server = background("t-accept", move || accept(&listener, &limits, |_| Ok(())).unwrap().0);
    let mut client = raw_client(address);
    client.write_all(REQUEST.as_bytes()).unwrap();
    let head = read_head(&mut client);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    assert!(!head.to_ascii_lowercase().contains("extensions"), "{head}");
    (client, join(server))
}

/// A connection whose server is the test itself; `first` is sent in one piece with the answer.
pub fn raw_server_connected(limits: SocketLimits, first: &[u8]) -> (Connection, TcpStream) {
    let (listener, url) = raw_server("ws");
    let first = first.to_vec();
    let server = background("t-rawserver", move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = read_head(&mut stream);
        let key = head.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        .into_bytes();
        answer.extend_from_slice(&first);
        stream.write_all(&answer).unwrap();
        stream
    });
    let client = dial_ws(&WsDialer::default(), &url, &limits).unwrap();
    (client, join(server))
}

/// A frame, masked with a mask that changes nothing if `masked`.
pub fn frame(first_byte: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mask_bit = if masked { 0x80 } else { 0 };
    let mut bytes = vec![first_byte];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short), _) if short < 126 => bytes.push(mask_bit | short),
        (_, Ok(middle)) => bytes.extend([&[mask_bit | 126][..], &middle.to_be_bytes()].concat()),
        _ => bytes.extend([&[mask_bit | 127][..], &(payload.len() as u64).to_be_bytes()].concat()),
    }
    if masked {
        bytes.extend_from_slice(&[0; 4]);
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// Reads one frame of at most 64 KiB, unmasked: its first byte and its payload.
pub fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    let mut length = usize::from(head[1] & 0x7f);
    if length == 126 {
        let mut long = [0; 2];
        stream.read_exact(&mut long).unwrap();
        length = usize::from(u16::from_be_bytes(long));
    }
    assert_ne!(length, 127, "a frame over 64 KiB");
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        stream.read_exact(&mut mask).unwrap();
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).unwrap();
    payload.iter_mut().enumerate().for_each(|(i, byte)| *byte ^= mask[i % 4]);
    (head[0], payload)
}

/// The next text of a connection whose peer may ask whether it is alive: that is answered.
pub fn read_text_between_pings(connection: &mut Connection) -> String {
    loop {
        match connection.reader.read().unwrap() {
            Incoming::Text(text) => return text.as_str().to_owned(),
            Incoming::Control => connection.writer.flush().unwrap(),
            other => panic!("expected a text or a ping, got {other:?}"),
        }
    }
}

/// The next text; anything else is a failure of the test.
pub fn read_text(reader: &mut dyn ReadHalf) -> String {
    match reader.read().unwrap() {
        Incoming::Text(text) => text.as_str().to_owned(),
        other => panic!("expected a text, got {other:?}"),
    }
}
