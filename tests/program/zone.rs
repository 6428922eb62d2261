//! The times of files in the archive of a job's output, beside those that Python's `zipfile` writes in the same zone.

use std::io::Cursor;
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;

use crate::process::{Network, result};
use crate::testkit::http::{Reply, Server};
use crate::testkit::process::run;

/// Moments in winter, in summer, and in the hour that a zone has twice.
const TIMES: [i64; 3] = [1_705_320_001, 1_720_872_002, 1_698_541_200];

/// Packs files of these times, and prints the time of each as `zipfile` reads it.
const PYTHON: &str = "
import os, sys, tempfile, zipfile
with tempfile.TemporaryDirectory() as folder:
    with zipfile.ZipFile(folder + '/a.zip', 'w') as archive:
        for time in map(int, sys.argv[1:]):
            path = f'{folder}/{time}'
            open(path, 'w').close()
            os.utime(path, (time, time))
            archive.write(path, str(time))
    for entry in zipfile.ZipFile(folder + '/a.zip').infolist():
        print('%d-%02d-%02d %02d:%02d:%02d' % entry.date_time)
";

#[test]
fn files_in_the_archive_have_the_times_that_the_python_executor_writes_in_its_zone() {
    for zone in ["Asia/Kolkata", "America/New_York", "XYZ-3:30"] {
        let python = Command::new("python3")
            .args(["-c", PYTHON])
            .args(TIMES.map(|time| time.to_string()))
            .env("TZ", zone)
            .output();
        let python = python.expect("python3");
        assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
        let written = String::from_utf8(python.stdout).unwrap();

        let server = Server::start(|_| Reply::ok("stored"));
        let ours = env!("CARGO_BIN_EXE_phalanx");
        let command =
            format!("env TZ={zone} '{ours}' executor --runner process --startup-time-limit {{startup_seconds}}");
        let arguments = ["--runner", "process", "--reach", "127.0.0.0/8", "--executor-command", &command];
        let network = Network::start_with(false, &arguments);
        let script = TIMES.map(|time| format!("touch -d @{time} output/{time}")).join(" && ");
        let job = json!({
            "executor_class": "always_on.test",
            "docker_image": "x",
            "args": ["sh", "-c", script],
            "output_upload": {"output_upload_type": "zip_and_http_put", "url": server.url("/o")},
        });
        let submitted = run(&mut network.submit(&job.to_string()));
        let ended = result(&submitted.stdout);
        assert_eq!(ended["status"], "completed", "{ended}");
        let body = server.seen().pop().expect("an upload").body;
        let mut archive = zip::ZipArchive::new(Cursor::new(body)).unwrap();
        let times = TIMES.map(|time| archive.by_name(&time.to_string()).unwrap().last_modified().unwrap().to_string());
        assert_eq!(times.to_vec(), written.lines().collect::<Vec<_>>(), "{zone}");
        assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
    }
}
