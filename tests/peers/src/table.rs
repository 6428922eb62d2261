//! Figures of several rounds, and tables of them.

/// The least, the middle and the greatest of some figures.
pub struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    /// The spread of at least one figure.
    pub fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        let median = (sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0;
        Self { min: sorted[0], median, max: sorted[last] }
    }

    /// `median [min..max]`
    pub fn median_first(&self, digits: usize) -> String {
        format!("{:.digits$} [{:.digits$}..{:.digits$}]", self.median, self.min, self.max)
    }

    /// `min / median / max`
    pub fn in_order(&self, digits: usize) -> String {
        format!("{:.digits$} / {:.digits$} / {:.digits$}", self.min, self.median, self.max)
    }
}

/// A Markdown table.
pub fn markdown<'a>(head: impl IntoIterator<Item = &'a str>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let head: Vec<&str> = head.into_iter().collect();
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), " --- |".repeat(head.len()));
    for row in rows {
        text += &format!("| {} |\n", row.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        let spread = |figures: &[f64]| Spread::of(figures.iter().copied());
        assert_eq!(spread(&[4.0, 1.0, 3.0, 2.0]).in_order(1), "1.0 / 2.5 / 4.0");
        assert_eq!(spread(&[9.0, 1.0, 2.0]).median_first(0), "2 [1..9]");
    }
}
