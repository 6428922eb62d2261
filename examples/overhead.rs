//! The first figures of `docs/performance.md`, measured: overhead of a job that does nothing, jobs per second, memory,
//! time to stop.
//!
//! Four roles in this process as in `phalanx demo`, each executor a process of the `phalanx` binary beside this
//! example, the process runner. Run it with `make bench`.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use phalanx::app::job_client::JobClient;
use phalanx::app::jobfile;
use phalanx::app::local::{LocalConfig, LocalNetwork, scratch_dir};
use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::Stopping;
use phalanx::base::thread::{Kick, spawn};
use phalanx::base::timer::Timer;
use phalanx::miner::ProcessBackend;

const NO_OP: &str = r#"{"executor_class": "always_on.test", "docker_image": "none", "args": ["true"]}"#;

/// The best of the runs would flatter, the mean would be the machine's noise: quantiles over all jobs.
fn quantile(sorted: &[Duration], q: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

fn binary() -> PathBuf {
    let example = std::env::current_exe().expect("the system knows this program");
    let folder = example.parent().and_then(|folder| folder.parent()).expect("examples lie two folders down");
    folder.join("phalanx")
}

fn memory_kib(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// Runs `jobs` no-op jobs, `at_once` at a time, and gives the time of each from submission to `completed`.
fn measure(network: &LocalNetwork, jobs: usize, at_once: usize) -> (Vec<Duration>, Duration) {
    let spec = jobfile::parse_text("no-op", NO_OP).expect("the job file is right");
    let (give, take) = bounded(jobs);
    for _ in 0..jobs {
        give.send(spec.unsigned().clone()).expect("there is room for all");
    }
    drop(give);
    let (report, notified) = bounded(jobs);
    let start = Instant::now();
    let threads: Vec<_> = (0..at_once)
        .map(|n| {
            let (take, report) = (take.clone(), report.clone());
            let (base, key, target) =
                (format!("http://{}", network.http_addr()), network.user().clone(), network.target());
            spawn(format!("user-{n}"), Kick::dropped("the last job"), move || {
                let mut client = JobClient::login(&base, key, &Shutdown::new()).expect("the facilitator knows us");
                while let Ok(request) = take.recv() {
                    let begun = Instant::now();
                    let mut job = client.submit(request, &target).expect("the job is taken");
                    while !job.has_ended() {
                        job = client.news(&job.uuid, job.status_history.len()).expect("the facilitator answers");
                    }
                    assert!(job.is_completed(), "{}: {:?}", job.status(), job.error());
                    report.send(begun.elapsed()).expect("there is room for all");
                }
            })
        })
        .collect();
    drop(report);
    let mut times: Vec<Duration> = notified.iter().collect();
    drop(threads);
    assert_eq!(times.len(), jobs, "a user's thread has panicked");
    times.sort();
    (times, start.elapsed())
}

/// Time from SIGINT to the end of a demo in mid-work, whose executors and folders are gone then, too.
fn time_to_stop() -> Duration {
    let mut demo = Command::new(binary())
        .args(["demo", "--jobs", "200", "--runner", "process", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary is built");
    let mut out = std::io::BufReader::new(demo.stdout.take().expect("it is piped"));
    let mut line = String::new();
    // The first result says that work is going on.
    std::io::BufRead::read_line(&mut out, &mut line).expect("the demo prints results");
    let pid = rustix::process::Pid::from_child(&demo);
    let start = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("the demo runs");
    drop(out);
    demo.wait().expect("it is our child");
    start.elapsed()
}

fn main() {
    let scratch = scratch_dir().expect("a temporary folder");
    let timer = Timer::start();
    let mut backend = ProcessBackend::new("process").expect("the system knows this program");
    backend.program = binary();
    let config = LocalConfig {
        state_dir: scratch.path().to_owned(),
        executors: 16,
        backend: Arc::new(backend),
        drain_time: Duration::from_secs(10),
    };
    let network = LocalNetwork::start(config, &timer.handle()).expect("loopback is there");
    measure(&network, 3, 1);
    println!("no-op jobs, from submission to completed, process runner:");
    for (jobs, at_once) in [(200, 1), (800, 16)] {
        let (times, all) = measure(&network, jobs, at_once);
        let millis = |q| quantile(&times, q).as_secs_f64() * 1e3;
        println!(
            "{at_once:>4} at a time: p50 {:6.1} ms  p99 {:6.1} ms  {:6.1} jobs/s  ({jobs} jobs)",
            millis(0.5),
            millis(0.99),
            jobs as f64 / all.as_secs_f64(),
        );
    }
    let mib = |key| memory_kib(key) as f64 / 1024.0;
    println!("resident memory of the four roles: {:.1} MiB now, {:.1} MiB at most", mib("VmRSS:"), mib("VmHWM:"));
    let mut stopping = Stopping::alone();
    network.stop_in(&mut stopping);
    stopping.step("timer", Duration::from_secs(2), |step| timer.stop_in(step));
    println!("the network: {}", stopping.finish());
    let mut stops: Vec<Duration> = (0..5).map(|_| time_to_stop()).collect();
    stops.sort();
    println!("SIGINT to exit of a demo in mid-work: median {:.0?}, longest {:.0?}", stops[2], stops[4]);
}
