//! The tasks that a worker runs, by their names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::call::{Args, TaskError};
use super::context::TaskCx;
use crate::celery::typed;

type Handler = Arc<dyn Fn(&TaskCx, Args) -> Result<Value, TaskError> + Send + Sync>;

/// The tasks that a worker runs.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<String, Handler>);

impl Registry {
    /// No tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// One task more; a later one of the same name replaces the earlier.
    ///
    /// The handler runs on a thread of the worker's pool and ends soon after [`TaskCx::cancel`] says so. A panic of it
    /// is the task's failure.
    pub fn register(
        mut self,
        name: impl Into<String>,
        handler: impl Fn(&TaskCx, Args) -> Result<Value, TaskError> + Send + Sync + 'static,
    ) -> Self {
        self.0.insert(name.into(), Arc::new(handler));
        self
    }

    /// As [`Registry::register`], with the keyword arguments as a struct and the result as anything that serde knows.
    pub fn register_typed<A: DeserializeOwned, R: Serialize>(
        self,
        name: impl Into<String>,
        handler: impl Fn(&TaskCx, A) -> Result<R, TaskError> + Send + Sync + 'static,
    ) -> Self {
        self.register(name, move |cx, args| {
            let result = handler(cx, args.named_as()?)?;
            typed::write(&result).map_err(|error| TaskError::new("TypeError", error.to_string()))
        })
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Handler> {
        self.0.get(name)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
