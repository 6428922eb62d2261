//! What TLS itself can do under a connection: new keys, broken records, an end of its own. The peer is a plain rustls
//! client.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use kit::{Certificates, REQUEST, accept, background, frame, join, raw_client, read_text};
use phalanx::transport::ws::WsListener;
use phalanx::transport::{Connection, Incoming, SocketLimits, TransportError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

type Client = StreamOwned<ClientConnection, TcpStream>;

/// A plain client whose upgrade is done, and our end.
fn plain_client() -> (Client, Connection) {
    let certificates = Certificates::new();
    let listener = WsListener::bind("127.0.0.1:0", Some(certificates.server())).unwrap();
    let address = listener.local_addr();
    let server = background("t-accept", move || accept(&listener, &SocketLimits::default(), |_| Ok(())).unwrap().0);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.path("ca.pem")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut client = StreamOwned::new(tls, raw_client(address));
    client.write_all(REQUEST.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    (client, join(server))
}

#[test]
fn new_keys_in_the_middle_of_a_connection() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = plain_client();
    for round in 0..20u8 {
        // Asks the server for new keys too, which it uses from its next record on.
        client.conn.refresh_traffic_keys().unwrap();
        client.write_all(&frame(0x81, true, &[b'a' + round])).unwrap();
        assert_eq!(read_text(server.reader.as_mut()), char::from(b'a' + round).to_string());
        server.writer.write("y".repeat(1000).into()).unwrap();
        server.writer.flush().unwrap();
        let mut answer = [0; 1004];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..4], [0x81, 126, 3, 232]);
    }
}

#[test]
fn a_broken_record_is_an_error_of_tls_and_the_peer_is_alerted() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = plain_client();
    client.sock.write_all(&[0x17, 3, 3, 0, 40]).unwrap();
    client.sock.write_all(&[0xaa; 40]).unwrap();
    assert_eq!(server.reader.read().unwrap(), Incoming::Control);
    server.writer.flush().unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    drop(client);
    let error = server.reader.read().unwrap_err();
    assert!(matches!(error, TransportError::Tls { .. }), "{error}");
    assert_eq!(error.close_code(), None);
}

#[test]
fn an_end_of_tls_without_a_close_is_not_clean() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = plain_client();
    client.conn.send_close_notify();
    client.flush().unwrap();
    let Incoming::Closed(info) = server.reader.read().unwrap() else { panic!("expected the end") };
    assert!(!info.clean);
    server.writer.write("bye".into()).unwrap();
    assert!(server.writer.flush().unwrap_err().is_closed());
}

#[test]
fn many_small_frames_in_one_record_and_one_frame_in_many_records() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = plain_client();
    let many: Vec<u8> = (0..1000).flat_map(|n| frame(0x81, true, n.to_string().as_bytes())).collect();
    client.write_all(&many).unwrap();
    for n in 0..1000 {
        assert_eq!(read_text(server.reader.as_mut()), n.to_string());
    }
    for byte in frame(0x81, true, b"slowly") {
        client.write_all(&[byte]).unwrap();
    }
    assert_eq!(read_text(server.reader.as_mut()), "slowly");
}
