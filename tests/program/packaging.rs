//! What is in `packaging/`: its flags, variables and settings are those of the program, and what it makes runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::service::{UNITS, arguments, stop_time, unit};
use crate::testkit::engine::{self, docker};
use crate::testkit::process::{Running, phalanx, run};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join("packaging").join(name)).unwrap()
}

/// What the program says of a command.
fn help(command: &str) -> String {
    let shown = run(phalanx(root()).args([command, "--help"]));
    assert_eq!(shown.code, Some(0), "{shown:?}");
    shown.stdout
}

/// The words of a text that begin with `PHALANX_`.
fn variables(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    words.filter(|word| word.starts_with("PHALANX_")).collect()
}

#[test]
fn the_variables_of_units_and_images_are_those_of_the_program() {
    let all: String = UNITS.iter().map(|role| help(role)).collect();
    let known = variables(&all);
    for role in UNITS {
        let (unit, help) = (unit(role), help(role));
        for name in variables(&unit) {
            assert!(variables(&help).contains(name), "{role} does not know {name}");
        }
    }
    for file in ["docker/Dockerfile", "docker/engine.Dockerfile", "compose.yaml"] {
        let text = read(file);
        let unknown: Vec<_> = variables(&text).into_iter().filter(|name| !known.contains(name)).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

/// The commands of the services in a compose file whose image is ours, each as its words: lists in brackets, whose
/// texts are as in JSON.
fn commands(compose: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = compose;
    while let Some((before, after)) = rest.split_once("command: [") {
        let (list, after) = after.split_once(']').unwrap();
        let image = before.rsplit("image: ").next().unwrap().lines().next().unwrap();
        if image.starts_with("phalanx:") {
            found.push(serde_json::from_str(&format!("[{list}]")).unwrap());
        }
        rest = after;
    }
    found
}

#[test]
fn the_commands_of_the_compose_file_are_understood_and_have_their_time_to_stop() {
    let compose = read("compose.yaml");
    let commands = commands(&compose);
    let roles: BTreeSet<_> = commands.iter().map(|command| command[0].as_str()).collect();
    assert_eq!(roles, BTreeSet::from(UNITS));
    for command in &commands {
        // All before the question for help is read and checked.
        let shown = run(phalanx(root()).args(command).arg("--help"));
        assert!(shown.code == Some(0) && shown.stdout.contains("Usage: "), "{command:?}: {shown:?}");
        let role = &command[0];
        let wrong = run(phalanx(root()).args(command).args(["--no-such-flag", "--help"]));
        assert_eq!(wrong.code, Some(2), "{role}: a flag that is not known is found");
        let service = compose.split(&format!("command: [\"{role}\"")).nth(1).unwrap();
        let time = service.lines().find_map(|line| line.trim().strip_prefix("stop_grace_period: ")).unwrap();
        assert_eq!(time, format!("{}s", stop_time(&unit(role))), "{role}");
    }
}

#[test]
fn each_setting_of_the_file_that_is_installed_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("phalanx.toml");
    let uncommented: Vec<_> = read("phalanx.toml")
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| rest.contains(" = ")).unwrap_or(line).to_owned())
        .collect();
    assert!(uncommented.iter().filter(|line| line.contains(" = ")).count() > 20, "{uncommented:?}");
    // Files that are not here.
    let here: Vec<_> = uncommented.into_iter().filter(|line| !line.contains("/etc/phalanx/")).collect();
    fs::write(&settings, here.join("\n")).unwrap();
    for role in UNITS {
        let mut command = phalanx(folder.path());
        command.arg(role).arg("--config").arg(&settings).env("PHALANX_KEY", "//Alice");
        command.env("PHALANX_LISTEN", "127.0.0.1:0").env("PHALANX_HTTP", "127.0.0.1:0");
        command.env("PHALANX_STATE_DIR", folder.path().join(role)).env("PHALANX_RUNNER", "process");
        match role {
            "validator" => drop(command.env("PHALANX_DISPATCH", "stub")),
            "worker" => drop(command.env("PHALANX_STUB_TIME", "0s")),
            _ => {}
        }
        let mut running = Running::start(&mut command);
        running.line();
        assert_eq!(running.stop(Signal::TERM).code, Some(0), "{role}");
    }
}

#[test]
fn an_image_from_scratch_runs_a_role_and_stops_it() {
    if !engine::ready() {
        return;
    }
    let tag = format!("phalanx-test-scratch:{}", std::process::id());
    let build = root().join("packaging/docker/build");
    let built = run(Command::new(build).arg(env!("CARGO_BIN_EXE_phalanx")).arg(&tag).stdin(Stdio::null()));
    assert_eq!(built.code, Some(0), "{built:?}");
    let result = std::panic::catch_unwind(|| {
        let version = docker(&["run", "--rm", "--network", "none", &tag, "--version"]).unwrap();
        assert_eq!(version.split(' ').next(), Some("phalanx"), "{version}");
        let name = format!("phalanx-test-scratch-{}", std::process::id());
        let flags = ["run", "--rm", "--name", &name, "--network", "none", "--read-only", "--tmpfs", "/tmp", &tag];
        let mut role = Command::new("docker");
        let mut role = Running::start(role.args(flags).arg("facilitator").args(arguments("facilitator")));
        assert!(role.line().contains("\"listening\":"), "{}", role.stderr());
        docker(&["stop", "--time", "60", &name]).unwrap();
        let finished = role.finish();
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(finished.stderr.contains("stopped in "), "{finished:?}");
    });
    docker(&["image", "rm", "--force", &tag]).unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// `cargo-deb`, which `make test` puts into the Python environment.
fn cargo_deb() -> Option<PathBuf> {
    let venv = std::env::var_os("PHALANX_TEST_VENV").map_or_else(|| PathBuf::from("target/venv"), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(root().join(venv).join("bin")).chain(std::env::split_paths(&path));
    let found = folders.map(|folder| folder.join("cargo-deb")).find(|program| program.exists());
    let required = std::env::var("PHALANX_TEST_REQUIRE_ALL").is_ok_and(|value| value == "1");
    assert!(found.is_some() || !required, "there is no cargo-deb");
    found
}

#[test]
fn a_debian_package_has_the_program_its_units_and_its_settings() {
    let Some(cargo_deb) = cargo_deb() else { return };
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path();
    let files = ["Cargo.lock", "LICENSE", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"];
    for name in files.iter().chain(&["src", "packaging", "docs", "examples", "tests"]) {
        std::os::unix::fs::symlink(root().join(name), copy.join(name)).unwrap();
    }
    // What is made is of our metadata; this release of the tool does not know our edition.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    fs::write(copy.join("Cargo.toml"), manifest.replace("edition = \"2024\"", "edition = \"2021\"")).unwrap();
    // Where the program is that `cargo deb` is told not to build.
    let program = copy.join("target/release/phalanx");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    fs::write(&program, "#!/bin/sh\n").unwrap();
    std::os::unix::fs::symlink(root().join("Makefile"), copy.join("Makefile")).unwrap();
    let mut make = Command::new("make");
    make.args(["package", &format!("PHALANX={}", env!("CARGO_BIN_EXE_phalanx"))]).current_dir(copy);
    let made = run(&mut make);
    assert_eq!(made.code, Some(0), "{made:?}");
    let deb = copy.join("phalanx.deb");
    let mut command = Command::new(cargo_deb);
    command.args(["--no-build", "--no-strip", "--output"]).arg(&deb).current_dir(copy);
    let built = run(command.env("CARGO_TARGET_DIR", copy.join("target")));
    assert_eq!(built.code, Some(0), "{built:?}");
    let listed = run(Command::new("dpkg-deb").arg("--contents").arg(&deb)).stdout;
    let control = run(Command::new("dpkg-deb").arg("--info").arg(&deb)).stdout;
    let units = UNITS.map(|role| format!("lib/systemd/system/phalanx-{role}.service"));
    let files = ["usr/bin/phalanx", "etc/phalanx/phalanx.toml", "usr/lib/sysusers.d/phalanx.conf"];
    for file in files.iter().map(|file| (*file).to_owned()).chain(units) {
        assert!(listed.lines().any(|line| line.ends_with(&file)), "{file} is not in\n{listed}");
    }
    for file in [
        "doc/phalanx/docs/operations.md",
        "man/man1/phalanx-validator.1.gz",
        "bash-completion/completions/phalanx",
        "zsh/vendor-completions/_phalanx",
        "fish/vendor_completions.d/phalanx.fish",
    ] {
        assert!(listed.contains(&format!("usr/share/{file}")), "{file} is not in\n{listed}");
    }
    assert!(control.contains("conffiles") && control.contains("postinst"), "{control}");
    let installed = copy.join("installed");
    let unpacked = run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&installed));
    assert_eq!(unpacked.code, Some(0), "{unpacked:?}");
    let (links, dead) = links(&installed.join("usr/share/doc/phalanx"));
    assert!(links > 50 && dead.is_empty(), "{links} links, dead: {dead:#?}");
}

/// The links between the documents of a folder: how many there are, and those that lead nowhere.
fn links(folder: &Path) -> (usize, Vec<String>) {
    let (mut count, mut dead) = (0, Vec::new());
    let files = [folder.to_owned(), folder.join("docs")].map(|folder| fs::read_dir(folder).unwrap());
    let files = files.into_iter().flatten().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            count += 1;
            if !path.with_file_name("").join(file).exists() {
                dead.push(format!("{}: {link}", path.display()));
            }
        }
    }
    (count, dead)
}
