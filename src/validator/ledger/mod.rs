//! What the validator owes to the facilitator: the status updates of its jobs, in order, until each is answered.
//!
//! * [`queue`]: the [`Ledger`]: which updates wait, in what order they leave, retries, dead letters. Pure.
//! * [`record`]: what is kept of a job on disk. Pure.
//! * `cheats`: which reports of cheating count. Pure.
//! * [`delivery`]: the ledger with its link: updates come from jobs and end with the facilitator's answer.
//! * [`disk`]: its thread, which writes to the state folder.

mod cheats;
pub mod delivery;
pub mod disk;
pub mod queue;
pub mod record;

pub use cheats::ReportSigned;
pub use delivery::{Delivery, GivenUp, NotOnDisk, Ticket, Totals};
pub use disk::{StoreThread, open};
pub use queue::{Counts, Ledger, LedgerLimits, NotAdmitted, Reply, RetryPolicies, RetryPolicy, UpdateError};
