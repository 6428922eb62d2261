//! `phalanx check`, `config show` and `config init`: what is wrong is found without a start, all at once, in the words
//! of the start; nothing is changed; what is made is accepted.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::testkit::network::{ALICE, BOB, CHARLIE, Network};
use crate::testkit::process::{Finished, phalanx, run};

/// A line that would start the role, with these changes: a flag with another value, or without one to leave it out.
fn line(role: &str, folder: &Path, changes: &[(&str, &str)]) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let owned = |flags: &[(&str, &str)]| -> Vec<(String, String)> {
        flags.iter().map(|(flag, value)| ((*flag).to_owned(), (*value).to_owned())).collect()
    };
    let mut flags = match role {
        "miner" => owned(&[
            ("--listen", "127.0.0.1:0"),
            ("--key", "//Bob"),
            ("--validator", ALICE),
            ("--executors", "always_on.test=1"),
            ("--runner", "process"),
            ("--state-dir", &path("m")),
        ]),
        "validator" => owned(&[
            ("--facilitator", "ws://127.0.0.1:1/ws/v0/"),
            ("--key", "//Alice"),
            ("--miners", &path("miners.toml")),
            ("--state-dir", &path("v")),
        ]),
        _ => owned(&[
            ("--listen", "127.0.0.1:0"),
            ("--http", "127.0.0.1:0"),
            ("--validator", ALICE),
            ("--user", CHARLIE),
            ("--state-dir", &path("f")),
        ]),
    };
    for (flag, value) in changes {
        flags.retain(|(known, _)| known != flag);
        if !value.is_empty() {
            flags.push(((*flag).to_owned(), value.replace("DIR", &folder.display().to_string())));
        }
    }
    let mut words = vec![role.to_owned()];
    for (flag, value) in flags {
        match value.as_str() {
            "SET" => words.push(flag),
            value => words.extend([flag, value.to_owned()]),
        }
    }
    words
}

/// A folder with what the settings name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| std::fs::write(folder.path().join(name), text).unwrap();
    let miners = format!("[[miner]]\nhotkey = \"{ALICE}\"\naddress = \"127.0.0.1\"\nport = 1\n");
    write("miners.toml", miners.as_bytes());
    let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let (one, two) = (made("localhost"), made("other.example"));
    write("cert.pem", one.cert.pem().as_bytes());
    write("key.pem", one.signing_key.serialize_pem().as_bytes());
    write("other-key.pem", two.signing_key.serialize_pem().as_bytes());
    write("hotkey", format!("0x{}", "00".repeat(32)).as_bytes());
    for name in ["hotkey", "key.pem", "other-key.pem"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(folder.path().join(name), mode).unwrap();
    }
    folder
}

fn checked(folder: &Path, words: &[String], change: impl Fn(&mut Command)) -> Finished {
    let mut command = phalanx(folder);
    command.arg("check").args(words);
    change(&mut command);
    run(&mut command)
}

/// The role, a change of its line, and what both `check` and the start say.
type Wrong = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const WRONG: &[Wrong] = &[
    ("miner", &[("--listen", "9101")], "'--listen <ADDR>': it should be ADDRESS:PORT, as 127.0.0.1:9101"),
    ("miner", &[("--listen", "")], "--listen is missing; give --listen <ADDR>"),
    ("miner", &[("--listen", "192.0.2.1:1")], "--listen: cannot listen on 192.0.2.1:1: "),
    ("miner", &[("--http", "192.0.2.1:1")], "--http 192.0.2.1:1: "),
    ("miner", &[("--executors", "always_on.test")], "it should be CLASS=N, as always_on.test=4"),
    ("miner", &[("--executors", "always_on.test=0")], "the number of executors is \"0\"; it should be from 1 to 1000"),
    ("miner", &[("--validator", "//Alice")], "is not an SS58 address"),
    ("miner", &[("--key", "no-such-file")], "--key: \"no-such-file\" is neither a key"),
    ("miner", &[("--key", "")], "--key is missing; give --key <K>"),
    ("miner", &[("--key-file", "DIR/hotkey")], "give --key or --key-file, not both"),
    ("miner", &[("--key", "credential:miner")], "systemd sets it for a unit with LoadCredential=miner:FILE"),
    ("miner", &[("--key", ""), ("--key-file", "DIR/miners.toml")], "--key-file: a "),
    ("miner", &[("--drain-time", "5")], "it should be a number with a unit: ms, s, m, h or d"),
    ("miner", &[("--drain-time", "-1s")], "a time cannot be less than 0"),
    ("miner", &[("--reconnect-grace", "30s1m")], "it should be a number with a unit"),
    ("miner", &[("--reach", "10.0.0.1/8")], "should it be 10.0.0.0/8?"),
    ("miner", &[("--tls-cert", "DIR/cert.pem")], "--tls-key is missing; it goes with --tls-cert"),
    ("miner", &[("--tls-cert", "DIR/none")], "--tls-cert: DIR/none: cannot read"),
    ("miner", &[("--http", "127.0.0.1:9"), ("--listen", "127.0.0.1:9")], "and --http 127.0.0.1:9 are one address"),
    ("facilitator", &[("--http", "0.0.0.0:9"), ("--listen", "127.0.0.1:9")], "and --http 0.0.0.0:9 are one address"),
    (
        "miner",
        &[("--tls-cert", "DIR/cert.pem"), ("--tls-key", "DIR/other-key.pem")],
        "other-key.pem: does not fit the certificate",
    ),
    ("miner", &[("--tls-cert", "DIR/none"), ("--tls-key", "DIR/key.pem")], "none: cannot read the certificate"),
    ("miner", &[("--tls-ca", "DIR/miners.toml")], "--tls-ca: DIR/miners.toml: has no certificate"),
    ("miner", &[("--tls-roots", "public")], "it should be bundled, system or none"),
    ("miner", &[("--tls-roots", "none")], "--tls-roots none goes with --tls-ca"),
    ("miner", &[("--transfer-proxy", "socks5://me:s3cret@h:1")], "--transfer-proxy: bad url \"h:1\""),
    ("miner", &[("--executor-address", "http://h")], "--executor-address is \"http://h\": it should be like ws://"),
    ("miner", &[("--executor-address", "ws://h:1 ")], "--executor-address: bad url \"ws://h:1 \""),
    ("miner", &[("--blacklist", CHARLIE)], "is none of the validators"),
    ("miner", &[("--max-job-time", "0s")], "--max-job-time is 0: no job would be taken"),
    ("miner", &[("--executor-image", "x")], "--executor-image goes with --executor-backend docker"),
    ("miner", &[("--executor-backend", "docker")], "--executor-image is missing; name the image"),
    ("miner", &[("--pre-pull", "busybox")], "--pre-pull goes with --runner docker"),
    ("miner", &[("--state-dir", "DIR/miners.toml/m")], "cannot create DIR/miners.toml/m: "),
    ("miner", &[("--frobnicate", "SET")], "unexpected argument '--frobnicate' found"),
    (
        "validator",
        &[("--facilitator", "ws://127.0.0.1:1/ws/v0/ ")],
        "--facilitator: bad url \"ws://127.0.0.1:1/ws/v0/ \"",
    ),
    ("validator", &[("--facilitator", "ws://")], "--facilitator: bad url \"ws://\""),
    ("validator", &[("--facilitator", "http://h/")], "--facilitator is \"http://h/\"; it should be a URL like wss://"),
    ("validator", &[("--facilitator", "ws://me:s3cret@h/")], "a user name in the url is never sent"),
    ("validator", &[("--facilitator", "")], "--facilitator is missing; give the URL"),
    ("validator", &[("--miners", "DIR/none")], "none: cannot read it"),
    ("validator", &[("--miners", "")], "--miners is missing; give the file"),
    ("validator", &[("--workers", "0")], "--workers is 0; it should be from 1 to 1000"),
    ("validator", &[("--manifest-interval", "100ms")], "--manifest-interval is 100ms; it should be 1s or more"),
    ("validator", &[("--queue", "x")], "--queue goes with --dispatch celery"),
    ("validator", &[("--proxy", "me:s3cret@h:1")], "--proxy: bad url \"h:1\": the scheme of a proxy is not http"),
    ("validator", &[("--tls-server-name", "a b")], "--tls-server-name: "),
    ("validator", &[("--state-dir", "")], "--state-dir is missing; name the folder"),
    ("validator", &[("--dispatch", "sometimes")], "invalid value 'sometimes' for '--dispatch <DISPATCH>'"),
    ("facilitator", &[("--user", "")], "--user is missing; give --user <SS58>"),
    ("facilitator", &[("--http-host", "a/b")], "'--http-host <NAME>'"),
    ("facilitator", &[("--state-dir", "DIR/miners.toml")], "cannot create DIR/miners.toml: "),
];

#[test]
fn each_wrong_setting_has_a_line_in_the_words_of_the_start() {
    assert!(WRONG.len() >= 30);
    for (role, changes, says) in WRONG {
        let folder = folder();
        let says = says.replace("DIR", &folder.path().display().to_string());
        let words = line(role, folder.path(), changes);
        let check = checked(folder.path(), &words, |_| {});
        let is_said = check.stdout.lines().any(|line| line.starts_with("wrong  ") && line.contains(&says));
        assert!(is_said && check.code == Some(2), "{changes:?}: {check:?}");
        let start = run(phalanx(folder.path()).args(&words));
        // An address that this machine does not have may come.
        let code = if says.contains(" 192.0.2.1:1") { 1 } else { 2 };
        assert!(start.stderr.contains(&says) && start.code == Some(code), "{changes:?}: {start:?}");
        for finished in [check, start] {
            assert!(!format!("{finished:?}").contains("s3cret"), "{finished:?}");
        }
        for made in ["m", "v", "f"] {
            assert!(!folder.path().join(made).exists(), "{changes:?}: {made} was made");
        }
    }
}

#[test]
fn a_value_of_the_environment_or_the_file_names_where_it_is_from() {
    let folder = folder();
    let file = folder.path().join("phalanx.toml");
    let words = line("miner", folder.path(), &[]);
    for (text, says) in [
        ("[miner]\ndrain-time = \"5\"\n", "FILE: [miner] drain-time): it should be a number with a unit"),
        ("[miner]\nmax_job_time = \"0s\"\n", "--max-job-time (settings file FILE: [miner] max_job_time) is 0: "),
        ("log-format = \"xml\"\n", "(settings file FILE: log-format)"),
        ("[miner]\ndrain_tim = \"5s\"\n", "settings file FILE: [miner] unknown key \"drain_tim\"; did you mean"),
        ("[minor]\n", "settings file FILE: unknown key \"minor\"; did you mean \"miner\"?"),
        ("[miner]\nkey = 0x00secret\n", "settings file FILE: not TOML: line 2: "),
        ("[miner\n", "settings file FILE: not TOML: line "),
    ] {
        std::fs::write(&file, text).unwrap();
        let says = says.replace("FILE", &file.display().to_string());
        let with_file = |command: &mut Command| {
            command.arg("--config").arg(&file);
        };
        let check = checked(folder.path(), &words, with_file);
        assert!(check.stdout.contains("wrong  ") && check.stdout.contains(&says), "{text}: {check:?}");
        let mut start = phalanx(folder.path());
        with_file(start.args(&words));
        let start = run(&mut start);
        assert!(start.stderr.contains(&says) && start.code == Some(2), "{text}: {start:?}");
        assert!(!format!("{check:?} {start:?}").contains("00secret"), "{check:?}");
    }
    let check = checked(folder.path(), &words, |command| {
        command.env("PHALANX_DRAIN_TIME", "5");
    });
    assert!(check.stdout.contains("'--drain-time <DUR>' (PHALANX_DRAIN_TIME): it should be"), "{check:?}");
    let utf16: Vec<u8> = "[miner]\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(&file, utf16).unwrap();
    let check = checked(folder.path(), &words, |command| {
        command.arg("--config").arg(&file);
    });
    assert!(check.stdout.contains("it is UTF-16 text; save it as UTF-8"), "{check:?}");
}

#[test]
fn all_mistakes_are_told_at_once_and_those_of_form_hide_none_outside() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = taken.local_addr().unwrap().to_string();
    let changes = [("--drain-time", "5"), ("--reach", "x"), ("--key", "none"), ("--http", &http), ("--listen", "")];
    let check = checked(folder.path(), &line("miner", folder.path(), &changes), |command| {
        command.env("PHALANX_MAX_JOB_TIME", "-5m").env("PHALANX_RECONNECT_GRACE", "soon");
    });
    let wrong: Vec<&str> = check.stdout.lines().filter(|line| line.starts_with("wrong  ")).collect();
    for says in [
        "'--drain-time <DUR>'",
        "'--reach <CIDR>'",
        "--key: \"none\" is neither",
        &format!("--http {http}: Address already in use"),
        "--listen is missing",
        "(PHALANX_MAX_JOB_TIME): a time cannot be less than 0",
        "(PHALANX_RECONNECT_GRACE)",
    ] {
        assert!(wrong.iter().any(|line| line.contains(says)), "{says}: {check:?}");
    }
    assert_eq!((wrong.len(), check.code), (7, Some(2)), "{check:?}");
    assert!(!check.stdout.contains("ok     --key"), "nobody gave one that is a key: {check:?}");
    let nothing = checked(folder.path(), &["miner".to_owned()], |_| {});
    for stood_in in ["ok     --key", "host local"] {
        assert!(!nothing.stdout.contains(stood_in), "{nothing:?}");
    }
}

#[test]
fn good_settings_are_said_to_be_good_and_nothing_is_changed() {
    let folder = folder();
    let good =
        line("facilitator", folder.path(), &[("--http-tls-cert", "DIR/cert.pem"), ("--http-tls-key", "DIR/key.pem")]);
    let check = checked(folder.path(), &good, |_| {});
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(check.stdout.contains("ok     --http-tls-cert: ") && check.stdout.contains(" for localhost,"), "{check:?}");
    assert!(check.stdout.contains("is not there, and will be made"), "{check:?}");
    assert!(!folder.path().join("f").exists());
    // The facilitator is away: a validator starts all the same.
    let check = checked(folder.path(), &line("validator", folder.path(), &[]), |_| {});
    assert!(check.stdout.contains("warn   facilitator: cannot connect to 127.0.0.1:1"), "{check:?}");
    assert!(check.stdout.contains("ok     --miners: 1 miner") && check.code == Some(1), "{check:?}");
    assert!(!folder.path().join("v").exists());
    // Without an engine no job runs, and the miner says so in the same words at its start.
    let docker = line("miner", folder.path(), &[("--runner", "docker"), ("--before-job", "/nonexist x")]);
    let no_engine = |command: &mut Command| {
        command.env("DOCKER_HOST", "unix:///no/such/socket");
    };
    let check = checked(folder.path(), &docker, no_engine);
    assert!(
        check.stdout.contains("warn   host local: no job can run, and none is taken until that is over: "),
        "{check:?}"
    );
    assert!(check.stdout.contains("warn   --before-job: \"/nonexist\" is no program"), "{check:?}");
    assert_eq!(check.code, Some(1));
    let open = folder.path().join("hotkey");
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let words = line("miner", folder.path(), &[("--key", ""), ("--key-file", "DIR/hotkey")]);
    let check = checked(folder.path(), &words, |_| {});
    assert!(check.stdout.contains("warn   --key: the key file ") && check.code == Some(1), "{check:?}");
}

#[test]
fn a_running_role_is_seen_by_its_folder_and_a_facilitator_s_clock_is_compared() {
    let network = Network::start("info", "text");
    let role = |name: &str| network.folder.path().join(name).display().to_string();
    let running = line(
        "facilitator",
        network.folder.path(),
        &[("--state-dir", &role("facilitator")), ("--http", network.pages("facilitator"))],
    );
    let check = checked(network.folder.path(), &running, |_| {});
    assert!(check.stdout.contains("if that is this role, running, all is well") && check.code == Some(1), "{check:?}");
    let said = network.stop();
    assert!(said.iter().all(|(_, stderr)| !stderr.contains("panicked")));
}

#[test]
fn a_miner_that_runs_is_asked_whether_it_takes_this_validator_and_what_it_offers() {
    use crate::testkit::process::Running;
    let folder = folder();
    let offers = [("--executors", "always_on.test=3"), ("--drain-time", "1s")];
    let mut miner = Running::start(phalanx(folder.path()).args(line("miner", folder.path(), &offers)));
    let said: serde_json::Value = serde_json::from_str(&miner.line()).unwrap();
    let port = said["listening"].as_str().unwrap().rsplit(':').next().unwrap();
    let miners = format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"127.0.0.1\"\nport = {port}\n");
    std::fs::write(folder.path().join("miners.toml"), miners).unwrap();
    let check = checked(folder.path(), &line("validator", folder.path(), &[]), |_| {});
    let ok = format!("ok     miner {BOB}: takes this validator, offers 3 executors");
    assert!(check.stdout.lines().any(|line| line == ok), "{check:?}");
    // To another one it says no.
    let check = checked(folder.path(), &line("validator", folder.path(), &[("--key", "//Dave")]), |_| {});
    let refused = format!("warn   miner {BOB}: ");
    let refused = check.stdout.lines().find(|line| line.starts_with(&refused)).unwrap_or_else(|| panic!("{check:?}"));
    assert!(refused.ends_with("; it gets no job until it answers") && check.code == Some(1), "{check:?}");
    assert_eq!(miner.stop(Signal::TERM).code, Some(0));
}

#[test]
fn a_facilitator_that_runs_takes_connections_and_says_its_time() {
    use crate::testkit::process::Running;
    let folder = folder();
    let mut facilitator = Running::start(phalanx(folder.path()).args(line("facilitator", folder.path(), &[])));
    let said: serde_json::Value = serde_json::from_str(&facilitator.line()).unwrap();
    let url = format!("ws://{}/ws/v0/", said["listening"].as_str().unwrap());
    let check = checked(folder.path(), &line("validator", folder.path(), &[("--facilitator", &url)]), |_| {});
    assert!(check.stdout.contains(&format!("ok     facilitator: {url} takes connections")), "{check:?}");
    assert!(check.stdout.contains("ok     clock: within 5 s of that of the facilitator"), "{check:?}");
    let warnings: Vec<_> = check.stdout.lines().filter(|line| line.starts_with("warn")).collect();
    let away = format!("warn   miner {ALICE}: cannot connect to 127.0.0.1:1");
    assert!(warnings.len() == 1 && warnings[0].starts_with(&away) && check.code == Some(1), "{check:?}");
    assert_eq!(facilitator.stop(Signal::TERM).code, Some(0));
}

#[test]
fn secrets_are_taken_from_credentials_of_the_service_manager() {
    let folder = folder();
    std::fs::write(folder.path().join("redis"), "redis://me:pass-word@127.0.0.1:1/0\n").unwrap();
    let with_credentials = |command: &mut Command| {
        command.env("CREDENTIALS_DIRECTORY", folder.path());
    };
    let cert = folder.path().join("cert.pem").display().to_string();
    let mut words: Vec<String> =
        ["worker", "--key", "//Alice", "--stub-time", "0s", "--redis", "credential:redis"].map(Into::into).into();
    words.extend(["--tls-client-cert", &cert, "--tls-client-key", "credential:key.pem"].map(Into::into));
    let check = checked(folder.path(), &words, with_credentials);
    assert!(check.stdout.contains("warn   redis: ") && check.stdout.contains("127.0.0.1:1"), "{check:?}");
    assert!(!check.stdout.contains("pass-word") && check.code == Some(1), "{check:?}");
    words[6] = "credential:none".to_owned();
    let check = checked(folder.path(), &words, with_credentials);
    assert!(check.stdout.contains("--redis") && check.stdout.contains("/none: "), "{check:?}");
    assert_eq!(check.code, Some(2), "{check:?}");
}

#[test]
fn a_pipe_without_a_writer_is_not_waited_for_for_ever() {
    let folder = folder();
    let pipe = folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let words = line("validator", folder.path(), &[("--tls-ca", pipe.to_str().unwrap())]);
    let check = checked(folder.path(), &words, |_| {});
    assert!(check.stdout.contains("nobody wrote into this pipe within 10 s") && check.code == Some(2), "{check:?}");
}

#[test]
fn a_key_comes_from_standard_input_and_from_systemd() {
    use std::io::Write;
    use std::process::Stdio;
    let folder = folder();
    std::fs::write(folder.path().join("cred"), "//Alice\n").unwrap();
    let mut shown = phalanx(folder.path());
    shown.args(["key", "show", "--key", "credential:cred"]).env("CREDENTIALS_DIRECTORY", folder.path());
    assert!(run(&mut shown).stdout.contains(ALICE));
    for flags in [["--key", "-"], ["--key-file", "-"]] {
        let mut shown = phalanx(folder.path());
        shown.args(["key", "show"]).args(flags).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shown.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"\xef\xbb\xbf//Alice\r\n").unwrap();
        assert!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().contains(ALICE), "{flags:?}");
    }
}

fn config(folder: &Path, what: &str, words: &[String], change: impl Fn(&mut Command)) -> Finished {
    let mut command = phalanx(folder);
    command.args(["config", what]).args(words);
    change(&mut command);
    run(&mut command)
}

#[test]
fn what_init_makes_check_accepts_and_show_names_the_source_of_each() {
    let folder = folder();
    let file = folder.path().join("made.toml");
    for (role, secret) in [("miner", "//Bob"), ("validator", "//Alice"), ("facilitator", "//none")] {
        let changes: &[(&str, &str)] =
            if role == "facilitator" { &[] } else { &[("--key", ""), ("--key-file", "DIR/hotkey")] };
        let words = line(role, folder.path(), changes);
        let made = config(folder.path(), "init", &words, |_| {});
        assert_eq!(made.code, Some(0), "{made:?}");
        std::fs::write(&file, &made.stdout).unwrap();
        let with_file = |command: &mut Command| {
            command.arg("--config").arg(&file);
        };
        let alone = [role.to_owned()];
        let expected = if role == "validator" { Some(1) } else { Some(0) };
        let check = checked(folder.path(), &alone, with_file);
        assert_eq!(check.code, expected, "{check:?}\n{}", made.stdout);
        // All defaults written out are the same settings.
        let mut lines: Vec<String> = Vec::new();
        for line in made.stdout.lines() {
            let has_default = lines.last().is_some_and(|last| !last.contains("; it has no default."));
            match line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())) {
                Some(setting) if has_default => lines.push(setting.to_owned()),
                _ => lines.push(line.to_owned()),
            }
        }
        std::fs::write(&file, lines.join("\n")).unwrap();
        let check = checked(folder.path(), &alone, with_file);
        assert_eq!(check.code, expected, "{check:?}\n{}", lines.join("\n"));
        let shown = config(folder.path(), "show", &alone, |command| {
            with_file(command.env("PHALANX_LOG_FORMAT", "json"));
        });
        assert_eq!(shown.code, Some(0), "{shown:?}");
        assert!(shown.stdout.contains("log-format = \"json\"  # variable PHALANX_LOG_FORMAT"), "{shown:?}");
        let place = format!("# {}: [{role}] state-dir", file.display());
        assert!(
            shown.stdout.lines().any(|line| line.starts_with("state-dir = ") && line.ends_with(&place)),
            "{shown:?}"
        );
        assert!(!format!("{shown:?}").contains(secret), "{shown:?}");
    }
    let words = line("validator", folder.path(), &[("--proxy", "http://me:s3cret@h:1"), ("--key", "//Alice//s3cret")]);
    for what in ["show", "init"] {
        let shown = config(folder.path(), what, &words, |_| {});
        assert!(shown.code == Some(0) && !format!("{shown:?}").contains("s3cret"), "{shown:?}");
    }
    let shown = config(folder.path(), "show", &words, |_| {});
    assert!(shown.stdout.contains("proxy = \"http://…@h:1\"  # flag"), "{shown:?}");
    assert!(shown.stdout.contains("drain-time = \"60s\"  # default"), "{shown:?}");
    assert!(config(folder.path(), "init", &["miner".to_owned()], |_| {}).stdout.contains("; it is needed."));
}
