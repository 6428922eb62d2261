//! The clients side by side: every round runs each of them once, in an order that turns, because the machine's speed
//! changes more between rounds than the clients differ.

use std::path::PathBuf;

use crate::facilitator::{self, Measured, Plan};
use crate::jobs::{Jobs, VerifyCost};
use phalanx_peers::table::{Spread, markdown};

/// The seed of the validator that the clients are; public, `//Alice`.
const VALIDATOR: &str = "0xe5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a";

#[derive(clap::Args)]
pub struct Args {
    /// How often each client runs
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    #[command(flatten)]
    load: Load,
    /// Jobs in the pass with one job at a time; 0 for no such pass
    #[arg(long, default_value_t = 300)]
    single_jobs: usize,
    /// The release binary of phalanx
    #[arg(long, default_value = "target/release/phalanx")]
    ours: PathBuf,
    /// More arguments for phalanx, separated by spaces
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    ours_args: String,
    /// A Python with websockets and bittensor-wallet
    #[arg(long, default_value = "target/venv/bin/python")]
    python: PathBuf,
    /// The Python client
    #[arg(long, default_value = "tests/peers/python_client.py")]
    python_client: PathBuf,
    /// Run only the clients whose name begins with one of these, and phalanx
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

#[derive(clap::Args)]
pub struct DriveArgs {
    #[command(flatten)]
    load: Load,
    /// The client and its arguments, with {url}, {signer} and {dir} for the facilitator's URL, the address of who signs
    /// the jobs, and an empty folder
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(clap::Args)]
struct Load {
    /// Jobs in progress at a time
    #[arg(long, default_value_t = 1024)]
    outstanding: usize,
    /// Jobs behind the warm-up, which has as many as are outstanding, at least 50
    #[arg(long, default_value_t = 8192)]
    jobs: usize,
}

struct Contender {
    name: &'static str,
    command: Vec<String>,
}

/// What the tables show of one run.
struct Figures {
    rate: f64,
    received_p50: f64,
    received_p99: f64,
    completed_p50: f64,
    cpu: f64,
    switches: f64,
    rss: f64,
    threads: f64,
    driver_cpu: f64,
    driver_load: f64,
}

impl From<Measured> for Figures {
    fn from(measured: Measured) -> Self {
        let jobs = measured.completed.len() as f64;
        let micros = |sorted: &[std::time::Duration], part: f64| {
            let last = sorted.len() - 1;
            sorted[(last as f64 * part).round() as usize].as_secs_f64() * 1e6
        };
        let Measured { begin, end, .. } = measured;
        Self {
            rate: jobs / measured.wall.as_secs_f64(),
            received_p50: micros(&measured.received, 0.5),
            received_p99: micros(&measured.received, 0.99),
            completed_p50: micros(&measured.completed, 0.5),
            cpu: (end.cpu - begin.cpu) as f64 / 1e3 / jobs,
            switches: end.switches.saturating_sub(begin.switches) as f64 / jobs,
            rss: end.peak_kib as f64 / 1024.0,
            threads: begin.threads.max(end.threads) as f64,
            driver_cpu: measured.driver_cpu as f64 / 1e3 / jobs,
            driver_load: measured.driver_cpu as f64 / measured.wall.as_nanos() as f64,
        }
    }
}

type Column = (&'static str, usize, fn(&Figures) -> f64);

const COLUMNS: [Column; 10] = [
    ("jobs/s", 0, |f| f.rate),
    ("received p50 µs", 0, |f| f.received_p50),
    ("received p99 µs", 0, |f| f.received_p99),
    ("completed p50 µs", 0, |f| f.completed_p50),
    ("CPU µs/job", 1, |f| f.cpu),
    ("switches/job", 2, |f| f.switches),
    ("RSS MiB", 1, |f| f.rss),
    ("threads", 0, |f| f.threads),
    ("driver CPU µs/job", 1, |f| f.driver_cpu),
    ("driver load", 2, |f| f.driver_load),
];

/// One pass: what each contender gave in each round, and what a signature's check cost in it.
struct Pass {
    figures: Vec<Vec<Figures>>,
    verify: Vec<VerifyCost>,
}

/// Runs all clients and prints the tables.
pub fn compare(args: &Args) -> Result<(), String> {
    let contenders = contenders(args)?;
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown");
    println!("Load of the machine before: {load}. Above 0.5 only CPU, switches and memory are worth reading.\n");
    pass(&contenders, args, &args.load)?;
    if args.single_jobs > 0 {
        pass(&contenders, args, &Load { outstanding: 1, jobs: args.single_jobs })?;
    }
    Ok(())
}

const CHECKS_TOGETHER: &str = "tokio, one thread, checks together";
const NO_CHECK: &str = "tokio, one thread, no check";

fn contenders(args: &Args) -> Result<Vec<Contender>, String> {
    let own = std::env::current_exe().map_err(|e| format!("own path: {e}"))?;
    let tokio = own.with_file_name("tokio-client");
    let link = ["--facilitator", "{url}", "--key", VALIDATOR, "--trusted-signer", "{signer}"];
    let command = |program: &[&PathBuf], verb: &[&str], rest: &[&str]| {
        let program = program.iter().map(|path| path.display().to_string());
        program.chain([verb, &link, rest].concat().iter().map(|&part| part.to_owned())).collect()
    };
    let in_memory: Vec<_> = ["--dispatch", "stub"].into_iter().chain(args.ours_args.split_whitespace()).collect();
    let on_disk = [&in_memory[..], &["--state-dir", "{dir}"]].concat();
    let tokio = [&tokio];
    let python = [&args.python, &args.python_client];
    let all = [
        ("phalanx, in memory", command(&[&args.ours], &["validator"], &in_memory)),
        ("phalanx, on disk", command(&[&args.ours], &["validator"], &on_disk)),
        ("tokio, one thread", command(&tokio, &[], &[])),
        ("tokio, two workers", command(&tokio, &[], &["--workers", "2"])),
        (CHECKS_TOGETHER, command(&tokio, &[], &["--batch-verify"])),
        (NO_CHECK, command(&tokio, &[], &["--no-verify"])),
        ("Python", command(&python, &[], &[])),
        ("Python, no check", command(&python, &[], &["--no-verify"])),
    ];
    let wanted = |name: &str| is_ours(name) || args.only.is_empty() || args.only.iter().any(|o| name.starts_with(o));
    let contenders = all.into_iter().filter(|(name, _)| wanted(name));
    Ok(contenders.map(|(name, command)| Contender { name, command }).collect())
}

fn plan<'a>(load: &Load, jobs: &'a Jobs) -> Plan<'a> {
    Plan { jobs, warm_up: load.warm_up(), outstanding: load.outstanding }
}

impl Load {
    fn warm_up(&self) -> usize {
        self.outstanding.max(50)
    }

    fn sign(&self) -> Result<Jobs, String> {
        if self.outstanding == 0 || self.jobs == 0 {
            return Err("--outstanding and --jobs should be at least 1".to_owned());
        }
        Jobs::new(self.jobs + self.warm_up())
    }
}

fn pass(contenders: &[Contender], args: &Args, load: &Load) -> Result<(), String> {
    let jobs = load.sign()?;
    let mut pass = Pass { figures: contenders.iter().map(|_| Vec::new()).collect(), verify: Vec::new() };
    for round in 0..args.rounds as usize {
        for turn in 0..contenders.len() {
            let n = (turn + round) % contenders.len();
            eprintln!(
                "round {} of {}, {} outstanding: {}",
                round + 1,
                args.rounds,
                load.outstanding,
                contenders[n].name
            );
            pass.figures[n].push(facilitator::run(&contenders[n].command, plan(load, &jobs))?.into());
        }
        pass.verify.push(jobs.verify_cost()?);
    }
    print(contenders, &pass, args.rounds, load, &jobs);
    Ok(())
}

fn print(contenders: &[Contender], pass: &Pass, rounds: u64, load: &Load, jobs: &Jobs) {
    let bytes = jobs.all()[0].text.len();
    println!(
        "### {} outstanding, {} jobs of {bytes} bytes a run, {rounds} rounds: median [min..max]\n",
        load.outstanding, load.jobs
    );
    let head = ["client"].into_iter().chain(COLUMNS.iter().map(|column| column.0));
    let rows = contenders.iter().zip(&pass.figures).map(|(contender, rounds)| {
        let cells = COLUMNS.iter().map(|(_, digits, of)| Spread::of(rounds.iter().map(of)).median_first(*digits));
        [contender.name.to_owned()].into_iter().chain(cells).collect()
    });
    println!("{}", markdown(head, rows));

    let (whole, hash) = (pass.verify.iter().map(|v| v.whole), pass.verify.iter().map(|v| v.hash));
    println!(
        "One check of a signature in a loop: {} µs CPU, {} of it canonical bytes and hash.\n",
        Spread::of(whole).median_first(1),
        Spread::of(hash).median_first(1)
    );

    let of = |name: &str| contenders.iter().position(|c| c.name == name).map(|n| &pass.figures[n]);
    let check: Option<Vec<f64>> = of(CHECKS_TOGETHER)
        .zip(of(NO_CHECK))
        .map(|(with, without)| with.iter().zip(without).map(|(with, without)| with.cpu - without.cpu).collect());
    for (our, ours) in contenders.iter().zip(&pass.figures).filter(|(c, _)| is_ours(c.name)) {
        println!("Ratios {} / peer of the same round: min / median / max\n", our.name);
        let peers = contenders.iter().zip(&pass.figures).filter(|(c, _)| !is_ours(c.name));
        let rows = peers.map(|(contender, peer)| ratios(contender.name, ours, peer, check.as_deref()));
        println!(
            "{}",
            markdown(["peer", "jobs/s", "received p50", "received p99", "CPU/job", "switches/job", "RSS"], rows)
        );
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("phalanx")
}

/// A peer that checks nothing is compared with what phalanx spends beside the check, which is taken from the tokio
/// client: what it spends with its checks together, less what it spends without.
fn ratios(name: &str, ours: &[Figures], peer: &[Figures], check: Option<&[f64]>) -> Vec<String> {
    let ratio = |of: fn(&Figures) -> f64| Spread::of(ours.iter().zip(peer).map(|(o, p)| of(o) / of(p))).in_order(2);
    if !name.ends_with("no check") {
        let rest = [ratio(|f| f.rate), ratio(|f| f.received_p50), ratio(|f| f.received_p99), ratio(|f| f.cpu)];
        let name = [name.to_owned()].into_iter();
        return name.chain(rest).chain([ratio(|f| f.switches), ratio(|f| f.rss)]).collect();
    }
    let cpu = check.map_or("-".to_owned(), |check| {
        Spread::of(ours.iter().zip(peer).zip(check).map(|((o, p), check)| (o.cpu - check) / p.cpu)).in_order(2)
    });
    let dash = || "-".to_owned();
    vec![format!("{name} (CPU less the check)"), dash(), dash(), dash(), cpu, ratio(|f| f.switches), ratio(|f| f.rss)]
}

/// Runs one client once and prints its figures.
pub fn drive(args: &DriveArgs) -> Result<(), String> {
    let jobs = args.load.sign()?;
    let figures: Figures = facilitator::run(&args.command, plan(&args.load, &jobs))?.into();
    for (name, digits, of) in COLUMNS {
        println!("{name}: {:.digits$}", of(&figures));
    }
    Ok(())
}
