//! What TLS needs to know, from PEM files, for every connection of the crate that rustls seals: whose certificates are
//! trusted, which one is shown.
//!
//! * `facts`: what is in a certificate. Pure. `words`: why a handshake failed. Pure.
//! * `live`: certificates that are read again when their files change.
//! * `pem`: the files. `roots`: the public authorities. `verify`: which certificates are good.

mod facts;
mod live;
mod pem;
mod roots;
mod verify;
mod words;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs};

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection};

pub(crate) use self::facts::Facts;
#[cfg(feature = "cli")]
pub(crate) use self::facts::day;
use self::live::Live;
pub use self::pem::TlsFileError;
use self::pem::{bad_file, bad_pem, certificates, pem_of};
pub use self::roots::Roots;
use self::verify::Verifier;
pub use self::words::{explain, explain_io};
use crate::base::key_file::tell_if_open;
use crate::ops::expiry::Expiry;

/// Whose certificates a client trusts, and its own certificate if it has one; clones share them.
///
/// Files that change are read again by themselves, for new connections, see [`ClientTls::reload`].
#[derive(Clone)]
pub struct ClientTls {
    trust: Trust,
    certificate: Option<(PathBuf, PathBuf)>,
    live: Arc<Live<ClientConfig>>,
}

/// Whom a client trusts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// Which of the public authorities.
    pub roots: Roots,
    /// A PEM file with more authorities, or with the servers' certificates themselves.
    pub ca: Option<PathBuf>,
    /// More of them, that were read already.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// The certificates of both, those of the file as well alone; and when the first of these ends.
    fn load(&self) -> Result<(RootCertStore, Vec<CertificateDer<'static>>, Option<u64>), TlsFileError> {
        let mut store = self.roots.load()?;
        let mut given = self.certificates.clone();
        if let Some(path) = &self.ca {
            given.extend(certificates(path)?);
        }
        let path = self.ca.as_deref().unwrap_or_else(|| Path::new("trusted certificate"));
        add_authorities(&mut store, path, given.clone())?;
        let until = given.iter().filter_map(|one| Facts::read(one)).map(|facts| facts.not_after).min();
        Ok((store, given, until))
    }
}

impl ClientTls {
    /// Trusts the public certificate authorities that come with the program.
    pub fn public() -> Self {
        Self::trusting(Trust::default()).expect("the authorities that come with the program are usable")
    }

    /// Trusts only the authorities in a PEM file, and servers that show a certificate which is itself in it. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// [`TlsFileError`] if the file cannot be read or has no usable certificate.
    pub fn from_ca_file(path: &Path) -> Result<Self, TlsFileError> {
        Self::trusting(Trust { roots: Roots::None, ca: Some(path.to_owned()), certificates: Vec::new() })
    }

    /// Trusts these. Blocks on the disk.
    ///
    /// # Errors
    /// [`TlsFileError`] if a file cannot be read or has no usable certificate, or if nobody is trusted.
    pub fn trusting(trust: Trust) -> Result<Self, TlsFileError> {
        Self::new(trust, None)
    }

    /// Shows this certificate chain (the client's own first) to servers that ask for one; both files are PEM. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// [`TlsFileError`] if a file cannot be read, holds nothing of the kind, or the two do not belong together.
    pub fn with_certificate(self, certificate: &Path, key: &Path) -> Result<Self, TlsFileError> {
        Self::new(self.trust, Some((certificate.to_owned(), key.to_owned())))
    }

    fn new(trust: Trust, certificate: Option<(PathBuf, PathBuf)>) -> Result<Self, TlsFileError> {
        let (kind, mut files) = ("authority", Vec::new());
        let kind = certificate.as_ref().map_or(kind, |(certificate, key)| {
            files.extend([certificate.clone(), key.clone()]);
            "client"
        });
        files.extend(trust.ca.clone());
        let (trusted, shown) = (trust.clone(), certificate.clone());
        let live = Live::new(kind, files, move || client_config(&trusted, shown.as_ref()))?;
        Ok(Self { trust, certificate, live: Arc::new(live) })
    }

    /// The client's end of a new connection to a server of that name.
    pub(crate) fn connection(&self, name: ServerName<'static>) -> Result<ClientConnection, rustls::Error> {
        ClientConnection::new(self.live.get(), name)
    }

    /// When its certificate ends, or the first of the file of authorities.
    pub fn expiry(&self) -> &Expiry {
        self.live.expiry()
    }

    /// Reads the files again, for connections from now on, and says in a sentence what was read. Changed files are also
    /// read by themselves within a few seconds, when a connection begins. Blocks on the disk.
    ///
    /// # Errors
    /// As at the start; all stays as it was.
    pub fn reload(&self) -> Result<String, TlsFileError> {
        self.live.reload()
    }
}

fn client_config(
    trust: &Trust,
    shown: Option<&(PathBuf, PathBuf)>,
) -> Result<(ClientConfig, Option<u64>), TlsFileError> {
    let (roots, trusted, mut until) = trust.load()?;
    let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    let usual = usual.map_err(|e| TlsFileError { path: "trusted certificates".to_owned(), problem: e.to_string() })?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the ring provider supports the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(usual, trusted)))
        .with_no_client_auth();
    if let Some((certificate, key)) = shown {
        let (chain, private_key) = chain_and_key(certificate, key)?;
        until = until_of(&chain);
        let certified =
            CertifiedKey::from_der(chain, private_key, &provider()).map_err(|e| does_not_fit(key, certificate, &e))?;
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
    }
    Ok((config, until))
}

impl Default for ClientTls {
    fn default() -> Self {
        Self::public()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("trust", &self.trust).field("certificate", &self.certificate).finish()
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
///
/// Files that change are read again by themselves, for new connections, see [`ServerTls::reload`].
#[derive(Clone)]
pub struct ServerTls {
    live: Arc<Live<ServerConfig>>,
    asks: Option<ClientCertificates>,
}

impl ServerTls {
    /// Loads the certificate chain (the server's own first) and its private key, both PEM. Blocks on the disk.
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
        Self::load(certificate, key, Some((ca.to_owned(), asks)))
    }

    fn load(
        certificate: &Path,
        key: &Path,
        clients: Option<(PathBuf, ClientCertificates)>,
    ) -> Result<Self, TlsFileError> {
        let asks = clients.as_ref().map(|(_, asks)| *asks);
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        let mut files = vec![certificate.clone(), key.clone()];
        files.extend(clients.as_ref().map(|(ca, _)| ca.clone()));
        let live = Live::new("server", files, move || server_config(&certificate, &key, clients.as_ref()))?;
        Ok(Self { live: Arc::new(live), asks })
    }

    /// What clients are asked for.
    pub(crate) fn asks(&self) -> Option<ClientCertificates> {
        self.asks
    }

    /// The server's end of a new connection.
    pub(crate) fn connection(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(self.live.get())
    }

    /// The same, of a connection that has buffers only while they hold something.
    pub(crate) fn unbuffered(&self) -> Result<UnbufferedServerConnection, rustls::Error> {
        UnbufferedServerConnection::new(self.live.get())
    }

    /// When its certificate ends.
    pub fn expiry(&self) -> &Expiry {
        self.live.expiry()
    }

    /// Reads the files again, for connections from now on, and says in a sentence what was read. Changed files are also
    /// read by themselves within a few seconds, when a connection begins. Blocks on the disk.
    ///
    /// # Errors
    /// As at the start; the old pair stays.
    pub fn reload(&self) -> Result<String, TlsFileError> {
        self.live.reload()
    }
}

fn server_config(
    certificate: &Path,
    key: &Path,
    clients: Option<&(PathBuf, ClientCertificates)>,
) -> Result<(ServerConfig, Option<u64>), TlsFileError> {
    let (chain, private_key) = chain_and_key(certificate, key)?;
    let until = until_of(&chain);
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the ring provider supports the default versions");
    let config = match clients {
        None => config.with_no_client_auth(),
        Some((ca, asks)) => {
            let mut roots = RootCertStore::empty();
            add_authorities(&mut roots, ca, certificates(ca)?)?;
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            if *asks == ClientCertificates::Asked {
                verifier = verifier.allow_unauthenticated();
            }
            let verifier = verifier.build().map_err(|e| bad_file(ca, &format!("cannot be used: {e}")))?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let config = config.with_single_cert(chain, private_key).map_err(|e| does_not_fit(key, certificate, &e))?;
    Ok((config, until))
}

fn add_authorities(
    store: &mut RootCertStore,
    path: &Path,
    certificates: Vec<CertificateDer<'static>>,
) -> Result<(), TlsFileError> {
    certificates.into_iter().try_for_each(|certificate| {
        store.add(certificate).map_err(|e| bad_file(path, &format!("not a usable certificate authority: {e}")))
    })
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

/// What is known of the first certificate of a PEM file. Blocks on the disk.
///
/// # Errors
/// [`TlsFileError`] if the file cannot be read or has no certificate.
pub(crate) fn facts_of(path: &Path) -> Result<Facts, TlsFileError> {
    let first = certificates(path)?.into_iter().next();
    first.and_then(|first| Facts::read(&first)).ok_or_else(|| bad_file(path, "has a certificate that cannot be read"))
}

/// A chain is good until the first of its certificates ends.
fn until_of(chain: &[CertificateDer<'_>]) -> Option<u64> {
    chain.iter().filter_map(|one| Facts::read(one)).map(|facts| facts.not_after).min()
}

/// The cryptography of every TLS connection of the crate.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn chain_and_key(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsFileError> {
    let pem = pem_of(key, "private key")?;
    let private_key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| bad_pem(key, "private key", e))?;
    if let Ok(metadata) = fs::metadata(key) {
        tell_if_open(key, &metadata);
    }
    Ok((certificates(certificate)?, private_key))
}

fn does_not_fit(key: &Path, certificate: &Path, error: &rustls::Error) -> TlsFileError {
    bad_file(key, &format!("does not fit the certificate {}: {error}", certificate.display()))
}
