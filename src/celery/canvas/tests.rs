use super::*;
use crate::celery::app_config::AppConfig;
use crate::celery::message::TaskMessage;
use crate::celery::{Envelope, Moment};

fn t(name: &str) -> Canvas {
    Task::new(name).into()
}

struct Sent {
    frozen: Frozen,
    sizes: Vec<(String, usize)>,
    groups: Vec<(String, Value)>,
    messages: Vec<TaskMessage>,
}

fn sent(canvas: Canvas) -> Sent {
    let mut n = 0;
    let mut fresh = || {
        n += 1;
        format!("id-{n}")
    };
    let (app, mut out, mut signature) = (AppConfig::default(), Expansion::default(), canvas.into_signature());
    let frozen = freeze(&mut signature, None, &Place::default(), None, &mut fresh).unwrap();
    // It is the same after it was written and read.
    let mut signature = Signature::read(&signature.write()).unwrap();
    assert_eq!(freeze(&mut signature, None, &Place::default(), None, &mut fresh).as_ref(), Ok(&frozen));
    let zone = app.zone();
    let now = Moment::from_unix_micros(0);
    let mut sending =
        Sending { now, defaults: &(), app: &app, zone: &zone, origin: "me", tells: false, fresh: &mut fresh };
    send(signature, Call::default(), &mut out, &mut sending).unwrap();
    let read = |text: &str| TaskMessage::read(&Envelope::read(text.as_bytes()).unwrap()).unwrap();
    let messages = out.messages.iter().map(|message| read(&message.text)).collect();
    Sent { frozen, sizes: out.sizes, groups: out.groups, messages }
}

fn names(sent: &Sent) -> Vec<&str> {
    sent.messages.iter().map(|message| message.task.as_str()).collect()
}

#[test]
fn a_chain_sends_its_first_task_with_the_rest_the_next_one_last() {
    let sent = sent(Canvas::chain([t("a"), Canvas::chain([t("b"), t("c")])]).then(t("d")));
    assert_eq!(names(&sent), ["a"]);
    let chain = &sent.messages[0].embed.chain;
    let rest: Vec<_> = chain.as_array().unwrap().iter().map(|step| step["task"].as_str().unwrap()).collect();
    assert_eq!(rest, ["d", "c", "b"]);
    assert_eq!(chain[0]["options"]["task_id"], sent.frozen.id());
    assert_eq!(sent.messages[0].root_id, sent.messages[0].id);
}

#[test]
fn the_parts_of_a_chord_know_its_body_and_are_counted_by_what_reports_to_it() {
    let inner = Canvas::chord(Canvas::group([t("x"), t("y")]), t("z"));
    let header = [t("a"), Canvas::chain([t("b"), t("c")]), Canvas::group([t("d"), t("e")]), inner];
    let sent = sent(Canvas::chord(Canvas::group(header), t("body")));
    assert_eq!(names(&sent), ["a", "b", "d", "e", "x", "y"]);
    let [(outer, 5), (inner, 2)] = &sent.sizes[..] else { panic!("{:?}", sent.sizes) };
    let (outer, inner) = (outer.as_str(), inner.as_str());
    let body = |value: &Value| (value["task"].clone(), value["options"]["task_id"].clone());
    let outer_body = (json!("body"), json!(sent.frozen.id()));
    let a = &sent.messages[0];
    assert_eq!((a.group.as_deref(), a.group_index, body(&a.embed.chord)), (Some(outer), Some(0), outer_body.clone()));
    // The last of a chain reports, not the first.
    let b = &sent.messages[1];
    assert_eq!((&b.group, &b.embed.chord), (&None, &Value::Null));
    let c = &b.embed.chain[0]["options"];
    assert_eq!((&c["group_id"], &c["group_index"], body(&c["chord"])), (&json!(outer), &json!(1), outer_body.clone()));
    assert_eq!(sent.messages[3].group_index, Some(3), "a group in the header is part of it");
    // The body of a chord in the header reports.
    let x = &sent.messages[4];
    let z = &x.embed.chord;
    assert_eq!((x.group.as_deref(), &z["task"]), (Some(inner), &json!("z")));
    let z = &z["options"];
    assert_eq!((&z["group_id"], &z["group_index"], body(&z["chord"])), (&json!(outer), &json!(4), outer_body));
    assert!(sent.groups.is_empty());
}

#[test]
fn a_group_that_something_follows_is_a_header_and_one_at_the_end_of_a_part_is_noted() {
    let chain = Canvas::chain([t("a"), Canvas::group([t("b"), t("c")]), t("d"), t("e")]);
    let of_chain = sent(chain);
    let rest = &of_chain.messages[0].embed.chain;
    assert_eq!((&rest[0]["task"], &rest[1]["subtask_type"]), (&json!("e"), &json!("chord")));
    assert_eq!(rest[1]["kwargs"]["body"]["task"], "d");
    let started = sent(Canvas::group([t("b"), t("c")]).then(t("d")).then(t("e")));
    assert_eq!((names(&started), started.sizes[0].1), (vec!["b", "c"], 2));
    let body = &started.messages[1].embed.chord;
    assert_eq!((&body["task"], &body["options"]["chain"][0]["task"]), (&json!("d"), &json!("e")));
    assert_eq!(body["options"]["chain"][0]["options"]["task_id"], started.frozen.id());
    let header = Canvas::group([Canvas::chain([t("a"), Canvas::group([t("b"), t("c")])]), t("d")]);
    let noted = sent(Canvas::chord(header, t("body")));
    assert_eq!(noted.sizes[0].1, 3);
    let Some(Frozen::Many(_, parts)) = Frozen::read(&noted.groups[0].1) else { panic!("{:?}", noted.groups) };
    assert!(matches!(&parts[..], [Frozen::Many(_, inner), Frozen::One(_)] if inner.len() == 2));
}

#[test]
fn links_errbacks_stamps_and_options_go_where_celery_has_them() {
    let chord = Canvas::chord(Canvas::group([t("a"), t("b")]), t("body")).link(t("cb")).link_error(t("oops"));
    let sent_chord = sent(chord.stamp("tenant", "x"));
    let a = &sent_chord.messages[0];
    assert_eq!((&a.stamps, &a.embed.errbacks), (&json!({"tenant": "x"}), &Value::Null));
    let body = &a.embed.chord["options"];
    assert_eq!((&body["link"][0]["task"], &body["link_error"][0]["task"]), (&json!("cb"), &json!("oops")));
    assert_eq!((&body["tenant"], &body["link"][0]["options"]["tenant"]), (&json!("x"), &json!("x")));
    // Errbacks of a group stand in for those of its tasks, and a chord's are added to them.
    let mut group = Canvas::group([t("a").link_error(t("own")), t("b")]).write();
    group["options"]["link_error"] = json!([t("theirs").write()]);
    let group = Canvas::read(&group).unwrap();
    let errbacks = |message: &TaskMessage| {
        let all = message.embed.errbacks.as_array().cloned().unwrap_or_default();
        all.iter().map(|one| one["task"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let alone = sent(group.clone());
    assert_eq!(alone.messages.iter().map(errbacks).collect::<Vec<_>>(), [["theirs"], ["theirs"]]);
    let mut chord = Canvas::chord(Canvas::group(Vec::<Canvas>::new()), group).into_signature();
    chord.options.insert("link_error".to_owned(), json!([t("chords").write()]));
    let body = sent(Canvas::from(chord));
    assert_eq!(body.messages.iter().map(errbacks).collect::<Vec<_>>(), [["theirs", "chords"], ["theirs", "chords"]]);
    let chain = sent(Canvas::chain([t("a"), t("b")]).link_error(t("oops")).link(t("cb")));
    let a = &chain.messages[0].embed;
    assert_eq!((&a.errbacks[0]["task"], &a.callbacks), (&json!("oops"), &Value::Null));
    let b = &a.chain[0]["options"];
    assert_eq!((&b["link"][0]["task"], &b["link_error"][0]["task"]), (&json!("cb"), &json!("oops")));
    let task = Task::new("a").queue("q").priority(3).countdown(std::time::Duration::from_secs(2)).ignore_result();
    let task = sent(Canvas::chain([Canvas::from(task).immutable(), t("b")])).messages.remove(0);
    assert_eq!((task.routing_key.as_str(), task.priority, task.ignore_result), ("q", 3, Some(true)));
    assert_eq!(task.eta, Some(Moment::from_unix_micros(2_000_000)));
    let map = sent(Canvas::chunks("add", [json!([1, 2]), json!([3, 4]), json!([5, 6])], 2));
    assert_eq!(names(&map), ["celery.starmap", "celery.starmap"]);
    assert_eq!(
        (&map.messages[1].kwargs["task"]["task"], &map.messages[1].kwargs["it"]),
        (&json!("add"), &json!([[5, 6]]))
    );
}

#[test]
fn what_is_too_deep_too_many_or_nothing_is_refused_in_words() {
    let mut deep = t("a");
    for _ in 0..60 {
        deep = Canvas(Signature::group(vec![deep.into_signature()]));
    }
    assert!(Canvas::read(&deep.write()).unwrap_err().contains("nested deeper"));
    let many: Vec<Value> = (0..CELERY_CANVAS_TASKS).map(|_| t("a").write()).collect();
    let many = json!({"task": "celery.group", "kwargs": {"tasks": many}});
    assert!(Canvas::read(&many).unwrap_err().contains("more than 65536 tasks"));
    for (bad, why) in [
        (json!(1), "not a signature"),
        (json!({"task": ""}), "not a signature"),
        (json!({"task": "celery.chain", "kwargs": {}}), "celery.chain without tasks"),
    ] {
        assert!(Canvas::read(&bad).unwrap_err().contains(why), "{bad}");
    }
    let mut fresh = || "id".to_owned();
    let mut empty = Canvas::chain(Vec::<Canvas>::new()).into_signature();
    assert_eq!(freeze(&mut empty, None, &Place::default(), None, &mut fresh), Err("a chain without tasks".to_owned()));
}

#[test]
fn a_body_grows_neither_with_the_header_nor_with_the_levels() {
    let mut canvas = t("body");
    for level in 0..8 {
        let header = (0..5).map(|n| t(&format!("part-{level}-{n}")));
        canvas = Canvas::chord(Canvas::group(header.chain([canvas])), t("body"));
    }
    let sent = sent(canvas);
    assert_eq!((sent.messages.len(), sent.sizes.len()), (41, 8));
    let largest = sent.messages.iter().map(|message| message.embed.chord.to_string().len()).max().unwrap();
    assert!(largest < 4000, "{largest}");
}

#[test]
fn what_would_be_copied_into_thousands_of_tasks_is_refused_before_it_is() {
    let tried = |signature: &Signature| {
        let mut n = 0;
        let mut fresh = || {
            n += 1;
            format!("id-{n}")
        };
        let (app, mut out, mut signature) = (AppConfig::default(), Expansion::default(), signature.clone());
        freeze(&mut signature, None, &Place::default(), None, &mut fresh)?;
        let (zone, now) = (app.zone(), Moment::from_unix_micros(0));
        let mut sending =
            Sending { now, defaults: &(), app: &app, zone: &zone, origin: "me", tells: false, fresh: &mut fresh };
        send(signature, Call::default(), &mut out, &mut sending).map(|()| out.messages.len())
    };
    let large = |name: &str, bytes: usize| {
        let mut signature = Signature::task(name);
        signature.args.push("x".repeat(bytes).into());
        signature
    };
    // Of 1 MiB: with 10,000 tasks that would be 10 GiB.
    let (few, many, mib) = (3, 10_000, 1 << 20);
    let tasks = |count: usize| (0..count).map(|_| Signature::task("t")).collect::<Vec<_>>();
    let too_large = Err("it has too many bytes".to_owned());

    let chord = |count| Signature::chord(tasks(count), large("body", mib));
    assert_eq!((tried(&chord(few)), tried(&chord(many))), (Ok(few), too_large.clone()));
    // The parts of a group that is a chord's own part.
    let inner = |count| {
        Signature::chord(
            vec![Signature::chain(vec![Signature::task("a"), Signature::group(tasks(count))])],
            large("body", mib),
        )
    };
    assert_eq!((tried(&inner(few)), tried(&inner(many))), (Ok(1), too_large.clone()));

    let chain = |count| {
        let mut chain = Signature::chain(tasks(count));
        chain.options.insert("link_error".to_owned(), json!([large("oops", mib).write()]));
        chain
    };
    assert_eq!((tried(&chain(few)), tried(&chain(many))), (Ok(1), too_large.clone()));
    let nested = |count| Signature::chain(vec![Signature::task("a"), chain(count)]);
    assert_eq!((tried(&nested(few)), tried(&nested(many))), (Ok(1), too_large.clone()));

    let stamps = [("tenant".to_owned(), Value::from("x".repeat(mib)))].into_iter().collect();
    let stamped = |count| Signature::group(tasks(count)).spend_stamps(&stamps, &mut 0);
    assert_eq!((stamped(few), stamped(many)), (Ok(()), too_large.clone().map(drop)));
    let mut calls = Signature::task("t");
    calls.options.insert("link".to_owned(), tasks(many).iter().map(Signature::write).collect());
    assert_eq!(calls.spend_stamps(&stamps, &mut 0), too_large.map(drop));
}
