//! Uploads of every kind arrive exactly at a real server, and nothing outside the output folder is ever sent.

use crate::testkit::http;
use crate::testkit::job;
use crate::testkit::wait::far;
use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use http::{Reply, Request, Server, loopback};
use job::Bench;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::executor::runner::Runner;
use phalanx::executor::runner::process::ProcessRunner;
use phalanx::executor::uploads::{OUTPUT_FILES, UploadError, Uploader};
use phalanx::executor::workspace::Workspace;
use phalanx::net::reach::Reach;
use phalanx::ops::cause::Cause;
use phalanx::protocol::{
    MultiUpload, OutputUpload, SingleFilePostUpload, SingleFilePutUpload, SingleFileUpload, StrMap,
    ZipAndHttpPostUpload, ZipAndHttpPutUpload, ZipUpload,
};

fn map(pairs: &[(&str, &str)]) -> Option<StrMap> {
    Some(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn put(url: String, path: &str) -> SingleFilePutUpload {
    SingleFilePutUpload { url, relative_path: path.into(), signed_headers: None }
}

fn upload(upload: &OutputUpload, workspace: &Workspace) -> Result<StrMap, UploadError> {
    Uploader::new(Shutdown::new(), loopback()).upload(upload, workspace, far()).map(|uploaded| uploaded.results)
}

/// A workspace whose job has left files, folders, and traps.
fn filled(bench: &Bench) -> Workspace {
    let workspace = bench.workspace();
    let job = bench
        .sh("echo out; echo err >&2; mkdir -p output/d/e; printf 'a\\000b' > output/d/e/f.bin; echo o > output/o.txt");
    ProcessRunner::default().run(&job, &workspace, &Shutdown::new(), far()).unwrap();
    fs::write(workspace.private().join("secret"), "secret").unwrap();
    symlink("../../secret", workspace.output().join("link")).unwrap();
    symlink("../../", workspace.output().join("folder-link")).unwrap();
    workspace
}

/// Names and contents of an archive.
fn unzipped(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    (0..zip.len())
        .map(|n| {
            let mut entry = zip.by_index(n).unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.name().to_owned(), content)
        })
        .collect()
}

fn all_files() -> Vec<(String, Vec<u8>)> {
    [("d/e/f.bin", "a\0b"), ("o.txt", "o\n"), ("stderr.txt", "err\n"), ("stdout.txt", "out\n")]
        .map(|(name, content)| (name.to_owned(), content.as_bytes().to_vec()))
        .into()
}

/// The parts of a form: their headers and contents.
fn parts(request: &Request) -> Vec<(String, Vec<u8>)> {
    let boundary = request.header("content-type").unwrap().split_once("boundary=").unwrap().1;
    let (open, close) = (format!("--{boundary}\r\n"), format!("\r\n--{boundary}"));
    let mut rest = request.body.as_slice();
    let mut parts = Vec::new();
    while let Some(part) = rest.strip_prefix(open.as_bytes()) {
        let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|w| w == what).unwrap();
        let head = find(part, b"\r\n\r\n");
        let end = find(part, close.as_bytes());
        parts.push((String::from_utf8(part[..head].to_vec()).unwrap(), part[head + 4..end].to_vec()));
        rest = &part[end + 2..];
    }
    assert_eq!(rest, format!("--{boundary}--\r\n").as_bytes());
    parts
}

#[test]
fn a_zip_goes_by_put_and_the_answer_comes_back_as_json() {
    let bench = Bench::new();
    let server = Server::start(|_| {
        Reply::Answer(201, vec![("ETag", "\"x\"".into()), ("X-A", "1".into()), ("x-a", "2".into())], b"stored".to_vec())
    });
    let workspace = filled(&bench);
    let to = OutputUpload::ZipAndHttpPut(ZipAndHttpPutUpload { url: server.url("/u?signature=1") });
    let results = upload(&to, &workspace).unwrap();
    let seen = server.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("PUT", "/u?signature=1"));
    assert_eq!(seen[0].header("content-length"), Some(seen[0].body.len().to_string().as_str()));
    assert_eq!(unzipped(&seen[0].body), all_files());
    assert_eq!(results.keys().collect::<Vec<_>>(), ["output.zip"]);
    let answer: serde_json::Value = serde_json::from_str(&results["output.zip"]).unwrap();
    let expected =
        serde_json::json!({"headers": {"content-length": "6", "etag": "\"x\"", "x-a": "1, 2"}, "body": "stored"});
    assert_eq!(answer, expected);
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn of_a_large_answer_the_beginning_is_kept() {
    let bench = Bench::new();
    // Two bytes a character, after one, so that the limit falls into a character.
    let page = |request: &Request| {
        let characters = if request.path == "/exact" { 32 << 10 } else { 200_000 };
        Reply::ok(["", "x"][usize::from(request.path == "/large")].to_owned() + &"ä".repeat(characters))
    };
    let server = Server::start(page);
    let workspace = filled(&bench);
    let body_of = |path: &str| {
        let to = OutputUpload::SingleFilePut(put(server.url(path), "o.txt"));
        let results = upload(&to, &workspace).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&results["o.txt"]).unwrap();
        answer["body"].as_str().unwrap().to_owned()
    };
    assert_eq!(body_of("/exact"), "ä".repeat(32 << 10));
    let kept = format!("x{}… [truncated: the answer has 400001 bytes]", "ä".repeat((32 << 10) - 1));
    assert!(body_of("/large") == kept);
    // Many answers share what a result has room for.
    let name = |n: usize| format!("o{n}.txt");
    (0..200).for_each(|n| fs::write(workspace.output().join(name(n)), "x").unwrap());
    let uploads = (0..200).map(|n| SingleFileUpload::Put(put(server.url("/many"), &name(n)))).collect();
    let results = upload(&OutputUpload::Multi(MultiUpload { uploads, system_output: None }), &workspace).unwrap();
    assert_eq!(results.len(), 200);
    let bytes: usize = results.values().map(String::len).sum();
    assert!((1 << 20..3 << 20).contains(&bytes), "{bytes}");
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn a_zip_goes_by_post_after_the_form_s_fields() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::status(204));
    let workspace = filled(&bench);
    let form_fields = map(&[("key", "a/b"), ("x-amz", "ż")]);
    let to = OutputUpload::ZipAndHttpPost(ZipAndHttpPostUpload { url: server.url("/p"), form_fields });
    assert_eq!(upload(&to, &workspace).unwrap().keys().collect::<Vec<_>>(), ["output.zip"]);
    let parts = parts(&server.seen()[0]);
    let plain = |name: &str| format!("content-disposition: form-data; name=\"{name}\"");
    assert_eq!(parts[..2], [(plain("key"), b"a/b".to_vec()), (plain("x-amz"), "ż".as_bytes().to_vec())]);
    let head = format!("{}; filename=\"output.zip\"\r\ncontent-type: application/zip", plain("file"));
    assert_eq!((parts.len(), &parts[2].0), (3, &head));
    assert_eq!(unzipped(&parts[2].1), all_files());
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn single_files_go_exactly_with_their_signed_headers() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::ok("ok"));
    let workspace = filled(&bench);
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n * 31 / 8) as u8).collect();
    fs::write(workspace.output().join("big.bin"), &bytes).unwrap();
    let signed_headers = map(&[("X-H", "1"), ("content-type", "image/png")]);
    let to = SingleFilePutUpload { signed_headers: signed_headers.clone(), ..put(server.url("/t"), "big.bin") };
    let results = upload(&OutputUpload::SingleFilePut(to), &workspace).unwrap();
    assert_eq!(results.keys().collect::<Vec<_>>(), ["big.bin"]);
    let to = SingleFilePostUpload {
        url: server.url("/s"),
        form_fields: map(&[("k", "v")]),
        relative_path: "d/e/f.bin".into(),
        signed_headers: map(&[("X-H", "1")]),
    };
    let results = upload(&OutputUpload::SingleFilePost(to), &workspace).unwrap();
    assert_eq!(results.keys().collect::<Vec<_>>(), ["d/e/f.bin"]);
    let seen = server.seen();
    assert!(seen[0].body == bytes);
    assert_eq!((seen[0].header("x-h"), seen[0].header("content-type")), (Some("1"), Some("image/png")));
    let parts = parts(&seen[1]);
    assert_eq!((seen[1].method.as_str(), seen[1].header("x-h"), parts.len()), ("POST", Some("1"), 2));
    assert!(parts[1].0.contains("name=\"file\"; filename=\"f.bin\""), "{}", parts[1].0);
    assert_eq!(parts[1].1, b"a\0b");
    drop((workspace, server));
    bench.assert_clean();
}

fn multi(server: &Server, files: &[&str], system_output: bool) -> OutputUpload {
    let uploads = files.iter().map(|file| SingleFileUpload::Put(put(server.url(&format!("/{file}")), file))).collect();
    let zip = ZipUpload::Put(ZipAndHttpPutUpload { url: server.url("/system") });
    OutputUpload::Multi(MultiUpload { uploads, system_output: system_output.then_some(zip) })
}

#[test]
fn a_multi_upload_sends_each_file_and_the_rest_as_system_output() {
    let bench = Bench::new();
    let server = Server::start(|request| Reply::ok(request.path.clone()));
    let workspace = filled(&bench);
    let results = upload(&multi(&server, &["o.txt", "d/e/f.bin"], true), &workspace).unwrap();
    assert_eq!(results.keys().collect::<Vec<_>>(), ["o.txt", "d/e/f.bin", "system_output"]);
    assert_eq!(results["o.txt"], r#"{"headers":{"content-length":"6"},"body":"/o.txt"}"#);
    let seen = server.seen();
    assert_eq!((seen[0].body.as_slice(), seen[1].body.as_slice()), (b"o\n".as_slice(), b"a\0b".as_slice()));
    assert_eq!(unzipped(&seen[2].body), all_files()[2..], "what was sent apart is not sent again");
    assert!(upload(&multi(&server, &[], false), &workspace).unwrap().is_empty());
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn a_file_that_is_missing_climbs_or_hides_behind_a_link_sends_nothing_at_all() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::ok(""));
    let workspace = filled(&bench);
    for (bad, says) in [
        ("missing", "No such file"),
        ("../../secret", "climbs"),
        ("/etc/passwd", "absolute"),
        ("link", "symbolic link"),
        ("folder-link/secret", "Not a directory"),
        ("d", "not a regular file"),
    ] {
        let error = upload(&multi(&server, &["o.txt", bad], true), &workspace).unwrap_err().to_string();
        assert!(error.contains(&format!("{bad:?}")) && error.contains(says), "{bad}: {error}");
    }
    fs::remove_dir_all(workspace.output()).unwrap();
    symlink("/etc", workspace.output()).unwrap();
    assert!(matches!(upload(&multi(&server, &[], true), &workspace), Err(UploadError::Pack(_))));
    assert!(server.seen().is_empty());
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn outputs_go_to_global_addresses_unless_more_is_open() {
    let bench = Bench::new();
    let workspace = filled(&bench);
    let server = Server::start(|_| Reply::ok(""));
    let to = multi(&server, &["o.txt"], true);
    let error =
        Uploader::new(Shutdown::new(), Reach::default()).upload(&to, &workspace, far()).unwrap_err().to_string();
    assert!(error.starts_with("upload of o.txt: jobs may not reach 127.0.0.1: "), "{error}");
    assert!(server.seen().is_empty());
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn too_many_files_are_refused() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    for n in 0..=OUTPUT_FILES {
        fs::File::create(workspace.output().join(n.to_string())).unwrap();
    }
    let to = OutputUpload::ZipAndHttpPut(ZipAndHttpPutUpload { url: "http://127.0.0.1:1/".into() });
    let error = upload(&to, &workspace).unwrap_err().to_string();
    assert_eq!(error, "cannot pack the output: there are more than 10000 files");
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn a_refusal_is_reported_at_once_and_a_failure_is_tried_again_with_the_whole_body() {
    let bench = Bench::new();
    let workspace = filled(&bench);
    let server = Server::start(|_| Reply::Answer(403, vec![], b"<Error>expired</Error>".to_vec()));
    let error = upload(&multi(&server, &["o.txt"], false), &workspace).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("upload of o.txt: {} answered 403: <Error>expired</Error>", server.url("/o.txt"))
    );
    assert_eq!(server.seen().len(), 1);
    drop(server);

    let mut attempt = 0;
    let server = Server::start(move |_| {
        attempt += 1;
        if attempt < 3 { Reply::status(502) } else { Reply::ok("") }
    });
    let to = OutputUpload::ZipAndHttpPost(ZipAndHttpPostUpload { url: server.url("/p"), form_fields: None });
    upload(&to, &workspace).unwrap();
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!(unzipped(&parts(&seen[2])[0].1), all_files());
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn signed_fields_go_as_they_are_signed_and_a_false_length_is_no_reason_to_try_again() {
    let bench = Bench::new();
    let workspace = filled(&bench);
    let server = Server::start(|_| Reply::ok(""));
    let host = server.url("").replace("http://", "");
    let single = |signed: &[(&str, &str)], post: bool| {
        let (url, relative_path, signed_headers) = (server.url("/o"), "o.txt".to_owned(), map(signed));
        let upload = match post {
            true => {
                let form_fields = None;
                SingleFileUpload::Post(SingleFilePostUpload { url, form_fields, relative_path, signed_headers })
            }
            false => SingleFileUpload::Put(SingleFilePutUpload { url, relative_path, signed_headers }),
        };
        OutputUpload::Multi(MultiUpload { uploads: vec![upload], system_output: None })
    };
    let put = [("content-LENGTH", "2"), ("Content-Type", "text/plain"), ("HOST", host.as_str())];
    upload(&single(&put, false), &workspace).unwrap();
    upload(&single(&[("content-type", "x/y"), ("host", &host)], true), &workspace).unwrap();
    let seen = server.seen();
    assert_eq!((seen.len(), seen[0].body.as_slice()), (2, b"o\n".as_slice()));
    for (request, name, value) in
        [(&seen[0], "content-length", "2"), (&seen[0], "content-type", "text/plain"), (&seen[1], "content-type", "x/y")]
    {
        let values: Vec<_> = request.headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect();
        assert_eq!(values, [value], "{name}");
    }
    for (signed, says) in [
        (("Content-Length", "6"), "the field Content-Length is given as \"6\" and the body has 2 bytes"),
        (("transfer-encoding", "chunked"), "the field transfer-encoding may not be set"),
        (("Host", "elsewhere.example"), "the field Host is given as \"elsewhere.example\""),
    ] {
        let error = upload(&single(&[signed], false), &workspace).unwrap_err();
        assert!(error.to_string().contains(says) && error.cause() == Cause::JOB, "{error}");
    }
    assert_eq!(server.seen().len(), 2);
    drop((workspace, server));
    bench.assert_clean();
}

#[test]
fn the_deadline_and_a_cancel_end_an_upload_that_hangs() {
    let bench = Bench::new();
    let workspace = filled(&bench);
    let server = Server::start(|_| Reply::Hang(vec![]));
    let deadline = Instant::now() + Duration::from_millis(300);
    let to = multi(&server, &["o.txt"], false);
    let error = Uploader::new(Shutdown::new(), loopback()).upload(&to, &workspace, deadline).unwrap_err();
    assert!(error.is_timeout() && !error.is_cancelled(), "{error}");
    drop(server);

    let server = Server::start(|_| Reply::Hang(vec![]));
    let token = Shutdown::new();
    let (arrivals, canceller) = (server.arrivals(), token.clone());
    let thread = spawn("t-cancel", Kick::dropped("the server"), move || {
        arrivals.recv().unwrap();
        canceller.cancel();
    });
    let error =
        Uploader::new(token, loopback()).upload(&multi(&server, &["o.txt"], true), &workspace, far()).unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    thread.join_by(far()).unwrap();
    drop((workspace, server));
    bench.assert_clean();
}
