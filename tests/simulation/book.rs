//! What is true of each job, as its user sees it and as it was run: the claims are checked here.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use phalanx::protocol::JobStatus;

/// One job.
#[derive(Debug)]
pub struct Job {
    pub validator: u32,
    /// The facilitator has it on disk.
    pub is_stored: bool,
    /// Its user was told so.
    pub is_acknowledged: bool,
    /// The message to the validator, until that has reported anything.
    pub request: Option<Box<str>>,
    /// The statuses that were stored, each one bit.
    statuses: u16,
    pub last: Option<JobStatus>,
    /// When that came.
    pub last_at: u64,
    pub end: Option<JobStatus>,
    /// Executors that have begun to run its command, and that have reported its result.
    pub begun: u8,
    pub finished: u8,
}

impl Job {
    /// One for this validator, that is on its way.
    pub fn new(validator: u32, request: String) -> Self {
        Self {
            validator,
            is_stored: false,
            is_acknowledged: false,
            request: Some(request.into()),
            statuses: 0,
            last: None,
            last_at: 0,
            end: None,
            begun: 0,
            finished: 0,
        }
    }
}

/// What was done to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    FacilitatorKilled,
    ValidatorKilled,
    ValidatorWithoutPower,
    MinerKilled,
    ExecutorKilled,
    ConnectionCut,
    FromFacilitator,
    FromValidators,
}

impl Fault {
    pub fn words(self) -> &'static str {
        match self {
            Self::FacilitatorKilled => "facilitator killed",
            Self::ValidatorKilled => "validators killed",
            Self::ValidatorWithoutPower => "validators without power",
            Self::MinerKilled => "miners killed",
            Self::ExecutorKilled => "executors killed",
            Self::ConnectionCut => "connections cut",
            Self::FromFacilitator => "validators parted from the facilitator",
            Self::FromValidators => "miners parted from validators",
        }
    }
}

/// All of them, and what was counted.
#[derive(Debug, Default)]
pub struct Book {
    /// By number.
    pub jobs: Vec<Job>,
    /// Stored, without an end.
    pub open: usize,
    pub late: u64,
    pub repeated: u64,
    pub unknown: u64,
    pub turned_away: u64,
    pub faults: BTreeMap<Fault, u64>,
    pub restarted_jobs: u64,
}

impl Book {
    pub fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// The facilitator has a job on disk.
    pub fn stored(&mut self, number: usize, at: u64) {
        let job = &mut self.jobs[number];
        job.is_stored = true;
        job.last_at = at;
        self.open += 1;
    }

    /// The facilitator has a status on disk, as part of the job's history: it never leads back, and the job ends once.
    pub fn status(&mut self, number: usize, status: JobStatus, at: u64) {
        let job = &mut self.jobs[number];
        assert!(job.end.is_none(), "job {number}: {status} after its end {:?}", job.end);
        assert!(job.last.is_none_or(|last| last.may_become(status)), "job {number}: {status} after {:?}", job.last);
        job.statuses |= 1 << bit(status);
        (job.last, job.last_at, job.request) = (Some(status), at, None);
        if status.is_terminal() {
            job.end = Some(status);
            self.open -= 1;
        }
    }

    pub fn has(&self, number: usize, status: JobStatus) -> bool {
        self.jobs[number].statuses & (1 << bit(status)) != 0
    }

    /// That a late one is there, which is no part of the history.
    pub fn late(&mut self, number: usize, status: JobStatus) {
        self.jobs[number].statuses |= 1 << bit(status);
        self.late += 1;
    }

    pub fn ended_as(&self, status: JobStatus) -> usize {
        self.jobs.iter().filter(|job| job.end == Some(status)).count()
    }

    /// What must be so in the end.
    pub fn check(&self) {
        for (number, job) in self.jobs.iter().enumerate() {
            assert!(!job.is_acknowledged || job.end.is_some(), "job {number} was acknowledged and has no end: {job:?}");
            assert!(!job.is_stored || job.end.is_some(), "job {number} has no end: {job:?}");
            assert!(job.begun <= 1, "job {number} was run {} times", job.begun);
            let completed = job.end == Some(JobStatus::Completed);
            assert!(!completed || job.finished == 1, "job {number} is completed, and was not run to its end: {job:?}");
        }
        assert_eq!(self.open, 0);
    }

    /// The same for the same histories at the same moments.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for job in &self.jobs {
            (job.statuses, job.last, job.last_at, job.begun).hash(&mut hasher);
        }
        hasher.finish()
    }
}

fn bit(status: JobStatus) -> usize {
    JobStatus::ALL.iter().position(|other| *other == status).expect("all are there")
}

/// The uuid of a job, in which its number is.
pub fn uuid_of(number: usize) -> String {
    format!("51500000-0000-4000-8000-{number:012x}")
}

/// The number of a job.
pub fn number_of(uuid: &str) -> usize {
    usize::from_str_radix(&uuid[24..], 16).expect("a uuid of ours")
}
