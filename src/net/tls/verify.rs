//! What makes a server's certificate good for a client: signed by a trusted authority, or itself among the trusted
//! certificates.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::facts::Facts;
use super::words::UnknownAuthority;

/// Judges as rustls does, but for a certificate that is itself among the trusted ones: of that, the names, the time and
/// the purpose count. A self-signed one of `openssl req -x509` is marked as an authority, and rustls takes no authority
/// for a server; OpenSSL, Go and Python do when they are given it.
#[derive(Debug)]
pub(super) struct Verifier {
    usual: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// `trusted` are among the roots of `usual`.
    pub(super) fn new(usual: Arc<WebPkiServerVerifier>, trusted: Vec<CertificateDer<'static>>) -> Self {
        Self { usual, trusted }
    }

    /// Of a certificate that is among the trusted ones.
    fn judge_trusted(
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        time: UnixTime,
    ) -> Result<ServerCertVerified, CertificateError> {
        let facts = Facts::read(certificate).ok_or(CertificateError::BadEncoding)?;
        let now = time.as_secs();
        if now < facts.not_before {
            let not_before = UnixTime::since_unix_epoch(std::time::Duration::from_secs(facts.not_before));
            return Err(CertificateError::NotValidYetContext { time, not_before });
        }
        if now > facts.not_after {
            let not_after = UnixTime::since_unix_epoch(std::time::Duration::from_secs(facts.not_after));
            return Err(CertificateError::ExpiredContext { time, not_after });
        }
        if !facts.is_for_servers {
            return Err(CertificateError::InvalidPurpose);
        }
        let parsed = ParsedCertificate::try_from(certificate).map_err(|_| CertificateError::BadEncoding)?;
        match verify_server_name(&parsed, name) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(Error::InvalidCertificate(problem)) => Err(problem),
            Err(_) => Err(CertificateError::BadEncoding),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let error = match self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Ok(good) => return Ok(good),
            Err(error) => error,
        };
        if self.trusted.iter().any(|trusted| trusted == end_entity) {
            return Self::judge_trusted(end_entity, server_name, now).map_err(Error::InvalidCertificate);
        }
        // Of an authority that nobody trusts, rustls says only that, or that it is one.
        Err(match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_)) => {
                Error::InvalidCertificate(UnknownAuthority::of(Facts::read(end_entity)))
            }
            error => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}
