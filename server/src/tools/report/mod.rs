//! Self-contained HTML reports: one file, no scripts, nothing fetched, readable in light and dark.

mod chart;
mod page;
mod svg;

use std::path::Path;

use kvstored_core::{Error, Result};

pub use chart::{Bars, Lines, Series};
pub use page::Page;

/// Writes a page to a file, whole or not at all.
pub fn write(page: &Page, path: &Path) -> Result<()> {
    let failed = |error| Error::from_io(error, format!("report {} can't be written", path.display()));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, page.html()).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Page {
        let mut page = Page::new("Report of <something> & \"more\"");
        page.paragraph("A < B");
        page.table(
            "Numbers",
            &["name", "value"],
            &[
                vec!["hits".into(), "1,234".into()],
                vec!["<b>".into(), "0".into()],
            ],
        );
        page.lines(&Lines {
            title: "Hit ratio".into(),
            x_label: "seconds".into(),
            y_label: "ratio".into(),
            series: vec![
                Series {
                    name: "all".into(),
                    points: vec![(0.0, 0.0), (1.0, 0.5), (2.0, 0.25)],
                },
                Series {
                    name: "a & b".into(),
                    points: vec![(0.0, f64::NAN), (2.0, 1.0)],
                },
            ],
        });
        page.bars(&Bars {
            title: "Tiers".into(),
            unit: "blocks".into(),
            bars: vec![("Cache".into(), 10.0), ("Posix".into(), 0.0)],
        });
        page.lines(&Lines {
            title: "Nothing".into(),
            x_label: "s".into(),
            y_label: "y".into(),
            series: Vec::new(),
        });
        page
    }

    /// Every element that is opened is closed, in order.
    fn assert_well_formed(html: &str) {
        const VOID: [&str; 2] = ["meta", "!doctype"];
        let mut open: Vec<String> = Vec::new();
        for piece in html.split('<').skip(1) {
            let tag = piece.split('>').next().unwrap();
            assert!(piece.contains('>'), "unescaped < before {piece:.40}");
            let name = tag
                .trim_start_matches('/')
                .split_whitespace()
                .next()
                .unwrap()
                .trim_end_matches('/')
                .to_lowercase();
            if tag.starts_with('/') {
                assert_eq!(open.pop().as_deref(), Some(name.as_str()), "closed by </{name}>");
            } else if !tag.ends_with('/') && !VOID.contains(&name.as_str()) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "left open: {open:?}");
    }

    #[test]
    fn a_report_is_well_formed_and_refers_to_nothing() {
        let html = sample().html();
        assert_well_formed(&html);
        for word in [
            "http", "//", "src=", "href", "url(", "@import", "<script", "NaN", "inf",
        ] {
            assert!(!html.contains(word), "{word}");
        }
        assert!(html.contains("prefers-color-scheme: dark"));
        assert_eq!(html.matches("<svg").count(), 2);
    }

    #[test]
    fn text_is_escaped() {
        let html = sample().html();
        assert!(html.contains("Report of &lt;something&gt; &amp; &quot;more&quot;"));
        assert!(html.contains("A &lt; B") && html.contains("&lt;b&gt;") && html.contains("a &amp; b"));
    }

    #[test]
    fn a_report_is_written_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.html");
        write(&sample(), &path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), sample().html());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let error = write(&sample(), Path::new("/nonexistent/report.html")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/report.html"));
    }
}
