//! Settings of a client.

use crate::celery::app_config::AppConfig;
use crate::redis::RedisConfig;

/// Settings of a [`CeleryClient`](super::CeleryClient).
#[derive(Debug, Clone)]
pub struct CeleryConfig {
    /// Where the broker is, which also keeps the results, unless `app` says where they are.
    pub redis: RedisConfig,
    /// The settings of the application.
    pub app: AppConfig,
    /// Who sends, as tools show it: `gen<pid>@<host>` unless set.
    pub origin: String,
    /// Whether it publishes the event `task-sent`: no, as with Celery, unless `app` says so (`task_send_sent_event`).
    pub send_sent_event: bool,
}

impl CeleryConfig {
    /// The settings for this Redis, and otherwise the usual ones.
    pub fn new(redis: RedisConfig) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let origin = format!("gen{}@{host}", std::process::id());
        Self { redis, app: AppConfig::default(), origin, send_sent_event: false }
    }
}
