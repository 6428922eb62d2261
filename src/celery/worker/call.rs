//! What a handler gets and gives: the arguments of a call, and the errors that end it. Pure.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::celery::canvas::Canvas;
use crate::celery::meta::Exception;
use crate::celery::typed;

/// Names of exceptions that Python has; their results become these classes again at a Python caller.
const PYTHONS: [&str; 26] = [
    "ArithmeticError",
    "AssertionError",
    "BufferError",
    "ConnectionError",
    "ConnectionRefusedError",
    "ConnectionResetError",
    "EOFError",
    "Exception",
    "FileExistsError",
    "FileNotFoundError",
    "IndexError",
    "InterruptedError",
    "KeyError",
    "LookupError",
    "MemoryError",
    "NotImplementedError",
    "OSError",
    "OverflowError",
    "PermissionError",
    "RecursionError",
    "RuntimeError",
    "StopIteration",
    "TimeoutError",
    "TypeError",
    "ValueError",
    "ZeroDivisionError",
];

/// The arguments of one call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Args {
    /// Positional arguments.
    pub positional: Vec<Value>,
    /// Keyword arguments.
    pub named: Map<String, Value>,
}

impl Args {
    /// An argument by its place or, if it was not passed so, by its name. `NaN` and the infinities are numbers for
    /// `f64`; a [`Value`] has them, and texts with lone surrogates, as [`value`](crate::celery::value) says.
    ///
    /// # Errors
    /// A `TypeError` if it is missing or of another type.
    pub fn get<T: DeserializeOwned>(&self, at: usize, name: &str) -> Result<T, TaskError> {
        let value = self.positional.get(at).or_else(|| self.named.get(name));
        let value = value.ok_or_else(|| TaskError::new("TypeError", format!("missing argument: '{name}'")))?;
        typed::read(value).map_err(|error| TaskError::new("TypeError", format!("argument '{name}': {error}")))
    }

    /// The keyword arguments as a struct. Positional arguments are refused.
    ///
    /// # Errors
    /// A `TypeError` that says what is missing, too much or of another type.
    pub fn named_as<T: DeserializeOwned>(self) -> Result<T, TaskError> {
        if !self.positional.is_empty() {
            let message = format!("takes keyword arguments only, {} positional were given", self.positional.len());
            return Err(TaskError::new("TypeError", message));
        }
        let named = Value::Object(self.named);
        typed::read(&named).map_err(|error| TaskError::new("TypeError", error.to_string()))
    }
}

/// How a handler ends, if not with a value.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// It failed: `FAILURE`.
    #[error("{}: {}", .0.exc_type, .0.message())]
    Failed(Box<Exception>),
    /// It failed, and is to be tried again: `RETRY`, or `FAILURE` when it was tried too often.
    #[error("to be tried again: {}: {}", exception.exc_type, exception.message())]
    Retry {
        /// Not before this long from now; `None` for the `default_retry_delay` of the task's options, 3 min unless set.
        countdown: Option<Duration>,
        /// Retries at most; `None` for the `max_retries` of the task's options, 3 unless set.
        max_retries: Option<u32>,
        /// What went wrong.
        exception: Box<Exception>,
        /// What it is called with then; `None` for the same.
        arguments: Option<Box<Args>>,
    },
    /// No result is stored.
    #[error("ignored")]
    Ignore,
    /// The message is refused: it goes back to the end of its queue, or the task has failed.
    #[error("rejected")]
    Reject {
        /// Whether it goes back to its queue.
        requeue: bool,
    },
    /// Another one takes its place; made by [`TaskCx::replace`](super::TaskCx::replace).
    #[error("replaced")]
    Replaced(Box<Canvas>),
    /// It has ended because [`TaskCx::cancel`](super::TaskCx::cancel) requested it; the worker knows why.
    #[error("cancelled")]
    Cancelled,
}

impl TaskError {
    /// A failure. A name of Python's own (`ValueError`) is that class again at a Python caller.
    pub fn new(exc_type: &str, message: impl Into<String>) -> Self {
        exception(exc_type, message).into()
    }

    /// A failure that is to be tried again after `countdown`, as often as the options of the task say: three times
    /// unless set, as with Celery. See [`TaskError::at_most`].
    pub fn retry(countdown: Duration, exc_type: &str, message: impl Into<String>) -> Self {
        let exception = Box::new(exception(exc_type, message));
        Self::Retry { countdown: Some(countdown), max_retries: None, exception, arguments: None }
    }

    /// A failure that is to be tried again when, and as often as, the options of the task say.
    pub fn again(exc_type: &str, message: impl Into<String>) -> Self {
        let exception = Box::new(exception(exc_type, message));
        Self::Retry { countdown: None, max_retries: None, exception, arguments: None }
    }

    /// The same with another limit of retries; `None` for no limit.
    pub fn at_most(mut self, retries: Option<u32>) -> Self {
        if let Self::Retry { max_retries, .. } = &mut self {
            *max_retries = Some(retries.unwrap_or(u32::MAX));
        }
        self
    }

    /// The same, called with these then, in place of what it was called with.
    pub fn with_arguments(mut self, args: Args) -> Self {
        if let Self::Retry { arguments, .. } = &mut self {
            *arguments = Some(Box::new(args));
        }
        self
    }
}

impl From<Exception> for TaskError {
    /// A failure with any exception.
    fn from(exception: Exception) -> Self {
        Self::Failed(Box::new(exception))
    }
}

/// An exception of Python's own or of ours.
pub(super) fn exception(exc_type: &str, message: impl Into<String>) -> Exception {
    let module = if PYTHONS.contains(&exc_type) { "builtins" } else { "phalanx" };
    Exception::new(module, exc_type, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_argument_is_found_by_place_or_name() {
        let args = Args { positional: vec![json!(1)], named: json!({"b": "x"}).as_object().unwrap().clone() };
        assert_eq!(args.get::<u32>(0, "a"), Ok(1));
        assert_eq!(args.get::<String>(1, "b").unwrap(), "x");
        assert_eq!(args.get::<u32>(2, "c").unwrap_err(), TaskError::new("TypeError", "missing argument: 'c'"));
        let wrong = args.get::<u32>(1, "b").unwrap_err().to_string();
        assert!(wrong.starts_with("TypeError: argument 'b': invalid type"), "{wrong}");
        assert!(args.named_as::<Value>().unwrap_err().to_string().contains("1 positional"));
    }

    #[test]
    fn an_exception_is_pythons_own_by_its_name() {
        let TaskError::Failed(own) = TaskError::new("ValueError", "x") else { unreachable!() };
        assert_eq!(own.exc_module.as_deref(), Some("builtins"));
        let TaskError::Failed(other) = TaskError::new("Broken", "x") else { unreachable!() };
        assert_eq!(other.exc_module.as_deref(), Some("phalanx"));
        let retry = TaskError::retry(Duration::from_secs(1), "OSError", "x").at_most(None);
        assert!(matches!(retry, TaskError::Retry { max_retries: Some(u32::MAX), .. }));
    }
}
