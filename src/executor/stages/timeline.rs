//! How long each part of a job took, and how much it moved. Pure.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::protocol::JsonMap;

/// A part of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The runner, the folder, the operator's program before the job.
    Prepare,
    /// The wait for the full request.
    Request,
    /// The image is looked for and pulled.
    Image,
    /// The volumes are loaded.
    Volumes,
    /// A streaming job runs, and its server is not ready yet.
    Start,
    /// The job runs.
    Run,
    /// Its artifacts are collected.
    Artifacts,
    /// Its output is uploaded.
    Upload,
}

impl Part {
    /// Its name in timelines.
    pub fn name(self) -> &'static str {
        match self {
            Part::Prepare => "prepare",
            Part::Request => "request",
            Part::Image => "image",
            Part::Volumes => "volumes",
            Part::Start => "start",
            Part::Run => "run",
            Part::Artifacts => "artifacts",
            Part::Upload => "upload",
        }
    }
}

#[derive(Debug)]
struct Span {
    part: Part,
    began: Instant,
    took: Duration,
    /// What it moved, if it moves anything: of a run what it wrote to its two streams.
    bytes: Option<u64>,
}

/// The parts of one job, each from its begin to that of the next, so that they add up to the whole.
#[derive(Debug)]
pub(super) struct Timeline {
    /// At most as many as there are parts: none begins twice.
    spans: Vec<Span>,
}

impl Timeline {
    pub(super) fn new(part: Part, now: Instant) -> Self {
        Self { spans: vec![Span { part, began: now, took: Duration::ZERO, bytes: None }] }
    }

    /// The part before ends, and this one begins.
    pub(super) fn begin(&mut self, part: Part, now: Instant) {
        self.end(now);
        self.spans.push(Span { part, began: now, took: Duration::ZERO, bytes: None });
    }

    /// The present part has moved so many bytes.
    pub(super) fn moved(&mut self, bytes: u64) {
        if let Some(span) = self.spans.last_mut() {
            span.bytes = Some(bytes);
        }
    }

    /// The present part ends, for good or because the job does.
    pub(super) fn end(&mut self, now: Instant) {
        if let Some(span) = self.spans.last_mut() {
            span.took = now.saturating_duration_since(span.began);
        }
    }

    /// As the context of a failure has it: a list of `part`, `seconds`, and `bytes` where they are known.
    pub(super) fn to_json(&self) -> Value {
        let span = |span: &Span| {
            let mut fields = JsonMap::from_iter([
                ("part".to_owned(), span.part.name().into()),
                ("seconds".to_owned(), seconds(span.took).into()),
            ]);
            fields.extend(span.bytes.map(|bytes| ("bytes".to_owned(), bytes.into())));
            Value::from(fields)
        };
        self.spans.iter().map(span).collect()
    }
}

/// Milliseconds tell more than anybody needs.
pub(super) fn seconds(took: Duration) -> f64 {
    took.as_millis() as f64 / 1000.0
}

/// `prepare 0.012 s, image 1.204 s, run 3.000 s (17 bytes)`
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Span { part, took, bytes, .. }) in self.spans.iter().enumerate() {
            let comma = if n > 0 { ", " } else { "" };
            write!(f, "{comma}{} {:.3} s", part.name(), seconds(*took))?;
            if let Some(bytes) = bytes {
                write!(f, " ({bytes} bytes)")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_parts_add_up_and_the_last_ends_with_the_job() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut timeline = Timeline::new(Part::Prepare, start);
        timeline.begin(Part::Image, start + ms(12));
        timeline.begin(Part::Run, start + ms(1212));
        timeline.moved(17);
        timeline.end(start + ms(1500));
        assert_eq!(timeline.to_string(), "prepare 0.012 s, image 1.200 s, run 0.288 s (17 bytes)");
        let parts = json!([
            {"part": "prepare", "seconds": 0.012},
            {"part": "image", "seconds": 1.2},
            {"part": "run", "seconds": 0.288, "bytes": 17},
        ]);
        assert_eq!(timeline.to_json(), parts);
    }
}
