//! The page around tables and charts.

use std::fmt::Write;

use super::chart::{Bars, Lines};
use super::svg::escape;

const STYLE: &str = "
:root { color-scheme: light dark; --text: #1c2024; --faint: #6b7280; --line: #d9dde3; --back: #ffffff; --card: #f6f7f9;
  --c0: #2563eb; --c1: #d97706; --c2: #059669; --c3: #c026d3; --c4: #dc2626; --c5: #0891b2; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --faint: #9aa3af; --line: #343a43; --back: #14171b;
  --card: #1c2026; --c0: #7aa2ff; --c1: #f5b342; --c2: #43d19e; --c3: #e58bf7; --c4: #ff7b72; --c5: #4fd1e8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } p { color: var(--faint); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { color: var(--faint); font-weight: 600; }
svg { width: 100%; height: auto; background: var(--card); border-radius: 6px; }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif; } svg .grid { stroke: var(--line); stroke-width: 1; }
.k0 { stroke: var(--c0); } .k1 { stroke: var(--c1); } .k2 { stroke: var(--c2); } .k3 { stroke: var(--c3); } .k4 { stroke: var(--c4); }
.k5 { stroke: var(--c5); } .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.f0 { fill: var(--c0); } .f1 { fill: var(--c1); } .f2 { fill: var(--c2); } .f3 { fill: var(--c3); } .f4 { fill: var(--c4); }
.f5 { fill: var(--c5); }
";

/// A report in the making.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// An empty page with a title.
    pub fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            body: String::new(),
        }
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, text: &str) {
        self.add(format_args!("<p>{}</p>\n", escape(text)));
    }

    /// Adds a table with a heading above it; the first column names the row.
    pub fn table(&mut self, heading: &str, columns: &[&str], rows: &[Vec<String>]) {
        self.add(format_args!("<h2>{}</h2>\n<table>\n<thead><tr>", escape(heading)));
        for column in columns {
            self.add(format_args!("<th>{}</th>", escape(column)));
        }
        self.add(format_args!("</tr></thead>\n<tbody>\n"));
        for row in rows {
            self.add(format_args!("<tr>"));
            for cell in row {
                self.add(format_args!("<td>{}</td>", escape(cell)));
            }
            self.add(format_args!("</tr>\n"));
        }
        self.add(format_args!("</tbody>\n</table>\n"));
    }

    /// Adds a line chart.
    pub fn lines(&mut self, chart: &Lines) {
        let drawing = chart.svg();
        self.chart(&chart.title, drawing);
    }

    /// Adds a bar chart.
    pub fn bars(&mut self, chart: &Bars) {
        let drawing = chart.svg();
        self.chart(&chart.title, drawing);
    }

    fn chart(&mut self, title: &str, drawing: Option<String>) {
        self.add(format_args!("<h2>{}</h2>\n", escape(title)));
        match drawing {
            Some(drawing) => self.add(format_args!("{drawing}\n")),
            None => self.paragraph("No data."),
        }
    }

    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        // writing to a string can't fail
        let _ = self.body.write_fmt(text);
    }

    /// The whole file.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{}</body>\n</html>\n",
            self.body
        )
    }
}
