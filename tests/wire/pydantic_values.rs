//! Values of every kind are read as pydantic 2.14.3 reads them in the messages of the published package.
//!
//! `tests/fixtures/pydantic_values.json` holds, for one field of each type, what became of some eighty values in place
//! of the `@`: the text that the Python peer sends on, or the types and places of its errors.

use phalanx::protocol::*;
use serde_json::{Value, json};

fn sent_on(link: &str, frame: &str) -> Result<String, DecodeError> {
    Ok(match link {
        "facilitator-to-validator" => FacilitatorToValidator::decode(frame)?.encode_compact(),
        "validator-to-miner" => ValidatorToMiner::decode(frame)?.encode(),
        "miner-to-validator" => MinerToValidator::decode(frame)?.encode(),
        "executor-to-miner" => ExecutorToMiner::decode(frame)?.encode(),
        "miner-to-executor" => MinerToExecutor::decode(frame)?.encode(),
        other => panic!("no such link: {other}"),
    })
}

#[test]
fn values_are_read_as_pydantic_reads_them() {
    let path = format!("{}/tests/fixtures/pydantic_values.json", env!("CARGO_MANIFEST_DIR"));
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (mut taken, mut refused) = (0, 0);
    for case in &cases {
        for (value, outcome) in case["outcomes"].as_object().unwrap() {
            let frame = case["frame"].as_str().unwrap().replace('@', value);
            let place = format!("{} {value:.200}", case["what"]);
            match (sent_on(case["link"].as_str().unwrap(), &frame), outcome) {
                (Ok(emitted), Value::String(expected)) => {
                    assert_eq!(&emitted, expected, "{place}");
                    taken += 1;
                }
                (Err(error), Value::Array(_)) => {
                    let errors: Vec<Value> = error.errors.iter().map(outline).collect();
                    assert_eq!(&json!(errors), outcome, "{place}");
                    refused += 1;
                }
                (ours, theirs) => panic!("{place}: {ours:?}, but pydantic: {theirs}"),
            }
        }
    }
    println!("pydantic_values.json: {} fields, {taken} values taken, {refused} refused", cases.len());
    assert_eq!((cases.len(), taken, refused), (25, 423, 1688));
}

#[test]
fn a_receipt_names_no_more_blocks_than_the_package_allows() {
    let payload = |blocks: usize| {
        json!({
            "job_uuid": "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
            "miner_hotkey": "",
            "validator_hotkey": "",
            "timestamp": "2025-01-02T03:04:05Z",
            "time_started": "2025-01-02T03:04:05Z",
            "time_took_us": 1,
            "score_str": "1",
            "block_numbers": vec![0; blocks],
        })
    };
    let frame = |blocks| {
        let kind = "V0JobFinishedReceiptRequest";
        json!({"message_type": kind, "signature": "", "payload": payload(blocks)}).to_string()
    };
    assert!(ValidatorToMiner::decode(&frame(MAX_BLOCK_NUMBERS)).is_ok());
    let error = ValidatorToMiner::decode(&frame(MAX_BLOCK_NUMBERS + 1)).unwrap_err();
    let loc = ["V0JobFinishedReceiptRequest", "payload", "block_numbers"];
    assert_eq!(outline(&error.errors[0]), json!(["too_long", loc]));
    assert_eq!(error.errors[0].ctx["actual_length"], 10_001);
}

fn outline(error: &ErrorDetail) -> Value {
    let steps = error.loc.iter().map(|step| match step {
        LocItem::Key(key) => json!(key),
        LocItem::Index(index) => json!(index),
    });
    json!([error.kind, steps.collect::<Vec<_>>()])
}
