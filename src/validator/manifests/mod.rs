//! What miners offer: asked of many at once, each under a deadline, each with an outcome.
//!
//! * [`outcome`]: what came of asking, and what a miner's first message says. Pure.
//! * [`exchange`]: one miner: dial, upgrade, authenticate, manifest, on the calling thread.
//! * [`turns`]: whose turn it is when many are asked by few threads, and for how long. Pure.
//! * [`fetch`]: many miners on a bounded number of threads, with second tries and breakers.
//! * [`refresh`]: the thread that does it again and again for a validator.

pub mod exchange;
pub mod fetch;
pub mod outcome;
pub mod refresh;
pub mod turns;

pub use exchange::{ExchangeError, MinerDialer, OpenMiner};
pub use fetch::{Fetched, Fetcher};
pub use outcome::{AskOutcome, MinerManifest};
pub use refresh::{ManifestBoard, ManifestsStatus, Refresh};
