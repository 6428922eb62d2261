//! Volumes of every kind come from a real server into the workspace, and what is refused is refused with its reason.

use crate::testkit::http;
use crate::testkit::job;
use crate::testkit::wait::far;
use std::fs;
use std::io::{Cursor, Write};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Reply, Server, loopback};
use job::Bench;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::executor::volumes::{Hub, VolumeError, VolumeLoader};
use phalanx::executor::workspace::Workspace;
use phalanx::net::reach::Reach;
use phalanx::ops::cause::Cause;
use phalanx::protocol::{
    AllowPatterns, HuggingfaceVolume, InlineVolume, MultiVolume, SingleFileVolume, SingleVolume, Volume, ZipUrlVolume,
};

fn zip(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn inline(bytes: &[u8], path: Option<&str>) -> InlineVolume {
    InlineVolume { contents: STANDARD.encode(bytes), relative_path: path.map(Into::into) }
}

fn single_file(url: String, path: &str) -> SingleFileVolume {
    SingleFileVolume { url, relative_path: path.into() }
}

fn zip_url(url: String, path: Option<&str>) -> ZipUrlVolume {
    ZipUrlVolume { contents: url, relative_path: path.map(Into::into) }
}

fn load(volume: &Volume, workspace: &Workspace) -> Result<u64, VolumeError> {
    VolumeLoader::new(Shutdown::new(), Hub::default(), loopback()).load(volume, workspace, far())
}

fn read(workspace: &Workspace, path: &str) -> String {
    fs::read_to_string(workspace.volume().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn an_inline_zip_comes_out_where_it_should() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    let bytes = zip(&[("a.txt", "a"), ("d/b.txt", "b")]);
    load(&Volume::Inline(inline(&bytes, None)), &workspace).unwrap();
    let mut wrapped = inline(&bytes, Some("in/put"));
    wrapped.contents.insert_str(10, "\r\n");
    load(&Volume::Inline(wrapped), &workspace).unwrap();
    for path in ["a.txt", "in/put/a.txt"] {
        assert_eq!(read(&workspace, path), "a");
    }
    assert_eq!(read(&workspace, "in/put/d/b.txt"), "b");
    let bad = Volume::Inline(InlineVolume { contents: "no base64!".into(), relative_path: None });
    assert!(matches!(load(&bad, &workspace), Err(VolumeError::Base64(_))));
    let error = load(&Volume::Inline(inline(b"no zip", None)), &workspace).unwrap_err();
    assert!(error.to_string().starts_with("not a readable zip archive"), "{error}");
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn files_and_zips_come_by_their_address_and_later_volumes_replace_files() {
    let bench = Bench::new();
    let server = Server::start(|request| match request.path.as_str() {
        "/a.zip?x=1" => Reply::ok(zip(&[("f.bin", "of the zip"), ("g", "g")])),
        _ => Reply::ok("of the file"),
    });
    let workspace = bench.workspace();
    let volumes = vec![
        SingleVolume::ZipUrl(zip_url(server.url("/a.zip?x=1"), Some("z"))),
        SingleVolume::SingleFile(single_file(server.url("/f"), "z/f.bin")),
        SingleVolume::Inline(inline(&zip(&[("h", "h")]), None)),
    ];
    load(&Volume::Multi(MultiVolume { volumes }), &workspace).unwrap();
    assert_eq!(read(&workspace, "z/f.bin"), "of the file");
    assert_eq!(read(&workspace, "z/g"), "g");
    assert_eq!(read(&workspace, "h"), "h");
    load(&Volume::ZipUrl(zip_url(server.url("/a.zip?x=1"), Some("z/"))), &workspace).unwrap();
    assert_eq!(read(&workspace, "z/f.bin"), "of the zip");
    let beside: Vec<_> = fs::read_dir(workspace.private()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["job"], "the archive itself is gone");
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn paths_that_leave_the_volume_are_refused_before_anything_is_asked() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::ok("x"));
    let workspace = bench.workspace();
    let long = format!("a/{}", "b".repeat(300));
    for bad in ["../x", "/etc/x", "a/../../x", "a\\x", "C:x", &long] {
        for volume in [
            Volume::SingleFile(single_file(server.url("/"), bad)),
            Volume::ZipUrl(zip_url(server.url("/"), Some(bad))),
            Volume::Inline(inline(&zip(&[]), Some(bad))),
            Volume::Huggingface(HuggingfaceVolume { relative_path: Some(bad.into()), ..huggingface("org/m") }),
        ] {
            let error = load(&volume, &workspace).unwrap_err();
            assert!(matches!(error, VolumeError::Path(_)), "{bad}: {error}");
        }
    }
    let error = load(&Volume::SingleFile(single_file(server.url("/"), "./")), &workspace).unwrap_err();
    assert!(error.to_string().contains("names no file"), "{error}");
    assert!(server.seen().is_empty());
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn volumes_of_a_job_that_stand_in_each_others_way_are_its_own_fault_and_tell_no_path_of_the_machine() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::ok("x"));
    for (first, second) in [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c")] {
        let workspace = bench.workspace();
        let volumes = [first, second].map(|path| SingleVolume::SingleFile(single_file(server.url("/"), path))).into();
        let error = load(&Volume::Multi(MultiVolume { volumes }), &workspace).unwrap_err();
        assert_eq!(error.cause(), Cause::JOB, "{error}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("volume 2 of 2: cannot write {second}: ")), "{text}");
        assert!(!text.contains("phalanx-job-"), "{text}");
    }
    drop(server);
    bench.assert_clean();
}

#[test]
fn a_zip_that_climbs_out_is_refused_by_name_and_the_part_is_told() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::ok(zip(&[("fine", "x"), ("../../evil", "x")])));
    let workspace = bench.workspace();
    let volumes = vec![
        SingleVolume::Inline(inline(&zip(&[("h", "h")]), None)),
        SingleVolume::ZipUrl(zip_url(server.url("/"), None)),
    ];
    let error = load(&Volume::Multi(MultiVolume { volumes }), &workspace).unwrap_err().to_string();
    assert_eq!(error, "volume 2 of 2: zip entry \"../../evil\": it climbs with ..");
    assert!(!workspace.private().join("evil").exists() && !workspace.volume().join("fine").exists());
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn broken_connections_and_5xx_are_tried_again_and_4xx_are_not() {
    let bench = Bench::new();
    let mut attempt = 0;
    let server = Server::start(move |_| {
        attempt += 1;
        match attempt {
            1 => Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".into()),
            2 => Reply::status(503),
            3 => Reply::Raw(vec![]),
            _ => Reply::ok("whole"),
        }
    });
    let workspace = bench.workspace();
    load(&Volume::SingleFile(single_file(server.url("/f"), "f")), &workspace).unwrap();
    assert_eq!((read(&workspace, "f").as_str(), server.seen().len()), ("whole", 4));
    drop(server);

    let server = Server::start(|_| Reply::Answer(403, vec![], b"not yours".to_vec()));
    let error = load(&Volume::SingleFile(single_file(server.url("/f?secret=1"), "f")), &workspace).unwrap_err();
    assert_eq!(error.to_string(), format!("{} answered 403: not yours", server.url("/f")));
    assert_eq!((server.seen().len(), error.is_timeout(), error.is_cancelled()), (1, false, false));
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn a_server_that_says_when_to_come_again_is_obeyed_and_more_often_than_others_are_asked() {
    let bench = Bench::new();
    let mut last = Instant::now() - Duration::from_secs(10);
    let mut asked = 0;
    let server = Server::start(move |_| {
        let after = last.elapsed();
        (last, asked) = (Instant::now(), asked + 1);
        assert!(after >= Duration::from_secs(1), "request {asked} came after {after:?}");
        match asked {
            7 => Reply::ok("whole"),
            n => Reply::Answer(if n % 2 == 0 { 503 } else { 429 }, vec![("retry-after", "1".into())], vec![]),
        }
    });
    let workspace = bench.workspace();
    load(&Volume::SingleFile(single_file(server.url("/f"), "f")), &workspace).unwrap();
    assert_eq!((read(&workspace, "f").as_str(), server.seen().len()), ("whole", 7));
    drop(server);

    let server = Server::start(|_| Reply::Answer(503, vec![("retry-after", "3600".into())], vec![]));
    let volume = Volume::SingleFile(single_file(server.url("/f"), "f"));
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(600);
    let loader = VolumeLoader::new(Shutdown::new(), Hub::default(), loopback());
    let error = loader.load(&volume, &workspace, deadline).unwrap_err();
    assert!(error.to_string().ends_with("answered 503 and asks to come again after 3600 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(60) && server.seen().len() == 1);
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn a_download_that_breaks_often_goes_on_as_long_as_it_gets_on() {
    let bench = Bench::new();
    let bytes: Vec<u8> = (0..90).collect();
    let server = Server::start(move |request| {
        let range = request.header("range").map(|range| range[6..range.len() - 1].parse::<usize>().unwrap());
        let from = range.unwrap_or(0);
        let head = match range {
            None => "200 x".to_owned(),
            Some(from) => format!("206 x\r\ncontent-range: bytes {from}-89/90"),
        };
        let head = format!("HTTP/1.1 {head}\r\netag: \"a\"\r\ncontent-length: {}\r\n\r\n", 90 - from);
        Reply::Raw([head.as_bytes(), &bytes[from..(from + 10).min(90)]].concat())
    });
    let workspace = bench.workspace();
    load(&Volume::SingleFile(single_file(server.url("/f"), "f")), &workspace).unwrap();
    let expected: Vec<u8> = (0..90).collect();
    assert_eq!((fs::read(workspace.volume().join("f")).unwrap(), server.seen().len()), (expected, 9));
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn all_volumes_of_a_job_together_are_bounded() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::ok(vec![b'x'; 600]));
    let workspace = bench.workspace();
    let loader = VolumeLoader::new(Shutdown::new(), Hub::default(), loopback()).with_space(1_000);
    let file = |n: u32| SingleVolume::SingleFile(single_file(server.url("/f"), &format!("f{n}")));
    let small = SingleVolume::Inline(inline(&zip(&[("a", &"y".repeat(300))]), None));
    let volumes = vec![file(1), small.clone()];
    loader.load(&Volume::Multi(MultiVolume { volumes }), &workspace, far()).unwrap();
    for (volumes, number) in [(vec![file(1), file(2)], 2), (vec![small.clone(), small.clone(), file(1)], 3)] {
        let of = volumes.len();
        let error = loader.load(&Volume::Multi(MultiVolume { volumes }), &workspace, far()).unwrap_err();
        let room = "all volumes of the job together have more than the 1000 bytes that there is room for";
        assert_eq!(error.to_string(), format!("volume {number} of {of}: {room}"));
        assert_eq!(error.cause(), Cause::JOB);
    }
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn a_server_that_stays_broken_is_given_up() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::Answer(500, vec![], b"still".to_vec()));
    let workspace = bench.workspace();
    let error = load(&Volume::SingleFile(single_file(server.url("/f"), "f")), &workspace).unwrap_err();
    assert!(error.to_string().ends_with("answered 500: still"), "{error}");
    assert_eq!(server.seen().len(), 5);
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn volumes_come_from_global_addresses_unless_more_is_open() {
    let bench = Bench::new();
    let server = hub_server();
    let workspace = bench.workspace();
    let hub = Hub { endpoint: server.url(""), token: None };
    let loader = VolumeLoader::new(Shutdown::new(), hub, Reach::default());
    for volume in [
        Volume::SingleFile(single_file(server.url("/f"), "f")),
        Volume::ZipUrl(zip_url(server.url("/f"), None)),
        Volume::Huggingface(huggingface("org/model")),
    ] {
        let error = loader.load(&volume, &workspace, far()).unwrap_err().to_string();
        assert!(error.starts_with("jobs may not reach 127.0.0.1: "), "{error}");
    }
    assert!(server.seen().is_empty());
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn the_deadline_and_a_cancel_end_a_download_that_hangs() {
    let bench = Bench::new();
    let hang = || Server::start(|_| Reply::Hang(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".into()));
    let server = hang();
    let workspace = bench.workspace();
    let volume = Volume::SingleFile(single_file(server.url("/f"), "f"));
    let loader = VolumeLoader::new(Shutdown::new(), Hub::default(), loopback());
    let error = loader.load(&volume, &workspace, Instant::now() + Duration::from_millis(300)).unwrap_err();
    assert!(error.is_timeout() && !error.is_cancelled(), "{error}");
    drop(server);

    let server = hang();
    let volume = Volume::SingleFile(single_file(server.url("/f"), "f"));
    let token = Shutdown::new();
    let (arrivals, canceller) = (server.arrivals(), token.clone());
    let thread = spawn("t-cancel", Kick::dropped("the server"), move || {
        arrivals.recv().unwrap();
        canceller.cancel();
    });
    let error = VolumeLoader::new(token, Hub::default(), loopback()).load(&volume, &workspace, far()).unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    thread.join_by(far()).unwrap();
    drop((workspace, server));
    bench.assert_clean();
}

fn huggingface(repo_id: &str) -> HuggingfaceVolume {
    HuggingfaceVolume {
        repo_id: repo_id.into(),
        repo_type: None,
        revision: None,
        relative_path: None,
        allow_patterns: None,
        token: None,
    }
}

fn hub_server() -> Server {
    Server::start(|request| match request.path.as_str() {
        "/api/models/org/model/revision/main" | "/api/datasets/org/data/revision/refs%2Fpr%2F1" => {
            let names = ["config.json", "a/x.bin", "a/ż 1.json", "README.md"];
            let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({"rfilename": name})).collect();
            Reply::ok(serde_json::json!({"sha": "c0ffee", "siblings": siblings}).to_string())
        }
        "/api/models/org/evil/revision/main" => {
            Reply::ok(r#"{"sha": "c0ffee", "siblings": [{"rfilename": "../../evil"}]}"#)
        }
        path if path.contains("/resolve/c0ffee/") => Reply::ok(path.to_owned()),
        _ => Reply::Answer(404, vec![], b"Repository not found".to_vec()),
    })
}

fn load_from(
    server: &Server,
    token: Option<&str>,
    volume: HuggingfaceVolume,
    to: &Workspace,
) -> Result<u64, VolumeError> {
    let hub = Hub { endpoint: server.url(""), token: token.map(Into::into) };
    VolumeLoader::new(Shutdown::new(), hub, loopback()).load(&Volume::Huggingface(volume), to, far())
}

#[test]
fn a_repository_comes_whole_at_one_commit() {
    let bench = Bench::new();
    let server = hub_server();
    let workspace = bench.workspace();
    load_from(&server, Some("hf_default"), huggingface("org/model"), &workspace).unwrap();
    assert_eq!(read(&workspace, "config.json"), "/org/model/resolve/c0ffee/config.json");
    assert_eq!(read(&workspace, "a/ż 1.json"), "/org/model/resolve/c0ffee/a/%C5%BC%201.json");
    let seen = server.seen();
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|request| request.header("authorization") == Some("Bearer hf_default")));
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn patterns_revision_kind_path_and_token_are_followed() {
    let bench = Bench::new();
    let server = hub_server();
    let workspace = bench.workspace();
    let volume = HuggingfaceVolume {
        repo_type: Some("dataset".into()),
        revision: Some("refs/pr/1".into()),
        relative_path: Some("m".into()),
        allow_patterns: Some(AllowPatterns::Any(vec!["*.json".into(), "a/*.bin".into()])),
        token: Some("hf_x".into()),
        ..huggingface("org/data")
    };
    load_from(&server, Some("hf_default"), volume.clone(), &workspace).unwrap();
    assert_eq!(read(&workspace, "m/a/x.bin"), "/datasets/org/data/resolve/c0ffee/a/x.bin");
    assert_eq!(read(&workspace, "m/config.json"), "/datasets/org/data/resolve/c0ffee/config.json");
    assert!(!workspace.volume().join("m/README.md").exists());
    assert!(server.seen().iter().all(|request| request.header("authorization") == Some("Bearer hf_x")));

    let one = AllowPatterns::One("README*".into());
    let volume = HuggingfaceVolume { allow_patterns: Some(one), token: None, ..volume };
    let other = bench.workspace();
    load_from(&server, None, volume, &other).unwrap();
    let names: Vec<_> =
        fs::read_dir(other.volume().join("m")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["README.md"]);
    assert_eq!(server.seen().last().unwrap().header("authorization"), None);
    drop((workspace, other, server));
    bench.assert_clean();
}

#[test]
fn repositories_that_are_not_there_or_not_honest_are_refused() {
    let bench = Bench::new();
    let server = hub_server();
    let workspace = bench.workspace();
    let error = load_from(&server, None, huggingface("org/none"), &workspace).unwrap_err();
    assert!(error.to_string().ends_with("answered 404: Repository not found"), "{error}");
    let error = load_from(&server, None, huggingface("org/evil"), &workspace).unwrap_err();
    assert!(matches!(error, VolumeError::Path(_)), "{error}");
    let asked = server.seen().len();
    let error = load_from(&server, None, huggingface("../../etc"), &workspace).unwrap_err();
    assert!(error.to_string().contains("like owner/name"), "{error}");
    let kind = HuggingfaceVolume { repo_type: Some("thing".into()), ..huggingface("org/model") };
    let error = load_from(&server, None, kind, &workspace).unwrap_err();
    assert!(error.to_string().contains("model, dataset or space"), "{error}");
    assert_eq!(server.seen().len(), asked);
    drop((workspace, server));
    bench.assert_clean();
}
