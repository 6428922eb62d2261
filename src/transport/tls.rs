//! TLS by rustls: what both ends need to know, and their handshakes. How one TLS connection is split is in
//! [`ws`](super::ws).

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection};

use super::TransportError;
use super::handshake::Bounded;

/// Whose certificates a client trusts; clones share it.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    /// Trusts the public certificate authorities that come with the program.
    pub fn public() -> Self {
        Self::trusting(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
    }

    /// Trusts only the authorities in a PEM file.
    ///
    /// # Errors
    /// [`TransportError::TlsFile`] if the file cannot be read or has no usable certificate.
    pub fn from_ca_file(path: &Path) -> Result<Self, TransportError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|e| bad_file(path, &format!("not a usable certificate authority: {e}")))?;
        }
        Ok(Self::trusting(roots))
    }

    fn trusting(roots: RootCertStore) -> Self {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the ring provider supports the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }

    /// Shakes hands on a connected socket; ends with the socket's deadline.
    pub(super) fn handshake(&self, host: &str, socket: &mut Bounded<'_>) -> Result<ClientConnection, TransportError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TransportError::Url {
            url: host.to_owned(),
            problem: "not a host name or address that a certificate can have".to_owned(),
        })?;
        let mut tls = ClientConnection::new(self.0.clone(), name).map_err(|e| failed(host, e))?;
        shake_hands(&mut tls, host, socket)?;
        Ok(tls)
    }
}

impl Default for ClientTls {
    fn default() -> Self {
        Self::public()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
    }
}

/// A server's certificate and key; clones share them.
#[derive(Clone)]
pub struct ServerTls(Arc<ServerConfig>);

impl ServerTls {
    /// Loads the certificate chain (the server's own first) and its private key, both PEM.
    ///
    /// # Errors
    /// [`TransportError::TlsFile`] if a file cannot be read, holds nothing of the kind, or the two do not belong together.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, TransportError> {
        let chain = certificates(certificate)?;
        let private_key = PrivateKeyDer::from_pem_file(key).map_err(|e| bad_pem(key, "private key", e))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the ring provider supports the default versions")
            .with_no_client_auth()
            .with_single_cert(chain, private_key)
            .map_err(|e| bad_file(key, &format!("does not fit the certificate {}: {e}", certificate.display())))?;
        Ok(Self(Arc::new(config)))
    }

    /// Shakes hands on an accepted socket; ends with the socket's deadline.
    pub(super) fn handshake(&self, peer: &str, socket: &mut Bounded<'_>) -> Result<ServerConnection, TransportError> {
        let mut tls = ServerConnection::new(self.0.clone()).map_err(|e| failed(peer, e))?;
        shake_hands(&mut tls, peer, socket)?;
        Ok(tls)
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

fn shake_hands<D>(tls: &mut ConnectionCommon<D>, peer: &str, socket: &mut Bounded<'_>) -> Result<(), TransportError> {
    while tls.is_handshaking() || tls.wants_write() {
        if let Err(error) = tls.complete_io(socket) {
            // The alert that tells the peer why; if it cannot be sent, the first error is still the one that matters.
            while tls.wants_write() && tls.write_tls(socket).is_ok_and(|n| n > 0) {}
            return Err(io_failed(peer, error));
        }
    }
    Ok(())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|e| bad_pem(path, "certificate", e))?;
    if found.is_empty() { Err(bad_pem(path, "certificate", pem::Error::NoItemsFound)) } else { Ok(found) }
}

fn bad_pem(path: &Path, what: &str, error: pem::Error) -> TransportError {
    match error {
        pem::Error::Io(e) => bad_file(path, &format!("cannot read the {what}: {e}")),
        pem::Error::NoItemsFound => bad_file(path, &format!("has no {what}; expected a PEM file with one")),
        other => bad_file(path, &format!("is not a PEM file with a {what}: {other}")),
    }
}

fn bad_file(path: &Path, problem: &str) -> TransportError {
    TransportError::TlsFile { path: path.display().to_string(), problem: problem.to_owned() }
}

fn failed(peer: &str, source: rustls::Error) -> TransportError {
    TransportError::Tls { peer: peer.to_owned(), source }
}

/// rustls wraps its own errors into those of I/O.
pub(super) fn io_failed(peer: &str, error: io::Error) -> TransportError {
    match error.downcast::<rustls::Error>() {
        Ok(source) => failed(peer, source),
        Err(source) => TransportError::Io { doing: "tls", source },
    }
}
