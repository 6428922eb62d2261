//! The jobs of a run, signed and framed before any clock starts.

use std::time::{SystemTime, UNIX_EPOCH};

use phalanx_peers::job::{self, JobRequest};
use phalanx_peers::keys::{self, Trusted};

use phalanx_peers::meter;

/// The seed of the user whose jobs these are; public, from the vectors.
const USER: &str = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20";

/// Signed jobs. No two have the same payload or time, so that no verdict can be kept for the next.
pub struct Jobs {
    jobs: Vec<Job>,
    /// Who signed them (SS58).
    pub signer: String,
    trusted: Trusted,
}

pub struct Job {
    pub uuid: String,
    pub text: String,
}

impl Jobs {
    pub fn new(count: usize) -> Result<Self, String> {
        let user = keys::keypair(USER)?;
        let signer = keys::ss58(&user.public);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?;
        let now = u64::try_from(now.as_nanos()).map_err(|e| e.to_string())?;
        let jobs = (0..count)
            .map(|n| {
                let uuid = format!("{:08x}-4f89-41d3-9a0c-{n:012x}", now as u32);
                let text = job::sample(n, &uuid, &user, now + n as u64).encode();
                Job { uuid, text }
            })
            .collect();
        let trusted = keys::trusted([signer.as_str()])?;
        Ok(Self { jobs, signer, trusted })
    }

    pub fn all(&self) -> &[Job] {
        &self.jobs
    }

    /// The place of a job that has this uuid.
    pub fn find(&self, uuid: &str) -> Option<usize> {
        let n = usize::from_str_radix(uuid.get(24..)?, 16).ok()?;
        (self.jobs.get(n)?.uuid == uuid).then_some(n)
    }

    /// CPU microseconds of one check of a signature, from the parsed request on: canonical bytes, hash, sr25519. The
    /// least of five loops, so that what is subtracted from a client's CPU time is never too much.
    pub fn verify_cost(&self) -> Result<VerifyCost, String> {
        let parsed: Vec<JobRequest> = self.jobs[..self.jobs.len().min(200)]
            .iter()
            .map(|job| serde_json::from_str(&job.text).map_err(|e| e.to_string()))
            .collect::<Result<_, _>>()?;
        let least = |one: &dyn Fn(&JobRequest) -> Result<(), String>| {
            let mut least = u64::MAX;
            for _ in 0..5 {
                let begin = meter::own_cpu()?;
                parsed.iter().try_for_each(one)?;
                least = least.min(meter::own_cpu()? - begin);
            }
            Ok::<f64, String>(least as f64 / 1e3 / parsed.len() as f64)
        };
        let hashed = |job: &JobRequest| {
            std::hint::black_box(job.signed_hash(0));
            Ok(())
        };
        Ok(VerifyCost { whole: least(&|job| job.verify(&self.trusted))?, hash: least(&hashed)? })
    }
}

/// CPU microseconds of one check.
#[derive(Clone, Copy)]
pub struct VerifyCost {
    /// Everything.
    pub whole: f64,
    /// The canonical bytes and their hash alone.
    pub hash: f64,
}
