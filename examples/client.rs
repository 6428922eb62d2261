//! A facilitator client in a program that is not async: jobs come in, each runs on a thread of a small pool, and
//! no report about them is lost.
//!
//! `cargo run --example client -- ws://facilitator.example/ws/v0/ //Alice state-folder`

use std::time::Duration;

use phalanx::identity::KeyPair;
use phalanx::protocol::JobStatus;
use phalanx::validator::{ClientConfig, FacilitatorClient, OnWorkers, Outcome, RunningJob};

fn work(job: &RunningJob) -> Outcome {
    job.report(JobStatus::Accepted);
    Outcome::completed(format!("{} was here", job.request().docker_image), "")
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, key, folder] = arguments.as_slice() else { return Err("usage: client URL KEY STATE_FOLDER".into()) };
    let config = ClientConfig { state_dir: Some(folder.into()), ..ClientConfig::new(url, KeyPair::load(key)?) };
    let running = FacilitatorClient::new(config)?.start(OnWorkers::new(8, work))?;
    println!("{}; press Enter to stop", running.handle().state());
    std::io::stdin().read_line(&mut String::new())?;
    println!("{}", running.stop(Duration::from_secs(10)));
    Ok(())
}
