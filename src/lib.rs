//! Phalanx: the real-time layer of ComputeHorde on named OS threads and bounded channels, without an async runtime.
//!
//! ComputeHorde sells GPU time: users send signed jobs to a *facilitator*, which routes them to *validators*, which
//! have *miners* run them on *executors*. This crate is all four roles, wire-compatible with the Python network, as one
//! binary (`phalanx`) and as a library for programs that are not async.
//!
//! # Map, in reading order
//!
//! | module | what it is |
//! | --- | --- |
//! | [`base`] | threads with an owner and a kick, two-level shutdown, the stop report, waits, timer, clock, limits |
//! | [`ops`] | metrics, health, error classes, the status snapshot |
//! | [`net`] | dialling, accepting with admission, TLS, addresses; HTTP: one head codec, the server, the client |
//! | [`proc`] | groups of processes, the Docker Engine |
//! | [`store`] | the embedded database under a role's state folder |
//! | [`identity`] | sr25519 keys, SS58 addresses, wallet files |
//! | [`protocol`] | the messages of the four links, byte for byte; what is signed; stage deadlines |
//! | [`tasks`] | a task manager for threads: limits, retries, groups, progress, cancellation |
//! | `redis` | connections to Redis with a kick, publish/subscribe, streams (feature `celery`) |
//! | [`transport`] | a connection as two halves and a kick: WebSocket over TCP and TLS; in memory for tests |
//! | `celery` | a Celery client and a Celery worker over Redis (feature `celery`) |
//! | [`link`] | a connection that somebody owns: session, outbox, liveness, reconnect, server |
//! | [`pool`] | calls to many peers that may fail, by any protocol: kept connections, breakers, retries, bulkheads |
//! | [`facilitator`], [`validator`], [`miner`], [`executor`] | the roles |
//! | [`app`] | the process around a role: signals, settings, supervision; the local network, job files, their client |
//! | [`cli`] | the commands of the binary |
//! | [`prelude`] | what most programs use, at once |
//!
//! # Invariants
//!
//! * A module uses only modules that stand above it in this table, and no files use one another in a circle;
//!   `tests/architecture.rs` holds both.
//! * `link` and `transport` move texts and know nothing of messages, jobs or tasks; `tasks`, `redis` and `celery` know
//!   nothing of connections to peers. They meet in a role.
//! * A file whose head has the word "Pure" has no thread, channel, lock, socket, file or clock, nor calls one that has.
//! * Every thread is spawned by [`base::thread::spawn`], with a name, an owner who joins it, and a kick that interrupts
//!   the call it blocks in. Nothing polls. An owner that is dropped cancels, kicks and joins.
//! * Every queue has a limit, and an answer for "full" that hands the message back.
//! * The library installs no signal handler and no logger, and never exits.
//!
//! # Embedding
//!
//! `examples/embed.rs` starts all four roles, runs a job through real sockets and stops them; the tests run it. A
//! smaller start: what a program does with a thread of its own.
//!
//! ```
//! use std::time::Duration;
//!
//! use phalanx::base::shutdown::Shutdown;
//! use phalanx::base::stop::Stopping;
//! use phalanx::base::thread::{Kick, spawn};
//!
//! let shutdown = Shutdown::new();
//! let waiting = shutdown.clone();
//! let thread = spawn("worker", Kick::dropped("the shutdown signal"), move || {
//!     // Sleeps an hour, or until somebody asks for a stop.
//!     waiting.wait(Duration::from_secs(3600))
//! });
//!
//! shutdown.drain();
//! let mut stopping = Stopping::new(&shutdown);
//! let done = stopping.step("worker", Duration::from_secs(5), |step| step.join(thread));
//! assert_eq!(done, Some(true));
//! assert!(stopping.finish().is_clean());
//! ```
// What is `pub` is public: an embedder can reach it. Features hide some of it.
#![cfg_attr(all(feature = "cli", feature = "celery"), warn(unreachable_pub))]
// What a library does not do: panic for want of a check, write to the terminal of its program, or end it.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::exit))]
// What only a role or a command uses is of no use without it.
#![cfg_attr(not(all(feature = "cli", feature = "celery")), allow(dead_code))]

// By its name, so that unit tests share a file with `tests/`.
#[cfg(test)]
extern crate self as phalanx;

#[cfg(feature = "roles")]
pub mod app;
pub mod base;
#[cfg(feature = "celery")]
pub mod celery;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "roles")]
pub mod executor;
#[cfg(feature = "roles")]
pub mod facilitator;
#[cfg(feature = "client")]
pub mod identity;
#[cfg(feature = "client")]
pub mod link;
#[cfg(feature = "roles")]
pub mod miner;
#[cfg(feature = "net")]
pub mod net;
#[cfg(feature = "ops")]
pub mod ops;
pub mod pool;
pub mod prelude;
#[cfg(feature = "roles")]
pub mod proc;
#[cfg(feature = "client")]
pub mod protocol;
#[cfg(feature = "celery")]
pub mod redis;
#[cfg(feature = "store")]
pub mod store;
#[cfg(all(feature = "client", not(feature = "store")))]
#[path = "store/absent.rs"]
pub mod store;
pub mod tasks;
#[cfg(feature = "client")]
pub mod transport;
#[cfg(feature = "client")]
pub mod validator;

/// The documents, whose Rust is compiled as that of these pages is.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../docs/tasks.md")]
    struct Tasks;
    #[doc = include_str!("../docs/facilitator-client.md")]
    #[cfg(feature = "store")]
    struct FacilitatorClient;
    #[doc = include_str!("../docs/celery-and-redis.md")]
    #[cfg(feature = "celery")]
    struct CeleryAndRedis;
    #[doc = include_str!("../docs/embedding.md")]
    #[cfg(feature = "roles")]
    struct Embedding;
}
