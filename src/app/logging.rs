//! Logs to stderr: `RUST_LOG` says what, `--log-format` how; SIGUSR2 adds all up to debug, and takes it away again.
//!
//! * One record is one line, of some 8 KiB at most: what a peer sent cannot begin a line of its own, colour a terminal
//!   or fill the disk.
//! * A line says which job it is about: the message's own `job <uuid>: `, else the thread's [`scope`]. In text it
//!   stands before the message, once; in JSON it is the field `job` and not in the message.
//! * Libraries below us are heard from `warn` on, whatever `RUST_LOG` says: their trace shows whole headers and frames,
//!   and so tokens and signatures. What [`redact`] knows to be a secret is hidden in every line.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use env_logger::{Builder, Env, Logger};
use log::{Level, LevelFilter, Log, Metadata, Record};
use uuid::Uuid;

use crate::base::scope;
use crate::base::text::truncated;
use crate::ops::redact;

/// Bytes of a message in a log line: part of it may be a peer's, and ten of these in a second are 80 KiB.
const MESSAGE_BYTES: usize = 8 << 10;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line: `time`, `level`, `target`, `thread`, `job` (null if it is about none), `message`.
    Json,
}

/// Installs the logger of the process; warnings and errors only, unless `RUST_LOG` says otherwise.
pub fn init(format: LogFormat, default_filter: &str) {
    let usual = logger(Builder::from_env(Env::default().default_filter_or(default_filter)), format);
    let mut debug = Builder::new();
    debug.filter_level(LevelFilter::Debug);
    let level = usual.filter();
    // A second call in one process (tests) keeps the first logger.
    if log::set_boxed_logger(Box::new(Switch { usual, debug: logger(debug, format) })).is_ok() {
        log::set_max_level(*USUAL.get_or_init(|| level));
    }
}

/// Logs all up to debug, or again only what `RUST_LOG` says.
pub fn switch_debug() {
    let Some(usual) = USUAL.get() else { return };
    let debug = !DEBUG.fetch_xor(true, Ordering::Relaxed);
    log::set_max_level(if debug { (*usual).max(LevelFilter::Debug) } else { *usual });
    // As an error, so that no filter hides it.
    log::error!("logging {}", if debug { "all up to debug" } else { "as at the start" });
}

/// The level of the usual logger, once there is one.
static USUAL: OnceLock<LevelFilter> = OnceLock::new();
static DEBUG: AtomicBool = AtomicBool::new(false);

struct Switch {
    usual: Logger,
    debug: Logger,
}

impl Log for Switch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.usual.enabled(metadata) || (DEBUG.load(Ordering::Relaxed) && self.debug.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if self.usual.matches(record) {
            self.usual.log(record);
        } else if DEBUG.load(Ordering::Relaxed) {
            self.debug.log(record);
        }
    }

    fn flush(&self) {
        self.usual.flush();
        self.debug.flush();
    }
}

fn logger(mut builder: Builder, format: LogFormat) -> Logger {
    builder.format(move |out, record| {
        let time = out.timestamp_millis();
        let thread = std::thread::current();
        write_line(out, format, &time, thread.name().unwrap_or("?"), scope::current().as_deref(), record)
    });
    builder.build()
}

/// The message, cut to what a line bears.
fn cut(message: &str) -> Cow<'_, str> {
    match truncated(message, MESSAGE_BYTES) {
        whole if whole.len() == message.len() => Cow::Borrowed(message),
        beginning => Cow::Owned(format!("{beginning}… (cut, {} bytes in all)", message.len())),
    }
}

fn write_line(
    out: &mut impl Write,
    format: LogFormat,
    time: &dyn fmt::Display,
    thread: &str,
    scope: Option<&str>,
    record: &Record<'_>,
) -> io::Result<()> {
    let ours = record.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
    if !ours && record.level() > Level::Warn {
        return Ok(());
    }
    let message = record.args().to_string();
    let message = redact::secrets(&message);
    let (own, message) = about(&message);
    let cut = cut(message);
    let message = cut.as_ref();
    let job = own.or(scope);
    match format {
        LogFormat::Text => {
            let job = job.map(|job| format!("job {job}: ")).unwrap_or_default();
            let line = format!("{job}{message}");
            writeln!(out, "{time} {:<5} [{thread}] {}", record.level(), redact::OneLine(&line))
        }
        LogFormat::Json => {
            let line = serde_json::json!({
                "time": time.to_string(),
                "level": record.level().as_str(),
                "target": record.target(),
                "thread": thread,
                "job": job,
                "message": message,
            });
            writeln!(out, "{}", redact::JsonText(&line.to_string()))
        }
    }
}

/// The job that a message begins with, and the rest of it.
fn about(message: &str) -> (Option<&str>, &str) {
    let parts = message.strip_prefix("job ").and_then(|rest| rest.split_once(": "));
    match parts {
        Some((uuid, rest)) if Uuid::try_parse(uuid).is_ok() => (Some(uuid), rest),
        _ => (None, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "3f3d3b38-8b0f-4a8c-a5cb-7a4c0f3b3e10";
    const OTHER: &str = "9a6c1d2e-0000-4000-8000-000000000001";

    fn line(format: LogFormat, scope: Option<&str>, target: &str, level: Level, message: &str) -> String {
        let mut out = Vec::new();
        let args = format_args!("{message}");
        let record = Record::builder().target(target).level(level).args(args).build();
        write_line(&mut out, format, &"T", "t-log", scope, &record).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn text(scope: Option<&str>, message: &str) -> String {
        line(LogFormat::Text, scope, "phalanx::x", Level::Info, message)
    }

    #[test]
    fn the_job_stands_once_before_the_message() {
        assert_eq!(text(None, "hello"), "T INFO  [t-log] hello\n");
        assert_eq!(text(Some(JOB), "hello"), format!("T INFO  [t-log] job {JOB}: hello\n"));
        assert_eq!(text(Some(JOB), &format!("job {JOB}: hello")), format!("T INFO  [t-log] job {JOB}: hello\n"));
        // The fields of a message count more than where it was logged.
        assert_eq!(text(Some(JOB), &format!("job {OTHER}: hello")), format!("T INFO  [t-log] job {OTHER}: hello\n"));
        assert_eq!(text(None, "job folder: hello"), "T INFO  [t-log] job folder: hello\n");
    }

    #[test]
    fn in_json_the_job_is_a_field() {
        let json = |scope, message: &str| -> serde_json::Value {
            serde_json::from_str(&line(LogFormat::Json, scope, "phalanx::x", Level::Info, message)).unwrap()
        };
        let both = [json(Some(JOB), "hello"), json(None, &format!("job {JOB}: hello"))];
        assert_eq!(both[0], both[1]);
        assert_eq!((both[0]["job"].as_str(), both[0]["message"].as_str()), (Some(JOB), Some("hello")));
        assert!(json(None, "hello")["job"].is_null());
    }

    #[test]
    fn a_record_is_one_line_without_passwords() {
        assert_eq!(text(None, "a\nb\u{1b}[31m ü\t."), "T INFO  [t-log] a\\nb\\u{1b}[31m ü\t.\n");
        assert_eq!(text(None, "bad url ws://u:p@h"), "T INFO  [t-log] bad url ws://…@h\n");
    }

    #[test]
    fn a_line_has_a_bound_and_says_what_was_cut() {
        let long = text(None, &"é".repeat(20 << 20));
        assert!(
            long.ends_with("é… (cut, 41943040 bytes in all)\n") && long.len() < MESSAGE_BYTES + 100,
            "{}",
            long.len()
        );
        let whole = "x".repeat(MESSAGE_BYTES);
        assert_eq!(text(None, &whole), format!("T INFO  [t-log] {whole}\n"));
    }

    #[test]
    fn libraries_log_from_warn_on() {
        let logged = |target: &str, level| !line(LogFormat::Text, None, target, level, "x").is_empty();
        assert!(logged("phalanx", Level::Trace) && logged("phalanx::link", Level::Trace));
        assert!(logged("rustls::conn", Level::Warn));
        for target in ["rustls::conn", "tungstenite::protocol", "ureq", "phalanxy"] {
            assert!(!logged(target, Level::Info), "{target}");
        }
    }
}
