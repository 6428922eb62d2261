//! `phalanx doctor`: one file about roles that are in trouble, to look at and to send: what they are, do and did last,
//! and what a check says of their settings. No secret is in it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use serde_json::{Value, json};

use super::check::ROLES;
use super::print::print;
use super::status::{ANSWER_TIME, page_url};
use super::tls::TrustArgs;
use crate::app::exit;
use crate::base::clock::now;
use crate::base::shutdown::Shutdown;
use crate::net::http::client::HttpClient;
use crate::ops::redact::JsonText;
use crate::ops::status::hide_secrets;
use crate::proc::this;

/// The pages of a role that are taken.
const PAGES: [&str; 5] = ["status.json", "links.json", "metrics", "healthz", "readyz"];

/// The arguments of `phalanx doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The --http address of a role, as 127.0.0.1:8080, or its URL; may be repeated
    #[arg(long, value_name = "ADDR|URL", env = "PHALANX_HTTP", value_delimiter = ',')]
    http: Vec<String>,
    /// The file that is written, in place of one that is there; - for stdout
    #[arg(long, value_name = "FILE", default_value = "phalanx-doctor.json", env = "PHALANX_OUTPUT")]
    output: PathBuf,
    #[command(flatten)]
    trust: TrustArgs,
    /// A role and its flags, as after `phalanx check`: its settings with their sources, and what a check finds
    #[arg(value_name = "ROLE", trailing_var_arg = true, allow_hyphen_values = true)]
    role: Vec<OsString>,
}

/// Runs the command: exit 0 if all was there, 1 if a role does not answer or the file cannot be written, 2 if a flag is
/// wrong.
///
/// Blocks for the answers of each role, at most 10 s each, and for a check; a signal ends it at once.
pub fn run(args: Args) -> ExitCode {
    let role = args.role.first().and_then(|role| role.to_str()).unwrap_or_default();
    if !args.role.is_empty() && !ROLES.contains(&role) {
        return exit::usage(format!("doctor: {role:?} is no role; name one of {}", ROLES.join(", ")));
    }
    if args.http.is_empty() && args.role.is_empty() {
        return exit::usage("doctor: give the --http address of a role, or a role with its flags, or both");
    }
    // Nobody raises it: a signal ends the process.
    let client = match args.trust.http(Shutdown::new()) {
        Ok(client) => client,
        Err(problem) => return exit::usage(problem),
    };
    let (mut roles, mut problems) = (Vec::new(), Vec::new());
    for http in &args.http {
        let pages = PAGES.into_iter().map(|page| page_url(Some(http), page).map(|url| (page, url)));
        match pages.collect::<Result<Vec<_>, _>>() {
            Ok(pages) => roles.push(role_at(&client, http, &pages, &mut problems)),
            Err(problem) => return exit::usage(problem),
        }
    }
    let settings = (!args.role.is_empty()).then(|| settings_of(&args.role, &mut problems));
    let mut document = json!({
        "at": now().wall.as_secs_f64(),
        "version": env!("CARGO_PKG_VERSION"),
        "system": system(),
        "problems": problems,
        "roles": roles,
        "settings": settings,
    });
    hide_secrets(&mut document);
    let text = format!("{document:#}\n");
    let written = write(&args.output, &JsonText(&text).to_string());
    for problem in &problems {
        // The code is the same for all.
        let _failed = exit::failed(problem);
    }
    match written {
        Err(error) => exit::failed(format!("--output {}: {error}", args.output.display())),
        Ok(code) if problems.is_empty() => code,
        Ok(_) => ExitCode::from(exit::FAILED),
    }
}

/// What a role shows of itself.
fn role_at(client: &HttpClient, http: &str, pages: &[(&'static str, String)], problems: &mut Vec<String>) -> Value {
    let mut role = json!({ "address": http });
    for (page, url) in pages {
        match client.get(url, &[], Instant::now() + ANSWER_TIME) {
            // One that is not ready, or alive, says so by 503.
            Ok(response) if matches!(response.status, 200 | 503) => {
                role[*page] = match page.ends_with(".json") {
                    true => response.json().unwrap_or_else(|error| format!("no JSON: {error}").into()),
                    false => response.text().into(),
                };
            }
            Ok(response) => {
                let error = response.ok().err();
                problems.push(error.map_or_else(|| format!("{url} has no page of a role"), |error| error.to_string()));
            }
            Err(error) => {
                problems.push(format!("no role of phalanx answers: {error}"));
                role["error"] = error.to_string().into();
                break;
            }
        }
    }
    role
}

/// The settings of a role that this line would start, and what a check finds, by this program.
fn settings_of(role: &[OsString], problems: &mut Vec<String>) -> Value {
    let mut ask = |words: &[&str]| {
        let output = this::program().and_then(|program| Command::new(program).args(words).args(role).output());
        match output {
            Ok(output) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                json!({"exit": output.status.code(), "said": text(&output.stdout), "errors": text(&output.stderr)})
            }
            Err(error) => {
                problems.push(format!("phalanx {} cannot be run: {error}", words.join(" ")));
                Value::Null
            }
        }
    };
    let (show, check) = (ask(&["config", "show"]), ask(&["check"]));
    json!({"role": role.first().map(|role| role.to_string_lossy()), "show": show, "check": check})
}

/// What the program runs on.
fn system() -> Value {
    let uname = rustix::system::uname();
    json!({
        "os": uname.sysname().to_string_lossy(),
        "release": uname.release().to_string_lossy(),
        "machine": uname.machine().to_string_lossy(),
        "processors": std::thread::available_parallelism().map_or(0, |n| n.get()),
    })
}

/// For its owner alone.
fn write(output: &Path, text: &str) -> io::Result<ExitCode> {
    if output.as_os_str() == "-" {
        return Ok(print(text));
    }
    File::options().write(true).create(true).truncate(true).mode(0o600).open(output)?.write_all(text.as_bytes())?;
    println!("{}", output.display());
    Ok(ExitCode::from(exit::DONE))
}
