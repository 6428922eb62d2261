//! Every class and field of `tests/vectors/schema.json` is known to our decoder with its name, aliases, default,
//! required-ness and manner with other keys; each is probed by changing one key of a real message.

use phalanx::protocol::*;
use serde_json::{Map, Value, json};

const LINKS: [&str; 6] = [
    "executor_to_miner",
    "facilitator_to_validator",
    "miner_to_executor",
    "miner_to_validator",
    "validator_to_facilitator",
    "validator_to_miner",
];

fn load(file: &str) -> Value {
    let path = format!("{}/tests/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn text<'v>(entry: &'v Value, key: &str) -> &'v str {
    entry[key].as_str().unwrap_or_else(|| panic!("no text {key} in {entry}"))
}

/// A message and the place in it where an instance of a class stands.
#[derive(Clone)]
struct Sample {
    link: &'static str,
    message: Value,
    pointer: String,
}

impl Sample {
    fn object(&self) -> &Map<String, Value> {
        self.message.pointer(&self.pointer).unwrap().as_object().unwrap()
    }

    /// The message with its instance changed.
    fn changed(&self, change: impl FnOnce(&mut Map<String, Value>)) -> Sample {
        let mut sample = self.clone();
        change(sample.message.pointer_mut(&self.pointer).unwrap().as_object_mut().unwrap());
        sample
    }

    /// What the instance is sent on as.
    fn sent_on(&self) -> Result<Map<String, Value>, DecodeError> {
        let frame = self.message.to_string();
        let emitted = match self.link {
            "executor_to_miner" => ExecutorToMiner::decode(&frame)?.encode(),
            "facilitator_to_validator" => FacilitatorToValidator::decode(&frame)?.encode(),
            "miner_to_executor" => MinerToExecutor::decode(&frame)?.encode(),
            "miner_to_validator" => MinerToValidator::decode(&frame)?.encode(),
            "validator_to_facilitator" => ValidatorToFacilitator::decode(&frame)?.encode(),
            "validator_to_miner" => ValidatorToMiner::decode(&frame)?.encode(),
            "SignedFields" => SignedFields::decode(&frame)?.encode(),
            "HttpOutputVolumeResponse" => HttpOutputVolumeResponse::decode(&frame)?.encode(),
            other => panic!("no such link: {other}"),
        };
        let emitted: Value = serde_json::from_str(&emitted).unwrap();
        Ok(emitted.pointer(&self.pointer).unwrap().as_object().unwrap().clone())
    }
}

/// Real messages, and some made of real parts for the classes that no message vector holds.
fn messages() -> Vec<(&'static str, Value)> {
    let mut all = Vec::new();
    for link in LINKS {
        for entry in load(&format!("messages.{link}.json")).as_array().unwrap() {
            if entry["peers"].as_array().unwrap().contains(&json!("pypi-0.0.27")) {
                all.push((link, serde_json::from_str(text(entry, "json")).unwrap()));
            }
        }
    }
    let signing = load("signing.json");
    let receipt: Value = serde_json::from_str(text(&signing["receipts"][0], "receipt_json")).unwrap();
    let fields: Value = serde_json::from_str(text(&signing["signed_requests"][0], "signed_payload")).unwrap();
    all.extend([
        ("miner_to_validator", json!({"message_type": "V0DeclineJobRequest", "job_uuid": "u", "receipts": [receipt]})),
        (
            "validator_to_facilitator",
            json!({"message_type": "V0JobStatusUpdate", "uuid": "u", "status": "horde_failed", "metadata": {
                "horde_failure_details": {
                    "reported_by": "miner", "reason": "unknown", "message": "m", "context": {"a": 1}
                }
            }}),
        ),
        ("facilitator_to_validator", json!({"status": "error", "errors": [{"msg": "m", "type": "t", "help": "h"}]})),
        ("SignedFields", fields),
        ("HttpOutputVolumeResponse", json!({"headers": {"etag": "x"}, "body": ""})),
    ]);
    all
}

fn is_literal(field: &Value) -> bool {
    text(field, "type").starts_with("Literal") && !field["default"].is_null()
}

/// Every object that has exactly the fields of the class, and its fixed values.
fn instances(class: &Value, value: &Value, pointer: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let fields = class["fields"].as_array().unwrap();
            let same = map.len() == fields.len()
                && fields.iter().all(|field| {
                    let there = map.get(text(field, "emitted_name"));
                    there.is_some() && (!is_literal(field) || there == Some(&field["default"]))
                });
            if same {
                found.push(pointer.clone());
            }
            for (key, item) in map {
                instances(class, item, format!("{pointer}/{key}"), found);
            }
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                instances(class, item, format!("{pointer}/{n}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn every_class_and_field_is_known() {
    let schema = load("schema.json");
    let messages = messages();
    let (mut classes, mut fields, mut samples, mut older) = (0, 0, 0, 0);
    for class in schema.as_array().unwrap() {
        let name = text(class, "cls");
        let peers = class["peers"].as_array().unwrap();
        if !peers.contains(&json!("pypi-0.0.27")) {
            // Of the older release the package has changed types and bounds, and added a field; it has dropped none.
            let newer = (schema.as_array().unwrap().iter())
                .find(|other| other["cls"] == name && *other != class)
                .unwrap_or_else(|| panic!("{name} is known to the older release only"));
            for field in class["fields"].as_array().unwrap() {
                let known = newer["fields"].as_array().unwrap().iter();
                assert!(known.clone().any(|f| f["name"] == field["name"]), "{name} {field}");
            }
            older += 1;
            continue;
        }
        if name == "ValidatorSignedMessage" {
            // The base of the two messages that are probed with its one field themselves.
            assert_eq!(class["fields"][0]["name"], "validator_signature");
            continue;
        }
        let mut found = 0;
        for (link, message) in &messages {
            let mut pointers = Vec::new();
            instances(class, message, String::new(), &mut pointers);
            // In `system_output` two classes are tried in turn, and each adds its errors to those of the other.
            pointers.retain(|pointer| !pointer.ends_with("/system_output"));
            for pointer in pointers {
                probe(class, &Sample { link, message: message.clone(), pointer });
                found += 1;
            }
        }
        assert!(found > 0, "no message holds a {name}");
        classes += 1;
        fields += class["fields"].as_array().unwrap().len();
        samples += found;
    }
    println!("schema.json: {classes} classes with {fields} fields probed in {samples} places; {older} older forms");
    assert_eq!((classes, older), (55, 5));
    assert_eq!(classes + older + 1, schema.as_array().unwrap().len());
}

fn probe(class: &Value, sample: &Sample) {
    let name = text(class, "cls");
    let fields = class["fields"].as_array().unwrap();
    let emitted = sample.sent_on().unwrap_or_else(|e| panic!("{name}: {e}"));
    let names: Vec<&str> = fields.iter().map(|field| text(field, "emitted_name")).collect();
    assert_eq!(emitted.keys().collect::<Vec<_>>(), names, "{name}");

    let other = sample.changed(|object| {
        object.insert("zz_other".into(), json!(1));
    });
    match (text(class, "extra"), other.sent_on()) {
        ("forbid", Err(error)) => {
            assert_eq!((error.total, error.errors[0].kind), (1, "extra_forbidden"), "{name}: {error}");
            assert_eq!(error.errors[0].loc.last(), Some(&LocItem::Key("zz_other".into())), "{name}");
        }
        ("ignore", Ok(object)) => assert!(!object.contains_key("zz_other"), "{name}"),
        ("allow", Ok(object)) => assert_eq!(object["zz_other"], 1, "{name}"),
        (policy, outcome) => panic!("{name} does not {policy} other keys: {outcome:?}"),
    }

    for field in fields {
        let inputs: Vec<&str> =
            field["accepted_input_names"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        let emitted_name = text(field, "emitted_name");
        let place = format!("{name}.{emitted_name}");
        let missing = sample.changed(|object| {
            object.shift_remove(emitted_name);
        });
        match (field["required"].as_bool().unwrap(), missing.sent_on()) {
            (true, Err(error)) => {
                assert_eq!((error.total, error.errors[0].kind), (1, "missing"), "{place}: {error}");
                let last = error.errors[0].loc.last().unwrap().to_string();
                assert_eq!(last, inputs[0], "{place}");
            }
            (false, Ok(object)) => assert_eq!(object[emitted_name], field["default"], "{place}"),
            // A tag has a default, but the union around it needs it. What carries no `message_type` from the
            // facilitator is read as a `Response`.
            (false, Err(error)) if is_literal(field) => {
                let response = emitted_name == "message_type" && sample.link == "facilitator_to_validator";
                let untagged = error.errors[0].kind == "union_tag_not_found";
                assert!(untagged || response, "{place}: {error}");
            }
            (required, outcome) => panic!("{place}: required is {required}, but: {outcome:?}"),
        }
        for alias in &inputs[1..] {
            let value = &sample.object()[emitted_name];
            let aliased = missing.changed(|object| {
                object.insert((*alias).into(), value.clone());
            });
            assert_eq!(&aliased.sent_on().unwrap()[emitted_name], value, "{place} as {alias}");
        }
        if is_literal(field) {
            let wrong = sample.changed(|object| {
                object.insert(emitted_name.into(), json!("wrong"));
            });
            assert!(wrong.sent_on().is_err(), "{place} may be anything");
        }
    }
}
