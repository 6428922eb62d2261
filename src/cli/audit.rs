//! `phalanx audit`: what a facilitator has noted of its validators and of the jobs that it gave them.

use std::io::{BufWriter, ErrorKind, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::values::duration;
use crate::app::exit;
use crate::base::clock::now;
use crate::facilitator::router::AuditEvent;
use crate::identity::PublicKey;
use crate::ops::redact::{JsonText, OneLine};
use crate::store::StoreError;
use crate::store::audit;

/// The arguments of `phalanx audit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The facilitator's state folder; it may run meanwhile
    #[arg(long, value_name = "DIR", env = "PHALANX_STATE_DIR")]
    state_dir: PathBuf,
    /// Only what happened within this time, as 2h
    #[arg(long, value_name = "DUR", value_parser = duration, env = "PHALANX_SINCE")]
    since: Option<Duration>,
    /// Only what is about this validator
    #[arg(long, value_name = "SS58", env = "PHALANX_ONLY_VALIDATOR")]
    validator: Option<PublicKey>,
    /// Only what is about this job
    #[arg(long, value_name = "UUID", env = "PHALANX_ONLY_JOB")]
    job: Option<String>,
    /// Only this event, as job_sent; may be repeated
    #[arg(long, value_enum, value_name = "EVENT", env = "PHALANX_ONLY_EVENT", value_delimiter = ',')]
    event: Vec<AuditEvent>,
    /// One JSON object a line, as it is kept
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
}

/// Runs the command: exit 0 done, 1 if the log cannot be read, 2 if there is none.
///
/// Blocks on the disk, and on whoever reads stdout.
pub fn run(args: Args) -> ExitCode {
    let since = args.since.map_or(Duration::ZERO, |since| now().wall.saturating_sub(since));
    let (mut out, mut failed, mut unread) = (BufWriter::new(stdout().lock()), None, 0_usize);
    let done = audit::read(&args.state_dir, since, |line| {
        let Ok(Value::Object(fields)) = serde_json::from_str(line) else {
            unread += 1;
            return true;
        };
        if !is_wanted(&fields, &args, since) {
            return true;
        }
        let written = match args.json {
            true => writeln!(out, "{}", JsonText(line)),
            false => writeln!(out, "{}", OneLine(&shown(&fields))),
        };
        failed = written.err();
        failed.is_none()
    });
    match done {
        Ok(()) => {}
        Err(StoreError::File { path, source }) if source.kind() == ErrorKind::NotFound => {
            let path = path.display();
            return exit::usage(format!(
                "{path} is not there: --state-dir should be the state folder of a facilitator that has run"
            ));
        }
        Err(error) => return exit::failed(error),
    }
    if unread > 0 {
        eprintln!("{unread} lines could not be read: the facilitator was ended while it wrote them");
    }
    match failed.map_or_else(|| out.flush(), Err) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => exit::failed(format!("cannot write to stdout: {error}")),
        _ => ExitCode::from(exit::DONE),
    }
}

fn is_wanted(fields: &Map<String, Value>, args: &Args, since: Duration) -> bool {
    let is = |key: &str, wanted: &str| fields.get(key).is_some_and(|value| value == wanted);
    let is_new = || {
        let at = fields.get("at").and_then(Value::as_str).and_then(|at| at.parse::<crate::protocol::DateTime>().ok());
        at.is_some_and(|at| at.unix_micros() >= i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    };
    args.validator.is_none_or(|validator| is("validator", &validator.to_ss58()))
        && args.job.as_deref().is_none_or(|job| is("job", job))
        && (args.event.is_empty() || args.event.iter().any(|event| fields.get("event") == Some(&json!(event))))
        && (args.since.is_none() || is_new())
}

/// A line for people: when, what, and each field with its name.
fn shown(fields: &Map<String, Value>) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let of = |key: &str| fields.get(key).map_or_else(|| "-".to_owned(), text);
    let rest = fields.iter().filter(|(key, _)| !["at", "event"].contains(&key.as_str()));
    let rest: String = rest.map(|(key, value)| format!("  {key} {}", text(value))).collect();
    format!("{:<27} {:<21}{rest}", of("at"), of("event"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn lines_are_chosen_by_all_that_is_asked_for() {
        let line = fields(r#"{"at":"1970-01-01T00:01:00Z","event":"job_sent","validator":"v","job":"j"}"#);
        let args = |change: &dyn Fn(&mut Args)| {
            let (state_dir, event) = (PathBuf::new(), Vec::new());
            let mut args = Args { state_dir, since: None, validator: None, job: None, event, json: false };
            change(&mut args);
            args
        };
        let wanted = |change: &dyn Fn(&mut Args), since| is_wanted(&line, &args(change), Duration::from_secs(since));
        assert!(wanted(&|_| {}, 0));
        assert!(
            wanted(&|args| args.job = Some("j".to_owned()), 0) && !wanted(&|args| args.job = Some("k".to_owned()), 0)
        );
        let alice = crate::identity::KeyPair::from_uri("//Alice").unwrap().public();
        assert!(!wanted(&|args| args.validator = Some(alice), 0));
        assert!(wanted(&|args| args.event = vec![AuditEvent::Closed, AuditEvent::JobSent], 0));
        assert!(!wanted(&|args| args.event = vec![AuditEvent::Closed], 0));
        let since = |args: &mut Args| args.since = Some(Duration::from_secs(1));
        assert!(wanted(&since, 60) && !wanted(&since, 61));
    }

    #[test]
    fn a_line_for_people_has_all_fields() {
        let line = fields(r#"{"at":"1970-01-01T00:01:00Z","event":"closed","session":3,"why":"a b"}"#);
        assert_eq!(shown(&line), "1970-01-01T00:01:00Z        closed                 session 3  why a b");
    }
}
