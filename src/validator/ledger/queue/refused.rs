//! What a ledger does not take. Pure.

use std::sync::Arc;

use crate::ops::errors::ErrorClass;
use crate::protocol::JobStatus;

/// An update was not accepted from its job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The job has its terminal status; it takes no more updates.
    #[error("job {uuid} has ended: {status} comes too late")]
    Ended {
        /// The job.
        uuid: Arc<str>,
        /// The status that was refused.
        status: JobStatus,
    },
    /// The job was further already.
    #[error("job {uuid} is {last}: it cannot go back to {status}")]
    Backwards {
        /// The job.
        uuid: Arc<str>,
        /// Where it is.
        last: JobStatus,
        /// The status that was refused.
        status: JobStatus,
    },
    /// Too many updates wait for the facilitator. Only steps meet this; a terminal status is always taken.
    #[error("too many updates wait for the facilitator: {updates}, {bytes} bytes")]
    Full {
        /// Updates that wait.
        updates: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// The link to the facilitator does not carry an update of this kind that is so large.
    #[error("job {uuid}: {status} has {bytes} bytes, at most {most} can be passed on")]
    TooLarge {
        /// The job.
        uuid: Arc<str>,
        /// The status that was refused.
        status: JobStatus,
        /// Bytes of its message.
        bytes: usize,
        /// Bytes that such a message may have.
        most: usize,
    },
    /// Nobody knows this job, or it was forgotten long after its end.
    #[error("there is no such job")]
    NoSuchJob,
}

impl UpdateError {
    /// What a loop does about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Full { .. } => ErrorClass::Retry,
            Self::Ended { .. } | Self::Backwards { .. } | Self::TooLarge { .. } | Self::NoSuchJob => {
                ErrorClass::Rejected
            }
        }
    }
}

/// A job may not run by its signature, although that is good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAdmitted {
    /// The signature has come with another job.
    #[error("its signature came with job {0} before; each job needs a signature of its own")]
    SignatureUsed(Arc<str>),
    /// As many signatures as can be remembered are not too old yet.
    #[error(
        "{0} jobs have signatures that could be used again, more cannot be remembered; submit it again later, or let \
         signatures be less old"
    )]
    Full(usize),
    /// It is not newer than those of the jobs of a release that kept no signatures may be, so it may have run one of
    /// them.
    #[error(
        "it was not signed more than 5 minutes after the last job of a release that remembered no signatures came; \
         sign and submit it again"
    )]
    SignedBefore,
}
