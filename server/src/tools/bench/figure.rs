//! A measured figure: the median of several rounds, their spread, and the machine's limit beside it.

use std::borrow::Cow;
use std::fmt::Write;

use kvstored_core::Result;
use serde::Serialize;

/// Which of the two is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// kvstored.
    Ours,
    /// What the machine does without it.
    Limit,
}

/// What rounds gave.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    ours: Vec<f64>,
    limit: Vec<f64>,
}

impl Samples {
    /// Measures both sides in turn, the one first in even rounds and the other first in odd ones, after a first
    /// try of each that doesn't count.
    pub fn take(rounds: usize, mut measure: impl FnMut(Side) -> Result<f64>) -> Result<Self> {
        let [samples] = Self::take_each(rounds, |side| measure(side).map(|value| [value]))?;
        Ok(samples)
    }

    /// The same where one measurement gives several values.
    pub fn take_each<const VALUES: usize>(
        rounds: usize,
        mut measure: impl FnMut(Side) -> Result<[f64; VALUES]>,
    ) -> Result<[Self; VALUES]> {
        let mut samples = std::array::from_fn(|_| Self::default());
        for round in 0..=rounds {
            let order = if round % 2 == 0 {
                [Side::Ours, Side::Limit]
            } else {
                [Side::Limit, Side::Ours]
            };
            for side in order {
                let values = measure(side)?;
                if round > 0 {
                    for (one, value) in samples.iter_mut().zip(values) {
                        match side {
                            Side::Ours => one.ours.push(value),
                            Side::Limit => one.limit.push(value),
                        }
                    }
                }
            }
        }
        Ok(samples)
    }

    /// Measures ours alone, where there's nothing to compare with.
    pub fn alone(rounds: usize, mut measure: impl FnMut() -> Result<f64>) -> Result<Self> {
        let [samples] = Self::each_alone(rounds, || measure().map(|value| [value]))?;
        Ok(samples)
    }

    /// The same where one measurement gives several values.
    pub fn each_alone<const VALUES: usize>(
        rounds: usize,
        mut measure: impl FnMut() -> Result<[f64; VALUES]>,
    ) -> Result<[Self; VALUES]> {
        let mut samples = std::array::from_fn(|_| Self::default());
        for _ in 0..rounds {
            for (one, value) in samples.iter_mut().zip(measure()?) {
                one.ours.push(value);
            }
        }
        Ok(samples)
    }
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Median of the rounds.
    pub value: f64,
    /// Unit of value, limit, low and high.
    pub unit: &'static str,
    /// Median of the limit's rounds.
    pub limit: Option<f64>,
    /// Median of the rounds' ratios of value and limit.
    pub ratio: Option<f64>,
    /// The least of the rounds.
    pub low: f64,
    /// The most of the rounds.
    pub high: f64,
    /// How many rounds.
    pub rounds: usize,
    /// Least and most of the limit's rounds.
    pub limit_range: Option<(f64, f64)>,
    /// What exactly was measured.
    pub note: String,
}

impl Figure {
    /// Headings of [`Figure::cells`].
    pub const COLUMNS: [&'static str; 7] = ["figure", "value", "low", "high", "limit", "ratio", "what"];

    /// A figure from its rounds.
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        unit: &'static str,
        samples: &Samples,
        note: impl Into<String>,
    ) -> Self {
        let ratios: Vec<f64> = samples
            .ours
            .iter()
            .zip(&samples.limit)
            .filter(|(_, limit)| **limit > 0.0)
            .map(|(ours, limit)| ours / limit)
            .collect();
        let (low, high) = range(&samples.ours);
        let limited = !samples.limit.is_empty();
        Self {
            name: name.into(),
            value: median(&samples.ours),
            unit,
            limit: limited.then(|| median(&samples.limit)),
            ratio: (!ratios.is_empty()).then(|| median(&ratios)),
            low,
            high,
            rounds: samples.ours.len(),
            limit_range: limited.then(|| range(&samples.limit)),
            note: note.into(),
        }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let mut line = format!(
            "{:<34} {} {} ({} to {})",
            self.name,
            short(self.value),
            self.unit,
            short(self.low),
            short(self.high)
        );
        if let (Some(limit), Some(ratio)) = (self.limit, self.ratio) {
            let _ = write!(line, ", limit {}, ratio {ratio:.2}", short(limit));
        }
        line
    }

    /// The cells of a table's row.
    pub fn cells(&self) -> Vec<String> {
        let optional = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
        vec![
            self.name.clone().into_owned(),
            format!("{} {}", short(self.value), self.unit),
            short(self.low),
            short(self.high),
            optional(self.limit),
            optional(self.ratio),
            self.note.clone(),
        ]
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}

/// The middle value; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (
        sorted.get(middle),
        middle.checked_sub(1).and_then(|before| sorted.get(before)),
    ) {
        (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => f64::midpoint(*lower, *upper),
        (Some(middle), _) => *middle,
        (None, _) => 0.0,
    }
}

fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().reduce(f64::min).unwrap_or(0.0);
    (low, values.iter().copied().reduce(f64::max).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert!(close(median(&[]), 0.0) && close(median(&[7.0]), 7.0));
        assert!(close(median(&[9.0, 1.0, 2.0]), 2.0) && close(median(&[4.0, 1.0, 2.0, 9.0]), 3.0));
    }

    #[test]
    fn sides_take_turns_and_the_first_try_does_not_count() {
        use Side::{Limit, Ours};

        let mut order = Vec::new();
        let samples = Samples::take(3, |side| {
            order.push(side);
            Ok(if side == Side::Ours {
                order.len() as f64
            } else {
                10.0
            })
        })
        .unwrap();
        assert_eq!(order, [Ours, Limit, Limit, Ours, Ours, Limit, Limit, Ours]);
        assert_eq!(samples.ours, [4.0, 5.0, 8.0]);
        let figure = Figure::new("x", "GB/s", &samples, "");
        assert!(close(figure.value, 5.0) && close(figure.low, 4.0) && close(figure.high, 8.0));
        assert!(close(figure.ratio.unwrap(), 0.5) && close(figure.limit.unwrap(), 10.0));
        assert_eq!(figure.rounds, 3);
        assert_eq!(figure.cells().len(), Figure::COLUMNS.len());
    }

    #[test]
    fn a_figure_without_limit_has_no_ratio() {
        let samples = Samples::alone(2, || Ok(3.0)).unwrap();
        let figure = Figure::new("x", "us", &samples, "");
        assert_eq!((figure.limit, figure.ratio), (None, None));
        assert!(figure.line().contains("3.000 us"));
    }
}
