//! The protocol agrees with the Python peers on every vector they have left us: `tests/vectors/README.md` says how
//! those came about. Error prose is not compared, as it changes between releases of pydantic; types and places are.

use std::collections::BTreeMap;

use phalanx::protocol::*;
use serde_json::{Value, json};

/// The peer we follow; the other one is the public source of January 2026.
const PACKAGE: &str = "pypi-0.0.27";

fn load(file: &str) -> Vec<Value> {
    let path = format!("{}/tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    if file.ends_with(".jsonl") {
        return text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    }
    serde_json::from_str(&text).unwrap()
}

fn text<'v>(entry: &'v Value, key: &str) -> &'v str {
    entry[key].as_str().unwrap_or_else(|| panic!("no text {key} in {entry}"))
}

fn by_package(entry: &Value) -> bool {
    entry["peers"].as_array().unwrap().contains(&json!(PACKAGE))
}

/// What a frame on a link is read as and sent on as: its debug text and its compact JSON.
fn read(direction: &str, frame: &str) -> Result<(String, String), DecodeError> {
    macro_rules! on {
        ($link:ident) => {
            $link::decode(frame).map(|message| (format!("{message:?}"), message.encode()))
        };
    }
    match direction {
        "facilitator->validator" => {
            FacilitatorToValidator::decode(frame).map(|message| (format!("{message:?}"), message.encode_compact()))
        }
        "validator->facilitator" => on!(ValidatorToFacilitator),
        "validator->miner" => on!(ValidatorToMiner),
        "miner->validator" => on!(MinerToValidator),
        "executor->miner" => on!(ExecutorToMiner),
        "miner->executor" => on!(MinerToExecutor),
        "SignedFields" => on!(SignedFields),
        "HttpOutputVolumeResponse" => on!(HttpOutputVolumeResponse),
        other => panic!("no such link: {other}"),
    }
}

fn sent_on(direction: &str, frame: &str) -> Result<String, DecodeError> {
    read(direction, frame).map(|(_, emitted)| emitted)
}

/// The text without the field that only the package knows.
fn without_validator_signature(emitted: &str) -> String {
    let Some(rest) = emitted.strip_prefix("{\"validator_signature\":") else {
        return emitted.to_owned();
    };
    format!("{{{}", rest.split_once(',').unwrap().1)
}

const MESSAGE_FILES: [(&str, usize); 6] = [
    ("executor_to_miner", 31),
    ("facilitator_to_validator", 31),
    ("miner_to_executor", 88),
    ("miner_to_validator", 40),
    ("validator_to_facilitator", 24),
    ("validator_to_miner", 107),
];

#[test]
fn messages_are_written_as_they_were_read() {
    for (name, count) in MESSAGE_FILES {
        let entries = load(&format!("messages.{name}.json"));
        let mut as_sent = 0;
        for entry in &entries {
            let (direction, frame) = (text(entry, "direction"), text(entry, "json"));
            let place = format!("{name} {} {}", entry["type"], entry["name"]);
            let (message, emitted) = read(direction, frame).unwrap_or_else(|e| panic!("{place}: {e}"));
            assert!(message.starts_with(text(entry, "type")), "{place}: read as {message}");
            if by_package(entry) {
                assert_eq!(emitted, frame, "{place}");
            } else {
                // The older form is read, and sent on as the package would.
                assert!(emitted.starts_with("{\"validator_signature\":null,"), "{place}: {emitted}");
                assert_eq!(without_validator_signature(&emitted), frame, "{place}");
            }
            if let Some(sent) = entry["json_as_sent"].as_str() {
                let message = FacilitatorToValidator::decode(sent).unwrap();
                assert_eq!(message, FacilitatorToValidator::decode(frame).unwrap(), "{place}");
                if entry["type"] != "Response" {
                    assert_eq!(message.encode(), sent, "{place}");
                    as_sent += 1;
                } else {
                    assert_eq!(message.encode(), frame, "{place}");
                }
            }
        }
        println!("messages.{name}.json: {} messages, {as_sent} also as sent", entries.len());
        assert_eq!(entries.len(), count, "{name}");
    }
}

/// Frames that the public source takes and the package refuses, as we do: bounds on receipts and paths.
const REFUSED_LIKE_THE_PACKAGE: [(&str, &str); 6] = [
    ("\"timestamp\": \"2025-01-02 03:04:05\"", "timezone_aware"),
    ("\"timestamp\": \"2025-01-02\"", "timezone_aware"),
    ("\"job_started_receipt_payload\": {\"job_uuid\": \"x\"", "value_error"),
    ("\"ttl\": -1", "greater_than_equal"),
    ("\"relative_path\": \"../x\"", "value_error"),
    ("\"relative_path\": \"/abs\"", "value_error"),
];

#[test]
fn inputs_are_taken_refused_and_answered_as_the_peers_do() {
    let entries = load("inputs.json");
    let (mut taken, mut refused, mut answered, mut identical, mut differences) = (0, 0, 0, 0, Vec::new());
    for entry in &entries {
        let (direction, frame) = (text(entry, "direction"), text(entry, "input"));
        let result = read(direction, frame);
        if let Err(error) = &result
            && entry["ok"] == true
            && !by_package(entry)
        {
            let (what, kind) = REFUSED_LIKE_THE_PACKAGE
                .iter()
                .find(|(what, _)| frame.contains(what))
                .unwrap_or_else(|| panic!("{frame}: {error}"));
            assert_eq!(error.errors[0].kind, *kind, "{frame}");
            differences.push(*what);
            continue;
        }
        match result {
            Ok((message, emitted)) => {
                assert_eq!(entry["ok"], true, "{frame} was read as {message}");
                let class = text(entry, "cls");
                let class = if class == "JobStatusUpdate" { "V0JobStatusUpdate" } else { class };
                assert!(message.starts_with(class), "{frame} was read as {message}");
                let expected = text(entry, "emitted");
                if by_package(entry) {
                    assert_eq!(emitted, expected, "{frame}");
                } else {
                    assert_eq!(without_validator_signature(&emitted), expected, "{frame}");
                }
                taken += 1;
            }
            Err(error) => {
                assert_eq!(entry["ok"], false, "{frame} was refused: {error}");
                refused += 1;
                if direction == "facilitator->validator" {
                    assert!(entry["answer"].is_null(), "the validator never answers the facilitator");
                    continue;
                }
                let kinds: Vec<&str> = error.errors.iter().map(|e| e.kind).collect();
                assert_eq!(json!(kinds), entry["error_types"], "{frame}");
                let locs: Vec<Value> = error.errors.iter().map(loc).collect();
                assert_eq!(json!(locs), entry["error_locs"], "{frame}");
                let answer = answer_to(direction, frame, &error);
                assert_eq!(outline(&answer), outline(text(entry, "answer")), "{frame}");
                answered += 1;
                identical += usize::from(answer == text(entry, "answer"));
            }
        }
    }
    println!(
        "inputs.json: {} frames: {taken} taken, {refused} refused, {answered} answered ({identical} of them byte for \
         byte), refused unlike the public source: {differences:?}",
        entries.len()
    );
    assert_eq!(entries.len(), 165);
    assert_eq!(taken + refused + differences.len(), entries.len());
    assert_eq!((answered, differences.len()), (91, REFUSED_LIKE_THE_PACKAGE.len()));
}

fn loc(error: &ErrorDetail) -> Value {
    let steps = error.loc.iter().map(|step| match step {
        LocItem::Key(key) => json!(key),
        LocItem::Index(index) => json!(index),
    });
    steps.collect()
}

fn answer_to(direction: &str, frame: &str, error: &DecodeError) -> String {
    match direction {
        "validator->facilitator" => FacilitatorToValidator::from(answer::by_facilitator(error)).encode(),
        "validator->miner" => MinerToValidator::from(answer::by_miner(error)).encode(),
        "executor->miner" => MinerToExecutor::from(answer::by_miner(error)).encode(),
        "miner->validator" => ValidatorToMiner::from(answer::to_miner(error, frame, "<NAME>")).encode(),
        "miner->executor" => ExecutorToMiner::from(answer::to_miner(error, frame, "<NAME>")).encode(),
        other => panic!("nobody answers on {other}"),
    }
}

/// An answer without its prose: the envelope, and the type and the place of each error.
fn outline(answer: &str) -> Value {
    let outlines = |errors: &Value| -> Value {
        let errors = errors.as_array().unwrap().iter();
        errors.map(|e| json!([e["type"], e["loc"], e["input"], e.get("ctx").is_some()])).collect()
    };
    let answer: Value = serde_json::from_str(answer).unwrap();
    if answer.get("status").is_some() {
        return json!([answer["status"], outlines(&answer["errors"])]);
    }
    let details = text(&answer, "details");
    let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
    if let Some((head, errors)) = details.split_once(" from miner <NAME>: ") {
        let errors: Value = serde_json::from_str(errors).unwrap();
        return json!([keys, answer["message_type"], head, outlines(&errors)]);
    }
    let lines = details.lines().map(|line| match line.split_once(" [type=") {
        Some((_, kind)) => kind,
        None if line.starts_with("    For further information") => "",
        None => line,
    });
    json!([keys, answer["message_type"], lines.collect::<Vec<_>>()])
}

#[test]
fn transcripts_are_read_but_for_what_the_peer_could_not_read_either() {
    let files = [
        ("facilitator_validator", 69, 6),
        ("miner_links", 179, 5),
        ("miner_links.pypi_client", 19, 0),
        ("validator_client_vs_stub_facilitator", 40, 2),
    ];
    for (name, count, bad) in files {
        let events = load(&format!("transcripts/{name}.jsonl"));
        let frames: Vec<&Value> = events.iter().filter(|e| e.get("text").is_some()).collect();
        // The recorder names the link after the port, but one client dialled the executors' path on the validators'.
        let executors: Vec<&Value> = events
            .iter()
            .filter(|e| e["path"].as_str().is_some_and(|path| path.contains("/executor_interface/")))
            .map(|e| &e["connection"])
            .collect();
        // Per connection: the frames that we refuse, and the answers that say a frame could not be read.
        let mut tally: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let mut refused = Vec::new();
        for frame in &frames {
            let (recorded, text) = (text(frame, "direction"), text(frame, "text"));
            let direction = match recorded {
                "validator->miner" if executors.contains(&&frame["connection"]) => "executor->miner",
                "miner->validator" if executors.contains(&&frame["connection"]) => "miner->executor",
                other => other,
            };
            let (ours, theirs) = tally.entry(format!("{} {}", frame["case"], frame["connection"])).or_default();
            match sent_on(direction, text) {
                Err(error) => {
                    refused.push(format!("{text:.60}: {error:.100}"));
                    // Nobody tells the facilitator what a validator could not read.
                    *ours += usize::from(direction != "facilitator->validator");
                }
                Ok(emitted) => {
                    let unread = emitted.contains("Malformed message: ") || emitted.contains("\"loc\":");
                    *theirs += usize::from(unread);
                }
            }
        }
        println!("transcripts/{name}: {} frames, refused {}: {refused:#?}", frames.len(), refused.len());
        assert_eq!((frames.len(), refused.len()), (count, bad), "{name}");
        for (connection, (ours, theirs)) in tally {
            assert_eq!(ours, theirs, "{name} {connection}: refused by us, by the peer");
        }
    }
}

#[test]
fn enums_have_the_members_and_the_manners_of_the_peers() {
    let entries = load("enums.json");
    let mut seen = 0;
    macro_rules! check {
        ($entry:ident, $name:ident) => {{
            let members = $entry["members"].as_object().unwrap();
            let texts: Vec<&str> = members.values().map(|m| m.as_str().unwrap()).collect();
            for member in &texts {
                let parsed: $name = member.parse().unwrap();
                assert_eq!((parsed.as_str(), parsed.to_string().as_str()), (*member, *member));
            }
            if by_package($entry) {
                let ours: Vec<&str> = $name::ALL.iter().map(|m| m.as_str()).collect();
                assert_eq!(ours, texts, "{}", $entry["name"]);
            }
            assert!("bogus".parse::<$name>().unwrap_err().to_string().contains(texts[0]));
        }};
    }
    for entry in &entries {
        match text(entry, "name") {
            "JobParticipantType" => check!(entry, JobParticipantType),
            "JobStatus" => check!(entry, JobStatus),
            "JobStage" => check!(entry, JobStage),
            "HordeFailureReason" => check!(entry, HordeFailureReason),
            "JobFailureReason" => check!(entry, JobFailureReason),
            "JobRejectionReason" => check!(entry, JobRejectionReason),
            "ExecutorClass" => check!(entry, ExecutorClass),
            "ReceiptType" => check!(entry, ReceiptType),
            "Code" => check!(entry, Code),
            "VolumeType" => check!(entry, VolumeType),
            "OutputUploadType" => check!(entry, OutputUploadType),
            "SignatureScope" => check!(entry, SignatureScope),
            "JobStatus.sets" => {
                let set = |which: fn(&&JobStatus) -> bool| -> Vec<&str> {
                    let mut names: Vec<_> = JobStatus::ALL.iter().filter(which).map(|s| s.as_str()).collect();
                    names.sort_unstable();
                    names
                };
                assert_eq!(json!(set(|s| s.is_terminal())), entry["end_states"]);
                assert_eq!(json!(set(|s| s.is_failure())), entry["failed"]);
                assert_eq!(json!(set(|s| s.is_terminal() && !s.is_failure())), entry["successful"]);
            }
            "EXECUTOR_CLASS" => {
                let specs = entry["specs"].as_object().unwrap();
                assert_eq!(specs.len(), ExecutorClass::ALL.len());
                for (name, spec) in specs {
                    let class: ExecutorClass = name.parse().unwrap();
                    assert_eq!(json!(class.spin_up_time().as_secs()), spec["spin_up_time"], "{name}");
                    assert_eq!(json!(class.has_gpu()), spec["has_gpu"], "{name}");
                }
            }
            other => panic!("an enum we do not know: {other}"),
        }
        if let Some(unknown) = entry.get("unknown") {
            check_unknown(text(entry, "name"), unknown);
        }
        seen += 1;
    }
    println!("enums.json: {seen} entries");
    assert_eq!(seen, 15);
}

/// What a message makes of a value that is none of the members of one of its enums.
fn check_unknown(name: &str, unknown: &Value) {
    let update = |part: &str| {
        format!(r#"{{"message_type":"V0JobStatusUpdate","uuid":"u","status":"sent","metadata":{{{part}}}}}"#)
    };
    for (input, outcome) in unknown.as_object().unwrap() {
        let (direction, frame) = match name {
            "JobStatus" => (
                "validator->facilitator",
                format!(r#"{{"message_type":"V0JobStatusUpdate","uuid":"u","status":{input}}}"#),
            ),
            "JobParticipantType" | "HordeFailureReason" => {
                let other = if name == "JobParticipantType" { "reason" } else { "reported_by" };
                let field = if name == "JobParticipantType" { "reported_by" } else { "reason" };
                let part = format!(r#""horde_failure_details":{{"{field}":{input},"{other}":"miner","message":""}}"#);
                ("validator->facilitator", update(&part))
            }
            "JobStage" | "JobFailureReason" => {
                let field = if name == "JobStage" { "stage" } else { "reason" };
                let frame = format!(r#"{{"message_type":"V0JobFailedRequest","job_uuid":"u","{field}":{input}}}"#);
                ("executor->miner", frame)
            }
            "JobRejectionReason" => (
                "miner->validator",
                format!(r#"{{"message_type":"V0DeclineJobRequest","job_uuid":"u","reason":{input}}}"#),
            ),
            "ExecutorClass" => {
                let job = r#""message_type":"V0JobRequest","job_uuid":"u","docker_image":"i""#;
                let rest = r#""docker_run_options_preset":"none","docker_run_cmd":[]"#;
                ("miner->executor", format!(r#"{{{job},{rest},"executor_class":{input}}}"#))
            }
            "Code" => ("miner->validator", format!(r#"{{"message_type":"UnauthorizedError","code":{input}}}"#)),
            "SignatureScope" => {
                let job = r#""message_type":"V0JobCheated","job_uuid":"u","trusted_job_uuid":"t","details":1"#;
                let scope = format!(r#""signature":{{"signature":"","signature_scope":{input}}}"#);
                ("facilitator->validator", format!("{{{job},{scope}}}"))
            }
            // These three are only tags; what is no tag is an error of the union instead, see inputs.json.
            "ReceiptType" | "VolumeType" | "OutputUploadType" => continue,
            other => panic!("an enum we do not know: {other}"),
        };
        let result = sent_on(direction, &frame);
        if outcome["ok"] == true {
            let value = format!("\"{}\"", text(outcome, "value"));
            let emitted = result.unwrap_or_else(|e| panic!("{name} {input}: {e}"));
            assert!(emitted.contains(&value), "{name} {input}: {emitted}");
        } else {
            let error = result.expect_err(&frame);
            assert_eq!(json!(error.errors[0].kind), outcome["error"], "{name} {input}");
        }
    }
}

#[test]
fn unions_take_exactly_the_messages_of_the_peers() {
    let path = format!("{}/tests/vectors/unions.json", env!("CARGO_MANIFEST_DIR"));
    let unions: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (direction, classes) in unions.as_object().unwrap() {
        let tags: Vec<&str> = (classes.as_array().unwrap().iter())
            .map(|class| class.as_str().unwrap())
            .filter(|class| *class != "Response")
            .map(|class| if class == "JobStatusUpdate" { "V0JobStatusUpdate" } else { class })
            .collect();
        let error = sent_on(direction, r#"{"message_type":"Nope"}"#).unwrap_err();
        let shown: Vec<String> = tags.iter().map(|tag| format!("'{tag}'")).collect();
        assert_eq!(error.errors[0].ctx["expected_tags"], json!(shown.join(", ")), "{direction}");
        for tag in tags {
            // Whatever else is missing, the tag itself is known.
            let frame = format!(r#"{{"message_type":"{tag}"}}"#);
            if let Err(error) = sent_on(direction, &frame) {
                assert!(error.errors.iter().all(|e| e.kind == "missing"), "{direction} {tag}: {error}");
            }
        }
    }
    println!("unions.json: {} directions", unions.as_object().unwrap().len());
    assert_eq!(unions.as_object().unwrap().len(), 6);
}
