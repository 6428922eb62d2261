//! Whether a job request may run: who has signed it, and when. Pure: it takes `now`.
//!
//! [`Authorized`] is what dispatch demands, and only [`Signers`] makes one. That its signature runs one job only is the
//! ledger's to say, because that outlives the process: see `ledger::queue`. Workers on other machines, which have no
//! ledger, ask Redis: see `jobs::remote`.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::base::limits::JOB_UUID_BYTES;
use crate::base::text::truncate;
use crate::identity::PublicKey;
use crate::protocol::signing::verify_job_requests;
use crate::protocol::{SignedRequest, V2JobRequest};

/// How old the signature of a job may be, unless the configuration says otherwise: the SDK signs as it submits, and a
/// facilitator may hold the job while its validator restarts.
pub const MAX_SIGNATURE_AGE: Duration = Duration::from_secs(3600);

/// The longest that a signature may count: what is remembered of it has to fit, see
/// [`SIGNED_JOBS`](crate::base::limits::SIGNED_JOBS).
const LONGEST_SIGNATURE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How far ahead of our clock a signature may be: as far as the clock of a user's machine may be wrong.
pub const SIGNATURE_AHEAD: Duration = Duration::from_secs(300);

/// Bytes of why a request is refused: parts of it are the request's own.
const WHY_BYTES: usize = 500;

/// What tells a signature from all others: its 64 bytes. They cannot be changed without the key, so there is one
/// signature for each time that somebody signed.
pub type SignatureId = [u8; 64];

/// A job request with a good, fresh signature of somebody who may sign jobs for this validator.
#[derive(Debug, Clone)]
pub struct Authorized {
    request: Arc<V2JobRequest>,
    signer: PublicKey,
    signature: SignatureId,
    signed_at: u64,
}

impl Authorized {
    /// The request.
    pub fn request(&self) -> &Arc<V2JobRequest> {
        &self.request
    }

    /// Who signed it.
    pub fn signer(&self) -> PublicKey {
        self.signer
    }

    /// Its signature.
    pub fn signature(&self) -> &SignatureId {
        &self.signature
    }

    /// When it was signed, in whole milliseconds since 1970.
    pub fn signed_at(&self) -> u64 {
        self.signed_at
    }
}

/// For tests of what takes one.
#[cfg(test)]
impl Authorized {
    pub(super) fn sample(uuid: &str, signer: PublicKey, signature: SignatureId, signed_at: u64) -> Self {
        Self { request: Arc::new(tests::job(uuid)), signer, signature, signed_at }
    }
}

impl Deref for Authorized {
    type Target = V2JobRequest;

    fn deref(&self) -> &V2JobRequest {
        &self.request
    }
}

/// A job request that may not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unauthorized {
    /// Its job.
    pub uuid: String,
    /// Why, in words.
    pub why: String,
}

/// What is wrong with a configured age of signatures, in words.
pub fn problem_of_age(max_signature_age: Duration) -> Option<String> {
    let (age, most) = (max_signature_age.as_secs_f64(), LONGEST_SIGNATURE_AGE.as_secs());
    (max_signature_age.is_zero() || max_signature_age > LONGEST_SIGNATURE_AGE)
        .then(|| format!("max_signature_age is {age} s; it should be above 0 and at most {most} s (30 days)"))
}

/// The latest that the signature of a job may be of which came at `taken_at`; both in milliseconds since 1970.
pub fn latest_signed_at(taken_at: u64) -> u64 {
    taken_at.saturating_add(u64::try_from(SIGNATURE_AHEAD.as_millis()).unwrap_or(u64::MAX))
}

/// The last millisecond in which a signature counts, and so has to be remembered, if it may be as old as `max_age`.
pub fn counts_until(signed_at: u64, max_age: Duration) -> u64 {
    let age = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
    // Less than a millisecond was cut from each.
    signed_at.saturating_add(age).saturating_add(1)
}

/// Who may sign for a validator, and when.
#[derive(Debug, Clone)]
pub struct Signers {
    key: PublicKey,
    trusted: Vec<PublicKey>,
    max_age: Duration,
}

impl Signers {
    /// Signatures of `key` and of `trusted` count, for so long.
    pub fn new(key: PublicKey, trusted: Vec<PublicKey>, max_age: Duration) -> Self {
        Self { key, trusted, max_age }
    }

    /// `signer`, if its signature counts for what it has signed, as `jobs`.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check(&self, signer: PublicKey, what: &str) -> Result<PublicKey, String> {
        match signer == self.key || self.trusted.contains(&signer) {
            true => Ok(signer),
            false => Err(format!("{signer} may not sign {what} for this validator")),
        }
    }

    /// Checks the signatures of the requests, all at once; `now` is the wall clock since 1970. Works as long as that
    /// takes, see [`verify_job_requests`].
    ///
    /// Each request gets its verdict, in their order.
    pub fn authorize(&self, requests: Vec<V2JobRequest>, now: Duration) -> Vec<Result<Authorized, Unauthorized>> {
        let signers = verify_job_requests(&requests);
        let judged = requests.into_iter().zip(signers).map(|(request, signer)| {
            let signer = signer.map_err(|error| error.to_string()).and_then(|signer| self.check(signer, "jobs"));
            let judged = signer.and_then(|signer| Ok((signer, self.times(&request, now)?)));
            match judged {
                Ok((signer, (signature, signed_at))) => {
                    Ok(Authorized { request: Arc::new(request), signer, signature, signed_at })
                }
                Err(mut why) => {
                    truncate(&mut why, WHY_BYTES);
                    Err(Unauthorized { uuid: request.uuid, why })
                }
            }
        });
        judged.collect()
    }

    /// As [`Signers::authorize`], for one request that others may have held for so long since they checked it.
    ///
    /// # Errors
    /// [`Unauthorized`].
    pub fn authorize_held(
        &self,
        request: V2JobRequest,
        held: Duration,
        now: Duration,
    ) -> Result<Authorized, Unauthorized> {
        let later = Self { max_age: self.max_age.saturating_add(held), ..self.clone() };
        later.authorize(vec![request], now).pop().expect("there is a verdict on each")
    }

    /// The signature of what is signed and its time, in whole milliseconds since 1970; `now` is the wall clock.
    ///
    /// # Errors
    /// It is too old or of the future; in words.
    pub fn times(&self, request: &impl SignedRequest, now: Duration) -> Result<(SignatureId, u64), String> {
        let signature = request.signature().ok_or("the message is not signed")?;
        let id = SignatureId::try_from(signature.signature.0.as_slice()).map_err(|_| "a signature is 64 bytes long")?;
        let signed = signature.timestamp_ns.as_u64().map(Duration::from_nanos).ok_or("the signature has no time")?;
        if let Some(age) = now.checked_sub(signed).filter(|age| *age > self.max_age) {
            let (age, most) = (age.as_secs(), self.max_age.as_secs());
            return Err(format!(
                "the signature is {age} s old, at most {most} s are allowed; sign and submit it again"
            ));
        }
        if let Some(ahead) = signed.checked_sub(now).filter(|ahead| *ahead > SIGNATURE_AHEAD) {
            let (ahead, most) = (ahead.as_secs(), SIGNATURE_AHEAD.as_secs());
            return Err(format!(
                "the signature is {ahead} s ahead of this validator's clock, at most {most} s are allowed"
            ));
        }
        Ok((id, u64::try_from(signed.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Whether the uuid of a job is of a length that one may have: it is remembered, logged and answered with.
pub fn is_uuid_of_job(uuid: &str) -> bool {
    uuid.len() <= JOB_UUID_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::KeyPair;
    use crate::protocol::{FacilitatorToValidator, Int};

    const HOUR: Duration = Duration::from_secs(3600);
    const NOW: Duration = Duration::from_secs(1_764_439_999);

    fn key(uri: &str) -> KeyPair {
        KeyPair::from_uri(uri).unwrap()
    }

    fn signers() -> Signers {
        Signers::new(key("//Validator").public(), vec![key("//User").public()], HOUR)
    }

    pub(super) fn job(uuid: &str) -> V2JobRequest {
        let text = r#"{"message_type":"V2JobRequest","uuid":"u","executor_class":"always_on.test","docker_image":"i",
            "args":[],"env":{},"download_time_limit":1,"execution_time_limit":2,"upload_time_limit":3,
            "streaming_start_time_limit":4}"#;
        let Ok(FacilitatorToValidator::V2JobRequest(job)) = FacilitatorToValidator::decode(text) else {
            panic!("a job")
        };
        V2JobRequest { uuid: uuid.to_owned(), ..job }
    }

    fn signed(uuid: &str, by: &str, at: Duration) -> V2JobRequest {
        let mut job = job(uuid);
        job.sign(&key(by), u64::try_from(at.as_nanos()).unwrap());
        job
    }

    fn refusal(request: V2JobRequest) -> String {
        signers().authorize(vec![request], NOW).pop().unwrap().map(|_| ()).unwrap_err().why
    }

    #[test]
    fn only_fresh_signatures_of_those_who_may_sign_are_authorized() {
        let second = Duration::from_secs(1);
        for (by, at) in
            [("//User", NOW), ("//Validator", NOW), ("//User", NOW - HOUR), ("//User", NOW + SIGNATURE_AHEAD)]
        {
            let authorized = signers().authorize(vec![signed("u", by, at)], NOW).pop().unwrap().unwrap();
            assert_eq!(authorized.signer(), key(by).public());
            assert_eq!(u128::from(authorized.signed_at()), at.as_millis());
            assert_eq!(authorized.uuid, "u");
        }
        let old = "the signature is 3601 s old, at most 3600 s are allowed; sign and submit it again";
        assert_eq!(refusal(signed("u", "//User", NOW - HOUR - second)), old);
        assert!(refusal(signed("u", "//User", second)).starts_with("the signature is 1764439998 s old"), "of 1970");
        let ahead = "the signature is 301 s ahead of this validator's clock, at most 300 s are allowed";
        assert_eq!(refusal(signed("u", "//User", NOW + SIGNATURE_AHEAD + second)), ahead);
        assert!(refusal(signed("u", "//User", Duration::from_nanos(u64::MAX))).contains("ahead of"));
        assert!(refusal(signed("u", "//Eve", NOW)).ends_with("may not sign jobs for this validator"));
        assert_eq!(refusal(job("u")), "the message is not signed");
        let mut forged = signed("u", "//User", NOW);
        forged.docker_image = "other".to_owned();
        assert!(refusal(forged).contains("is not by"), "another payload");
        let mut moved = signed("u", "//User", NOW - HOUR - HOUR);
        moved.signature.as_mut().unwrap().timestamp_ns = Int::from(i64::try_from(NOW.as_nanos()).unwrap());
        assert!(refusal(moved).contains("is not by"), "the time is signed");
        let mut long = signed("u", "//User", NOW);
        long.signature.as_mut().unwrap().timestamp_ns = "9".repeat(4000).parse().unwrap();
        assert!(refusal(long).len() <= WHY_BYTES);
    }

    #[test]
    fn each_of_many_gets_its_own_verdict() {
        let requests =
            vec![signed("a", "//User", NOW), job("b"), signed("c", "//Eve", NOW), signed("d", "//User", NOW)];
        let verdicts = signers().authorize(requests, NOW);
        let shown: Vec<_> = verdicts
            .iter()
            .map(|verdict| match verdict {
                Ok(job) => (job.uuid.as_str(), true),
                Err(refused) => (refused.uuid.as_str(), false),
            })
            .collect();
        assert_eq!(shown, [("a", true), ("b", false), ("c", false), ("d", true)]);
    }

    #[test]
    fn what_others_have_held_may_be_older_by_that_and_is_remembered_as_long_as_it_counts() {
        let millisecond = Duration::from_millis(1);
        let held = Duration::from_secs(60);
        let at = NOW + Duration::from_nanos(1_999_999);
        let authorize = |now| signers().authorize_held(signed("u", "//User", at), held, now);
        let signed_at = authorize(at).unwrap().signed_at();
        let last = at + HOUR + held;
        assert!(authorize(last).is_ok());
        let why = authorize(last + Duration::from_secs(1)).unwrap_err().why;
        assert_eq!(why, "the signature is 3661 s old, at most 3660 s are allowed; sign and submit it again");
        let until = counts_until(signed_at, HOUR + held);
        assert!(u128::from(until) >= last.as_millis(), "{until}");
        assert!(authorize(Duration::from_millis(until) + millisecond).is_err(), "and no longer");
        assert_eq!(counts_until(u64::MAX, Duration::MAX), u64::MAX);
    }
}
