//! TLS between the two halves of a socket: what comes is decrypted, what goes is encrypted. No I/O of its own.
//!
//! A thread's connection has that of rustls with buffers. Those keep four KiB for as long as they live, which would be
//! a third of what an idle polled connection takes; so that one has [`Lean`].

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::mem;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};

/// What may have come of a handshake message, which rustls wants in one piece, with one record behind it: as much as
/// rustls itself takes where it has the buffer.
const INCOMING_BYTES: usize = (64 << 10) + (16 << 10) + 2048;

/// TLS of one connection.
pub(super) enum Sealed {
    /// Of a connection with two threads.
    Buffered(Box<rustls::Connection>),
    /// Of a polled one.
    Lean(Box<Lean>),
}

impl Sealed {
    /// Of a connection with two threads, which may have shaken hands already.
    pub(super) fn buffered(tls: impl Into<rustls::Connection>) -> Self {
        Self::Buffered(Box::new(tls.into()))
    }

    /// Of a polled connection.
    pub(super) fn lean(tls: UnbufferedServerConnection) -> Self {
        let (incoming, plain, outgoing) = (Vec::new(), VecDeque::new(), Vec::new());
        Self::Lean(Box::new(Lean { tls, incoming, plain, taken: 0, outgoing, has_ended: false, failed: None }))
    }

    /// Whether the peer has shown a certificate, which then was a good one.
    pub(super) fn peer_is_certified(&self) -> bool {
        match self {
            Self::Buffered(tls) => tls.peer_certificates().is_some(),
            Self::Lean(lean) => lean.tls.peer_certificates().is_some(),
        }
    }

    /// What was decrypted; 0 at the end of the stream, `None` if more must be received first.
    pub(super) fn take(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match self {
            Self::Buffered(tls) => match tls.reader().read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                done => done.map(Some),
            },
            Self::Lean(lean) => Ok(lean.take(buf)),
        }
    }

    /// Decrypts what was received, as much as it says. An error of kind `InvalidData` is one of rustls.
    pub(super) fn feed(&mut self, received: &[u8]) -> io::Result<usize> {
        match self {
            Self::Buffered(tls) => {
                let mut rest = received;
                tls.read_tls(&mut rest)?;
                tls.process_new_packets().map_err(invalid)?;
                Ok(received.len() - rest.len())
            }
            Self::Lean(lean) => lean.feed(received).map(|()| received.len()).map_err(invalid),
        }
    }

    /// Whether TLS itself has something to say.
    pub(super) fn wants_write(&self) -> bool {
        match self {
            Self::Buffered(tls) => tls.wants_write(),
            Self::Lean(lean) => !lean.outgoing.is_empty(),
        }
    }

    /// Encrypts `plain`, after whatever TLS itself has to say; `sealed` has the records.
    pub(super) fn seal(&mut self, plain: &[u8], sealed: &mut Vec<u8>) -> io::Result<()> {
        sealed.clear();
        match self {
            Self::Buffered(tls) => {
                tls.writer().write_all(plain)?;
                while tls.wants_write() {
                    tls.write_tls(sealed)?;
                }
                Ok(())
            }
            Self::Lean(lean) => lean.seal(plain, sealed).map_err(invalid),
        }
    }

    /// Tells the peer that nothing follows, with the next [`Sealed::seal`].
    pub(super) fn send_close_notify(&mut self) {
        match self {
            Self::Buffered(tls) => tls.send_close_notify(),
            Self::Lean(lean) => lean.send_close_notify(),
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The server's end, with memory only for what is on its way.
pub(super) struct Lean {
    tls: UnbufferedServerConnection,
    /// The beginning of a record, or of a handshake message.
    incoming: Vec<u8>,
    /// Decrypted, and how much of the first was taken.
    plain: VecDeque<Vec<u8>>,
    taken: usize,
    /// What TLS itself has to say.
    outgoing: Vec<u8>,
    /// The peer has said that nothing follows.
    has_ended: bool,
    /// Nothing is decrypted any more, and nothing encrypted but the alert that says why.
    failed: Option<rustls::Error>,
}

/// What can encrypt, once the handshake is over.
type Encrypter<'a> = WriteTraffic<'a, ServerConnectionData>;

impl Lean {
    fn take(&mut self, buf: &mut [u8]) -> Option<usize> {
        let Some(first) = self.plain.front() else {
            self.plain = VecDeque::new();
            return self.has_ended.then_some(0);
        };
        let given = buf.len().min(first.len() - self.taken);
        buf[..given].copy_from_slice(&first[self.taken..self.taken + given]);
        self.taken += given;
        if self.taken == first.len() {
            self.taken = 0;
            self.plain.pop_front();
        }
        Some(given)
    }

    fn feed(&mut self, received: &[u8]) -> Result<(), rustls::Error> {
        if self.failed.is_none() {
            self.incoming.extend_from_slice(received);
        }
        self.advance(|_, _| Ok(()))?;
        if self.incoming.is_empty() {
            self.incoming = Vec::new();
        }
        if self.incoming.len() > INCOMING_BYTES {
            return self.fail(rustls::Error::General("a handshake message of more than 64 KiB".to_owned()));
        }
        Ok(())
    }

    fn seal(&mut self, plain: &[u8], sealed: &mut Vec<u8>) -> Result<(), rustls::Error> {
        // After an alert the peer reads nothing more.
        if !plain.is_empty() && self.failed.is_none() {
            let mut is_encrypted = false;
            self.advance(|encrypter, outgoing| {
                is_encrypted = true;
                append(outgoing, |room| encrypter.encrypt(plain, room), needed_to_encrypt)
            })?;
            if !is_encrypted {
                return self.fail(rustls::Error::HandshakeNotComplete);
            }
        }
        *sealed = mem::take(&mut self.outgoing);
        Ok(())
    }

    fn send_close_notify(&mut self) {
        let told = self.advance(|encrypter, outgoing| {
            append(outgoing, |room| encrypter.queue_close_notify(room), needed_to_encrypt)
        });
        if let Err(error) = told {
            log::debug!("tls ends with an alert, or without a word: {error}");
        }
    }

    /// Lets TLS go on with what has come until it can do no more, and then `encrypt` behind what it has to say, if that
    /// is possible already.
    fn advance(
        &mut self,
        mut encrypt: impl FnMut(&mut Encrypter<'_>, &mut Vec<u8>) -> Result<(), rustls::Error>,
    ) -> Result<(), rustls::Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut self.incoming);
            let (mut goes_on, mut outcome) = (true, Ok(()));
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        discard += record.discard;
                        if !record.payload.is_empty() {
                            self.plain.push_back(record.payload.to_vec());
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    outcome = append(&mut self.outgoing, |room| data.encode(room), needed_to_encode);
                }
                // It is, as far as TLS has to know.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.has_ended = true,
                Ok(ConnectionState::WriteTraffic(mut encrypter)) => {
                    outcome = encrypt(&mut encrypter, &mut self.outgoing);
                    goes_on = false;
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => goes_on = false,
                Ok(_) => outcome = Err(rustls::Error::General("early data, which is not offered".to_owned())),
                Err(error) => outcome = Err(error),
            }
            self.incoming.drain(..discard);
            match outcome {
                Ok(()) if goes_on => {}
                Ok(()) => return Ok(()),
                Err(error) => return self.fail(error),
            }
        }
    }

    /// Keeps the alert for the peer, if there is one.
    fn fail(&mut self, error: rustls::Error) -> Result<(), rustls::Error> {
        self.failed = Some(error.clone());
        while self.tls.wants_write() {
            match self.tls.process_tls_records(&mut self.incoming).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(&mut self.outgoing, |room| data.encode(room), needed_to_encode)?;
                }
                _ => break,
            }
        }
        (self.incoming, self.plain) = (Vec::new(), VecDeque::new());
        Err(error)
    }
}

/// Appends what `put` writes, which says how much room it needs.
fn append<E>(
    to: &mut Vec<u8>,
    mut put: impl FnMut(&mut [u8]) -> Result<usize, E>,
    needed: impl Fn(E) -> Result<usize, rustls::Error>,
) -> Result<(), rustls::Error> {
    let (start, mut room) = (to.len(), 0);
    let appended = loop {
        to.resize(start + room, 0);
        match put(&mut to[start..]).map_err(&needed) {
            Ok(written) => break Ok(written),
            Err(Ok(more)) => room = more,
            Err(Err(error)) => break Err(error),
        }
    };
    to.truncate(start + appended.as_ref().copied().unwrap_or(0));
    appended.map(drop)
}

fn needed_to_encode(error: EncodeError) -> Result<usize, rustls::Error> {
    match error {
        EncodeError::InsufficientSize(error) => Ok(error.required_size),
        other => Err(rustls::Error::General(other.to_string())),
    }
}

fn needed_to_encrypt(error: EncryptError) -> Result<usize, rustls::Error> {
    match error {
        EncryptError::InsufficientSize(error) => Ok(error.required_size),
        EncryptError::EncryptExhausted => Err(rustls::Error::EncryptError),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

    use super::*;
    use crate::net::tls::provider;

    fn pair() -> (ClientConnection, Sealed) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.der().clone(), made.signing_key.serialize_der());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let server = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::try_from(key).unwrap();
        let server = server.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(Arc::new(client), name).unwrap();
        (client, Sealed::lean(UnbufferedServerConnection::new(Arc::new(server)).unwrap()))
    }

    /// What the client has to say.
    fn said(client: &mut ClientConnection) -> Vec<u8> {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// Gives the client what the server has to say, and `plain` after it; gives what the client has read.
    fn answer(server: &mut Sealed, plain: &[u8], client: &mut ClientConnection) -> Vec<u8> {
        let (mut sealed, mut back, mut buf) = (Vec::new(), Vec::new(), [0; 1000]);
        server.seal(plain, &mut sealed).unwrap();
        let mut rest = &sealed[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
            while let Ok(count @ 1..) = client.reader().read(&mut buf) {
                back.extend_from_slice(&buf[..count]);
            }
        }
        back
    }

    /// Feeds in pieces of that size, and gives what was decrypted.
    fn feed(server: &mut Sealed, bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut taken, mut buf) = (Vec::new(), [0; 1000]);
        for piece in bytes.chunks(piece) {
            assert_eq!(server.feed(piece).unwrap(), piece.len());
            while let Some(count @ 1..) = server.take(&mut buf).unwrap() {
                taken.extend_from_slice(&buf[..count]);
            }
        }
        taken
    }

    fn shake_hands(client: &mut ClientConnection, server: &mut Sealed, piece: usize) {
        while client.is_handshaking() || client.wants_write() {
            assert_eq!(feed(server, &said(client), piece), b"");
            assert_eq!(answer(server, b"", client), b"");
        }
    }

    fn lean(server: &Sealed) -> &Lean {
        let Sealed::Lean(lean) = server else { panic!("the polled one") };
        lean
    }

    /// What a server keeps while nothing is on its way.
    fn kept(server: &Sealed) -> usize {
        let Lean { incoming, plain, outgoing, .. } = lean(server);
        incoming.capacity() + plain.capacity() + outgoing.capacity()
    }

    #[test]
    fn texts_go_both_ways_in_pieces_of_any_size_and_nothing_is_kept_between_them() {
        for piece in [1, 7, 1000, 8192] {
            let (mut client, mut server) = pair();
            shake_hands(&mut client, &mut server, piece);
            assert_eq!(kept(&server), 0);
            let large: Vec<u8> = (0..50_000u32).map(|n| (n % 251) as u8).collect();
            for text in [&b"small"[..], &large] {
                client.writer().write_all(text).unwrap();
                assert!(feed(&mut server, &said(&mut client), piece) == text, "pieces of {piece}");
                assert!(answer(&mut server, text, &mut client) == text, "pieces of {piece}");
                assert_eq!(kept(&server), 0, "pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_peer_may_renew_its_keys_and_says_when_it_ends() {
        let (mut client, mut server) = pair();
        shake_hands(&mut client, &mut server, 8192);
        client.refresh_traffic_keys().unwrap();
        client.writer().write_all(b"with new keys").unwrap();
        assert_eq!(feed(&mut server, &said(&mut client), 8192), b"with new keys");
        // Our new keys are announced before it.
        assert_eq!(answer(&mut server, b"and back", &mut client), b"and back");
        client.send_close_notify();
        server.feed(&said(&mut client)).unwrap();
        assert_eq!(server.take(&mut [0; 10]).unwrap(), Some(0));
        server.send_close_notify();
        assert_eq!(answer(&mut server, b"", &mut client), b"");
        assert_eq!(client.reader().read(&mut [0; 10]).unwrap(), 0, "and so do we");
    }

    #[test]
    fn what_is_no_tls_is_told_so_once_and_nothing_more_is_taken() {
        let (_, mut server) = pair();
        let error = server.feed(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.get_ref().is_some_and(|error| error.is::<rustls::Error>()), "{error:?}");
        let mut alert = Vec::new();
        server.seal(b"a text that came too late", &mut alert).unwrap();
        assert_eq!((alert[0], alert.len()), (21, 7), "an alert alone: {alert:?}");
        assert!(server.feed(b"more").is_err());
        server.seal(b"", &mut alert).unwrap();
        assert_eq!((&alert[..], kept(&server)), (&b""[..], 0));
    }

    #[test]
    fn a_handshake_message_without_end_is_refused_at_its_limit() {
        let (_, mut server) = pair();
        // A client's first message that says it has 16 MiB, in full records.
        let mut record = vec![22, 3, 1, 0x40, 0];
        record.resize(5 + 0x4000, 0);
        record[5..9].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
        let mut fed = 0;
        let refused = loop {
            match server.feed(&record) {
                Ok(count) => fed += count,
                Err(error) => break error,
            }
            record[5..9].fill(0);
            assert!(fed <= INCOMING_BYTES, "{fed} bytes are kept");
        };
        assert_eq!((refused.kind(), kept(&server)), (io::ErrorKind::InvalidData, 0));
    }
}
