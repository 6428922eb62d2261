//! All four roles in a program of your own: start them, run one job through real sockets, stop them and read the
//! report.
//!
//! No runtime, no signal handler, no logger: the library brings threads, and `stop` joins every one of them.

use std::sync::Arc;
use std::time::Duration;

use phalanx::app::jobfile;
use phalanx::prelude::*;

const JOB: &str = r#"{
    "executor_class": "always_on.test", "docker_image": "none",
    "files": {"names.txt": "Leonidas\nIphicrates\nEpaminondas\n"},
    "args": ["sh", "-c", "sort $PHALANX_VOLUME_DIR/names.txt"]
}"#;

/// Runs the example and gives what the job printed.
pub fn run() -> Result<String, Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let shutdown = Shutdown::new();
    let timer = Timer::start();
    let network = LocalNetwork::start(
        LocalConfig {
            state_dir: folder.path().to_owned(),
            executors: 1,
            backend: Arc::new(ThreadBackend::new(RunnerKind::Process, timer.handle())),
            drain_time: Duration::from_secs(10),
        },
        &timer.handle(),
    )?;

    let mut client = JobClient::login(&format!("http://{}", network.http_addr()), network.user().clone(), &shutdown)?;
    let request = jobfile::parse_text("embed", JOB)?.unsigned().clone();
    let job = client.submit(request, &network.target())?;
    let job = client.wait_for(&job.uuid, Duration::from_secs(60))?;

    let mut stopping = Stopping::new(&shutdown);
    network.stop_in(&mut stopping);
    stopping.step("timer", Duration::from_secs(1), |step| timer.stop_in(step));
    let report = stopping.finish();
    println!("{}: {}{report}", job.status(), job.stdout.as_written());
    if !report.is_clean() {
        return Err(report.to_string().into());
    }
    Ok(job.stdout.as_written().to_owned())
}

#[allow(dead_code)] // The tests include this file and call `run`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    run().map(|_| ())
}
