//! The kinds of causes. Pure.

use crate::ops::errors::ErrorClass;

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// What the job asks for cannot be had by anybody: the job has failed.
    Job,
    /// This machine cannot do its part, and its operator has to see to it.
    Operator,
    /// A server or the way to it.
    Network,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cause {
    /// Whose fault it is.
    pub fault: Fault,
    /// Whether the same may succeed later.
    pub passing: bool,
}

impl Cause {
    /// The job asks for what there is not; it will be the same at the next try.
    pub const JOB: Self = Self { fault: Fault::Job, passing: false };
    /// This machine lacks something until somebody sees to it.
    pub const OPERATOR: Self = Self { fault: Fault::Operator, passing: false };
    /// This machine is busy, or a part of it is being started again.
    pub const OPERATOR_PASSING: Self = Self { fault: Fault::Operator, passing: true };
    /// A server is in trouble and will be for longer than a job can wait.
    pub const NETWORK: Self = Self { fault: Fault::Network, passing: false };
    /// A server shows a certificate that is refused. It may have ended, its authority may not be known to this machine,
    /// or this machine's clock may be wrong: all will be the same at the next try, and none is what a job asks for.
    pub const CERTIFICATE: Self = Self::NETWORK;
    /// A server is busy or the way to it is broken.
    pub const NETWORK_PASSING: Self = Self { fault: Fault::Network, passing: true };

    /// What a loop does about it: tries again what passes, gives up what the job asks for and what a server cannot do,
    /// and leaves to its operator what this machine lacks.
    pub fn class(self) -> ErrorClass {
        match (self.passing, self.fault) {
            (true, _) => ErrorClass::Retry,
            (false, Fault::Job | Fault::Network) => ErrorClass::Rejected,
            (false, Fault::Operator) => ErrorClass::Fatal,
        }
    }

    /// What an HTTP status other than success says of a request that the job asked for (RFC 9110 section 15, RFC 6585):
    /// 408, 425, 429 and most of 5xx ask for another try; everything else will be the same then.
    pub fn of_status(status: u16) -> Self {
        match status {
            408 | 425 | 429 => Self::NETWORK_PASSING,
            // Not implemented, version not supported, too little storage, loop, not extended.
            501 | 505 | 507 | 508 | 510 => Self::NETWORK,
            500..600 => Self::NETWORK_PASSING,
            _ => Self::JOB,
        }
    }
}
