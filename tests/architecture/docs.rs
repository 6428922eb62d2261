//! What the documents say of the files: each file that is named exists, and each link leads somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The documents, each with its path from the root.
pub fn documents(root: &Path) -> Vec<(String, String)> {
    let mut paths: Vec<_> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root.join(name)).into();
    // Beside them are folders of pictures.
    let texts = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    paths.extend(texts.filter(|path| path.is_file()));
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// What a document names in backticks as a path of source (`link/rate.rs`, `tasks/scheduler/`) and no file has as its
/// end. `files` are all paths from the root; folders end with a slash.
pub fn missing_files(text: &str, files: &BTreeSet<String>) -> BTreeSet<String> {
    let is_path = |name: &&str| name.contains('/') && (name.ends_with(".rs") || name.ends_with('/'));
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "/_.-".contains(c);
    let is_plain = |name: &&str| !name.starts_with('/') && name.chars().all(is_part);
    let exists = |name: &str| files.contains(name) || files.iter().any(|file| file.ends_with(&format!("/{name}")));
    let spans = prose(text).flat_map(|line| line.split('`').skip(1).step_by(2));
    spans.filter(is_path).filter(is_plain).filter(|name| !exists(name)).map(str::to_owned).collect()
}

/// The links of a document, as the target's path and the heading in it.
pub fn links(text: &str) -> Vec<(&str, &str)> {
    let targets = prose(text).flat_map(|line| line.split("](").skip(1)).filter_map(|rest| rest.split(')').next());
    let here = targets.filter(|target| !target.contains("://"));
    here.map(|target| target.split_once('#').unwrap_or((target, ""))).collect()
}

/// The anchors of a document's headings, as code hosts make them.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: &char| c.is_alphanumeric() || *c == ' ' || *c == '-';
    headings.map(|heading| heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// The lines outside of blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    text.split("```").step_by(2).flat_map(str::lines)
}

/// The texts of an enum of the wire or of a match, as `Name = "text"` or `Self::Name => "text"`, between a line that
/// contains `from` and the next one that is `until`.
pub fn texts_of<'a>(source: &'a str, from: &str, until: &str) -> Vec<&'a str> {
    let lines = source.lines().skip_while(|line| !line.contains(from)).skip(1).take_while(|line| line.trim() != until);
    let quoted = |line: &'a str| line.split_once(['=', '>'])?.1.trim_start_matches('>').trim().strip_prefix('"');
    lines.filter_map(quoted).filter_map(|rest| rest.split('"').next()).collect()
}

/// The names of the tests in a file of Rust.
pub fn tests_of(source: &str) -> impl Iterator<Item = &str> {
    let behind = source.split("#[test]\n").skip(1);
    behind.filter_map(|rest| rest.lines().find_map(|line| line.trim_start().strip_prefix("fn ")?.split('(').next()))
}

/// What of a table, its cells behind the first ones, neither names one of these tests nor says why there is none.
pub fn cells_without_test(table: &str, tests: &BTreeSet<&str>) -> BTreeSet<String> {
    const REASONS: [&str; 4] = ["refused", "done by Celery's worker", "nothing ", "as the two beside"];
    let is_name =
        |span: &&str| span.contains('_') && span.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c));
    let mut wrong = BTreeSet::new();
    for row in table.lines().skip(2) {
        let mut cells = row.trim_matches('|').split(" | ").map(str::trim);
        let feature = cells.next().unwrap_or_default();
        for cell in cells {
            let names: Vec<_> = cell.split('`').skip(1).step_by(2).filter(is_name).collect();
            let is_told = !names.is_empty() || REASONS.iter().any(|reason| cell.starts_with(reason));
            if !is_told || names.iter().any(|name| !tests.contains(name)) {
                wrong.insert(format!("{feature}: {cell}"));
            }
        }
    }
    wrong
}

#[test]
fn each_cell_of_the_matrix_of_celery_names_a_test_or_says_why_there_is_none() {
    let sources: Vec<String> = super::lines(&["tests"]).into_iter().map(|(_, line)| line).collect();
    let source = sources.join("\n");
    let tests: BTreeSet<&str> = tests_of(&source).collect();
    assert!(tests.len() > 70, "{tests:?}");
    let document = fs::read_to_string(super::root().join("docs/celery-matrix.md")).unwrap();
    let table: Vec<&str> =
        document.lines().skip_while(|l| !l.starts_with('|')).take_while(|l| l.starts_with('|')).collect();
    assert!(table.len() > 30, "{} rows", table.len());
    let wrong = cells_without_test(&table.join("\n"), &tests);
    assert!(wrong.is_empty(), "{wrong:#?}");

    let known: BTreeSet<&str> = tests_of("#[test]\n#[ignore]\nfn a_b() {}\nfn c_d() {}").collect();
    let table =
        "| x | y |\n| --- | --- |\n| one | `a_b` |\n| two | `c_d` |\n| three | `Flag` |\n| four | refused: `x` |";
    let wrong = cells_without_test(table, &known);
    assert_eq!(wrong, super::set(&["two: `c_d`", "three: `Flag`"]));
}
