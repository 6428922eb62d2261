use std::collections::BTreeMap;

use zip::ZipArchive;

use super::*;
use crate::base::rng::Rng;
use crate::identity::KeyPair;
use crate::protocol::{ExecutorClass, SignedRequest, SingleVolume, Volume};

fn spec(job: &Value) -> V2JobRequest {
    parse(job.to_string().as_bytes(), Path::new("")).unwrap().0
}

fn problems(job: &Value) -> Vec<String> {
    parse(job.to_string().as_bytes(), Path::new("")).expect_err("it should be refused")
}

fn with(more: Value) -> Value {
    let mut job = json!({"executor_class": "always_on.test", "docker_image": "busybox"});
    job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    job
}

fn unzip(contents: &str) -> BTreeMap<String, (Vec<u8>, u32)> {
    let mut zip = ZipArchive::new(Cursor::new(STANDARD.decode(contents).unwrap())).unwrap();
    (0..zip.len())
        .map(|n| {
            let mut file = zip.by_index(n).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            (file.name().to_owned(), (bytes, file.unix_mode().unwrap() & 0o777))
        })
        .collect()
}

#[test]
fn a_small_job_has_defaults() {
    let job = spec(&with(json!({"args": ["echo", "hi"], "env": {"B": "2", "A": "1"}})));
    assert_eq!(job.executor_class, ExecutorClass::AlwaysOnTest);
    assert_eq!((job.args.len(), job.env.keys().map(String::as_str).collect::<Vec<_>>()), (2, vec!["B", "A"]));
    let limits =
        [job.download_time_limit, job.execution_time_limit, job.upload_time_limit, job.streaming_start_time_limit];
    assert_eq!(limits.map(|limit| limit.saturating_i64()), [30, 60, 30, 5]);
    assert!(!job.use_gpu && !job.on_trusted_miner && job.volume.is_none() && job.signature.is_none());
    assert_eq!(spec(&with(json!({"command": ["true"], "execution_time_limit": 7}))).args, ["true"]);
}

#[test]
fn files_become_an_inline_zip() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("local.bin"), [0, 255]).unwrap();
    let job = with(json!({"files": {
        "run.sh": "#!/bin/sh\n", "notes/ż.txt": "text", "b": {"base64": "AP8="}, "l": {"path": "local.bin"}
    }}));
    let path = folder.path().join("job.json");
    fs::write(&path, job.to_string()).unwrap();
    let request = load(&path).unwrap().0;
    let Some(Volume::Inline(volume)) = request.volume else { panic!("{:?}", request.volume) };
    let files = unzip(&volume.contents);
    let expected: [(&str, &[u8], u32); 4] = [
        ("b", &[0, 255], 0o644),
        ("l", &[0, 255], 0o644),
        ("notes/ż.txt", b"text", 0o644),
        ("run.sh", b"#!/bin/sh\n", 0o755),
    ];
    let expected = expected.map(|(name, bytes, mode)| (name.to_owned(), (bytes.to_vec(), mode)));
    assert_eq!(files.into_iter().collect::<Vec<_>>(), expected);
    let again = load(&path).unwrap();
    assert!(matches!(again.0.volume, Some(Volume::Inline(same)) if same.contents == volume.contents));
}

#[test]
fn files_and_a_volume_come_together() {
    let url = json!({"volume_type": "zip_url", "contents": "https://e/a.zip"});
    let multi = json!({"volume_type": "multi_volume", "volumes": [url, url]});
    for (volume, parts) in [(url.clone(), 2), (multi, 3)] {
        let job = spec(&with(json!({"files": {"a": "b"}, "volume": volume})));
        let Some(Volume::Multi(multi)) = job.volume else { panic!("{:?}", job.volume) };
        assert_eq!(multi.volumes.len(), parts);
        assert!(matches!(multi.volumes[0], SingleVolume::Inline(_)));
    }
    assert!(matches!(spec(&with(json!({"volume": url}))).volume, Some(Volume::ZipUrl(_))));
}

#[test]
fn every_problem_names_its_key_and_what_would_be_right() {
    let cases = [
        (
            json!({"excution_time_limit": 5}),
            r#"unknown key "excution_time_limit"; did you mean "execution_time_limit"?"#,
        ),
        (
            json!({"execution_time_limit": "5s"}),
            r#"execution_time_limit: "5s" should be a whole number of seconds, as 60"#,
        ),
        (json!({"upload_time_limit": -1}), "upload_time_limit: -1 should be a whole number"),
        (json!({"args": "echo"}), "args: Input should be a valid array"),
        (json!({"args": ["echo", 1]}), "args.1: Input should be a valid string"),
        (json!({"args": [], "command": []}), "command: it is another name of args"),
        (json!({"env": {"A": 1}}), "env.A: Input should be a valid string"),
        (json!({"docker_image": ""}), "docker_image: it should name an image"),
        (json!({"executor_class": "gpu"}), "executor_class: Input should be 'spin_up-4min.gpu-24gb'"),
        (json!({"volume": {"volume_type": "zip"}}), "volume: Input tag 'zip'"),
        (json!({"volume": {"volume_type": "zip_url"}}), "volume.zip_url.contents: Field required"),
        (
            json!({"output_upload": {"output_upload_type": "zip_and_http_put", "url": "u", "form_fields": {}}}),
            "unknown key \"output_upload.form_fields\"",
        ),
        (
            json!({"output_upload": {"output_upload_type": "multi_upload", "uploads": [
                {"output_upload_type": "single_file_put", "url": "u", "relative_path": "o",
                    "signed_header": {"A": "b"}},
            ]}}),
            "unknown key \"output_upload.uploads.0.signed_header\"; did you mean \"signed_headers\"?",
        ),
        (
            json!({"output_upload": {"output_upload_type": "multi_upload", "uploads": [],
                "system_output": {"output_upload_type": "zip_and_http_put", "url": "u"}}}),
            "output_upload.system_output: no facilitator takes it from a user",
        ),
        (
            json!({"volume": {"volume_type": "zip_url", "contents": "u", "relativ_path": "x"}}),
            "unknown key \"volume.relativ_path\"",
        ),
        (json!({"files": []}), "files: it should be an object"),
        (json!({"files": {"../a": ""}}), "files.../a: it should be a path under /volume/"),
        (json!({"files": {"/a": ""}}), "files./a: it should be a path under /volume/"),
        (json!({"files": {"a\\b": ""}}), "it should be a path under /volume/"),
        (json!({"files": {"a": "", "a/b": ""}}), "files.a/b: a is a file, so nothing can be in it"),
        (json!({"files": {"a": 1}}), "files.a: it should be a text"),
        (json!({"files": {"a": {"base64": "?"}}}), "files.a: its base64 cannot be read"),
        (json!({"files": {"a": {"path": "no/such"}}}), "files.a: cannot read no/such"),
    ];
    for (more, expected) in cases {
        let found = problems(&with(more));
        assert!(found.len() == 1 && found[0].contains(expected), "{found:?} should be {expected:?}");
    }
    let found = problems(&json!({"docker": "x", "execution_time_limit": null}));
    assert_eq!(found.len(), 4, "{found:?}");
}

#[test]
fn what_is_no_job_file_is_reported_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.json");
    assert!(load(&path).unwrap_err().to_string().contains("job.json: cannot read it"));
    for (content, expected) in [("{", "it is not JSON: EOF"), ("[]", "it should be one JSON object")] {
        fs::write(&path, content).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("job.json") && error.contains(expected), "{error}");
    }
    fs::write(&path, " ".repeat(JOB_REQUEST_BYTES + 1)).unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("give large inputs by URL"));
}

#[test]
fn a_job_that_is_too_large_as_a_message_is_refused() {
    let mut rng = Rng::new(1);
    let noise: Vec<u8> = (0..120_000).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
    let found = problems(&with(json!({"files": {"noise": {"base64": STANDARD.encode(&noise)}}})));
    assert!(found[0].contains("give large inputs by URL"), "{found:?}");
}

#[test]
fn a_request_is_signed() {
    let alice = KeyPair::from_uri("//Alice").unwrap();
    let spec = JobSpec(spec(&with(json!({"files": {"a": "b"}}))));
    let mut request = spec.unsigned().clone();
    "u".clone_into(&mut request.uuid);
    request.sign(&alice, 1_700_000_000_000_000_000);
    assert_eq!((request.uuid.as_str(), request.verify().unwrap()), ("u", alice.public()));
}
