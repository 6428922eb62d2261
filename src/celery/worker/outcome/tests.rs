use super::*;
use crate::celery::options::TaskOptions;
use crate::celery::worker::policy::Policies;

fn settled(message: &TaskMessage, outcome: Outcome) -> Settlement {
    let mut n = 0;
    let mut fresh = || {
        n += 1;
        format!("fresh-{n}")
    };
    let now = "2026-11-21T12:00:00+00:00".parse().unwrap();
    let app = AppConfig::default();
    let policies = Policies::new(std::iter::empty(), &app).unwrap();
    let (names, zone) = (app.keyspace(), app.zone());
    let mut setting = Setting {
        now,
        list: "src",
        raw: b"raw",
        policy: policies.of("t"),
        app: &app,
        names: &names,
        zone: &zone,
        origin: "me",
        fresh: &mut fresh,
    };
    settle(message, outcome, &mut setting)
}

fn results(settlement: &Settlement) -> Vec<(String, Meta)> {
    let result = |op: &Op| match op {
        Op::Result(key, text) | Op::OwnResult(key, text) => Some((key.clone(), Meta::read(text.as_bytes()).unwrap())),
        Op::Push(..) => None,
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
fn a_chain_as_a_callback_is_sent_step_by_step_and_a_group_is_refused_aloud() {
    let mut message = TaskMessage::new("id", "t");
    let steps = json!([signature("a", json!({})), signature("b", json!({})), signature("c", json!({}))]);
    message.embed.callbacks =
        json!([signature("celery.chain", json!({"kwargs": {"tasks": steps}})), signature("celery.group", json!({}))]);
    let done = settled(&message, Outcome::Success(json!(1)));
    let sent = pushed(&done);
    assert_eq!((sent.len(), sent[0].1.task.as_str()), (1, "a"));
    assert_eq!(sent[0].1.embed.chain, json!([signature("c", json!({})), signature("b", json!({}))]));
    assert_eq!(done.complaints.len(), 1);
    assert!(asides(&done)[0]["reason"].as_str().unwrap().contains("celery.group is not supported"));
    message.embed = Default::default();
    (message.embed.chord, message.group) = (signature("body", json!({})), Some("g".to_owned()));
    assert!(settled(&message, Outcome::Success(json!(1))).complaints[0].contains("chord"));
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
    let retry =
        |max_retries| Outcome::Retry { countdown: Duration::from_secs(5), max_retries, exception: exception.clone() };
    let done = settled(&message, retry(Some(3)));
    let sent = pushed(&done);
    assert_eq!(
        (done.state.clone(), sent[0].0.as_str(), sent[0].1.id.as_str(), sent[0].1.retries),
        (ResultState::Retry, "src", "id", 3)
    );
    assert_eq!(sent[0].1.eta.unwrap().to_string(), "2026-11-21T12:00:05+00:00");
    assert!(matches!(&done.ops[0], Op::OwnResult(..)) && results(&done)[0].1.exception() == Some(exception.clone()));
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
