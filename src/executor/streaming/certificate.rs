//! The certificates of a streaming job: the server's, made for it, and the client's, which came with its request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, SanType, date_time_ymd};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName as Subject, RootCertStore, ServerConfig, SignatureScheme};

use super::error::StreamingError;
use crate::base::limits::STREAMING_CERTIFICATE_BYTES;
use crate::net::tls::provider;

/// How long a certificate is valid, as on the Python executor.
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// How much earlier it begins to be valid, for clients whose clock is behind.
const BEFORE: Duration = Duration::from_secs(3600);

/// A server's certificate and its key.
pub(super) struct ServerCertificate {
    /// As it is reported to the user, who trusts no other.
    pub(super) pem: String,
    der: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl ServerCertificate {
    /// Makes one for the name `localhost` and for `address`, an IP address or a name; valid from an hour before `now`
    /// (since 1970) for a year.
    ///
    /// The names, the validity and the extensions are those of the Python executor. The key is one of P-256, because
    /// ring makes no RSA keys; whoever speaks TLS 1.2 or 1.3 can take it.
    pub(super) fn make(address: &str, now: Duration) -> Result<Self, StreamingError> {
        let bad =
            |error: rcgen::Error| StreamingError::Certificate { address: address.to_owned(), why: error.to_string() };
        let alternative = match address.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(address.try_into().map_err(bad)?),
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "localhost");
        params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().map_err(bad)?), alternative];
        params.is_ca = IsCa::ExplicitNoCa;
        params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(BEFORE);
        params.not_after = date_time_ymd(1970, 1, 1) + now + VALID;
        let key = KeyPair::generate().map_err(bad)?;
        let certificate = params.self_signed(&key).map_err(bad)?;
        let private =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| StreamingError::Tls(why.to_owned()))?;
        Ok(Self { pem: certificate.pem(), der: certificate.into(), key: private })
    }

    /// What a server needs that shows this certificate and lets in only clients that `clients` (PEM) stands for.
    pub(super) fn server(self, clients: &str) -> Result<Arc<ServerConfig>, StreamingError> {
        let verifier = ExpectedClients::from_pem(clients)?;
        let config =
            ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().and_then(|builder| {
                builder.with_client_cert_verifier(Arc::new(verifier)).with_single_cert(vec![self.der], self.key)
            });
        let mut config = config.map_err(|error| StreamingError::Tls(error.to_string()))?;
        // A job speaks HTTP/1.1; a client that could also speak HTTP/2 must not choose that.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Lets in a client that shows a certificate of the job's request, or one that was issued by it, as nginx does with
/// `ssl_client_certificate`.
///
/// A certificate of the request itself is compared as a whole: neither its dates count, because clocks differ, nor
/// whether it may issue others, which most self-signed ones may.
#[derive(Debug)]
struct ExpectedClients {
    expected: Vec<CertificateDer<'static>>,
    issued: Arc<dyn ClientCertVerifier>,
}

impl ExpectedClients {
    fn from_pem(pem: &str) -> Result<Self, StreamingError> {
        let bad = StreamingError::ClientCertificate;
        if pem.len() > STREAMING_CERTIFICATE_BYTES {
            return Err(bad(format!("it has {} bytes, at most {STREAMING_CERTIFICATE_BYTES} are possible", pem.len())));
        }
        let expected: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| bad(format!("it is not PEM: {error}")))?;
        if expected.is_empty() {
            return Err(bad("it has no certificate; it should be a PEM text with one".to_owned()));
        }
        let mut roots = RootCertStore::empty();
        for certificate in &expected {
            roots.add(certificate.clone()).map_err(|error| bad(format!("it is not an X.509 certificate: {error}")))?;
        }
        let issued = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| StreamingError::Tls(error.to_string()))?;
        Ok(Self { expected, issued })
    }
}

impl ClientCertVerifier for ExpectedClients {
    fn root_hint_subjects(&self) -> &[Subject] {
        self.issued.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.expected.contains(shown) {
            return Ok(ClientCertVerified::assertion());
        }
        self.issued.verify_client_cert(shown, intermediates, now)
    }

    // That the client has the certificate's key is shown by these.

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.issued.verify_tls12_signature(message, shown, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.issued.verify_tls13_signature(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}
