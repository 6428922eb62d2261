//! The certificate as real parsers see it, and the proxy over loopback with real TLS clients.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown as Direction, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::certificate::ServerCertificate;
use super::probe::{Ready, until_ready};
use super::proxy::Proxy;
use super::*;
use crate::base::limits::STREAMING_CERTIFICATE_BYTES;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::thread::{Group, Kick, Thread, spawn};
use crate::net::accept::KickableListener;
use crate::net::dial::dial;
use crate::net::tls::provider;
use crate::ops::errors::ErrorHandler;
use crate::protocol::StreamingDetails;

const LONG: Duration = Duration::from_secs(60);

fn far() -> Instant {
    Instant::now() + LONG
}

/// A certificate with its key, as a client has it.
#[derive(Clone)]
struct Identity {
    pem: String,
    der: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    fn make(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.into(), key: key.serialize_der() }
    }
}

/// A client's TLS: trusts one certificate, and shows one if it has it.
fn client_tls(server: &str, identity: Option<&Identity>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { der, key, .. }) => {
            let key = PrivateKeyDer::try_from(key.clone()).unwrap();
            builder.with_client_auth_cert(vec![der.clone()], key).unwrap()
        }
    })
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn plain(address: SocketAddr) -> TcpStream {
    let stream = dial("127.0.0.1", address.port(), far(), &Shutdown::new(), Level::Cancel).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

/// A job's server that hands its connections to the test, and the proxy in front of it.
struct Rig {
    proxy: Option<Proxy>,
    address: SocketAddr,
    pem: String,
    connections: Receiver<TcpStream>,
    kick: Box<dyn Fn()>,
    job: Option<Thread<()>>,
    group: Option<Group>,
}

impl Rig {
    fn new(clients: &str) -> Self {
        let group = Group::enter();
        let details = StreamingDetails { public_key: clients.to_owned(), executor_ip: Some("127.0.0.1".to_owned()) };
        let StreamingServer { listener, tls, certificate, errors } =
            StreamingServer::open(&details, PortRange::DEFAULT, ErrorHandler::default()).unwrap();
        let server = KickableListener::new(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let (address, job_address) = (listener.reachable_addr(), server.local_addr());
        let (to_test, connections) = bounded(16);
        let kick = Box::new(server.kick());
        let job = spawn("t-job", Kick::dropped("kicked by the test"), move || {
            while let Some((stream, _)) = server.accept().unwrap() {
                stream.set_read_timeout(Some(LONG)).unwrap();
                to_test.send(stream).unwrap();
            }
        });
        let proxy = Proxy::start(listener, tls, job_address, errors);
        Self { proxy: Some(proxy), address, pem: certificate, connections, kick, job: Some(job), group: Some(group) }
    }

    fn client(&self, identity: Option<&Identity>) -> Tls {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = ClientConnection::new(client_tls(&self.pem, identity), name).unwrap();
        StreamOwned::new(tls, plain(self.address))
    }

    fn job(&self) -> TcpStream {
        self.connections.recv_timeout(LONG).expect("a connection to the job")
    }

    /// No connection has reached the job so far: one that comes after is the first.
    fn assert_untouched(&self, right: &Identity) {
        let mut client = self.client(Some(right));
        client.write_all(b"mine").unwrap();
        client.flush().unwrap();
        let mut seen = [0; 4];
        self.job().read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"mine");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.proxy.take());
        (self.kick)();
        let joined = self.job.take().unwrap().join_by(far());
        let live = self.group.take().unwrap().live();
        if !std::thread::panicking() {
            joined.unwrap();
            assert!(live.is_empty(), "{live:?}");
        }
    }
}

#[test]
fn real_parsers_read_the_certificate_as_the_python_executor_s() {
    let now = Duration::from_secs(1_800_000_000);
    for (address, expected) in [
        ("203.0.113.7", "DNS:localhost, IP Address:203.0.113.7"),
        ("2001:db8::1", "DNS:localhost, IP Address:2001:DB8:0:0:0:0:0:1"),
        ("executor.example.org", "DNS:localhost, DNS:executor.example.org"),
    ] {
        let certificate = ServerCertificate::make(address, now).unwrap();
        assert!(certificate.pem.starts_with("-----BEGIN CERTIFICATE-----\n"), "{}", certificate.pem);
        assert!(certificate.pem.ends_with("-----END CERTIFICATE-----\n") && !certificate.pem.contains('\r'));
        assert!(certificate.pem.len() < STREAMING_CERTIFICATE_BYTES);
        let Some(text) = openssl(&["x509", "-noout", "-text"], &certificate.pem) else { return };
        for part in [
            "Version: 3",
            "Issuer: CN = localhost",
            "Subject: CN = localhost",
            "Not Before: Jan 15 07:00:00 2027 GMT",
            "Not After : Jan 15 08:00:00 2028 GMT",
            "Signature Algorithm: ecdsa-with-SHA256",
            "X509v3 Basic Constraints: critical\n                CA:FALSE",
            expected,
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }
    let error = ServerCertificate::make("no name\u{e9}", now).err().unwrap().to_string();
    assert!(error.contains("no certificate can be made for the address"), "{error}");
}

/// What `openssl` says of a text; `None` without the program, which fails if all parts are required.
fn openssl(arguments: &[&str], input: &str) -> Option<String> {
    let child = Command::new("openssl").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        assert!(std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"), "there is no openssl");
        eprintln!("SKIPPED: there is no openssl");
        return None;
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn what_is_no_certificate_of_a_client_is_refused_in_words() {
    let right = Identity::make(|_| {});
    let long = right.pem.repeat(STREAMING_CERTIFICATE_BYTES / right.pem.len() + 1);
    let cut = right.pem.replace("-----END CERTIFICATE-----", "");
    let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (pem, expected) in [
        ("", "it has no certificate; it should be a PEM text with one"),
        ("pem", "it has no certificate"),
        (cut.as_str(), "it is not PEM"),
        (empty, "it is not an X.509 certificate"),
        (long.as_str(), "at most 16384 are possible"),
    ] {
        let details = StreamingDetails { public_key: pem.to_owned(), executor_ip: Some("127.0.0.1".to_owned()) };
        let error =
            StreamingServer::open(&details, PortRange::DEFAULT, ErrorHandler::default()).err().unwrap().to_string();
        assert!(error.contains("streaming_details.public_key") && error.contains(expected), "{pem:.60}: {error}");
    }
    let details = StreamingDetails { public_key: right.pem, executor_ip: None };
    assert!(matches!(
        StreamingServer::open(&details, PortRange::DEFAULT, ErrorHandler::default()),
        Err(StreamingError::NoAddress)
    ));
}

#[test]
fn only_a_client_with_the_certificate_reaches_the_job() {
    let right = Identity::make(|_| {});
    let rig = Rig::new(&right.pem);
    // Another one of the same names, and one that shows the right certificate without having its key.
    let other = Identity::make(|_| {});
    let thief = Identity { key: other.key.clone(), ..right.clone() };
    for (who, identity) in [("none", None), ("another", Some(&other))] {
        let mut client = rig.client(identity);
        // With TLS 1.3 the client's own handshake is over before the server refuses.
        let failed = client.write_all(b"GET / HTTP/1.1\r\n\r\n").and_then(|()| client.read(&mut [0; 16])).unwrap_err();
        assert!(failed.to_string().contains("fatal alert"), "{who}: {failed}");
    }
    // rustls itself does not let a client have a certificate and a key that do not belong together.
    let key = PrivateKeyDer::try_from(thief.key).unwrap();
    let key = provider().key_provider.load_private_key(key).unwrap();
    let shown = Arc::new(rustls::sign::CertifiedKey::new(vec![thief.der], key));
    let mut config = (*client_tls(&rig.pem, Some(&right))).clone();
    config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(shown));
    let tls = ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1").unwrap()).unwrap();
    let mut client = StreamOwned::new(tls, plain(rig.address));
    let failed = client.write_all(b"GET /").and_then(|()| client.read(&mut [0; 16])).unwrap_err();
    assert!(failed.to_string().contains("fatal alert"), "{failed}");
    // Plain HTTP is no handshake.
    let mut client = plain(rig.address);
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    drop(client.read_to_end(&mut answer));
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    rig.assert_untouched(&right);
}

#[test]
fn a_certificate_that_may_issue_others_one_that_is_out_of_date_and_one_it_has_issued_are_let_in() {
    let authority = Identity::make(|params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    let late = Identity::make(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    for identity in [&authority, &late] {
        Rig::new(&identity.pem).assert_untouched(identity);
    }
    let ca_key = rcgen::KeyPair::try_from(authority.key.clone()).unwrap();
    let mut ca = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let issued = rcgen::CertificateParams::new(["client".to_owned()]).unwrap();
    let issued = issued.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
    let issued = Identity { pem: issued.pem(), der: issued.into(), key: key.serialize_der() };
    Rig::new(&authority.pem).assert_untouched(&issued);
    // Of several in the request, each counts.
    Rig::new(&format!("{}{}", late.pem, authority.pem)).assert_untouched(&authority);
}

#[test]
fn bytes_go_through_unchanged_and_as_they_come_and_each_side_may_end_first() {
    let right = Identity::make(|_| {});
    let rig = Rig::new(&right.pem);
    let mut client = rig.client(Some(&right));
    client.write_all(b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").unwrap();
    client.flush().unwrap();
    let mut job = rig.job();
    let mut head = [0; 63];
    job.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    // Each part arrives before the next is written, in both directions, whatever the bytes are.
    for n in 0..=255u8 {
        let mut seen = [0; 3];
        job.write_all(&[n, 0, n]).unwrap();
        client.read_exact(&mut seen).unwrap();
        assert_eq!(seen, [n, 0, n]);
        client.write_all(&[!n, b'\n', n]).unwrap();
        client.flush().unwrap();
        job.read_exact(&mut seen).unwrap();
        assert_eq!(seen, [!n, b'\n', n]);
    }
    // The client ends its side; the job answers after that, and then ends.
    client.conn.send_close_notify();
    client.flush().unwrap();
    client.sock.shutdown(Direction::Write).unwrap();
    assert_eq!(job.read(&mut [0; 8]).unwrap(), 0);
    job.write_all(b"the last words").unwrap();
    drop(job);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"the last words");
}

#[test]
fn a_side_that_does_not_read_holds_up_the_other_and_nothing_is_lost() {
    let right = Identity::make(|_| {});
    let rig = Rig::new(&right.pem);
    let mut client = rig.client(Some(&right));
    client.write_all(b"go").unwrap();
    client.flush().unwrap();
    let mut job = rig.job();
    let bytes = |n: u32| (0..n).flat_map(|i| i.to_be_bytes()).collect::<Vec<u8>>();
    let sent = bytes(8 << 20);
    // The job writes until the client, which does not read, holds it up.
    job.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut written = 0;
    let blocked = loop {
        match job.write(&sent[written..]) {
            Ok(n) => written += n,
            Err(error) => break error,
        }
        assert!(written < sent.len(), "32 MiB went into a client that does not read");
    };
    assert!(matches!(blocked.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{blocked}");
    job.set_write_timeout(Some(LONG)).unwrap();
    let rest = sent[written..].to_vec();
    let writer = spawn("t-writer", Kick::dropped("its socket"), move || {
        job.write_all(&rest).unwrap();
        let mut go = [0; 2];
        job.read_exact(&mut go).unwrap();
        go
    });
    let mut seen = Vec::new();
    client.read_to_end(&mut seen).unwrap();
    assert_eq!(seen.len(), sent.len());
    assert!(seen == sent, "the bytes differ");
    assert_eq!(&writer.join_by(far()).unwrap(), b"go");
}

#[test]
fn a_job_that_takes_no_connection_is_a_bad_gateway() {
    let right = Identity::make(|_| {});
    let rig = Rig::new(&right.pem);
    (rig.kick)();
    // The listener is closed when its thread has ended.
    while rig.connections.recv_timeout(LONG).is_ok() {}
    let mut client = rig.client(Some(&right));
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nthe job's server takes no connections\n"), "{answer}");
}

#[test]
fn a_stop_gives_clients_the_last_bytes_and_dropping_a_proxy_stops_it() {
    let right = Identity::make(|_| {});
    let mut rig = Rig::new(&right.pem);
    let mut client = rig.client(Some(&right));
    client.write_all(b"?").unwrap();
    client.flush().unwrap();
    let mut job = rig.job();
    job.read_exact(&mut [0; 1]).unwrap();
    job.write_all(b"the end").unwrap();
    drop(job);
    rig.proxy.take().unwrap().stop(false);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"the end");
    // With one that is in its handshake, one that is connected, and a job that says nothing.
    let rig = Rig::new(&right.pem);
    let silent = plain(rig.address);
    let mut client = rig.client(Some(&right));
    client.write_all(b"?").unwrap();
    client.flush().unwrap();
    let job = rig.job();
    drop(rig);
    assert!(!matches!(client.read(&mut [0; 1]), Ok(n) if n > 0));
    drop((silent, job));
}

/// A server that gives each connection the next of the answers.
fn serve(answers: &'static [&'static str]) -> (SocketAddr, Thread<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = spawn("t-server", Kick::dropped("its answers are given"), move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            assert!(request.starts_with("GET /health HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (address, server)
}

#[test]
fn a_server_is_ready_when_it_answers_200_and_what_it_said_before_is_known() {
    let answers = &["HTTP/1.1 503 No\r\n\r\n", "", "SSH-2.0\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nOK"];
    let (address, server) = serve(answers);
    let mut asked = 0;
    let find = || {
        asked += 1;
        Ok((asked > 2).then(|| address.ip()))
    };
    assert_eq!(until_ready(address.port(), &Shutdown::new(), far(), find), Ready::At(address));
    assert_eq!(asked, 3, "an address that is known is not asked for again");
    server.join_by(far()).unwrap();
    // Now nobody listens there.
    let soon = Instant::now() + Duration::from_millis(200);
    let Ready::No(why) = until_ready(address.port(), &Shutdown::new(), soon, || Ok(Some(address.ip()))) else {
        panic!("ready")
    };
    assert!(why.contains("cannot connect to 127.0.0.1"), "{why}");
    let soon = Instant::now() + Duration::from_millis(200);
    let no = until_ready(1, &Shutdown::new(), soon, || Err("no engine".to_owned()));
    assert_eq!(no, Ready::No("no engine".to_owned()));
}

#[test]
fn the_end_of_the_run_ends_the_wait_for_a_server_that_does_not_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stop = Shutdown::new();
    let token = stop.clone();
    let wait = spawn("t-wait", Kick::dropped("the stop"), move || {
        until_ready(address.port(), &token, far(), || Ok(Some(address.ip())))
    });
    // It has connected, and waits for the answer.
    let connection = listener.accept().unwrap();
    stop.cancel();
    assert_eq!(wait.join_by(far()).unwrap(), Ready::Stopped);
    drop(connection);
}

#[test]
fn port_ranges_are_read_and_a_taken_range_is_refused_in_words() {
    for text in ["6000-6999", "443-443"] {
        assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
    }
    assert_eq!("6006".parse::<PortRange>().unwrap().to_string(), "6006-6006");
    for text in ["", "0-5", "7-6", "x", "1-70000", "1-2-3"] {
        let error = text.parse::<PortRange>().unwrap_err();
        assert!(error.contains("should be a range of ports, as 6000-6999"), "{error}");
    }
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let ports = PortRange { first: port, last: port };
    let details =
        StreamingDetails { public_key: Identity::make(|_| {}).pem, executor_ip: Some("127.0.0.1".to_owned()) };
    let error = StreamingServer::open(&details, ports, ErrorHandler::default()).err().unwrap().to_string();
    assert!(error.contains(&format!("no port of {port}-{port} can be listened on")), "{error}");
}
