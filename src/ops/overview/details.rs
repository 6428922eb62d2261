//! What only one role has, from the fields of its snapshot: numbers and texts are facts, lists are tables. A field that
//! a later release adds is shown as well. Pure.

use serde_json::{Map, Value};

use super::section::{Cell, Content, Section, Table, Tone, Width};
use super::words::{ago, bytes, label, took};
use crate::ops::redact::OneLine;

/// Rows of a list: what is longer has its place on `/status.json`.
const ROWS: usize = 100;

/// Columns of a table.
const COLUMNS: usize = 10;

/// Fields whose lines have a column with a state.
const STATES: [&str; 3] = ["state", "live", "end"];

/// The sections of a role's details, its facts first.
pub(super) fn sections(role: &str, details: &Value) -> Vec<Section> {
    let Value::Object(fields) = details else {
        let is_nothing = details.is_null();
        return if is_nothing {
            Vec::new()
        } else {
            vec![facts(role, vec![("details".to_owned(), cell("", details))])]
        };
    };
    let (mut plain, mut sections) = (Vec::new(), Vec::new());
    for (name, value) in fields {
        match value {
            Value::Null => {}
            // Counted and listed with the jobs.
            Value::Object(_) if name == "ended" => {}
            Value::Array(lines) if lines.is_empty() => plain.push((label(name), Cell::new("none"))),
            Value::Array(lines) if lines.iter().all(Value::is_object) => {
                sections.push(Section::new(&title(name, lines.len()), Content::Table(table(lines))));
            }
            Value::Object(lines) if !lines.is_empty() && lines.values().all(Value::is_object) => {
                let lines: Vec<Value> = lines.iter().map(named).collect();
                sections.push(Section::new(&title(name, lines.len()), Content::Table(table(&lines))));
            }
            Value::Object(group) if group.len() > 3 || group.values().any(|value| value.is_object()) => {
                let facts = group.iter().filter(|(_, value)| !value.is_null());
                let facts = facts.map(|(name, value)| (label(name), cell(name, value))).collect();
                sections.push(Section::new(&label(name), Content::Facts(facts)));
            }
            _ => plain.push((label(name), cell(name, value))),
        }
    }
    if !plain.is_empty() {
        sections.insert(0, facts(role, plain));
    }
    sections
}

fn facts(role: &str, facts: Vec<(String, Cell)>) -> Section {
    Section::new(&OneLine(role).to_string(), Content::Facts(facts))
}

fn title(name: &str, lines: usize) -> String {
    if lines > ROWS { format!("{}: the first {ROWS} of {lines}", label(name)) } else { label(name) }
}

/// A line of a map, with its name as the first field.
fn named((name, fields): (&String, &Value)) -> Value {
    let mut line = Map::from_iter([("name".to_owned(), Value::from(name.as_str()))]);
    line.extend(fields.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
    line.into()
}

/// A table with a column for each field that any line has.
fn table(lines: &[Value]) -> Table {
    let mut names: Vec<&String> = Vec::new();
    let lines = || lines.iter().take(ROWS).filter_map(Value::as_object);
    for (name, value) in lines().flatten() {
        if names.len() < COLUMNS && !names.contains(&name) && !value.is_null() {
            names.push(name);
        }
    }
    let labels: Vec<String> = names.iter().map(|name| label(name)).collect();
    let columns: Vec<(&str, Width)> =
        names.iter().zip(&labels).map(|(name, label)| (label.as_str(), width(name))).collect();
    let mut table = Table::new(&columns);
    for line in lines() {
        table.rows.push(
            names.iter().map(|name| line.get(*name).map_or(Cell::default(), |value| cell(name, value))).collect(),
        );
    }
    table
}

fn width(name: &str) -> Width {
    match name {
        "hotkey" | "validator" | "miner" | "uuid" | "job" => Width::Key,
        name if name.contains("seconds") || name.contains("bytes") || STATES.contains(&name) => Width::Whole,
        _ => Width::Text,
    }
}

/// A value of the field of that name.
fn cell(name: &str, value: &Value) -> Cell {
    match value {
        Value::Null => Cell::default(),
        Value::Bool(is) if STATES.contains(&name) => {
            if *is {
                Cell::toned("yes", Tone::Good)
            } else {
                Cell::toned("no", Tone::Bad)
            }
        }
        Value::Bool(is) => Cell::new(if *is { "yes" } else { "no" }),
        Value::String(text) if STATES.contains(&name) => Cell::state(text),
        Value::String(text) if name.contains("error") || name.contains("trouble") => Cell::toned(text, Tone::Bad),
        _ => Cell::new(&shown(name, value)),
    }
}

/// A value on one line.
fn shown(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_u64() {
            Some(seconds) if name.ends_with("_seconds_ago") => format!("{} ago", ago(seconds)),
            Some(seconds) if name.ends_with("_seconds") => ago(seconds),
            Some(count) if name.ends_with("_bytes") => bytes(count),
            Some(millis) if name.ends_with("_ms") => took(millis as f64 / 1000.0),
            _ => fraction(name, number.as_f64().unwrap_or_default()).unwrap_or_else(|| number.to_string()),
        },
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) => values.iter().map(|value| shown(name, value)).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => match slots(fields) {
            Some(slots) => slots,
            None => fields.iter().filter(|(_, value)| !value.is_null()).map(field).collect::<Vec<_>>().join(", "),
        },
        other => other.to_string(),
    }
}

/// A number that is not whole, in its unit and as exact as people read it.
fn fraction(name: &str, number: f64) -> Option<String> {
    match number {
        number if name.ends_with("_ms") => Some(took(number / 1000.0)),
        number if number.fract() == 0.0 => None,
        number if name.ends_with("_seconds") && number >= 0.0 => Some(took(number)),
        number if number.abs() < 0.01 => Some(format!("{number:.1e}")),
        number => Some(format!("{number:.2}")),
    }
}

fn field((name, value): (&String, &Value)) -> String {
    match value {
        Value::Object(_) if slots_of(value).is_some() => format!("{name} {}", shown(name, value)),
        Value::Object(_) | Value::Array(_) => format!("{} ({})", label(name), shown(name, value)),
        // Names of classes and outcomes are read as they are.
        value if name.contains('.') => format!("{name} {}", shown(name, value)),
        value => format!("{} {}", label(name), shown(name, value)),
    }
}

fn slots_of(value: &Value) -> Option<String> {
    slots(value.as_object()?)
}

/// The slots of a class: how many are free, and what the others do.
fn slots(counts: &Map<String, Value>) -> Option<String> {
    let (declared, free) = (counts.get("declared")?.as_u64()?, counts.get("free")?.as_u64()?);
    let others = counts.iter().filter(|(name, _)| *name != "declared" && *name != "free");
    let others = others.filter(|(_, count)| count.as_u64() != Some(0)).map(|(name, count)| format!(", {count} {name}"));
    Some(format!("{free} of {declared} free{}", others.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn facts_are_named_with_units_and_lists_are_tables() {
        let slots = json!({"declared": 2, "free": 1, "busy": 1, "ending": 0});
        let shown = sections(
            "miner",
            &json!({
                "jobs": 3, "round_trip_ms": 3.9566280000000003, "share": 0.123456, "skew_seconds": -2,
                "unsent_bytes": 2048, "oldest_update_seconds": 61, "link": null, "up": true,
                "ended": {"completed": 3}, "budget": {"left": 1, "granted": 2},
                "sessions": [{"peer": "h:1\u{1b}[2J", "live": false, "age_seconds": 2}, {"why": "x"}],
                "nothing": [],
                "executors": {"always_on.test": slots},
                "hosts": [{"name": "local", "state": "up", "executors": {"always_on.test": slots}}],
            }),
        );
        let titles: Vec<&str> = shown.iter().map(|section| section.title.as_str()).collect();
        assert_eq!(titles, ["miner", "sessions", "executors", "hosts"]);
        let Content::Facts(facts) = &shown[0].content else { panic!("{shown:?}") };
        let facts: Vec<_> = facts.iter().map(|(name, cell)| format!("{name}: {}", cell.text())).collect();
        let expected = [
            "jobs: 3",
            "round trip: 4 ms",
            "share: 0.12",
            "skew: -2",
            "unsent bytes: 2.0 KiB",
            "oldest update: 1 min 1 s",
            "up: yes",
            "budget: left 1, granted 2",
            "nothing: none",
        ];
        assert_eq!(facts, expected);
        let texts = |section: &Section| {
            let Content::Table(table) = &section.content else { panic!("{section:?}") };
            let heads = table.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>().join("|");
            let rows = table.rows.iter().map(|row| row.iter().map(Cell::text).collect::<Vec<_>>().join("|"));
            std::iter::once(heads).chain(rows).collect::<Vec<_>>()
        };
        assert_eq!(texts(&shown[1]), ["peer|live|age|why", "h:1\\u{1b}[2J|no|2 s|", "|||x"]);
        assert_eq!(texts(&shown[2]), ["name|declared|free|busy|ending", "always_on.test|2|1|1|0"]);
        assert_eq!(texts(&shown[3])[1], "local|up|always_on.test 1 of 2 free, 1 busy");
        assert_eq!(sections("x", &Value::Null), []);
        assert_eq!(sections("x", &json!(3)).len(), 1);
    }

    #[test]
    fn a_long_list_is_cut_and_says_so() {
        let line = Value::from(Map::from_iter((0..30).map(|n| (n.to_string(), json!(n)))));
        let shown = sections("x", &json!({"sessions": vec![line; ROWS + 1]}));
        assert_eq!(shown[0].title, "sessions: the first 100 of 101");
        let Content::Table(table) = &shown[0].content else { panic!("{shown:?}") };
        assert_eq!((table.rows.len(), table.columns.len()), (ROWS, COLUMNS));
    }
}
