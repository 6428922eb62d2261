//! Connections to a real Redis, and the commander that shares one.

use crate::testkit::celery::{Client, Ours, settings};
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, far, until};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::stop::{StopReport, Stopping};
use phalanx::base::thread::{Kick, spawn};
use phalanx::celery::worker::WorkerConfig;
use phalanx::celery::{AppConfig, CeleryConfig, Task};
use phalanx::ops::errors::ErrorClass;
use phalanx::ops::health::PartState;
use phalanx::ops::status::Board;
use phalanx::redis::{
    Commander, CommanderHandle, Connection, RedisConfig, RedisError, Repeat, Request, Script, Waited, Wake,
};
use redis::{FromRedisValue, PushKind, Value};
use redis_kit::{FaultyProxy, RedisServer, Sentinel, free_port, often};

fn open(config: &RedisConfig) -> Result<Connection, RedisError> {
    Connection::open(config, far(), &Shutdown::new(), Level::Drain)
}

fn stop(commander: Commander, budget: Duration) -> StopReport {
    let mut stopping = Stopping::alone();
    stopping.step("redis", budget, |step| commander.stop_in(step));
    stopping.finish()
}

fn get(handle: &CommanderHandle, key: &str) -> Option<String> {
    let values = handle.call(Request::idempotent(redis::cmd("GET").arg(key), far())).unwrap();
    Option::from_redis_value(values.into_iter().next().unwrap()).unwrap()
}

#[test]
fn a_connection_runs_commands_pipelines_and_scripts_of_the_crate() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let mut connection = open(&server.config().named("t-conn")).unwrap();
    assert!(connection.version().starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(connection.query::<String>(redis::cmd("CLIENT").arg("GETNAME")).unwrap(), "t-conn");
    let large = vec![b'x'; 3 << 20];
    let (a, b): (Vec<u8>, i64) =
        redis::pipe().set("large", &large).ignore().get("large").incr("n", 5).query(&mut connection).unwrap();
    assert!(a == large && b == 5);
    let (n,): (i64,) = redis::pipe().atomic().incr("n", 1).query(&mut connection).unwrap();
    assert_eq!(n, 6);
    let script = redis::Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
    assert_eq!(script.key("n").arg(4).invoke::<i64>(&mut connection).unwrap(), 10);
    let error = connection.query::<i64>(redis::cmd("LPUSH").arg("n").arg(1)).unwrap_err();
    assert!(error.is_server("WRONGTYPE") && error.class() == ErrorClass::Rejected, "{error}");
    let error = connection.query::<std::collections::HashMap<String, i64>>(redis::cmd("GET").arg("n")).unwrap_err();
    assert!(matches!(error, RedisError::Reply(_)) && !error.connection_lost(), "{error}");
    assert_eq!(connection.query::<i64>(redis::cmd("GET").arg("n")).unwrap(), 10, "it is as good as before");
}

#[test]
fn a_wait_for_a_push_ends_with_the_push_the_wake_the_deadline_or_the_kick() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let mut connection = open(&server.config()).unwrap();
    let wake = Wake::new().unwrap();
    connection.request(redis::cmd("CLIENT").arg(&["TRACKING", "ON", "NOLOOP"])).unwrap();
    assert!(!connection.query::<bool>(redis::cmd("EXISTS").arg("queue")).unwrap());
    assert_eq!(connection.wait_push(&wake, Instant::now() + Duration::from_millis(20)).unwrap(), Waited::Deadline);
    wake.raise();
    assert_eq!(connection.wait_push(&wake, far()).unwrap(), Waited::Woken);
    assert!(wake.lower());
    server.cli::<i64>(&["LPUSH", "queue", "a"]);
    let keys = vec![Value::Array(vec![Value::BulkString(b"queue".to_vec())])];
    assert_eq!(connection.wait_push(&wake, far()).unwrap(), Waited::Push(PushKind::Invalidate, keys.clone()));
    // A push that comes between a request and its reply is kept.
    assert!(connection.query::<bool>(redis::cmd("EXISTS").arg("queue")).unwrap());
    server.cli::<i64>(&["LPUSH", "queue", "b"]);
    connection.request(&redis::cmd("PING")).unwrap();
    assert_eq!(connection.wait_push(&wake, far()).unwrap(), Waited::Push(PushKind::Invalidate, keys));
    let kick = connection.kick();
    let kicker = spawn("t-kick", Kick::dropped("nothing"), move || kick.kick());
    assert!(matches!(connection.wait_push(&wake, far()), Err(RedisError::Stopped)));
    assert!(matches!(connection.request(&redis::cmd("PING")), Err(RedisError::Stopped)));
    kicker.join_by(far()).unwrap();
}

#[test]
fn an_answer_that_is_late_or_truncated_never_answers_another_request() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    server.cli::<()>(&["SET", "key", &"v".repeat(1000)]);
    let proxy = FaultyProxy::before(&server);
    let mut connection = open(&proxy.config()).unwrap();
    proxy.delay(Duration::from_secs(10));
    connection.set_deadline(Instant::now() + Duration::from_millis(50));
    let late = connection.request(redis::cmd("GET").arg("key")).unwrap_err();
    assert!(matches!(late, RedisError::Timeout { .. }) && late.connection_lost(), "{late}");
    proxy.heal();
    connection.set_deadline(far());
    assert!(matches!(connection.request(&redis::cmd("PING")), Err(RedisError::Timeout { .. })), "it stays broken");
    for bytes in [1, 4, 500, 1007] {
        let mut connection = open(&proxy.config()).unwrap();
        proxy.disconnect_after(bytes);
        let cut = connection.request(redis::cmd("GET").arg("key")).unwrap_err();
        assert!(matches!(cut, RedisError::Closed { .. }), "{cut}");
        assert!(matches!(connection.request(&redis::cmd("PING")), Err(RedisError::Closed { .. })));
    }
}

#[test]
fn a_wrong_password_is_named_as_such_and_never_shown() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start_with(&["--requirepass", "s3cret-word"]) else { return };
    let url = |login: &str| RedisConfig::parse(&format!("redis://{login}127.0.0.1:{}/0", server.port())).unwrap();
    for login in [":wr0ng-word@", "me:wr0ng-word@", ""] {
        let error = open(&url(login)).unwrap_err();
        assert!(matches!(error, RedisError::Auth { .. }) && error.class() == ErrorClass::Fatal, "{error}");
        assert!(!format!("{error} {error:?} {error:#?}").contains("wr0ng-word"));
    }
    let mut connection = open(&url(":s3cret-word@")).unwrap();
    let board = Board::new();
    let commander = Commander::start("t-cmd", url(":wr0ng-word@"), &board).unwrap();
    let error = commander
        .handle()
        .call(Request::once(&redis::cmd("PING"), Instant::now() + Duration::from_secs(2)))
        .unwrap_err();
    assert!(error.to_string().contains("refuses the log-in: WRONGPASS"), "{error}");
    assert!(
        !format!("{error:?} {:?} {:?}", board.health.parts(Instant::now()), board.errors.last_errors())
            .contains("wr0ng")
    );
    connection.request(redis::cmd("CONFIG").arg(&["SET", "requirepass", "wr0ng-word"])).unwrap();
    commander.handle().call(Request::once(&redis::cmd("PING"), far())).unwrap();
    assert!(stop(commander, LONG).is_clean());
}

/// A peer that answers every connection with the same bytes.
fn impostor(answer: &'static [u8], work: impl FnOnce(&RedisConfig)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = spawn("t-impostor", Kick::dropped("one connection"), move || {
        let (mut peer, _) = listener.accept().unwrap();
        assert!(peer.read(&mut [0; 1000]).unwrap() > 0);
        peer.write_all(answer).unwrap();
        // Until the other side has gone.
        let _ = peer.read_to_end(&mut Vec::new());
    });
    work(&RedisConfig::parse(&format!("redis://:s3cret-word@127.0.0.1:{port}")).unwrap());
    thread.join_by(far()).unwrap();
}

#[test]
fn an_old_redis_and_what_is_no_redis_are_distinguished_in_one_line() {
    let _none = NoThreads::expected();
    let old = b"+OK\r\n-ERR unknown command `HELLO`, with args beginning with: `3`, `s3cret-word`, \r\n\
        +OK\r\n+OK\r\n+PONG\r\n";
    impostor(old, |config| {
        let reported = open(config).unwrap_err().to_string();
        assert!(
            reported.contains("is too old") && reported.contains("version 6 or later") && !reported.contains("s3cret"),
            "{reported}"
        );
    });
    impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n", |config| {
        let error = open(config).unwrap_err();
        assert!(error.to_string().contains("expected a reply of Redis, got \"HTTP/1.1 400 Bad"), "{error}");
        assert!(error.advice().unwrap().contains("port"));
    });
    impostor(b"", |config| {
        let deadline = Instant::now() + Duration::from_millis(100);
        let error = Connection::open(config, deadline, &Shutdown::new(), Level::Drain).unwrap_err();
        assert!(matches!(error, RedisError::Timeout { .. }), "{error}");
    });
    let Some(server) = RedisServer::start() else { return };
    let config = RedisConfig::parse(&format!("rediss://127.0.0.1:{}", server.port())).unwrap();
    let deadline = Instant::now() + Duration::from_millis(300);
    let error = Connection::open(&config, deadline, &Shutdown::new(), Level::Drain).unwrap_err();
    // Redis waits for the end of what it takes for a command.
    assert!(error.to_string().contains("the TLS handshake took longer"), "{error}");
}

#[test]
fn a_commander_answers_many_callers_in_order_over_one_connection() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let board = Board::new();
    let commander = Commander::start("t-cmd", server.config(), &board).unwrap();
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let handle = commander.handle();
            spawn(format!("t-call-{caller}"), Kick::dropped("its answers"), move || {
                for n in 0..500 {
                    let key = format!("k{caller}-{n}");
                    let mut request = Request::new(Repeat::Never, far());
                    request = request.command(redis::cmd("SET").arg(&key).arg(n)).command(redis::cmd("GET").arg(&key));
                    let values = handle.call(request).unwrap();
                    assert_eq!(values, [Value::Okay, Value::BulkString(n.to_string().into_bytes())]);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.join_by(far()).unwrap();
    }
    assert_eq!(commander.handle().state().epoch, 1);
    assert_eq!(commander.handle().call(Request::new(Repeat::Never, far())).unwrap(), []);
    let mixed = Request::once(&redis::cmd("PING"), far()).command(&redis::cmd("NONSENSE"));
    assert!(commander.handle().call(mixed).unwrap_err().is_server("ERR"));
    let text = board.metrics.render();
    assert!(text.contains("phalanx_redis_requests_total{place=\"t-cmd\",outcome=\"ok\"} 4000"), "{text}");
    assert!(stop(commander, LONG).is_clean());
}

#[test]
fn a_script_that_redis_has_forgotten_is_loaded_again() {
    static ADD: Script = Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
    static BROKEN: Script = Script::new("this is no Lua");
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::start() else { return };
    let commander = Commander::start("t-cmd", server.config(), &Board::new()).unwrap();
    let handle = commander.handle();
    let add = |n: i64| {
        let request =
            Request::new(Repeat::Never, far()).command(redis::cmd("INCR").arg("calls")).script(&ADD, &["sum"], n);
        handle.call(request.script(&ADD, &["sum"], n)).unwrap()
    };
    assert_eq!(add(1), [Value::Int(1), Value::Int(1), Value::Int(2)]);
    server.cli::<()>(&["SCRIPT", "FLUSH"]);
    assert_eq!(add(10), [Value::Int(2), Value::Int(12), Value::Int(22)], "each call ran once, and so did the rest");
    server.restart();
    // It may still have to find out that the old connection has gone.
    let wait = Request::idempotent(&redis::cmd("PING"), far());
    handle.call(wait).unwrap();
    assert_eq!(add(100), [Value::Int(3), Value::Int(122), Value::Int(222)]);
    let broken = handle.call(Request::new(Repeat::Never, far()).script(&BROKEN, &["k"], 1)).unwrap_err();
    assert!(broken.to_string().contains("compiling script"), "{broken}");
    assert!(stop(commander, LONG).is_clean());
}

#[test]
fn what_may_be_repeated_survives_a_disconnection_and_what_may_not_says_that_its_outcome_is_unknown() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    server.cli::<()>(&["SET", "key", &"v".repeat(1000)]);
    let proxy = FaultyProxy::before(&server);
    let commander = Commander::start("t-cmd", proxy.config(), &Board::new()).unwrap();
    let handle = commander.handle();
    assert_eq!(get(&handle, "key").unwrap().len(), 1000);
    for bytes in [1, 500, 1006] {
        proxy.disconnect_after(bytes);
        assert_eq!(get(&handle, "key").unwrap().len(), 1000);
        assert!(!proxy.is_armed());
        proxy.disconnect_after(1);
        let lost = handle.call(Request::once(redis::cmd("INCR").arg("n"), far())).unwrap_err();
        assert!(matches!(lost, RedisError::Closed { unknown: true, .. }), "{lost}");
    }
    assert_eq!(get(&handle, "n").as_deref(), Some("3"), "and here it was done each time");
    assert!(stop(commander, LONG).is_clean());
}

#[test]
fn a_redis_that_is_away_is_an_error_within_the_deadline_and_is_found_when_it_comes() {
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::away() else { return };
    let board = Board::new();
    let commander = Commander::start("t-cmd", server.config(), &board).unwrap();
    let handle = commander.handle();
    let (start, limit) = (Instant::now(), Duration::from_millis(300));
    let error = handle.call(Request::idempotent(&redis::cmd("PING"), start + limit)).unwrap_err();
    let took = start.elapsed();
    assert!(error.to_string().contains("waiting for a connection took longer than"), "{error}");
    assert!(error.to_string().contains("cannot connect to 127.0.0.1:"), "{error}");
    assert!(took >= limit && took < LONG, "{took:?}");
    let part = || board.health.parts(Instant::now()).into_iter().find(|part| part.name == "t-cmd").unwrap();
    let down = part();
    assert!(down.state == PartState::Down && down.why.as_ref().unwrap().contains("see that Redis runs"), "{down}");
    server.start_again();
    handle.call(Request::once(&redis::cmd("PING"), far())).unwrap();
    assert_eq!(part().state, PartState::Up);
    assert!(stop(commander, LONG).is_clean());
}

#[test]
fn a_silent_connection_is_given_up_and_made_anew() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let proxy = FaultyProxy::before(&server);
    let mut config = proxy.config();
    config.operation_time = Duration::from_millis(300);
    let commander = Commander::start("t-cmd", config, &Board::new()).unwrap();
    let handle = commander.handle();
    handle.call(Request::once(&redis::cmd("PING"), far())).unwrap();
    proxy.black_hole();
    let (report, notified) = bounded(1);
    handle
        .submit(Request::idempotent(redis::cmd("INCR").arg("n"), far()), move |answer| report.send(answer).unwrap())
        .unwrap();
    let short =
        handle.call(Request::once(&redis::cmd("PING"), Instant::now() + Duration::from_millis(50))).unwrap_err();
    assert!(matches!(short, RedisError::Timeout { .. }), "{short}");
    let silent = handle.call(Request::once(&redis::cmd("PING"), far())).unwrap_err();
    assert!(matches!(silent, RedisError::Timeout { .. }) && handle.state().last_error.is_some(), "{silent}");
    proxy.heal();
    notified.recv_timeout(LONG).unwrap().unwrap();
    assert!(handle.state().epoch >= 2);
    assert!(stop(commander, LONG).is_clean());
}

#[test]
fn a_frozen_redis_does_not_hold_up_a_stop() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let mut config = server.config();
    config.operation_time = LONG;
    let commander = Commander::start("t-cmd", config, &Board::new()).unwrap();
    let handle = commander.handle();
    handle.call(Request::once(&redis::cmd("PING"), far())).unwrap();
    server.pause();
    let (report, notified) = bounded(1);
    handle.submit(Request::once(&redis::cmd("PING"), far()), move |answer| report.send(answer).unwrap()).unwrap();
    let start = Instant::now();
    let report = stop(commander, Duration::from_millis(200));
    assert!(report.is_clean() && start.elapsed() < LONG / 2, "{report}");
    assert!(matches!(notified.recv().unwrap(), Err(RedisError::Stopped)));
    assert!(matches!(handle.call(Request::once(&redis::cmd("PING"), far())), Err(RedisError::Stopped)));
}

/// A certificate for 127.0.0.1 with its key, and the authority that signed it, as PEM files.
fn certificates(folder: &std::path::Path) -> [String; 3] {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    // Another name than that of its certificates, which would else count as signed by themselves.
    ca.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::from_params(&ca, &ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    [("ca.pem", authority.pem()), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())].map(
        |(name, text)| {
            std::fs::write(folder.join(name), text).unwrap();
            folder.join(name).to_str().unwrap().to_owned()
        },
    )
}

#[test]
fn tls_carries_large_replies_and_trusts_only_its_authority() {
    let _none = NoThreads::expected();
    let folder = tempfile::tempdir().unwrap();
    let [ca, certificate, key] = certificates(folder.path());
    let port = redis_kit::free_port();
    let tls_port = port.to_string();
    let options =
        ["--tls-port", &tls_port, "--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-auth-clients", "no"];
    let Some(_server) = RedisServer::start_with(&options) else { return };
    let url = format!("rediss://127.0.0.1:{port}/1");
    let stranger = open(&RedisConfig::parse(&url).unwrap()).unwrap_err();
    assert!(
        matches!(&stranger, RedisError::Tls { problem, .. } if problem.contains("ssl_ca_certs=FILE")),
        "{stranger}"
    );
    let config = RedisConfig::parse(&format!("{url}?ssl_ca_certs={ca}")).unwrap();
    let mut connection = open(&config).unwrap();
    let mut pipe = redis::pipe();
    let values: Vec<Vec<u8>> = (0..40u8).map(|n| vec![n; usize::from(n) * 20_011]).collect();
    for (n, value) in values.iter().enumerate() {
        pipe.set(n, value).ignore();
        pipe.get(n);
    }
    connection.set_deadline(far());
    let read: Vec<Vec<u8>> = pipe.query(&mut connection).unwrap();
    assert!(read == values);
    let commander = Commander::start("t-tls", config, &Board::new()).unwrap();
    let mut get = Request::new(Repeat::Idempotent, far());
    for n in 0..40 {
        get = get.command(redis::cmd("GET").arg(n));
    }
    let read = commander.handle().call(get).unwrap();
    assert!(read == values.into_iter().map(Value::BulkString).collect::<Vec<_>>());
    assert!(stop(commander, LONG).is_clean());
}

#[test]
fn a_socket_of_the_file_system_is_an_address_and_a_cluster_is_refused_in_words() {
    let _none = NoThreads::expected();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock").to_str().unwrap().to_owned();
    let Some(_server) = RedisServer::start_with(&["--unixsocket", &socket]) else { return };
    let config = RedisConfig::parse(&format!("redis+socket://{socket}?virtual_host=3")).unwrap();
    let mut connection = open(&config).unwrap();
    assert_eq!(connection.query::<String>(redis::cmd("ECHO").arg("x")).unwrap(), "x");
    let clients: String = connection.query(redis::cmd("CLIENT").arg("LIST")).unwrap();
    assert!(clients.contains("db=3") && clients.contains(&socket), "{clients}");
    let missing = open(&RedisConfig::parse("redis+socket:///no/such.sock").unwrap()).unwrap_err();
    assert!(missing.to_string().contains("/no/such.sock") && missing.connection_lost(), "{missing}");

    let port = free_port().to_string();
    let Some(cluster) = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &port]) else { return };
    let refused = open(&cluster.config()).unwrap_err();
    assert!(refused.to_string().contains("it is a Redis Cluster") && refused.class() == ErrorClass::Fatal, "{refused}");
}

#[test]
fn a_redis_that_asks_for_a_certificate_gets_one() {
    let _none = NoThreads::expected();
    let folder = tempfile::tempdir().unwrap();
    let [ca, certificate, key] = certificates(folder.path());
    let port = free_port().to_string();
    let mut options = vec!["--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    options.extend(["--tls-auth-clients", "yes", "--tls-ca-cert-file", &ca]);
    let Some(_server) = RedisServer::start_with(&options) else { return };
    let url = format!("rediss://127.0.0.1:{port}/0?ssl_ca_certs={ca}");
    let refused = open(&RedisConfig::parse(&url).unwrap()).unwrap_err();
    assert!(matches!(refused, RedisError::Tls { .. } | RedisError::Closed { .. }), "{refused}");
    let shown = format!("{url}&ssl_certfile={certificate}&ssl_keyfile={key}");
    let mut connection = open(&RedisConfig::parse(&shown).unwrap()).unwrap();
    assert_eq!(connection.query::<String>(redis::cmd("ECHO").arg("x")).unwrap(), "x");
    // As Celery's settings say it, beside an address without TLS.
    let files = serde_json::json!({"ssl_ca_certs": ca, "ssl_certfile": certificate, "ssl_keyfile": key});
    let app = AppConfig::parse(&serde_json::json!({"broker_use_ssl": files}).to_string()).unwrap();
    let plain = RedisConfig::parse(&format!("redis://127.0.0.1:{port}/0")).unwrap();
    let client = Client::start_with(CeleryConfig { app, ..CeleryConfig::new(plain) });
    client.handle().send(Task::new("noop").ignore_result()).unwrap();
    assert_eq!(connection.query::<usize>(redis::cmd("LLEN").arg("celery")).unwrap(), 1);
}

#[test]
fn sentinels_tell_where_the_master_is_also_after_a_fail_over() {
    let _none = NoThreads::expected();
    let Some(mut master) = RedisServer::start() else { return };
    let port = master.port().to_string();
    let Some(replica) = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]) else { return };
    let sentinel = Sentinel::start(master.port());
    until("the Sentinel knows the replica", || sentinel.has_replica(replica.port()));
    let at = |url: &str| RedisConfig::parse(url).unwrap();
    let straight = open(&at(&format!("redis://127.0.0.1:{}", sentinel.port()))).unwrap_err().to_string();
    assert!(straight.contains("it is a Sentinel; use sentinel://"), "{straight}");
    let unknown = open(&at(&format!("sentinel://127.0.0.1:{}?master_name=red", sentinel.port()))).unwrap_err();
    assert!(unknown.to_string().contains("\"red\"") && unknown.connection_lost(), "{unknown}");

    // The first one of the list is not there.
    let url = format!("sentinel://127.0.0.1:{};sentinel://127.0.0.1:{}?master_name=blue", free_port(), sentinel.port());
    let commander = Commander::start("t-sent", often(at(&url)), &Board::new()).unwrap();
    let set = |value: &str| {
        let mut set = redis::cmd("SET");
        commander.handle().call(Request::idempotent(set.arg("key").arg(value), far()))
    };
    set("before").unwrap();
    assert_eq!(master.cli::<String>(&["GET", "key"]), "before");
    master.kill();
    set("after").unwrap();
    assert_eq!(replica.cli::<String>(&["GET", "key"]), "after", "it is the master now");
    assert!(stop(commander, LONG).is_clean());
}

#[test]
fn sentinels_with_a_password_and_tls_are_asked_as_celerys_settings_say() {
    let _none = NoThreads::expected();
    let folder = tempfile::tempdir().unwrap();
    let [ca, certificate, key] = certificates(folder.path());
    let Some(master) = RedisServer::start() else { return };
    let port = free_port();
    let more = format!(
        "port 0\ntls-port {port}\ntls-ca-cert-file {ca}\ntls-cert-file {certificate}\ntls-key-file {key}\n\
         tls-auth-clients yes\nrequirepass s3cret\n"
    );
    let _sentinel = Sentinel::start_with(master.port(), port, &more);
    let kwargs = serde_json::json!({
        "username": "default", "password": "s3cret", "ssl": true, "ssl_cert_reqs": "required", "ssl_ca_certs": ca,
        "ssl_certfile": certificate, "ssl_keyfile": key, "socket_timeout": 0.5,
    });
    let options = serde_json::json!({"master_name": "blue", "sentinel_kwargs": kwargs});
    let app = AppConfig::parse(&serde_json::json!({"broker_transport_options": options}).to_string()).unwrap();
    assert!(!format!("{app:?}").contains("s3cret"));
    let redis = often(RedisConfig::parse(&format!("sentinel://127.0.0.1:{port}/0")).unwrap());
    let mut without = app.broker_transport_options.sentinel_kwargs.clone();
    without.password = None;
    let refused = || open(&redis.clone().with_sentinel(Some("blue"), &without)).unwrap_err().to_string();
    until("the Sentinel asks for a password", || refused().contains("NOAUTH"));
    let worker = Ours::ready(WorkerConfig { app, ..settings(redis) }, crate::example::registry());
    let client = Client::start(master.config());
    let sum = client.handle().send(Task::new("add").args(serde_json::json!([1, 2]))).unwrap();
    assert_eq!(sum.wait(LONG), Ok(serde_json::json!(3)));
    assert_eq!(worker.stop(LONG).left, 0);
}
