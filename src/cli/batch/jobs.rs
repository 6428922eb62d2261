//! The jobs of `phalanx batch`: a file with a job file on each line, and what their answers should be.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::app::jobfile;
use crate::base::rng::Rng;
use crate::base::{small_file, text};
use crate::identity::PublicKey;
use crate::protocol::{ExecutorClass, FacilitatorToValidator, JobResultDetails, V2JobRequest};
use crate::validator::batch::{JobMaker, Judge, Verdict};

/// Bytes of the file: 64 of the largest jobs, or some 100,000 small ones.
const FILE_BYTES: u64 = 64 << 20;

/// Problems that are shown of a file.
const SHOWN: usize = 5;

/// Bytes of an answer that are shown when it is wrong.
const SHOWN_BYTES: usize = 80;

/// The jobs of a file.
#[derive(Debug, Default)]
pub(super) struct JobList {
    jobs: Vec<Arc<V2JobRequest>>,
    /// By the text of the request; `None` of a job that takes every answer.
    expected: Arc<HashMap<String, Option<String>>>,
    digest: String,
}

fn text_of(request: &V2JobRequest) -> String {
    FacilitatorToValidator::from(request.clone()).encode()
}

impl JobList {
    /// Reads the file, and the files that its jobs name. Blocks on the disk.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let fail = |problem: String| format!("jobs file {}: {problem}", path.display());
        let bytes = small_file::read(path, FILE_BYTES).map_err(|error| fail(format!("cannot read it: {error}")))?;
        let text = text::of_file(&bytes).map_err(fail)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let (mut jobs, mut expected, mut problems) = (Vec::new(), HashMap::new(), Vec::new());
        let mut digest = Sha256::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match parse(line, folder) {
                Ok((request, stdout)) => {
                    let text = text_of(&request);
                    // The request has in it what the files hold that the job names. As JSON nothing runs together.
                    digest.update(json!([text, stdout]).to_string());
                    // Of two that differ in that alone, the last that expects something counts.
                    let expects = expected.entry(text).or_insert(None);
                    *expects = stdout.or(expects.take());
                    jobs.push(Arc::new(request));
                }
                Err(problem) => problems.push(format!("line {}: {problem}", number + 1)),
            }
        }
        if jobs.is_empty() && problems.is_empty() {
            problems.push("it has no job; write a job file on each line, as one JSON object".to_owned());
        }
        if !problems.is_empty() {
            let more = problems.len().saturating_sub(SHOWN);
            problems.truncate(SHOWN);
            let more = if more > 0 { format!("; and {more} more lines") } else { String::new() };
            return Err(fail(problems.join("; ") + &more));
        }
        Ok(Self { jobs, expected: Arc::new(expected), digest: hex::encode(digest.finalize()) })
    }

    /// Tells these jobs from others: all that they ask for, the files that they name, and what they expect.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// Gives each miner jobs of its classes, at random.
    pub(super) fn maker(&self) -> Box<dyn JobMaker> {
        let mut by_class: HashMap<ExecutorClass, Vec<Arc<V2JobRequest>>> = HashMap::new();
        for job in &self.jobs {
            by_class.entry(job.executor_class).or_default().push(job.clone());
        }
        Box::new(move |_: &PublicKey, class: ExecutorClass, rng: &mut Rng| {
            let jobs = by_class.get(&class)?;
            jobs.get((rng.next_u64() % jobs.len() as u64) as usize).cloned()
        })
    }

    /// Takes every answer, or the one that is expected.
    pub(super) fn judge(&self) -> Box<dyn Judge> {
        Box::new(Expected(self.expected.clone()))
    }
}

/// What the answers should be, by the text of the request.
struct Expected(Arc<HashMap<String, Option<String>>>);

impl Judge for Expected {
    fn judge(&mut self, request: &V2JobRequest, answer: &JobResultDetails) -> Verdict {
        if self.0.values().all(Option::is_none) {
            return Verdict::Right;
        }
        match self.0.get(&text_of(request)) {
            Some(Some(stdout)) if *stdout != answer.docker_process_stdout => {
                let shown = crate::base::text::truncated(&answer.docker_process_stdout, SHOWN_BYTES);
                Verdict::Wrong(format!("stdout begins with {shown:?}, which is not what the job expects"))
            }
            _ => Verdict::Right,
        }
    }

    fn knows(&self, request: &V2JobRequest) -> bool {
        self.0.contains_key(&text_of(request))
    }
}

/// One line: the job, and what it should write.
fn parse(line: &str, folder: &Path) -> Result<(V2JobRequest, Option<String>), String> {
    let mut value: Value = serde_json::from_str(line).map_err(|error| format!("it is not JSON: {error}"))?;
    let expected = match value.as_object_mut().and_then(|object| object.shift_remove("expected_stdout")) {
        Some(Value::String(text)) => Some(text),
        Some(other) => return Err(format!("expected_stdout: {other} should be a text")),
        None => None,
    };
    let spec = jobfile::parse_in(folder, &value.to_string()).map_err(|problems| problems.join("; "))?;
    if spec.unsigned().streaming_details.is_some() {
        return Err("streaming_details: a batch has no streaming jobs; leave it out".to_owned());
    }
    Ok((spec.unsigned().clone(), expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<JobList, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs");
        std::fs::write(&path, text).unwrap();
        JobList::load(&path).map_err(|problem| problem.replace(&path.display().to_string(), "FILE"))
    }

    const JOB: &str = r#"{"executor_class": "always_on.test", "docker_image": "none", "args": ["true"]}"#;

    #[test]
    fn each_mistake_is_named_with_its_line() {
        for (text, problem) in [
            ("", "jobs file FILE: it has no job; write a job file on each line, as one JSON object"),
            ("{", "jobs file FILE: line 1: it is not JSON: EOF while parsing an object at line 1 column 1"),
            ("\n[1]", "jobs file FILE: line 2: it should be one JSON object"),
            (
                r#"{"docker_image": "x", "executor_class": "always_on.test", "expected_stdout": 5}"#,
                "jobs file FILE: line 1: expected_stdout: 5 should be a text",
            ),
        ] {
            assert_eq!(load(text).map(|_| ()).unwrap_err(), problem);
        }
        let many = load(&"{\n".repeat(9)).map(|_| ()).unwrap_err();
        assert!(many.ends_with("; and 4 more lines"), "{many}");
    }

    #[test]
    fn other_jobs_have_another_digest_also_by_a_file_that_they_name() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let digest = |text: &str| {
            write("jobs", text);
            JobList::load(&folder.path().join("jobs")).unwrap().digest().to_owned()
        };
        write("input", "1");
        let job = JOB.replace("[\"true\"]", "[\"true\"], \"files\": {\"in\": {\"path\": \"input\"}}");
        let first = digest(&job);
        assert_eq!(digest(&format!("\n{}\n", job.replace(", ", ",   "))), first, "the same in other words");
        write("input", "2");
        let changed = digest(&job);
        write("input", "1");
        let expects = digest(&job.replace("\"docker_image\"", "\"expected_stdout\": \"\", \"docker_image\""));
        let all = [first.clone(), changed, expects, digest(&format!("{job}\n{job}")), digest(JOB)];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len(), "{all:?}");
        assert_eq!(digest(&job), first);
    }

    #[test]
    fn an_answer_is_right_unless_it_differs_from_what_the_job_expects() {
        let list =
            load(&format!("{JOB}\n{}", JOB.replace("true\"]}", "echo\"], \"expected_stdout\": \"42\\n\"}"))).unwrap();
        let mut answer = JobResultDetails {
            docker_process_stdout: "41\n".to_owned(),
            docker_process_stderr: String::new(),
            artifacts: None,
            upload_results: None,
            extra: Default::default(),
        };
        let mut judge = list.judge();
        assert_eq!(judge.judge(&list.jobs[0], &answer), Verdict::Right);
        let why = "stdout begins with \"41\\n\", which is not what the job expects";
        assert_eq!(judge.judge(&list.jobs[1], &answer), Verdict::Wrong(why.to_owned()));
        answer.docker_process_stdout = "42\n".to_owned();
        assert_eq!(judge.judge(&list.jobs[1], &answer), Verdict::Right);
        let one = load(JOB).unwrap().judge();
        assert_eq!([&list.jobs[0], &list.jobs[1]].map(|job| one.knows(job)), [true, false]);
    }
}
