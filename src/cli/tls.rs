//! The flags for TLS, the same in every command that listens or dials.

use std::path::PathBuf;

use crate::transport::{ClientTls, ServerTls};

/// Flags of a command that listens.
#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// Serve wss:// with this certificate chain (PEM); needs --tls-key
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl ServerArgs {
    /// The certificate, if one was named.
    ///
    /// # Errors
    /// One line that names the file.
    pub fn load(&self) -> Result<Option<ServerTls>, String> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => ServerTls::from_files(cert, key).map(Some).map_err(|e| e.to_string()),
            _ => Ok(None),
        }
    }
}

/// Flags of a command that dials.
#[derive(Debug, clap::Args)]
pub struct ClientArgs {
    /// Trust these certificates (PEM) for wss:// instead of the public ones
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CA")]
    tls_ca: Option<PathBuf>,
}

impl ClientArgs {
    /// What is trusted.
    ///
    /// # Errors
    /// One line that names the file.
    pub fn load(&self) -> Result<ClientTls, String> {
        match &self.tls_ca {
            Some(path) => ClientTls::from_ca_file(path).map_err(|e| e.to_string()),
            None => Ok(ClientTls::default()),
        }
    }
}
