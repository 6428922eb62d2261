//! `phalanx miners`: the miners of a running validator or worker, and why one is passed over.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};

use super::status::{ANSWER_TIME, ago, count, page_url};
use super::tls::TrustArgs;
use crate::app::exit;
use crate::base::shutdown::Shutdown;
use crate::identity::PublicKey;
use crate::net::http::client::HttpError;
use crate::net::http::{HttpRequest, HttpResponse};
use crate::ops::foreign::Foreign;
use crate::ops::redact::JsonText;
use crate::validator::miners::FeedStatus;
use crate::validator::routing::{ExplainedMiner, MinerView};

/// The page that the command reads.
const PAGE: &str = "miners.json";

/// The arguments of `phalanx miners`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The --http address of the validator or worker, as 127.0.0.1:8080, or the URL of a proxy before it
    #[arg(long, value_name = "ADDR|URL", env = "PHALANX_HTTP")]
    http: Option<String>,
    /// Say of this miner what decides about it, and why it would not be asked first, for jobs of each class
    #[arg(long, value_name = "HOTKEY", env = "PHALANX_EXPLAIN")]
    explain: Option<PublicKey>,
    /// Print the answer as it is
    #[arg(long, env = "PHALANX_JSON")]
    json: bool,
    #[command(flatten)]
    trust: TrustArgs,
}

/// Runs the command: exit 0 if the miners are shown, 1 if nobody answers or the miner is not among them, 2 if an
/// argument is wrong.
///
/// Blocks for the answer, at most 10 s; a signal ends it at once.
pub fn run(args: Args) -> ExitCode {
    let url = match page_url(args.http.as_deref(), PAGE) {
        Ok(url) => url,
        Err(problem) => return exit::usage(problem),
    };
    let url = args.explain.map_or(url.clone(), |hotkey| format!("{url}?explain={hotkey}"));
    let client = match args.trust.http(Shutdown::new()) {
        Ok(client) => client,
        Err(problem) => return exit::usage(problem),
    };
    let no_answer = |error: HttpError| exit::failed(format!("no validator or worker of phalanx answers: {error}"));
    let answer = match client.get(&url, &[], Instant::now() + ANSWER_TIME) {
        Ok(answer) => answer,
        Err(error) => return no_answer(error),
    };
    if matches!(answer.status, 300..=399) {
        return answer.ok().map_or_else(no_answer, |_| ExitCode::from(exit::FAILED));
    }
    if answer.status != 200 {
        let refused: Value = answer.json().unwrap_or_default();
        let why = refused["error"].as_str().unwrap_or("what answers there has no page of miners");
        return exit::failed(Foreign::from(why));
    }
    let value: Value = match answer.json() {
        Ok(value) => value,
        Err(error) => return no_answer(error),
    };
    let mut text = match (args.json, args.explain) {
        (true, _) => JsonText(&answer.text()).to_string(),
        (false, None) => table(&value),
        (false, Some(_)) => explained(&value),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => exit::failed(format!("cannot write to stdout: {error}")),
        _ => ExitCode::from(exit::DONE),
    }
}

/// The page `/miners.json` of whoever has these miners: all of them, or with `?explain=HOTKEY` one.
pub(super) fn page(
    request: &HttpRequest,
    feed: Option<FeedStatus>,
    miners: impl FnOnce() -> Option<Vec<MinerView>>,
    explain: impl FnOnce(&PublicKey) -> Option<ExplainedMiner>,
) -> Option<HttpResponse> {
    if request.path.strip_prefix('/') != Some(PAGE) {
        return None;
    }
    let refused = |status, why: String| Some(HttpResponse::json(status, &json!({ "error": why })));
    if !["GET", "HEAD"].contains(&request.method.as_str()) {
        return refused(405, "this page can only be read: use GET".to_owned());
    }
    match request.query("explain") {
        None => match miners() {
            Some(miners) => Some(HttpResponse::json(200, &json!({ "source": feed, "miners": miners }))),
            None => refused(404, "jobs do not run here: ask the workers".to_owned()),
        },
        Some(hotkey) => match PublicKey::from_ss58(hotkey) {
            Err(error) => refused(400, format!("explain: {error}")),
            Ok(hotkey) => match explain(&hotkey) {
                Some(explained) => Some(HttpResponse::json(200, &json!(explained))),
                None => refused(404, format!("{hotkey} is not among the miners here")),
            },
        },
    }
}

/// Miners in a snapshot; `/miners.json` has them all.
const SHOWN: usize = 100;

/// The miners as a snapshot has them: the first hundred of the list, each in few words.
pub(super) fn shown(miners: &[MinerView]) -> Value {
    let brief = |miner: &MinerView| {
        let miner = json!(miner);
        let error = Some(&miner["last_error"]).filter(|error| !error.is_null()).map(incident);
        json!({
            "hotkey": miner["hotkey"],
            "address": address(&miner),
            "state": state(&miner),
            "running": counts(&miner["running"]),
            "manifest": counts(&miner["manifest"]),
            "reliability": number(&miner["reliability"]),
            "last_error": error,
        })
    };
    miners.iter().take(SHOWN).map(brief).collect()
}

const HEADS: [&str; 9] =
    ["HOTKEY", "ADDRESS", "TRUSTED", "MANIFEST", "AGE", "RUNNING", "RELIABILITY", "STATE", "LAST ERROR"];

/// All miners, a line each.
fn table(answer: &Value) -> String {
    let mut rows = vec![HEADS.map(str::to_owned)];
    let miners = answer["miners"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.extend(miners.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADS.len() - 1).map(width).chain([0]).collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
    }
    let source = &answer["source"];
    if !source["origin"].is_null() {
        let age = ago(source["seconds_ago"].as_u64().unwrap_or(0));
        out += &format!("{} from {}, {age} ago\n", count(miners.len(), "miner"), text(&source["origin"]));
    }
    if !source["last_error"].is_null() {
        out += &format!("the list stays as it is: {}\n", text(&source["last_error"]));
    }
    out
}

/// A field as it is shown; what it says is what the server says.
fn text(field: &Value) -> String {
    Foreign::of(field).to_string()
}

fn row(miner: &Value) -> [String; 9] {
    let error = &miner["last_error"];
    [
        text(&miner["hotkey"]),
        address(miner),
        yes(&miner["trusted"]),
        counts(&miner["manifest"]),
        seconds(&miner["manifest_age_seconds"]),
        counts(&miner["running"]),
        number(&miner["reliability"]),
        state(miner),
        if error.is_null() { "-".to_owned() } else { incident(error) },
    ]
}

/// What keeps jobs away from it, in one cell.
fn state(miner: &Value) -> String {
    let mut state = Vec::new();
    if let Some(left) = miner["blacklisted_seconds"].as_u64() {
        state.push(format!("blacklisted for {}", ago(left)));
    }
    if let Some(breaker) = miner["breaker"].as_str() {
        // Its first word is the state. A closed one is as it should be, and not the miner's state.
        state.push(match breaker.split([' ', ',']).next().unwrap_or_default() {
            "closed" => "in use".to_owned(),
            state => format!("breaker {}", Foreign::from(state)),
        });
    }
    if let Some(left) = miner["cooling_seconds"].as_u64() {
        state.push(format!("cooling for {}", ago(left)));
    }
    if state.is_empty() { "-".to_owned() } else { state.join(", ") }
}

/// One miner, with all that decides about it.
fn explained(answer: &Value) -> String {
    let miner = &answer["miner"];
    let mut out = format!("miner {} at {}\n", text(&miner["hotkey"]), address(miner));
    let age = miner["manifest_age_seconds"].as_u64().map(|age| format!(", {} old", ago(age))).unwrap_or_default();
    let [completed, incidents] = ["completed", "incidents"].map(|field| number(&miner[field]));
    for (name, value) in [
        ("trusted", yes(&miner["trusted"])),
        ("manifest", counts(&miner["manifest"]) + &age),
        ("running", counts(&miner["running"])),
        (
            "reliability",
            format!(
                "{} = (2 + completed {completed}) / (2 + completed {completed} + incidents {incidents})",
                number(&miner["reliability"])
            ),
        ),
        ("breaker", text(&miner["breaker"])),
        ("cooling", left(&miner["cooling_seconds"])),
        ("blacklisted", left(&miner["blacklisted_seconds"])),
    ] {
        out += &format!("  {name:<12} {value}\n");
    }
    let list = |field: &str| answer[field].as_array().cloned().unwrap_or_default();
    for (head, lines) in [
        ("incidents", list("incidents").iter().map(incident).collect::<Vec<_>>()),
        ("classes", list("classes").iter().map(class).collect()),
    ] {
        out += &format!("{head}:{}\n", if lines.is_empty() { " none" } else { "" });
        lines.iter().for_each(|line| out += &format!("  {line}\n"));
    }
    out
}

fn class(class: &Value) -> String {
    let said = |field: &str| Some(&class[field]).filter(|value| !value.is_null()).map(text);
    let (why, of) = (said("why").unwrap_or_default(), text(&class["of"]));
    let verdict = match class["after"].as_u64() {
        None => format!("passed over: {why}"),
        Some(0) => format!("asked first, of {of}"),
        Some(after) => {
            let first = said("first").map(|first| format!(" ({first})")).unwrap_or_default();
            format!("asked after {after} of {of}: {why}{first}")
        }
    };
    let compared = said("compared").map(|compared| format!(" [{compared}]")).unwrap_or_default();
    format!("{:<24} {verdict}{compared}", said("class").unwrap_or_default())
}

fn incident(incident: &Value) -> String {
    let age = ago(incident["seconds_ago"].as_u64().unwrap_or(0));
    let [kind, why] = ["kind", "why"].map(|field| text(&incident[field]));
    format!("{age} ago, {kind} (counts {}): {why}", number(&incident["weight"]))
}

fn address(miner: &Value) -> String {
    let host = text(&miner["address"]);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let tls = if miner["tls"] == true { "wss://" } else { "" };
    format!("{tls}{host}:{}", text(&miner["port"]))
}

fn counts(counts: &Value) -> String {
    match counts.as_object() {
        None => "not known".to_owned(),
        Some(counts) if counts.is_empty() => "-".to_owned(),
        Some(counts) => {
            let counts =
                counts.iter().map(|(class, count)| format!("{} {}", Foreign::from(class.as_str()), text(count)));
            counts.collect::<Vec<_>>().join(", ")
        }
    }
}

fn seconds(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), ago)
}

fn left(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), |seconds| format!("{} more", ago(seconds)))
}

fn number(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |number| format!("{number:.2}"))
}

fn yes(value: &Value) -> String {
    if *value == true { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn miner() -> Value {
        json!({
            "hotkey": "5F", "address": "::1", "port": 9101, "tls": true, "trusted": false,
            "manifest": {"always_on.test": 2}, "manifest_age_seconds": 75, "running": {}, "reliability": 0.5,
            "completed": 0.0, "incidents": 2.0, "breaker": "open for 3.0s, 27.0s left", "cooling_seconds": 9,
            "blacklisted_seconds": null,
            "last_error": {"kind": "failed", "seconds_ago": 3, "weight": 2.0, "why": "a\u{1b}[31m\nb"},
        })
    }

    #[test]
    fn the_table_has_a_line_for_each_miner_and_says_where_the_list_is_from() {
        let source = json!({"origin": "/m.toml", "miners": 1, "seconds_ago": 5, "last_error": "half\nwritten"});
        let shown = "\
HOTKEY  ADDRESS           TRUSTED  MANIFEST          AGE         RUNNING  RELIABILITY  STATE                           \
LAST ERROR
5F      wss://[::1]:9101  no       always_on.test 2  1 min 15 s  -        0.50         breaker open, cooling for 9 s   \
3 s ago, failed (counts 2.00): a\\u{1b}[31m\\nb
1 miner from /m.toml, 5 s ago
the list stays as it is: half\\nwritten
";
        let shown = shown.replace("9 s   ", "9 s  ");
        let shown = shown.replace("STATE                           ", "STATE                          ");
        assert_eq!(table(&json!({"source": source, "miners": [miner()]})), shown);
        assert!(table(&json!({"source": null, "miners": []})).starts_with("HOTKEY  ADDRESS"));
    }

    #[test]
    fn nothing_is_obeyed_wherever_it_stands() {
        let hostile = "\u{1b}[2J\u{9b}\n";
        let with = |value: &Value| {
            let fields = value.as_object().unwrap().keys().map(|key| (key.clone(), json!(hostile)));
            Value::from(fields.collect::<serde_json::Map<_, _>>())
        };
        let mut hostile_miner = with(&miner());
        hostile_miner["manifest"] = json!({ hostile: hostile });
        let class = with(&json!({"class": 1, "of": 1, "why": 1, "compared": 1, "first": 1}));
        let classes = [0, 1].map(|after| {
            let mut class = class.clone();
            class["after"] = json!(after);
            class
        });
        let answer = json!({
            "source": with(&json!({"origin": 1, "last_error": 1})), "miners": [hostile_miner], "miner": hostile_miner,
            "incidents": [with(&miner()["last_error"])], "classes": [class, classes[0], classes[1]],
        });
        for shown in [table(&answer), explained(&answer)] {
            assert!(!shown.contains(|c: char| c != '\n' && c.is_control()), "{shown:?}");
            assert!(shown.matches("\\u{9b}\\n").count() > 5, "{shown}");
        }
        assert_eq!((table(&answer).lines().count(), explained(&answer).lines().count()), (4, 14));
    }

    #[test]
    fn one_miner_is_explained_with_its_numbers() {
        let classes = json!([
            {"class": "a", "after": 0, "of": 2, "why": null, "compared": "answers yes", "first": "5F"},
            {"class": "b", "after": 1, "of": 2, "why": "its breaker is open", "compared": "answers no", "first": "5G"},
            {"class": "c", "after": null, "of": 1, "why": "it is full", "compared": null, "first": "5G"},
        ]);
        let answer = json!({"miner": miner(), "incidents": [miner()["last_error"]], "classes": classes});
        let shown = "\
miner 5F at wss://[::1]:9101
  trusted      no
  manifest     always_on.test 2, 1 min 15 s old
  running      -
  reliability  0.50 = (2 + completed 0.00) / (2 + completed 0.00 + incidents 2.00)
  breaker      open for 3.0s, 27.0s left
  cooling      9 s more
  blacklisted  -
incidents:
  3 s ago, failed (counts 2.00): a\\u{1b}[31m\\nb
classes:
  a                        asked first, of 2 [answers yes]
  b                        asked after 1 of 2: its breaker is open (5G) [answers no]
  c                        passed over: it is full
";
        assert_eq!(explained(&answer), shown);
    }
}
