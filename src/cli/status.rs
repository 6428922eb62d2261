//! `phalanx status`: asks running roles how they are, for people, and for scripts by its exit code.

use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::layout::{self, Line, Palette, lay_out, plain};
use super::tls::TrustArgs;
use super::values::duration;
use crate::app::exit;
use crate::base::shutdown::Shutdown;
use crate::net::http::client::{HttpClient, HttpError, Response};
use crate::ops::overview::{Tone, overview, threads};
use crate::ops::redact;
use crate::ops::status::Snapshot;

pub(super) use crate::ops::overview::words::{ago, count};

/// Time for the answer: a role gives it without waiting for anything.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The shortest time between two looks at a role.
pub(super) const LEAST_WATCH: Duration = Duration::from_millis(200);

/// Rows of a table without --all.
const ROWS: usize = 10;

/// Columns where stdout is no terminal.
const COLUMNS: usize = 80;

/// The arguments of `phalanx status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The role's --http address, as 127.0.0.1:8080, or the URL of a proxy before it; may be repeated
    #[arg(long, value_name = "ADDR|URL", env = "PHALANX_HTTP", value_delimiter = ',')]
    http: Vec<String>,
    /// Print the role's /status.json as it is; of several roles a line each
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
    /// Show the threads as well
    #[arg(long, env = "PHALANX_VERBOSE")]
    verbose: bool,
    /// Show all rows of each list, not only the first ten
    #[arg(long, env = "PHALANX_ALL")]
    all: bool,
    /// Look again after this time, over and over, until a signal ends it [default without a value: 2s]
    #[arg(
        long, value_name = "DUR", value_parser = duration, env = "PHALANX_WATCH", num_args = 0..=1,
        require_equals = true, default_missing_value = "2s"
    )]
    watch: Option<Duration>,
    #[command(flatten)]
    trust: TrustArgs,
}

/// Runs the command: exit 0 if all roles are ready, 1 if one is not or does not answer, 2 if an address is wrong.
///
/// Blocks for the answers, each at most 10 s, with --watch for ever; a signal ends it at once.
pub fn run(args: Args) -> ExitCode {
    let urls = match page_urls(&args.http, "status.json") {
        Ok(urls) => urls,
        Err(problem) => return exit::usage(problem),
    };
    if let Some(problem) = args.watch.and_then(problem_of_watch) {
        return exit::usage(problem);
    }
    // Nobody raises it: a signal ends the process.
    let stop = Shutdown::new();
    let client = match args.trust.http(stop.clone()) {
        Ok(client) => client,
        Err(problem) => return exit::usage(problem),
    };
    loop {
        let (text, ready) = look(&args, &client, &urls);
        let text = if args.watch.is_some() && std::io::stdout().is_terminal() { in_place(&text) } else { text };
        let mut stdout = std::io::stdout();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                return exit::failed(format!("cannot write to stdout: {error}"));
            }
            written => match args.watch.filter(|_| written.is_ok()) {
                Some(pause) => drop(stop.wait(pause)),
                // A reader that has seen enough is no failure.
                None if ready => return ExitCode::from(exit::DONE),
                None => return ExitCode::from(exit::FAILED),
            },
        }
    }
}

/// What is wrong with a time between two looks.
pub(super) fn problem_of_watch(pause: Duration) -> Option<String> {
    (pause < LEAST_WATCH).then(|| format!("the time between two looks is {pause:?}; it should be 200ms or more"))
}

/// Asks all roles, in their order; gives what is to be printed, and whether all are ready. One that does not answer is
/// said on stderr.
fn look(args: &Args, client: &HttpClient, urls: &[String]) -> (String, bool) {
    let terminal = std::io::stdout().is_terminal();
    let (width, palette) = (columns().unwrap_or(COLUMNS), palette(terminal));
    let (mut text, mut ready) = (String::new(), true);
    for url in urls {
        match ask(client, url) {
            Err(error) => {
                ready = false;
                // Its code is the same for all.
                let _failed = exit::failed(format!("no role of phalanx answers: {error}"));
            }
            Ok((response, snapshot)) => {
                ready &= snapshot.ready;
                if args.json {
                    let json = redact::JsonText(&response.text()).to_string();
                    put(&mut text, format_args!("{}\n", json.trim_end()));
                    continue;
                }
                if !text.is_empty() {
                    text.push('\n');
                }
                for line in page(&snapshot, args, width) {
                    put(&mut text, format_args!("{}\n", palette.paint(&line)));
                }
            }
        }
    }
    (text, ready)
}

/// Colours on a terminal, unless `NO_COLOR` is set.
pub(super) fn palette(is_terminal: bool) -> Palette {
    Palette::new(is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
}

/// Over what stood there before, without a flicker: each line is cleared to its end, and then what is below.
fn in_place(text: &str) -> String {
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

/// The columns of the terminal; `None` if stdout is none, or does not say.
fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// The URLs of the pages of several roles.
///
/// # Errors
/// As [`page_url`], of the first that is wrong.
pub(super) fn page_urls(http: &[String], page: &str) -> Result<Vec<String>, String> {
    if http.is_empty() {
        return page_url(None, page).map(|url| vec![url]);
    }
    http.iter().map(|http| page_url(Some(http), page)).collect()
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

/// Asks for a snapshot. Blocks for the answer, at most 10 s, or until the client's signal cancels.
pub(super) fn ask(client: &HttpClient, url: &str) -> Result<(Response, Snapshot), HttpError> {
    let response = client.get(url, &[], Instant::now() + ANSWER_TIME)?.ok()?;
    let snapshot = response.json()?;
    Ok((response, snapshot))
}

/// The snapshot for people.
fn page(now: &Snapshot, args: &Args, width: usize) -> Vec<Line> {
    let overview = overview(now);
    let (ready, tone) = if now.ready { ("ready", Tone::Good) } else { ("not ready", Tone::Bad) };
    let mut head = plain(format!("{}: ", layout::cut(&overview.headline, width.saturating_sub(ready.len() + 2))));
    head.push(layout::Span { text: ready.to_owned(), tone });
    let rows = (!args.all).then_some(ROWS);
    let mut lines = vec![head];
    lines.extend(lay_out(&overview.sections, width, rows));
    if args.verbose {
        lines.extend(lay_out(&[threads(now)], width, None));
    }
    lines
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::errors::{ErrorClass, LastError};
    use crate::ops::health::{Part, PartState};
    use crate::ops::jobs::{JobFacts, Jobs};
    use crate::ops::process::Process;
    use crate::ops::status::{RoleState, ThreadLine};
    use serde_json::json;
    use unicode_width::UnicodeWidthStr;

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

    fn args(more: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Command {
            #[command(flatten)]
            args: Args,
        }
        <Command as clap::Parser>::parse_from([&["status"], more].concat()).args
    }

    fn snapshot() -> Snapshot {
        let part = |name: &str, state, why: Option<&str>| Part { name: name.into(), state, why: why.map(Into::into) };
        let thread = |name: &str, age_seconds, waits_for: Option<&str>, left_seconds| ThreadLine {
            name: name.into(),
            kick: "a flag".into(),
            age_seconds,
            waits_for: waits_for.map(Into::into),
            for_seconds: 3,
            left_seconds,
        };
        let jobs = Jobs::default();
        let uuid = "11111111-2222-3333-4444-555555555555";
        let (peer, tag) = ("5".repeat(48), "a\u{1b}[2J");
        jobs.begin(uuid, JobFacts { peer: &peer, class: "always_on.test", tag, user: "" }, "sent");
        jobs.end("x", "completed", None);
        (0..8).for_each(|_| jobs.end("x", "rejected", None));
        Snapshot {
            role: "validator".into(),
            version: "1.2.3".into(),
            state: RoleState::Running,
            ready: false,
            paused: None,
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
            jobs: jobs.view(),
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
        }
    }

    fn text(now: &Snapshot, more: &[&str], width: usize) -> String {
        page(now, &args(more), width).iter().map(|line| layout::text_of(line) + "\n").collect()
    }

    #[test]
    fn the_page_says_all_that_the_snapshot_has() {
        let now = snapshot();
        let short = text(&now, &[], 80);
        // The minute in which the jobs ended may be over.
        let short: Vec<&str> = short.lines().filter(|line| !line.contains('█')).collect();
        let expected = "\
validator 1.2.3, running, up 1 h 2 min: not ready
  facilitator            down  refused
  timer                  up
warnings:
  thread late waits for a lock for 61.0s, 60.0s over its deadline
jobs:
  open                   1
  completed              1
  rejected               8
  ended                  9 in all, 9 in the last 5 min, 9 in the last hour
ended in each of the last 60 minutes:
open jobs:
  JOB                                   STAGE  FOR  AGE   MINER
  11111111-2222-3333-4444-555555555555  sent   0 s  0 ms  555555555555555555555…
validator:
  running jobs           3
  class                  always_on.test\\u{1b}
  x                      none
slots:
  NAME  FREE
  a     2
sessions:
  PEER  AGE
  h:1   2 s
process:
  memory                 27.0 MiB
  threads                9
  open files             12
last errors:
  AGO      CLASS      PLACE  IN ALL  ERROR
  1 d 1 h  reconnect  link   4       reset";
        assert_eq!(short, expected.lines().collect::<Vec<_>>());
        let threads = "\
threads:
  timer                   1 min 1 s  waits for its next alarm for 3 s, 7 s left; kick: a flag
  runs                          0 s  runs for 3 s; kick: a flag
  late                   1 min 10 s  waits for a lock for 3 s, 1 min 0 s over its deadline; kick: a flag
";
        assert!(text(&now, &["--verbose"], 120).ends_with(threads), "{}", text(&now, &["--verbose"], 120));
        let read: Snapshot = serde_json::from_str(&json!(now).to_string()).unwrap();
        assert_eq!(read, now);
    }

    #[test]
    fn it_fits_into_eighty_columns() {
        for width in [40, 60, 80] {
            let shown = text(&snapshot(), &["--verbose"], width);
            assert!(shown.lines().all(|line| line.width() <= width), "{width}:\n{shown}");
        }
    }
}
