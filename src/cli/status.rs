//! `phalanx status`: asks a running role how it is, for people, and for scripts by its exit code.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::app::exit;
use crate::base::shutdown::Shutdown;
use crate::net::http::client::{HttpClient, HttpError, Response};
use crate::ops::health::PartState;
use crate::ops::redact;
use crate::ops::status::{Snapshot, ThreadLine};

/// Time for the answer: a role gives it without waiting for anything.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The arguments of `phalanx status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The role's --http address, as 127.0.0.1:8080, or the URL of a proxy before it
    #[arg(long, value_name = "ADDR|URL", env = "PHALANX_HTTP")]
    http: Option<String>,
    /// Print the role's /status.json as it is
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
    /// Show the threads as well
    #[arg(long, env = "PHALANX_VERBOSE")]
    verbose: bool,
}

/// Runs the command: exit 0 if the role is ready, 1 if it is not or does not answer, 2 if the address is wrong.
///
/// Blocks for the answer, at most 10 s; a signal ends it at once.
pub fn run(args: Args) -> ExitCode {
    let url = match page_url(args.http.as_deref(), "status.json") {
        Ok(url) => url,
        Err(problem) => return exit::usage(problem),
    };
    let (response, snapshot) = match ask(&url) {
        Ok(answer) => answer,
        Err(error) => return exit::failed(format!("no role of phalanx answers: {error}")),
    };
    let mut text =
        if args.json { redact::JsonText(&response.text()).to_string() } else { page(&snapshot, args.verbose) };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => exit::failed(format!("cannot write to stdout: {error}")),
        _ if snapshot.ready => ExitCode::from(exit::DONE),
        _ => ExitCode::from(exit::FAILED),
    }
}

/// The URL of a role's page, from what the operator gives.
///
/// # Errors
/// What would be right, in words.
pub(super) fn page_url(http: Option<&str>, page: &str) -> Result<String, String> {
    let right = "give the --http address of the role, as 127.0.0.1:8080, or its URL";
    let http = http.ok_or_else(|| format!("--http is missing; {right}"))?;
    let base = if http.starts_with("http://") || http.starts_with("https://") {
        http.trim_end_matches('/').to_owned()
    } else {
        let port = http.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) || http.contains('/') {
            return Err(format!("--http {http:?}: {right}"));
        }
        // A role that listens everywhere also listens here.
        match http.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_unspecified() => {
                let here = if address.is_ipv4() { "127.0.0.1" } else { "[::1]" };
                format!("http://{here}:{}", address.port())
            }
            _ => format!("http://{http}"),
        }
    };
    Ok(format!("{base}/{page}"))
}

fn ask(url: &str) -> Result<(Response, Snapshot), HttpError> {
    let client = HttpClient::new(Shutdown::new());
    let response = client.get(url, &[], Instant::now() + ANSWER_TIME)?.ok()?;
    let snapshot = response.json()?;
    Ok((response, snapshot))
}

/// The snapshot for people.
fn page(now: &Snapshot, verbose: bool) -> String {
    let mut out = String::new();
    let ready = if now.ready { "ready" } else { "not ready" };
    line(
        &mut out,
        format_args!("{} {}, {}, up {}: {ready}", now.role, now.version, now.state, ago(now.uptime_seconds)),
    );
    for part in &now.parts {
        let why = part.why.as_deref().filter(|_| part.state != PartState::Up).map(|why| format!("  {why}"));
        line(&mut out, format_args!("  {:<16} {}{}", part.name, part.state, why.unwrap_or_default()));
    }
    details(&mut out, &now.details);
    if let Some(process) = now.process {
        let mib = process.resident_memory_bytes >> 20;
        let (threads, fds) = (process.threads, process.open_fds);
        line(&mut out, format_args!("process: {mib} MiB, {threads} threads, {fds} open files"));
    }
    if !now.errors.is_empty() {
        line(&mut out, format_args!("last errors:"));
    }
    for error in &now.errors {
        let (class, when) = (error.class, ago(error.seconds_ago));
        line(&mut out, format_args!("  {when} ago, {class}, {}: {} ({} in all)", error.place, error.text, error.count));
    }
    if !now.warnings.is_empty() {
        line(&mut out, format_args!("warnings:"));
    }
    now.warnings.iter().for_each(|warning| line(&mut out, format_args!("  {warning}")));
    if verbose {
        line(&mut out, format_args!("threads:"));
        for thread in &now.threads {
            let (age, does) = (ago(thread.age_seconds), does(thread));
            line(&mut out, format_args!("  {:<15} {age:>10}  {does}; kick: {}", thread.name, thread.kick));
        }
    }
    out
}

/// What a thread waits for, since when and until when, or since when it runs.
fn does(thread: &ThreadLine) -> String {
    let (what, time) = (thread.waits_for.as_deref(), ago(thread.for_seconds));
    let does = what.map_or_else(|| format!("runs for {time}"), |what| format!("waits for {what} for {time}"));
    match thread.left_seconds {
        None => does,
        Some(left @ 0..) => format!("{does}, {} left", ago(left.unsigned_abs())),
        Some(over) => format!("{does}, {} over its deadline", ago(over.unsigned_abs())),
    }
}

/// A line for each field, and for each entry of a list.
fn details(out: &mut String, value: &Value) {
    let Value::Object(fields) = value else { return line(out, format_args!("{}", shown(value))) };
    for (name, value) in fields {
        let Value::Array(values) = value else {
            line(out, format_args!("{name:<20} {}", shown(value)));
            continue;
        };
        line(out, format_args!("{name}: {}", if values.is_empty() { "none" } else { "" }));
        values.iter().for_each(|value| line(out, format_args!("  {}", shown(value))));
    }
}

/// A value on one line.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields.iter().map(field).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn field((name, value): (&String, &Value)) -> String {
    match value {
        Value::Object(_) | Value::Array(_) => format!("{name} ({})", shown(value)),
        value => format!("{name} {}", shown(value)),
    }
}

/// A time for people: its two largest units.
pub(super) fn ago(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// One line: what a peer wrote somewhere in it is not to begin another, or to colour the terminal.
fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{}", redact::OneLine(text.to_string().trim_end())).expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::errors::{ErrorClass, LastError};
    use crate::ops::health::Part;
    use crate::ops::process::Process;
    use crate::ops::status::RoleState;
    use serde_json::json;

    #[test]
    fn addresses_and_urls() {
        for (http, expected) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080/status.json"),
            ("localhost:1", "http://localhost:1/status.json"),
            ("0.0.0.0:8080", "http://127.0.0.1:8080/status.json"),
            ("[::]:8080", "http://[::1]:8080/status.json"),
            ("[::1]:8080", "http://[::1]:8080/status.json"),
            ("http://h:1", "http://h:1/status.json"),
            ("https://h/role/", "https://h/role/status.json"),
        ] {
            assert_eq!(page_url(Some(http), "status.json").unwrap(), expected);
        }
        assert!(page_url(None, "").unwrap_err().contains("--http is missing; give"));
        for wrong in ["", "h", "h:0", "h:99999", "ws://h:1", "h:1/x", ":x"] {
            assert!(page_url(Some(wrong), "").unwrap_err().contains("as 127.0.0.1:8080"), "{wrong}");
        }
    }

    #[test]
    fn the_page_says_all_that_the_snapshot_has() {
        let part = |name: &str, state, why: Option<&str>| Part { name: name.into(), state, why: why.map(Into::into) };
        let thread = |name: &str, age_seconds, waits_for: Option<&str>, left_seconds| ThreadLine {
            name: name.into(),
            kick: "a flag".into(),
            age_seconds,
            waits_for: waits_for.map(Into::into),
            for_seconds: 3,
            left_seconds,
        };
        let snapshot = Snapshot {
            role: "validator".into(),
            version: "1.2.3".into(),
            state: RoleState::Running,
            ready: false,
            uptime_seconds: 3_720,
            parts: vec![part("facilitator", PartState::Down, Some("refused")), part("timer", PartState::Up, None)],
            details: json!({
                "running_jobs": 3,
                "class": "always_on.test\u{1b}",
                "link": null,
                "slots": {"a": {"free": 2}},
                "sessions": [{"peer": "h:1", "age_seconds": 2}],
                "x": [],
            }),
            errors: vec![LastError {
                class: ErrorClass::Reconnect,
                place: "link".into(),
                text: "reset".into(),
                count: 4,
                seconds_ago: 90_000,
            }],
            process: Some(Process { resident_memory_bytes: 27 << 20, threads: 9, open_fds: 12 }),
            threads: vec![
                thread("timer", 61, Some("its next alarm"), Some(7)),
                thread("runs", 0, None, None),
                thread("late", 70, Some("a lock"), Some(-60)),
            ],
            warnings: vec!["thread late waits for a lock for 61.0s, 60.0s over its deadline".into()],
        };
        let short = "\
validator 1.2.3, running, up 1 h 2 min: not ready
  facilitator      down  refused
  timer            up
running_jobs         3
class                always_on.test\\u{1b}
link                 -
slots                a (free 2)
sessions:
  peer h:1, age_seconds 2
x: none
process: 27 MiB, 9 threads, 12 open files
last errors:
  1 d 1 h ago, reconnect, link: reset (4 in all)
warnings:
  thread late waits for a lock for 61.0s, 60.0s over its deadline
";
        assert_eq!(page(&snapshot, false), short);
        let threads = "\
threads:
  timer            1 min 1 s  waits for its next alarm for 3 s, 7 s left; kick: a flag
  runs                   0 s  runs for 3 s; kick: a flag
  late            1 min 10 s  waits for a lock for 3 s, 1 min 0 s over its deadline; kick: a flag
";
        assert_eq!(page(&snapshot, true), format!("{short}{threads}"));
        let read: Snapshot = serde_json::from_str(&json!(snapshot).to_string()).unwrap();
        assert_eq!(read, snapshot);
    }
}
