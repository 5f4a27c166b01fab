//! Line and bar charts as inline SVG.

use std::fmt::Write;

use super::svg::{escape, round_up, short};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 44.0;
const LINES_HEIGHT: f64 = 260.0;
const TICKS: u32 = 4;
const BAR_HEIGHT: f64 = 24.0;
const BAR_LABEL: f64 = 220.0;
const COLORS: usize = 6;

/// One line of a chart.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// What it shows.
    pub name: String,
    /// Points with growing x; those that aren't finite are left out.
    pub points: Vec<(f64, f64)>,
}

/// Lines over a common x axis, both axes starting at 0.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// Heading.
    pub title: String,
    /// What x is.
    pub x_label: String,
    /// What y is.
    pub y_label: String,
    /// The lines.
    pub series: Vec<Series>,
}

/// Horizontal bars with a common scale.
#[derive(Clone, Debug, Default)]
pub struct Bars {
    /// Heading.
    pub title: String,
    /// What the values are.
    pub unit: String,
    /// Names and values.
    pub bars: Vec<(String, f64)>,
}

fn finite(point: &(f64, f64)) -> bool {
    point.0.is_finite() && point.1.is_finite()
}

impl Lines {
    /// The drawing; `None` without points.
    pub(super) fn svg(&self) -> Option<String> {
        let points = || {
            self.series
                .iter()
                .flat_map(|series| &series.points)
                .filter(|point| finite(point))
        };
        points().next()?;
        let x_end = points().map(|point| point.0).fold(0.0, f64::max);
        let x_end = if x_end > 0.0 { x_end } else { 1.0 };
        let y_end = round_up(points().map(|point| point.1).fold(0.0, f64::max));
        let (right, bottom) = (WIDTH - RIGHT, LINES_HEIGHT - BOTTOM);
        let place = |(x, y): (f64, f64)| {
            (
                LEFT + x / x_end * (right - LEFT),
                bottom - (y / y_end).clamp(0.0, 1.0) * (bottom - TOP),
            )
        };
        let mut svg = opening(LINES_HEIGHT, &self.title);
        for tick in 0..=TICKS {
            let share = f64::from(tick) / f64::from(TICKS);
            let (x, y) = place((x_end * share, y_end * share));
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>"
            );
            text(&mut svg, LEFT - 8.0, y + 4.0, "end", &short(y_end * share));
            text(&mut svg, x, bottom + 18.0, "middle", &short(x_end * share));
        }
        text(&mut svg, right, bottom + 36.0, "end", &self.x_label);
        text(&mut svg, LEFT, TOP - 7.0, "start", &self.y_label);
        for (index, series) in self.series.iter().enumerate() {
            let color = index % COLORS;
            let path: Vec<String> = series
                .points
                .iter()
                .filter(|point| finite(point))
                .map(|point| {
                    let (x, y) = place(*point);
                    format!("{x:.1},{y:.1}")
                })
                .collect();
            let _ = write!(
                svg,
                "<polyline class=\"line k{color}\" points=\"{}\"/>",
                path.join(" ")
            );
            let x = LEFT + 150.0 * index as f64;
            let y = bottom + 29.0;
            let _ = write!(
                svg,
                "<rect class=\"f{color}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"10\" height=\"10\"/>"
            );
            text(&mut svg, x + 15.0, y + 9.0, "start", &series.name);
        }
        svg.push_str("</svg>");
        Some(svg)
    }
}

impl Bars {
    /// The drawing; `None` without bars.
    pub(super) fn svg(&self) -> Option<String> {
        if self.bars.is_empty() {
            return None;
        }
        let values = || {
            self.bars
                .iter()
                .map(|(_, value)| if value.is_finite() { value.max(0.0) } else { 0.0 })
        };
        let end = values().fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let height = 2.0 * TOP + BAR_HEIGHT * self.bars.len() as f64;
        let mut svg = opening(height, &self.title);
        for (index, ((name, _), value)) in self.bars.iter().zip(values()).enumerate() {
            let y = TOP + BAR_HEIGHT * index as f64;
            let length = value / end * (WIDTH - BAR_LABEL - 130.0);
            text(&mut svg, BAR_LABEL - 10.0, y + 15.0, "end", name);
            let _ = write!(
                svg,
                "<rect class=\"f0\" x=\"{BAR_LABEL}\" y=\"{:.1}\" width=\"{length:.1}\" height=\"{:.1}\" rx=\"2\"/>",
                y + 3.0,
                BAR_HEIGHT - 7.0
            );
            text(
                &mut svg,
                BAR_LABEL + length + 8.0,
                y + 15.0,
                "start",
                &format!("{} {}", short(value), self.unit),
            );
        }
        svg.push_str("</svg>");
        Some(svg)
    }
}

fn opening(height: f64, title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    )
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let _ = write!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(words)
    );
}
