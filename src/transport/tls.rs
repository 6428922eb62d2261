//! TLS by rustls: what both ends need to know, and their handshakes. How one TLS connection is split is in
//! [`ws`](super::ws).

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection};

use super::TransportError;
use super::handshake::Bounded;

/// Whose certificates a client trusts, and its own certificate if it has one; clones share them.
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

    /// Shows this certificate chain (the client's own first) to servers that ask for one; both files are PEM.
    ///
    /// # Errors
    /// [`TransportError::TlsFile`] if a file cannot be read, holds nothing of the kind, or the two do not belong together.
    pub fn with_certificate(self, certificate: &Path, key: &Path) -> Result<Self, TransportError> {
        let (chain, private_key) = chain_and_key(certificate, key)?;
        let certified =
            CertifiedKey::from_der(chain, private_key, &provider()).map_err(|e| does_not_fit(key, certificate, &e))?;
        let mut config = (*self.0).clone();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        Ok(Self(Arc::new(config)))
    }

    fn trusting(roots: RootCertStore) -> Self {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the ring provider supports the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }

    /// Shakes hands on a connected socket with a server of that name; ends with the socket's deadline.
    pub(super) fn handshake(
        &self,
        name: ServerName<'static>,
        peer: &str,
        socket: &mut Bounded<'_>,
    ) -> Result<ClientConnection, TransportError> {
        let mut tls = ClientConnection::new(self.0.clone(), name).map_err(|e| failed(peer, e))?;
        shake_hands(&mut tls, peer, socket)?;
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
        let (chain, private_key) = chain_and_key(certificate, key)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the ring provider supports the default versions")
            .with_no_client_auth()
            .with_single_cert(chain, private_key)
            .map_err(|e| does_not_fit(key, certificate, &e))?;
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

fn chain_and_key(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TransportError> {
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(|e| bad_pem(key, "private key", e))?;
    Ok((certificates(certificate)?, private_key))
}

fn does_not_fit(key: &Path, certificate: &Path, error: &rustls::Error) -> TransportError {
    bad_file(key, &format!("does not fit the certificate {}: {error}", certificate.display()))
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
    tls_behind(peer, TransportError::Io { doing: "tls", source: error })
}

/// The error of rustls, if that is what is behind one of I/O; so a server that does not like the client's certificate is
/// heard of, after the client's handshake.
pub(super) fn tls_behind(peer: &str, error: TransportError) -> TransportError {
    let TransportError::Io { doing, source } = error else { return error };
    match source.downcast::<rustls::Error>() {
        Ok(source) => failed(peer, source),
        Err(source) => TransportError::Io { doing, source },
    }
}
