//! Certificates of a running role: their end is told, and a renewed one is served from SIGHUP on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::net::http::client::HttpClient;
use phalanx::transport::ws::WsDialer;
use phalanx::transport::{ClientTls, DialRequest, Dialer, SocketLimits, TransportError};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::containers::ExecutorImage;
use crate::process::{Network, result};
use crate::testkit::http::{Reply, Server};
use crate::testkit::network::{ALICE, BOB, CHARLIE, NO_OP};
use crate::testkit::process::{Running, phalanx, run};
use crate::testkit::transport::Certificates;
use crate::testkit::wait::{LONG, until};

/// A self-signed certificate for localhost that ends that many days from now.
fn certificate(folder: &Path, days: u32) {
    let day = Command::new("date").args(["-u", "-d", &format!("+{days} days"), "+%Y %m %d"]).output().unwrap();
    let day = String::from_utf8(day.stdout).unwrap();
    let parts: Vec<i32> = day.split_whitespace().map(|part| part.parse().unwrap()).collect();
    let (month, of_month) = (u8::try_from(parts[1]).unwrap(), u8::try_from(parts[2]).unwrap());
    let key = rcgen::KeyPair::generate().unwrap();
    let mut made = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    made.not_after = rcgen::date_time_ymd(parts[0], month, of_month);
    // As who renews it: each file in one step, one after the other.
    fs::write(folder.join("new"), made.self_signed(&key).unwrap().pem()).unwrap();
    fs::rename(folder.join("new"), folder.join("cert.pem")).unwrap();
    fs::write(folder.join("new"), key.serialize_pem()).unwrap();
    fs::rename(folder.join("new"), folder.join("key.pem")).unwrap();
}

fn dialled(url: &str, trusted: &ClientTls) -> Result<(), TransportError> {
    let request = DialRequest { url, headers: &[], limits: SocketLimits::default(), deadline: Instant::now() + LONG };
    WsDialer::new(trusted.clone()).dial(&request, &Shutdown::new(), Level::Drain).map(drop)
}

#[test]
fn a_certificate_that_ends_is_told_of_and_a_renewed_one_is_served_from_sighup_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    certificate(folder.path(), 5);
    let mut facilitator = phalanx(folder.path());
    facilitator.args(["facilitator", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--validator", ALICE]);
    facilitator.args(["--user", CHARLIE, "--state-dir"]).arg(path("f"));
    facilitator.arg("--tls-cert").arg(path("cert.pem")).arg("--tls-key").arg(path("key.pem")).env("RUST_LOG", "info");
    let mut facilitator = Running::start(&mut facilitator);
    let said: Value = serde_json::from_str(&facilitator.line()).unwrap();
    let port = said["listening"].as_str().unwrap().rsplit(':').next().unwrap();
    let url = format!("wss://localhost:{port}/ws/v0/");
    let pages = HttpClient::new(Shutdown::new());
    let page = |path: &str| {
        let url = format!("http://{}{path}", said["http"].as_str().unwrap());
        pages.get(&url, &[], Instant::now() + LONG).unwrap().text()
    };
    let old = ClientTls::from_ca_file(&path("cert.pem")).unwrap();
    dialled(&url, &old).unwrap();
    let warned = page("/status.json");
    assert!(warned.contains("cert.pem ends in 4 days and"), "{warned}");
    assert!(page("/metrics").contains("phalanx_certificate_expiry_seconds{kind=\"server\"} "));
    until("the warning in the log", || facilitator.stderr().contains("cert.pem ends in 4 days and"));

    // Half of a renewal changes nothing.
    let key = fs::read(path("key.pem")).unwrap();
    certificate(folder.path(), 90);
    let renewed = fs::read(path("key.pem")).unwrap();
    fs::write(path("key.pem"), key).unwrap();
    facilitator.signal(Signal::HUP);
    until("the refusal of what does not fit", || facilitator.stderr().contains("the certificate stays as it is: "));
    dialled(&url, &old).unwrap();
    fs::write(path("key.pem"), renewed).unwrap();
    facilitator.signal(Signal::HUP);
    until("the new certificate", || facilitator.stderr().contains("SIGHUP: read again: the server certificate"));
    let new = ClientTls::from_ca_file(&path("cert.pem")).unwrap();
    dialled(&url, &new).unwrap();
    assert!(dialled(&url, &old).is_err());
    assert!(!page("/status.json").contains("cert.pem ends in"));
    assert_eq!(facilitator.stop(Signal::TERM).code, Some(0));
}

#[test]
fn an_executor_asks_for_the_name_that_its_miner_s_certificate_has_and_trusts_a_self_signed_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    // For `localhost` alone, and executors dial an address.
    certificate(folder.path(), 30);
    let role = |name: &str, arguments: &[&str]| {
        let mut command = phalanx(folder.path());
        command.args([name, "--http", "127.0.0.1:0", "--state-dir", &path(name)]).args(arguments);
        let mut running = Running::start(command.env("RUST_LOG", "info"));
        let said: Value = serde_json::from_str(&running.line()).unwrap();
        (running, said)
    };
    let listen = ["--listen", "127.0.0.1:0", "--validator", ALICE];
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let api = ["--user", CHARLIE, "--http-tls-cert", &cert, "--http-tls-key", &key];
    let (facilitator, at) = role("facilitator", &[&listen[..], &api].concat());
    let own = ["--key", "//Bob", "--executors", "always_on.test=1", "--runner", "process", "--drain-time", "1s"];
    let tls = ["--tls-cert", &cert, "--tls-key", &key];
    let (miner, dialled) = role("miner", &[&listen[..], &own, &tls].concat());
    let port = dialled["listening"].as_str().unwrap().rsplit(':').next().unwrap();
    let miners = format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"localhost\"\nport = {port}\ntls = true\n");
    fs::write(path("miners.toml"), miners).unwrap();
    let url = format!("ws://{}/ws/v0/", at["listening"].as_str().unwrap());
    let list = path("miners.toml");
    let own = ["--facilitator", &url, "--key", "//Alice", "--miners", &list, "--tls-ca", &cert, "--drain-time", "1s"];
    let (validator, _) = role("validator", &[&own[..], &["--trusted-signer", CHARLIE]].concat());
    fs::write(path("job.json"), NO_OP).unwrap();
    let mut submit = phalanx(folder.path());
    let port = at["http"].as_str().unwrap().rsplit(':').next().unwrap();
    let users = format!("https://localhost:{port}");
    submit.args([
        "submit",
        &path("job.json"),
        "--facilitator",
        &users,
        "--key",
        "//Charlie",
        "--target",
        ALICE,
        "--wait",
        "--tls-ca",
        &cert,
    ]);
    let submitted = run(&mut submit);
    assert_eq!(submitted.code, Some(0), "{submitted:?}\n{}", miner.stderr());
    let list = |more: &[&str]| {
        run(phalanx(folder.path()).args(["jobs", "ls", "--facilitator", &users, "--key", "//Charlie"]).args(more))
    };
    let listed = list(&["--tls-ca", &cert]);
    assert!(listed.code == Some(0) && listed.stdout.contains("completed"), "{listed:?}");
    let refused = list(&[]);
    assert!(refused.code == Some(1) && refused.stderr.contains("give it by --tls-ca FILE"), "{refused:?}");
    for role in [validator, miner, facilitator] {
        assert_eq!(role.stop(Signal::TERM).code, Some(0));
    }
}

#[test]
fn an_executor_in_a_container_trusts_the_authority_of_its_miner_s_settings_and_no_other() {
    let Some(image) = ExecutorImage::build() else { return };
    let [known, other] = [Certificates::new(), Certificates::new()];
    let authority = known.path("ca.pem").display().to_string();
    let [good, bad] = [&known, &other].map(|of| Server::start_with(of, |_| Reply::ok("from a private place")));
    let in_containers = ["--runner", "process", "--executor-backend", "docker", "--executor-image", &image.0];
    let trust = ["--tls-ca", &authority, "--tls-roots", "none", "--reach", "127.0.0.0/8", "--reach", "::1/128"];
    let network = Network::start_with(false, &[&in_containers[..], &trust].concat());
    let job = |server: &Server| {
        json!({
            "executor_class": "always_on.test",
            "docker_image": "none",
            "args": ["sh", "-c", "read line <volume/downloaded; echo $line"],
            "volume": {"volume_type": "single_file", "url": server.url("/file"), "relative_path": "downloaded"},
        })
    };
    let finished = run(&mut network.submit(&job(&good).to_string()));
    let downloaded = result(&finished.stdout);
    assert_eq!(downloaded["stdout"], "from a private place\n", "{finished:?}\n{}", network.miner.stderr());
    assert_eq!(good.seen().len(), 1);
    // The same place, but nobody has said that this authority is to be trusted.
    let finished = run(&mut network.submit(&job(&bad).to_string()));
    let refused = result(&finished.stdout).to_string();
    assert!(finished.code == Some(1) && refused.contains("certificate"), "{finished:?}");
    assert!(bad.seen().is_empty());
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
}
