//! How many tests passed and failed, read from the lines in which their runners sum up.

use std::sync::atomic::{AtomicU64, Ordering};

/// Sums over the summaries that the test runners print.
#[derive(Default)]
pub struct Counts {
    passed: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    /// Adds what this line tells, if a runner sums up in it.
    pub fn add(&self, line: &str) {
        if let Some((passed, failed)) = summary(line) {
            self.passed.fetch_add(passed, Ordering::Relaxed);
            self.failed.fetch_add(failed, Ordering::Relaxed);
        }
    }

    /// Passed and failed tests so far.
    pub fn sums(&self) -> (u64, u64) {
        (
            self.passed.load(Ordering::Relaxed),
            self.failed.load(Ordering::Relaxed),
        )
    }
}

/// Passed and failed tests, if this is the line in which a runner sums up.
fn summary(line: &str) -> Option<(u64, u64)> {
    let plain = without_colours(line);
    let text = plain.trim();
    if plain.starts_with('=') {
        return pytest_summary(text);
    }
    let counts = if let Some(rest) = text.strip_prefix("Summary [") {
        rest.split_once("tests run:")
            .or_else(|| rest.split_once("test run:"))?
            .1
    } else {
        // not trimmed: nextest shows a failed test's own summary, indented
        plain.strip_prefix("test result: ")?.split_once(". ")?.1
    };
    let mut sums = (0, 0);
    for part in counts.split([',', ';']) {
        let mut words = part.split_whitespace();
        let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
            continue;
        };
        match what {
            "passed" => sums.0 += number,
            // a test that had to be ended, or that couldn't be started, failed as well
            "failed" | "timed" | "exec" => sums.1 += number,
            _ => {}
        }
    }
    Some(sums)
}

/// The same for pytest's closing line, `=== 12 passed, 1 skipped in 3.2s ===`.
fn pytest_summary(text: &str) -> Option<(u64, u64)> {
    let (counts, duration) = text.trim_matches(['=', ' ']).rsplit_once(" in ")?;
    // "3.2s", or "65.1s (0:01:05)"
    duration
        .split_once('s')?
        .0
        .parse::<f64>()
        .ok()
        .filter(|seconds| seconds.is_finite())?;
    if counts == "no tests ran" {
        return Some((0, 0));
    }
    let mut sums = (0, 0);
    for part in counts.split(", ") {
        let (number, what) = part.split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        match what {
            "passed" => sums.0 += number,
            // a test whose fixtures failed, or a file that couldn't be read, failed as well
            "failed" | "error" | "errors" => sums.1 += number,
            // skipped, deselected, warnings; an expected failure is neither passed nor failed
            _ => {}
        }
    }
    Some(sums)
}

fn without_colours(line: &str) -> String {
    let mut text = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // a colour is ESC [ … m
            let _ = characters.find(|end| *end == 'm');
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_the_rust_runners_are_understood() {
        for (line, counts) in [
            (
                "     Summary [   2.345s] 57 tests run: 57 passed, 0 skipped",
                (57, 0),
            ),
            ("     Summary [   2.345s] 1 test run: 1 passed, 0 skipped", (1, 0)),
            (
                "     Summary [   9.1s] 57 tests run: 50 passed (2 slow), 4 failed, 2 timed out, 1 exec failed, 3 skipped",
                (50, 7),
            ),
            (
                "\u{1b}[32;1m     Summary\u{1b}[0m [   0.1s] \u{1b}[1m3\u{1b}[0m tests run: \u{1b}[1m3\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, 0 skipped",
                (3, 0),
            ),
            (
                "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
                (12, 0),
            ),
            (
                "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s",
                (1, 2),
            ),
        ] {
            assert_eq!(summary(line), Some(counts), "{line}");
        }
    }

    #[test]
    fn pytests_closing_line_is_understood() {
        for (line, counts) in [
            (
                "============================== 12 passed in 3.21s ==============================",
                (12, 0),
            ),
            (
                "=========== 12 passed, 1 skipped, 3 deselected, 2 warnings in 3.2s ===========",
                (12, 0),
            ),
            (
                "=== 1 failed, 20 passed, 2 skipped, 1 xfailed, 1 xpassed, 2 errors in 65.12s (0:01:05) ===",
                (20, 3),
            ),
            ("=== 1 error in 0.51s ===", (0, 1)),
            ("=== no tests ran in 0.01s ===", (0, 0)),
            ("=== 3 skipped in 0.04s ===", (0, 0)),
            (
                "\u{1b}[31m===== \u{1b}[31m\u{1b}[1m1 failed\u{1b}[0m, \u{1b}[32m2 passed\u{1b}[0m\u{1b}[31m in 0.02s\u{1b}[0m\u{1b}[31m =====\u{1b}[0m",
                (2, 1),
            ),
        ] {
            assert_eq!(summary(line), Some(counts), "{line}");
        }
    }

    #[test]
    fn other_lines_count_nothing() {
        for line in [
            "============================= test session starts ==============================",
            "=========================== short test summary info ============================",
            "============================= slowest 5 durations ==============================",
            "=== tests in folders ===",
            "12 passed in 3.21s",
            "    === 12 passed in 3.21s ===",
            "",
            "57 passed",
            "test tests::summary ... ok",
            "PASS [ 0.1s] crate test::passed",
            "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.31s",
            "Summary of it all",
        ] {
            assert_eq!(summary(line), None, "{line}");
        }
    }
}
