//! `phalanx manifests`: asks all miners of a list for what they offer, under one deadline.
//!
//! Results go to stdout: a table, or with `--json` a line for each miner, `{hotkey, outcome, manifest, error,
//! seconds}`.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::key::KeyArg;
use super::miner_list::{MISSING, MinerListArgs};
use super::values::duration;
use crate::app::output::Output;
use crate::app::{exit, supervise};
use crate::base::shutdown::{Level, Shutdown};
use crate::identity::KeyPair;
use crate::transport::Dialer;
use crate::validator::MinerAddress;
use crate::validator::manifests::fetch::{THREADS, THREADS_MAX};
use crate::validator::manifests::{AskOutcome, Fetched, Fetcher, MinerDialer};

/// The arguments of `phalanx manifests`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    key: KeyArg,
    #[command(flatten)]
    miners: MinerListArgs,
    /// One deadline for all of them
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = duration, env = "PHALANX_TIMEOUT")]
    timeout: Duration,
    /// Miners that are asked at a time, each by a thread
    #[arg(long, value_name = "N", default_value_t = THREADS, env = "PHALANX_THREADS")]
    threads: usize,
    /// Print an object for each miner
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
    #[command(flatten)]
    tls: super::tls::ClientArgs,
}

/// Runs the command: exit 0 if every miner was asked, whatever it answered, 1 if not, 2 if a flag or the file is wrong.
///
/// Blocks at most until the timeout. At Ctrl-C it reports what is there.
pub fn run(args: Args) -> ExitCode {
    let (key, miners, dialer) = match check(&args) {
        Ok(checked) => checked,
        Err(problem) => return exit::usage(problem),
    };
    supervise::with_env(|env| {
        let stop = Shutdown::new();
        let cancel = stop.clone();
        let _signal = env.shutdown.on(Level::Drain, move || cancel.cancel());
        let dialer = MinerDialer { key, dialer, timer: env.timer.clone() };
        let mut fetcher =
            Fetcher::new(args.threads, move |miner, until, stop| dialer.manifest(miner, until, stop, Level::Cancel));
        let fetched = fetcher.fetch(&miners, Instant::now() + args.timeout, &stop);
        // What is there is written after a first signal; a second one ends that.
        let out = Output::new(&env.shutdown).and_then(|mut out| {
            let text = if args.json { lines(&fetched) } else { table(&fetched) };
            out.write_all(text.as_bytes())
        });
        let all = fetched.iter().all(|miner| miner.outcome != AskOutcome::Skipped);
        match out {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                exit::failed(format!("cannot write to stdout: {error}"))
            }
            _ if all => ExitCode::from(exit::DONE),
            _ => exit::failed("not every miner was asked; see those that were skipped"),
        }
    })
}

type Checked = (KeyPair, Vec<MinerAddress>, Arc<dyn Dialer>);

/// All problems at once.
fn check(args: &Args) -> Result<Checked, String> {
    let mut problems = Vec::new();
    let key = args.key.load().map_err(|problem| problems.push(problem)).ok();
    let miners = match args.miners.load(&args.tls) {
        Ok(Some(list)) => Some(list.miners),
        Ok(None) => {
            problems.push(MISSING.to_owned());
            None
        }
        Err(problem) => {
            problems.push(problem);
            None
        }
    };
    let dialer = args.tls.load_for_many().map_err(|problem| problems.push(problem)).ok();
    if args.timeout.is_zero() {
        problems.push("--timeout is 0; give the miners some time, as 30s".to_owned());
    }
    if args.threads == 0 || args.threads > THREADS_MAX {
        problems.push(format!("--threads is {}; it should be from 1 to {THREADS_MAX}", args.threads));
    }
    match (key, miners, dialer) {
        (Some(key), Some(miners), Some(dialer)) if problems.is_empty() => Ok((key, miners, Arc::new(dialer))),
        _ => Err(problems.join("; ")),
    }
}

/// Executors by class, as an object.
fn offers(fetched: &Fetched) -> Value {
    let Some(manifest) = &fetched.manifest else { return Value::Null };
    let counts = manifest.executors.iter().map(|(class, count)| (class.to_string(), Value::from(*count)));
    Value::Object(counts.collect::<Map<_, _>>())
}

fn lines(fetched: &[Fetched]) -> String {
    let line = |fetched: &Fetched| {
        let line = json!({
            "hotkey": fetched.miner.hotkey.to_ss58(),
            "outcome": fetched.outcome,
            "manifest": offers(fetched),
            "error": fetched.error,
            "seconds": fetched.took.as_secs_f64(),
        });
        format!("{line}\n")
    };
    fetched.iter().map(line).collect()
}

/// A line for each miner, and how many there are of each outcome.
fn table(fetched: &[Fetched]) -> String {
    let mut text = format!("{:<48}  {:<14}  {:>8}  executors, or why not\n", "hotkey", "outcome", "seconds");
    for miner in fetched {
        let told = match (&miner.manifest, &miner.error) {
            (Some(manifest), _) => {
                let mut parts: Vec<String> =
                    manifest.executors.iter().map(|(class, count)| format!("{count} {class}")).collect();
                if parts.is_empty() {
                    parts.push("none".to_owned());
                }
                parts.extend(manifest.unknown.iter().map(|name| format!("unknown class \"{name}\"")));
                parts.join(", ")
            }
            (None, error) => error.clone().unwrap_or_default(),
        };
        let (hotkey, took) = (miner.miner.hotkey.to_ss58(), miner.took.as_secs_f64());
        text += &format!("{hotkey:<48}  {:<14}  {took:>8.3}  {told}\n", miner.outcome);
    }
    let counts = AskOutcome::ALL.iter().filter_map(|outcome| {
        let count = fetched.iter().filter(|miner| miner.outcome == *outcome).count();
        (count > 0).then(|| format!("{count} {outcome}"))
    });
    text + &format!("{} miners: {}\n", fetched.len(), counts.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PublicKey;
    use crate::protocol::ExecutorClass;
    use crate::validator::manifests::MinerManifest;

    fn fetched(outcome: AskOutcome) -> Fetched {
        let hotkey = PublicKey::from_bytes([7; 32]);
        let miner = MinerAddress { hotkey, address: "127.0.0.1".to_owned(), port: 1, trusted: false, tls: false };
        let manifest = MinerManifest {
            executors: [(ExecutorClass::AlwaysOnTest, 2)].into(),
            unknown: vec!["always_on.h\\n100".to_owned()],
        };
        let is_ok = outcome == AskOutcome::Ok;
        Fetched {
            miner,
            outcome,
            manifest: is_ok.then_some(manifest),
            error: (!is_ok).then(|| "why".to_owned()),
            took: Duration::from_millis(1500),
            tries: 1,
        }
    }

    #[test]
    fn results_are_lines_of_objects_or_a_table() {
        let all = [fetched(AskOutcome::Ok), fetched(AskOutcome::ProtocolError)];
        let hotkey = all[0].miner.hotkey.to_ss58();
        assert_eq!(
            lines(&all),
            format!(
                "{{\"hotkey\":\"{hotkey}\",\"outcome\":\"ok\",\"manifest\":{{\"always_on.test\":2}},\"error\":null,\
                 \"seconds\":1.5}}\n{{\"hotkey\":\"{hotkey}\",\"outcome\":\"protocol_error\",\"manifest\":null,\
                 \"error\":\"why\",\"seconds\":1.5}}\n"
            )
        );
        let table = table(&all);
        let shown: Vec<_> =
            table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            shown,
            [
                format!("{hotkey} ok 1.500 2 always_on.test, unknown class \"always_on.h\\n100\""),
                format!("{hotkey} protocol_error 1.500 why"),
                "2 miners: 1 ok, 1 protocol_error".to_owned(),
            ]
        );
    }
}
