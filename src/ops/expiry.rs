//! When certificates end: said in time, in the log, on the pages and as a metric.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::health::Health;
use super::metrics::Metrics;
use crate::base::lock::lock;

/// How long before its end a certificate is warned of, in seconds: who renews every 90 days does it 30 days before.
pub const WARN_BEFORE: u64 = 14 * DAY;

const DAY: u64 = 86_400;

/// The part of the health that is down when a certificate is over.
const PART: &str = "certificate";

/// The end of one certificate, which moves when a new one is read; clones are the same.
#[derive(Debug, Clone)]
pub struct Expiry(Arc<Certificate>);

#[derive(Debug)]
struct Certificate {
    kind: &'static str,
    file: String,
    /// Seconds since 1970; 0 if it never ends, or if that is not known.
    until: AtomicU64,
    /// The day of the last warning in the log, in days since 1970.
    warned: AtomicU64,
}

/// What is to be said of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ends {
    /// It is over.
    Over(String),
    /// It ends within two weeks.
    Soon(String),
}

impl Expiry {
    /// A certificate in `file` of this kind, one of `server`, `client` and `authority`, that is good until then.
    pub fn new(kind: &'static str, file: impl Into<String>, until: Option<u64>) -> Self {
        let (until, warned) = (AtomicU64::new(until.unwrap_or(0)), AtomicU64::new(0));
        Self(Arc::new(Certificate { kind, file: file.into(), until, warned }))
    }

    /// What it is, for people.
    pub fn what(&self) -> String {
        format!("{} certificate {}", self.0.kind, self.0.file)
    }

    /// There is a new certificate.
    pub fn set(&self, until: Option<u64>) {
        self.0.until.store(until.unwrap_or(0), Ordering::Relaxed);
        self.0.warned.store(0, Ordering::Relaxed);
    }

    /// Seconds since 1970 until which it is good, if that is known.
    pub fn until(&self) -> Option<u64> {
        Some(self.0.until.load(Ordering::Relaxed)).filter(|until| *until > 0)
    }

    /// What is to be said of it at this time, in seconds since 1970.
    pub fn ends(&self, now: u64) -> Option<Ends> {
        let until = self.until()?;
        match until.checked_sub(now) {
            None | Some(0) => {
                let days = (now - until) / DAY;
                Some(Ends::Over(format!("the {} is over since {days} days; renew it", self.what())))
            }
            Some(left @ 1..WARN_BEFORE) => {
                let (days, hours) = (left / DAY, left % DAY / 3600);
                Some(Ends::Soon(format!("the {} ends in {days} days and {hours} hours; renew it", self.what())))
            }
            Some(_) => None,
        }
    }

    /// Warns in the log of what is to be said, once a day.
    pub fn warn(&self, now: u64) {
        let today = now / DAY;
        if let Some(Ends::Over(text) | Ends::Soon(text)) = self.ends(now)
            && self.0.warned.swap(today, Ordering::Relaxed) != today
        {
            log::warn!("{text}");
        }
    }
}

/// The certificates of a process; clones are the same list.
#[derive(Debug, Clone, Default)]
pub struct Expiries(Arc<Mutex<Vec<Expiry>>>);

impl Expiries {
    /// Watches one more, and warns at once if it ends soon.
    pub fn add(&self, expiry: Expiry, now: u64) {
        expiry.warn(now);
        lock(&self.0).push(expiry);
    }

    /// Brings health and metrics up to date; gives the warnings.
    pub(super) fn look(&self, health: &Health, metrics: &Metrics, now: u64) -> Vec<String> {
        let all = lock(&self.0).clone();
        let (mut over, mut warnings) = (Vec::new(), Vec::new());
        for expiry in &all {
            expiry.warn(now);
            match expiry.ends(now) {
                Some(Ends::Over(text)) => over.push(text),
                Some(Ends::Soon(text)) => warnings.push(text),
                None => {}
            }
            if let Some(until) = expiry.until() {
                let help = "Time until the certificate ends; the least of its kind.";
                let gauge = metrics.gauge("phalanx_certificate_expiry_seconds", help, &[("kind", expiry.0.kind)]);
                let of_kind = all.iter().filter(|other| other.0.kind == expiry.0.kind).filter_map(Expiry::until);
                let left = of_kind.min().unwrap_or(until).saturating_sub(now);
                gauge.set(usize::try_from(left).unwrap_or(usize::MAX));
            }
        }
        match over.is_empty() {
            _ if all.is_empty() => {}
            true => health.up(PART),
            false => health.down(PART, over.join("; ")),
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_certificate_that_ends_is_warned_of_and_one_that_is_over_is_down() {
        let (health, metrics, all) = (Health::new(), Metrics::new(), Expiries::default());
        let look = |now| {
            let warnings = all.look(&health, &metrics, now);
            let problems: Vec<String> = health.parts(Instant::now()).iter().map(ToString::to_string).collect();
            (warnings.join("|"), problems.join("|"), metrics.render())
        };
        assert_eq!(look(0), (String::new(), String::new(), metrics.render()), "nothing is watched");
        let server = Expiry::new("server", "/etc/cert.pem", Some(100 * DAY));
        all.add(server.clone(), 0);
        all.add(Expiry::new("authority", "/etc/ca.pem", None), 0);
        let (warnings, _, rendered) = look(10 * DAY);
        assert_eq!(warnings, "");
        assert!(rendered.contains("phalanx_certificate_expiry_seconds{kind=\"server\"} 7776000"), "{rendered}");
        let (warnings, problems, _) = look(97 * DAY + 3600);
        assert_eq!(warnings, "the server certificate /etc/cert.pem ends in 2 days and 23 hours; renew it");
        assert!(!problems.contains("over"), "{problems}");
        let (warnings, problems, rendered) = look(103 * DAY);
        assert_eq!(warnings, "");
        assert!(problems.contains("server certificate /etc/cert.pem is over since 3 days"), "{problems}");
        assert!(rendered.contains("phalanx_certificate_expiry_seconds{kind=\"server\"} 0"), "{rendered}");
        server.set(Some(200 * DAY));
        let (warnings, problems, _) = look(103 * DAY);
        assert!(warnings.is_empty() && !problems.contains("over"), "{warnings} {problems}");
    }
}
