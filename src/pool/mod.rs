//! What stands between a program and many peers that fail: connections that are kept, how often to try again, whom to
//! leave alone for a while, how many calls at a time. For any blocking protocol; it knows nothing of the rest of the
//! crate but `base`.
//!
//! Kept connections:
//! * [`connector`]: what a program says of its protocol.
//! * [`config`], [`error`]: the numbers of a pool; why a caller has no connection, and who has the others. Pure.
//! * [`policy`]: who gets which connection, and which ones are closed. Pure.
//! * [`connections`]: the connections behind one lock, and the leases that callers have of them.
//! * [`keeper`]: the thread that looks after them, and the pool's owner.
//!
//! Calls that fail:
//! * [`window`], [`state`], [`breaker`]: when one peer is left alone, and when it is tried again. Pure.
//! * [`events`], [`breakers`]: a breaker for each peer, how many may be open at once, and when it is not the peers but
//!   us.
//! * [`budget`]: how many second tries all calls together may make.
//! * [`retry`]: tries again, inside one deadline and the budget.
//! * [`bulkhead`]: a number of calls at a time, and who waits for it.
//! * [`until`]: how long a call of this kit blocks at most.
//!
//! Every wait ends at its deadline and at a shutdown signal. Nothing of a caller's runs under a lock of this kit. The
//! locks, permits and leases are under a model checker (`tests/model/pool.rs`).
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
#![doc = include_str!("../../docs/pool.md")]

pub mod breaker;
pub mod breakers;
pub mod budget;
pub mod bulkhead;
pub mod config;
pub mod connections;
pub mod connector;
pub mod error;
pub mod events;
pub mod keeper;
pub mod policy;
pub mod retry;
pub mod state;
pub mod until;
pub mod window;

pub use breaker::{Breaker, BreakerConfig, Window};
pub use breakers::{Breakers, BreakersConfig, Permit, Refused};
pub use budget::{BudgetConfig, RetryBudget};
pub use bulkhead::{Bulkhead, BulkheadError, BulkheadPermit};
pub use config::{LastConnectError, PoolConfig, PoolNumbers};
pub use connections::{Connections, Lease};
pub use connector::Connector;
pub use error::{AcquireError, LeaseInfo};
pub use keeper::Pool;
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
