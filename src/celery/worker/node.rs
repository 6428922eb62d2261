//! What remote control sees of a worker, and what it changes. Pure.

use serde_json::{Map, Value};

use super::rate::Rate;

/// What a command changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// These tasks are revoked; with the second, those that run are ended.
    Revoke(Vec<String>, bool),
    /// Tasks with one of these stamps are revoked; with the second, those that run are ended.
    RevokeStamped(Vec<String>, bool),
    /// So many tasks of this name may begin in a time; any number without.
    LimitRate(String, Option<Rate>),
    /// Soft and hard limits, in seconds, of tasks of this name whose messages have none.
    LimitTime(String, Option<f64>, Option<f64>),
    /// It takes from this queue as well.
    AddQueue(String),
    /// It takes from this queue no more.
    RemoveQueue(String),
    /// So many tasks run at a time.
    Resize(usize),
    /// Events about tasks are published, or not any more.
    Events(bool),
    /// A heartbeat is published now.
    Heartbeat,
    /// The worker is asked to stop.
    Shutdown,
}

/// What a worker knows of itself. Each list is made only when it is asked for.
pub(super) trait Node {
    /// Its name, as `phalanx@host`.
    fn hostname(&self) -> &str;
    /// Names of the tasks that it runs.
    fn registered(&self) -> Vec<String>;
    /// The options of a task as they count, by Celery's names.
    fn attributes_of(&self, task: &str) -> Map<String, Value>;
    /// Tasks whose handler runs.
    fn active(&self) -> Vec<Value>;
    /// Tasks that wait for a thread.
    fn reserved(&self) -> Vec<Value>;
    /// Tasks whose time has not come.
    fn scheduled(&self) -> Vec<Value>;
    /// A task by its id: its stage and what is known of it.
    fn find(&self, id: &str) -> Option<(&'static str, Value)>;
    /// Ids that were revoked.
    fn revoked(&self) -> Vec<String>;
    /// Whether a task with one of these stamps runs.
    fn runs_stamped(&self, stamps: &[String]) -> bool;
    /// The queues that it takes from.
    fn queues(&self) -> Vec<String>;
    /// How many tasks run at a time.
    fn concurrency(&self) -> usize;
    /// Its settings, by Celery's names.
    fn conf(&self) -> Value;
    /// Bytes of memory that its process uses, where the system tells.
    fn memory(&self) -> Option<usize>;
    /// Its numbers.
    fn stats(&self) -> Value;
    /// The logical clock, moved on.
    fn clock(&self) -> u64;
    /// Whether it publishes events about tasks.
    fn task_events(&self) -> bool;
}
