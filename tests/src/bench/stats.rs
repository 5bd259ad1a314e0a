//! Samples and their summaries.

use std::collections::BTreeMap;

/// The summary of a list of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    /// The smallest.
    pub(super) min: f64,
    /// The middle one, or the mean of the two in the middle.
    pub(super) median: f64,
    /// The smallest that nine tenths of the list do not exceed.
    pub(super) p90: f64,
    /// How many there are.
    pub(super) count: usize,
}

impl Summary {
    /// The summary of `values`; `None` of an empty list.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        let min = *sorted.first()?;
        let median = f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]);
        let p90 = sorted[(count * 9).div_ceil(10) - 1];
        Some(Self { min, median, p90, count })
    }
}

/// Measurements by row (the subject) and column (the handler); rows keep the order of their first
/// number.
#[derive(Debug, Default, Clone)]
pub(super) struct Samples {
    rows: Vec<&'static str>,
    cells: BTreeMap<(&'static str, &'static str), Vec<f64>>,
}

impl Samples {
    /// Adds one number.
    pub(super) fn add(&mut self, row: &'static str, column: &'static str, value: f64) {
        if !self.rows.contains(&row) {
            self.rows.push(row);
        }
        self.cells.entry((row, column)).or_default().push(value);
    }

    /// What was measured.
    pub(super) fn rows(&self) -> &[&'static str] {
        &self.rows
    }

    /// The numbers of one cell.
    pub(super) fn of(&self, row: &'static str, column: &'static str) -> &[f64] {
        self.cells.get(&(row, column)).map_or(&[], Vec::as_slice)
    }

    /// The summary of one cell.
    pub(super) fn summary(&self, row: &'static str, column: &'static str) -> Option<Summary> {
        Summary::of(self.of(row, column))
    }

    /// The median of `ours` divided by that of `theirs`.
    pub(super) fn ratio(
        &self,
        row: &'static str,
        ours: &'static str,
        theirs: &'static str,
    ) -> Option<f64> {
        let theirs = self.summary(row, theirs)?.median;
        let ours = self.summary(row, ours)?.median;
        (theirs > 0.0).then(|| ours / theirs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_up() {
        assert_eq!(Summary::of(&[]), None);
        let one = Summary { min: 3.0, median: 3.0, p90: 3.0, count: 1 };
        assert_eq!(Summary::of(&[3.0]), Some(one));
        let even = Summary { min: 1.0, median: 2.5, p90: 4.0, count: 4 };
        assert_eq!(Summary::of(&[4.0, 1.0, 3.0, 2.0]), Some(even));
        let ten: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        let expected = Summary { min: 1.0, median: 5.5, p90: 9.0, count: 10 };
        assert_eq!(Summary::of(&ten), Some(expected));
    }

    #[test]
    fn a_ratio_is_of_medians_and_wants_both() {
        let mut samples = Samples::default();
        for value in [1.0, 2.0, 9.0] {
            samples.add("stop", "ours", value);
        }
        assert_eq!(samples.ratio("stop", "ours", "theirs"), None);
        samples.add("stop", "theirs", 8.0);
        assert_eq!(samples.ratio("stop", "ours", "theirs"), Some(0.25));
        samples.add("exec", "ours", 1.0);
        assert_eq!(samples.rows(), ["stop", "exec"]);
        assert!(samples.of("exec", "theirs").is_empty());
    }
}
