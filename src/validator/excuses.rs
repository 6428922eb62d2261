//! Whether a miner that declines a job as busy is excused: by the receipts of the jobs that keep it busy. Pure.
//!
//! An excuse is a started-receipt that a known validator has signed for a job of the same class on that miner, which
//! ran when the declined job was asked for. A miner is excused if it shows as many as it has executors of the class
//! by its own manifest. This is how the Python validator judges, with its times. For a job of a batch only receipts
//! of organic jobs count; an organic job may be declined for either.

use std::collections::HashSet;

use crate::identity::PublicKey;
use crate::protocol::{DateTime, ExecutorClass, JobRejectionReason, Receipt, ReceiptPayload, V0DeclineJobRequest};

/// How long after its end a receipt excuses: for clocks that disagree, and for a job that is asked for while the miner
/// is still told of the end of another.
const LEEWAY_US: i64 = 2_000_000;

/// Signatures of one refusal that may fail: no more receipts are looked at then, because each costs some 40 µs. A miner
/// checks a started-receipt before it takes the job, so an honest one shows none that fails, and loses nothing here.
const BAD_SIGNATURES: usize = 16;

/// The job that was declined.
#[derive(Debug, Clone, Copy)]
pub struct Declined<'a> {
    /// Its uuid.
    pub job_uuid: &'a str,
    /// On what it was to run.
    pub class: ExecutorClass,
    /// Who declined it.
    pub miner: PublicKey,
    /// When it was asked for: the time of its started-receipt.
    pub asked_at: DateTime,
    /// Whether a user wants it.
    pub is_organic: bool,
    /// Executors of the class by the miner's manifest.
    pub executors: i64,
}

/// What a refusal is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is busy, and has shown with what.
    Excused {
        /// The receipts that count.
        receipts: Vec<usize>,
    },
    /// It says that it is busy, and has not shown with what.
    NotExcused {
        /// How many of its receipts count.
        counted: usize,
        /// How many are needed.
        needed: i64,
        /// Why the first that does not count does not.
        why: Option<&'static str>,
    },
    /// It declined for another reason, which no receipt excuses.
    NotBusy,
}

impl Verdict {
    /// Whether the refusal does not count against the miner.
    pub fn is_excused(&self) -> bool {
        matches!(self, Self::Excused { .. })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Excused { receipts } => write!(f, "excused by {} receipts", receipts.len()),
            Self::NotExcused { counted, needed, why } => {
                write!(f, "not excused: {counted} receipts of {needed} executors count")?;
                why.map_or(Ok(()), |why| write!(f, ", one is {why}"))
            }
            Self::NotBusy => f.write_str("not excused: it is not busy"),
        }
    }
}

/// Judges a refusal; `is_known` says whether jobs of a validator excuse. It checks at most one signature for each
/// executor, and 16 that fail; a second receipt of a job that counts already costs none.
pub fn judge(decline: &V0DeclineJobRequest, declined: &Declined<'_>, is_known: impl Fn(&PublicKey) -> bool) -> Verdict {
    judge_knowing(decline, declined, is_known, |_| false)
}

/// As [`judge`], where `is_not_running` says of which jobs it is known that they do not run on the miner: it has a
/// started-receipt of each that it was asked for, and a job that it did not take, or that has ended, keeps no executor
/// busy. No miner that is busy shows one.
pub fn judge_knowing(
    decline: &V0DeclineJobRequest,
    declined: &Declined<'_>,
    is_known: impl Fn(&PublicKey) -> bool,
    is_not_running: impl Fn(&str) -> bool,
) -> Verdict {
    if decline.reason != JobRejectionReason::Busy {
        return Verdict::NotBusy;
    }
    // A signature costs more than all else, and no more are needed than it has executors.
    let needed = usize::try_from(declined.executors.max(1)).unwrap_or(usize::MAX);
    let (mut jobs, mut receipts, mut why, mut bad) = (HashSet::new(), Vec::new(), None, 0);
    for (n, receipt) in decline.receipts.iter().enumerate() {
        if receipts.len() >= needed || bad >= BAD_SIGNATURES {
            break;
        }
        let fault = match excuses_if_signed(receipt, declined, &is_known) {
            Ok(uuid) if is_not_running(uuid) => "of a job that does not run there",
            Ok(uuid) if jobs.contains(uuid) => "of the same job as another",
            Ok(_) if receipt.verify_validator().is_err() => {
                bad += 1;
                "not signed by its validator"
            }
            Ok(uuid) => {
                jobs.insert(uuid);
                receipts.push(n);
                continue;
            }
            Err(fault) => fault,
        };
        why.get_or_insert(fault);
    }
    match receipts.len() >= needed {
        true => Verdict::Excused { receipts },
        false => Verdict::NotExcused { counted: receipts.len(), needed: declined.executors, why },
    }
}

/// The job that a receipt tells of, if that excuses once its validator has signed it, which is not checked here.
///
/// # Errors
/// What the receipt is instead.
fn excuses_if_signed<'r>(
    receipt: &'r Receipt,
    declined: &Declined<'_>,
    is_known: &impl Fn(&PublicKey) -> bool,
) -> Result<&'r str, &'static str> {
    let ReceiptPayload::JobStarted(payload) = &receipt.payload else { return Err("no started-receipt") };
    if payload.miner_hotkey != declined.miner.to_ss58() {
        return Err("of another miner");
    }
    if payload.job_uuid == declined.job_uuid {
        return Err("of the declined job itself");
    }
    if payload.executor_class != declined.class {
        return Err("of another class");
    }
    if !declined.is_organic && !payload.is_organic {
        return Err("of a synthetic job");
    }
    let (written, asked) = (payload.timestamp.unix_micros(), declined.asked_at.unix_micros());
    if written >= asked {
        return Err("younger than the declined job");
    }
    if asked >= written.saturating_add(payload.ttl.saturating_mul(1_000_000)).saturating_add(LEEWAY_US) {
        return Err("of a job whose time was over");
    }
    let validator = PublicKey::from_ss58(&payload.validator_hotkey).map_err(|_| "of no validator")?;
    if !is_known(&validator) {
        return Err("of a validator that is not known");
    }
    Ok(&payload.job_uuid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::KeyPair;
    use crate::protocol::JobStartedReceiptPayload;

    const CLASS: ExecutorClass = ExecutorClass::AlwaysOnTest;
    const ASKED: i64 = 1_764_439_999_000_000;
    const JOB: &str = "00000000-0000-4000-8000-000000000000";

    fn key(uri: &str) -> KeyPair {
        KeyPair::from_uri(uri).unwrap()
    }

    fn at(micros: i64) -> DateTime {
        DateTime::from_unix_micros(micros)
    }

    /// A good excuse: a job that began five seconds before, for half a minute.
    fn payload(n: u8) -> JobStartedReceiptPayload {
        JobStartedReceiptPayload {
            job_uuid: format!("00000000-0000-4000-8000-0000000000{n:02}"),
            miner_hotkey: key("//Miner").ss58(),
            validator_hotkey: key("//Validator").ss58(),
            timestamp: at(ASKED - 5_000_000),
            executor_class: CLASS,
            is_organic: true,
            ttl: 30,
        }
    }

    fn signed(payload: JobStartedReceiptPayload, by: &str) -> Receipt {
        let validator_signature = payload.sign(&key(by));
        let miner_signature = payload.sign(&key("//Miner"));
        Receipt { payload: payload.into(), validator_signature, miner_signature }
    }

    fn verdict(receipts: Vec<Receipt>, change: impl FnOnce(&mut Declined<'_>)) -> Verdict {
        let decline = V0DeclineJobRequest {
            job_uuid: JOB.to_owned(),
            message: "busy".to_owned(),
            reason: JobRejectionReason::Busy,
            receipts,
            context: None,
        };
        let mut declined = Declined {
            job_uuid: JOB,
            class: CLASS,
            miner: key("//Miner").public(),
            asked_at: at(ASKED),
            is_organic: true,
            executors: 1,
        };
        change(&mut declined);
        let known = [key("//Validator").public(), key("//Other").public()];
        judge(&decline, &declined, |validator| known.contains(validator))
    }

    #[test]
    fn as_many_receipts_as_executors_excuse() {
        let good = |n| signed(payload(n), "//Validator");
        let other =
            signed(JobStartedReceiptPayload { validator_hotkey: key("//Other").ss58(), ..payload(2) }, "//Other");
        assert_eq!(verdict(vec![good(1)], |_| {}), Verdict::Excused { receipts: vec![0] });
        let two = |declined: &mut Declined<'_>| declined.executors = 2;
        assert_eq!(verdict(vec![good(1), other.clone()], two), Verdict::Excused { receipts: vec![0, 1] });
        let lacking = verdict(vec![good(1)], two);
        assert_eq!(lacking, Verdict::NotExcused { counted: 1, needed: 2, why: None });
        assert_eq!(lacking.to_string(), "not excused: 1 receipts of 2 executors count");
        let twice = verdict(vec![good(1), good(1)], two);
        let why = Some("of the same job as another");
        assert_eq!(twice, Verdict::NotExcused { counted: 1, needed: 2, why });
        // One that does not count takes nothing from those that do.
        let bad = signed(payload(3), "//Eve");
        assert!(verdict(vec![bad, good(1), other], two).is_excused());
    }

    #[test]
    fn signatures_that_fail_end_the_search_and_a_job_that_counts_has_one_signature_checked() {
        let good = |n| signed(payload(n), "//Validator");
        let two = |declined: &mut Declined<'_>| declined.executors = 2;
        let with_bad = |bad: usize| {
            let bad = (0..bad).map(|n| signed(payload(10 + u8::try_from(n).unwrap()), "//Eve"));
            verdict(bad.chain([good(1), good(2)]).collect(), two)
        };
        assert!(with_bad(BAD_SIGNATURES - 1).is_excused());
        let why = Some("not signed by its validator");
        assert_eq!(with_bad(BAD_SIGNATURES), Verdict::NotExcused { counted: 0, needed: 2, why });
        // Were theirs checked, the others would end the search before the second job.
        let same = std::iter::repeat_n(signed(payload(1), "//Eve"), 2 * BAD_SIGNATURES);
        let receipts: Vec<_> = [good(1)].into_iter().chain(same).chain([good(2)]).collect();
        assert_eq!(verdict(receipts, two), Verdict::Excused { receipts: vec![0, 2 * BAD_SIGNATURES + 1] });
        // A forged receipt of a job does not stand for the real one.
        assert!(verdict(vec![signed(payload(1), "//Eve"), good(1)], |_| {}).is_excused());
    }

    #[test]
    fn a_job_that_does_not_run_on_the_miner_excuses_no_other() {
        let decline = |receipts| V0DeclineJobRequest {
            job_uuid: JOB.to_owned(),
            message: "busy".to_owned(),
            reason: JobRejectionReason::Busy,
            receipts,
            context: None,
        };
        let declined = Declined {
            job_uuid: JOB,
            class: CLASS,
            miner: key("//Miner").public(),
            asked_at: at(ASKED),
            is_organic: true,
            executors: 1,
        };
        let judge =
            |receipts| judge_knowing(&decline(receipts), &declined, |_| true, |uuid| uuid == payload(1).job_uuid);
        let [declined_before, runs] = [1, 2].map(|n| signed(payload(n), "//Validator"));
        let why = Some("of a job that does not run there");
        assert_eq!(judge(vec![declined_before.clone()]), Verdict::NotExcused { counted: 0, needed: 1, why });
        assert_eq!(judge(vec![declined_before, runs]), Verdict::Excused { receipts: vec![1] });
    }

    #[test]
    fn none_is_needed_of_a_miner_that_declares_none_but_a_miner_without_any_is_not_excused() {
        let none = |declined: &mut Declined<'_>| declined.executors = 0;
        assert!(!verdict(Vec::new(), none).is_excused());
        assert!(!verdict(Vec::new(), |_| {}).is_excused());
    }

    #[test]
    fn each_thing_that_is_wrong_with_a_receipt_is_named() {
        type Change = fn(&mut JobStartedReceiptPayload);
        let second = 1_000_000;
        let cases: [(Change, &str); 8] = [
            (|p| p.miner_hotkey = key("//Bob").ss58(), "of another miner"),
            (|p| p.job_uuid = JOB.to_owned(), "of the declined job itself"),
            (|p| p.executor_class = ExecutorClass::AlwaysOnGpu24gb, "of another class"),
            (|p| p.timestamp = at(ASKED), "younger than the declined job"),
            (|p| p.timestamp = at(ASKED + 1), "younger than the declined job"),
            (|p| p.timestamp = at(ASKED - 32_000_000), "of a job whose time was over"),
            (|p| p.validator_hotkey = "5Nobody".to_owned(), "of no validator"),
            (|p| p.validator_hotkey = key("//Eve").ss58(), "of a validator that is not known"),
        ];
        for (change, why) in cases {
            let mut payload = payload(1);
            change(&mut payload);
            let verdict = verdict(vec![signed(payload, "//Validator")], |_| {});
            assert_eq!(verdict, Verdict::NotExcused { counted: 0, needed: 1, why: Some(why) });
        }
        let why = |receipt: Receipt| match verdict(vec![receipt], |_| {}) {
            Verdict::NotExcused { why: Some(why), .. } => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(why(signed(payload(1), "//Eve")), "not signed by its validator");
        let mut changed = signed(payload(1), "//Validator");
        if let ReceiptPayload::JobStarted(payload) = &mut changed.payload {
            payload.ttl = 31;
        }
        assert_eq!(why(changed), "not signed by its validator");
        // Just within its time, and the two seconds.
        let last = JobStartedReceiptPayload { timestamp: at(ASKED - 32 * second + 1), ..payload(1) };
        assert!(verdict(vec![signed(last, "//Validator")], |_| {}).is_excused());
    }

    #[test]
    fn a_synthetic_job_is_excused_by_organic_ones_only_and_only_busy_is_excused() {
        let synthetic = JobStartedReceiptPayload { is_organic: false, ..payload(1) };
        let receipts = vec![signed(synthetic, "//Validator")];
        assert!(verdict(receipts.clone(), |_| {}).is_excused());
        let refused = verdict(receipts.clone(), |declined| declined.is_organic = false);
        assert_eq!(refused, Verdict::NotExcused { counted: 0, needed: 1, why: Some("of a synthetic job") });
        let decline = V0DeclineJobRequest {
            job_uuid: JOB.to_owned(),
            message: String::new(),
            reason: JobRejectionReason::ValidatorBlacklisted,
            receipts,
            context: None,
        };
        let declined = Declined {
            job_uuid: JOB,
            class: CLASS,
            miner: key("//Miner").public(),
            asked_at: at(ASKED),
            is_organic: true,
            executors: 1,
        };
        assert_eq!(judge(&decline, &declined, |_| true), Verdict::NotBusy);
    }
}
