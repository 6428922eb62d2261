//! PEM files with certificates and keys.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};

use crate::base::{small_file, text};

/// Bytes of a certificate or key file: the bundle of a system has a quarter of it.
const FILE_BYTES: u64 = 1 << 20;

/// A certificate or key file cannot be used. Trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TlsFileError {
    /// The file.
    pub path: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let pem = pem_of(path, "certificate")?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| bad_pem(path, "certificate", e))?;
    if found.is_empty() { Err(bad_pem(path, "certificate", pem::Error::NoItemsFound)) } else { Ok(found) }
}

pub(super) fn pem_of(path: &Path, what: &str) -> Result<String, TlsFileError> {
    let bytes = small_file::read(path, FILE_BYTES).map_err(|e| bad_pem(path, what, pem::Error::Io(e)))?;
    if bytes.first() == Some(&0x30) {
        return Err(bad_file(
            path,
            &format!("is DER, not PEM; make it a PEM file with the {what} by `openssl … -inform der`"),
        ));
    }
    text::of_file(&bytes).map(str::to_owned).map_err(|why| bad_file(path, &format!("has no {what}: {why}")))
}

pub(super) fn bad_pem(path: &Path, what: &str, error: pem::Error) -> TlsFileError {
    match error {
        pem::Error::Io(e) => bad_file(path, &format!("cannot read the {what}: {e}")),
        pem::Error::NoItemsFound => bad_file(path, &format!("has no {what}; expected a PEM file with one")),
        other => bad_file(path, &format!("is not a PEM file with a {what}: {other}")),
    }
}

pub(super) fn bad_file(path: &Path, problem: &str) -> TlsFileError {
    TlsFileError { path: path.display().to_string(), problem: problem.to_owned() }
}
