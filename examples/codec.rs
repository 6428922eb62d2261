//! What a job costs the validator's link to the facilitator, measured on one core: reading the request, checking its
//! signature alone and in batches, writing the updates and reading the answers.
//!
//! Run it with `cargo run --release --example codec`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use phalanx::identity::{KeyPair, PublicKey, Signature, verify_batch};
use phalanx::protocol::signing::verify_job_requests;
use phalanx::protocol::{
    FacilitatorToValidator, JobResultDetails, JobStatus, JobStatusMetadata, SignedRequest, V0JobStatusUpdate,
    V2JobRequest, ValidatorToFacilitator,
};

/// Long enough for a steady figure, short enough that all of them take a few seconds.
const TIME: Duration = Duration::from_millis(300);
const ROUNDS: u32 = 15;

/// A job as a user's client sends it: an image, a command, an environment, a volume and an upload.
const REQUEST: &str = r#"{"message_type": "V2JobRequest", "uuid": "6f8a1c1e-7d3c-4b61-9c4e-0d5f2f0f6f10",
    "executor_class": "always_on.gpu-24gb", "docker_image": "registry.example.org/team/worker:2026-01-15",
    "args": ["python", "-m", "worker", "--input", "/volume/input.json", "--seed", "42"],
    "env": {"MODE": "batch", "LOG_LEVEL": "info"}, "use_gpu": true,
    "volume": {"volume_type": "zip_url", "contents": "https://files.example.org/inputs/0a1b2c3d.zip"},
    "output_upload": {"output_upload_type": "zip_and_http_put", "url": "https://files.example.org/outputs/0a1b2c3d"},
    "artifacts_dir": "/artifacts", "on_trusted_miner": false, "download_time_limit": 60, "execution_time_limit": 300,
    "upload_time_limit": 60, "streaming_start_time_limit": 30}"#;
const RESPONSE: &str = r#"{"status": "success", "errors": []}"#;

/// Microseconds that one call takes, in the best of the rounds: what else the machine does can only add to it.
fn micros(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut calls = 0u32;
    while start.elapsed() < TIME / ROUNDS {
        work();
        calls += 1;
    }
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        (0..calls).for_each(|_| work());
        start.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
    });
    rounds.fold(f64::INFINITY, f64::min)
}

fn decode(text: &str) -> FacilitatorToValidator {
    FacilitatorToValidator::decode(text).expect("the message is right")
}

/// `count` requests by one user, each with a signature of its own.
fn requests(user: &KeyPair, count: usize) -> Vec<V2JobRequest> {
    let FacilitatorToValidator::V2JobRequest(request) = decode(REQUEST) else {
        unreachable!("the text is a job request");
    };
    let mut requests = vec![request; count];
    for (n, request) in requests.iter_mut().enumerate() {
        request.docker_image.push_str(&n.to_string());
        request.sign(user, 1_700_000_000_000_000_000 + n as u64);
    }
    requests
}

fn updates(uuid: &str) -> [ValidatorToFacilitator; 6] {
    use JobStatus::{Accepted, Completed, ExecutionDone, ExecutorReady, Received, VolumesReady};
    [Received, Accepted, ExecutorReady, VolumesReady, ExecutionDone, Completed].map(|status| {
        let result = (status == Completed).then(|| JobStatusMetadata {
            miner_response: Some(JobResultDetails {
                docker_process_stderr: String::new(),
                docker_process_stdout: "step 1\nstep 2\nall is well\n".repeat(8),
                artifacts: None,
                upload_results: None,
                extra: Default::default(),
            }),
            job_rejection_details: None,
            job_failure_details: None,
            horde_failure_details: None,
            streaming_details: None,
            extra: Default::default(),
        });
        V0JobStatusUpdate { uuid: uuid.to_owned(), status, metadata: result }.into()
    })
}

fn messages(user: &KeyPair) {
    let request = requests(user, 1).remove(0);
    let updates = updates(&request.uuid);
    let text = FacilitatorToValidator::from(request.clone()).encode();
    let read = micros(|| drop(black_box(decode(black_box(&text)))));
    let payload = micros(|| drop(black_box(black_box(&request).canonical_bytes())));
    let check = micros(|| drop(black_box(black_box(&request).verify())));
    let write = micros(|| updates.iter().for_each(|update| drop(black_box(black_box(update).encode()))));
    let answers = micros(|| (0..6).for_each(|_| drop(black_box(decode(black_box(RESPONSE))))));
    println!("microseconds per job, one core:");
    println!("  read one V2JobRequest ({} bytes)     {read:7.2}", text.len());
    println!("  check its signature                   {check:7.2}  (of which the signed text {payload:.2})");
    println!("  write six V0JobStatusUpdate           {write:7.2}");
    println!("  read six Response                     {answers:7.2}");
    println!("  together                              {:7.2}", read + check + write + answers);
}

fn batches(user: &KeyPair) {
    let message = [7; 64];
    let same: Vec<(PublicKey, &[u8], Signature)> =
        (0..128).map(|_| (user.public(), &message[..], user.sign(&message))).collect();
    let different: Vec<(PublicKey, &[u8], Signature)> = (0..128u8)
        .map(|n| {
            let user = KeyPair::from_seed([n; 32]);
            (user.public(), &message[..], user.sign(&message))
        })
        .collect();
    let requests = requests(user, 128);
    println!("microseconds per signature in a batch, one core:");
    println!("  batch  one signer  many signers  one wrong  V2JobRequest of one signer");
    for size in [1, 2, 4, 8, 16, 32, 64, 128] {
        let each = |total: f64| total / size as f64;
        let mut spoilt = same[..size].to_vec();
        spoilt[size / 2].1 = b"another message";
        println!(
            "  {size:5}  {:10.2}  {:12.2}  {:9.2}  {:26.2}",
            each(micros(|| assert!(verify_batch(black_box(&same[..size])).into_iter().all(|good| good)))),
            each(micros(|| assert!(verify_batch(black_box(&different[..size])).into_iter().all(|good| good)))),
            each(micros(|| assert!(verify_batch(black_box(&spoilt)).contains(&false)))),
            each(micros(|| assert!(verify_job_requests(black_box(&requests[..size])).iter().all(Result::is_ok)))),
        );
    }
}

fn main() {
    let user = KeyPair::from_uri("//Alice").expect("it is a key");
    messages(&user);
    batches(&user);
}
