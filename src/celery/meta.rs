//! Results as Celery's Redis back end stores and publishes them under `celery-task-meta-<id>`. Pure.

use std::borrow::Cow;
use std::fmt;

use serde_json::{Map, Value, json};

use super::envelope::{MessageError, unpack};
use super::json;
use super::moment::Moment;
use super::repr;
use crate::base::limits::CELERY_RESULT_BYTES;
use crate::ops::errors::ErrorClass;

/// Stands before a result that its worker packed; the method and a zero byte follow.
const PACKED: &[u8] = b"\0celery-compressed\0";

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResultState {
    /// Nothing is known of it: it waits, or was never sent, or its result has expired.
    Pending,
    /// A worker has it.
    Received,
    /// A worker runs it.
    Started,
    /// It runs and has reported its progress.
    Progress,
    /// It failed and will be tried again.
    Retry,
    /// It returned a value.
    Success,
    /// It failed.
    Failure,
    /// It was revoked, or came too late.
    Revoked,
    /// A state of the task's own making.
    Other(String),
}

impl ResultState {
    /// As Celery writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "PENDING",
            Self::Received => "RECEIVED",
            Self::Started => "STARTED",
            Self::Progress => "PROGRESS",
            Self::Retry => "RETRY",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Revoked => "REVOKED",
            Self::Other(name) => name,
        }
    }

    /// Whether the task has ended.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked)
    }

    /// Whether the result is an exception.
    pub fn is_exception(&self) -> bool {
        matches!(self, Self::Retry | Self::Failure | Self::Revoked)
    }
}

impl From<&str> for ResultState {
    fn from(name: &str) -> Self {
        let all = [
            Self::Pending,
            Self::Received,
            Self::Started,
            Self::Progress,
            Self::Retry,
            Self::Success,
            Self::Failure,
            Self::Revoked,
        ];
        all.into_iter().find(|state| state.as_str() == name).unwrap_or_else(|| Self::Other(name.to_owned()))
    }
}

impl fmt::Display for ResultState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An exception as a result holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Exception {
    /// The name of its class, as `ValueError`.
    pub exc_type: String,
    /// Its arguments: mostly a list.
    pub exc_message: Value,
    /// The module of its class, as `builtins`.
    pub exc_module: Option<String>,
}

impl Exception {
    /// An exception with one argument: its message.
    pub fn new(exc_module: impl Into<String>, exc_type: impl Into<String>, message: impl Into<String>) -> Self {
        let exc_message = json!([message.into()]);
        Self { exc_type: exc_type.into(), exc_message, exc_module: Some(exc_module.into()) }
    }

    /// Its text as Python's `str` gives it: the only argument, or all of them in brackets.
    pub fn message(&self) -> String {
        let one = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => match super::value::plain(other.clone()) {
                Value::String(text) => text,
                other => other.to_string(),
            },
        };
        match &self.exc_message {
            Value::Null => String::new(),
            Value::Array(items) => match items.as_slice() {
                [] => String::new(),
                [item] => one(item),
                items => repr::args(items),
            },
            other => one(other),
        }
    }

    /// As Python's `repr` gives it.
    pub(super) fn shown(&self) -> String {
        match &self.exc_message {
            Value::Null => repr::call(&self.exc_type, &[]),
            Value::Array(items) => repr::call(&self.exc_type, items),
            other => repr::call(&self.exc_type, std::slice::from_ref(other)),
        }
    }

    pub(super) fn read(value: &Value) -> Option<Self> {
        let map = value.as_object()?;
        let text = |key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
        let exc_message = map.get("exc_message").cloned().unwrap_or(Value::Null);
        Some(Self { exc_type: text("exc_type")?, exc_message, exc_module: text("exc_module") })
    }

    fn write(&self) -> Value {
        json!({"exc_type": self.exc_type, "exc_message": self.exc_message, "exc_module": self.exc_module})
    }
}

/// Why a stored result cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// More bytes than are read.
    #[error("the stored result has more than {CELERY_RESULT_BYTES} bytes")]
    TooLarge,
    /// It is not what Celery stores with its JSON serializer.
    #[error("not a result of Celery: {0}")]
    NotAResult(String),
}

impl MetaError {
    /// Always [`ErrorClass::Rejected`]: reading it again does not help.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Rejected
    }
}

/// A stored result.
#[derive(Debug, Clone, PartialEq)]
pub struct Meta {
    /// The task's id.
    pub task_id: String,
    /// Where it stands.
    pub state: ResultState,
    /// Its value, the progress it reported, or its exception; see [`Meta::exception`].
    pub result: Value,
    /// The stack of its exception.
    pub traceback: Option<String>,
    /// Tasks that it sent, as Celery writes them; null if nobody kept count.
    pub children: Value,
    /// When it ended.
    pub date_done: Option<String>,
    /// The group it belongs to.
    pub group_id: Option<String>,
    /// The task that sent it.
    pub parent_id: Option<String>,
    /// Further fields, as those of `result_extended`.
    pub other: Map<String, Value>,
}

impl Meta {
    /// A result in this state.
    pub fn new(task_id: impl Into<String>, state: ResultState, result: Value) -> Self {
        Self {
            task_id: task_id.into(),
            state,
            result,
            traceback: None,
            children: json!([]),
            date_done: None,
            group_id: None,
            parent_id: None,
            other: Map::new(),
        }
    }

    /// A worker has begun to run it.
    pub fn started(task_id: impl Into<String>, pid: u32, hostname: &str) -> Self {
        Self::new(task_id, ResultState::Started, json!({"pid": pid, "hostname": hostname}))
    }

    /// It runs and tells this about it.
    pub fn progress(task_id: impl Into<String>, result: Value) -> Self {
        Self::new(task_id, ResultState::Progress, result)
    }

    /// It returned this value.
    pub fn success(task_id: impl Into<String>, result: Value, done: Moment) -> Self {
        Self { date_done: Some(done.to_string()), ..Self::new(task_id, ResultState::Success, result) }
    }

    /// It failed.
    pub fn failure(task_id: impl Into<String>, exception: &Exception, traceback: Option<String>, done: Moment) -> Self {
        let date_done = Some(done.to_string());
        Self { date_done, traceback, ..Self::new(task_id, ResultState::Failure, exception.write()) }
    }

    /// It failed and will be tried again.
    pub fn retry(task_id: impl Into<String>, exception: &Exception, traceback: Option<String>) -> Self {
        Self { traceback, ..Self::new(task_id, ResultState::Retry, exception.write()) }
    }

    /// It was revoked (`revoked`, `terminated`) or came too late (`expired`).
    pub fn revoked(task_id: impl Into<String>, reason: &str, done: Moment) -> Self {
        let exception = Exception::new("celery.exceptions", "TaskRevokedError", reason);
        Self { date_done: Some(done.to_string()), ..Self::new(task_id, ResultState::Revoked, exception.write()) }
    }

    /// Reads what is stored or was published, also if its worker packed it.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn read(stored: &[u8]) -> Result<Self, MetaError> {
        if stored.len() > CELERY_RESULT_BYTES {
            return Err(MetaError::TooLarge);
        }
        let not = |why: &str| MetaError::NotAResult(why.to_owned());
        let value = json::read(&unpacked(stored)?).map_err(|error| MetaError::NotAResult(error.to_string()))?;
        let Value::Object(mut other) = value else { return Err(not("not a JSON object")) };
        let mut take = |key: &str| other.shift_remove(key).unwrap_or(Value::Null);
        let (status, task_id, result) = (take("status"), take("task_id"), take("result"));
        let state = ResultState::from(status.as_str().ok_or_else(|| not("no status"))?);
        let task_id = task_id.as_str().ok_or_else(|| not("no task id"))?.to_owned();
        // A traceback with a file name that is not UTF-8 is shown as well as it can be.
        let mut text = |key: &str| match super::value::plain(take(key)) {
            Value::String(text) => Some(text),
            _ => None,
        };
        let (traceback, date_done) = (text("traceback"), text("date_done"));
        let (group_id, parent_id) = (text("group_id"), text("parent_id"));
        let children = take("children");
        if state.is_exception() && Exception::read(&result).is_none() {
            return Err(not("its exception has no type"));
        }
        Ok(Self { task_id, state, result, traceback, children, date_done, group_id, parent_id, other })
    }

    /// Writes it as Celery does.
    pub fn write(&self) -> String {
        let mut meta = Map::new();
        meta.insert("status".to_owned(), self.state.as_str().into());
        meta.insert("result".to_owned(), self.result.clone());
        meta.insert("traceback".to_owned(), json!(self.traceback));
        meta.insert("children".to_owned(), self.children.clone());
        meta.insert("date_done".to_owned(), json!(self.date_done));
        for (key, value) in [("group_id", &self.group_id), ("parent_id", &self.parent_id)] {
            if let Some(value) = value {
                meta.insert(key.to_owned(), value.clone().into());
            }
        }
        meta.extend(self.other.clone());
        meta.insert("task_id".to_owned(), self.task_id.clone().into());
        json::write(&Value::Object(meta))
    }

    /// The exception of a failure, a retry or a revoked task.
    pub fn exception(&self) -> Option<Exception> {
        self.state.is_exception().then(|| Exception::read(&self.result)).flatten()
    }
}

/// What is stored, also if its worker packed it.
///
/// # Errors
/// [`MetaError`].
pub(super) fn unpacked(stored: &[u8]) -> Result<Cow<'_, [u8]>, MetaError> {
    let Some(rest) = stored.strip_prefix(PACKED) else { return Ok(Cow::Borrowed(stored)) };
    let end = rest.iter().position(|byte| *byte == 0);
    let end = end.ok_or_else(|| MetaError::NotAResult("it is truncated".to_owned()))?;
    let method = String::from_utf8_lossy(&rest[..end]);
    unpack(&rest[end + 1..], &method, CELERY_RESULT_BYTES).map(Cow::Owned).map_err(|error| match error {
        MessageError::TooLarge { .. } => MetaError::TooLarge,
        error => MetaError::NotAResult(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::envelope::Compression;

    #[test]
    fn every_state_survives_a_write_and_a_read() {
        let done = Moment::from_unix_micros(1_800_000_000_000_001);
        let exception = Exception { exc_message: json!(["no", 3]), ..Exception::new("builtins", "ValueError", "") };
        let mut all = vec![
            Meta::started("a", 7, "w@h"),
            Meta::progress("b", json!({"percent": 5})),
            Meta::success("c", json!(null), done),
            Meta::failure("d", &exception, Some("Traceback…".to_owned()), done),
            Meta::retry("e", &exception, None),
            Meta::revoked("f", "expired", done),
            Meta::new("g", ResultState::Other("COOKING".to_owned()), json!(1)),
        ];
        all[2].parent_id = Some("p".to_owned());
        all[2].other.insert("worker".to_owned(), json!("w@h"));
        for meta in all {
            assert_eq!(Meta::read(meta.write().as_bytes()).unwrap(), meta);
            let mut packed = [PACKED, Compression::HEADER.as_bytes(), b"\0"].concat();
            packed.extend(Compression::Zlib.pack(meta.write().as_bytes()));
            assert_eq!(Meta::read(&packed).unwrap(), meta);
        }
    }

    #[test]
    fn an_exception_shows_itself_as_in_python() {
        let with = |message: Value| Exception { exc_message: message, ..Exception::new("builtins", "E", "") }.message();
        assert_eq!(with(json!([])), "");
        assert_eq!(with(json!(["no"])), "no");
        assert_eq!(with(json!(["no", 3])), "('no', 3)");
        assert_eq!(with(json!("no")), "no");
        assert_eq!(
            Meta::revoked("f", "expired", Moment::from_unix_micros(0)).exception().unwrap().message(),
            "expired"
        );
    }

    #[test]
    fn what_is_no_result_is_refused() {
        let bad: [&[u8]; 8] = [
            b"",
            b"1",
            b"{}",
            br#"{"status": "SUCCESS"}"#,
            br#"{"status": 1, "task_id": "a"}"#,
            br#"{"status": "FAILURE", "task_id": "a", "result": "no"}"#,
            PACKED,
            b"\0celery-compressed\0x\0y",
        ];
        for bad in bad {
            assert!(matches!(Meta::read(bad), Err(MetaError::NotAResult(_))), "{bad:?}");
        }
        assert_eq!(Meta::read(&vec![b' '; CELERY_RESULT_BYTES + 1]), Err(MetaError::TooLarge));
        let bomb = Compression::Zlib.pack(&vec![b' '; CELERY_RESULT_BYTES + 1]);
        assert_eq!(Meta::read(&[PACKED, b"zlib\0", &bomb].concat()), Err(MetaError::TooLarge));
    }
}
