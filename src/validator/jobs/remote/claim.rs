//! Which job a signature has run, as Redis remembers it for all workers. Pure.
//!
//! A worker claims the signature for its job before it begins it. Another job by that signature is then refused, on any
//! worker; the same job may be begun again, because a worker may be lost with it, until it has ended. A claim is kept
//! for as long as its signature counts. One has some 300 bytes in Redis, and only who may sign jobs can cause one.

use std::time::{Duration, Instant};

use redis::{FromRedisValue, Value};

use super::call::job_key;
use crate::base::now::Now;
use crate::identity::{PublicKey, Signature};
use crate::redis::{RedisError, Repeat, Request};
use crate::validator::authorization::{Authorized, counts_until};

/// Before the uuid of a job that may go on.
const BEGUN: &str = "begun:";

/// Before the uuid of a job that has ended.
const ENDED: &str = "ended:";

/// The key of the claim on a signature.
fn claim_key(job: &Authorized) -> String {
    format!("phalanx.signature.{}", Signature::from_bytes(*job.signature()).to_hex())
}

/// What Redis says of a job before it is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    /// Its front waits for it. Nobody says so of a job of a producer that is no front.
    pub wanted: bool,
    /// The miner that had it before.
    pub miner: Option<PublicKey>,
    /// Whose its signature is; `None` if that was not asked for.
    pub claim: Option<Claim>,
}

/// Whose a signature is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// This job's, which may run.
    Ours,
    /// This job's, which has ended.
    Ended,
    /// That of the job with this uuid.
    Anothers(String),
}

/// Asks whether the job is wanted, and claims its signature, that counts for `max_age`, if it is a good one. Repeated,
/// it does and says the same.
pub(super) fn begin(uuid: &str, signed: Option<(&Authorized, Duration)>, now: Now, deadline: Instant) -> Request {
    let request = Request::new(Repeat::Idempotent, deadline);
    let request = request.command(redis::cmd("HMGET").arg(job_key(uuid)).arg("front").arg("miner"));
    let Some((job, max_age)) = signed else { return request };
    let (key, left) = (claim_key(job), counts_until(job.signed_at(), max_age).saturating_sub(now.unix_millis()));
    // One that has just been checked counts for a moment more.
    let left = left.max(1);
    request
        .command(redis::cmd("SET").arg(&key).arg(format!("{BEGUN}{uuid}")).arg("NX").arg("PX").arg(left))
        .command(redis::cmd("GET").arg(&key))
}

/// What Redis answers to [`begin`].
///
/// # Errors
/// [`RedisError`], if it is no such answer, or if the claim has just gone: it is to be asked again.
pub(super) fn known(uuid: &str, answer: Vec<Value>) -> Result<Known, RedisError> {
    let mut answer = answer.into_iter();
    let wanted = answer.next().unwrap_or_default();
    let (front, miner) = <(Option<String>, Option<String>)>::from_redis_value(wanted)?;
    let claim = match answer.nth(1) {
        None => None,
        Some(value) => Some(claim(uuid, &String::from_redis_value(value)?)),
    };
    let miner = miner.and_then(|miner| PublicKey::from_ss58(&miner).ok());
    Ok(Known { wanted: front.is_some(), miner, claim })
}

fn claim(uuid: &str, value: &str) -> Claim {
    if value.strip_prefix(BEGUN) == Some(uuid) {
        return Claim::Ours;
    }
    match value.strip_prefix(ENDED) {
        Some(ended) if ended == uuid => Claim::Ended,
        Some(other) => Claim::Anothers(other.to_owned()),
        None => Claim::Anothers(value.strip_prefix(BEGUN).unwrap_or(value).to_owned()),
    }
}

/// Notes that the job has ended: nothing begins it again by its signature.
pub(super) fn end(job: &Authorized, deadline: Instant) -> Request {
    let value = format!("{ENDED}{}", job.uuid);
    let set = redis::cmd("SET").arg(claim_key(job)).arg(value).arg("XX").arg("KEEPTTL").to_owned();
    Request::idempotent(&set, deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn a_signature_is_of_one_job_until_that_has_ended() {
        let wanted = Value::Array(vec![bulk("front"), Value::Nil]);
        let claim = |value: &str| {
            let known = known("a", vec![wanted.clone(), Value::Nil, bulk(value)]).unwrap();
            assert!(known.wanted);
            known.claim.unwrap()
        };
        assert_eq!(claim("begun:a"), Claim::Ours);
        assert_eq!(claim("ended:a"), Claim::Ended);
        for other in ["begun:b", "ended:b"] {
            assert_eq!(claim(other), Claim::Anothers("b".to_owned()));
        }
        assert_eq!(claim("a"), Claim::Anothers("a".to_owned()), "what nobody of us has written claims it all the same");
        let nobody = Value::Array(vec![Value::Nil, Value::Nil]);
        assert_eq!(known("a", vec![nobody.clone()]).unwrap(), Known { wanted: false, miner: None, claim: None });
        // It went between the two commands: whoever asks once more makes one.
        assert!(known("a", vec![nobody, Value::Nil, Value::Nil]).is_err());
    }
}
