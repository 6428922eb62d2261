//! Streaming jobs of an executor, in containers of a real engine: every way to end, and that nothing is left.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::executor::{JobEnd, RunnerKind};
use phalanx::net::dial::dial;
use phalanx::proc::docker::labels;
use phalanx::protocol::{
    ExecutorToMiner as M, JobFailureReason, JobStage, StreamingDetails, V0InitialJobRequest, V0JobFailedRequest,
    V0StreamingJobReadyRequest,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::executor::{FakeMiner, Outcome, full, initial, joined, kind, run_executor};
use crate::testkit::engine;
use crate::testkit::roles::World;
use crate::testkit::wait::{LONG, far};

/// The server of `tests/fixtures`, which is the job's script, until it is asked to quit.
const SERVE: &str =
    "busybox nc -ll -p 8000 -e sh /script.py & until [ -e /output/quit ]; do sleep 0.1; done; echo served";

/// A client's certificate and key.
struct Identity {
    pem: String,
    der: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn make() -> Self {
        let made = rcgen::generate_simple_self_signed(["client".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        Self { pem: made.cert.pem(), der: made.cert.into(), key }
    }

    /// Asks the job's server for a path, and gives the connection for its answer.
    fn get(&self, server: &V0StreamingJobReadyRequest, path: &str) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(server.public_key.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![self.der.clone()], self.key.clone_key())
            .unwrap();
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
        let port = u16::try_from(server.port.saturating_i64()).unwrap();
        let stream = dial("127.0.0.1", port, far(), &Shutdown::new(), Level::Cancel).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut client = StreamOwned::new(tls, stream);
        write!(client, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        client.flush().unwrap();
        client
    }
}

fn all(mut client: impl Read) -> String {
    let mut answer = Vec::new();
    // How a connection ends that is cut off is not the question.
    drop(client.read_to_end(&mut answer));
    String::from_utf8(answer).unwrap()
}

/// One streaming job on an executor of the engine.
struct Rig {
    uuid: String,
    client: Identity,
    shutdown: Shutdown,
    miner: FakeMiner,
    executor: phalanx::base::thread::Thread<Outcome>,
    world: World,
}

impl Rig {
    /// With limits in seconds: for the server to be ready, for the run.
    fn start(script: &str, limits: [i64; 2]) -> Self {
        Self::change(script, limits, |_| {})
    }

    fn change(script: &str, [start, run]: [i64; 2], change: impl FnOnce(&mut V0InitialJobRequest)) -> Self {
        let uuid = uuid::Uuid::new_v4().to_string();
        let client = Identity::make();
        let mut initial = initial([30, run, 30]);
        let (executor_ip, public_key) = (Some("127.0.0.1".to_owned()), client.pem.clone());
        initial.streaming_details = Some(StreamingDetails { public_key, executor_ip });
        initial.executor_timing.as_mut().unwrap().streaming_start_time_limit = start.into();
        initial.docker_image = Some(engine::IMAGE.to_owned());
        initial.job_uuid.clone_from(&uuid);
        change(&mut initial);
        let mut request = full(script);
        request.job_uuid.clone_from(&uuid);
        request.docker_image = engine::IMAGE.to_owned();
        request.raw_script = Some(include_str!("../fixtures/streaming_server.sh").to_owned());
        let (world, shutdown) = (World::new(), Shutdown::new());
        let miner = FakeMiner::start(&world, vec![initial.into()], Some(request));
        let executor = run_executor(&world, &shutdown, |config| config.runner = RunnerKind::Docker);
        Self { uuid, client, shutdown, miner, executor, world }
    }

    fn serving(&self) -> V0StreamingJobReadyRequest {
        for expected in ["ready", "volumes"] {
            let message = self.miner.receive();
            assert_eq!(kind(&message), expected, "{message:?}");
        }
        let M::V0StreamingJobReadyRequest(ready) = self.miner.receive() else { panic!("another message") };
        assert_eq!(ready.job_uuid, self.uuid);
        ready
    }

    /// The connection on which the server has begun an answer that it does not end.
    fn stream(&self, ready: &V0StreamingJobReadyRequest) -> StreamOwned<ClientConnection, TcpStream> {
        let mut client = self.client.get(ready, "/stream");
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\nfirst\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            seen.extend(byte);
        }
        client
    }

    /// How the job ended, with the last message; nothing is left of it.
    fn end(self) -> (JobEnd, M) {
        let Self { uuid, miner, executor, world, .. } = self;
        let report = joined(executor).unwrap();
        assert!(report.stop.is_clean(), "{}", report.stop);
        assert_eq!(engine::left(labels::JOB, &uuid), [""; 0], "containers or networks are left");
        let last = miner.received.try_iter().last().unwrap();
        miner.stop();
        drop(world);
        (report.end, last)
    }
}

fn failed(last: M) -> V0JobFailedRequest {
    match last {
        M::V0JobFailedRequest(failed) => failed,
        other => panic!("{other:?}"),
    }
}

fn assert_closed(ready: &V0StreamingJobReadyRequest) {
    let port = u16::try_from(ready.port.saturating_i64()).unwrap();
    assert!(dial("127.0.0.1", port, far(), &Shutdown::new(), Level::Cancel).is_err(), "somebody listens there");
}

#[test]
fn a_job_that_ends_ends_its_clients_and_is_finished() {
    if !engine::ready() {
        return;
    }
    let rig = Rig::start(SERVE, [60, 60]);
    let ready = rig.serving();
    let stream = rig.stream(&ready);
    assert!(all(rig.client.get(&ready, "/echo")).contains("\r\n\r\nGET /echo|Host: h\n"));
    assert!(all(rig.client.get(&ready, "/quit")).starts_with("HTTP/1.1 200 OK"));
    assert_eq!(all(stream), "", "the server was ended before its last line");
    let (end, last) = rig.end();
    let M::V0JobFinishedRequest(finished) = last else { panic!("{last:?}") };
    assert_eq!((end, finished.docker_process_stdout.as_str()), (JobEnd::Finished, "served\n"));
    assert_closed(&ready);
}

#[test]
fn a_cancel_in_the_middle_of_an_answer_ends_all() {
    if !engine::ready() {
        return;
    }
    let rig = Rig::start(SERVE, [60, 60]);
    let ready = rig.serving();
    let stream = rig.stream(&ready);
    let began = Instant::now();
    rig.shutdown.cancel();
    assert_eq!(all(stream), "");
    let (end, last) = rig.end();
    // The engine kills and removes a container and a network meanwhile, on a busy machine.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!((end, kind(&last)), (JobEnd::HordeFailed, "horde failed"));
    assert_closed(&ready);
}

#[test]
fn the_run_s_limit_counts_from_readiness_and_ends_a_job_that_goes_on_serving() {
    if !engine::ready() {
        return;
    }
    let rig = Rig::start(SERVE, [60, 2]);
    let ready = rig.serving();
    let began = Instant::now();
    assert_eq!(all(rig.stream(&ready)), "");
    // The deadline of the network alone would let it run for the 90 s that earlier stages have saved.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let (end, last) = rig.end();
    let failed = failed(last);
    assert_eq!((end, failed.reason, failed.stage), (JobEnd::Failed, JobFailureReason::Timeout, JobStage::Execution));
    assert_closed(&ready);
}

#[test]
fn a_job_whose_server_is_not_ready_in_time_has_failed_with_its_last_answer() {
    if !engine::ready() {
        return;
    }
    // Volumes that take no time leave theirs to the server.
    let limits = |initial: &mut V0InitialJobRequest| {
        initial.executor_timing.as_mut().unwrap().download_time_limit = 1.into();
    };
    let rig = Rig::change("echo waiting; sleep 300", [3, 60], limits);
    let (end, last) = rig.end();
    let failed = failed(last);
    assert_eq!((end, failed.reason), (JobEnd::Failed, JobFailureReason::Timeout));
    assert_eq!(failed.stage, JobStage::StreamingStartup);
    assert!(failed.message.starts_with("Streaming job health check failed: "), "{}", failed.message);
    assert!(failed.message.contains(":8000"), "{}", failed.message);
    assert_eq!(failed.docker_process_stdout.as_deref(), Some("waiting\n"));
}

#[test]
fn a_client_s_certificate_that_is_none_fails_the_job_before_it_starts() {
    if !engine::ready() {
        return;
    }
    let rig = Rig::change(SERVE, [5, 5], |initial| {
        initial.streaming_details.as_mut().unwrap().public_key = "none".to_owned();
    });
    let (end, last) = rig.end();
    assert_eq!(end, JobEnd::Failed);
    let message = failed(last).message;
    assert!(message.contains("streaming_details.public_key is no certificate of a client"), "{message}");
}
