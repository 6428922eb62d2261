//! `phalanx top`: all roles given, looked at again and again.
//!
//! Owner of `top-keys` and `top-ask-N`: [`run`]. They block in: `poll` of the terminal; an answer, and the pause before
//! the next question. Kick: a wake; the signal of the questions. They end: with the command, at a key or a signal, or
//! when the terminal has gone.
//!
//! * `keys`: what was pressed. Pure.
//! * `model`: what is shown. Pure.
//! * `terminal`: the terminal.

mod keys;
mod model;
mod terminal;

use std::io;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use self::keys::{Key, keys};
use self::model::Top;
use self::terminal::Terminal;
use super::status::{ask, page_urls, problem_of_watch};
use super::tls::TrustArgs;
use super::values::duration;
use crate::app::output::Output;
use crate::app::{exit, supervise};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::net::http::client::HttpClient;
use crate::net::wake::Wake;
use crate::ops::status::Snapshot;

/// Roles at most: each has a thread.
const ROLES: usize = 32;

/// Bytes of keys that are read at a time.
const KEY_BYTES: usize = 256;

/// Keys and answers that wait for the screen; whoever has more waits.
const QUEUE: usize = 64;

/// The arguments of `phalanx top`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The --http address of a role, as 127.0.0.1:8080, or the URL of a proxy before it; may be repeated
    #[arg(long, value_name = "ADDR|URL", env = "PHALANX_HTTP", value_delimiter = ',')]
    http: Vec<String>,
    /// The time between two looks at a role
    #[arg(long, value_name = "DUR", default_value = "2s", value_parser = duration, env = "PHALANX_INTERVAL")]
    interval: Duration,
    #[command(flatten)]
    trust: TrustArgs,
}

/// What one role has answered, or why it has not.
type Answer = (usize, Result<Box<Snapshot>, String>);

/// Runs the command on the terminal until a key or a signal ends it: exit 0; 1 if there is no terminal, 2 if an
/// argument is wrong.
pub fn run(args: Args) -> ExitCode {
    let urls = match check(&args) {
        Ok(urls) => urls,
        Err(problem) => return exit::usage(problem),
    };
    supervise::with_env(|env| {
        // Whoever closes the terminal wants to see no more.
        let hung_up = env.shutdown.clone();
        env.reload.set(move || hung_up.drain());
        let stop = Shutdown::new();
        let stopped = stop.clone();
        let _first = env.shutdown.on(Level::Drain, move || stopped.cancel());
        let client = match args.trust.http(stop.clone()) {
            Ok(client) => Arc::new(client),
            Err(problem) => return exit::usage(problem),
        };
        let terminal = Output::new(&stop).and_then(Terminal::take);
        let terminal = match terminal {
            Ok(terminal) => terminal,
            Err(error) => {
                return exit::failed(format!("top needs a terminal ({error}); `phalanx status --watch` needs none"));
            }
        };
        let (pressed, keys) = bounded(QUEUE);
        let wake = match Wake::new() {
            Ok(wake) => wake,
            Err(error) => return exit::failed(format!("cannot wait for keys: {error}")),
        };
        let (answers, answered) = bounded(QUEUE);
        let mut threads = vec![read_keys(wake, pressed)];
        for (number, url) in urls.into_iter().enumerate() {
            threads.push(ask_again(number, (client.clone(), url), args.interval, (answers.clone(), stop.clone())));
        }
        drop(answers);
        let shown = show(Top::new(&args.http), terminal, &keys, &answered, &stop);
        stop.cancel();
        // Whoever waits to put something into a queue waits no more.
        drop((keys, answered));
        let code = supervise::stop_within(env, supervise::CLOSING, |stopping| {
            stopping.step("top", supervise::CLOSING, |step| {
                threads.iter().for_each(Thread::kick);
                step.join_all(threads);
            });
        });
        match shown {
            // A signal, or a terminal that has gone, is an end like any other.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                exit::failed(format!("cannot write to the terminal: {error}"))
            }
            _ => code,
        }
    })
}

fn check(args: &Args) -> Result<Vec<String>, String> {
    if let Some(problem) = problem_of_watch(args.interval) {
        return Err(format!("--interval: {problem}"));
    }
    if args.http.len() > ROLES {
        return Err(format!("--http is given {} times; top shows {ROLES} roles at most", args.http.len()));
    }
    page_urls(&args.http, "status.json")
}

/// Draws after each key and answer, until a key or `stop` ends it; the terminal is as it was then.
fn show(
    mut top: Top,
    mut terminal: Terminal,
    keys: &Receiver<Key>,
    answered: &Receiver<Answer>,
    stop: &Shutdown,
) -> io::Result<()> {
    loop {
        let (columns, rows) = terminal.size();
        terminal.show(&top.screen(columns, rows, Instant::now()))?;
        let _waiting = waiting("a key or an answer", None);
        select! {
            recv(keys) -> key => match key {
                Ok(key) if top.key(key) => {}
                _ => return Ok(()),
            },
            recv(answered) -> answer => match answer {
                Ok((role, answer)) => top.answered(role, answer, Instant::now()),
                Err(_) => return Ok(()),
            },
            recv(stop.cancel_receiver()) -> _ => return Ok(()),
        }
    }
}

/// The thread that reads keys until it is kicked or the terminal has gone.
fn read_keys(wake: Wake, pressed: Sender<Key>) -> Thread<()> {
    let kick = wake.clone();
    spawn("top-keys", Kick::new("its wake", move || kick.raise()), move || {
        let stdin = io::stdin();
        let mut bytes = [0; KEY_BYTES];
        loop {
            let mut ready = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&wake, PollFlags::IN)];
            let waits = waiting("a key", None);
            let polled = poll(&mut ready, None);
            drop(waits);
            match polled {
                Err(Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) if !ready[1].revents().is_empty() => return,
                Ok(_) => {}
            }
            let read = match rustix::io::read(stdin.as_fd(), &mut bytes) {
                Err(Errno::INTR) => continue,
                Ok(0) | Err(_) => vec![Key::Quit],
                Ok(read) => keys(&bytes[..read]),
            };
            let gone = read.iter().any(|key| pressed.send(*key).is_err());
            if gone || read.contains(&Key::Quit) {
                return;
            }
        }
    })
}

/// A thread that asks one role over and over, until the signal cancels.
fn ask_again(
    number: usize,
    (client, url): (Arc<HttpClient>, String),
    pause: Duration,
    (answers, stop): (Sender<Answer>, Shutdown),
) -> Thread<()> {
    let kick = stop.clone();
    spawn(format!("top-ask-{number}"), Kick::new("the signal of top", move || kick.cancel()), move || {
        loop {
            let answer = ask(&client, &url).map(|(_, snapshot)| Box::new(snapshot)).map_err(|e| e.to_string());
            if answers.send((number, answer)).is_err() || stop.wait(pause) {
                return;
            }
        }
    })
}
