//! `phalanx tree`, which removes what jobs have left, as a process of its own: with few descriptors, at any depth, and
//! of other owners.

use crate::testkit::engine::{IMAGE, docker, ready};
use crate::testkit::process;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use process::{Finished, in_scratch, phalanx, run};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use serde_json::Value;

/// A user that is neither root nor anybody.
const USER: u32 = 12345;

fn tree(scratch: &Path, arguments: &[&str]) -> Finished {
    let program = env!("CARGO_BIN_EXE_phalanx");
    // A shell sets the limit, because ours is that of all tests.
    let script = "ulimit -n 64; exec \"$0\" \"$@\"";
    let mut command = in_scratch(Command::new("sh"), scratch);
    run(command.args(["-c", script, program, "tree"]).args(arguments))
}

/// Folders in folders, with names of 255 bytes that are no UTF-8.
fn deep(path: &Path, levels: usize) {
    let name: Vec<u8> = b"\xff\xfe\n".iter().copied().cycle().take(255).collect();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut folder = openat(rustix::fs::CWD, path, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&folder, &name[..], Mode::RWXU).unwrap();
        folder = openat(&folder, &name[..], flags, Mode::empty()).unwrap();
    }
}

/// In memory, where a folder costs microseconds; on a disk that may be milliseconds.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

#[test]
fn a_tree_of_100_000_levels_is_measured_and_removed_with_64_descriptors() {
    let scratch = tempfile::tempdir().unwrap();
    // A recursive removal, as that of the temporary folder after a failure, would overflow the stack.
    let kept = in_memory().keep();
    let path = kept.join("deep");
    fs::create_dir(&path).unwrap();
    deep(&path, 100_000);
    let path = path.to_str().unwrap();
    let measured = tree(scratch.path(), &["measure", path]);
    assert_eq!(measured.code, Some(0), "{measured:?}");
    let size: Value = serde_json::from_str(&measured.stdout).unwrap();
    assert_eq!((size["entries"].as_u64(), size["closed"].as_u64()), (Some(100_000), Some(0)));
    let removed = tree(scratch.path(), &["remove", path]);
    assert_eq!((removed.code, removed.stderr.as_str()), (Some(0), ""));
    fs::remove_dir(&kept).expect("nothing is left");
}

#[test]
fn a_tree_of_many_entries_is_removed_and_a_limit_is_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = in_memory();
    let path = folder.path().join("wide");
    fs::create_dir(&path).unwrap();
    // A million takes a minute: PHALANX_TEST_ENTRIES=1000000.
    let entries: u64 = std::env::var("PHALANX_TEST_ENTRIES").map_or(50_000, |n| n.parse().unwrap());
    for n in 0..entries {
        fs::write(path.join(n.to_string()), []).unwrap();
    }
    let path = path.to_str().unwrap();
    let late = tree(scratch.path(), &["remove", path, "--within", "0s"]);
    assert_eq!(late.code, Some(1), "{late:?}");
    assert!(late.stderr.contains("it took too long"), "{late:?}");
    let size: Value = serde_json::from_str(&tree(scratch.path(), &["measure", path]).stdout).unwrap();
    assert_eq!(size["entries"].as_u64(), Some(entries));
    assert_eq!(tree(scratch.path(), &["remove", path]).code, Some(0));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// What lets a test be a plain user of the engine; says loudly if that is not to be had.
fn plain_user() -> Option<Vec<String>> {
    let socket = fs::metadata("/var/run/docker.sock");
    let engine = Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).output();
    let why = match (&socket, engine) {
        _ if !rustix::process::geteuid().is_root() => "only root can become another user",
        (Ok(_), Ok(answer)) if answer.status.success() => {
            let group = socket.unwrap().gid().to_string();
            let user = USER.to_string();
            let prefix = ["setpriv", "--reuid", &user, "--regid", &user, "--groups", &group];
            return Some(prefix.map(str::to_owned).into());
        }
        _ => "no docker engine answers on its socket",
    };
    assert!(std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"), "the test cannot run: {why}");
    // Not with a macro, whose output the test harness keeps to itself.
    let text = format!("SKIPPED: files of other owners: {why}\n");
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    None
}

/// A copy of the binary where anybody may run it, and a folder for its temporary files that is the user's.
fn place_of_user() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("phalanx");
    fs::copy(env!("CARGO_BIN_EXE_phalanx"), &program).unwrap();
    // The helper's image is named by it, so that there is one for each build, not for each test.
    let built = fs::metadata(env!("CARGO_BIN_EXE_phalanx")).unwrap().modified().unwrap();
    fs::File::options().write(true).open(&program).unwrap().set_modified(built).unwrap();
    let scratch = place.path().join("tmp");
    fs::create_dir(&scratch).unwrap();
    chown(&scratch, Some(USER), Some(USER)).unwrap();
    (place, program, scratch)
}

#[test]
fn a_folder_that_a_plain_user_may_read_and_not_search_is_counted_and_the_rest_is_removed() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none_or(|v| v != "1"), "only root can become another");
        std::io::stderr().write_all(b"SKIPPED: folders of other owners: only root can become another user\n").unwrap();
        return;
    }
    let (_place, program, scratch) = place_of_user();
    let folder = scratch.join("left");
    for n in 0..20 {
        let path = folder.join(n.to_string());
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("file"), vec![7; 10_000]).unwrap();
        match n {
            10 => fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap(),
            _ => chown(path, Some(USER), Some(USER)).unwrap(),
        }
    }
    chown(&folder, Some(USER), Some(USER)).unwrap();
    let as_user = |operation: &str| {
        let user = USER.to_string();
        let mut command = in_scratch(Command::new("setpriv"), &scratch);
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(&program);
        run(command.args(["tree", operation, folder.to_str().unwrap()]).env("HOME", &scratch))
    };
    let measured = as_user("measure");
    assert_eq!(measured.code, Some(0), "{measured:?}");
    let size: Value = serde_json::from_str(&measured.stdout).unwrap();
    assert_eq!((size["entries"].as_u64(), size["closed"].as_u64()), (Some(39), Some(1)), "{size}");
    assert!(size["bytes"].as_u64() > Some(190_000), "{size}");
    let removed = as_user("remove");
    assert_eq!(removed.code, Some(1), "{removed:?}");
    assert!(removed.stderr.contains("Permission denied"), "{removed:?}");
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["10"], "{removed:?}");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn files_of_root_are_removed_by_a_plain_user_of_the_engine() {
    let Some(prefix) = plain_user() else { return };
    let (_place, program, scratch) = place_of_user();
    let folder = scratch.join("left");
    fs::create_dir_all(folder.join("job/output/locked")).unwrap();
    chown(&folder, Some(USER), Some(USER)).unwrap();
    let locked = folder.join("job/output/locked");
    fs::write(locked.join("file"), "x").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", locked.join("link")).unwrap();
    for path in [locked.join("file"), locked.clone(), folder.join("job")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let as_user = |arguments: &[&str]| {
        let mut command = in_scratch(Command::new(&prefix[0]), &scratch);
        command.args(&prefix[1..]).arg(&program).args(["tree", "remove", folder.to_str().unwrap()]);
        run(command.args(arguments).env("HOME", &scratch))
    };
    let alone = as_user(&[]);
    assert_eq!(alone.code, Some(1), "{alone:?}");
    assert!(alone.stderr.contains("left/job: "), "{alone:?}");
    let job = uuid::Uuid::new_v4().to_string();
    let removed = as_user(&["--container", "--label", &format!("phalanx.job={job}")]);
    assert_eq!(removed.code, Some(0), "{removed:?}");
    assert!(!folder.exists());
    assert!(Path::new("/etc/passwd").exists());
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "temporary files are left");
    let filter = format!("label=phalanx.job={job}");
    let containers = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output().unwrap();
    assert_eq!(String::from_utf8(containers.stdout).unwrap(), "", "a container is left");
}

#[test]
fn who_makes_a_helper_s_image_removes_those_of_other_versions() {
    let Some(prefix) = plain_user() else { return };
    if !ready() {
        return;
    }
    let (_place, program, scratch) = place_of_user();
    // Another build, as far as the name of its image goes.
    fs::File::options().write(true).open(&program).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    let file = fs::metadata(&program).unwrap();
    let own = format!("phalanx-helper:{}-{:x}-{:x}", env!("CARGO_PKG_VERSION"), file.size(), file.mtime());
    let run_id = uuid::Uuid::new_v4().simple().to_string();
    let mut all = Images(vec![own.clone()]);
    let mut image = |repository: &str, name: &str, change: &str| {
        let name = format!("{repository}:test-{run_id}-{name}");
        all.0.push(name.clone());
        let made = docker(&["create", IMAGE, "true"]).unwrap();
        // The second makes them different images.
        docker(&["commit", "--change", change, "--change", &format!("ENV N={name}"), &made, &name]).unwrap();
        docker(&["rm", &made]).unwrap();
        name
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (helper, label) = ("phalanx-helper", |made: u64| format!("LABEL phalanx.helper={made}"));
    let young = image(helper, "young", &label(now));
    let old = image(helper, "old", &label(now - 90_000));
    let used = image(helper, "used", &label(now - 90_000));
    let odd = image(helper, "odd", &label(u64::MAX));
    // Whoever makes an image may give it any label.
    let foreign = image("phalanx-test", "foreign", &label(now - 90_000));
    let others = image(helper, "others", "LABEL phalanx.other=1");
    let container = Container(docker(&["create", &used, "true"]).unwrap());

    let folder = scratch.join("left");
    fs::create_dir_all(folder.join("job")).unwrap();
    chown(&folder, Some(USER), Some(USER)).unwrap();
    fs::set_permissions(folder.join("job"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = in_scratch(Command::new(&prefix[0]), &scratch);
    command.args(&prefix[1..]).arg(&program).args(["tree", "remove", folder.to_str().unwrap(), "--container"]);
    let removed = run(command.env("HOME", &scratch));
    let here = |image: &String| docker(&["image", "inspect", image]).is_ok();
    assert_eq!(removed.code, Some(0), "{removed:?}");
    assert_eq!([&young, &used, &odd, &foreign, &others, &own].map(here), [true; 6], "{removed:?}");
    assert!(!here(&old), "{removed:?}");
    drop(container);
}

/// Images that go when dropped, those that are here.
struct Images(Vec<String>);

impl Drop for Images {
    fn drop(&mut self) {
        for image in &self.0 {
            // Some are gone, or were never made.
            let _ = docker(&["rmi", image]);
            assert!(std::thread::panicking() || docker(&["image", "inspect", image]).is_err(), "{image} is left");
        }
    }
}

/// A container that goes when dropped.
struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        let removed = docker(&["rm", "--force", &self.0]);
        assert!(std::thread::panicking() || removed.is_ok(), "{removed:?}");
    }
}

#[test]
fn jobs_that_write_as_root_complete_at_a_plain_user_of_the_engine() {
    let Some(prefix) = plain_user() else { return };
    let (_place, program, scratch) = place_of_user();
    let mut command = in_scratch(Command::new(&prefix[0]), &scratch);
    command.args(&prefix[1..]).arg(&program).args(["demo", "--json", "--runner", "docker", "--jobs", "5"]);
    let finished = run(command.env("HOME", &scratch));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    process::nothing_left(&scratch);
}

#[test]
fn an_operation_that_cannot_be_done_says_so_in_one_line() {
    let scratch = tempfile::tempdir().unwrap();
    let missing = scratch.path().join("missing");
    let answer = |operation| run(phalanx(scratch.path()).args(["tree", operation]).arg(&missing));
    assert_eq!(answer("remove").code, Some(0), "what is not there is removed");
    for operation in ["measure", "own"] {
        let answer = answer(operation);
        assert_eq!(answer.code, Some(1));
        assert!(answer.stderr.contains("missing: No such file") && answer.stderr.lines().count() == 1, "{answer:?}");
    }
}
