//! The task that carries a job, the events that come back, and the names of the keys. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::celery::value::not_json;
use crate::celery::worker::{Args, TaskError};
use crate::identity::PublicKey;
use crate::protocol::{FacilitatorToValidator, V2JobRequest};
use crate::validator::authorization::is_uuid_of_job;
use crate::validator::drive::longest;
use crate::validator::job_messages::JobTimes;

/// The name of the task that runs a job.
pub const EXECUTE_JOB: &str = "phalanx.execute_job";

/// The queue of jobs, unless set: not Celery's own, whose workers would drop a task that they do not know.
pub const DEFAULT_QUEUE: &str = "phalanx";

/// How often a job is begun: one that takes its worker down with it is not to take down all.
pub(super) const MOST_BEGUN: u32 = 3;

/// The longest that a job may be on its way to Redis and wait there for a worker, see
/// [`CeleryHandle::send_by`](crate::celery::CeleryHandle::send_by).
pub(in crate::validator) const LONGEST_QUEUE_TIME: Duration = Duration::from_secs(1800);

/// Beyond what a job may take: for Redis, and for its worker to be missed when it is lost.
pub(super) const MARGIN: Duration = Duration::from_secs(90);

/// How long a job may take on one worker.
pub(super) fn on_one_worker(times: &JobTimes, request: &V2JobRequest) -> Duration {
    longest(times, request).saturating_add(MARGIN)
}

/// How long a job that waits for a worker for so long, and then takes so long on each, may be under way.
pub(super) fn under_way(queued: Duration, on_one_worker: Duration) -> Duration {
    queued.saturating_add(on_one_worker.saturating_mul(MOST_BEGUN))
}

/// The stream in which a front, whose name is its hotkey, learns of its jobs.
pub(super) fn events_key(front: &str) -> String {
    format!("phalanx.events.{front}")
}

/// The hash that is there while a job is wanted: `front`, `worker` once one has begun it, `miner` once one has it.
pub(super) fn job_key(uuid: &str) -> String {
    format!("phalanx.job.{uuid}")
}

/// What a task asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub request: V2JobRequest,
    /// Who gets the events of the job; a producer that is no front asks for the task's result.
    pub front: Option<String>,
    /// Miners that are not to have it.
    pub avoid: Vec<PublicKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    request: Value,
    #[serde(default)]
    front: Option<String>,
    #[serde(default)]
    avoid: Vec<String>,
}

impl Call {
    /// The keyword arguments, and how many bytes the request among them has.
    pub(super) fn write(self) -> (Map<String, Value>, usize) {
        let request = FacilitatorToValidator::from(self.request).encode_compact();
        let bytes = request.len();
        let request: Value = serde_json::from_str(&request).expect("what is written is JSON");
        let avoid: Vec<String> = self.avoid.iter().map(PublicKey::to_ss58).collect();
        let mut arguments = Map::new();
        arguments.insert("request".to_owned(), request);
        arguments.insert("front".to_owned(), json!(self.front));
        arguments.insert("avoid".to_owned(), json!(avoid));
        (arguments, bytes)
    }

    /// What a task asks for, as Python would complain of it.
    pub(super) fn read(args: Args) -> Result<Self, TaskError> {
        let Arguments { request, front, avoid } = args.named_as()?;
        let wrong = |what: &str, why: String| TaskError::new("ValueError", format!("{what}: {why}"));
        // Python's producers write more than a job can be.
        if let Some(problem) = not_json(&request) {
            return Err(wrong("request", problem));
        }
        let request = match FacilitatorToValidator::decode(&request.to_string()) {
            Ok(FacilitatorToValidator::V2JobRequest(request)) if is_uuid_of_job(&request.uuid) => request,
            Ok(FacilitatorToValidator::V2JobRequest(_)) => {
                return Err(wrong("request", "its uuid is too long".to_owned()));
            }
            Ok(_) => return Err(wrong("request", "should be a V2JobRequest".to_owned())),
            Err(error) => return Err(wrong("request", error.to_string())),
        };
        let avoid = avoid.iter().map(|miner| PublicKey::from_ss58(miner)).collect::<Result<_, _>>();
        Ok(Self { request, front, avoid: avoid.map_err(|error| wrong("avoid", error.to_string()))? })
    }
}

/// What a worker says of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Event {
    pub job: String,
    #[serde(flatten)]
    pub news: News,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "news", rename_all = "snake_case")]
pub(super) enum News {
    /// A worker has begun it.
    Begun { worker: String, redelivered: bool },
    /// Its worker stops and has given it back, so that this beginning does not count.
    GivenBack,
    /// A miner has it.
    RunsOn { miner: String },
    /// A message for the facilitator, as it is to leave. Its name in Redis is the one that waits in streams already.
    #[serde(rename = "said")]
    Message { text: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_comes_back_and_a_wrong_one_says_what_is_wrong() {
        let user = crate::identity::KeyPair::from_uri("//User").unwrap();
        let text = r#"{"message_type":"V2JobRequest","uuid":"u","executor_class":"always_on.test","docker_image":"i",
            "args":[],"env":{},"download_time_limit":1,"execution_time_limit":2,"upload_time_limit":3,
            "streaming_start_time_limit":4}"#;
        let FacilitatorToValidator::V2JobRequest(request) = FacilitatorToValidator::decode(text).unwrap() else {
            panic!("a job request")
        };
        let call = Call { request, front: Some("f".to_owned()), avoid: vec![user.public()] };
        let args = |named: Map<String, Value>| Args { positional: Vec::new(), named };
        assert_eq!(Call::read(args(call.clone().write().0)), Ok(call.clone()));
        let refused = |change: fn(&mut Map<String, Value>)| {
            let mut named = call.clone().write().0;
            change(&mut named);
            Call::read(args(named)).unwrap_err().to_string()
        };
        let without = refused(|named| drop(named.remove("request")));
        assert!(without.starts_with("TypeError: missing field `request`"), "{without}");
        let other = refused(|named| named["request"]["args"] = json!(7));
        assert!(other.starts_with("ValueError: request: ") && other.contains("args"), "{other}");
        let uuid = refused(|named| named["request"]["uuid"] = json!("u".repeat(129)));
        assert_eq!(uuid, "ValueError: request: its uuid is too long");
        let miner = refused(|named| named["avoid"] = json!(["5x"]));
        assert!(miner.starts_with("ValueError: avoid: "), "{miner}");
        let more = refused(|named| drop(named.insert("size".to_owned(), json!(1))));
        assert!(more.starts_with("TypeError: unknown field `size`"), "{more}");
    }

    #[test]
    fn an_event_is_flat() {
        let event = Event { job: "u".to_owned(), news: News::RunsOn { miner: "m".to_owned() } };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(text, r#"{"job":"u","news":"runs_on","miner":"m"}"#);
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
    /// A front reads what a worker of another version has left in its stream.
    #[test]
    fn the_names_of_events_in_redis_stay() {
        let (worker, miner, text) = ("w".to_owned(), "m".to_owned(), "t".to_owned());
        for (news, written) in [
            (News::Begun { worker, redelivered: true }, json!({"news": "begun", "worker": "w", "redelivered": true})),
            (News::GivenBack, json!({"news": "given_back"})),
            (News::RunsOn { miner }, json!({"news": "runs_on", "miner": "m"})),
            (News::Message { text }, json!({"news": "said", "text": "t"})),
        ] {
            assert_eq!(serde_json::to_value(&news).unwrap(), written);
        }
    }
}
