//! What TLS needs to know, from PEM files, for every connection of the crate that rustls seals: whose certificates are
//! trusted, which one is shown.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::{fmt, fs};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection};

use crate::base::key_file::tell_if_open;

/// A certificate or key file cannot be used. Trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TlsFileError {
    /// The file.
    pub path: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

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
    /// [`TlsFileError`] if the file cannot be read or has no usable certificate.
    pub fn from_ca_file(path: &Path) -> Result<Self, TlsFileError> {
        authorities(path).map(Self::trusting)
    }

    /// Shows this certificate chain (the client's own first) to servers that ask for one; both files are PEM.
    ///
    /// # Errors
    /// [`TlsFileError`] if a file cannot be read, holds nothing of the kind, or the two do not belong together.
    pub fn with_certificate(self, certificate: &Path, key: &Path) -> Result<Self, TlsFileError> {
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

    /// The client's end of a new connection to a server of that name.
    pub(crate) fn connection(&self, name: ServerName<'static>) -> Result<ClientConnection, rustls::Error> {
        ClientConnection::new(self.0.clone(), name)
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

/// What a server asks of its clients' certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Each client must have one; without it there is no connection.
    Required,
    /// A client may have one, which then must be a good one. Who may do without is for the server to decide, once it
    /// knows what the client asks for.
    Asked,
}

/// A server's certificate and key, and which authorities sign those of its clients; clones share them.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    asks: Option<ClientCertificates>,
}

impl ServerTls {
    /// Loads the certificate chain (the server's own first) and its private key, both PEM.
    ///
    /// # Errors
    /// [`TlsFileError`] if a file cannot be read, holds nothing of the kind, or the two do not belong together.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, TlsFileError> {
        Self::load(certificate, key, None)
    }

    /// As [`ServerTls::from_files`]; clients are asked for a certificate that an authority in the PEM file `ca` has
    /// signed.
    ///
    /// # Errors
    /// As [`ServerTls::from_files`].
    pub fn with_client_ca(
        certificate: &Path,
        key: &Path,
        ca: &Path,
        asks: ClientCertificates,
    ) -> Result<Self, TlsFileError> {
        Self::load(certificate, key, Some((ca, asks)))
    }

    fn load(
        certificate: &Path,
        key: &Path,
        clients: Option<(&Path, ClientCertificates)>,
    ) -> Result<Self, TlsFileError> {
        let (chain, private_key) = chain_and_key(certificate, key)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the ring provider supports the default versions");
        let config = match clients {
            None => config.with_no_client_auth(),
            Some((ca, asks)) => {
                let roots = Arc::new(authorities(ca)?);
                let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                if asks == ClientCertificates::Asked {
                    verifier = verifier.allow_unauthenticated();
                }
                let verifier = verifier.build().map_err(|e| bad_file(ca, &format!("cannot be used: {e}")))?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let config = config.with_single_cert(chain, private_key).map_err(|e| does_not_fit(key, certificate, &e))?;
        Ok(Self { config: Arc::new(config), asks: clients.map(|(_, asks)| asks) })
    }

    /// What clients are asked for.
    pub(crate) fn asks(&self) -> Option<ClientCertificates> {
        self.asks
    }

    /// The server's end of a new connection.
    pub(crate) fn connection(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(self.config.clone())
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

/// Shakes hands on `socket`, whose errors end it. A peer that is refused gets the alert that tells it why.
pub(crate) fn shake_hands<D>(tls: &mut ConnectionCommon<D>, socket: &mut (impl Read + Write)) -> io::Result<()> {
    while tls.is_handshaking() || tls.wants_write() {
        if let Err(error) = tls.complete_io(socket) {
            // If the alert cannot be sent, the first error is still the one that matters.
            while tls.wants_write() && tls.write_tls(socket).is_ok_and(|n| n > 0) {}
            return Err(error);
        }
    }
    Ok(())
}

/// The cryptography of every TLS connection of the crate.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn chain_and_key(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsFileError> {
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(|e| bad_pem(key, "private key", e))?;
    if let Ok(metadata) = fs::metadata(key) {
        tell_if_open(key, &metadata);
    }
    Ok((certificates(certificate)?, private_key))
}

fn does_not_fit(key: &Path, certificate: &Path, error: &rustls::Error) -> TlsFileError {
    bad_file(key, &format!("does not fit the certificate {}: {error}", certificate.display()))
}

/// The authorities of a PEM file.
fn authorities(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| bad_file(path, &format!("not a usable certificate authority: {e}")))?;
    }
    Ok(roots)
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|e| bad_pem(path, "certificate", e))?;
    if found.is_empty() { Err(bad_pem(path, "certificate", pem::Error::NoItemsFound)) } else { Ok(found) }
}

fn bad_pem(path: &Path, what: &str, error: pem::Error) -> TlsFileError {
    match error {
        pem::Error::Io(e) => bad_file(path, &format!("cannot read the {what}: {e}")),
        pem::Error::NoItemsFound => bad_file(path, &format!("has no {what}; expected a PEM file with one")),
        other => bad_file(path, &format!("is not a PEM file with a {what}: {other}")),
    }
}

fn bad_file(path: &Path, problem: &str) -> TlsFileError {
    TlsFileError { path: path.display().to_string(), problem: problem.to_owned() }
}
