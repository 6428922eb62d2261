//! Canvases between real Celery and us: what its client sends our worker runs, what our client sends its worker runs,
//! and both count the parts of one chord.

use crate::example;
use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, far, until};

use std::time::Duration;

use celery_kit::{Client, Feed, Ours, Worker, celery, settings};
use crossbeam_channel::{Receiver, bounded};
use phalanx::celery::worker::{Registry, TaskError, WorkerConfig};
use phalanx::celery::{AppConfig, Canvas, CanvasResult, CeleryConfig, Task};
use redis_kit::RedisServer;
use serde_json::{Value, json};

/// The queue of the real worker, where there are both.
const THEIRS: &str = "python";

fn t(name: &str, args: Value) -> Value {
    json!({"task": name, "args": args})
}

fn sum(value: &Value) -> i64 {
    value.as_array().map_or_else(|| value.as_i64().unwrap_or(0), |all| all.iter().map(sum).sum())
}

/// The tasks of our worker; `note` says what it was called with.
fn registry() -> (Registry, Receiver<Value>) {
    let (report, noted) = bounded(100);
    let add = |x: i64, y: i64| Task::new("add").args(json!([x, y]));
    let registry = example::registry()
        .register("sum", |_, args| Ok(json!(sum(&args.get(0, "values")?))))
        .register("note", move |_, args| {
            report.send(json!(args.positional)).unwrap();
            Ok(Value::Null)
        })
        .register("double", move |cx, args| {
            let x = args.get(0, "x")?;
            Err(cx.replace(add(x, x)))
        })
        .register("spread", move |cx, args| {
            let x = args.get(0, "x")?;
            Err(cx.replace(Canvas::group([add(x, 1), add(x, 2)])))
        })
        .register("deeper", move |cx, args| {
            let x = args.get(0, "x")?;
            Err(cx.replace(Canvas::from(add(x, 1)).then(Task::new("double"))))
        })
        .register("stamps", |cx, _| Ok(cx.message().stamps.clone()))
        .register("caller", |cx, args| {
            let id = cx.call(Canvas::chain([Task::new("who"), Task::new("note")]))?;
            match args.get::<bool>(0, "fails")? {
                true => Err(TaskError::new("ValueError", "it calls nothing")),
                false => Ok(json!(id)),
            }
        });
    (registry, noted)
}

fn run(feed: &mut Feed, canvas: &Value) -> Value {
    feed.ask("run_canvas", json!({"canvas": canvas}))
}

/// Has a real client send it, and compares the value that it gets.
#[track_caller]
fn gives(feed: &mut Feed, canvas: Value, value: Value) {
    let done = run(feed, &canvas);
    assert_eq!((&done["value"], &done["raised"]), (&value, &Value::Null), "{canvas}: {done}");
}

/// The keys of chords that have not ended.
fn open_chords(server: &RedisServer) -> Vec<String> {
    let keys: Vec<String> = server.cli(&["KEYS", "celery-taskset-meta-*"]);
    keys.into_iter().filter(|key| !key.ends_with(".c") && key.contains('.')).collect()
}

#[test]
fn what_a_client_of_celery_sends_our_worker_runs() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let (registry, noted) = registry();
    let worker = Ours::ready(settings(server.config()), registry);
    let feed = &mut feed;

    groups_chains_and_chords(feed);
    until("no chord is open", || open_chords(&server).is_empty());
    callbacks(feed, &noted);
    maps(feed);
    failures(feed, &noted);
    replaced(feed);
    let stamped = json!({"chain": [t("add", json!([1, 1])), t("stamps", json!([]))], "stamps": {"tenant": "x"}});
    gives(feed, stamped, json!({"tenant": "x"}));
    // A task calls others when it succeeds.
    let called = run(feed, &t("caller", json!([false])));
    let who = noted.recv_timeout(LONG).unwrap()[0].clone();
    assert_eq!((&who["parent"], &who["root"]), (&called["id"], &called["id"]), "{who}");
    assert_eq!(run(feed, &t("caller", json!([true])))["raised"]["type"], "ValueError");
    assert_eq!(feed.wait(called["value"].as_str().unwrap())["state"], "SUCCESS", "the end of what it has called");
    until("everything is settled", || worker.state().counts.total() == 0);
    assert!(noted.is_empty(), "one that fails calls nothing");
    assert_eq!(server.cli::<usize>(&["LLEN", "celery"]), 0);
    assert_eq!(server.cli::<usize>(&["LLEN", "phalanx.aside"]), 0);
}

fn groups_chains_and_chords(feed: &mut Feed) {
    let add = |x: i64, y: i64| t("add", json!([x, y]));
    let plus = |y: i64| t("add", json!([y]));
    let sum = t("sum", json!([]));
    gives(feed, json!({"group": [add(1, 1), add(2, 2), add(3, 3)]}), json!([2, 4, 6]));
    gives(feed, json!({"chord": [[add(1, 1), add(2, 2)], sum]}), json!(6));
    let echo = t("echo", json!([]));
    let many: Vec<Value> = (0..30).map(|n| add(n, 0)).collect();
    gives(feed, json!({"chord": [many, echo]}), json!([[(0..30).collect::<Vec<_>>()], {}]));
    gives(feed, json!({"chord": [[], echo]}), json!([[[]], {}]));
    let middle = json!({"chain": [add(1, 1), {"group": [plus(1), plus(2)]}, sum, plus(100)]});
    gives(feed, middle, json!(107));
    gives(feed, json!({"chain": [add(1, 1), {"group": [plus(1), plus(2)]}]}), json!([3, 4]));
    let twice = json!({"chain": [{"group": [add(1, 1), add(2, 2)]}, {"group": [sum, echo]}]});
    gives(feed, twice, json!([6, [[[2, 4]], {}]]));
    let nested = json!({"chord": [[{"chain": [add(1, 1), {"group": [plus(1), plus(2)]}]}, add(5, 5)], echo]});
    gives(feed, nested, json!([[[[3, 4], 10]], {}]));
    let inner = json!({"chord": [[add(1, 1), add(2, 2)], sum]});
    gives(feed, json!({"chord": [[inner, {"chain": [add(1, 1), plus(7)]}], sum]}), json!(15));
    let body = json!({"chain": [sum, plus(1), {"group": [plus(1), plus(2)]}]});
    gives(feed, json!({"chord": [[add(1, 1), add(2, 2)], body]}), json!([8, 9]));
    let body = json!({"chord": [[sum, sum], sum]});
    gives(feed, json!({"chord": [[add(1, 1), add(2, 2)], body]}), json!(12));
    // A part that nobody wants the result of counts, as one that is retried.
    let unwanted = json!({"task": "add", "args": [1, 1], "options": {"ignore_result": true}});
    gives(feed, json!({"chord": [[unwanted, t("retry", json!([2, 5]))], sum]}), json!(4));
}

fn callbacks(feed: &mut Feed, noted: &Receiver<Value>) {
    let (plus, note) = (|y: i64| t("add", json!([y])), t("note", json!([])));
    let group = json!({"group": [{"chain": [plus(10), note]}, {"chain": [plus(20), note]}]});
    let chord = json!({"chord": [[plus(1), plus(2)], {"chain": [t("sum", json!([])), note]}]});
    let link = json!([group, chord, {"chain": [plus(100), note]}]);
    let done = feed.run("add", json!({"args": [1, 2], "options": {"link": link}}));
    assert_eq!((&done["result"], done["children"].as_array().unwrap().len()), (&json!(3), 3), "{done}");
    let mut all: Vec<i64> = (0..4).map(|_| noted.recv_timeout(LONG).unwrap()[0].as_i64().unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, [9, 13, 23, 103]);
    // Linked to a chord it follows the body, and to a chain the last task.
    let chord = json!({"chord": [[t("add", json!([1, 1]))], t("sum", json!([]))], "link": [note]});
    gives(feed, chord, json!(2));
    assert_eq!(noted.recv_timeout(LONG).unwrap(), json!([2]));
}

fn maps(feed: &mut Feed) {
    gives(feed, json!({"map": ["sum", [[1, 2], [3]]]}), json!([3, 3]));
    gives(feed, json!({"starmap": ["add", [[1, 2], [3, 4]]]}), json!([3, 7]));
    gives(feed, json!({"chunks": ["add", [[1, 2], [3, 4], [5, 6]], 2]}), json!([[3, 7], [11]]));
    gives(feed, json!({"chord": [[{"starmap": ["add", [[1, 2], [3, 4]]]}], t("sum", json!([]))]}), json!(10));
    let link = json!([{"chunks": ["note", [["chunk 1"], ["chunk 2"]], 1]}]);
    let done = feed.run("add", json!({"args": [1, 2], "options": {"link": link}}));
    let chunks = feed.wait(done["children"][0].as_str().unwrap());
    assert_eq!(chunks["result"][1].as_array().map(Vec::len), Some(2), "the results of a group: {chunks}");
    let raised = run(feed, &json!({"map": ["nobody", [1]]}));
    assert_eq!(raised["raised"]["type"], "NotRegistered");
    assert_eq!(run(feed, &t("celery.ping", json!([])))["value"], "pong");
    assert_eq!(run(feed, &t("celery.backend_cleanup", json!([])))["raised"], Value::Null);
}

fn failures(feed: &mut Feed, noted: &Receiver<Value>) {
    // Of the chunks above.
    let chunks: Vec<Value> = (0..2).map(|_| noted.recv_timeout(LONG).unwrap()).collect();
    assert!(chunks.contains(&json!(["chunk 1"])) && chunks.contains(&json!(["chunk 2"])), "{chunks:?}");
    let (add, note) = (t("add", json!([1, 1])), t("note", json!(["failed"])));
    let fail = json!({"task": "fail", "args": ["ValueError", "x"], "options": {"task_id": "culprit"}});
    let sum = t("sum", json!([]));
    let done = run(feed, &json!({"chord": [[add, fail], sum], "link_error": [note]}));
    let raised = &done["raised"];
    assert_eq!((&raised["type"], &raised["module"]), (&json!("ChordError"), &json!("celery.exceptions")), "{done}");
    assert_eq!(raised["args"], json!(["Dependency culprit raised ValueError('x')"]));
    assert_eq!(noted.recv_timeout(LONG).unwrap(), json!([done["id"], "failed"]));
    let fail = t("fail", json!(["ValueError", "x"]));
    // The end of a chain is a part.
    let done = run(feed, &json!({"chord": [[add, {"chain": [fail, t("add", json!([1]))]}], sum]}));
    assert_eq!(done["raised"]["type"], "ChordError", "{done}");
    // What follows the body fails with it.
    let chain = json!({"chain": [{"group": [add, fail]}, sum, t("add", json!([1]))]});
    assert_eq!(run(feed, &chain)["raised"]["type"], "ChordError");
    // A chord in a header fails the outer one.
    let inner = json!({"chord": [[add, fail], sum]});
    let outer = json!({"chord": [[inner, add], sum]});
    let done = run(feed, &outer);
    assert_eq!(done["raised"]["type"], "ChordError", "{done}");
    // The tasks of a body that is a group fail with what the part has failed with.
    let done = run(feed, &json!({"chord": [[add, fail], {"group": [sum, sum]}]}));
    assert_eq!((&done["raised"]["type"], &done["raised"]["args"]), (&json!("ValueError"), &json!(["x"])), "{done}");
    let late = json!({"task": "add", "args": [1, 1], "options": {"countdown": 0.4, "expires": 0.2, "task_id": "late"}});
    let done = run(feed, &json!({"chord": [[add, late], sum]}));
    assert_eq!(done["raised"]["args"], json!(["Dependency late raised TaskRevokedError('expired')"]), "{done}");
}

fn replaced(feed: &mut Feed) {
    let (plus, double) = (|y: i64| t("add", json!([y])), t("double", json!([])));
    gives(feed, t("double", json!([4])), json!(8));
    gives(feed, t("spread", json!([4])), json!([5, 6]));
    gives(feed, t("deeper", json!([4])), json!(10));
    gives(feed, json!({"chain": [t("add", json!([1, 1])), double, plus(1)]}), json!(5));
    gives(feed, json!({"chain": [t("spread", json!([1])), t("sum", json!([])), plus(1)]}), json!(6));
    let header =
        json!([t("double", json!([1])), t("spread", json!([2])), t("deeper", json!([3])), t("add", json!([1, 1]))]);
    gives(feed, json!({"chord": [header, t("echo", json!([]))]}), json!([[[2, [3, 4], 8, 2]], {}]));
}

/// What our client gets.
#[track_caller]
fn value(client: &Client, canvas: impl Into<Canvas>) -> Value {
    client.handle().send_canvas(canvas).unwrap().wait(LONG).unwrap()
}

#[test]
fn what_our_client_sends_a_worker_of_celery_runs_and_both_count_the_parts_of_one_chord() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(command) = celery("celery_feed", &server.url()) else { return };
    let Some(_theirs) = Worker::start_from(command, &["--pool", "threads", "-c", "2", "-Q", THEIRS]) else { return };
    let (registry, noted) = registry();
    let worker = Ours::ready(settings(server.config()), registry);
    let client = Client::start(server.config());
    theirs_alone(&client, &server);
    mixed(&client, &server, &noted);
    until("everything is settled", || worker.state().counts.total() == 0);
    assert_eq!(server.cli::<usize>(&["LLEN", "phalanx.aside"]), 0);
}

fn python(name: &str, args: Value) -> Task {
    Task::new(name).args(args).queue(THEIRS)
}

/// What a worker of Celery has noted.
fn python_note(server: &RedisServer) -> Value {
    let mut connection = server.connection();
    connection.set_deadline(far());
    let (_, text): (String, String) = connection.query(redis::cmd("BLPOP").arg("notes").arg(30)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn theirs_alone(client: &Client, server: &RedisServer) {
    let add = |x: i64, y: i64| python("python_add", json!([x, y]));
    let plus = |y: i64| Canvas::from(python("python_add", json!([y])));
    let sum = || Canvas::from(python("python_sum", Value::Null));
    assert_eq!(value(client, add(1, 2)), 3);
    assert_eq!(value(client, Canvas::chain([add(1, 2).into(), plus(3), plus(4)])), 10);
    let group = client.handle().send_canvas(Canvas::group((0..5).map(|n| add(n, n)))).unwrap();
    assert_eq!((group.wait(LONG), group.ended()), (Ok(json!([0, 2, 4, 6, 8])), (5, 5)));
    let chord = || Canvas::chord(Canvas::group([add(1, 1), add(2, 2)]), sum());
    assert_eq!(value(client, chord()), 6);
    let chain = Canvas::from(add(1, 1)).then(Canvas::group([plus(1), plus(2)])).then(sum()).then(plus(100));
    assert_eq!(value(client, chain), 107);
    let header = Canvas::group([chord(), Canvas::from(add(1, 1)).then(Canvas::group([plus(1), plus(2)]))]);
    assert_eq!(value(client, Canvas::chord(header, sum().then(plus(1)))), 14);
    let map = Canvas::map("python_sum", [json!([1, 2]), json!([3])]);
    let starmap = Canvas::chunks("python_add", [json!([1, 2]), json!([3, 4]), json!([5, 6])], 2);
    assert_eq!(value(client, map.queue(THEIRS)), json!([3, 3]));
    assert_eq!(value(client, starmap.queue(THEIRS)), json!([[3, 7], [11]]));
    // Callbacks, error callbacks, stamps, and what takes no argument.
    let linked = Canvas::from(add(1, 2)).link(python("python_note", json!(["after"]))).stamp("tenant", "x");
    assert_eq!(value(client, linked), 3);
    assert_eq!(python_note(server), json!([3, "after"]));
    let about = Canvas::from(python("python_about", Value::Null)).immutable();
    let about = value(client, Canvas::from(add(1, 1)).then(about).stamp("tenant", "x"));
    assert_eq!((&about["stamps"], about["root"].is_string()), (&json!({"tenant": "x"}), true), "{about}");
    let fail = || python("python_fail", Value::Null);
    let chord = Canvas::chord(Canvas::group([add(1, 1), fail()]), sum().then(plus(1)));
    let failed = client.handle().send_canvas(chord.link_error(python("python_note", json!(["failed"])))).unwrap();
    let error = failed.wait(LONG).unwrap_err().to_string();
    assert!(
        error.starts_with("ChordError: Dependency") && error.ends_with("raised ValueError('of Python')"),
        "{error}"
    );
    assert_eq!(python_note(server)[1], "failed");
}

fn mixed(client: &Client, server: &RedisServer, noted: &Receiver<Value>) {
    let sum = |theirs: bool| match theirs {
        true => Canvas::from(python("python_sum", Value::Null)),
        false => Canvas::from(Task::new("sum")),
    };
    let add = |n: i64| match n % 2 {
        0 => Task::new("add").args(json!([n, 0])),
        _ => python("python_add", json!([n, 0])),
    };
    // Whoever has the last part calls the body, whoever runs that.
    for round in 0..6 {
        let chord = Canvas::chord(Canvas::group((0..20).map(add)), sum(round % 2 == 0));
        assert_eq!(value(client, chord), 190, "{round}");
    }
    let inner = |theirs| Canvas::chord(Canvas::group((0..3).map(add)), sum(theirs));
    let spread = [
        python("python_spread", json!([1])),
        Task::new("spread").args(json!([1])),
        Task::new("deeper").args(json!([1])),
    ];
    let header = Canvas::group([inner(true), inner(false)].into_iter().chain(spread.map(Canvas::from)));
    let echo = value(client, Canvas::chord(header, Task::new("echo")));
    assert_eq!(echo, json!([[[3, 3, [2, 3], [2, 3], 4]], {}]));
    let nested = |theirs| {
        let ends = [0, 1].map(|n| Canvas::from(add(n)).then(Canvas::group([add_to(1), add_to(2)])));
        Canvas::chord(Canvas::group(ends), sum(theirs)).then(add_to(3))
    };
    assert_eq!((value(client, nested(true)), value(client, nested(false))), (json!(11), json!(11)));
    for fails in [python("python_fail", Value::Null), Task::new("fail").args(json!(["ValueError", "ours"]))] {
        for theirs in [true, false] {
            let errback =
                if theirs { python("python_note", json!([theirs])) } else { Task::new("note").args(json!([theirs])) };
            let header = (0..5).map(add).chain([fails.clone()]);
            let chord = Canvas::chord(Canvas::group(header), sum(theirs)).link_error(errback);
            let result = client.handle().send_canvas(chord).unwrap();
            let error = result.wait(LONG).unwrap_err().to_string();
            assert!(error.starts_with("ChordError: Dependency") && error.contains("raised ValueError("), "{error}");
            let note = if theirs { python_note(server) } else { noted.recv_timeout(LONG).unwrap() };
            assert_eq!(note, json!([result.id(), theirs]));
        }
    }
    assert!(noted.is_empty());
}

/// Alternately for both.
fn add_to(n: i64) -> Canvas {
    match n % 2 {
        0 => Task::new("add").args(json!([n])).into(),
        _ => python("python_add", json!([n])).into(),
    }
}

#[test]
fn chords_whose_results_are_in_another_database_or_come_without_an_order() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let app = json!({
        "result_backend": server.url().replace("/0", "/1"),
        "result_backend_transport_options": {"result_chord_ordered": false, "global_keyprefix": "r_"},
        "result_expires": 100,
    });
    let Some(mut feed) = Feed::start_with(&server.url(), &app) else { return };
    let (registry, noted) = registry();
    let app = AppConfig::parse(&app.to_string()).unwrap();
    let worker = Ours::ready(WorkerConfig { app: app.clone(), ..settings(server.config()) }, registry);
    let add = |x: i64| t("add", json!([x, x]));
    let inner = json!({"chord": [[add(1), add(2)], t("sum", json!([]))]});
    gives(&mut feed, json!({"chord": [[inner, add(3)], t("sum", json!([]))]}), json!(12));
    gives(
        &mut feed,
        json!({"chain": [add(1), {"group": [t("add", json!([1])), t("add", json!([2]))]}, t("sum", json!([]))]}),
        json!(7),
    );
    let failed = json!({
        "chord": [[inner, t("fail", json!(["ValueError", "x"]))], t("sum", json!([]))],
        "link_error": [t("note", json!([]))],
    });
    let done = run(&mut feed, &failed);
    assert_eq!(done["raised"]["type"], "ChordError");
    assert_eq!(noted.recv_timeout(LONG).unwrap(), json!([done["id"]]));
    let client = Client::start_with(CeleryConfig { app, ..CeleryConfig::new(server.config()) });
    let add = |n: i64| Task::new("add").args(json!([n, n]));
    let header = Canvas::group([add(1).into(), Canvas::from(add(2)).then(Canvas::group([add_to(2), add_to(4)]))]);
    assert_eq!(value(&client, Canvas::chord(header, Task::new("sum"))), 16);
    until("everything is settled", || worker.state().counts.total() == 0);
    let _: () = server.cli(&["SWAPDB", "0", "1"]);
    let keys: Vec<String> = server.cli(&["KEYS", "*"]);
    assert!(
        keys.iter().all(|key| key.starts_with("r_celery-task") && server.cli::<i64>(&["TTL", key]) > 0),
        "{keys:?}"
    );
    let open = |key: &&String| key.contains("-taskset-") && !key.ends_with(".c") && key.contains('.');
    // Of the one that has failed, what was recorded stays as long as with Celery.
    until("the others have ended", || {
        let keys: Vec<String> = server.cli(&["KEYS", "*.s"]);
        keys.is_empty()
    });
    assert!(keys.iter().filter(open).count() <= 2, "{keys:?}");
}

#[test]
fn groups_are_saved_and_restored_by_both() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let (registry, _noted) = registry();
    let _worker = Ours::ready(settings(server.config()), registry);
    let client = Client::start(server.config());
    let handle = client.handle();
    let add = |n: i64| Task::new("add").args(json!([n, n]));
    let CanvasResult::Group(group) = handle.send_canvas(Canvas::group([add(1), add(2)])).unwrap() else {
        panic!("it is a group")
    };
    handle.save_group(&group, far()).unwrap();
    assert_eq!(handle.restore_group("unknown", far()).unwrap().map(|group| group.id().to_owned()), None);
    let saved =
        feed.ask("restore", json!({"id": group.id(), "group": [t("add", json!([5, 5])), t("add", json!([6, 6]))]}));
    assert_eq!(saved["restored"], json!([2, 4]));
    let theirs = handle.restore_group(saved["id"].as_str().unwrap(), far()).unwrap().expect("it was saved");
    assert_eq!(CanvasResult::Group(theirs).wait(LONG), Ok(json!([10, 12])));
    // A task that is no canvas, and one whose result nobody wants.
    assert_eq!(value(&client, add(4)), 8);
    let unwanted = Canvas::group([add(1).ignore_result().into(), Canvas::from(add(2))]);
    let error = handle.send_canvas(unwanted).unwrap().wait(Duration::from_secs(5)).unwrap_err();
    assert_eq!(error, phalanx::celery::TaskError::Ignored);
    let error = handle.send_canvas(Canvas::chain(Vec::<Canvas>::new())).unwrap_err();
    assert_eq!(error.to_string(), "the canvas is not sent: a chain without tasks");
}
