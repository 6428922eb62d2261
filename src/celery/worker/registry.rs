//! The tasks that a worker runs, by their names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::call::{Args, TaskError};
use super::context::TaskCx;
use crate::celery::options::TaskOptions;
use crate::celery::typed;

type Handler = Arc<dyn Fn(&TaskCx, Args) -> Result<Value, TaskError> + Send + Sync>;

/// The tasks that a worker runs.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<String, (TaskOptions, Handler)>);

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
        self.0.insert(name.into(), (TaskOptions::default(), Arc::new(handler)));
        self
    }

    /// As [`Registry::register`], with options.
    ///
    /// A worker does not start with options that are of no use. The time limits ask and do not force: a thread cannot
    /// be ended from outside, see [`TaskCx::cancel`].
    ///
    /// ```
    /// use phalanx::celery::worker::{Registry, TaskError, TaskOptions};
    ///
    /// let options = TaskOptions {
    ///     autoretry_for: vec!["ConnectionError".to_owned()],
    ///     retry_backoff: Some(2), // about 2, 4, 8 s …
    ///     max_retries: Some(5),
    ///     rate_limit: Some("10/m".to_owned()),
    ///     ..TaskOptions::default()
    /// };
    /// let registry = Registry::new().register_with("tasks.fetch", options, |_, _| {
    ///     Err(TaskError::new("ConnectionRefusedError", "nobody listens")) // tried again
    /// });
    /// ```
    pub fn register_with(
        self,
        name: impl Into<String>,
        options: TaskOptions,
        handler: impl Fn(&TaskCx, Args) -> Result<Value, TaskError> + Send + Sync + 'static,
    ) -> Self {
        let name = name.into();
        self.register(name.clone(), handler).with_options(&name, options)
    }

    /// The same tasks, the one of this name with these options, if there is one.
    pub fn with_options(mut self, name: &str, options: TaskOptions) -> Self {
        if let Some((own, _)) = self.0.get_mut(name) {
            *own = options;
        }
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

    /// The names, and the options of each.
    pub(super) fn tasks(&self) -> impl Iterator<Item = (&str, &TaskOptions)> {
        self.0.iter().map(|(name, (options, _))| (name.as_str(), options))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Handler> {
        self.0.get(name).map(|(_, handler)| handler)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
