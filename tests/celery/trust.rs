//! What somebody who can write to Redis achieves, and what not: he runs no job that nobody has signed and none twice,
//! and no event says anything of another job than its own. What he can do by nature is shown as well, so that
//! `docs/celery-and-redis.md` promises nothing else.

use phalanx::base::limits::FACILITATOR_LINK_MESSAGE_BYTES;
use phalanx::celery::Task;
use phalanx::protocol::{FacilitatorToValidator, JobStatus, SignedRequest, V2JobRequest};
use serde_json::{Value, json};

use crate::example;
use crate::remote::{Scene, jobs, stopped};
use crate::testkit::celery::{Client, Feed, Ours, settings};
use crate::testkit::redis::RedisServer;
use crate::testkit::roles;
use crate::testkit::scripted_facilitator::{FacilitatorState, GOOD, key};
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, until};

use JobStatus as S;

fn written(job: V2JobRequest) -> Value {
    serde_json::from_str(&FacilitatorToValidator::from(job).encode()).unwrap()
}

/// The stream in which the front of these tests learns of its jobs.
fn stream() -> String {
    format!("phalanx.events.{}", key("//Validator").ss58())
}

fn tell(scene: &Scene, event: &Value) {
    append(scene, &event.to_string());
}

/// As a worker does, which also wakes the front.
fn append(scene: &Scene, event: &str) {
    let _: String = scene.redis.cli(&["XADD", &stream(), "*", "m", event]);
    let _: usize = scene.redis.cli(&["PUBLISH", &format!("phalanx.wake.{}", stream()), ""]);
}

fn update(uuid: &str, status: &str, metadata: Value) -> String {
    json!({"message_type": "V0JobStatusUpdate", "uuid": uuid, "status": status, "metadata": metadata}).to_string()
}

fn has(state: &FacilitatorState, uuid: &str, status: JobStatus) -> bool {
    state.histories.get(uuid).is_some_and(|history| history.statuses.contains(&status))
}

#[test]
fn a_job_that_no_user_signed_as_it_is_runs_nothing() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let worker = scene.worker("w@here", &["--stub-time", "0s"]);
    let client = Client::start(scene.redis.config());
    let good = jobs(2);
    let with = |change: &dyn Fn(&mut V2JobRequest)| {
        let mut job = V2JobRequest { uuid: uuid::Uuid::new_v4().to_string(), ..good[0].clone() };
        change(&mut job);
        job
    };
    let forged = [
        ("nobody", with(&|job| job.signature = None)),
        ("somebody else", with(&|job| job.sign(&key("//Mallory"), roles::now_ns()))),
        ("the user, another job", with(&|job| job.args = vec!["rm".to_owned()])),
        (
            "the user, with another time",
            with(&|job| job.signature.as_mut().unwrap().timestamp_ns = roles::now_ns().into()),
        ),
        (
            "somebody else in the user's name",
            with(&|job| {
                job.sign(&key("//Mallory"), roles::now_ns());
                job.signature.as_mut().unwrap().signatory = key("//User").ss58();
            }),
        ),
    ];
    for (who, job) in forged {
        let front = key("//Validator").ss58();
        for front in [Value::Null, json!(front)] {
            let task = Task::new("phalanx.execute_job").queue("phalanx").kwarg("request", written(job.clone()));
            let end = client.handle().send(task.kwarg("front", front.clone())).unwrap().wait(LONG).unwrap();
            // A front that waits for no such job is told nothing.
            match front.is_null() {
                true => assert_eq!(
                    (&end["status"], &end["metadata"]["job_rejection_details"]["reason"]),
                    (&json!("rejected"), &json!("invalid_signature")),
                    "signed by {who}: {end}"
                ),
                false => assert_eq!(end["status"], Value::Null, "signed by {who}: {end}"),
            }
        }
    }
    assert_eq!(scene.redis.cli::<usize>(&["EXISTS", &stream()]), 0);
    client.stop();
    stopped(worker);
    scene.end();
}

#[test]
fn a_task_that_is_replayed_runs_nothing_once_its_job_has_ended() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    // Nobody reads it.
    let front = scene.front(&["--miners", "/no/such/file"]);
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    until("it is in the queue", || scene.redis.cli::<usize>(&["LLEN", "phalanx"]) == 1);
    let task: String = scene.redis.cli(&["LINDEX", "phalanx", "0"]);
    let worker = scene.worker("w@here", &["--stub-time", "0s"]);
    assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    let settled =
        || scene.redis.cli::<usize>(&["LLEN", "phalanx"]) + scene.redis.cli::<usize>(&["HLEN", "unacked"]) == 0;
    until("its task has ended", settled);
    for said_to_be_wanted in [false, true] {
        if said_to_be_wanted {
            let wanted = format!("phalanx.job.{}", job.uuid);
            let _: usize = scene.redis.cli(&["HSET", &wanted, "front", &key("//Validator").ss58()]);
        }
        let _: usize = scene.redis.cli(&["LPUSH", "phalanx", &task]);
        until("the replay has ended", settled);
    }
    assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    assert_eq!(scene.facilitator.state().repeats, 0);
    let log = stopped(front);
    assert!(log.contains("--miners has no effect with --dispatch celery"), "{log}");
    let log = stopped(worker);
    assert!(log.contains("is not wanted any more") && log.contains("not run, it has ended"), "{log}");
    scene.end();
}

#[test]
fn events_that_cannot_be_harm_none_but_themselves() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let front = scene.front(&[]);
    let worker = scene.worker("w@here", &["--stub-time", "500ms"]);
    let jobs = jobs(2);
    jobs.iter().for_each(|job| scene.facilitator.submit(job.clone()));
    let [one, other] = [&jobs[0].uuid, &jobs[1].uuid];
    scene.facilitator.wait("both have begun", |state| has(state, one, S::Accepted) && has(state, other, S::Accepted));
    // Of a worker that has never begun it, about the job of another, and what is no event at all.
    tell(&scene, &json!({"job": one, "news": "said", "text": update(other, "failed", Value::Null)}));
    tell(&scene, &json!({"job": one, "news": "said", "text": update(one, "received", Value::Null)}));
    tell(&scene, &json!({"job": one, "news": "said", "text": "}{"}));
    tell(&scene, &json!({"job": one, "news": "dances"}));
    tell(&scene, &json!({"job": one, "news": "runs_on", "miner": "nobody"}));
    tell(&scene, &json!({"job": "another", "news": "said", "text": update("another", "failed", Value::Null)}));
    append(&scene, "no JSON");
    // Too large for the facilitator's link.
    let large = json!({"note": "x".repeat(FACILITATOR_LINK_MESSAGE_BYTES)});
    tell(&scene, &json!({"job": one, "news": "said", "text": update(one, "executor_ready", large)}));
    for uuid in [one, other] {
        assert_eq!(scene.facilitator.history(uuid), GOOD);
    }
    until("all have left the stream", || scene.redis.cli::<usize>(&["XLEN", &stream()]) == 0);
    let log = stopped(front);
    for part in ["is not about this job", "a worker's message cannot be read", "it cannot be read", "is no hotkey"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    stopped(worker);
    scene.end();
}

/// What the trust in Redis means: whoever writes there speaks for the workers.
#[test]
fn who_writes_to_redis_may_speak_for_a_worker_about_a_job_that_runs_but_a_forged_result_completes_nothing() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let front = scene.front(&[]);
    let worker = scene.worker("w@here", &["--stub-time", "700ms"]);
    let jobs = jobs(3);
    let [spoken, failed, forged] = [&jobs[0].uuid, &jobs[1].uuid, &jobs[2].uuid];
    jobs.iter().for_each(|job| scene.facilitator.submit(job.clone()));
    scene.facilitator.wait("all have begun", |state| jobs.iter().all(|job| has(state, &job.uuid, S::Accepted)));
    // A forged success is no news of the job; its own events go on.
    let result = |uuid: &str, result: Value| {
        let key = format!("celery-task-meta-{uuid}");
        let _: () = scene.redis.cli(&["SET", &key, &result.to_string()]);
        let _: usize = scene.redis.cli(&["PUBLISH", &key, &result.to_string()]);
    };
    let meta = |uuid: &str, status: &str, result: Value| {
        let (traceback, children) = (Value::Null, json!([]));
        json!({"status": status, "result": result, "traceback": traceback, "children": children, "task_id": uuid})
    };
    result(forged, meta(forged, "SUCCESS", json!({"uuid": forged, "status": "completed"})));
    // A forged failure is as if its worker had failed.
    let lost = json!({"exc_type": "OSError", "exc_message": ["forged"], "exc_module": "builtins"});
    result(failed, meta(failed, "FAILURE", lost));
    // And a forged event is as if its worker had told it.
    tell(&scene, &json!({"job": spoken, "news": "said", "text": update(spoken, "failed", json!({}))}));
    assert_eq!(scene.facilitator.history(forged), GOOD);
    assert_eq!(scene.facilitator.history(failed).last(), Some(&S::HordeFailed));
    assert_eq!(scene.facilitator.history(spoken).last(), Some(&S::Failed));
    stopped(front);
    stopped(worker);
    scene.end();
}

#[test]
fn a_signed_message_of_celery_is_refused_in_words_that_its_producer_reads() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let worker = Ours::ready(settings(server.config()), example::registry());
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let answer = feed.ask("send_signed", json!({"task": "add", "args": [1, 2]}));
    assert_eq!(answer["content_type"], "application/data", "{answer}");
    assert_eq!(answer["state"], "FAILURE", "{answer}");
    let why = answer["result"].to_string();
    assert!(why.contains("serializer auth: signed messages are not supported"), "{answer}");
    until("it is settled", || worker.state().counts.total() == 0);
    assert_eq!((worker.state().aside, server.cli::<usize>(&["LLEN", "phalanx.aside"])), (1, 1));
}
