//! Counters, gauges and histograms, and their Prometheus text (format 0.0.4).
//!
//! Label values are `&'static str`, so nothing unbounded (an uuid, an address) can become one; names that the settings
//! give are made such by [`label`]. Names are checked when a
//! metric is made: `phalanx_` first; a counter ends in `_total`, a histogram in `_seconds` or `_bytes`; times are in
//! seconds and sizes in bytes, and say so at the end; labels are those of [`LABELS`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::base::lock::lock;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of time buckets, in seconds: from a disk commit to a long job.
pub const SECONDS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0];

/// Every label that a metric may have: a new one is a decision, because each value is a series of its own.
pub const LABELS: &[&str] =
    &["class", "host", "kind", "outcome", "peer", "place", "reason", "result", "state", "type", "version"];

/// Labels of one series: names of [`LABELS`] with their values.
pub type Labels<'a> = &'a [Label];

type Label = (&'static str, &'static str);

/// Names that the settings of a process may give to what it counts, in all of its life.
const GIVEN_LABELS: usize = 256;

/// What stands for a name beyond [`GIVEN_LABELS`].
const OTHER: &str = "other";

/// A name that the settings give, as a host's, as the value of a label. It is kept for as long as the process lives.
pub fn label(name: &str) -> &'static str {
    static GIVEN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut given = lock(&GIVEN);
    if let Some(known) = given.get(name) {
        return known;
    }
    if given.len() >= GIVEN_LABELS {
        return OTHER;
    }
    let name: &'static str = String::from(name).leak();
    given.insert(name);
    name
}

/// All metrics of a process; clones are the same registry.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Mutex<BTreeMap<&'static str, Family>>>);

struct Family {
    help: &'static str,
    kind: &'static str,
    series: BTreeMap<Vec<Label>, Series>,
}

enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// A number that only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

/// A number that goes up and down; the bits of an `f64`.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

/// Counts observations by size.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug)]
struct Buckets {
    bounds: &'static [f64],
    /// One for each bound, and one for what is larger than all of them.
    counts: Vec<AtomicU64>,
    sum: Mutex<f64>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metrics({} families)", lock(&self.0).len())
    }
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Raises it to a total that is counted elsewhere; it never goes back.
    pub fn raise(&self, total: u64) {
        self.0.fetch_max(total, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: usize) {
        self.set_to(value as f64);
    }

    /// Sets the value, which may be a fraction or less than 0.
    pub fn set_to(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Adds `n`, which may be less than 0.
    pub fn add(&self, n: f64) {
        let more = |bits| Some((f64::from_bits(bits) + n).to_bits());
        // It fails only where there is nothing to add.
        let _before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// The present value.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Histogram {
    /// Counts one observation, in the unit of the metric's name.
    pub fn observe(&self, value: f64) {
        let bucket = self.0.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.0.bounds.len());
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        *lock(&self.0.sum) += value;
    }

    /// Counts one duration, for a metric in seconds.
    pub fn observe_time(&self, took: Duration) {
        self.observe(took.as_secs_f64());
    }
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter of that name and those labels, made on the first call.
    ///
    /// # Panics
    /// If the name breaks the rules of this module, or is taken by a metric of another kind: mistakes in the program.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Counter {
        let made = || Series::Counter(Counter::default());
        match self.series(name, help, "counter", labels, made) {
            Series::Counter(counter) => counter,
            _ => panic!("{name} is not a counter"),
        }
    }

    /// The gauge of that name and those labels, made on the first call.
    ///
    /// # Panics
    /// As [`Metrics::counter`].
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Gauge {
        match self.series(name, help, "gauge", labels, || Series::Gauge(Gauge::default())) {
            Series::Gauge(gauge) => gauge,
            _ => panic!("{name} is not a gauge"),
        }
    }

    /// The histogram of that name and those labels, made on the first call with these upper bounds.
    ///
    /// # Panics
    /// As [`Metrics::counter`].
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        bounds: &'static [f64],
    ) -> Histogram {
        let made = || {
            let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
            Series::Histogram(Histogram(Arc::new(Buckets { bounds, counts, sum: Mutex::new(0.0) })))
        };
        match self.series(name, help, "histogram", labels, made) {
            Series::Histogram(histogram) => histogram,
            _ => panic!("{name} is not a histogram"),
        }
    }

    fn series(
        &self,
        name: &'static str,
        help: &'static str,
        kind: &'static str,
        labels: Labels<'_>,
        made: impl FnOnce() -> Series,
    ) -> Series {
        if let Err(problem) = check(name, kind, labels) {
            panic!("{kind} {name}: {problem}");
        }
        let mut families = lock(&self.0);
        let family = families.entry(name).or_insert_with(|| Family { help, kind, series: BTreeMap::new() });
        match family.series.entry(labels.to_vec()).or_insert_with(made) {
            Series::Counter(counter) => Series::Counter(counter.clone()),
            Series::Gauge(gauge) => Series::Gauge(gauge.clone()),
            Series::Histogram(histogram) => Series::Histogram(histogram.clone()),
        }
    }

    /// Drops what the metric of that name has with this label: there is no such thing any more.
    pub fn forget(&self, name: &'static str, label: (&'static str, &'static str)) {
        if let Some(family) = lock(&self.0).get_mut(name) {
            family.series.retain(|labels, _| !labels.contains(&label));
        }
    }

    /// Logs, at debug, what is not 0: of a program that nobody asks, because it ends with its work.
    pub fn log(&self) {
        let counted = self.render();
        for line in counted.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0")) {
            log::debug!("counted: {line}");
        }
    }

    /// Everything, as Prometheus text: sorted by name, then by labels.
    pub fn render(&self) -> String {
        let families = lock(&self.0);
        let mut out = String::new();
        for (name, family) in families.iter() {
            line(&mut out, format_args!("# HELP {name} {}", family.help.replace('\\', "\\\\").replace('\n', "\\n")));
            line(&mut out, format_args!("# TYPE {name} {}", family.kind));
            for (labels, series) in &family.series {
                match series {
                    Series::Counter(counter) => {
                        line(&mut out, format_args!("{name}{} {}", set(labels, None), counter.get()))
                    }
                    Series::Gauge(gauge) => line(&mut out, format_args!("{name}{} {}", set(labels, None), gauge.get())),
                    Series::Histogram(histogram) => histogram.render(&mut out, name, labels),
                }
            }
        }
        out
    }
}

impl Histogram {
    fn render(&self, out: &mut String, name: &str, labels: Labels<'_>) {
        let Buckets { bounds, counts, sum } = &*self.0;
        let mut total = 0;
        for (i, count) in counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let bound = bounds.get(i).map_or("+Inf".to_owned(), f64::to_string);
            line(out, format_args!("{name}_bucket{} {total}", set(labels, Some(&bound))));
        }
        line(out, format_args!("{name}_sum{} {}", set(labels, None), *lock(sum)));
        line(out, format_args!("{name}_count{} {total}", set(labels, None)));
    }
}

/// What is wrong with a metric's name or labels, and what would be right.
fn check(name: &str, kind: &str, labels: Labels<'_>) -> Result<(), String> {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !name.starts_with("phalanx_") || !plain(name) {
        return Err("it should be phalanx_ and then lower case letters, digits and _".to_owned());
    }
    if (kind == "counter") != name.ends_with("_total") {
        return Err("a counter, and nothing else, must end in _total".to_owned());
    }
    let unit = name.strip_suffix("_total").unwrap_or(name).rsplit('_').next().unwrap_or_default();
    if kind == "histogram" && !matches!(unit, "seconds" | "bytes") {
        return Err("a histogram must end in _seconds or _bytes".to_owned());
    }
    for word in name.split('_') {
        let (wanted, right) = match word {
            "age" | "duration" | "latency" | "time" | "uptime" => ("seconds", unit == "seconds"),
            "hours" | "micros" | "millis" | "milliseconds" | "minutes" | "ms" | "us" => ("seconds", false),
            "memory" | "size" => ("bytes", unit == "bytes"),
            "kb" | "kib" | "kilobytes" | "mb" | "megabytes" | "mib" => ("bytes", false),
            _ => continue,
        };
        if !right {
            return Err(format!("{word}: it should be measured in {wanted} and end in _{wanted}"));
        }
    }
    match labels.iter().find(|(label, _)| !LABELS.contains(label)) {
        Some((label, _)) => Err(format!("its label {label} is not one of {}", LABELS.join(", "))),
        None => Ok(()),
    }
}

fn line(out: &mut String, text: fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a String cannot fail");
}

fn set(labels: Labels<'_>, bound: Option<&str>) -> String {
    let quoted = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let mut pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", quoted(value))).collect();
    pairs.extend(bound.map(|bound| format!("le=\"{bound}\"")));
    if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let metrics = Metrics::new();
        let ok = metrics.counter("phalanx_frames_total", "Frames.", &[("result", "ok")]);
        ok.inc();
        metrics.counter("phalanx_frames_total", "Frames.", &[("result", "ok")]).add(2);
        metrics.counter("phalanx_frames_total", "Frames.", &[("result", "bad \"one\"")]).inc();
        metrics.gauge("phalanx_sessions", "Open sessions.", &[]).set(7);
        metrics.gauge("phalanx_skew_seconds", "Skew.", &[]).set_to(-0.25);
        let wait = metrics.histogram("phalanx_wait_seconds", "Waits.", &[("type", "disk")], &[0.5, 2.0]);
        for seconds in [0.25, 0.5, 1.0, 8.0] {
            wait.observe(seconds);
        }
        let expected = "\
# HELP phalanx_frames_total Frames.
# TYPE phalanx_frames_total counter
phalanx_frames_total{result=\"bad \\\"one\\\"\"} 1
phalanx_frames_total{result=\"ok\"} 3
# HELP phalanx_sessions Open sessions.
# TYPE phalanx_sessions gauge
phalanx_sessions 7
# HELP phalanx_skew_seconds Skew.
# TYPE phalanx_skew_seconds gauge
phalanx_skew_seconds -0.25
# HELP phalanx_wait_seconds Waits.
# TYPE phalanx_wait_seconds histogram
phalanx_wait_seconds_bucket{type=\"disk\",le=\"0.5\"} 2
phalanx_wait_seconds_bucket{type=\"disk\",le=\"2\"} 3
phalanx_wait_seconds_bucket{type=\"disk\",le=\"+Inf\"} 4
phalanx_wait_seconds_sum{type=\"disk\"} 9.75
phalanx_wait_seconds_count{type=\"disk\"} 4
";
        assert_eq!(metrics.render(), expected);
    }

    #[test]
    fn names_that_settings_give_are_labels_until_they_are_forgotten() {
        let (metrics, [a, b]) = (Metrics::new(), ["a", "b"].map(label));
        assert!(std::ptr::eq(a, label("a")), "the same name is kept once");
        for (host, value) in [(a, 1), (b, 2)] {
            metrics.gauge("phalanx_x", "X.", &[("host", host)]).set(value);
        }
        metrics.forget("phalanx_x", ("host", a));
        metrics.forget("phalanx_unknown", ("host", a));
        let text = metrics.render();
        assert!(text.contains("phalanx_x{host=\"b\"} 2") && !text.contains("host=\"a\""), "{text}");
    }

    #[test]
    fn names_and_labels_are_checked() {
        for (name, kind) in [
            ("phalanx_frames_total", "counter"),
            ("phalanx_sent_bytes_total", "counter"),
            ("phalanx_job_time_seconds_total", "counter"),
            ("phalanx_jobs", "gauge"),
            ("phalanx_resident_memory_bytes", "gauge"),
            ("phalanx_outbox_age_seconds", "gauge"),
            ("phalanx_wait_seconds", "histogram"),
            ("phalanx_frame_bytes", "histogram"),
        ] {
            assert_eq!(check(name, kind, &[("reason", "x")]), Ok(()), "{name}");
        }
        for (name, kind, says) in [
            ("frames_total", "counter", "phalanx_"),
            ("phalanx_Frames_total", "counter", "lower case"),
            ("phalanx_frames", "counter", "_total"),
            ("phalanx_frames_total", "gauge", "_total"),
            ("phalanx_frames", "histogram", "_seconds or _bytes"),
            ("phalanx_outbox_age", "gauge", "_seconds"),
            ("phalanx_wait_ms", "gauge", "_seconds"),
            ("phalanx_wait_ms_seconds", "histogram", "_seconds"),
            ("phalanx_size_seconds", "histogram", "_bytes"),
            ("phalanx_sent_kib_total", "counter", "_bytes"),
        ] {
            let problem = check(name, kind, &[]).unwrap_err();
            assert!(problem.contains(says), "{name}: {problem}");
        }
        let problem = check("phalanx_jobs", "gauge", &[("reason", "x"), ("uuid", "y")]).unwrap_err();
        assert!(problem.contains("uuid is not one of class, "), "{problem}");
    }

    #[test]
    #[should_panic(expected = "counter phalanx_frames: a counter, and nothing else, must end in _total")]
    fn a_wrong_name_is_a_mistake_in_the_program() {
        Metrics::new().counter("phalanx_frames", "Frames.", &[]);
    }

    #[test]
    #[should_panic(expected = "its label hotkey is not one of")]
    fn so_is_a_wrong_label() {
        Metrics::new().gauge("phalanx_jobs", "Jobs.", &[("hotkey", "x")]);
    }
}
