//! What stands between a program and many peers that fail: connections that are kept, how often to try again, whom to
//! leave alone for a while, how many calls at a time. For any blocking protocol; it knows nothing of the rest of the
//! crate but `base`.
//!
//! * [`connector`]: what a program says of its protocol.
//! * [`policy`]: who gets which connection, and which ones are closed. Pure.
//! * [`connections`]: the connections behind one lock, and the leases that callers have of them.
//! * [`keeper`]: the thread that looks after them, and the pool's owner.
//! * [`breaker`]: when one peer is left alone, and when it is tried again. Pure.
//! * [`breakers`]: a breaker for each peer, how many may be open at once, and when it is not the peers but us.
//! * [`budget`]: how many second tries all calls together may make.
//! * [`retry`]: tries again, inside one deadline and the budget.
//! * [`bulkhead`]: a number of calls at a time, and who waits for it.
//! * [`until`]: how long a call of this kit blocks at most.
//!
//! # All of it around one call
//!
//! ```
//! use std::time::{Duration, Instant};
//!
//! use phalanx::base::shutdown::Shutdown;
//! use phalanx::pool::{Breakers, BreakersConfig, BudgetConfig, Bulkhead, Retry, RetryBudget, RetryConfig, Until};
//!
//! let breakers = Breakers::new(BreakersConfig::default());
//! let budget = RetryBudget::new(BudgetConfig::default(), Instant::now());
//! let bulkhead = Bulkhead::new(64, 1000);
//! let shutdown = Shutdown::new();
//!
//! // A call that works at the second try.
//! let mut answers = ["", "manifest"].into_iter();
//! let mut call = || answers.next().filter(|answer| !answer.is_empty()).ok_or("no answer");
//!
//! let until = Until::new(Instant::now() + Duration::from_secs(5), &shutdown);
//! let place = bulkhead.acquire(until)?;
//! let config = RetryConfig { base: Duration::from_millis(1), ..RetryConfig::default() };
//! let answer = Retry::new(config, until).budget(&budget).run(
//!     |_attempt| {
//!         let permit = breakers.ask(&"miner 7", Instant::now()).map_err(|_| "left alone")?;
//!         let start = Instant::now();
//!         match call() {
//!             Ok(answer) => {
//!                 permit.succeeded(start.elapsed());
//!                 Ok(answer)
//!             }
//!             Err(error) => {
//!                 permit.failed(start.elapsed());
//!                 Err(error)
//!             }
//!         }
//!     },
//!     |error| *error == "no answer",
//! )?;
//! drop(place);
//! assert_eq!(answer, "manifest");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod breaker;
pub mod breakers;
pub mod budget;
pub mod bulkhead;
pub mod connections;
pub mod connector;
pub mod keeper;
pub mod policy;
pub mod retry;
pub mod until;

pub use breaker::{Breaker, BreakerConfig, Window};
pub use breakers::{Breakers, BreakersConfig, Permit, Refused};
pub use budget::{BudgetConfig, RetryBudget};
pub use bulkhead::{Bulkhead, BulkheadError, BulkheadPermit};
pub use connections::{AcquireError, Connections, Lease, LeaseInfo};
pub use connector::Connector;
pub use keeper::Pool;
pub use policy::{LastConnectError, PoolConfig, PoolNumbers};
pub use retry::{GaveUp, Retry, RetryConfig, RetryError};
pub use until::Until;

// Beside their files, because `tests/model/` compiles those files against other locks.
#[cfg(test)]
mod breaker_tests;
#[cfg(test)]
mod breakers_tests;
#[cfg(test)]
mod budget_tests;
#[cfg(test)]
mod bulkhead_tests;
#[cfg(test)]
mod connections_tests;
#[cfg(test)]
mod policy_tests;
