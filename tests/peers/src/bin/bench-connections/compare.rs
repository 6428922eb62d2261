//! One server after another, and the tables.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use phalanx_peers::meter::{self, Reading};
use phalanx_peers::{keys, table};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::drive::{Clients, Target, probe};
use crate::serve::Kind;
use crate::work;

#[derive(clap::Args)]
pub struct Args {
    /// The servers
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::Threads, Kind::Poll, Kind::Tokio], value_enum)]
    servers: Vec<Kind>,
    /// Connections at which is measured, one after the other
    #[arg(long, value_delimiter = ',', default_values_t = [50, 1000, 5000, 9000])]
    connections: Vec<usize>,
    /// Connections beyond which two threads each are not tried
    #[arg(long, default_value_t = 1000)]
    threads_max: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10)]
    window: u64,
    /// Seconds between two heartbeats of one client
    #[arg(long, default_value_t = 10)]
    heartbeat: u64,
    /// Only plain, or only TLS
    #[arg(long)]
    only: Option<Wire>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wire {
    Plain,
    Tls,
}

/// A server process; ended when dropped.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Its standard input ends first, so it may have gone.
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(kind: Kind, tls: Option<&Path>) -> Result<(Server, String), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let name = kind.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    let mut command = Command::new(program);
    command.args(["serve", &name]).stdin(Stdio::piped()).stdout(Stdio::piped());
    if let Some(folder) = tls {
        command.arg("--tls").arg(folder);
    }
    let mut child = command.spawn().map_err(|error| format!("server: {error}"))?;
    let output = child.stdout.take().ok_or("the server has no output")?;
    let server = Server(child);
    let mut url = String::new();
    BufReader::new(output).read_line(&mut url).map_err(|error| error.to_string())?;
    let url = url.trim().to_owned();
    if url.is_empty() { Err("the server does not start".to_owned()) } else { Ok((server, url)) }
}

fn certificate(folder: &Path) -> Result<TlsConnector, String> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(|error| error.to_string())?;
    fs::write(folder.join("cert.pem"), made.cert.pem()).map_err(|error| error.to_string())?;
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).map_err(|error| error.to_string())?;
    let mut roots = RootCertStore::empty();
    let own = CertificateDer::from_pem_file(folder.join("cert.pem")).map_err(|error| error.to_string())?;
    roots.add(own).map_err(|error| error.to_string())?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

const HEAD: [&str; 13] = [
    "server",
    "wire",
    "connections",
    "KiB each",
    "threads",
    "authentications/s",
    "CPU µs each",
    "CPU %",
    "switches/s idle",
    "p50 µs",
    "p99 µs",
    "messages/s",
    "CPU µs/message",
];

/// Measures one server at each number of connections.
async fn measure(args: &Args, kind: Kind, tls: Option<(&Path, &TlsConnector)>) -> Result<Vec<Vec<String>>, String> {
    let (server, url) = start(kind, tls.map(|(folder, _)| folder))?;
    let pid = server.0.id();
    let key = keys::keypair(&"07".repeat(32))?;
    let authentications = Arc::new(vec![work::authentication(&key)]);
    let target = Target { url, tls: tls.map(|(_, tls)| tls.clone()), authentications };
    let window = Duration::from_secs(args.window);
    // One connection and one answer, so that what comes once is not counted for the connections.
    probe(&target, 1).await?;
    let empty = meter::read(pid)?;
    let (mut clients, mut rows, mut before) = (Clients::none(), Vec::new(), 0);
    for &count in &args.connections {
        if kind == Kind::Threads && count > args.threads_max {
            break;
        }
        let begin = meter::cpu(pid)?;
        let seconds = clients.grow(&target, count).await?;
        let made = (count - before) as f64;
        let each = (meter::cpu(pid)? - begin) as f64 / 1e3 / made;
        before = count;
        let heart = Duration::from_secs(args.heartbeat);
        // Once around, so that each has sent a heartbeat, and then what is measured.
        clients.beat(heart, heart).await?;
        let busy = meter::cpu(pid)?;
        clients.beat(heart, window).await?;
        let busy = (meter::cpu(pid)? - busy) as f64 / 1e9 / window.as_secs_f64() * 100.0;
        let took = probe(&target, 1000).await?;
        let idle = meter::read(pid)?;
        tokio::time::sleep(window).await;
        clients.check()?;
        let Reading { switches, resident_kib, threads, .. } = meter::read(pid)?;
        let before_load = meter::cpu(pid)?;
        let messages = clients.load(window).await? as f64;
        let per_message = (meter::cpu(pid)? - before_load) as f64 / 1e3 / messages;
        let kib = resident_kib.saturating_sub(empty.resident_kib) as f64 / count as f64;
        let row = [
            format!("{kind:?}").to_lowercase(),
            if tls.is_some() { "TLS" } else { "plain" }.to_owned(),
            count.to_string(),
            format!("{kib:.1}"),
            threads.to_string(),
            format!("{:.0}", made / seconds),
            format!("{each:.0}"),
            format!("{busy:.1}"),
            format!("{:.1}", switches.saturating_sub(idle.switches) as f64 / window.as_secs_f64()),
            format!("{:.0}", took[took.len() / 2]),
            format!("{:.0}", took[took.len() * 99 / 100]),
            format!("{:.0}", messages / window.as_secs_f64()),
            format!("{per_message:.1}"),
        ];
        eprintln!("{}", row.join(" | "));
        rows.push(row.to_vec());
    }
    Ok(rows)
}

pub fn compare(args: &Args) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let connector = certificate(folder.path())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let mut rows = Vec::new();
    for wire in [Wire::Plain, Wire::Tls] {
        if args.only.is_some_and(|only| only != wire) {
            continue;
        }
        let tls = (wire == Wire::Tls).then_some((folder.path(), &connector));
        for &kind in &args.servers {
            rows.extend(runtime.block_on(measure(args, kind, tls))?);
        }
    }
    println!("{}", table::markdown(HEAD, rows.into_iter()));
    Ok(())
}
