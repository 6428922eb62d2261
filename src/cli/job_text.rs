//! What a job wrote, for people: the beginning of it, all of it, or as it is.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::job_files;
use crate::app::job_client::SubmittedJob;
use crate::ops::foreign::Foreign;
use crate::ops::redact::OneLine;

/// Lines that are shown of each of a job's two outputs: enough to see that it is the right job.
const SHOWN_LINES: usize = 3;

/// Characters that are shown of a line: two lines and a half of a terminal.
const SHOWN_CHARS: usize = 200;

/// Artifacts that are named.
const SHOWN_ARTIFACTS: usize = 10;

/// What is shown of a job, and what is kept of it.
#[derive(Debug, clap::Args)]
pub struct OutputArgs {
    /// Show all that a job wrote, not only the beginning
    #[arg(long, env = "PHALANX_FULL")]
    full: bool,
    /// Show all that a job wrote as it is: the terminal obeys what is in it. No environment variable asks for this
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Write what each job wrote to files: DIR/UUID/stdout, DIR/UUID/stderr and, under their names, DIR/UUID/artifacts
    #[arg(long, value_name = "DIR", env = "PHALANX_OUTPUT")]
    pub(super) output: Option<PathBuf>,
}

impl OutputArgs {
    /// Makes the folder of `--output`, if it is given.
    ///
    /// # Errors
    /// The flag, and why it cannot be made.
    pub(super) fn prepare(&self) -> Result<(), String> {
        let Some(folder) = &self.output else { return Ok(()) };
        job_files::prepare(folder).map_err(|error| format!("--output {}: {error}", folder.display()))
    }

    /// How jobs are shown, by these flags and `--json`.
    pub(super) fn form(&self, json: bool) -> Form {
        match (json, self.raw, self.full) {
            (true, ..) => Form::Json,
            (false, true, _) => Form::Raw,
            (false, false, true) => Form::Full,
            (false, false, false) => Form::Short,
        }
    }
}

/// How jobs are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// An object each, with all that they wrote.
    Json,
    /// The beginning of what they wrote, escaped.
    #[default]
    Short,
    /// All that they wrote, escaped.
    Full,
    /// All that they wrote, as it is.
    Raw,
}

impl Form {
    /// What a job wrote, in lines: of its stdout behind `|`, of its stderr behind `!`, but for [`Form::Raw`]; and what
    /// its artifacts are called, with their sizes.
    pub(super) fn output(self, job: &SubmittedJob) -> String {
        let mut out = String::new();
        for (mark, text) in [('|', &job.stdout), ('!', &job.stderr)] {
            match self {
                Self::Short => beginning(&mut out, mark, text),
                Self::Json | Self::Full => text.lines().for_each(|text| line(&mut out, format_args!("{mark} {text}"))),
                Self::Raw => {
                    out += text.as_written();
                    out += if text.as_written().ends_with('\n') || text.as_written().is_empty() { "" } else { "\n" };
                }
            }
        }
        let shown = if self == Self::Short { SHOWN_ARTIFACTS } else { usize::MAX };
        for (path, content) in job.artifacts().take(shown) {
            match content {
                Some(content) => line(&mut out, format_args!("artifact {path:.SHOWN_CHARS$}, {} bytes", content.len())),
                None => line(&mut out, format_args!("artifact {path:.SHOWN_CHARS$}, which is not base64")),
            }
        }
        if job.artifacts().nth(shown).is_some() {
            line(&mut out, format_args!("… ({} artifacts in all)", job.artifacts().count()));
        }
        out
    }

    /// A text of some words, as a status or an error.
    pub(super) fn words(self, text: &Foreign) -> String {
        if self == Self::Short { format!("{text:.SHOWN_CHARS$}") } else { text.to_string() }
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "    {text}").expect("writing to a String cannot fail");
}

fn beginning(out: &mut String, mark: char, text: &Foreign) {
    let is_long = |line: OneLine<'_>| line.0.chars().nth(SHOWN_CHARS).is_some();
    text.lines().take(SHOWN_LINES).for_each(|text| line(out, format_args!("{mark} {text:.SHOWN_CHARS$}")));
    if text.lines().nth(SHOWN_LINES).is_some() || text.lines().take(SHOWN_LINES).any(is_long) {
        line(out, format_args!("{mark} … ({} characters in all)", text.as_written().chars().count()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(stdout: &str, stderr: &str, artifacts: Value) -> SubmittedJob {
        let uuid = "3f3d3b38-8b0f-4a8c-a5cb-7a4c0f3b3e10";
        let job =
            json!({"uuid": uuid, "status_history": [], "stdout": stdout, "stderr": stderr, "artifacts": artifacts});
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn the_beginning_is_shown_and_how_much_there_is() {
        let long = "ä".repeat(SHOWN_CHARS + 1);
        let artifacts = json!({"/artifacts/a\u{9b}": "AP8=", "/artifacts/b": "no base64", "/artifacts/c": null});
        let shown = Form::Short.output(&job("1\n2\r\n\n4\n", &long, artifacts));
        let cut = "ä".repeat(SHOWN_CHARS);
        let expected = [
            "| 1",
            "| 2",
            "| ",
            "| … (8 characters in all)",
            &format!("! {cut}…"),
            "! … (201 characters in all)",
            "artifact /artifacts/a\\u{9b}, 2 bytes",
            "artifact /artifacts/b, which is not base64",
            "artifact /artifacts/c, which is not base64",
        ];
        let expected: String = expected.iter().map(|line| format!("    {line}\n")).collect();
        assert_eq!(shown, expected);
        assert_eq!(Form::Short.output(&job("1\n2\n3\n", "", Value::Null)), "    | 1\n    | 2\n    | 3\n");
        assert_eq!(Form::Short.output(&job("", "", json!({}))), "");
        let many: serde_json::Map<_, _> = (0..=SHOWN_ARTIFACTS).map(|n| (format!("/a/{n}"), json!(""))).collect();
        let shown = Form::Short.output(&job("", "", many.clone().into()));
        assert!(shown.ends_with("    artifact /a/9, 0 bytes\n    … (11 artifacts in all)\n"), "{shown}");
        assert_eq!(Form::Full.output(&job("", "", many.into())).lines().count(), SHOWN_ARTIFACTS + 1);
    }

    #[test]
    fn all_is_shown_escaped_unless_it_is_asked_for_as_it_is() {
        let hostile = "\u{1b}[2J\u{9b}31m\u{202e}\r.\n".repeat(SHOWN_LINES + 1);
        let job = job(&hostile, "x", Value::Null);
        for form in [Form::Short, Form::Full] {
            let shown = form.output(&job);
            assert!(!shown.contains(|c: char| c != '\n' && c.is_control() || c == '\u{202e}'), "{shown:?}");
            assert!(shown.starts_with("    | \\u{1b}[2J\\u{9b}31m\\u{202e}\\r.\n"), "{shown:?}");
        }
        assert_eq!(Form::Full.output(&job).lines().count(), SHOWN_LINES + 2);
        assert_eq!(Form::Raw.output(&job), format!("{hostile}x\n"));
    }

    #[test]
    fn words_are_cut_where_outputs_are() {
        let text = Foreign::from("\u{9b}".repeat(SHOWN_CHARS + 1));
        assert_eq!(Form::Short.words(&text), "\\u{9b}".repeat(SHOWN_CHARS) + "…");
        assert_eq!(Form::Raw.words(&text), "\\u{9b}".repeat(SHOWN_CHARS + 1));
    }
}
