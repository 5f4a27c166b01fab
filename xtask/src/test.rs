//! `cargo xtask test`: everything that continuous integration runs.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::process::{self, Outcome};
use crate::workspace::Workspace;
use crate::{crash, fuzz, lint};

const FUZZ_SECONDS: u64 = 10;
const POWER_CUT_ROUNDS: u32 = 3;
/// Held by a slow test before it is ended, so that one that hangs can't hold up everything.
const NEXTEST_SETTINGS: &str = "xtask/nextest.toml";

/// Runs every step, also after a failed one, sums up the test runners' own counts and fails if anything failed.
pub fn run(workspace: &Workspace) -> Outcome {
    let counts = Counts::default();
    let unit_tests = |workspace: &Workspace| tests(workspace, &counts);
    let documentation_tests = |workspace: &Workspace| doc_tests(workspace, &counts);
    let fuzzing = |workspace: &Workspace| fuzz::run(workspace, FUZZ_SECONDS, None);
    let power_cuts = |workspace: &Workspace| crash::run(workspace, &crash::Options::short(POWER_CUT_ROUNDS));
    let steps: [Step; 9] = [
        ("format", &lint::format),
        ("dependency edges", &lint::dependency_edges),
        ("clippy", &lint::clippy),
        ("licences and bans", &lint::deny),
        ("tests", &unit_tests),
        ("documentation tests", &documentation_tests),
        ("benches, one round each", &benches),
        ("fuzz targets, briefly", &fuzzing),
        ("power cuts, briefly", &power_cuts),
    ];
    let mut lines = Vec::new();
    let mut failed_steps = Vec::new();
    for (name, step) in steps {
        eprintln!("\n=== {name}");
        let start = Instant::now();
        let verdict = match step(workspace) {
            Ok(()) => "ok".to_owned(),
            Err(error) => {
                eprintln!("\n{name}: {error}");
                failed_steps.push(name);
                "FAILED".to_owned()
            }
        };
        lines.push(format!(
            "{name:<26}{verdict:>8}{:>8.0} s",
            start.elapsed().as_secs_f64()
        ));
    }
    println!("\n{}\n", lines.join("\n"));
    let (passed, failed) = (counts.passed.into_inner(), counts.failed.into_inner());
    println!("{passed} passed, {failed} failed");
    if failed_steps.is_empty() && failed == 0 && passed > 0 {
        return Ok(());
    }
    Err(format!("failed: {}", failed_steps.join(", ")).into())
}

type Step<'a> = (&'static str, &'a dyn Fn(&Workspace) -> Outcome);

/// Sums over the summaries that the test runners print.
#[derive(Default)]
struct Counts {
    passed: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn add(&self, line: &str) {
        if let Some((passed, failed)) = summary(line) {
            self.passed.fetch_add(passed, Ordering::Relaxed);
            self.failed.fetch_add(failed, Ordering::Relaxed);
        }
    }
}

/// Passed and failed tests, if this is the line in which a runner sums up.
fn summary(line: &str) -> Option<(u64, u64)> {
    let plain = without_colours(line);
    let text = plain.trim();
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

fn tests(workspace: &Workspace, counts: &Counts) -> Outcome {
    // the end-to-end tests run this very binary; with the workspace's features, so that nothing is built twice
    process::run(cargo(workspace).args(["build", "--workspace", "--bins"]))?;
    let mut command = cargo(workspace);
    let nextest = process::succeeds(cargo(workspace).args(["nextest", "--version"]));
    if nextest {
        command.args(["nextest", "run", "--config-file", NEXTEST_SETTINGS]);
    } else {
        command.arg("test");
    }
    command.args(["--workspace", "--no-fail-fast"]);
    if !nextest {
        // documentation tests are a step of their own, benches too
        command.args(["--lib", "--bins", "--tests"]);
    }
    process::run_inspected(&mut command, |line| counts.add(line))
}

fn doc_tests(workspace: &Workspace, counts: &Counts) -> Outcome {
    let mut command = cargo(workspace);
    command.args(["test", "--doc", "--workspace", "--no-fail-fast"]);
    process::run_inspected(&mut command, |line| counts.add(line))
}

fn benches(workspace: &Workspace) -> Outcome {
    // in the tests' own profile, which is built already; `cargo bench` measures
    process::run(cargo(workspace).args(["test", "--workspace", "--bench", "*"]))
}

fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(process::cargo());
    command.current_dir(&workspace.root);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_both_runners_are_understood() {
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
    fn other_lines_count_nothing() {
        for line in [
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
