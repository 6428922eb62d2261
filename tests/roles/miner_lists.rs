//! Lists of miners from files and from HTTP servers: what is taken, what changes nothing, and how it stops.

use crate::testkit::http::{Reply, Server};
use crate::testkit::wait::{LONG, until};
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use phalanx::base::rng::Rng;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::Stopping;
use phalanx::identity::KeyPair;
use phalanx::net::http::client::HttpClient;
use phalanx::validator::MinerAddress;
use phalanx::validator::miners::{MinerFeed, MinerFile, MinerSource, MinersError, MinersUrl};

fn hotkey(n: u16) -> String {
    KeyPair::from_uri(&format!("//Miner{n}")).unwrap().ss58()
}

fn toml(ports: &[u16]) -> String {
    let entry = |port: &u16| format!("[[miner]]\nhotkey = \"{}\"\naddress = \"h\"\nport = {port}\n", hotkey(*port));
    ports.iter().map(entry).collect()
}

fn json(ports: &[u16]) -> String {
    let miners: Vec<_> = ports
        .iter()
        .map(|port| serde_json::json!({"hotkey": hotkey(*port), "address": "h", "port": port, "trusted": true}))
        .collect();
    serde_json::json!({ "miner": miners }).to_string()
}

fn ports(miners: Vec<MinerAddress>) -> Vec<u16> {
    miners.into_iter().map(|miner| miner.port).collect()
}

fn look(source: &mut dyn MinerSource) -> Result<Option<Vec<u16>>, String> {
    source.look(false).map(|miners| miners.map(ports)).map_err(|error| error.to_string())
}

fn url(server: &Server, stop: &Shutdown) -> MinersUrl {
    MinersUrl::new(server.url("/miners?token=secret"), HttpClient::new(stop.clone()), Duration::from_secs(60))
}

#[test]
fn a_file_is_read_when_it_has_changed_and_stayed_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("miners.toml");
    let mut file = MinerFile::new(&path);
    let at_start = file.look(true).unwrap_err().to_string();
    assert!(at_start.contains("cannot read it") && at_start.contains("miners.toml"), "{at_start}");
    fs::write(&path, toml(&[1])).unwrap();
    assert_eq!(file.look(true).map(|miners| miners.map(ports)), Ok(Some(vec![1])));
    assert_eq!(look(&mut file), Ok(None));
    let unchanged = file.next_look();

    // Half of it is there at the first look, all of it at the second, and no more at the third.
    fs::write(&path, &toml(&[1, 2])[..100]).unwrap();
    assert_eq!(look(&mut file), Ok(None), "it may not be done");
    assert!(file.next_look() < unchanged, "it is looked at again soon");
    fs::write(&path, toml(&[1, 2])).unwrap();
    assert_eq!(look(&mut file), Ok(None), "it has changed again");
    assert_eq!(look(&mut file), Ok(Some(vec![1, 2])));
    assert_eq!((look(&mut file), file.next_look()), (Ok(None), unchanged));

    // Put in its place by a rename, as editors do.
    let other = folder.path().join("other");
    fs::write(&other, toml(&[3])).unwrap();
    fs::rename(&other, &path).unwrap();
    assert_eq!([look(&mut file), look(&mut file)], [Ok(None), Ok(Some(vec![3]))]);
    assert_eq!(file.look(true).map(|miners| miners.map(ports)), Ok(Some(vec![3])), "SIGHUP reads it in any case");
}

#[test]
fn a_pipe_is_read_once() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(toml(&[1]).as_bytes()).unwrap();
    drop(writer);
    let mut file = MinerFile::new(format!("/proc/self/fd/{}", reader.as_raw_fd()));
    assert_eq!(file.look(true).map(|miners| miners.map(ports)), Ok(Some(vec![1])));
    // To open it once more would wait for a writer, for ever.
    assert_eq!(look(&mut file), Ok(None));
    let error = file.look(true).unwrap_err().to_string();
    assert!(error.ends_with("it is not a regular file, so it is not read again"), "{error}");
    assert_eq!(look(&mut file), Err(error), "until it is a file");
}

#[test]
fn what_is_no_file_any_more_says_so_until_it_is_one_again() {
    let folder = tempfile::tempdir().unwrap();
    let (path, aside) = (folder.path().join("miners.toml"), folder.path().join("aside"));
    fs::write(&path, toml(&[1])).unwrap();
    let mut file = MinerFile::new(&path);
    assert_eq!(file.look(true).map(|miners| miners.map(ports)), Ok(Some(vec![1])));
    fs::rename(&path, &aside).unwrap();
    fs::create_dir(&path).unwrap();
    let says = |looked: Result<_, String>| looked.unwrap_err().contains("it is not a regular file");
    assert!(says(look(&mut file)), "without a signal, too");
    assert!(says(file.look(true).map(|_| None::<Vec<u16>>).map_err(|error| error.to_string())));
    assert!(says(look(&mut file)), "and after it");
    fs::remove_dir(&path).unwrap();
    fs::rename(&aside, &path).unwrap();
    assert!(says(look(&mut file)), "it may not be done");
    assert_eq!([look(&mut file), look(&mut file)], [Ok(Some(vec![1])), Ok(None)]);
}

#[test]
fn a_file_in_trouble_says_so_until_it_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("miners.toml");
    let mut file = MinerFile::new(&path);
    for (text, says) in [
        ("miner = []".to_owned(), "it names no miner; name at least one"),
        ("".to_owned(), "no [[miner]] table"),
        (toml(&[1, 1]), "[[miner]] number 2: hotkey"),
        (toml(&[1]).replace("port", "prot"), "unknown key \"prot\""),
        (format!("# {}\n{}", "x".repeat(3 << 20), toml(&[1])), "bytes, which is the most that is read"),
    ] {
        fs::write(&path, &text).unwrap();
        // It may not be done.
        drop(look(&mut file));
        for _ in 0..2 {
            let error = look(&mut file).unwrap_err();
            assert!(error.contains(says) && error.contains("miners.toml") && !error.contains('\n'), "{error}");
        }
    }
    fs::remove_file(&path).unwrap();
    for _ in 0..2 {
        assert!(look(&mut file).unwrap_err().contains("cannot read it"));
    }
    fs::write(&path, toml(&[1])).unwrap();
    assert!(look(&mut file).is_err(), "it may not be done");
    assert_eq!([look(&mut file), look(&mut file)], [Ok(Some(vec![1])), Ok(None)]);
}

#[test]
fn a_server_is_asked_by_its_etag_and_its_faults_are_told_apart() {
    let answers = Arc::new(Mutex::new(Vec::new()));
    let next = answers.clone();
    let server = Server::start(move |_| next.lock().unwrap().pop().expect("an answer is planned"));
    let plan = |reply: Reply| answers.lock().unwrap().push(reply);
    let stop = Shutdown::new();
    let mut source = url(&server, &stop);
    assert!(!source.origin().contains("secret"), "{}", source.origin());

    let tagged = |body: String| Reply::Answer(200, vec![("ETag", "\"one\"".to_owned())], body.into_bytes());
    plan(tagged(json(&[1, 2])));
    assert_eq!(look(&mut source), Ok(Some(vec![1, 2])));
    plan(Reply::status(304));
    assert_eq!(look(&mut source), Ok(None));
    plan(Reply::ok(json(&[3])));
    assert_eq!(look(&mut source), Ok(Some(vec![3])), "and it has no ETag any more");
    let asked: Vec<_> = server.seen().iter().map(|r| r.header("if-none-match").map(str::to_owned)).collect();
    assert_eq!(asked, [None, Some("\"one\"".to_owned()), Some("\"one\"".to_owned())]);

    let large = json(&[1]) + &" ".repeat(3 << 20);
    let long = json(&[1]).replace("\"h\"", &format!("\"{}\"", "h".repeat(1 << 20)));
    for (reply, says) in [
        (Reply::status(404), "answered 404"),
        (Reply::status(304), "answered 304"),
        (Reply::status(503), "answered 503"),
        (Reply::ok(""), "not a JSON object of miners: EOF"),
        (Reply::ok("<html>"), "not a JSON object of miners"),
        (Reply::ok(r#"{"miner": []}"#), "it names no miner"),
        (Reply::ok("{}"), "no [[miner]] table"),
        (Reply::ok(json(&[1, 2, 1])), "number 3: hotkey"),
        (Reply::ok(large), "is larger than the allowed 2097152 bytes"),
        (Reply::ok(long), "number 1: address has 1048576 bytes; it should be a host name or an IP address"),
        (Reply::ok(json(&[1]).replace("\"5", &format!("\"{}", "5".repeat(1 << 20)))), "number 1: hotkey \"5555"),
        (Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{\"miner\": [".to_vec()), "cannot talk to"),
        (Reply::Raw(b"garbage\r\n\r\n".to_vec()), "cannot talk to"),
        (Reply::Raw(Vec::new()), "cannot talk to"),
    ] {
        plan(reply);
        let error = look(&mut source).unwrap_err();
        assert!(error.contains(says) && !error.contains("secret") && error.len() < 1000, "{says}: {error}");
    }
    plan(tagged(json(&[4])));
    assert_eq!(look(&mut source), Ok(Some(vec![4])));
}

/// Random answers, good and bad: the list is always that of the last good answer, and is never empty.
#[test]
fn no_sequence_of_answers_wipes_the_list() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let rng = Arc::new(Mutex::new(Rng::new(seed)));
    let good = Arc::new(Mutex::new(None));
    let (random, last) = (rng.clone(), good.clone());
    let server = Server::start(move |_| {
        let n = random.lock().unwrap().next_u64();
        *last.lock().unwrap() = None;
        let list = [(n % 7 + 1) as u16, 9];
        match n >> 60 {
            0..4 => {
                *last.lock().unwrap() = Some(list.to_vec());
                Reply::ok(json(&list))
            }
            4..6 => Reply::ok(r#"{"miner": []}"#),
            6 => Reply::status(500),
            7 => Reply::ok(json(&list).replace("port", "prot")),
            8 => Reply::ok(&json(&list)[..(n % 90) as usize]),
            9 => Reply::Raw(Vec::new()),
            _ => Reply::ok(""),
        }
    });
    let (mut source, mut list) = (url(&server, &Shutdown::new()), vec![1]);
    for _ in 0..100 {
        let found = look(&mut source);
        match (good.lock().unwrap().take(), found) {
            (Some(sent), found) => {
                assert_eq!(found, Ok(Some(sent.clone())), "seed {seed}");
                list = sent;
            }
            (None, found) => assert!(found.is_err(), "seed {seed}: {found:?}"),
        }
        assert!(!list.is_empty());
    }
}

fn feed(source: impl MinerSource + 'static, stop: Shutdown) -> (MinerFeed, Receiver<Vec<u16>>) {
    let (tx, lists) = bounded(100);
    (
        MinerFeed::start(Box::new(source), 1, stop, move |miners| tx.send(ports(miners)).unwrap(), &Default::default()),
        lists,
    )
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

fn stop_feed(feed: MinerFeed) {
    let begun = Instant::now();
    let mut stopping = Stopping::alone();
    stopping.step("list of miners", LONG, |step| feed.stop_in(step));
    assert!(stopping.finish().is_clean() && begun.elapsed() < LONG / 2);
}

/// A source that is looked at every millisecond.
struct Quick(MinerFile);

impl MinerSource for Quick {
    fn origin(&self) -> String {
        self.0.origin()
    }

    fn look(&mut self, whole: bool) -> Result<Option<Vec<MinerAddress>>, MinersError> {
        self.0.look(whole)
    }

    fn next_look(&mut self) -> Duration {
        Duration::from_millis(1)
    }
}

#[test]
fn a_feed_passes_on_good_lists_and_keeps_the_old_one_through_bad_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("miners.toml");
    write(&path, &toml(&[1]));
    let mut file = MinerFile::new(&path);
    file.look(true).unwrap();
    let (feed, lists) = feed(Quick(file), Shutdown::new());
    let handle = feed.handle();
    write(&path, &toml(&[1, 2]));
    assert_eq!(lists.recv_timeout(LONG).unwrap(), [1, 2]);
    write(&path, "miner = []");
    until("the empty list is told", || handle.status().last_error.is_some_and(|e| e.contains("it names no miner")));
    assert_eq!(handle.status().miners, 2);
    write(&path, &toml(&[3]));
    assert_eq!(lists.recv_timeout(LONG).unwrap(), [3], "nothing came in between");
    until("the trouble is over", || handle.status().last_error.is_none() && handle.status().miners == 1);
    stop_feed(feed);
    handle.reload();
    assert!(lists.recv_timeout(LONG).is_err(), "nobody looks any more");
}

#[test]
fn a_feed_looks_at_once_when_asked_and_stops_in_the_middle_of_a_look() {
    let server = Server::start(|_| Reply::Hang(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{".to_vec()));
    let stop = Shutdown::new();
    let (feed, lists) = feed(url(&server, &stop), stop);
    feed.handle().reload();
    server.arrivals().recv_timeout(LONG).unwrap();
    stop_feed(feed);
    assert!(lists.try_recv().is_err());
}

#[test]
fn dropping_a_feed_stops_it() {
    let folder = tempfile::tempdir().unwrap();
    let (feed, lists) = feed(MinerFile::new(folder.path().join("none")), Shutdown::new());
    drop(feed);
    assert!(lists.recv_timeout(LONG).is_err_and(|e| e.is_disconnected()), "its thread has ended");
}
