//! Peers of a miner that say too much, or do not read what they are told.

use std::time::Duration;

use phalanx::base::limits::OUTBOX_MESSAGES;
use phalanx::link::PeerRates;
use phalanx::link::Rate;
use phalanx::miner::MinerConfig;
use phalanx::miner::executor_manager::ExecutorExit;
use phalanx::transport::memory::WIRE_BYTES;
use phalanx::transport::{Connection, Incoming};

use crate::miner::{Fixture, Peer};
use crate::testkit::miner::{Pen, Says, kind, unix, uuid};

/// So many and, for as long as a test lasts, no more.
fn only(count: u32) -> Rate {
    Rate::new(count, Duration::from_secs(3600))
}

/// The miner's answers up to its close, and the code of that.
fn heard(peer: &Peer, answers: usize) -> (Vec<String>, Option<u16>) {
    let texts = (0..answers).map(|_| kind(&peer.next())).collect();
    (texts, peer.closed())
}

#[test]
fn a_peer_that_says_too_much_is_told_so_and_closed_and_nobody_else_is() {
    let charlie = Pen::new("//Charlie");
    let fixture = Fixture::with(1, false, |config| {
        config.rates = PeerRates { frames: only(12), bad_frames: only(2), authentications: only(3) };
        config.validators.push(charlie.key.public());
    });
    let job = uuid();
    let mut alice = fixture.validator();
    let (mut executor, started) = fixture.running(&mut alice, &job);

    // What is no message, from somebody who may be who he says he is; on one connection and on the next.
    let said_by_charlie = || fixture.dial(&format!("validator_interface/{}", charlie.key.ss58())).unwrap();
    let mut noisy = said_by_charlie();
    (0..5).for_each(|_| drop(noisy.try_say("nonsense")));
    let (answers, code) = heard(&noisy, 3);
    assert!(answers[..2].iter().all(|answer| answer.starts_with("! Malformed")), "{answers:?}");
    assert_eq!((answers[2].as_str(), code), ("! Too much: more than 2 bad frames in 3600s", Some(4029)));
    let mut again = said_by_charlie();
    again.say("nonsense");
    assert_eq!(heard(&again, 1), (vec!["! Too much: more than 2 bad frames in 3600s".to_owned()], Some(4029)));

    // An executor that is closed comes back, and its job goes on.
    (0..3).for_each(|_| drop(executor.try_say("nonsense")));
    assert_eq!(executor.closed(), Some(4029));
    let mut executor = fixture.executor(&started.spec);
    for (text, news) in [(Says(&job).volumes(), "VolumesReady"), (Says(&job).finished("x"), "JobFinished")] {
        executor.say(&text);
        alice.expect(news);
    }

    // Authentications, and then messages of any kind.
    let (_second, _third) = (fixture.validator(), fixture.validator());
    let path = format!("validator_interface/{}", fixture.alice.key.ss58());
    let mut fourth = fixture.dial(&path).unwrap();
    fourth.say(&fixture.alice.auth(unix()));
    assert_eq!(heard(&fourth, 1), (vec!["! Too much: more than 3 authentications in 3600s".to_owned()], Some(4029)));
    // Four authentications and two messages were before these.
    for _ in 0..6 {
        alice.say(&fixture.alice.ask(&job));
        for news in ["AcceptJob", "VolumesReady", "JobFinished"] {
            alice.expect(news);
        }
    }
    alice.say(&fixture.alice.ask(&job));
    assert_eq!(heard(&alice, 1), (vec!["! Too much: more than 12 frames in 3600s".to_owned()], Some(4029)));
    let page = fixture.metrics();
    for (kind, count) in [("frames", 1), ("bad_frames", 3), ("authentications", 1)] {
        let line = format!("phalanx_miner_over_rate_total{{kind=\"{kind}\"}} {count}\n");
        assert!(page.contains(&line), "{line}{page}");
    }
    for (place, count) in [("over-rate", 5), ("validator-message", 2), ("executor-message", 2)] {
        let line = format!("phalanx_errors_total{{class=\"rejected\",place=\"{place}\"}} {count}\n");
        assert!(page.contains(&line), "{line}{page}");
    }
}

/// Bytes of a result; the outbox has room for one and a half, and what is on its way is some more.
const RESULT: usize = 4 << 20;

/// How often it is asked for: more than is on its way and waits, by far.
const ASKED: usize = 16;

fn bounded(config: &mut MinerConfig) {
    config.server.outbox.bytes = RESULT + RESULT / 2;
}

/// A validator whose job has ended, which asks for it again and again and reads nothing of what it is told.
fn deaf(fixture: &Fixture) -> Connection {
    let job = uuid();
    let mut deaf = fixture.connect(&format!("validator_interface/{}", fixture.alice.key.ss58())).unwrap();
    let mut says = |text: String| {
        deaf.writer.write(text.into()).and_then(|()| deaf.writer.flush()).unwrap();
    };
    says(fixture.alice.auth(unix()));
    says(fixture.alice.ask(&job));
    let started = fixture.started();
    let mut executor = fixture.executor(&started.spec);
    executor.expect("InitialJob");
    executor.say(&Says(&job).ready());
    says(fixture.alice.request(&job));
    executor.expect("Job");
    executor.say(&Says(&job).finished(&"x".repeat(RESULT)));
    fixture.until(|status| status.ended == 1);
    for _ in 0..ASKED {
        says(fixture.alice.ask(&job));
    }
    deaf
}

/// The validator's next connection hears what was for the one that did not read.
fn assert_it_comes_again(fixture: &Fixture) {
    fixture.until(|status| status.validators == 0);
    let back = fixture.validator();
    // That the executor was ready comes again before it, if the cut was before the miner had read the job request.
    let news = back.next();
    if kind(&news) == "ExecutorReady" {
        back.expect("JobFinished");
    } else {
        assert_eq!(kind(&news), "JobFinished");
    }
}

#[test]
fn a_validator_that_reads_late_finds_that_it_was_closed_with_4008() {
    let fixture = Fixture::over_tcp(1, bounded);
    let mut deaf = deaf(&fixture);
    let mut told = 0;
    let close = loop {
        match deaf.reader.read().unwrap() {
            Incoming::Closed(info) => break info,
            Incoming::Text(text) => told += usize::from(kind(&text) == "JobFinished"),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((close.code, close.reason.as_str()), (Some(4008), "what you are sent is not read"));
    assert!((1..ASKED).contains(&told), "{told}");
    // Our answer to its close.
    drop(deaf.writer.flush());
    assert_it_comes_again(&fixture);
}

#[test]
fn a_validator_that_never_reads_loses_its_connection_and_no_news() {
    let fixture = Fixture::over_tcp(1, bounded);
    let deaf = deaf(&fixture);
    assert_it_comes_again(&fixture);
    drop(deaf);
}

#[test]
fn a_validator_that_was_away_hears_of_all_its_jobs_however_many() {
    let fixture = Fixture::new(32);
    // Four news of each, which are more than an outbox has room for by default, and some of them fill the wire.
    let jobs = OUTBOX_MESSAGES / 4 + 64;
    let result = "x".repeat(WIRE_BYTES / 16);
    let mut validator = fixture.validator();
    for _ in 0..jobs {
        let job = uuid();
        let (mut executor, started) = fixture.running(&mut validator, &job);
        for text in [Says(&job).volumes(), Says(&job).done(), Says(&job).specs(), Says(&job).finished(&result)] {
            executor.say(&text);
        }
        for news in ["VolumesReady", "ExecutionDone", "MachineSpecs", "JobFinished"] {
            validator.expect(news);
        }
        executor.disconnect();
        started.exit.send(Ok(ExecutorExit::Code(0))).unwrap();
        fixture.until(|status| status.executors[0].1.free > 0);
    }
    validator.disconnect();
    fixture.until(|status| status.validators == 0);
    let mut back = fixture.connect(&format!("validator_interface/{}", fixture.alice.key.ss58())).unwrap();
    back.writer.write(fixture.alice.auth(unix()).into()).and_then(|()| back.writer.flush()).unwrap();
    // All of it has been offered before any of it is read.
    fixture.until(|status| status.validators == 1);
    let back = Peer::new(back);
    back.expect("ExecutorManifest");
    let mut ended = 0;
    while ended < jobs {
        ended += usize::from(kind(&back.next()) == "JobFinished");
    }
}
