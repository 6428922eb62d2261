//! The progress of `phalanx batch` on stderr: a bar on a terminal, a line every ten seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::validator::batch::BatchProgress;

/// Between two lines.
const EVERY: Duration = Duration::from_secs(10);

pub(super) struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    next: Instant,
}

impl Progress {
    /// Says the seed first, because the batch can be planned again by it however it ends.
    pub(super) fn new(seed: u64, miners: usize) -> Self {
        let began = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {elapsed}: {wide_msg}");
            ProgressBar::new(miners as u64).with_style(style.expect("the template is right"))
        });
        let progress = Self { bar, began, next: began + EVERY };
        progress.hide(|| eprintln!("seed {seed}"));
        progress
    }

    pub(super) fn show(&mut self, now: &BatchProgress) {
        let (ended, all) = (now.ended as u64, expected(now) as u64);
        let elapsed = self.began.elapsed();
        let left = left(elapsed, now).map_or_else(String::new, |left| format!(", about {left:.0?} left"));
        if let Some(bar) = &self.bar {
            bar.set_length(all);
            bar.set_position(ended);
            bar.set_message(in_words(now) + &left);
        } else if self.next <= Instant::now() {
            self.next += EVERY;
            eprintln!("{:.0?}: {ended} of {all} ended, {}{left}", elapsed, in_words(now));
        }
    }

    /// Takes the bar away while something is printed.
    pub(super) fn hide<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Lines that there will be: those that are known, and one at least for each miner that has not answered.
fn expected(now: &BatchProgress) -> usize {
    now.lines + now.miners.saturating_sub(now.answered)
}

/// How long the rest takes if it goes on like this.
fn left(elapsed: Duration, now: &BatchProgress) -> Option<Duration> {
    let rest = expected(now).saturating_sub(now.ended);
    (now.ended > 0 && rest > 0).then(|| elapsed.mul_f64(rest as f64 / now.ended as f64))
}

fn in_words(now: &BatchProgress) -> String {
    let BatchProgress { miners, answered, ready, sent, failed, .. } = now;
    format!("{answered} of {miners} miners asked, {ready} jobs at the gate, {sent} sent, {failed} failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_estimated_from_what_has_ended() {
        let mut now = BatchProgress { miners: 10, answered: 8, lines: 18, ended: 5, ..BatchProgress::default() };
        assert_eq!(left(Duration::from_secs(10), &now), Some(Duration::from_secs(30)));
        now.ended = 0;
        assert_eq!(left(Duration::from_secs(10), &now), None);
        now.ended = 20;
        assert_eq!(left(Duration::from_secs(10), &now), None);
    }
}
