//! The HTTP server with TLS: who is answered, who is told why not, and what stays as without.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport::{Certificates, raw_client};
use crate::testkit::wait::LONG;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::Stopping;
use phalanx::net::http::{HttpClient, HttpLimits, HttpListener, HttpResponse, HttpServer};
use phalanx::net::tls::{ClientCertificates, ServerTls};
use phalanx::ops::status::Board;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Answers with the path, and at `/large` with 3 MB.
fn start(tls: ServerTls, limits: HttpLimits) -> HttpServer {
    let handler = Arc::new(|request: &phalanx::net::http::HttpRequest| match request.path.as_str() {
        "/large" => HttpResponse::text(200, "x".repeat(3_000_000)),
        path => HttpResponse::text(200, path),
    });
    let listener = HttpListener::new(TcpListener::bind("127.0.0.1:0").unwrap(), Some(tls));
    HttpServer::start("t", listener, handler, limits, &Board::new()).unwrap()
}

fn stop(server: HttpServer) {
    let mut stopping = Stopping::alone();
    stopping.step("http", LONG, |step| server.stop_in(step));
    let report = stopping.finish();
    assert!(report.is_clean(), "{report}");
}

fn authority(certificates: &Certificates) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(certificates.path("ca.pem")).unwrap()
}

/// A client of rustls, with its certificate or without.
fn client(server: &HttpServer, certificates: &Certificates, known: bool) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(authority(certificates)).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = if known {
        let chain = vec![CertificateDer::from_pem_file(certificates.path("client-cert.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(certificates.path("client-key.pem")).unwrap();
        config.with_client_auth_cert(chain, key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let stream = raw_client(server.local_addr());
    stream.set_read_timeout(Some(LONG)).unwrap();
    StreamOwned::new(connection, stream)
}

#[test]
fn requests_are_answered_over_tls() {
    let _threads = NoThreads::expected();
    let certificates = Certificates::new();
    let server = start(certificates.server(), HttpLimits::default());
    let url = server.url().replace("127.0.0.1", "localhost");
    assert!(url.starts_with("https://"), "{url}");
    let soon = Instant::now() + LONG;
    let asking = HttpClient::trusting(Shutdown::new(), certificates.client());
    let ask = |path: &str| asking.get(&format!("{url}{path}"), &[], soon);
    assert_eq!(ask("/a").unwrap().text(), "/a");
    assert_eq!(ask("/large").unwrap().body.len(), 3_000_000);
    let mut kept = client(&server, &certificates, false);
    kept.write_all(b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    kept.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");

    kept.write_all(b"GET /d HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let mut rest = String::new();
    // At the end there is a word of TLS, so that nothing can be cut off unseen.
    kept.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("\r\n\r\n/d"), "{rest}");
    stop(server);
}

#[test]
fn without_the_certificate_of_a_client_there_is_no_answer() {
    let _threads = NoThreads::expected();
    let certificates = Certificates::new();
    let server = start(certificates.server_for_clients(ClientCertificates::Required), HttpLimits::default());
    for known in [true, false] {
        let mut stream = client(&server, &certificates, known);
        let mut answer = String::new();
        let request = b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
        let outcome = stream.write_all(request).and_then(|()| stream.read_to_string(&mut answer));
        assert_eq!(outcome.is_ok(), known, "{outcome:?}");
        assert_eq!(answer.ends_with("/healthz"), known, "{answer}");
        if let Err(error) = outcome {
            assert!(error.to_string().contains("CertificateRequired"), "{error}");
        }
    }
    stop(server);
}

#[test]
fn who_speaks_no_tls_is_told_and_who_says_nothing_is_let_go() {
    let _threads = NoThreads::expected();
    let certificates = Certificates::new();
    let server =
        start(certificates.server(), HttpLimits { head_time: Duration::from_millis(50), ..HttpLimits::default() });
    let mut plain = raw_client(server.local_addr());
    plain.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("ask by https://"), "{answer}");
    for begun in [&b""[..], b"\x16\x03\x01", b"\x16\x03\x01\x00\x05abcde"] {
        let mut silent = raw_client(server.local_addr());
        silent.write_all(begun).unwrap();
        let mut rest = Vec::new();
        // The end, at its deadline; what does not make sense gets an alert.
        silent.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty() || rest[0] == 21, "{begun:?} {rest:?}");
    }
    stop(server);
}
