//! What is known of one job, and its form on disk. Pure.
//!
//! A record is one row of the journal: everything that must outlive the process for this job. Numbers are
//! little-endian, texts are a length and UTF-8; times are milliseconds since 1970.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::identity::PublicKey;
use crate::protocol::JobStatus;
use crate::transport::Utf8Bytes;
use crate::validator::authorization::{SignatureId, latest_signed_at};

/// The first byte of a record, so that a later release can tell its own form.
const FORM: u8 = 4;

/// The form of earlier releases: without [`JobRecord::on_trusted`] and [`JobRecord::signed`].
const FORM_1: u8 = 1;

/// The same, without [`JobRecord::signed`] only.
const FORM_2: u8 = 2;

/// The same, with the time from which on a signature was too old then, in place of [`Signed::signed_at`].
const FORM_3: u8 = 3;

/// All that is kept of one job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// The job's uuid, as the facilitator wrote it.
    pub uuid: Arc<str>,
    /// When its request came.
    pub taken_at: u64,
    /// Whether it asks for a trusted miner, and so runs on none but those.
    pub on_trusted: bool,
    /// Its signature, once that was found good.
    pub signed: Option<Signed>,
    /// A release took it that kept no signatures: it has one that is not known.
    pub signature_lost: bool,
    /// The miner that accepted it.
    pub miner: Option<PublicKey>,
    /// When its miner was reported for cheating on it.
    pub cheated_at: Option<u64>,
    /// The newest status that was accepted from the job.
    pub last: Option<JobStatus>,
    /// The job has its terminal status.
    pub ended: bool,
    /// Updates that the facilitator has not accepted, oldest first.
    pub updates: VecDeque<Update>,
    /// Updates that were given up.
    pub dead: Vec<DeadLetter>,
}

/// By which signature a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed {
    /// Who signed it.
    pub by: PublicKey,
    /// The signature.
    pub signature: SignatureId,
    /// When.
    pub signed_at: u64,
}

/// One status update on its way to the facilitator.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The status.
    pub status: JobStatus,
    /// When it was accepted from the job.
    pub queued_at: u64,
    /// The message.
    pub text: Utf8Bytes,
    /// Its number among all accepted updates of this process; not on disk, where everything is written.
    pub version: u64,
}

/// An update that was given up.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The update.
    pub update: Update,
    /// Why, in words.
    pub reason: String,
    /// When.
    pub at: u64,
}

/// The bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a job record: {0}")]
pub struct NotARecord(&'static str);

impl JobRecord {
    /// A job without any update yet.
    pub fn new(uuid: Arc<str>, taken_at: u64) -> Self {
        Self {
            uuid,
            taken_at,
            on_trusted: false,
            signed: None,
            signature_lost: false,
            miner: None,
            cheated_at: None,
            last: None,
            ended: false,
            updates: VecDeque::new(),
            dead: Vec::new(),
        }
    }

    /// Whether the facilitator has the job's terminal status: a status after that would move the job backwards.
    pub fn is_end_stored(&self) -> bool {
        let mut kept = self.updates.iter().chain(self.dead.iter().map(|letter| &letter.update));
        self.ended && !kept.any(|update| update.status.is_terminal())
    }

    /// Puts the dead letters back among the updates that wait, in the order of the statuses; gives how many. None, if
    /// [`JobRecord::is_end_stored`].
    pub fn revive(&mut self) -> usize {
        if self.is_end_stored() {
            return 0;
        }
        let revived = self.dead.len();
        self.updates.extend(self.dead.drain(..).map(|letter| letter.update));
        self.updates.make_contiguous().sort_by_key(|update| update.status.rank());
        revived
    }

    /// The record as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let texts = self.updates.iter().chain(self.dead.iter().map(|d| &d.update));
        let mut out = Vec::with_capacity(128 + texts.map(|u| u.text.len() + 32).sum::<usize>());
        out.push(FORM);
        text(&mut out, &self.uuid);
        number(&mut out, self.taken_at);
        out.push(u8::from(self.on_trusted));
        out.push(if self.signature_lost { 2 } else { u8::from(self.signed.is_some()) });
        if let Some(Signed { by, signature, signed_at }) = self.signed.as_ref().filter(|_| !self.signature_lost) {
            out.extend_from_slice(by.as_bytes());
            out.extend_from_slice(signature);
            number(&mut out, *signed_at);
        }
        out.push(u8::from(self.miner.is_some()));
        if let Some(miner) = &self.miner {
            out.extend_from_slice(miner.as_bytes());
        }
        number(&mut out, self.cheated_at.unwrap_or(0));
        text(&mut out, self.last.map_or("", |status| status.as_str()));
        out.push(u8::from(self.ended));
        number(&mut out, self.updates.len() as u64);
        self.updates.iter().for_each(|u| update(&mut out, u));
        number(&mut out, self.dead.len() as u64);
        for dead in &self.dead {
            update(&mut out, &dead.update);
            text(&mut out, &dead.reason);
            number(&mut out, dead.at);
        }
        out
    }

    /// Reads what [`JobRecord::encode`] wrote.
    ///
    /// # Errors
    /// [`NotARecord`], if the bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotARecord> {
        let mut input = Input(bytes);
        let form = input.byte()?;
        if !(FORM_1..=FORM).contains(&form) {
            return Err(NotARecord("of a form that this release does not know"));
        }
        let uuid = Arc::from(input.text()?);
        let taken_at = input.number()?;
        let on_trusted = form != FORM_1 && input.byte()? != 0;
        let kind = if form <= FORM_2 { 2 } else { input.byte()? };
        let signed = match kind {
            1 => Some(Signed { by: input.key()?, signature: input.bytes()?, signed_at: input.number()? }),
            _ => None,
        };
        // For how long signatures counted then, is not known. None is of later than it may be ahead of our clock.
        let latest = if form == FORM_3 { latest_signed_at(taken_at) } else { u64::MAX };
        let signed = signed.map(|signed| Signed { signed_at: signed.signed_at.min(latest), ..signed });
        let miner = match input.byte()? {
            0 => None,
            _ => Some(input.key()?),
        };
        let cheated_at = Some(input.number()?).filter(|at| *at > 0);
        let last = match input.text()? {
            "" => None,
            name => Some(status(name)?),
        };
        let ended = input.byte()? != 0;
        let updates = (0..input.number()?).map(|_| input.update()).collect::<Result<_, _>>()?;
        let mut dead = Vec::new();
        for _ in 0..input.number()? {
            dead.push(DeadLetter { update: input.update()?, reason: input.text()?.to_owned(), at: input.number()? });
        }
        match input.0 {
            [] => Ok(Self {
                uuid,
                taken_at,
                on_trusted,
                signed,
                signature_lost: kind == 2,
                miner,
                cheated_at,
                last,
                ended,
                updates,
                dead,
            }),
            _ => Err(NotARecord("longer than it says")),
        }
    }
}

fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn update(out: &mut Vec<u8>, update: &Update) {
    text(out, update.status.as_str());
    number(out, update.queued_at);
    text(out, &update.text);
}

fn status(name: &str) -> Result<JobStatus, NotARecord> {
    let known = JobStatus::ALL.iter().find(|status| status.as_str() == name);
    known.copied().ok_or(NotARecord("a status that this release does not know"))
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], NotARecord> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(NotARecord("truncated"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], NotARecord> {
        Ok(self.take(N)?.try_into().expect("so many bytes were taken"))
    }

    fn key(&mut self) -> Result<PublicKey, NotARecord> {
        Ok(PublicKey::from_bytes(self.bytes()?))
    }

    fn byte(&mut self) -> Result<u8, NotARecord> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u64, NotARecord> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn text(&mut self) -> Result<&'a str, NotARecord> {
        let len = usize::try_from(self.number()?).map_err(|_| NotARecord("truncated"))?;
        std::str::from_utf8(self.take(len)?).map_err(|_| NotARecord("not UTF-8"))
    }

    fn update(&mut self) -> Result<Update, NotARecord> {
        Ok(Update {
            status: status(self.text()?)?,
            queued_at: self.number()?,
            text: Utf8Bytes::from(self.text()?),
            version: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> JobRecord {
        let update = |status, text: &str| Update { status, queued_at: 7, text: text.into(), version: 0 };
        JobRecord {
            on_trusted: true,
            signed: Some(Signed { by: PublicKey::from_bytes([8; 32]), signature: [7; 64], signed_at: 99 }),
            miner: Some(PublicKey::from_bytes([9; 32])),
            cheated_at: Some(12),
            last: Some(JobStatus::Completed),
            ended: true,
            updates: [update(JobStatus::ExecutionDone, "{\"a\":1}"), update(JobStatus::Completed, "")].into(),
            dead: vec![DeadLetter { update: update(JobStatus::Received, "é"), reason: "refused".to_owned(), at: 11 }],
            ..JobRecord::new("a-uuid".into(), 3)
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let lost = JobRecord { signed: None, signature_lost: true, ..record() };
        for record in [record(), lost, JobRecord::new("".into(), 0)] {
            assert_eq!(JobRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn a_record_of_an_earlier_release_is_read() {
        let mut bytes = record().encode();
        let on_trusted = 1 + 8 + "a-uuid".len() + 8;
        let (key_and_signature, time) = (1 + 32 + 64, 8);
        bytes[0] = FORM_3;
        assert_eq!(JobRecord::decode(&bytes), Ok(record()), "it was too old from then on, so it is of before");
        let times = on_trusted + 1 + key_and_signature;
        let mut long = bytes.clone();
        long[times..times + time].copy_from_slice(&u64::MAX.to_le_bytes());
        let signed_at = 3 + 300_000;
        let signed = record().signed.map(|signed| Signed { signed_at, ..signed });
        assert_eq!(JobRecord::decode(&long), Ok(JobRecord { signed, ..record() }), "no later than it was taken");
        bytes[0] = FORM_2;
        bytes.drain(on_trusted + 1..times + time);
        let lost = JobRecord { signed: None, signature_lost: true, ..record() };
        assert_eq!(JobRecord::decode(&bytes), Ok(lost.clone()));
        bytes[0] = FORM_1;
        bytes.remove(on_trusted);
        assert_eq!(JobRecord::decode(&bytes), Ok(JobRecord { on_trusted: false, ..lost }));
    }

    #[test]
    fn dead_letters_go_back_to_their_place_unless_the_job_would_move_backwards() {
        let statuses = |record: &JobRecord| record.updates.iter().map(|u| u.status).collect::<Vec<_>>();
        let mut waits = record();
        assert_eq!((waits.revive(), waits.dead.len()), (1, 0));
        assert_eq!(statuses(&waits), [JobStatus::Received, JobStatus::ExecutionDone, JobStatus::Completed]);
        assert_eq!(waits.revive(), 0);
        let open = JobRecord { ended: false, updates: VecDeque::new(), ..record() };
        let over = JobRecord { updates: VecDeque::new(), ..record() };
        for (mut record, revived) in [(open, 1), (over, 0)] {
            assert_eq!((record.revive(), record.updates.len(), record.dead.len()), (revived, revived, 1 - revived));
        }
    }

    #[test]
    fn bytes_that_are_no_record_are_refused() {
        let bytes = record().encode();
        for len in 0..bytes.len() {
            assert!(JobRecord::decode(&bytes[..len]).is_err(), "truncated at {len}");
        }
        assert!(JobRecord::decode(&[&bytes[..], &[0]].concat()).is_err());
        let error = JobRecord::decode(&[9, 0]).unwrap_err().to_string();
        assert_eq!(error, "not a job record: of a form that this release does not know");
    }
}
