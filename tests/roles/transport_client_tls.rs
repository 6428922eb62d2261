//! What a client shows and expects in TLS: its own certificate, and a server's name that is not the URL's.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use kit::{Certificates, Site, accept, background, dial_ws, join, raw_server, read_head};
use phalanx::base::thread::Thread;
use phalanx::net::tls::ClientCertificates;
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{ClientTls, Listener, ServerTls, SocketLimits, TransportError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

fn der(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

/// A server of rustls that wants a certificate of the authority; gives what the client showed, or the error.
fn strict_server(certificates: &Certificates) -> (String, Thread<Result<CertificateDer<'static>, String>>) {
    let mut roots = RootCertStore::empty();
    roots.add(der(&certificates.path("ca.pem"))).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![der(&certificates.path("cert.pem"))],
            PrivateKeyDer::from_pem_file(certificates.path("key.pem")).unwrap(),
        )
        .unwrap();
    let (listener, url) = raw_server("wss");
    let serving = background("t-strict", move || {
        let (stream, _) = listener.accept().unwrap();
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), stream);
        while tls.conn.is_handshaking() {
            if let Err(error) = tls.conn.complete_io(&mut tls.sock) {
                // The alert is on its way; unread bytes would make the system take it back.
                let _ = tls.sock.shutdown(std::net::Shutdown::Write);
                let _ = tls.sock.read_to_end(&mut Vec::new());
                return Err(error.to_string());
            }
        }
        let head = read_head(&mut tls);
        let key = head.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        tls.write_all(answer.as_bytes()).unwrap();
        Ok(tls.conn.peer_certificates().unwrap()[0].clone())
    });
    (url, serving)
}

#[test]
fn a_server_that_wants_a_certificate_gets_ours() {
    let _threads = NoThreads::expected();
    let certificates = Certificates::new();
    let (url, serving) = strict_server(&certificates);
    dial_ws(&WsDialer::new(certificates.known_client()), &url, &SocketLimits::default()).unwrap();
    assert_eq!(join(serving).unwrap(), der(&certificates.path("client-cert.pem")));
}

#[test]
fn without_the_right_certificate_the_error_is_one_of_tls() {
    let _threads = NoThreads::expected();
    let certificates = Certificates::new();
    let stranger = Certificates::new();
    let wrong = certificates
        .client()
        .with_certificate(&stranger.path("client-cert.pem"), &stranger.path("client-key.pem"))
        .unwrap();
    // The stranger's authority goes by the same name, so it is the signature that is wrong.
    for (tls, says) in [(certificates.client(), "CertificateRequired"), (wrong, "DecryptError")] {
        let (url, serving) = strict_server(&certificates);
        let error = dial_ws(&WsDialer::new(tls), &url, &SocketLimits::default()).unwrap_err();
        assert!(matches!(&error, TransportError::Tls { .. }) && error.to_string().contains(says), "{error}");
        assert!(join(serving).is_err());
    }
}

/// How a client fares with a listener: whether the server has it, and the client's outcome.
fn knock(listener: WsListener, tls: ClientTls, path: &str) -> (bool, Result<(), TransportError>) {
    let url = format!("{}{path}", listener.url());
    let server = background("t-accept", move || accept(&listener, &SocketLimits::default(), |_| Ok(())).is_ok());
    let outcome = dial_ws(&WsDialer::new(tls), &url, &SocketLimits::default());
    (join(server), outcome.map(drop))
}

#[test]
fn our_server_takes_clients_with_a_certificate_of_its_authority() {
    let _threads = NoThreads::expected();
    let certificates = Certificates::new();
    let stranger = Certificates::new();
    let wrong = certificates
        .client()
        .with_certificate(&stranger.path("client-cert.pem"), &stranger.path("client-key.pem"))
        .unwrap();
    let bind = |asks| {
        let tls = certificates.server_for_clients(asks);
        WsListener::bind("127.0.0.1:0", Some(tls)).unwrap().without_certificate(|path| path == "/token")
    };
    use ClientCertificates::{Asked, Required};
    for asks in [Required, Asked] {
        for path in ["/", "/token"] {
            let (taken, outcome) = knock(bind(asks), certificates.known_client(), path);
            assert!(taken && outcome.is_ok(), "{asks:?} {path} {outcome:?}");
            let (taken, outcome) = knock(bind(asks), wrong.clone(), path);
            assert!(!taken && matches!(outcome, Err(TransportError::Tls { .. })), "{asks:?} {path} {outcome:?}");
        }
    }
    for path in ["/", "/token"] {
        let (taken, outcome) = knock(bind(Required), certificates.client(), path);
        assert!(!taken && matches!(outcome, Err(TransportError::Tls { .. })), "{path} {outcome:?}");
    }
    let (taken, outcome) = knock(bind(Asked), certificates.client(), "/token");
    assert!(taken && outcome.is_ok(), "{outcome:?}");
    let (taken, outcome) = knock(bind(Asked), certificates.client(), "/");
    let error = outcome.unwrap_err();
    assert!(!taken && matches!(error, TransportError::Refused { status: 403, .. }), "{error:?}");
    assert!(error.to_string().contains("a client certificate"), "{error}");
}

#[test]
fn client_certificate_files_that_do_not_serve_are_named() {
    let own = Certificates::new();
    let load = |certificate: &str, key: &str| {
        own.client().with_certificate(&own.path(certificate), &own.path(key)).unwrap_err().to_string()
    };
    let mixed = load("client-cert.pem", "key.pem");
    assert!(mixed.contains("key.pem: does not fit the certificate") && mixed.contains("client-cert.pem"), "{mixed}");
    let absent = load("absent.pem", "key.pem");
    assert!(absent.contains("absent.pem: cannot read the certificate"), "{absent}");
    let (cert, key) = (own.path("cert.pem"), own.path("key.pem"));
    let error = ServerTls::with_client_ca(&cert, &key, &key, ClientCertificates::Asked).unwrap_err().to_string();
    assert!(error.contains("key.pem: has no certificate; expected"), "{error}");
    let no_key = load("cert.pem", "ca.pem");
    assert!(no_key.contains("ca.pem: has no private key; expected"), "{no_key}");
}

#[test]
fn a_server_of_another_name_is_accepted_by_that_name_only() {
    let _threads = NoThreads::expected();
    let certificates = Certificates::new();
    // The certificate is not for this address, but for localhost.
    let bind = || WsListener::bind("127.0.0.2:0", Some(certificates.server())).unwrap();
    let dialer = WsDialer::new(certificates.client());
    for (name, right) in [("localhost", true), ("other.example", false)] {
        let listener = bind();
        let url = listener.url();
        let dialer = dialer.clone().with_server_name(&url, name).unwrap();
        let server = background("t-accept", move || accept(&listener, &SocketLimits::default(), |_| Ok(())));
        let client = dial_ws(&dialer, &url, &SocketLimits::default());
        assert_eq!(client.is_ok(), right, "{client:?}");
        assert_eq!(join(server).is_ok(), right);
    }
    // The other servers of a process keep their names.
    let listener = bind();
    let url = listener.url();
    let renamed = dialer.clone().with_server_name("wss://127.0.0.2:1/", "localhost").unwrap();
    let server = background("t-accept", move || accept(&listener, &SocketLimits::default(), |_| Ok(())).unwrap_err());
    let error = dial_ws(&renamed, &url, &SocketLimits::default()).unwrap_err();
    assert!(error.to_string().contains("and not for 127.0.0.2; a good one names 127.0.0.2"), "{error}");
    join(server);

    let error = dialer.with_server_name(&url, "no name").unwrap_err().to_string();
    assert!(error.contains("\"no name\": not a host name or address that a certificate can have"), "{error}");
}

#[test]
fn the_name_is_also_what_the_server_is_asked_for() {
    let _threads = NoThreads::expected();
    let Site { listener, dialer } = Site::new(true);
    drop(listener);
    let (listener, url) = raw_server("wss");
    let serving = background("t-hello", move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut acceptor = rustls::server::Acceptor::default();
        loop {
            acceptor.read_tls(&mut stream).unwrap();
            if let Some(accepted) = acceptor.accept().unwrap() {
                return accepted.client_hello().server_name().map(str::to_owned);
            }
        }
    });
    let dialer = dialer.with_server_name(&url, "asked.example").unwrap();
    assert!(dial_ws(&dialer, &url, &SocketLimits::default()).is_err());
    assert_eq!(join(serving).as_deref(), Some("asked.example"));
}
