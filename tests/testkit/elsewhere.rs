//! Engines that are elsewhere as far as a client can tell: that of this machine behind a real `sshd`, and a second one
//! with its own folder, behind TLS and a socket.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use phalanx::proc::docker::{Docker, EngineAddress, SshPlace, TlsFiles};

use super::engine::{StandIn, ready};
use super::own_engine::OwnEngine;
use super::transport::Certificates;
use super::wait::until_some;

const SSHD: &str = "/usr/sbin/sshd";

/// An `sshd` with keys of its own, at the other end of a pipe from each `ssh`, that lets in whoever runs the tests. The
/// configuration of `ssh` is a careless one.
pub struct Ssh {
    /// Its `docker` is the real one; its `path/ssh` is the real one, too, but reads that configuration.
    pub stand_in: StandIn,
}

impl Ssh {
    /// `None` if there is no engine; an `sshd` is a must then.
    pub fn start() -> Option<Self> {
        if !ready() {
            return None;
        }
        if !Path::new(SSHD).exists() {
            skip("there is no sshd (apt-get install openssh-server)");
            return None;
        }
        let ssh = Self { stand_in: StandIn::new() };
        let folder = ssh.stand_in.folder().to_owned();
        for key in ["host", "other", "id"] {
            let mut make = Command::new("ssh-keygen");
            make.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(key));
            assert!(make.status().unwrap().success());
        }
        // As the service makes it; without root it is not asked for.
        let _ = fs::create_dir("/run/sshd");
        let at = folder.display();
        let sshd = format!(
            "HostKey {at}/host\nAuthorizedKeysFile {at}/id.pub\nPidFile none\nUsePAM no\nStrictModes no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        );
        ssh.stand_in.keep("sshd_config", &sshd);
        let careless = format!(
            "Host engine\nProxyCommand {SSHD} -i -f {at}/sshd_config\nIdentityFile {at}/id\nIdentitiesOnly yes\n\
             UserKnownHostsFile {at}/known\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking no\n"
        );
        ssh.stand_in.keep("ssh_config", &careless);
        let real =
            "echo called >>\"$folder/connections\"\nPATH=/usr/bin:/bin\nexec ssh -F \"$folder/ssh_config\" \"$@\"";
        ssh.stand_in.tool("path/ssh", real);
        ssh.know("host");
        Some(ssh)
    }

    /// From now on this is the key that is known: of `host`, or of `other`; `none` for none.
    pub fn know(&self, key: &str) {
        let known = self.stand_in.file(&format!("{key}.pub"));
        self.stand_in.keep("known", &if known.is_empty() { known } else { format!("engine {known}") });
    }

    /// A client that finds the engine through it.
    pub fn client(&self) -> Docker {
        let place = SshPlace { folder: self.stand_in.folder().join("ours"), path: self.path() };
        let address = EngineAddress::parse("ssh://engine", None, &place).unwrap();
        address.write_ssh().unwrap();
        Docker { address, ..self.stand_in.client() }
    }

    /// A `PATH` on which that `ssh` comes first.
    pub fn path(&self) -> OsString {
        let ours = self.stand_in.folder().join("path");
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::join_paths([ours].into_iter().chain(std::env::split_paths(&path))).unwrap()
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.stand_in.file("connections").lines().count()
    }
}

/// A second Docker Engine, with its own images and containers, behind TLS and a socket.
pub struct OtherEngine {
    engine: OwnEngine,
    /// Its port of TLS on 127.0.0.1.
    pub port: u16,
    pub certificates: Certificates,
}

impl OtherEngine {
    /// `None` if this machine's own engine or the rights for a second one are missing.
    pub fn start() -> Option<Self> {
        let certificates = Certificates::new();
        let file =
            |option: &str, name: &str| -> OsString { format!("{option}={}", certificates.path(name).display()).into() };
        let options = [
            "--tlsverify".into(),
            file("--tlscacert", "ca.pem"),
            file("--tlscert", "cert.pem"),
            file("--tlskey", "key.pem"),
            "--host=tcp://127.0.0.1:0".into(),
        ];
        let mut engine = OwnEngine::start_with(false, &options)?;
        let socket = format!("API listen on {}", engine.socket().display());
        let port = until_some("the second engine listens", || {
            let said = engine.log();
            let (_, port) = said.split_once("API listen on 127.0.0.1:")?;
            let port = port.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
            said.contains(&socket).then_some(port)
        });
        Some(Self { engine, port, certificates })
    }

    /// Its socket, without TLS.
    pub fn socket(&self) -> PathBuf {
        self.engine.socket()
    }

    /// A client that shows a certificate of this name, as `client-`, of `ours`, and trusts the authority of `theirs`.
    pub fn client(&self, ours: &Certificates, theirs: &Certificates) -> Result<Docker, String> {
        client(&format!("tcp://127.0.0.1:{}", self.port), ours, theirs)
    }
}

/// A client of an engine behind TLS that trusts the authority of `theirs` and shows a certificate of `ours`.
pub fn client(address: &str, ours: &Certificates, theirs: &Certificates) -> Result<Docker, String> {
    let (ca, cert, key) = (theirs.path("ca.pem"), ours.path("client-cert.pem"), ours.path("client-key.pem"));
    let address = EngineAddress::parse(address, Some(TlsFiles { ca, cert, key }), &SshPlace::below("/nonexistent"))?;
    Ok(Docker { address, ..Docker::default() })
}

fn skip(why: &str) {
    assert!(std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"), "required, but {why}");
    std::io::stderr().write_all(format!("SKIPPED: {why}\n").as_bytes()).unwrap();
}
