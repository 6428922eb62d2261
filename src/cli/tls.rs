//! The flags for TLS and the proxy, the same in every command that listens or dials.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::report::Report;
use super::transfers::proxies;
use super::values::{Hidden, rate, secret_file};
use crate::app::exit::NotStarted;
use crate::app::status;
use crate::app::supervise::Env;
use crate::base::clock;
use crate::base::io::may_pass;
use crate::base::shutdown::Shutdown;
use crate::miner::ExecutorSettings;
use crate::net::address;
use crate::net::http::HostNames;
use crate::net::http::client::{HttpClient, HttpSettings};
use crate::net::proxy::Proxies;
use crate::net::rate::Rate;
use crate::net::tls::{ClientCertificates, Roots, TlsFileError, Trust, facts_of};
use crate::ops::expiry::Expiry;
use crate::ops::status::Board;
use crate::transport::ws::{WsDialer, WsListener};
use crate::transport::{ClientTls, Proxy, ServerTls, TransportError};

/// Flags of a command that listens for WebSockets.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ServerArgs {
    /// Serve wss:// with this certificate chain (PEM); needs --tls-key
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert (PEM)
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_KEY", value_parser = secret_file)]
    tls_key: Option<PathBuf>,
    /// With --tls-cert: take only peers with a certificate of these authorities (PEM); a miner's executors need none
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CLIENT_CA")]
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
        let files = (&self.tls_cert, &self.tls_key, &self.tls_client_ca);
        server_tls(["--tls-cert", "--tls-key", "--tls-client-ca"], files, asks)
    }

    /// Listens on `address`, with the certificate if one was named.
    ///
    /// # Errors
    /// One line that names the file or the address, and whether that may pass.
    pub(super) fn listen(
        &self,
        address: SocketAddr,
        asks: ClientCertificates,
        follow: Follow<'_>,
    ) -> Result<WsListener, NotStarted> {
        let tls = self.load(asks)?;
        following(tls.as_ref(), follow);
        let listener = WsListener::bind(address, tls).map_err(|error| {
            let may_pass = matches!(&error, TransportError::Bind { source, .. } if may_pass(source));
            NotStarted::new(format!("--listen: {error}"), may_pass)
        })?;
        Ok(listener.with_names(HostNames::of_websockets(self.listen_host.clone())))
    }

    /// What a check says of the certificate.
    pub(super) fn tell(&self, report: &mut Report) {
        report.certificate("tls-cert", "server", self.tls_cert.as_deref());
        report.certificate("tls-client-ca", "authority", self.tls_client_ca.as_deref());
    }

    /// The file of the certificate.
    pub(super) fn certificate(&self) -> Option<&Path> {
        self.tls_cert.as_deref()
    }

    /// The name that executors ask of this server's certificate, if it is not for the host that they dial.
    pub(super) fn name_for(&self, dialled: &str) -> Option<String> {
        let facts = facts_of(self.tls_cert.as_deref()?).ok()?;
        let authority = dialled.split_once("://").map_or(dialled, |(_, rest)| rest);
        let host = authority.split('/').next().and_then(address::split)?.0;
        (!facts.covers(host)).then(|| facts.usable_name()).flatten()
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
    #[arg(long, value_name = "FILE", env = "PHALANX_HTTP_TLS_CERT")]
    http_tls_cert: Option<PathBuf>,
    /// The private key of --http-tls-cert (PEM)
    #[arg(long, value_name = "FILE", env = "PHALANX_HTTP_TLS_KEY")]
    #[arg(value_parser = secret_file)]
    http_tls_key: Option<PathBuf>,
    /// With --http-tls-cert: answer only clients with a certificate of these authorities (PEM), also probes
    #[arg(long, value_name = "FILE", env = "PHALANX_HTTP_TLS_CLIENT_CA")]
    http_tls_client_ca: Option<PathBuf>,
    /// Requests of one address to --http; more are answered with 429. Probes of /healthz, /readyz and /metrics count
    /// apart
    #[arg(long, value_name = "N/DUR", default_value = "1000/1s", value_parser = rate, env = "PHALANX_HTTP_RATE")]
    http_rate: Rate,
}

impl HttpArgs {
    /// Each flag and what it says, for comparison.
    pub(super) fn flags(&self) -> [(&'static str, String); 5] {
        [
            ("--http-rate", format!("{:?}", self.http_rate)),
            ("--http-host", self.http_host.join(",")),
            ("--http-tls-cert", format!("{:?}", self.http_tls_cert)),
            ("--http-tls-key", format!("{:?}", self.http_tls_key)),
            ("--http-tls-client-ca", format!("{:?}", self.http_tls_client_ca)),
        ]
    }

    /// How often one address may ask.
    pub(super) fn requests(&self) -> Rate {
        self.http_rate
    }

    /// What a check says of the certificate.
    pub(super) fn tell(&self, report: &mut Report) {
        report.certificate("http-tls-cert", "server", self.http_tls_cert.as_deref());
        report.certificate("http-tls-client-ca", "authority", self.http_tls_client_ca.as_deref());
    }

    /// The names of --http-host.
    pub(super) fn names(&self) -> HostNames {
        HostNames::new(self.http_host.clone())
    }

    /// The certificate, if one was named.
    ///
    /// # Errors
    /// One line that names the file.
    pub(super) fn tls(&self, follow: Follow<'_>) -> Result<Option<ServerTls>, String> {
        let files = (&self.http_tls_cert, &self.http_tls_key, &self.http_tls_client_ca);
        let flags = ["--http-tls-cert", "--http-tls-key", "--http-tls-client-ca"];
        let tls = server_tls(flags, files, ClientCertificates::Required)?;
        following(tls.as_ref(), follow);
        Ok(tls)
    }

    /// Takes the address of the status pages.
    ///
    /// # Errors
    /// One line that names the file or the address, and whether that may pass.
    pub(super) fn bind(&self, http: SocketAddr, follow: Follow<'_>) -> Result<status::Place, NotStarted> {
        status::bind(http, self.names(), self.tls(follow)?, self.http_rate)
    }
}

/// From the files of a certificate, its key and the authorities of clients; all that is wrong is told at once.
fn server_tls(
    flags: [&str; 3],
    files: (&Option<PathBuf>, &Option<PathBuf>, &Option<PathBuf>),
    asks: ClientCertificates,
) -> Result<Option<ServerTls>, String> {
    let [cert_flag, key_flag, ca_flag] = flags;
    let tls = match files {
        (None, None, None) => return Ok(None),
        (Some(cert), Some(key), None) => ServerTls::from_files(cert, key),
        (Some(cert), Some(key), Some(ca)) => ServerTls::with_client_ca(cert, key, ca, asks),
        (cert, key, ca) => {
            let given = [(cert_flag, cert), (key_flag, key), (ca_flag, ca)];
            let given = given.iter().find(|(_, file)| file.is_some()).map_or("", |(flag, _)| flag);
            let missing = |flag: &str, file: &Option<PathBuf>| {
                file.is_none().then(|| format!("{flag} is missing; it goes with {given}"))
            };
            let wrong =
                cert.as_deref().and_then(|cert| facts_of(cert).err()).map(|error| format!("{cert_flag}: {error}"));
            let problems = [missing(cert_flag, cert), missing(key_flag, key), wrong];
            return Err(problems.into_iter().flatten().collect::<Vec<_>>().join("; "));
        }
    };
    tls.map(Some).map_err(|error| {
        let is_of =
            |file: &&Option<PathBuf>| file.as_ref().is_some_and(|file| file.display().to_string() == error.path);
        let at = [files.1, files.2].iter().position(is_of).map_or(0, |at| at + 1);
        let first = format!("{}: {error}", flags[at]);
        // The key is read first.
        match files.0.as_deref().filter(|_| at > 0).and_then(|cert| facts_of(cert).err()) {
            Some(cert) => format!("{first}; {cert_flag}: {cert}"),
            None => first,
        }
    })
}

/// Who follows a certificate: SIGHUP of this process, and the pages of this board.
pub(super) type Follow<'a> = Option<(&'a Env, &'a Board)>;

fn following(tls: Option<&ServerTls>, by: Follow<'_>) {
    if let (Some(tls), Some((env, board))) = (tls, by) {
        follow(tls.clone(), env, board);
    }
}

/// From now on SIGHUP reads the files of a certificate again, and the pages say when it ends.
pub(super) fn follow(files: impl Reloads, env: &Env, board: &Board) {
    if files.expiry().until().is_none() {
        return;
    }
    board.certificates.add(files.expiry().clone(), clock::now().wall.as_secs());
    env.reload.also(move || match files.reload() {
        Ok(said) => log::info!("SIGHUP: {said}"),
        Err(error) => log::error!("SIGHUP: the certificate stays as it is: {error}"),
    });
}

/// Certificates that can be read again.
pub(super) trait Reloads: Send + 'static {
    /// When they end.
    fn expiry(&self) -> &Expiry;
    /// Reads them again.
    fn reload(&self) -> Result<String, TlsFileError>;
}

impl Reloads for ServerTls {
    fn expiry(&self) -> &Expiry {
        self.expiry()
    }

    fn reload(&self) -> Result<String, TlsFileError> {
        self.reload()
    }
}

impl Reloads for ClientTls {
    fn expiry(&self) -> &Expiry {
        self.expiry()
    }

    fn reload(&self) -> Result<String, TlsFileError> {
        self.reload()
    }
}

/// Whom to trust, in every command that dials.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TrustArgs {
    /// Trust the authorities in this file (PEM), and servers whose own certificate is in it. For wss://, and for an
    /// https:// --facilitator, --miners or --http, in place of the public ones; for volumes and uploads beside them
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// Which public authorities are trusted: bundled (come with the program), system (SSL_CERT_FILE, SSL_CERT_DIR, or
    /// the system's own) or none [default: bundled; with --tls-ca none, but for volumes and uploads]
    #[arg(long, value_name = "WHICH", env = "PHALANX_TLS_ROOTS")]
    tls_roots: Option<Roots>,
}

impl TrustArgs {
    /// For links.
    fn of_links(&self) -> Result<Trust, String> {
        let roots = self.tls_roots.unwrap_or(if self.tls_ca.is_some() { Roots::None } else { Roots::Bundled });
        self.with(roots)
    }

    fn with(&self, roots: Roots) -> Result<Trust, String> {
        if roots == Roots::None && self.tls_ca.is_none() {
            return Err("--tls-roots none goes with --tls-ca: without both nobody is trusted".to_owned());
        }
        Ok(Trust { roots, ca: self.tls_ca.clone(), ..Trust::default() })
    }

    /// Whose certificates are good for volumes and uploads. Blocks on the disk.
    ///
    /// # Errors
    /// One line that names the flag and the file.
    pub(super) fn transfers(&self) -> Result<ClientTls, String> {
        let trust = self.with(self.tls_roots.unwrap_or_default())?;
        ClientTls::trusting(trust).map_err(|e| self.named(&e))
    }

    fn links(&self) -> Result<ClientTls, String> {
        ClientTls::trusting(self.of_links()?).map_err(|e| self.named(&e))
    }

    fn named(&self, error: &TlsFileError) -> String {
        match &self.tls_ca {
            Some(path) if path.display().to_string() == error.path => format!("--tls-ca: {error}"),
            _ => format!("--tls-roots: {error}"),
        }
    }

    /// What a check says of the trusted certificates.
    pub(super) fn tell(&self, report: &mut Report) {
        report.certificate("tls-ca", "authority", self.tls_ca.as_deref());
    }

    /// What asks https:// servers; the signal interrupts it.
    ///
    /// # Errors
    /// One line that names the flag and the file.
    pub(super) fn http(&self, shutdown: Shutdown) -> Result<HttpClient, String> {
        Ok(HttpClient::trusting(shutdown, self.links()?))
    }

    /// Tells executors the same, but for the file.
    pub(super) fn hand_on(&self, settings: &mut ExecutorSettings) {
        if let Some(roots) = self.tls_roots {
            settings.set("PHALANX_TLS_ROOTS", roots.name());
        }
    }

    /// The file that executors are told; if there is none, a self-signed certificate of this miner's own, because they
    /// dial it. Those in containers get a copy.
    pub(super) fn file_for_executors(&self, own: Option<&Path>) -> Option<PathBuf> {
        let own = own.filter(|path| facts_of(path).is_ok_and(|facts| facts.is_self_signed));
        let path = self.tls_ca.as_deref().or(own)?;
        Some(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
    }
}

/// Flags of a command that asks a facilitator's job API.
#[derive(Debug, clap::Args)]
pub(super) struct ApiArgs {
    #[command(flatten)]
    trust: TrustArgs,
    /// How requests get out: none (as they are), environment (HTTPS_PROXY, HTTP_PROXY and NO_PROXY are followed), or
    /// the proxy for all, as http://user:password@host:port; in the variable the password is hidden from other users
    #[arg(
        long,
        value_name = "WHICH|URL",
        default_value = "none",
        env = "PHALANX_PROXY",
        hide_env_values = true,
        value_parser = Hidden::parse
    )]
    proxy: Hidden,
}

impl ApiArgs {
    /// Whom to trust, and the way there.
    ///
    /// # Errors
    /// One line that names the flag and the file.
    pub(super) fn settings(&self) -> Result<HttpSettings, String> {
        Ok(HttpSettings::of_chosen(self.trust.links()?, proxies("--proxy", &self.proxy)?))
    }

    /// These flags for another line, but for a proxy's user and password.
    pub(super) fn shown(&self) -> String {
        let mut words = Vec::new();
        if let Some(file) = &self.trust.tls_ca {
            words.extend(["--tls-ca".to_owned(), file.display().to_string()]);
        }
        if let Some(roots) = self.trust.tls_roots {
            words.extend(["--tls-roots".to_owned(), roots.name().to_owned()]);
        }
        if self.proxy.0 != "none" {
            let proxy = &self.proxy.0;
            let bare = proxy.rsplit_once('@').map_or(proxy.clone(), |(_, host)| format!("http://{host}"));
            words.extend(["--proxy".to_owned(), bare]);
        }
        let words = words.iter().map(|word| shlex::try_quote(word).map_or(word.clone(), Into::into));
        words.map(|word| format!(" {word}")).collect()
    }
}

/// Flags of a command that dials.
#[derive(Debug, clap::Args)]
pub(super) struct ClientArgs {
    #[command(flatten)]
    pub(super) trust: TrustArgs,
    /// Show this certificate chain (PEM) to wss:// servers that ask for one; needs --tls-client-key
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CLIENT_CERT")]
    tls_client_cert: Option<PathBuf>,
    /// The private key of --tls-client-cert (PEM)
    #[arg(long, value_name = "FILE", env = "PHALANX_TLS_CLIENT_KEY")]
    #[arg(value_parser = secret_file)]
    tls_client_key: Option<PathBuf>,
    /// The name that the certificate of the facilitator (of an executor: the miner) has, if it is not the URL's host
    #[arg(long, value_name = "NAME", env = "PHALANX_TLS_SERVER_NAME")]
    tls_server_name: Option<String>,
    /// Make all ws:// and wss:// connections through this HTTP proxy, as http://user:password@host:port; in the
    /// variable the password is hidden from other users
    #[arg(long, value_name = "URL", env = "PHALANX_PROXY", hide_env_values = true, value_parser = Hidden::parse)]
    proxy: Option<Hidden>,
}

impl ClientArgs {
    /// What dials; `url` is the server that `--tls-server-name` is about.
    ///
    /// # Errors
    /// One line that names the file or the flag.
    pub(super) fn load(&self, url: &str) -> Result<WsDialer, String> {
        let mut tls = self.trust.links()?;
        match (&self.tls_client_cert, &self.tls_client_key) {
            (None, None) => {}
            (Some(cert), Some(key)) => {
                tls = tls.with_certificate(cert, key).map_err(|e| format!("--tls-client-cert: {e}"))?;
            }
            (Some(cert), None) => {
                let wrong =
                    facts_of(cert).err().map(|error| format!("; --tls-client-cert: {error}")).unwrap_or_default();
                return Err(format!("--tls-client-key is missing; it goes with --tls-client-cert{wrong}"));
            }
            (None, Some(_)) => return Err("--tls-client-cert is missing; it goes with --tls-client-key".to_owned()),
        }
        let mut dialer = WsDialer::new(tls);
        if let Some(name) = &self.tls_server_name {
            dialer = dialer.with_server_name(url, name).map_err(|e| format!("--tls-server-name: {e}"))?;
        }
        if let Some(Hidden(url)) = &self.proxy {
            dialer = dialer.through(Proxy::parse(url).map_err(|e| format!("--proxy: {e}"))?);
        }
        Ok(dialer)
    }
}

impl ClientArgs {
    /// What a check says of the certificates.
    pub(super) fn tell(&self, report: &mut Report) {
        self.trust.tell(report);
        report.certificate("tls-client-cert", "client", self.tls_client_cert.as_deref());
    }

    /// What asks the pages of a server of links, by the same way.
    ///
    /// # Errors
    /// One line that names the file or the flag.
    pub(super) fn http_as_links(&self, shutdown: Shutdown) -> Result<HttpClient, String> {
        let proxies = match &self.proxy {
            Some(Hidden(url)) => Proxies::all(Proxy::parse(url).map_err(|e| format!("--proxy: {e}"))?),
            None => Proxies::none(),
        };
        Ok(HttpClient::within(HttpSettings::of_chosen(self.trust.links()?, proxies), shutdown))
    }

    /// What asks an https:// server; the signal interrupts it.
    ///
    /// # Errors
    /// One line that names the file.
    pub(super) fn http(&self, shutdown: Shutdown) -> Result<HttpClient, String> {
        self.trust.http(shutdown)
    }

    /// What dials many servers.
    ///
    /// # Errors
    /// As [`ClientArgs::load`]; one name is not that of many servers.
    pub(super) fn load_for_many(&self) -> Result<WsDialer, String> {
        self.problem_of_many("the miners are many").map_or_else(|| self.load(""), Err)
    }

    /// What is wrong with a `--tls-server-name`, where the servers are many.
    pub(super) fn problem_of_many(&self, are_many: &str) -> Option<String> {
        let problem = || format!("--tls-server-name is about one server, and {are_many}; leave it out");
        self.tls_server_name.is_some().then(problem)
    }
}
