//! Where jobs run: a back end takes closures and runs them on threads of its own.
//!
//! `dispatch` knows nothing of connections or messages; what a job means is its role's business.

pub mod workers;

use crate::base::shutdown::Shutdown;
use crate::base::stop::Step;

/// One job: runs to its end on a thread of the back end, and ends soon when its signal reaches
/// [`crate::base::shutdown::Level::Cancel`].
pub type Work = Box<dyn FnOnce(&Shutdown) + Send>;

/// A place where jobs run.
pub trait Backend: Send + Sync {
    /// Takes a job of this name, or hands it back at once if the back end is full or stopping, or has one of this name.
    /// Never blocks.
    ///
    /// # Errors
    /// [`Busy`], with the job.
    fn submit(&self, job: &str, work: Work) -> Result<(), Busy>;

    /// Tells the job of this name to end, or drops it if it has not begun; false if there is none.
    fn cancel(&self, job: &str) -> bool;

    /// Jobs taken and not yet ended.
    fn running(&self) -> usize;

    /// Takes no more jobs; returns at once.
    fn close(&self);

    /// Takes no more jobs, lets those that run end within the step's budget, cancels the rest, and joins every thread;
    /// gives the number of jobs that were cancelled.
    fn stop(&self, step: &mut Step) -> usize;
}

/// The back end took no job; here it is back.
#[derive(thiserror::Error)]
#[error("all workers are busy")]
pub struct Busy(pub Work);

impl std::fmt::Debug for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Busy")
    }
}
