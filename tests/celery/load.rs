//! Load for the tests of faults: workers of ours, and producers of ours and of Celery's that feed them; and what became
//! of each task.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::base::lock::lock;
use phalanx::base::rng::Rng;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::celery::worker::{Registry, WorkerConfig};
use phalanx::celery::{CeleryHandle, PendingResult, SendError, Task};
use phalanx::ops::health::PartState;
use phalanx::redis::RedisConfig;
use serde_json::json;

use crate::example;
use crate::testkit::celery::{Client, Feed, Ours, settings};
use crate::testkit::redis::{RedisServer, often};
use crate::testkit::wait::{LONG, far, until};

const SECOND: Duration = Duration::from_secs(1);

/// How often something is done: as the variable says, or `everyday` times.
pub fn times(variable: &str, everyday: usize) -> usize {
    std::env::var(variable).map_or(everyday, |n| n.parse().unwrap_or_else(|_| panic!("{variable}: a number")))
}

/// A generator whose seed is printed.
pub fn seeded() -> Rng {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    Rng::new(seed)
}

/// Which tasks have run: the id, what tells the message from all others, and whether it was marked as delivered before.
#[derive(Clone, Default)]
pub struct Runs(Arc<Mutex<Vec<(String, String, bool)>>>);

/// What the runs were, by tasks.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    pub once: usize,
    /// Of these, some were marked: they had been delivered before but had not run.
    pub marked: usize,
    /// Run more than once, and each time but the first marked.
    pub again: usize,
    /// Celery's producer repeats what it is not sure of, as a new message.
    pub sent_twice: usize,
    /// Never run.
    pub lost: usize,
    /// Run more than once, and not marked.
    pub unmarked: usize,
}

impl Runs {
    /// The task `once`, which ought to run once.
    pub fn registry(&self) -> Registry {
        let runs = self.0.clone();
        example::registry().register("once", move |cx, _| {
            lock(&runs).push((cx.id().to_owned(), cx.message().delivery_tag.clone(), cx.redelivered()));
            Ok(json!(cx.id()))
        })
    }

    pub fn count(&self) -> usize {
        lock(&self.0).len()
    }

    /// What has become of these.
    pub fn account(&self, sent: &[String]) -> Verdict {
        let (mut tasks, mut verdict) = (BTreeMap::<String, BTreeMap<String, Vec<bool>>>::new(), Verdict::default());
        for (id, tag, marked) in &*lock(&self.0) {
            tasks.entry(id.clone()).or_default().entry(tag.clone()).or_default().push(*marked);
        }
        for id in sent {
            let Some(messages) = tasks.remove(id) else {
                verdict.lost += 1;
                continue;
            };
            verdict.sent_twice += messages.len() - 1;
            let again = messages.values().any(|runs| runs.len() > 1);
            let unmarked = messages.values().any(|runs| runs.iter().skip(1).any(|marked| !marked));
            *(match (again, unmarked) {
                (_, true) => &mut verdict.unmarked,
                (true, false) => &mut verdict.again,
                (false, false) => &mut verdict.once,
            }) += 1;
            verdict.marked += usize::from(!again && messages.values().any(|runs| runs[0]));
        }
        assert!(tasks.is_empty(), "from nowhere: {tasks:?}");
        verdict
    }

    /// That each of these has run, and no message twice without a mark.
    pub fn judge(&self, sent: &[String]) -> Verdict {
        let verdict = self.account(sent);
        assert_eq!((verdict.lost, verdict.unmarked), (0, 0), "{verdict:?}");
        verdict
    }
}

/// Settings of a worker that soon loses its patience.
pub fn hasty(redis: RedisConfig) -> WorkerConfig {
    let mut config = settings(RedisConfig { operation_time: SECOND / 2, ..often(redis) });
    config.concurrency = 2;
    config
}

/// What the board says of the part that takes.
pub fn taking(worker: &Ours) -> PartState {
    let parts = worker.board.health.parts(Instant::now());
    parts.into_iter().find(|part| part.name == "cel-take").expect("it is a part").state
}

/// What `/readyz` would say.
pub fn is_ready(worker: &Ours) -> bool {
    worker.board.health.parts(Instant::now()).iter().all(|part| part.state == PartState::Up)
}

pub fn nothing_is_held(worker: &Ours, server: &RedisServer) {
    until("everything is settled", || worker.state().counts.total() == 0);
    assert_eq!(server.cli::<usize>(&["HLEN", "unacked"]), 0);
    assert_eq!(server.cli::<usize>(&["ZCARD", "unacked_index"]), 0);
    assert_eq!(server.cli::<usize>(&["LLEN", "celery"]), 0);
}

/// Two workers and two producers of ours at work; a [`Feed`] sends beside them.
pub struct Load {
    pub workers: Vec<Ours>,
    pub runs: Runs,
    client: Client,
    done: Arc<AtomicBool>,
    producers: Vec<Thread<Vec<PendingResult>>>,
    theirs: Vec<String>,
}

/// What a load was, and what became of it.
pub struct Figures {
    pub sent: usize,
    /// By our client.
    pub ours: usize,
    /// Results of ours that were found.
    pub results: usize,
    pub verdict: Verdict,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sent, ours, results, verdict } = self;
        let Verdict { once, marked, again, sent_twice, lost, unmarked } = verdict;
        write!(
            f,
            "{sent} sent ({ours} by our client, {sent_twice} twice by Celery's), {once} run once ({marked} of them \
             marked), {again} run again and marked, {unmarked} run again unmarked, {lost} lost, {results} results of \
             ours found"
        )
    }
}

impl Load {
    /// Waits until the workers are ready. A producer waits for every second of its results, so that there is always
    /// something on its way, and no longer than `patience`: then it may be lost.
    pub fn start(config: impl Fn() -> WorkerConfig, patience: Duration) -> Self {
        let runs = Runs::default();
        let workers: Vec<_> = (0..2).map(|_| Ours::ready(config(), runs.registry())).collect();
        let client = Client::start(config().redis);
        let done = Arc::new(AtomicBool::new(false));
        let producers = (0..2).map(|n| producer(n, client.handle(), &done, patience)).collect();
        Self { workers, runs, client, done, producers, theirs: Vec::new() }
    }

    /// Has Celery's producer send some, which goes on while other things happen.
    pub fn burst(&self, feed: &mut Option<Feed>) {
        if let Some(feed) = feed {
            feed.report(&json!({"do": "send_many", "specs": vec![json!({"task": "once"}); 20]}));
        }
    }

    /// Waits until Celery's producer has sent those.
    pub fn gather(&mut self, feed: &mut Option<Feed>) {
        if let Some(feed) = feed {
            let ids = feed.answer()["ids"].take();
            self.theirs.extend(ids.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()));
        }
    }

    /// Until some more tasks have run.
    pub fn goes_on(&self, rng: &mut Rng) {
        let goal = self.runs.count() + 1 + (rng.next_u64() % 200) as usize;
        until("work goes on", || self.runs.count() >= goal);
    }

    /// How often the workers have failed to take or to settle.
    pub fn errors(&self) -> Vec<u64> {
        let of = |worker: &Ours| worker.board.errors.last_errors().iter().map(|error| error.count).sum();
        self.workers.iter().map(of).collect()
    }

    /// Whether each worker has reported an error since, with which it was not ready.
    pub fn has_noticed(&self, before: &[u64]) -> bool {
        self.errors().iter().zip(before).all(|(now, before)| now > before)
    }

    /// Until no worker is ready any more.
    pub fn until_not_ready(&self) {
        until("they say that they are not ready", || self.workers.iter().all(|worker| !is_ready(worker)));
    }

    /// Until all workers are ready again.
    pub fn until_ready(&self) {
        until("they say that they are ready", || self.workers.iter().all(is_ready));
    }

    /// Ends the load, waits for what was sent, and gives what has come of it: with `strict` nothing may be lost.
    pub fn end(self, feed: &mut Option<Feed>, server: &RedisServer, strict: bool) -> Figures {
        let Self { workers, runs, client, done, producers, theirs } = self;
        done.store(true, Ordering::SeqCst);
        let pending: Vec<_> = producers.into_iter().flat_map(|thread| thread.join_by(far()).unwrap()).collect();
        until("nothing waits any more", || {
            let idle = workers.iter().all(|worker| worker.state().counts.total() == 0);
            idle && server.cli::<usize>(&["LLEN", "celery"]) + server.cli::<usize>(&["HLEN", "unacked"]) == 0
        });
        let results = match strict {
            true => {
                for pending in &pending {
                    assert_eq!(pending.wait(LONG), Ok(json!(pending.id())));
                }
                pending.len()
            }
            false => pending.iter().filter(|pending| pending.wait(SECOND / 100).is_ok()).count(),
        };
        if let Some(feed) = feed.as_mut().filter(|_| strict) {
            let states = feed.ask("wait_many", json!({"ids": theirs}));
            assert_eq!(states["states"], json!({"SUCCESS": theirs.len()}));
        }
        workers.iter().for_each(|worker| nothing_is_held(worker, server));
        let ours = pending.len();
        let ids: Vec<_> = pending.iter().map(|pending| pending.id().to_owned()).chain(theirs).collect();
        drop(pending);
        let verdict = if strict { runs.judge(&ids) } else { runs.account(&ids) };
        client.stop();
        Figures { sent: ids.len(), ours, results, verdict }
    }
}

fn producer(
    number: usize,
    celery: CeleryHandle,
    done: &Arc<AtomicBool>,
    patience: Duration,
) -> Thread<Vec<PendingResult>> {
    let (done, kicked) = (done.clone(), done.clone());
    let kick = Kick::new("its flag", move || kicked.store(true, Ordering::SeqCst));
    spawn(format!("t-send-{number}"), kick, move || {
        let mut sent = Vec::new();
        while !done.load(Ordering::SeqCst) {
            let Some(pending) = send(&celery, &done) else { continue };
            if sent.len() % 2 == 0 {
                // It may be lost, which the end shows.
                let _ = pending.wait(patience);
            }
            sent.push(pending);
        }
        sent
    })
}

/// Sends one task, again as long as Redis would not have it.
fn send(celery: &CeleryHandle, done: &AtomicBool) -> Option<PendingResult> {
    let (id, never) = (uuid::Uuid::new_v4().to_string(), Shutdown::new());
    while !done.load(Ordering::SeqCst) {
        match celery.send_by(Task::new("once").id(&id), far()) {
            Ok(pending) => return Some(pending),
            Err(SendError::NotSent { .. }) => never.wait(SECOND / 100),
            // The test has failed.
            Err(SendError::Stopped) => return None,
            Err(error) => panic!("{error}"),
        };
    }
    None
}
