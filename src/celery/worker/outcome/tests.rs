use super::chord::completed;
use super::*;
use crate::celery::options::TaskOptions;
use crate::celery::worker::policy::Policies;

fn in_setting<T>(app: &AppConfig, then: impl FnOnce(&mut Setting<'_>) -> T) -> T {
    let mut n = 0;
    let mut fresh = || {
        n += 1;
        format!("fresh-{n}")
    };
    let now = "2026-11-21T12:00:00+00:00".parse().unwrap();
    let policies = Policies::new(std::iter::empty(), app).unwrap();
    let (names, zone) = (app.keyspace(), app.zone());
    then(&mut Setting {
        now,
        list: "src",
        raw: b"raw",
        policy: policies.of("t"),
        policies: &policies,
        app,
        names: &names,
        zone: &zone,
        origin: "me",
        fresh: &mut fresh,
    })
}

fn settled(message: &TaskMessage, outcome: Outcome) -> Settlement {
    in_setting(&AppConfig::default(), |setting| settle(message, outcome, setting))
}

fn results(settlement: &Settlement) -> Vec<(String, Meta)> {
    let result = |op: &Op| match op {
        Op::Result(key, text) | Op::OwnResult(key, text) => Some((key.clone(), Meta::read(text.as_bytes()).unwrap())),
        _ => None,
    };
    settlement.ops.iter().filter_map(result).collect()
}

fn pushed(settlement: &Settlement) -> Vec<(String, TaskMessage)> {
    let message = |op: &Op| match op {
        Op::Push(list, text, 0) => {
            let envelope = crate::celery::Envelope::read(text.as_bytes()).unwrap();
            Some((list.clone(), TaskMessage::read(&envelope).unwrap()))
        }
        _ => None,
    };
    settlement.ops.iter().filter_map(message).collect()
}

fn asides(settlement: &Settlement) -> Vec<Value> {
    let aside = |op: &Op| match op {
        Op::Push(list, text, CELERY_ASIDE) if list == ASIDE => Some(serde_json::from_str(text).unwrap()),
        _ => None,
    };
    settlement.ops.iter().filter_map(aside).collect()
}

fn signature(task: &str, more: Value) -> Value {
    let mut signature =
        json!({"task": task, "args": [9], "kwargs": {"k": 1}, "options": {}, "subtask_type": null, "immutable": false});
    signature.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    signature
}

#[test]
fn callbacks_and_the_next_of_a_chain_get_the_result_first() {
    let mut message = TaskMessage::new("id", "t");
    message.embed.callbacks = json!([
        signature("cb", json!({"options": {"queue": "other", "priority": 6, "task_id": "cb-id"}})),
        signature("fixed", json!({"immutable": true}))
    ]);
    message.embed.chain = json!([signature("last", json!({})), signature("next", json!({}))]);
    let done = settled(&message, Outcome::Success(json!("r")));
    let sent = pushed(&done);
    let shown: Vec<_> = sent.iter().map(|(list, m)| (list.as_str(), m.task.as_str(), json!(m.args))).collect();
    let expected = [
        ("other\u{6}\u{16}6", "cb", json!(["r", 9])),
        ("celery", "fixed", json!([9])),
        ("celery", "next", json!(["r", 9])),
    ];
    assert_eq!(shown, expected);
    assert_eq!(
        (sent[0].1.id.as_str(), sent[0].1.parent_id.as_deref(), sent[0].1.root_id.as_str()),
        ("cb-id", Some("id"), "id")
    );
    assert_eq!(sent[2].1.embed.chain, json!([signature("last", json!({}))]));
    let results = results(&done);
    assert_eq!(
        results[0].1.children,
        json!([[["cb-id", null], null], [[sent[1].1.id, null], null], [[sent[2].1.id, null], null]])
    );
    assert!(matches!(done.ops[0], Op::Result(..)), "results come first");
}

#[test]
fn canvases_as_callbacks_are_sent_and_what_is_none_is_put_aside() {
    let mut message = TaskMessage::new("id", "t");
    let steps = json!([signature("a", json!({})), signature("b", json!({})), signature("c", json!({}))]);
    let group = json!([signature("d", json!({})), signature("e", json!({}))]);
    message.embed.callbacks = json!([
        signature("celery.chain", json!({"args": [], "kwargs": {"tasks": steps}})),
        signature("celery.group", json!({"kwargs": {"tasks": group}, "subtask_type": "group"})),
        signature("celery.chord", json!({"kwargs": {"header": group, "body": null}})),
    ]);
    let done = settled(&message, Outcome::Success(json!(1)));
    let sent = pushed(&done);
    let names: Vec<_> = sent.iter().map(|(_, message)| message.task.as_str()).collect();
    assert_eq!(names, ["a", "d", "e"]);
    let chain: Vec<_> = sent[0].1.embed.chain.as_array().unwrap().iter().map(|step| step["task"].clone()).collect();
    assert_eq!(chain, ["c", "b"]);
    assert!(sent.iter().all(|(_, m)| m.args == [json!(1), json!(9)] && m.parent_id.as_deref() == Some("id")));
    assert_eq!((sent[1].1.group.clone(), sent[2].1.group_index), (sent[2].1.group.clone(), Some(1)));
    let children = &results(&done)[0].1.children;
    assert_eq!(
        children[1],
        json!([[sent[1].1.group, null], [[[sent[1].1.id, null], null], [[sent[2].1.id, null], null]]])
    );
    assert_eq!(done.complaints.len(), 1);
    assert!(asides(&done)[0]["reason"].as_str().unwrap().contains("a chord without a body"));
}

fn parts(settlement: &Settlement) -> Vec<Part> {
    let part = |op: &Op| match op {
        Op::Part(part) => Some((**part).clone()),
        _ => None,
    };
    settlement.ops.iter().filter_map(part).collect()
}

/// A part of a chord: the second.
fn of_chord() -> TaskMessage {
    let mut message = TaskMessage::new("id", "t");
    let body = json!({"options": {"task_id": "body", "link_error": [signature("oops", json!({}))]}});
    message.embed.chord = signature("body", body);
    (message.group, message.group_index, message.ignore_result) = (Some("g".to_owned()), Some(1), Some(true));
    message
}

#[test]
fn a_part_of_a_chord_is_recorded_as_celery_does_however_it_ends() {
    let mut message = of_chord();
    let recorded = |message: &TaskMessage, outcome| {
        let done = settled(message, outcome);
        assert!(results(&done).is_empty(), "nobody wants its result");
        let [part] = &parts(&done)[..] else { panic!("{done:?}") };
        assert_eq!((part.group.as_str(), part.member().as_str()), ("g", "id:1"));
        serde_json::from_str::<Value>(&part.entry).unwrap()
    };
    assert_eq!(recorded(&message, Outcome::Success(json!([7]))), json!([1, "id", "SUCCESS", [7]]));
    let exception = Exception::new("builtins", "ValueError", "x");
    let failed = recorded(&message, Outcome::Failure(exception, None));
    let fields = json!({"exc_type": "ValueError", "exc_message": ["x"], "exc_module": "builtins"});
    assert_eq!(failed, json!([1, "id", "FAILURE", fields]));
    assert_eq!(recorded(&message, Outcome::Revoked("expired"))[2], "REVOKED");
    assert!(parts(&settled(&message, Outcome::Ignored)).is_empty());
    let retry = Exception::new("builtins", "OSError", "away");
    let retry = Outcome::Retry { countdown: Duration::ZERO, max_retries: None, exception: retry, arguments: None };
    assert!(parts(&settled(&message, retry)).is_empty());
    // The end of a chain is a part that fails with what was before it.
    message.embed.chain = json!([signature(
        "last",
        json!({"options": {
        "task_id": "last", "group_id": "g", "group_index": 2, "chord": message.embed.chord}})
    )]);
    message.embed.chord = Value::Null;
    let exception = Exception::new("builtins", "ValueError", "x");
    let done = settled(&message, Outcome::Failure(exception, None));
    assert_eq!(parts(&done)[0].member(), "last:2");
}

/// What follows when `of_chord` was the last part and these are recorded.
fn completed_with(entries: &[Value], saved: Option<Value>) -> Settlement {
    let done = settled(&of_chord(), Outcome::Success(json!(1)));
    let entries = Some(entries.iter().map(|entry| entry.to_string().into_bytes()).collect());
    let returned = Returned { entries, saved: saved.map(|saved| saved.to_string().into_bytes()) };
    let part = &parts(&done)[0];
    let mut done = in_setting(&AppConfig::default(), |setting| completed(part, returned, setting));
    let Some(Op::Claimed(claim)) = done.ops.pop() else { panic!("{done:?}") };
    assert_eq!((claim.key.as_str(), claim.token.as_str()), ("celery-taskset-meta-g", "phalanx:id:1"));
    done.state = if claim.failed { ResultState::Failure } else { ResultState::Success };
    Settlement { ops: claim.ops, ..done }
}

#[test]
fn the_body_of_a_chord_gets_all_results_in_their_order_and_nested_as_the_header_is() {
    let entries = [json!([1, "a", "SUCCESS", 5]), json!([1, "b", "SUCCESS", {"x": null}])];
    let done = completed_with(&entries, None);
    let (list, body) = &pushed(&done)[0];
    assert_eq!(
        (list.as_str(), body.id.as_str(), &body.args),
        ("celery", "body", &vec![json!([5, {"x": null}]), json!(9)])
    );
    assert_eq!((body.parent_id.as_deref(), body.root_id.as_str()), (Some("id"), "id"));
    let saved = json!({"result": [["g", null], [[["h", null], [[["b", null], null]]], [["a", null], null]]]});
    let done = completed_with(&entries, Some(saved));
    assert_eq!(pushed(&done)[0].1.args[0], json!([[{"x": null}], 5]));
    let saved = json!({"result": [["g", null], [[["c", null], null]]]});
    let done = completed_with(&entries, Some(saved));
    let error = results(&done)[0].1.exception().unwrap();
    assert_eq!(error.message(), "Join error: the result of c is missing");
}

#[test]
fn the_body_of_a_chord_fails_with_the_first_part_that_has_failed() {
    let fields = json!({"exc_type": "ValueError", "exc_message": ["x", 7], "exc_module": "builtins"});
    let done = completed_with(&[json!([1, "a", "SUCCESS", 5]), json!([1, "b", "FAILURE", fields])], None);
    assert_eq!(done.state, ResultState::Failure);
    let (key, meta) = &results(&done)[0];
    assert_eq!((key.as_str(), &meta.state), ("celery-task-meta-body", &ResultState::Failure));
    let error = meta.exception().unwrap();
    assert_eq!(
        (error.exc_type.as_str(), error.message().as_str()),
        ("ChordError", "Dependency b raised ValueError('x', 7)")
    );
    let (_, errback) = &pushed(&done)[0];
    assert_eq!((errback.task.as_str(), &errback.args), ("oops", &vec![json!("body"), json!(9)]));
}

#[test]
fn what_replaces_a_task_has_its_id_its_place_and_what_follows_it() {
    let mut message = of_chord();
    message.embed.callbacks = json!([signature("cb", json!({}))]);
    message.embed.chain = json!([signature("last", json!({})), signature("next", json!({}))]);
    message.stamps = json!({"tenant": "t"});
    let one = Canvas::from(crate::celery::Task::new("other"));
    let done = settled(&message, Outcome::Replaced(Box::new(one.clone())));
    assert!(results(&done).is_empty() && parts(&done).is_empty(), "its end is that of the other");
    let sent = pushed(&done);
    let (_, other) = &sent[0];
    assert_eq!(
        (sent.len(), other.task.as_str(), other.id.as_str(), other.replaced_task_nesting),
        (1, "other", "id", 1)
    );
    assert_eq!(
        (other.group.as_deref(), other.group_index, &other.embed.chord),
        (Some("g"), Some(1), &message.embed.chord)
    );
    assert_eq!(other.embed.chain, message.embed.chain);
    assert_eq!(other.embed.callbacks[0]["task"], "cb");
    assert_eq!((&other.stamps, &other.stamped_headers), (&json!({"tenant": "t"}), &json!(["tenant"])));
    let done = settled(&message, Outcome::Replaced(Box::new(Canvas::group([one.clone(), one]))));
    let sent = pushed(&done);
    assert_eq!(sent.len(), 2);
    let body = &sent[0].1.embed.chord;
    assert_eq!((&body["task"], &body["options"]["task_id"]), (&json!("celery.accumulate"), &json!("id")));
    assert_eq!((&body["options"]["chord"], &body["options"]["chain"]), (&message.embed.chord, &message.embed.chain));
    let size = done.ops.iter().find_map(|op| if let Op::Size(_, size) = op { Some(*size) } else { None });
    assert_eq!(size, Some(2));
}

#[test]
fn a_failure_fails_the_rest_of_the_chain_and_calls_the_error_callbacks() {
    let mut message = TaskMessage::new("id", "t");
    message.embed.chain = json!([signature("last", json!({"options": {"task_id": "last-id"}}))]);
    message.embed.errbacks = json!([signature("oops", json!({}))]);
    let done = settled(&message, Outcome::Failure(Exception::new("builtins", "ValueError", "x"), None));
    let keys: Vec<_> = results(&done).into_iter().map(|(key, meta)| (key, meta.state)).collect();
    let expected = [
        ("celery-task-meta-id".to_owned(), ResultState::Failure),
        ("celery-task-meta-last-id".to_owned(), ResultState::Failure),
    ];
    assert_eq!(keys, expected);
    assert_eq!(pushed(&done)[0].1.args, [json!("id"), json!(9)]);
}

#[test]
fn a_retry_is_the_same_task_later_until_there_were_enough() {
    let mut message = TaskMessage::new("id", "t");
    message.retries = 2;
    let exception = Exception::new("builtins", "OSError", "away");
    let retry = |max_retries| Outcome::Retry {
        countdown: Duration::from_secs(5),
        max_retries,
        exception: exception.clone(),
        arguments: None,
    };
    let done = settled(&message, retry(Some(3)));
    let sent = pushed(&done);
    assert_eq!(
        (done.state.clone(), sent[0].0.as_str(), sent[0].1.id.as_str(), sent[0].1.retries),
        (ResultState::Retry, "src", "id", 3)
    );
    assert_eq!(sent[0].1.eta.unwrap().to_string(), "2026-11-21T12:00:05+00:00");
    assert!(matches!(&done.ops[0], Op::OwnResult(..)) && results(&done)[0].1.exception() == Some(exception.clone()));
    let other = Args { positional: vec![json!(7)], named: serde_json::Map::from_iter([("y".to_owned(), json!("z"))]) };
    let changed = TaskError::retry(Duration::ZERO, "OSError", "away").with_arguments(other.clone());
    let policies = Policies::new(std::iter::empty(), &AppConfig::default()).unwrap();
    let done = settled(&message, of_error(changed, &message, policies.of("t"), "me").unwrap());
    let next = &pushed(&done)[0].1;
    assert_eq!((&next.args, &next.kwargs), (&other.positional, &other.named));
    assert_eq!((next.argsrepr.as_deref(), next.kwargsrepr.as_deref()), (Some("(7,)"), Some("{'y': 'z'}")));
    message.retries = 3;
    let done = settled(&message, retry(Some(3)));
    assert_eq!((done.state.clone(), pushed(&done).len()), (ResultState::Failure, 0));
    assert_eq!(results(&done)[0].1.exception(), Some(exception.clone()));
    assert_eq!(settled(&message, retry(None)).state, ResultState::Retry);
}

#[test]
fn an_unknown_task_has_failed_and_is_put_aside_and_an_ignored_result_is_not_stored() {
    let mut message = TaskMessage::new("id", "nobody");
    let done = settled(&message, Outcome::Unknown);
    let exception = results(&done)[0].1.exception().unwrap();
    assert_eq!((exception.exc_type.as_str(), exception.message()), ("NotRegistered", "nobody".to_owned()));
    let aside = &asides(&done)[0];
    assert_eq!((&aside["id"], &aside["task"], &aside["queue"]), (&json!("id"), &json!("nobody"), &json!("src")));
    message.ignore_result = Some(true);
    assert!(results(&settled(&message, Outcome::Success(json!(1)))).is_empty());
    assert!(settled(&message, Outcome::Ignored).ops.is_empty());
    assert!(results(&settled(&message, Outcome::Revoked("expired"))).is_empty());
}

#[test]
fn a_result_that_is_too_large_is_a_failure() {
    let message = TaskMessage::new("id", "t");
    let done = settled(&message, Outcome::Success("x".repeat(CELERY_RESULT_BYTES).into()));
    assert_eq!(done.state, ResultState::Failure);
    assert_eq!(results(&done)[0].1.exception().unwrap().exc_type, "OverflowError");
}

#[test]
fn failures_that_are_named_are_tried_again() {
    let options = TaskOptions {
        autoretry_for: vec!["Exception".to_owned()],
        dont_autoretry_for: vec!["KeyError".to_owned()],
        retry_backoff: Some(2),
        retry_jitter: false,
        max_retries: Some(5),
        default_retry_delay: Duration::from_secs(7),
        ..Default::default()
    };
    let policies = Policies::new([("t", &options)].into_iter(), &AppConfig::default()).unwrap();
    let policy = policies.of("t");
    let failed = |kind: &str| Outcome::Failure(Exception::new("builtins", kind, "x"), None);
    let exception = Exception::new("builtins", "OSError", "x");
    let retry = |seconds, most| Outcome::Retry {
        countdown: Duration::from_secs(seconds),
        max_retries: Some(most),
        exception: exception.clone(),
        arguments: None,
    };
    assert_eq!(retried(failed("OSError"), policy, 3, |_| 0), retry(16, 5));
    for kept in [failed("KeyError"), Outcome::Success(json!(1)), Outcome::Failure(rejection(), None)] {
        assert_eq!(retried(kept.clone(), policy, 0, |_| 0), kept);
    }
    // Those that a handler asks for.
    let of = |error: TaskError| of_error(error, &TaskMessage::new("id", "t"), policy, "me").unwrap();
    assert_eq!(of(TaskError::again("OSError", "x")), retry(7, 5));
    assert_eq!(of(TaskError::retry(Duration::from_secs(1), "OSError", "x").at_most(Some(9))), retry(1, 9));
}

#[test]
fn a_chain_whose_next_task_cannot_be_sent_has_failed_behind_the_one_that_succeeded() {
    let mut message = TaskMessage::new("id", "t");
    let body = signature("body", json!({"options": {"task_id": "body"}}));
    let last = json!({"options": {"task_id": "last-id", "group_id": "g", "group_index": 0, "chord": body}});
    let next = signature("next", json!({"options": {"task_id": "next-id", "eta": "some day"}}));
    message.embed.chain = json!([signature("last", last), next]);
    message.embed.callbacks = json!([signature("cb", json!({}))]);
    let done = settled(&message, Outcome::Success(json!("r")));
    let states: Vec<_> = results(&done).into_iter().map(|(key, meta)| (key, meta.state)).collect();
    let of = |id: &str, state| (format!("celery-task-meta-{id}"), state);
    assert_eq!(states.len(), 3);
    assert!(states.contains(&of("id", ResultState::Success)), "{states:?}");
    assert!(states.contains(&of("last-id", ResultState::Failure)), "{states:?}");
    assert!(states.contains(&of("next-id", ResultState::Failure)), "{states:?}");
    assert_eq!(parts(&done)[0].member(), "last-id:0", "its chord does not wait for ever");
    let error = results(&done).into_iter().find_map(|(_, meta)| meta.exception()).unwrap();
    assert_eq!(error.exc_type, "ValueError");
    assert!(error.message().contains("is not sent: eta"), "{}", error.message());
    assert_eq!(pushed(&done).len(), 1, "the callback is called");
    // One beside the chain does not fail it.
    message.embed.chain = json!([signature("next", json!({}))]);
    message.embed.callbacks = json!([signature("cb", json!({"options": {"eta": "some day"}}))]);
    let done = settled(&message, Outcome::Success(json!("r")));
    assert_eq!((results(&done).len(), pushed(&done).len()), (1, 1));
}

#[test]
fn arguments_that_are_too_large_for_a_result_are_left_out_of_it() {
    let app = AppConfig { result_extended: true, ..Default::default() };
    let mut message = TaskMessage::new("id", "t");
    let of = |message: &TaskMessage| in_setting(&app, |s| settle(message, Outcome::Success(json!(7)), s));
    message.args = vec![json!("small")];
    let done = of(&message);
    assert_eq!((results(&done)[0].1.other["args"].clone(), done.complaints.len()), (json!(["small"]), 0));
    message.args = vec!["x".repeat(CELERY_RESULT_BYTES).into()];
    let done = of(&message);
    let meta = &results(&done)[0].1;
    assert_eq!((&meta.state, &meta.result, meta.other.get("args")), (&ResultState::Success, &json!(7), None));
    assert_eq!((done.state, done.complaints.len()), (ResultState::Success, 1));
}

#[test]
fn what_follows_from_the_end_of_a_chord_is_told_apart_from_what_was_sent_before() {
    let mut message = of_chord();
    message.embed.callbacks = json!([signature("cb", json!({}))]);
    let done = settled(&message, Outcome::Success(json!(1))).ops;
    let entry = json!([1, "id", "SUCCESS", 1]).to_string().into_bytes();
    let tasks = |ops: &mut dyn Iterator<Item = &Op>| {
        let read = |text: &str| TaskMessage::read(&crate::celery::Envelope::read(text.as_bytes()).unwrap()).unwrap();
        ops.flat_map(Op::messages).map(|text| read(text).task).collect::<Vec<_>>()
    };
    assert_eq!(tasks(&mut done.iter()), ["cb"]);
    let go_on = |done: &[Op]| {
        let returned = Returned { entries: Some(vec![entry.clone()]), saved: None };
        in_setting(&AppConfig::default(), |setting| chord::continued(done, vec![(0, returned)], setting).0)
    };
    let ops = go_on(&done);
    assert_eq!(tasks(&mut ops.iter()), ["cb", "body"]);
    assert_eq!(tasks(&mut chord::added(&done, &ops)), ["body"]);
    // Another chord behind it.
    let more = [ops, done.into_iter().filter(|op| matches!(op, Op::Part(_))).collect()].concat();
    let ops = go_on(&more);
    assert_eq!((tasks(&mut ops.iter()).len(), tasks(&mut chord::added(&more, &ops))), (3, vec!["body".to_owned()]));
}
