//! What most programs use, for `use phalanx::prelude::*`. It has what the features of the build give.
//!
//! ```
//! use phalanx::prelude::*;
//!
//! let manager = TaskManager::start(TaskConfig::new("example"))?;
//! let sum = manager.submit("sum", |_| Ok::<i32, String>(1 + 1))?;
//! assert_eq!(sum.wait()?, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Names that several modules have (`RetryPolicy`, `TaskError`) are those of [`tasks`](crate::tasks). Traits are those
//! that a program implements.

#[cfg(feature = "roles")]
pub use crate::app::job_client::{JobClient, SubmittedJob};
#[cfg(feature = "roles")]
pub use crate::app::local::{LocalConfig, LocalNetwork, ThreadBackend};
pub use crate::base::shutdown::{Level, Shutdown};
pub use crate::base::stop::{StopReport, Stopping};
pub use crate::base::thread::{Kick, Thread, spawn};
pub use crate::base::timer::Timer;
#[cfg(feature = "celery")]
pub use crate::celery::worker::{CeleryWorker, Registry, TaskCx, WorkerConfig};
#[cfg(feature = "celery")]
pub use crate::celery::{Canvas, CeleryClient, CeleryConfig, PendingResult, Task};
#[cfg(feature = "roles")]
pub use crate::executor::RunnerKind;
#[cfg(feature = "roles")]
pub use crate::facilitator::{Facilitator, FacilitatorConfig};
#[cfg(feature = "client")]
pub use crate::identity::{KeyPair, PublicKey};
#[cfg(feature = "client")]
pub use crate::link::server::{Server, ServerConfig, ServerEvent};
#[cfg(feature = "client")]
pub use crate::link::{Link, LinkConfig, LinkEvent, Outgoing};
#[cfg(feature = "roles")]
pub use crate::miner::{Miner, MinerConfig};
#[cfg(feature = "net")]
pub use crate::net::http::{HttpLimits, HttpResponse, HttpServer};
#[cfg(feature = "ops")]
pub use crate::ops::errors::ErrorClass;
#[cfg(feature = "ops")]
pub use crate::ops::status::Board;
pub use crate::pool::{Breakers, Bulkhead, Connector, Pool, PoolConfig, Retry, RetryBudget, RetryConfig, Until};
#[cfg(feature = "client")]
pub use crate::protocol::{JobStatus, V2JobRequest};
#[cfg(feature = "celery")]
pub use crate::redis::messaging::{Messaging, RedisMessaging, Responder};
#[cfg(feature = "celery")]
pub use crate::redis::{Channel, RedisConfig};
pub use crate::tasks::{
    CancelReason, Filter, Group, Limits, Priority, Progress, RetryPolicy, TaskConfig, TaskContext, TaskError,
    TaskHandle, TaskId, TaskInfo, TaskManager, TaskOptions, TaskState, Tasks, WaitEnd, WhenFull,
};
#[cfg(feature = "client")]
pub use crate::transport::ws::{WsDialer, WsListener};
#[cfg(feature = "client")]
pub use crate::validator::{
    ClientConfig, FacilitatorClient, JobHandler, MinerAddress, OnWorkers, Outcome, RunningClient, RunningJob,
};
#[cfg(feature = "roles")]
pub use crate::validator::{Dispatch, Validator, ValidatorConfig};
