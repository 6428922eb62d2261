//! `phalanx job trace`: the way of a job through a miner.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use serde::Deserialize;

use super::status::{ANSWER_TIME, page_url};
use super::tls::TrustArgs;
use super::values::job_uuid;
use crate::app::exit;
use crate::base::shutdown::Shutdown;
use crate::miner::trace::Trace;
use crate::net::http::client::{HttpClient, HttpError, Response};
use crate::ops::redact::{JsonText, OneLine};
use crate::protocol::DateTime;

/// The arguments of `phalanx job`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show what happened to a job at a miner, and when
    Trace(TraceArgs),
}

#[derive(Debug, clap::Args)]
struct TraceArgs {
    /// The job
    #[arg(value_name = "UUID", value_parser = job_uuid)]
    uuid: uuid::Uuid,
    /// The miner's --http address, as 127.0.0.1:8080, or the URL of a proxy before it
    #[arg(long, value_name = "ADDR|URL", env = "PHALANX_HTTP")]
    http: Option<String>,
    /// Print the miner's answer as it is
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
    #[command(flatten)]
    trust: TrustArgs,
}

#[derive(Deserialize)]
struct Traces {
    jobs: Vec<Trace>,
}

/// Runs the command: exit 0 if the miner knows the job, 1 if it does not or does not answer, 2 if the address is wrong.
///
/// Blocks for the answer, at most 10 s; a signal ends it at once.
pub fn run(args: Args) -> ExitCode {
    let Command::Trace(args) = args.command;
    let url = match page_url(args.http.as_deref(), &format!("traces/{}", args.uuid)) {
        Ok(url) => url,
        Err(problem) => return exit::usage(problem),
    };
    // Nobody raises the signal: one of the system ends the process.
    let client = match args.trust.http(Shutdown::new()) {
        Ok(client) => client,
        Err(problem) => return exit::usage(problem),
    };
    let (response, jobs) = match ask(&client, &url) {
        Ok(answer) => answer,
        Err(error) => return exit::failed(format!("no miner answers: {error}")),
    };
    if jobs.is_empty() {
        return exit::failed(format!("the miner does not know job {}; it remembers its newest thousand", args.uuid));
    }
    let text = if args.json { format!("{}\n", JsonText(&response.text())) } else { jobs.iter().map(page).collect() };
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => exit::failed(format!("cannot write to stdout: {error}")),
        _ => ExitCode::from(exit::DONE),
    }
}

fn ask(client: &HttpClient, url: &str) -> Result<(Response, Vec<Trace>), HttpError> {
    let response = client.get(url, &[], Instant::now() + ANSWER_TIME)?.ok()?;
    let traces: Traces = response.json()?;
    Ok((response, traces.jobs))
}

/// A trace for people: when each event was, how long after the one before, and what it was.
fn page(trace: &Trace) -> String {
    let began = DateTime::from_unix_micros((trace.began * 1e6) as i64);
    let class = trace.executor_class.as_deref().unwrap_or("no class");
    let (uuid, validator) = (OneLine(&trace.job_uuid), OneLine(&trace.validator));
    let mut out = format!("job {uuid} of validator {validator}, {}, asked for at {began}\n", OneLine(class));
    let mut before = 0.0;
    for line in &trace.events {
        let event = format!("{:?}", line.event);
        let (after, detail) = (line.seconds - before, OneLine(&line.detail));
        let text = format!("{:>10.3} s {after:>+10.3} s  {event:<22} {detail}", line.seconds);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", text.trim_end());
        before = line.seconds;
    }
    if trace.left_out > 0 {
        let _ = writeln!(out, "{} events before the last were left out", trace.left_out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::miner::router::TraceEvent;
    use crate::miner::trace::TraceLine;

    #[test]
    fn a_trace_has_a_line_for_each_event_and_nothing_of_it_is_obeyed() {
        let line = |seconds, event, detail: &str| TraceLine { seconds, event, detail: detail.to_owned() };
        let trace = Trace {
            job_uuid: "j\u{1b}[2J".to_owned(),
            validator: "5F".to_owned(),
            executor_class: Some("always_on.test".to_owned()),
            began: 1_700_000_000.5,
            events: vec![line(0.0, TraceEvent::Asked, ""), line(1.25, TraceEvent::Accepted, "sent")],
            left_out: 2,
        };
        assert_eq!(
            page(&trace),
            "job j\\u{1b}[2J of validator 5F, always_on.test, asked for at 2023-11-14T22:13:20.500000Z\n     \
             0.000 s     +0.000 s  Asked\n     1.250 s     +1.250 s  Accepted               sent\n\
             2 events before the last were left out\n"
        );
    }
}
