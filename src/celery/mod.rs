//! Celery over Redis: the messages, results and key names of Celery 5 with its JSON serializer, and a client for them.
//!
//! In reading order: [`moment`] (points in time), [`value`], [`json`] and [`typed`] (values as Python writes them),
//! [`envelope`] (what lies in a Redis list), [`message`] (what is in it: a task), [`task`] (a task to be sent),
//! [`Canvas`] (tasks that follow each other), [`meta`] (its result), [`client`] (sends tasks and waits for results),
//! [`beat`] (sends them again and again). All but the last two and the worker are pure. The names of the keys are in
//! [`keys`], and the settings that clients and workers share in [`AppConfig`].
//!
//! The judges of every byte are Celery and kombu themselves; `tests/celery/celery_messages.rs` asks them.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use phalanx::celery::worker::{CeleryWorker, Registry, WorkerConfig};
//! use phalanx::celery::{CeleryClient, CeleryConfig, Task};
//! use phalanx::redis::RedisConfig;
//! use phalanx::ops::status::Board;
//! use serde_json::json;
//!
//! let (url, board) = ("redis://127.0.0.1:6379/0", Board::new());
//! let client = CeleryClient::start(CeleryConfig::new(RedisConfig::parse(url)?), &board)?;
//! let sum = client.handle().send(Task::new("tasks.add").args(json!([2, 3])).expires(Duration::from_secs(60)))?;
//! // A Python exception comes as TaskError::Failed, with its traceback.
//! assert_eq!(sum.wait(Duration::from_secs(10))?, 5);
//!
//! let registry = Registry::new().register("tasks.mul", |cx, args| {
//!     cx.progress(50.0, "half", &json!({})); // the state PROGRESS
//!     Ok(json!(args.get::<i64>(0, "x")? * args.get::<i64>(1, "y")?))
//! });
//! let worker = CeleryWorker::start(WorkerConfig::new(RedisConfig::parse(url)?), registry, &board)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod app_config;
pub mod beat;
mod canvas;
pub mod client;
pub mod envelope;
mod event;
mod events;
pub mod json;
pub mod keys;
pub mod message;
pub mod meta;
pub mod moment;
mod options;
mod repr;
pub mod scripts;
mod seconds;
pub mod task;
pub mod typed;
pub mod value;
pub mod worker;

pub use app_config::{AppConfig, QueueOrder, ResultOptions, Route, Routes, TransportOptions};
pub use beat::{Beat, BeatEntry, BeatError, Crontab, CrontabError, Schedule};
pub use canvas::Canvas;
pub use client::{
    CanvasResult, CeleryClient, CeleryConfig, CeleryHandle, GroupResult, PendingResult, SendError, TaskError, Terminate,
};
pub use envelope::{Compression, Envelope, MessageError};
pub use keys::*;
pub use message::{Embed, TaskMessage};
pub use meta::{Exception, Meta, MetaError, ResultState};
pub use moment::{Moment, Zone};
pub use options::{PANICKED, TaskOptions};
pub use task::Task;
