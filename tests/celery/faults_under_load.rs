//! What happens to a Redis in use, again and again under the load of our producers and Celery's: connections are ended,
//! it is full, rights and passwords change, it answers nobody for a while, and fails over to its replica. Nothing is
//! lost, nothing runs twice unmarked, and the workers say that they are not ready as long as they cannot work.
//!
//! How often each happens a variable says: `PHALANX_REDIS_CUT`, `PHALANX_REDIS_FULL`, `PHALANX_REDIS_RIGHTS`,
//! `PHALANX_REDIS_SLEEPS`, `PHALANX_REDIS_FROZEN`, `PHALANX_REDIS_FAILOVERS`.

use std::time::{Duration, Instant};

use phalanx::base::rng::Rng;
use phalanx::celery::worker::WorkerConfig;
use phalanx::redis::RedisConfig;
use serde_json::json;

use crate::celery_settings::rule;
use crate::load::{Load, hasty, seeded, times};
use crate::remote::{Scene, jobs, stopped};
use crate::testkit::celery::Feed;
use crate::testkit::redis::{RedisServer, Sentinel, free_port, often};
use crate::testkit::scripted_facilitator::GOOD;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, until};

const SECOND: Duration = Duration::from_secs(1);

/// Rights of which one is taken away at a time.
const RIGHTS: [&str; 7] = ["evalsha", "hdel", "hset", "lpush", "publish", "rpop", "zadd"];

/// Does harm until the workers have noticed it, and undoes it.
type Strike = fn(&RedisServer, &Load, &mut Rng);

fn cut(server: &RedisServer, load: &Load, _: &mut Rng) {
    let before = load.errors();
    for kind in ["normal", "pubsub"] {
        server.cli::<usize>(&["CLIENT", "KILL", "TYPE", kind]);
    }
    // They may be back before anybody can look.
    until("they have noticed", || load.has_noticed(&before));
}

fn fill(server: &RedisServer, load: &Load, _: &mut Rng) {
    let room = |bytes: &str| server.cli::<()>(&["CONFIG", "SET", "maxmemory", bytes]);
    room("1");
    load.until_not_ready();
    room("0");
}

fn take_rights(server: &RedisServer, load: &Load, rng: &mut Rng) {
    let user = |rules: &[&str]| server.cli::<()>(&[&["ACL", "SETUSER", "app"], rules].concat());
    let chosen = rng.next_u64() as usize % (RIGHTS.len() + 1);
    match RIGHTS.get(chosen) {
        Some(right) => {
            user(&[&format!("-{right}")]);
            load.until_not_ready();
            user(&[&format!("+{right}")]);
        }
        None => {
            user(&["resetpass", ">OTHER"]);
            server.cli::<usize>(&["CLIENT", "KILL", "USER", "app"]);
            load.until_not_ready();
            user(&["resetpass", ">PASSWORD"]);
        }
    }
}

/// How long it sleeps is fixed beforehand, so it does so until that was noticed.
fn sleep(server: &RedisServer, load: &Load, _: &mut Rng) {
    let before = load.errors();
    while !load.has_noticed(&before) {
        server.cli::<()>(&["DEBUG", "SLEEP", "1.8"]);
    }
}

fn freeze(server: &RedisServer, load: &Load, _: &mut Rng) {
    server.pause();
    load.until_not_ready();
    server.resume();
}

#[test]
fn whatever_happens_to_redis_under_load_nothing_is_lost_or_run_twice_unmarked_and_readiness_tells() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start_with(&["--enable-debug-command", "local"]) else { return };
    let mut rng = seeded();
    let _: () = server.cli(&rule());
    let redis = RedisConfig::parse(&format!("redis://app:PASSWORD@127.0.0.1:{}/0", server.port())).unwrap();
    // A third of it may pass until a worker looks at Redis by itself.
    let config = || WorkerConfig { liveness: 3 * SECOND, ..hasty(redis.clone()) };
    let mut feed = Feed::start(&server.url());
    let faults: [(&str, &str, Strike); 5] = [
        ("all connections ended", "PHALANX_REDIS_CUT", cut),
        ("full", "PHALANX_REDIS_FULL", fill),
        ("a right or the password taken away", "PHALANX_REDIS_RIGHTS", take_rights),
        ("asleep", "PHALANX_REDIS_SLEEPS", sleep),
        ("frozen", "PHALANX_REDIS_FROZEN", freeze),
    ];
    for (name, variable, strike) in faults {
        let often = times(variable, 1);
        let mut load = Load::start(config, LONG);
        for _ in 0..often {
            load.burst(&mut feed);
            load.goes_on(&mut rng);
            strike(&server, &load, &mut rng);
            load.until_ready();
            load.gather(&mut feed);
        }
        println!("{name}, {often} times: {}", load.end(&mut feed, &server, true));
    }
}

/// Two servers of which one is a replica of the other, and a Sentinel.
struct Pair {
    servers: [RedisServer; 2],
    master: usize,
    sentinel: Sentinel,
}

impl Pair {
    fn start(options: &[&str]) -> Option<Self> {
        // By itself a master waits five seconds for more replicas before it begins to fill one.
        let options = [&["--repl-diskless-sync-delay", "0"], options].concat();
        let first = RedisServer::start_with(&options)?;
        let mut second = RedisServer::start_with(&options)?;
        second.kill();
        second.follow(first.port());
        second.start_again();
        let sentinel = Sentinel::start(first.port());
        let mut pair = Self { servers: [first, second], master: 0, sentinel };
        // It looks, and tells who is master, more often than by itself.
        let hurry = "SENTINEL DEBUG info-period 100 publish-period 200";
        until("the Sentinel answers", || pair.sentinel.ask(hurry).starts_with("+OK"));
        pair.until_whole();
        Some(pair)
    }

    fn master(&self) -> &RedisServer {
        &self.servers[self.master]
    }

    fn url(&self) -> String {
        format!("sentinel://127.0.0.1:{}/0", self.sentinel.port())
    }

    /// On a busy machine the Sentinel may have taken a master for dead.
    fn look(&mut self) {
        until("there is a master", || {
            let found = self.servers.iter().position(|server| self.sentinel.has_master(server.port()));
            self.master = found.unwrap_or(self.master);
            found.is_some()
        });
    }

    fn until_whole(&mut self) {
        until("the Sentinel knows the replica", || {
            self.look();
            self.sentinel.has_replica(self.servers[1 - self.master].port())
        });
    }

    /// The replica becomes the master: because the master has died, or because an operator wants it.
    fn fail_over(&mut self, crash: bool) {
        self.look();
        let heir = 1 - self.master;
        if crash {
            self.servers[self.master].kill();
        }
        let mut asked: Option<Instant> = None;
        until("there is another master", || {
            // The Sentinel may give up, as when the replica has just lost its master.
            if !crash && asked.is_none_or(|asked| asked.elapsed() > 10 * SECOND) {
                asked = self.sentinel.ask("SENTINEL FAILOVER blue").starts_with("+OK").then(Instant::now);
            }
            self.sentinel.has_master(self.servers[heir].port())
        });
        if crash {
            let port = self.servers[heir].port();
            self.servers[self.master].follow(port);
            self.servers[self.master].start_again();
        }
        self.master = heir;
    }
}

/// Replication is asynchronous, so what a master has confirmed in its last moment its replica may lack: that is
/// counted, not asserted. What is asserted: it goes on, and readiness tells.
fn failing_over(options: &[&str], crashes: usize, wanted: usize) {
    if crashes + wanted == 0 {
        return;
    }
    let _none = NoThreads::expected();
    let Some(mut pair) = Pair::start(options) else { return };
    let mut rng = seeded();
    let named = json!({"master_name": "blue"});
    let settings = json!({"result_backend": pair.url(), "broker_transport_options": named,
        "result_backend_transport_options": named});
    let mut feed = Feed::start_with(&pair.url(), &settings);
    let redis = RedisConfig::parse(&format!("{}?master_name=blue", pair.url())).unwrap();
    let config = || WorkerConfig { liveness: 3 * SECOND, ..hasty(often(redis.clone())) };
    for (crash, count) in [(true, crashes), (false, wanted)].into_iter().filter(|(_, count)| *count > 0) {
        let mut load = Load::start(config, SECOND);
        for _ in 0..count {
            load.burst(&mut feed);
            load.goes_on(&mut rng);
            let before = load.errors();
            pair.fail_over(crash);
            until("they have noticed", || load.has_noticed(&before));
            load.until_ready();
            load.gather(&mut feed);
            pair.until_whole();
        }
        pair.look();
        let what = if crash { "the master killed" } else { "a fail-over asked for" };
        println!("{what}, {count} times, {options:?}: {}", load.end(&mut feed, pair.master(), false));
    }
}

#[test]
fn after_each_fail_over_the_work_goes_on_and_readiness_tells() {
    failing_over(&[], times("PHALANX_REDIS_FAILOVERS", 1), times("PHALANX_REDIS_FAILOVERS", 0));
}

#[test]
fn after_a_fail_over_of_masters_that_ask_for_a_replica_the_work_goes_on() {
    let options = ["--min-replicas-to-write", "1"];
    // A matter of `make stress/celery`.
    let often = times("PHALANX_REDIS_FAILOVERS", 0);
    failing_over(&options, often, often);
}

#[test]
fn a_job_waits_while_redis_is_full_and_front_and_worker_say_that_they_are_not_ready() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let address = || format!("127.0.0.1:{}", free_port());
    let (front_pages, worker_pages) = (address(), address());
    let front = scene.front(&["--http", &front_pages]);
    let worker = scene.worker("w@here", &["--stub-time", "0s", "--http", &worker_pages]);
    let down = |pages: &str, part: &str| {
        scene.status(pages, |status| {
            let parts = status["parts"].as_array().unwrap();
            status["ready"] == false && parts.iter().any(|p| p["name"] == part && p.to_string().contains("OOM"))
        });
    };
    let up = |pages: &str| drop(scene.status(pages, |status| status["ready"] == true));
    up(&front_pages);
    up(&worker_pages);
    let _: () = scene.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    down(&front_pages, "hand-over");
    down(&worker_pages, "cel-live");
    let _: () = scene.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    up(&front_pages);
    up(&worker_pages);
    for running in [front, worker] {
        stopped(running);
    }
    scene.end();
}
