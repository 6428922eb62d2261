//! Settings of a client.

use crate::redis::RedisConfig;

/// Settings of a [`CeleryClient`](super::CeleryClient).
#[derive(Debug, Clone)]
pub struct CeleryConfig {
    /// Where the broker is, which also keeps the results.
    pub redis: RedisConfig,
    /// Who sends, as tools show it: `gen<pid>@<host>` unless set.
    pub origin: String,
    /// Whether it publishes the event `task-sent`: no, as with Celery (`task_send_sent_event`).
    pub send_sent_event: bool,
}

impl CeleryConfig {
    /// The settings for this Redis, and otherwise the usual ones.
    pub fn new(redis: RedisConfig) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { redis, origin: format!("gen{}@{host}", std::process::id()), send_sent_event: false }
    }
}
