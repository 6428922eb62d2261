//! What every other module stands on: threads with an owner, one shutdown signal, time, text, limits.
//!
//! `base` knows nothing of the rest of the crate.

pub mod backoff;
pub mod clock;
pub mod drained;
// Beside its file, because `tests/model/` compiles that file against other locks.
#[cfg(test)]
mod drained_tests;
pub mod glob;
pub mod ids;
pub mod io;
#[cfg(feature = "net")]
pub(crate) mod key_file;
#[cfg(any(test, feature = "test-util"))]
pub mod leaks;
pub mod limits;
pub mod lock;
pub mod now;
pub(crate) mod panics;
pub mod rng;
pub mod scope;
pub mod shutdown;
#[cfg(all(target_os = "linux", any(test, feature = "test-util")))]
pub mod simulate;
// As of `drained`.
#[cfg(test)]
mod shutdown_tests;
pub mod size;
#[cfg(feature = "net")]
pub(crate) mod small_file;
#[cfg(feature = "net")]
pub(crate) mod stamp;
pub mod stop;
pub mod sync;
pub mod text;
pub mod thread;
pub mod timer;
#[cfg(feature = "roles")]
pub mod tree;
pub mod waits;
// How unit tests wait, as all other tests do.
#[cfg(test)]
#[allow(dead_code, unreachable_pub)] // They use a part of what it gives to all tests.
#[path = "../../tests/testkit/wait.rs"]
pub(crate) mod wait;
