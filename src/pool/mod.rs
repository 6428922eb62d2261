//! What stands between a program and many peers that fail: how often to try again, whom to leave alone for a while, how
//! many calls at a time. For any blocking protocol; it knows nothing of the rest of the crate but `base`.
//!
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
pub mod retry;
pub mod until;

pub use breaker::{Breaker, BreakerConfig, Window};
pub use breakers::{Breakers, BreakersConfig, Permit, Refused};
pub use budget::{BudgetConfig, RetryBudget};
pub use bulkhead::{Bulkhead, BulkheadError, BulkheadPermit};
pub use retry::{GaveUp, Retry, RetryConfig, RetryError};
pub use until::Until;
