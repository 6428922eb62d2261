//! The metric names in the dashboard and the alert rules of `packaging/` are names that the source has.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const FILES: [&str; 2] = ["packaging/grafana/phalanx.json", "packaging/prometheus/phalanx.yml"];

/// Labels that Prometheus itself adds.
const ADDED: [&str; 2] = ["instance", "le"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The words of a text that are names of metrics.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("phalanx_")).map(str::to_owned).collect()
}

/// The names that code outside of unit tests writes as a text.
fn exported(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            exported(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let texts = code.split('"').filter(|text| text.starts_with("phalanx_"));
            found.extend(texts.filter(|text| !text.contains(['{', ' '])).map(str::to_owned));
        }
    }
}

/// The labels that an expression selects or groups by.
fn labels(text: &str) -> BTreeSet<String> {
    let selected = text.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let selected = selected.flat_map(|inside| inside.split(',')).filter_map(|pair| pair.split(['=', '!']).next());
    let grouped = text.split("by (").skip(1).filter_map(|rest| rest.split(')').next()).flat_map(|list| list.split(','));
    selected.chain(grouped).map(|label| label.trim().to_owned()).collect()
}

/// The expressions of a file.
fn expressions(file: &str, text: &str) -> Vec<String> {
    if file.ends_with(".json") {
        // The quotes in an expression are escaped.
        let begun = text.split("\"expr\": \"").skip(1);
        return begun.map(|rest| rest.replace("\\\"", "'").split('"').next().unwrap().to_owned()).collect();
    }
    // One on several lines ends where the next key begins.
    let keys = ["for:", "labels:", "annotations:", "- alert:"];
    let mut found: Vec<String> = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(begin) = line.strip_prefix("expr:") {
            found.push(begin.trim_start_matches(" >-").to_owned());
            inside = true;
        } else if keys.iter().any(|key| line.starts_with(key)) {
            inside = false;
        } else if let (true, Some(last)) = (inside, found.last_mut()) {
            last.push_str(line);
        }
    }
    found
}

/// The labels that metrics may have, from the list in the source.
fn allowed() -> BTreeSet<String> {
    let text = read("src/ops/metrics.rs");
    let (_, list) = text.split_once("pub const LABELS: &[&str] =").unwrap();
    let (list, _) = list.split_once(';').unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let mut exported_names = BTreeSet::new();
    exported(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut exported_names);
    let allowed = allowed();
    assert!(exported_names.len() > 60 && allowed.contains("outcome"), "{exported_names:?} {allowed:?}");
    for file in FILES {
        let text = read(file);
        let expressions = expressions(file, &text);
        assert!(expressions.len() > 15, "{file}: {expressions:?}");
        let mut used = BTreeSet::new();
        for expression in &expressions {
            let named = names(expression);
            assert!(!named.is_empty(), "{file}: no metric in {expression}");
            used.extend(named);
            for label in labels(expression) {
                let known = allowed.contains(&label) || ADDED.contains(&label.as_str());
                assert!(known, "{file}: label {label} in {expression}");
            }
        }
        for name in used {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
            let known = exported_names.contains(&name) || base.is_some_and(|base| exported_names.contains(base));
            assert!(known, "{file}: no role exports {name}");
        }
    }
}
