//! A facilitator client in a program that is not async: jobs come in, each runs on a thread of a small pool, and
//! no report about them is lost.
//!
//! `cargo run --example client -- ws://facilitator.example/ws/v0/ //Alice state-folder`

use std::path::Path;
use std::time::Duration;

use phalanx::prelude::*;
use phalanx::validator::ClientError;

fn work(job: &RunningJob) -> Outcome {
    job.report(JobStatus::Accepted);
    Outcome::completed(format!("{} was here", job.request().docker_image), "")
}

/// Runs a client until `stop` returns, and gives the report of its stop.
pub fn run(url: &str, key: KeyPair, folder: &Path, stop: impl FnOnce()) -> Result<StopReport, ClientError> {
    let config = ClientConfig { state_dir: Some(folder.into()), ..ClientConfig::new(url, key) };
    let running = FacilitatorClient::new(config)?.start(OnWorkers::new(8, work))?;
    println!("{}; press Enter to stop", running.handle().state());
    stop();
    Ok(running.stop(Duration::from_secs(10)))
}

#[allow(dead_code)] // The tests include this file and call `run`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, key, folder] = arguments.as_slice() else { return Err("usage: client URL KEY STATE_FOLDER".into()) };
    let enter = || drop(std::io::stdin().read_line(&mut String::new()));
    println!("{}", run(url, KeyPair::load(key)?, Path::new(folder), enter)?);
    Ok(())
}
