//! The flags for TLS of both ports, on the real binary.

use std::path::PathBuf;
use std::time::Instant;

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::net::http::HttpClient;
use phalanx::transport::ws::WsDialer;
use phalanx::transport::{ClientTls, DialRequest, Dialer, SocketLimits, TransportError};
use rustix::process::Signal;

use crate::Role;
use crate::testkit::network::{ALICE, CHARLIE};
use crate::testkit::transport::Certificates;
use crate::testkit::wait::LONG;

/// What a client that dials hears.
fn dial(role: &Role, tls: ClientTls, path: &str) -> Result<(), TransportError> {
    let url = format!("wss://{}{path}", role.listen.unwrap());
    let request =
        DialRequest { url: &url, headers: &[], limits: SocketLimits::default(), deadline: Instant::now() + LONG };
    WsDialer::new(tls).dial(&request, &Shutdown::new(), Level::Cancel).map(drop)
}

#[test]
fn flags_give_both_ports_tls_and_ask_for_certificates_of_clients() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let certificates = Certificates::new();
    let [cert, key, ca] = ["cert.pem", "key.pem", "ca.pem"].map(|name| certificates.path(name));
    let start = |name, more: &[&str]| {
        Role::start(name, folder.path(), scratch.path(), |command| {
            command.args(["--listen", "127.0.0.1:0", "--validator", ALICE]).args(more);
            let both: [(&str, &PathBuf); 5] = [
                ("--tls-cert", &cert),
                ("--tls-key", &key),
                ("--tls-client-ca", &ca),
                ("--http-tls-cert", &cert),
                ("--http-tls-key", &key),
            ];
            for (flag, file) in both {
                command.arg(flag).arg(file);
            }
        })
    };
    let facilitator = start("facilitator", &["--user", CHARLIE]);
    let miner = ["--key", "//Bob", "--runner", "process", "--executors", "always_on.test=1"];
    let miner = start("miner", &miner);
    for (role, path) in [(&facilitator, "/ws/v0/"), (&miner, "/v0.1/validator_interface/x")] {
        let client = HttpClient::trusting(Shutdown::new(), certificates.client());
        let url = format!("https://{}/healthz", role.http);
        assert_eq!(client.get(&url, &[], Instant::now() + LONG).unwrap().text(), "ok\n");
        dial(role, certificates.known_client(), path).unwrap();
        let refused = dial(role, certificates.client(), path);
        assert!(refused.is_err(), "{}", role.name);
    }
    // An executor has a token in place of a certificate, and is judged by that.
    dial(&miner, certificates.client(), "/v0.1/executor_interface/token").unwrap();
    for role in [miner, facilitator] {
        let finished = role.running.stop(Signal::TERM);
        assert_eq!(finished.code, Some(0), "{}: {}", role.name, finished.stderr);
    }
}
