//! Tasks per second through Redis: our worker beside a worker of Celery with as many threads, in one run. Each gets
//! no-op tasks in JSON from a real queue and stores their results; the clock runs from the first result to the last.
//!
//! `celery_bench [--tasks N] [--celery-tasks N] [--threads N] [--python PYTHON]`; needs redis-server, and for the peer
//! a Python with Celery (default `target/venv/bin/python`).

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::stop::Stopping;
use phalanx::celery::worker::{CeleryWorker, Registry, WorkerConfig};
use phalanx::celery::{Task, queue_key};
use phalanx::ops::status::Board;
use phalanx::redis::{Connection, RedisConfig, RedisError, Waited, Wake};
use redis::PushKind;
use serde_json::Value;

type Failed = Box<dyn std::error::Error>;

/// A child process that is ended when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Bench {
    redis: RedisConfig,
    url: String,
    threads: usize,
}

fn main() -> Result<(), Failed> {
    let (mut tasks, mut celery_tasks, mut threads) = (50_000, 3_000, 4);
    let mut python = "target/venv/bin/python".to_owned();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--tasks" => tasks = value.parse()?,
            "--celery-tasks" => celery_tasks = value.parse()?,
            "--threads" => threads = value.parse()?,
            "--python" => python = value,
            _ => return Err(format!("{word} is not known").into()),
        }
    }
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let folder = tempfile::tempdir()?;
    let server = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string(), "--dir"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .spawn()?;
    let _server = Process(server);
    let url = format!("redis://127.0.0.1:{port}/0");
    let bench = Bench { redis: RedisConfig::parse(&url)?, url, threads };
    println!("{threads} threads each, no-op tasks, results stored");
    let ours = bench.ours(tasks)?;
    println!("phalanx  {ours:>8.0} tasks/s  ({tasks} tasks)");
    let celery = bench.celery(celery_tasks, &python)?;
    println!("celery   {celery:>8.0} tasks/s  ({celery_tasks} tasks, -P threads)");
    println!("ratio    {:>8.1}", ours / celery);
    Ok(())
}

impl Bench {
    fn connect(&self) -> Result<Connection, RedisError> {
        let (never, deadline) = (Shutdown::new(), Instant::now() + Duration::from_secs(20));
        loop {
            match Connection::open(&self.redis, deadline, &never, Level::Drain) {
                // It is still starting.
                Err(error) if error.class().is_retryable() && Instant::now() < deadline => {
                    never.wait(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }

    /// Fills the queue with messages as a producer sends them.
    fn fill(&self, tasks: usize) -> Result<(), Failed> {
        let mut connection = self.connect()?;
        connection.set_deadline(Instant::now() + Duration::from_secs(120));
        connection.request(&redis::cmd("FLUSHALL"))?;
        let mut left = tasks;
        while left > 0 {
            let mut pipeline = redis::pipe();
            for _ in 0..left.min(500) {
                let now = std::time::SystemTime::now().into();
                let message = Task::new("noop").message(now, "gen1@bench", || uuid::Uuid::new_v4().to_string());
                pipeline.lpush(queue_key("celery", 0), message.write().write()).ignore();
            }
            pipeline.query::<()>(&mut connection)?;
            left -= left.min(500);
        }
        Ok(())
    }

    /// Counts the results that are published, and gives the rate from the first to the last.
    fn rate(&self, mut watch: Connection, tasks: usize) -> Result<f64, Failed> {
        let wake = Wake::new()?;
        let (mut seen, mut first) = (0, None);
        let deadline = Instant::now() + Duration::from_secs(300);
        while seen < tasks {
            match watch.wait_push(&wake, deadline)? {
                Waited::Push(PushKind::PMessage, _) => {
                    first.get_or_insert_with(Instant::now);
                    seen += 1;
                }
                Waited::Push(..) | Waited::Woken => {}
                Waited::Deadline => return Err(format!("{seen} of {tasks} results came").into()),
            }
        }
        let first = first.ok_or("no result came")?;
        Ok((tasks - 1) as f64 / first.elapsed().as_secs_f64())
    }

    fn watch(&self) -> Result<Connection, Failed> {
        let mut connection = self.connect()?;
        let mut commands = redis::cmd("PSUBSCRIBE").arg("celery-task-meta-*").get_packed_command();
        commands.extend(redis::cmd("PING").get_packed_command());
        redis::ConnectionLike::req_packed_command(&mut connection, &commands)?;
        Ok(connection)
    }

    fn ours(&self, tasks: usize) -> Result<f64, Failed> {
        self.fill(tasks)?;
        let watch = self.watch()?;
        let mut config = WorkerConfig::new(self.redis.clone());
        config.concurrency = self.threads;
        let worker =
            CeleryWorker::start(config, Registry::new().register("noop", |_, _| Ok(Value::Null)), &Board::new())?;
        let rate = self.rate(watch, tasks);
        let mut stopping = Stopping::alone();
        stopping.step("worker", Duration::from_secs(5), |step| worker.stop_in(step));
        rate
    }

    fn celery(&self, tasks: usize, python: &str) -> Result<f64, Failed> {
        self.fill(tasks)?;
        let watch = self.watch()?;
        let child = Command::new(std::fs::canonicalize(python).map(|_| python)?)
            .args(["-B", "-m", "celery", "-A", "celery_feed", "worker", "-P", "threads", "-l", "warning", "-c"])
            .arg(self.threads.to_string())
            .env("CELERY_TEST_URL", &self.url)
            .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let _child = Process(child);
        self.rate(watch, tasks)
    }
}
