//! The flags for TLS and the proxy, the same in every command that listens or dials.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::app::status;
use crate::base::shutdown::Shutdown;
use crate::net::http::HostNames;
use crate::net::http::client::HttpClient;
use crate::net::tls::{ClientCertificates, certificates};
use crate::transport::ws::{WsDialer, WsListener};
use crate::transport::{ClientTls, Proxy, ServerTls};

/// Flags of a command that listens for WebSockets.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ServerArgs {
    /// Serve wss:// with this certificate chain (PEM); needs --tls-key
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// With --tls-cert: take only peers with a certificate of these authorities (PEM); a miner's executors need none
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CLIENT_CA", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// A name by which web pages may connect to --listen, besides IP addresses and loopback names; programs may by any;
    /// may be repeated
    #[arg(long, value_name = "NAME", value_parser = HostNames::parse)]
    #[arg(env = "PHALANX_LISTEN_HOST", value_delimiter = ',')]
    listen_host: Vec<String>,
}

impl ServerArgs {
    /// Each flag and what it says, for comparison.
    pub(super) fn flags(&self) -> [(&'static str, String); 4] {
        [
            ("--tls-cert", format!("{:?}", self.tls_cert)),
            ("--tls-key", format!("{:?}", self.tls_key)),
            ("--tls-client-ca", format!("{:?}", self.tls_client_ca)),
            ("--listen-host", self.listen_host.join(",")),
        ]
    }

    /// The certificate, if one was named; `asks` is what a peer is asked for with --tls-client-ca.
    ///
    /// # Errors
    /// One line that names the file.
    pub(super) fn load(&self, asks: ClientCertificates) -> Result<Option<ServerTls>, String> {
        server_tls((&self.tls_cert, &self.tls_key, &self.tls_client_ca), asks)
    }

    /// Listens on `address`, with the certificate if one was named.
    ///
    /// # Errors
    /// One line that names the file or the address.
    pub(super) fn listen(&self, address: SocketAddr, asks: ClientCertificates) -> Result<WsListener, String> {
        let listener = WsListener::bind(address, self.load(asks)?).map_err(|e| format!("--listen: {e}"))?;
        Ok(listener.with_names(HostNames::of_websockets(self.listen_host.clone())))
    }
}

/// Flags of a command that serves HTTP.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct HttpArgs {
    /// A name by which --http may be asked, also by its web pages, besides IP addresses and loopback names; may be
    /// repeated
    #[arg(long, value_name = "NAME", value_parser = HostNames::parse, env = "PHALANX_HTTP_HOST", value_delimiter = ',')]
    http_host: Vec<String>,
    /// Serve --http as https:// with this certificate chain (PEM); needs --http-tls-key
    #[arg(long, value_name = "FILE", env = "PHALANX_HTTP_TLS_CERT", requires = "http_tls_key")]
    http_tls_cert: Option<PathBuf>,
    /// The private key of --http-tls-cert (PEM)
    #[arg(long, value_name = "FILE", env = "PHALANX_HTTP_TLS_KEY", requires = "http_tls_cert")]
    http_tls_key: Option<PathBuf>,
    /// With --http-tls-cert: answer only clients with a certificate of these authorities (PEM), also probes
    #[arg(long, value_name = "FILE", env = "PHALANX_HTTP_TLS_CLIENT_CA", requires = "http_tls_cert")]
    http_tls_client_ca: Option<PathBuf>,
}

impl HttpArgs {
    /// Each flag and what it says, for comparison.
    pub(super) fn flags(&self) -> [(&'static str, String); 4] {
        [
            ("--http-host", self.http_host.join(",")),
            ("--http-tls-cert", format!("{:?}", self.http_tls_cert)),
            ("--http-tls-key", format!("{:?}", self.http_tls_key)),
            ("--http-tls-client-ca", format!("{:?}", self.http_tls_client_ca)),
        ]
    }

    /// The names of --http-host.
    pub(super) fn names(&self) -> HostNames {
        HostNames::new(self.http_host.clone())
    }

    /// The certificate, if one was named.
    ///
    /// # Errors
    /// One line that names the file.
    pub(super) fn tls(&self) -> Result<Option<ServerTls>, String> {
        let files = (&self.http_tls_cert, &self.http_tls_key, &self.http_tls_client_ca);
        server_tls(files, ClientCertificates::Required)
    }

    /// Takes the address of the status pages.
    ///
    /// # Errors
    /// One line that names the file or the address.
    pub(super) fn bind(&self, http: SocketAddr) -> Result<status::Place, String> {
        status::bind(http, self.names(), self.tls()?)
    }
}

/// From the files of a certificate, its key and the authorities of clients.
fn server_tls(
    files: (&Option<PathBuf>, &Option<PathBuf>, &Option<PathBuf>),
    asks: ClientCertificates,
) -> Result<Option<ServerTls>, String> {
    let tls = match files {
        (Some(cert), Some(key), None) => ServerTls::from_files(cert, key),
        (Some(cert), Some(key), Some(ca)) => ServerTls::with_client_ca(cert, key, ca, asks),
        _ => return Ok(None),
    };
    tls.map(Some).map_err(|e| e.to_string())
}

/// Flags of a command that dials.
#[derive(Debug, clap::Args)]
pub(super) struct ClientArgs {
    /// Trust these certificates (PEM) for wss://, and for an https:// --miners, instead of the public ones
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// Show this certificate chain (PEM) to wss:// servers that ask for one; needs --tls-client-key
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CLIENT_CERT", requires = "tls_client_key")]
    tls_client_cert: Option<PathBuf>,
    /// The private key of --tls-client-cert (PEM)
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CLIENT_KEY", requires = "tls_client_cert")]
    tls_client_key: Option<PathBuf>,
    /// The name that the certificate of the facilitator (of an executor: the miner) has, if it is not the URL's host
    #[arg(long, value_name = "NAME", env = "PHALANX_TLS_SERVER_NAME")]
    tls_server_name: Option<String>,
    /// Make all ws:// and wss:// connections through this HTTP proxy, as http://user:password@host:port; in the
    /// variable the password is hidden from other users
    #[arg(long, value_name = "URL", env = "PHALANX_PROXY", hide_env_values = true)]
    proxy: Option<ProxyUrl>,
}

impl ClientArgs {
    /// What dials; `url` is the server that `--tls-server-name` is about.
    ///
    /// # Errors
    /// One line that names the file or the flag.
    pub(super) fn load(&self, url: &str) -> Result<WsDialer, String> {
        let mut tls = match &self.tls_ca {
            Some(path) => ClientTls::from_ca_file(path).map_err(|e| e.to_string())?,
            None => ClientTls::default(),
        };
        if let (Some(cert), Some(key)) = (&self.tls_client_cert, &self.tls_client_key) {
            tls = tls.with_certificate(cert, key).map_err(|e| e.to_string())?;
        }
        let mut dialer = WsDialer::new(tls);
        if let Some(name) = &self.tls_server_name {
            dialer = dialer.with_server_name(url, name).map_err(|e| format!("--tls-server-name: {e}"))?;
        }
        if let Some(ProxyUrl(url)) = &self.proxy {
            dialer = dialer.through(Proxy::parse(url).map_err(|e| format!("--proxy: {e}"))?);
        }
        Ok(dialer)
    }
}

impl ClientArgs {
    /// What asks an https:// server; the signal interrupts it.
    ///
    /// # Errors
    /// One line that names the file.
    pub(super) fn http(&self, shutdown: Shutdown) -> Result<HttpClient, String> {
        match &self.tls_ca {
            None => Ok(HttpClient::new(shutdown)),
            Some(path) => {
                let roots = certificates(path).map_err(|e| e.to_string())?;
                Ok(HttpClient::trusting(shutdown, &roots))
            }
        }
    }

    /// What dials many servers.
    ///
    /// # Errors
    /// As [`ClientArgs::load`]; one name is not that of many servers.
    pub(super) fn load_for_many(&self) -> Result<WsDialer, String> {
        match &self.tls_server_name {
            Some(_) => Err("--tls-server-name is about one server, and the miners are many; leave it out".to_owned()),
            None => self.load(""),
        }
    }
}

/// The flag as given, which may hold a password; so it is judged by [`ClientArgs::load`] and not by clap, which would
/// repeat it.
#[derive(Clone)]
struct ProxyUrl(String);

impl From<String> for ProxyUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyUrl")
    }
}
