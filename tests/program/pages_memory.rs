//! What many large pages of jobs cost a facilitator: memory, and the time of somebody else's request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use phalanx::app::job_client::JobClient;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::facilitator::api::token::Tokens;
use phalanx::identity::KeyPair;
use rustix::process::Signal;
use serde_json::Value;

use crate::testkit::network::{ALICE, BOB, CHARLIE};
use crate::testkit::process::{Running, nothing_left, phalanx};
use crate::testkit::wait::{LONG, far};

/// Large jobs of one user, all on each page.
const JOBS: usize = 64;
/// Bytes of each.
const BYTES: usize = 900 << 10;
/// Pages at once.
const PAGES: usize = 40;
/// What the process may take at its most: 128 MiB of jobs, twice 64 KiB for each page, 40 MiB for itself and what
/// SQLite and the posts of the jobs took.
const MOST_MIB: u64 = 256;

fn peak_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// Reads an answer to its end; its bytes, and whether it had an end.
fn page(address: &str, token: &str) -> (usize, bool) {
    // The server is on this machine and has accepted, or refuses.
    #[allow(clippy::disallowed_methods)]
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let request = format!(
        "GET /api/v1/jobs/?page_size=256 HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let (mut bytes, mut end, mut buffer) = (0, Vec::new(), vec![0; 64 << 10]);
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return (bytes, end.ends_with(b"0\r\n\r\n")),
            read => {
                bytes += read;
                end.extend_from_slice(&buffer[..read]);
                end.drain(..end.len().saturating_sub(16));
            }
        }
    }
}

#[test]
fn many_large_pages_at_once_fill_no_memory_and_delay_nobody() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = phalanx(scratch.path());
    command.args(["facilitator", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--validator", ALICE]);
    command.args(["--user", CHARLIE, "--user", BOB, "--state-dir"]).arg(folder.path());
    let mut facilitator = Running::start(&mut command);
    let line: Value = serde_json::from_str(&facilitator.line()).unwrap();
    let address = line["http"].as_str().unwrap().to_owned();
    let login = |uri: &str| {
        JobClient::login(&format!("http://{address}"), KeyPair::from_uri(uri).unwrap(), &Shutdown::new()).unwrap()
    };
    let (mut large, mut small) = (login("//Charlie"), login("//Bob"));
    let target = KeyPair::from_uri("//Alice").unwrap().public();
    let mut request = crate::testkit::roles::job(&KeyPair::from_uri("//Charlie").unwrap());
    request.args = vec!["x".repeat(BYTES)];
    for _ in 0..JOBS {
        large.submit(request.clone(), &target).unwrap();
    }
    request.args = Vec::new();
    let own = small.submit(request, &target).unwrap();
    let before = peak_mib(facilitator.id());
    let secret = folder.path().join("jwt.secret");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let token = Tokens::load(&secret, Duration::from_secs(3600)).unwrap().issue(CHARLIE, now);
    let pages: Vec<_> = (0..PAGES)
        .map(|_| {
            let (address, token) = (address.clone(), token.clone());
            spawn("t-page", Kick::dropped("its end"), move || page(&address, &token))
        })
        .collect();
    let mut slowest = Duration::ZERO;
    let mut asked = 0;
    while pages.iter().any(|page| !page.is_finished()) {
        let start = Instant::now();
        assert_eq!(small.job(&own.uuid).unwrap().uuid, own.uuid);
        slowest = slowest.max(start.elapsed());
        asked += 1;
    }
    for page in pages {
        let (bytes, whole) = page.join_by(far()).unwrap();
        assert!(whole && bytes > JOBS * BYTES, "{bytes} bytes, with an end: {whole}");
    }
    let peak = peak_mib(facilitator.id());
    println!("{PAGES} pages of {JOBS} jobs of {BYTES} bytes: {before} MiB before, {peak} MiB at most");
    println!("{asked} requests of another user meanwhile, the slowest in {slowest:?}");
    assert!(peak < MOST_MIB, "{peak} MiB");
    assert_eq!(facilitator.stop(Signal::TERM).code, Some(0));
    nothing_left(scratch.path());
}
