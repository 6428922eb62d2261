//! Logs to stderr: `RUST_LOG` says what, `--log-format` how; SIGUSR2 adds all up to debug, and takes it away again.
//! A line is only put into the queue of [`stderr`], so whoever logs waits for no reader.
//!
//! * One record is one line, of some 8 KiB at most: what a peer sent cannot begin a line of its own, colour a terminal
//!   or fill the disk.
//! * A line says which job it is about: the message's own `job <uuid>: `, else the thread's [`scope`]. In text it
//!   stands before the message, once; in JSON it is the field `job` and not in the message.
//! * Libraries below us are heard from `warn` on, whatever `RUST_LOG` says: their trace shows whole headers and frames,
//!   and so tokens and signatures. What [`redact`] knows to be a secret is hidden in every line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::panic::{PanicHookInfo, set_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use env_logger::{Builder, Logger};
use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};
use uuid::Uuid;

use super::{log_spec, stderr};
use crate::base::lock::lock;
use crate::base::scope;
use crate::base::text::truncated;
use crate::base::thread::panic_message;
use crate::ops::redact;
use crate::ops::throttle::{PlaceThrottle, Throttle};

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

/// How lines look in this process.
#[derive(Debug, Clone, Copy, Default)]
struct Look {
    format: LogFormat,
    has_colour: bool,
}

/// The flag that names the process in its lines.
pub const NAME_FLAG: &str = "--log-name";

/// What the lines of this process are headed with, where several write to one stderr.
static NAME: OnceLock<String> = OnceLock::new();

/// From now on the lines of this process have this name; the first counts.
pub fn name(name: String) {
    NAME.get_or_init(|| name);
}

/// The name of this process, if it has one.
pub(super) fn named() -> Option<&'static str> {
    NAME.get().map(String::as_str)
}

/// How long a panic waits for its line to be written: the process may end with it.
const PANIC_TIME: Duration = Duration::from_millis(100);

/// Installs the logger of the process; warnings and errors only, unless `RUST_LOG` says otherwise. A panic is logged
/// with its place.
pub fn init(format: LogFormat, default_filter: &str) {
    let asked = std::env::var_os("RUST_LOG").unwrap_or_default();
    let (spec, problems) = log_spec::understand(&asked.to_string_lossy(), default_filter);
    let usual = Builder::new().parse_filters(&spec).build();
    let debug = Builder::new().filter_level(LevelFilter::Debug).build();
    let level = usual.filter();
    let env = |name| std::env::var_os(name);
    let has_colour = format == LogFormat::Text
        && is_coloured(io::stderr().is_terminal(), env("NO_COLOR").as_deref(), env("TERM").as_deref());
    LOOK.get_or_init(|| Look { format, has_colour });
    // A second call in one process (tests) keeps the first logger.
    if log::set_boxed_logger(Box::new(Switch { usual, debug, places: Mutex::default() })).is_ok() {
        log::set_max_level(*USUAL.get_or_init(|| level));
        set_hook(Box::new(panicked));
    }
    for problem in problems {
        say(Level::Warn, format_args!("{problem}"));
    }
}

/// A terminal that shows colours gets them, unless its user wants none (`NO_COLOR`, see no-color.org).
fn is_coloured(is_terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty) && term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Places of the source at which something panicked, each with its own pace.
static PANICS: Mutex<BTreeMap<String, Throttle>> = Mutex::new(BTreeMap::new());

/// Logs where it happened, at most once in ten seconds for each place: a panic that is caught may come back with each
/// message of a peer. Who has caught it, or has spawned the thread, logs what becomes of it.
fn panicked(panic: &PanicHookInfo<'_>) {
    let message = panic_message(panic.payload());
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let line = line_of_panic(&mut lock(&PANICS), Instant::now(), place, &message);
    let Some(line) = line else { return };
    log::error!("{line}");
    let trace = std::backtrace::Backtrace::capture();
    if trace.status() == std::backtrace::BacktraceStatus::Captured {
        trace.to_string().lines().for_each(|line| log::error!("{line}"));
    }
    stderr::flush(PANIC_TIME);
}

fn line_of_panic(
    panics: &mut BTreeMap<String, Throttle>,
    now: Instant,
    place: String,
    message: &str,
) -> Option<String> {
    let text = format!("panic at {place}: {message}");
    panics.entry(place).or_default().line(now, &text)
}

/// Logs all up to debug, or again only what `RUST_LOG` says.
pub fn switch_debug() {
    let Some(usual) = USUAL.get() else { return };
    let debug = !DEBUG.fetch_xor(true, Ordering::Relaxed);
    log::set_max_level(if debug { (*usual).max(LevelFilter::Debug) } else { *usual });
    say(Level::Info, format_args!("logging {}", if debug { "all up to debug" } else { "as at the start" }));
}

/// Logs what somebody has asked for just now, whatever `RUST_LOG` says.
pub fn say(level: Level, message: fmt::Arguments<'_>) {
    put(&Record::builder().level(level).target(module_path!()).args(message).build());
}

/// The line that tells how many lines were dropped.
pub fn lost_lines(lines: u64) -> Vec<u8> {
    let what = if lines == 1 { "line is" } else { "lines are" };
    let message = format_args!("{lines} log {what} missing here: stderr could not take them");
    line_of(&Record::builder().level(Level::Warn).target(module_path!()).args(message).build())
}

/// The level of the usual logger, once there is one.
static USUAL: OnceLock<LevelFilter> = OnceLock::new();
static LOOK: OnceLock<Look> = OnceLock::new();
static DEBUG: AtomicBool = AtomicBool::new(false);

struct Switch {
    usual: Logger,
    debug: Logger,
    places: Mutex<PlaceThrottle>,
}

impl Switch {
    /// Holds back what one place logs too often, but for what only SIGUSR2 or `RUST_LOG` has asked for.
    fn throttled(&self, record: &Record<'_>) {
        let place = record.file_static().zip(record.line()).filter(|_| record.level() <= Level::Info);
        let Some(place) = place else { return put(record) };
        match lock(&self.places).admit(place, Instant::now()) {
            None => {}
            Some(0) => put(record),
            Some(more) => {
                let message = format_args!("{} (and {more} lines of this kind were left out)", record.args());
                put(&Record::builder().level(record.level()).target(record.target()).args(message).build());
            }
        }
    }
}

impl Log for Switch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.usual.enabled(metadata) || (DEBUG.load(Ordering::Relaxed) && self.debug.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if self.usual.matches(record) || (DEBUG.load(Ordering::Relaxed) && self.debug.matches(record)) {
            self.throttled(record);
        }
    }

    fn flush(&self) {
        stderr::flush(stderr::FLUSH_TIME);
    }
}

fn put(record: &Record<'_>) {
    let line = line_of(record);
    if !line.is_empty() {
        stderr::write(line);
    }
}

fn line_of(record: &Record<'_>) -> Vec<u8> {
    let mut line = Vec::with_capacity(LINE_BYTES);
    let (look, time) = (LOOK.get().copied().unwrap_or_default(), Timestamp::now());
    let thread = std::thread::current();
    let (name, scope) = (thread.name().unwrap_or("?"), scope::current());
    match write_line(&mut line, look, &format_args!("{time:.3}"), (named(), name), scope.as_deref(), record) {
        Ok(()) => line,
        // Memory takes everything.
        Err(_) => Vec::new(),
    }
}

/// Most lines are shorter.
const LINE_BYTES: usize = 256;

/// Begins the colour of a level, for a terminal.
fn colour(level: Level) -> &'static str {
    match level {
        Level::Error => "\x1b[1;31m",
        Level::Warn => "\x1b[33m",
        Level::Info => "\x1b[32m",
        Level::Debug => "\x1b[34m",
        Level::Trace => "\x1b[36m",
    }
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
    look: Look,
    time: &dyn fmt::Display,
    (process, thread): (Option<&str>, &str),
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
    match look.format {
        LogFormat::Text => {
            let job = job.map(|job| format!("job {job}: ")).unwrap_or_default();
            let line = format!("{job}{message}");
            let level = record.level();
            let (on, off) = if look.has_colour { (colour(level), "\x1b[0m") } else { ("", "") };
            let (process, gap) = process.map_or(("", ""), |name| (name, " "));
            writeln!(out, "{time} {on}{level:<5}{off} {process}{gap}[{thread}] {}", redact::OneLine(&line))
        }
        LogFormat::Json => {
            let mut line = serde_json::json!({
                "time": time.to_string(),
                "level": record.level().as_str(),
                "target": record.target(),
                "thread": thread,
                "job": job,
                "message": message,
            });
            if let Some(process) = process {
                line["process"] = process.into();
            }
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
        let look = Look { format, has_colour: false };
        write_line(&mut out, look, &"T", (None, "t-log"), scope, &record).unwrap();
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
    fn a_process_that_has_a_name_says_it() {
        let args = format_args!("hello");
        let record = Record::builder().target("phalanx").level(Level::Warn).args(args).build();
        for (format, says) in [
            (LogFormat::Text, "T WARN  miner [t-log] hello\n"),
            (LogFormat::Json, "\"message\":\"hello\",\"process\":\"miner\"}\n"),
        ] {
            let mut out = Vec::new();
            let look = Look { format, has_colour: false };
            write_line(&mut out, look, &"T", (Some("miner"), "t-log"), None, &record).unwrap();
            let line = String::from_utf8(out).unwrap();
            assert!(line.ends_with(says), "{line}");
        }
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

    #[test]
    fn a_terminal_gets_colours_unless_its_user_wants_none() {
        let coloured = |is_terminal, no_color: Option<&str>, term: Option<&str>| {
            is_coloured(is_terminal, no_color.map(OsStr::new), term.map(OsStr::new))
        };
        assert!(coloured(true, None, Some("xterm")) && coloured(true, Some(""), Some("xterm")));
        assert!(!coloured(false, None, Some("xterm")) && !coloured(true, Some("1"), Some("xterm")));
        assert!(!coloured(true, None, None) && !coloured(true, None, Some("dumb")));
        let mut out = Vec::new();
        let args = format_args!("a \x1b[31m");
        let record = Record::builder().target("phalanx::x").level(Level::Warn).args(args).build();
        let look = Look { format: LogFormat::Text, has_colour: true };
        write_line(&mut out, look, &"T", (None, "t-log"), None, &record).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "T \x1b[33mWARN \x1b[0m [t-log] a \\u{1b}[31m\n");
    }

    #[test]
    fn panics_of_one_place_are_logged_once_in_ten_seconds_and_those_of_another_at_once() {
        let (start, mut panics) = (Instant::now(), BTreeMap::new());
        let mut said =
            |seconds, place: &str| line_of_panic(&mut panics, start + Duration::from_secs(seconds), place.into(), "x");
        assert_eq!(said(0, "a.rs:1:2").unwrap(), "panic at a.rs:1:2: x");
        assert_eq!([said(1, "a.rs:1:2"), said(9, "a.rs:1:2")], [None, None]);
        assert_eq!(said(9, "b.rs:1:2").unwrap(), "panic at b.rs:1:2: x");
        assert_eq!(said(10, "a.rs:1:2").unwrap(), "panic at a.rs:1:2: x (and 2 more like it)");
    }

    #[test]
    fn a_time_is_in_utc_with_milliseconds() {
        let time = Timestamp::from_millisecond(1_700_000_000_120).unwrap();
        assert_eq!(format!("{time:.3}"), "2023-11-14T22:13:20.120Z");
    }
}
