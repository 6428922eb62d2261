//! Frames that are too deep, too long or too odd: they are refused or taken, and nothing overflows, hangs or is echoed
//! at length.

use phalanx::identity::KeyPair;
use phalanx::protocol::json::{Style, sort_keys};
use phalanx::protocol::*;
use serde_json::Value;

/// Far more than any stack of a thread holds, if each level took a frame of it.
const DEEP: usize = 100_000;
/// How many levels the parser takes at least, those of the message included.
const LEVELS: usize = 200;
/// How many values the parser takes at most.
const VALUES: usize = 131_072;
const MIB: usize = 1024 * 1024;

type Read = fn(&str) -> Result<String, DecodeError>;

/// A reader that gives back what the message is written as.
macro_rules! reader {
    ($name:ident) => {
        (stringify!($name), (|text: &str| $name::decode(text).map(|message| message.encode())) as Read)
    };
}

fn readers() -> Vec<(&'static str, Read)> {
    vec![
        reader!(FacilitatorToValidator),
        reader!(ValidatorToFacilitator),
        reader!(ValidatorToMiner),
        reader!(MinerToValidator),
        reader!(MinerToExecutor),
        reader!(ExecutorToMiner),
        reader!(SignedFields),
        reader!(JobStatusMetadata),
        reader!(Receipt),
    ]
}

/// For each direction a frame with a place, `@`, where anything may stand, or where it is kept, passed over or refused.
const PLACES: [(&str, &str); 14] = [
    ("FacilitatorToValidator", r#"{"message_type":"V0JobCheated","job_uuid":"a","trusted_job_uuid":"b","details":@}"#),
    ("FacilitatorToValidator", r#"{"status":"error","errors":[{"msg":"m","type":"t","input":@}]}"#),
    ("FacilitatorToValidator", r#"{"message_type":"V2JobRequest","env":@}"#),
    (
        "ValidatorToFacilitator",
        r#"{"message_type":"V0MachineSpecsUpdate","miner_hotkey":"a","validator_hotkey":"b","batch_id":"c",
            "specs":{"s":@}}"#,
    ),
    (
        "ValidatorToFacilitator",
        r#"{"message_type":"V0JobStatusUpdate","uuid":"a","status":"failed","metadata":{"comment":@}}"#,
    ),
    ("ValidatorToFacilitator", r#"{"message_type":"V0Heartbeat","more":@}"#),
    ("ValidatorToMiner", r#"{"message_type":"GenericError","details":@}"#),
    ("ValidatorToMiner", r#"{"message_type":"V0InitialJobRequest","volume":@}"#),
    ("MinerToValidator", r#"{"message_type":"V0JobFailedRequest","job_uuid":"a","context":{"c":@}}"#),
    ("MinerToExecutor", r#"{"message_type":"GenericError","more":@}"#),
    ("ExecutorToMiner", r#"{"message_type":"V0MachineSpecsRequest","job_uuid":"a","specs":{"specs":{"s":@}}}"#),
    ("SignedFields", r#"{"volumes":[@]}"#),
    ("JobStatusMetadata", r#"{"comment":@}"#),
    ("Receipt", r#"{"payload":@}"#),
];

fn read(direction: &str, frame: &str) -> Result<String, DecodeError> {
    let readers = readers();
    let (_, read) = readers.iter().find(|(name, _)| *name == direction).unwrap();
    read(frame)
}

/// `[[…]]` or `{"a":{"a":…}}` of so many levels, perhaps never closed.
fn nested(levels: usize, object: bool, closed: bool) -> String {
    let (open, inside, close) = if object { ("{\"a\":", "1", "}") } else { ("[", "", "]") };
    let end = if closed { inside.to_owned() + &close.repeat(levels) } else { String::new() };
    open.repeat(levels) + &end
}

fn is_too_deep(error: &DecodeError) -> bool {
    error.errors[0].kind == "json_invalid" && error.errors[0].msg.contains("recursion limit exceeded")
}

#[test]
fn a_hundred_thousand_levels_are_refused_everywhere() {
    for (object, closed) in [(false, false), (false, true), (true, false), (true, true)] {
        let deep = nested(DEEP, object, closed);
        for (name, read) in readers() {
            let error = read(&deep).expect_err(name);
            assert!(is_too_deep(&error), "{name}: {error}");
        }
        for (direction, place) in PLACES {
            let frame = place.replace('@', &deep);
            let error = read(direction, &frame).expect_err(place);
            assert!(is_too_deep(&error), "{place}: {error}");
            assert!(error.to_string().len() < 1024, "{place}");
            // What is signed is made of the frame itself where a validator signed it.
            let verdict = verify_validator_signature(&frame, &KeyPair::from_seed([1; 32]).public());
            assert!(matches!(verdict, Err(SigningError::Json(_))), "{place}");
            assert!(sort_keys(&frame, Style::PYTHON, None).is_err(), "{place}");
        }
    }
}

#[test]
fn frames_of_too_many_values_are_refused_before_they_are_parsed() {
    let many = |value: &str| vec![value; 2 * VALUES].join(",");
    let (list, map) = (format!("[{}]", many("0")), format!("{{{}}}", many(r#""a":0"#)));
    let lists = format!("[{}]", many("[]"));
    for (direction, place) in PLACES {
        for values in [&list, &map, &lists] {
            let frame = place.replace('@', values);
            let error = read(direction, &frame).expect_err(place);
            assert_eq!(error.errors[0].msg, format!("Invalid JSON: more than {VALUES} values"), "{place}");
            assert!(error.to_string().len() < 4096, "{place}");
            let verdict = verify_validator_signature(&frame, &KeyPair::from_seed([2; 32]).public());
            assert!(matches!(verdict, Err(SigningError::Json(_))), "{place}");
        }
        // Texts are not values.
        let text = format!("\"{}\"", "[,{:".repeat(VALUES));
        let told = read(direction, &place.replace('@', &text)).err();
        assert!(told.is_none_or(|error| error.errors[0].kind != "json_invalid"), "{place}");
    }
}

#[test]
fn the_deepest_frames_that_are_taken_can_be_written_and_quoted() {
    for (direction, place) in PLACES {
        for object in [false, true] {
            let frame = |levels: usize| place.replace('@', &nested(levels, object, true));
            let too_deep = |frame: &String| read(direction, frame).is_err_and(|error| is_too_deep(&error));
            let levels = (1..DEEP).find(|levels| too_deep(&frame(levels + 1))).unwrap();
            let above = place.split('@').next().unwrap();
            let above = above.matches(['{', '[']).count() - above.matches(['}', ']']).count();
            assert!((LEVELS..LEVELS + 2).contains(&(levels + above)), "{place}: {levels} below {above}");
            let deepest = frame(levels);
            match read(direction, &deepest) {
                Ok(text) => assert_eq!(read(direction, &text).as_ref(), Ok(&text), "{place}"),
                Err(error) => {
                    assert!(!is_too_deep(&error), "{place}: {error}");
                    // The answer quotes what was wrong, and the peer must be able to read it.
                    let answer = FacilitatorToValidator::from(answer::by_facilitator(&error)).encode();
                    assert!(FacilitatorToValidator::decode(&answer).is_ok(), "{place}: {answer}");
                }
            }
            assert!(sort_keys(&deepest, Style::PYTHON, None).is_ok(), "{place}");
        }
    }
}

#[test]
fn the_deepest_report_of_a_cheat_is_signed_and_checked() {
    let user = KeyPair::from_seed([2; 32]);
    let frame = PLACES[0].1.replace('@', &nested(LEVELS - 1, true, true));
    let Ok(FacilitatorToValidator::V0JobCheated(mut report)) = FacilitatorToValidator::decode(&frame) else {
        panic!("{frame:.100}");
    };
    report.sign(&user, 5);
    assert_eq!(report.verify().unwrap(), user.public());
    let sent = FacilitatorToValidator::from(report).encode();
    let Ok(FacilitatorToValidator::V0JobCheated(report)) = FacilitatorToValidator::decode(&sent) else {
        panic!("{sent:.100}");
    };
    assert_eq!(report.verify().unwrap(), user.public());
}

#[test]
fn numbers_are_taken_up_to_the_digits_that_python_takes() {
    for (direction, place) in PLACES {
        let huge = "7".repeat(MIB);
        for number in [huge.clone(), format!("-{huge}"), format!("[1,{huge}]")] {
            let error = read(direction, &place.replace('@', &number)).expect_err(place);
            assert_eq!(error.errors[0].kind, "json_invalid", "{place}: {error}");
        }
    }
    let (direction, place) = PLACES[0];
    let digits = "7".repeat(4300);
    let text = read(direction, &place.replace('@', &digits)).unwrap();
    assert!(text.contains(&digits));
    assert!(read(direction, &place.replace('@', &format!("{digits}7"))).is_err());
    // Too large or too small for a float, each as Python reads it; no number can stand for the first when it is sent
    // on.
    let text = read(direction, &place.replace('@', "[1e999999999,-1e-999999999]")).unwrap();
    assert!(text.contains("[Infinity, -0.0]") || text.contains("[null, -0.0]"), "{text}");
}

#[test]
fn a_text_of_16_mib_is_taken_where_a_text_may_stand_and_never_quoted_whole() {
    let long = format!("\"{}\"", "\\u0001".repeat(16 * MIB / 6));
    // One place of each reader, as this takes its time.
    for of_one_reader in PLACES.chunk_by(|a, b| a.0 == b.0) {
        let (direction, place) = of_one_reader[0];
        match read(direction, &place.replace('@', &long)) {
            // Kept whole, or passed over.
            Ok(text) => assert!(text.len() > long.len() || !text.contains("u0001"), "{place}"),
            Err(error) => {
                assert!(error.to_string().len() < 4096, "{place}");
                assert!(error.errors.iter().all(|error| error.input.to_string().len() < 16 * 1024), "{place}");
            }
        }
    }
    let details = "x".repeat(16 * MIB);
    let (direction, place) = PLACES[6];
    let frame = place.replace('@', &format!("\"{details}\""));
    assert_eq!(read(direction, &frame).unwrap(), frame);
}

#[test]
fn of_a_repeated_key_the_last_value_counts() {
    let frame = r#"{"status":"error","message_type":"V0Heartbeat","status":"success","errors":[],"errors":[],
        "message_type":"V0JobCheated","message_type":"V0JobCheated","job_uuid":"a","job_uuid":"b",
        "trusted_job_uuid":"c","details":{"k":1,"l":2,"k":3}}"#;
    // As a report of a cheat, which has neither `status` nor `errors`: its repeated fields are read, the others
    // reported.
    let error = FacilitatorToValidator::decode(frame).unwrap_err();
    let places: Vec<String> = error.errors.iter().map(|error| error.path()).collect();
    assert_eq!(places, ["V0JobCheated.status", "V0JobCheated.errors"]);
    let report = &frame[frame.find("\"message_type\":\"V0JobCheated\"").unwrap()..];
    let Ok(FacilitatorToValidator::V0JobCheated(report)) = FacilitatorToValidator::decode(&format!("{{{report}"))
    else {
        panic!("{report}");
    };
    assert_eq!(report.job_uuid, "b");
    assert_eq!(report.details, serde_json::from_str::<Value>(r#"{"k":3,"l":2}"#).unwrap());
}

#[test]
fn of_many_keys_few_are_listed() {
    const KEYS: usize = 20_000;
    let repeated = "\"a\":1,".repeat(KEYS);
    let different: String = (0..KEYS).map(|n| format!("\"{n}\":1,")).collect();
    for keys in [repeated, different] {
        for (direction, place) in PLACES {
            let inside = place.replace('@', &format!("{{{keys}\"z\":1}}"));
            let outside = place.replacen('{', &format!("{{{keys}"), 1).replace('@', "1");
            for frame in [inside, outside] {
                match read(direction, &frame) {
                    Ok(text) => assert!(text.len() < 2 * frame.len() + 1024, "{place}"),
                    Err(error) => assert!(error.errors.len() <= MAX_ERRORS, "{place}"),
                }
                assert!(sort_keys(&frame, Style::PYTHON, None).is_ok(), "{place}");
            }
        }
    }
}
