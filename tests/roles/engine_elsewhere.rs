//! Engines that are elsewhere: behind SSH with checked host keys, and behind TLS with client certificates.

use crate::miner_backends::spec;
use crate::testkit::elsewhere::{OtherEngine, Ssh, client};
use crate::testkit::engine::{IMAGE, left};
use crate::testkit::transport::{Certificates, accept, background, join};
use crate::testkit::wait::{LONG, far};
use std::sync::{Arc, Mutex};

use phalanx::base::shutdown::Shutdown;
use phalanx::miner::{DockerBackend, ExecutorBackend, ExecutorExit, ExecutorSettings};
use phalanx::proc::docker::{Docker, Machine, labels};
use phalanx::transport::ws::WsListener;
use phalanx::transport::{Listener, SocketLimits, TransportError};

fn version(docker: &Docker) -> Result<String, String> {
    docker.version(&Shutdown::new(), far()).map_err(|error| error.to_string())
}

/// One line, which says this.
#[track_caller]
fn assert_refused(docker: &Docker, says: &str) {
    let why = version(docker).expect_err("it is not refused");
    assert!(why.contains(says) && !why.contains('\n'), "{why}");
}

#[test]
fn an_engine_behind_ssh_answers_whoever_knows_its_host_key_and_nobody_else() {
    let Some(ssh) = Ssh::start() else { return };
    let docker = ssh.client();
    let here = version(&Docker::default()).unwrap();
    assert_eq!(version(&docker), Ok(here.clone()));
    assert_eq!(docker.checks_host_keys(), Ok(()));
    ssh.stand_in.say("--version", "echo podman version 5.4.2");
    let why = docker.checks_host_keys().unwrap_err();
    assert!(why.contains("is \"podman version 5.4.2\", which is not known to check host keys"), "{why}");
    // The configuration asks for no check at all.
    ssh.know("none");
    assert_refused(&docker, "ssh://engine: its host key is not in known_hosts");
    ssh.know("other");
    assert_refused(&docker, "ssh://engine: its host key is not the one in known_hosts: somebody is in between");
    ssh.know("host");
    assert_eq!(version(&docker), Ok(here));
    let key = ssh.stand_in.file("id");
    ssh.stand_in.keep("id", &ssh.stand_in.file("other"));
    assert_refused(&docker, "ssh://engine: it refuses our ssh key or user");
    ssh.stand_in.keep("id", &key);
    let sshd = ssh.stand_in.file("sshd_config");
    ssh.stand_in.keep("sshd_config", &format!("{sshd}SetEnv PATH=/nonexistent\n"));
    assert_refused(&docker, "ssh://engine: there is no docker program on that machine");
    ssh.stand_in.keep("sshd_config", "no such thing\n");
    assert_refused(&docker, "ssh://engine: ");
    // As where it lies on a file system that is mounted noexec: the careless one behind it is not taken.
    ssh.stand_in.keep("sshd_config", &sshd);
    ssh.know("none");
    let ours = ssh.stand_in.folder().join("ours/ssh");
    std::fs::set_permissions(&ours, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let connections = ssh.connections();
    version(&docker).unwrap_err();
    assert_eq!(ssh.connections(), connections);
}

#[test]
fn an_engine_behind_tls_answers_whoever_has_a_certificate_of_its_authority() {
    let Some(engine) = OtherEngine::start() else { return };
    let (good, other, expired) = (&engine.certificates, Certificates::new(), Certificates::expired());
    let address = format!("tcp://127.0.0.1:{}: ", engine.port);
    let refused = |ours, theirs, says: &str| {
        assert_refused(&engine.client(ours, theirs).unwrap(), &format!("{address}{says}"));
    };
    assert_eq!(version(&engine.client(good, good).unwrap()), version(&Docker::default()));
    refused(good, &other, "its certificate is not of the CA that the settings name");
    refused(&other, good, "it refuses our certificate");
    refused(&expired, good, "it refuses our certificate");

    let listener = WsListener::bind("127.0.0.1:0", Some(expired.server())).unwrap();
    let (url, kick) = (listener.url().replace("wss://", "tcp://"), listener.kick());
    let refusing = background("t-expired", move || {
        // A client asks more than once.
        let handshake = || accept(&listener, &SocketLimits::default(), |_| Ok(()));
        while !matches!(handshake(), Err(TransportError::Stopped)) {}
    });
    assert_refused(&client(&url, &expired, &expired).unwrap(), &format!("{url}: its certificate has expired"));
    kick.kick();
    join(refusing);

    let (cert, key) = (good.path("client-cert.pem"), good.path("client-key.pem"));
    std::fs::copy(good.path("key.pem"), &key).unwrap();
    refused(good, good, "our certificate and our key do not belong together");
    std::fs::remove_file(&cert).unwrap();
    let missing = engine.client(good, good).unwrap_err();
    assert!(missing.starts_with(&format!("{address}certificate {}: No such file", cert.display())), "{missing}");
}

#[test]
fn an_executor_runs_on_the_machine_of_an_engine_behind_ssh_with_what_that_machine_has() {
    let Some(ssh) = Ssh::start() else { return };
    let mut backend = DockerBackend::new(IMAGE, "process");
    backend.docker = Docker { time: LONG, ..ssh.client() };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = asked.clone();
    backend.by_machine = Some(Arc::new(move |machine: &Machine| {
        noted.lock().unwrap().push(machine.clone());
        let mut settings = ExecutorSettings::default();
        settings.set("PHALANX_SANDBOX", format!("{} of {}", machine.cpus, machine.memory_bytes));
        Ok(settings)
    }));
    let here = Docker::default().machine(&Shutdown::new(), far()).unwrap();
    let script = r#"[ "$PHALANX_SANDBOX" = "$WANTED" ] && [ "$EXECUTOR_TOKEN" = "$TOKEN" ] || exit 1; exit 7"#;
    backend.arguments = Some(["sh", "-c", script].map(str::to_owned).into());
    let (spec, stop) = (spec(), Shutdown::new());
    let wanted = format!("WANTED={} of {}", here.cpus, here.memory_bytes);
    backend.options = vec!["--env".into(), wanted, "--env".into(), format!("TOKEN={}", spec.token)];
    // Also before the first check: then it is asked for what the machine has.
    let exit = backend.run(&spec, &stop).unwrap();
    backend.clean(&spec, true, &stop).unwrap();
    assert_eq!(exit, ExecutorExit::Code(7));
    assert_eq!(left(labels::EXECUTOR, &spec.run), Vec::<String>::new());
    let what = backend.check(&stop, far()).unwrap();
    let words = format!("of engine {} with {} processors and {} MiB", here.version, here.cpus, here.memory_bytes >> 20);
    assert!(what.ends_with(&words), "{what}");
    assert_eq!(*asked.lock().unwrap(), [here], "what is known is not worked out again");

    ssh.know("other");
    let why = backend.check(&stop, far()).unwrap_err();
    assert!(why.contains("its host key is not the one in known_hosts") && !why.contains('\n'), "{why}");
    let error = backend.run(&spec, &stop).unwrap_err();
    assert!(error.to_string().contains("its host key is not the one in known_hosts"), "{error}");
}
