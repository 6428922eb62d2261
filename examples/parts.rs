//! Three parts of the library, each used alone: tasks on threads, kept connections to peers, and a link between a
//! client and a server.
//!
//! `cargo run --example parts` needs nothing but loopback, and ends by itself.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use phalanx::link::Text;
use phalanx::net::dial::{DialError, dial};
use phalanx::prelude::*;
use phalanx::tasks::Interrupted;
use phalanx::transport::Listener;

type Error = Box<dyn std::error::Error>;

/// A whole use of each part.
const TIME: Duration = Duration::from_secs(30);

/// Squares of a few numbers, two at a time, had by the ids of their tasks; and one task that is cancelled.
fn tasks() -> Result<String, Error> {
    let manager = TaskManager::start(TaskConfig::new("squares").workers(2))?;
    let ids: Vec<TaskId> = (1..=3u64)
        .map(|n| {
            let options = TaskOptions::new("square").metadata("of", n.to_string()).run_limit(TIME).keep_result();
            manager.spawn(options, move |cx| {
                cx.progress(50, "squaring");
                Ok::<u64, Interrupted>(n * n)
            })
        })
        .collect::<Result<_, _>>()?;
    let mut squares = Vec::new();
    for id in ids {
        manager.wait_for(id, TIME);
        squares.push(manager.result::<u64, Interrupted>(id)?.to_string());
    }

    let sleeper = manager.submit("sleeps", |cx| cx.sleep(Duration::from_secs(3600)))?;
    sleeper.cancel("nobody wants it");
    let cancelled = sleeper.wait_for(TIME).map_err(|error| error.to_string());

    let report = manager.stop(TIME);
    Ok(format!("squares {}; {}; {} left", squares.join(" "), cancelled.unwrap_err(), report.stragglers().len()))
}

fn connect(address: &SocketAddr, until: Until<'_>) -> Result<TcpStream, DialError> {
    dial(&address.ip().to_string(), address.port(), until.deadline, until.shutdown, until.level)
}

/// A peer that says each line again.
fn echo() -> Result<(SocketAddr, Thread<std::io::Result<()>>), Error> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let kick =
        Kick::new("a connection", move || drop(connect(&address, Until::new(Instant::now() + TIME, &Shutdown::new()))));
    let thread = spawn("echo", kick, move || {
        let (stream, _) = listener.accept()?;
        let mut answers = stream.try_clone()?;
        for line in BufReader::new(stream).lines() {
            writeln!(answers, "{}", line?)?;
        }
        Ok(())
    });
    Ok((address, thread))
}

struct Lines;

impl Connector for Lines {
    type Key = SocketAddr;
    type Connection = BufReader<TcpStream>;
    type Error = String;

    fn connect(&self, address: &SocketAddr, until: Until<'_>) -> Result<BufReader<TcpStream>, String> {
        let stream = connect(address, until).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(TIME)).map_err(|error| error.to_string())?;
        Ok(BufReader::new(stream))
    }

    fn validate(&self, stream: &mut BufReader<TcpStream>, _: Until<'_>) -> Result<(), String> {
        stream.get_ref().peer_addr().map(drop).map_err(|error| error.to_string())
    }
}

/// Two calls over one connection, each asked of the peer's breaker and tried again if it fails.
fn calls() -> Result<String, Error> {
    let (address, peer) = echo()?;
    let shutdown = Shutdown::new();
    let pool = Pool::start(PoolConfig::default(), Lines);
    let (connections, breakers) = (pool.connections(), Breakers::new(Default::default()));
    let mut answers = Vec::new();
    for word in ["one", "two"] {
        let until = Until::new(Instant::now() + TIME, &shutdown);
        let answer = Retry::new(RetryConfig::default(), until).run(
            |_attempt| -> Result<String, String> {
                let permit = breakers.ask(&address, Instant::now()).map_err(|refused| refused.to_string())?;
                let begun = Instant::now();
                let mut stream = connections.acquire(&address, until).map_err(|error| error.to_string())?;
                let mut line = String::new();
                writeln!(stream.get_mut(), "{word}").map_err(|error| error.to_string())?;
                stream.read_line(&mut line).map_err(|error| error.to_string())?;
                permit.succeeded(begun.elapsed());
                Ok(line.trim_end().to_owned())
            },
            |_error| true,
        );
        answers.push(answer.map_err(|error| error.to_string())?);
    }
    let left = pool.stop(TIME).stragglers().len();
    peer.join_by(Instant::now() + TIME).map_err(|error| error.to_string())??;
    Ok(format!("echo {}; {left} left", answers.join(" ")))
}

/// A server that greets whoever speaks to it, and a client whose link comes back by itself.
fn link() -> Result<String, Error> {
    let timer = Timer::start();
    let listener = WsListener::bind("127.0.0.1:0", None)?;
    let url = listener.url();
    let sessions = Mutex::new(HashMap::new());
    let sink = move |event| {
        let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            ServerEvent::Opened { id, handle, .. } => drop(sessions.insert(id, handle)),
            ServerEvent::Text { id, text } => {
                // A client that has gone meanwhile gets no greeting.
                let _full = sessions.get(&id).map(|session| session.send(Outgoing::once(format!("hello, {text}"))));
            }
            ServerEvent::Closed { id, .. } => drop(sessions.remove(&id)),
        }
    };
    let checked = Arc::new(|_: &_| Ok(()));
    let server = Server::start(ServerConfig::new("hello"), Box::new(listener), timer.handle(), checked, Arc::new(sink));

    let (heard, hear) = bounded(16);
    let (handle, idle) = Link::new(LinkConfig::new("client", url), Arc::new(WsDialer::default()), timer.handle());
    let link = idle.start(None, Text::<_, ()>::Message, move |event| {
        if let LinkEvent::Message(text) = event {
            // Nobody may wait for it any more.
            let _full = heard.try_send(text.to_string());
        }
    });
    // It leaves when there is a connection.
    handle.send(Outgoing::once("Leonidas")).map_err(|full| full.to_string())?;
    let greeting = hear.recv_timeout(TIME)?;

    let reports = [link.stop(TIME), server.stop(TIME), timer.stop(TIME)];
    let left: usize = reports.iter().map(|report| report.stragglers().len()).sum();
    Ok(format!("{greeting}; {left} left"))
}

/// Runs all three and gives a line of each.
pub fn run() -> Result<[String; 3], Error> {
    let lines = [tasks()?, calls()?, link()?];
    lines.iter().for_each(|line| println!("{line}"));
    Ok(lines)
}

#[allow(dead_code)] // The tests include this file and call `run`.
fn main() -> Result<(), Error> {
    run().map(drop)
}
