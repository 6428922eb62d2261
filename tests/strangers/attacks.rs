//! What strangers do to a port, each from an address of its own until the end. They are many and quick, but leave the
//! machine some time: what is tried is the server, not the processor.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use phalanx::base::shutdown::Shutdown;
use socket2::{Domain, Socket, Type};

/// An attack.
pub struct Attack {
    pub name: &'static str,
    /// From 127.0.0.`last`, on that port, which speaks HTTP or WebSocket.
    pub run: fn(last: u8, address: SocketAddr, is_http: bool, end: &Shutdown),
}

/// All of them.
pub const ATTACKS: [Attack; 5] = [
    Attack { name: "a byte a second", run: a_byte_a_second },
    Attack { name: "connects", run: connects },
    Attack { name: "silent", run: silent },
    Attack { name: "garbage", run: garbage },
    Attack { name: "never reads", run: never_reads },
];

/// Connections that one address holds: with three of them more than any port has places.
const HELD: usize = 400;

/// Between two rounds.
const ROUND: Duration = Duration::from_millis(20);

/// Connections that one address opens in a round: 200 in a second.
const OPENED: usize = 4;

/// A connection that does not block, if there is one; nobody waits for it to be accepted.
fn open(last: u8, address: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).ok()?;
    socket.set_nonblocking(true).ok()?;
    // It is under way.
    let _ = socket.connect(&address.into());
    Some(socket.into())
}

/// Whether the server has closed it. What came is thrown away.
fn is_over(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !is_early(&error),
        }
    }
}

/// It is not connected yet, or there is nothing now.
fn is_early(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotConnected, WouldBlock};
    matches!(error.kind(), NotConnected | WouldBlock)
}

/// Holds as many connections as it may, and opens others for those that are closed; `look` says whether one is over.
fn hold(last: u8, address: SocketAddr, end: &Shutdown, mut look: impl FnMut(&mut TcpStream) -> bool) {
    let mut held: Vec<TcpStream> = Vec::new();
    while !end.wait(ROUND) {
        held.retain_mut(|stream| !look(stream));
        let more = OPENED.min(HELD - held.len());
        held.extend((0..more).filter_map(|_| open(last, address)));
    }
}

fn silent(last: u8, address: SocketAddr, _: bool, end: &Shutdown) {
    hold(last, address, end, is_over);
}

fn a_byte_a_second(last: u8, address: SocketAddr, _: bool, end: &Shutdown) {
    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: xxxxxxxxxxxxxxxxxxxxxxxxxxxx";
    let (begun, mut turn) = (Instant::now(), 0);
    hold(last, address, end, |stream| {
        turn += 1;
        // In each second another fiftieth of them has its turn in each round.
        let second = begun.elapsed().as_secs() as usize;
        if turn % 50 == 0 {
            let _ = stream.write(&HEAD[second % HEAD.len()..][..1]);
        }
        is_over(stream)
    });
}

fn connects(last: u8, address: SocketAddr, _: bool, end: &Shutdown) {
    let mut young = VecDeque::new();
    while !end.wait(ROUND) {
        young.extend((0..OPENED).filter_map(|_| open(last, address)));
        // Those of the round before are accepted by now, or wait for it.
        while young.len() > OPENED {
            young.pop_front();
        }
    }
}

fn garbage(last: u8, address: SocketAddr, _: bool, end: &Shutdown) {
    let begun = Instant::now();
    let mut noise: Vec<u8> = Vec::new();
    let mut seed = u64::from(last) + begun.elapsed().as_nanos() as u64 + 1;
    println!("garbage of 127.0.0.{last}: seed {seed}");
    for _ in 0..2048 {
        // Xorshift: all that matters is that it is none of the protocols.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        noise.extend(seed.to_le_bytes());
    }
    let good = b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".repeat(200);
    let kinds = [[&b"GET "[..], &noise].concat(), noise, [&good[..], b"\0\0\0\0"].concat(), good];
    let mut held: Vec<(TcpStream, usize)> = Vec::new();
    let mut count = 0;
    while !end.wait(ROUND) {
        held.retain_mut(|(stream, kind)| {
            let alive = stream.write(&kinds[*kind]).map_or_else(|error| is_early(&error), |_| true);
            alive && !is_over(stream)
        });
        while held.len() < OPENED {
            count += 1;
            held.extend(open(last, address).map(|stream| (stream, count % kinds.len())));
        }
    }
}

fn never_reads(last: u8, address: SocketAddr, is_http: bool, end: &Shutdown) {
    let page = b"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    let upgrade = "GET /ws/v0/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let path = format!("/v0.1/validator_interface/{}", crate::honest::key().public().to_ss58());
    let upgrades = [upgrade.to_owned(), upgrade.replace("/ws/v0/", &path)];
    // Pings, masked by zeros, which are answered; and a text that is no message.
    let frames = [&b"\x89\xfd\0\0\0\0"[..], &[b'p'; 125], b"\x81\x82\0\0\0\0{}"].concat().repeat(50);
    let mut held: Vec<(TcpStream, usize)> = Vec::new();
    while !end.wait(ROUND) {
        held.retain_mut(|(stream, round)| {
            *round += 1;
            let said: &[u8] = match (is_http, *round) {
                // Five times a second.
                (_, round) if round % 10 != 1 => b"",
                (true, _) => page,
                (false, 1) => upgrades[usize::from(last % 2)].as_bytes(),
                (false, _) => &frames,
            };
            if said.is_empty() {
                return true;
            }
            // Its buffer is full soon, and that is the point.
            stream.write(said).map_or_else(|error| is_early(&error), |_| true)
        });
        let more = OPENED.min(HELD / 2 - held.len());
        held.extend((0..more).filter_map(|_| open(last, address).map(|stream| (stream, 0))));
    }
}
