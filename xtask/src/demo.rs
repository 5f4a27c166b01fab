//! `cargo xtask demo`: a trace through the daemon, twice, with a restart in between.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::{self, Failure, Guarded, Outcome};
use crate::workspace::Workspace;

/// A trace of a real chat service that may lie beside the workspace.
const NEARBY_TRACE: &str = "../shared/traces/conversation_trace.jsonl";
const REQUESTS: &str = "2000";
const SEED: &str = "1";
/// Small enough that most of the trace lives on disk, large enough that some hits come from memory.
const CACHE_CAPACITY: &str = "512MiB";
const POSIX_CAPACITY_GB: &str = "8";
const READY_LIMIT: Duration = Duration::from_secs(30);
/// A drain writes back whatever only memory holds.
const DRAIN_LIMIT: Duration = Duration::from_mins(1);

/// Builds, serves, replays, restarts, replays, shows. Fails on a wrong byte, on an error, or when nothing came from disk.
pub fn run(workspace: &Workspace, trace: Option<PathBuf>) -> Outcome {
    let mut build = Command::new(process::cargo());
    build
        .current_dir(&workspace.root)
        .args(["build", "--release", "--package", "kvstored"]);
    process::run(&mut build)?;
    let temporary = tempfile::Builder::new().prefix("kvstored-demo-").tempdir()?;
    let reports = workspace.target.join("demo");
    fs::create_dir_all(&reports)?;
    let demo = Demo {
        program: workspace.target.join("release").join("kvstored"),
        storage: temporary.path().join("blocks"),
        socket: temporary.path().join("kvstored.sock"),
    };
    fs::create_dir_all(&demo.storage)?;
    let trace = match trace {
        Some(trace) => fs::canonicalize(&trace).map_err(|error| format!("{}: {error}", trace.display()))?,
        None => demo.default_trace(workspace, temporary.path())?,
    };
    eprintln!("trace: {}", trace.display());

    let first_report = reports.join("report-1.html");
    let second_report = reports.join("report-2.html");
    let first = demo.serve_and_replay(&trace, &first_report)?;
    let second = demo.serve_and_replay(&trace, &second_report)?;

    print!("{}", table(&[("first run", &first), ("after restart", &second)]));
    println!(
        "\nreports: {}\n         {}",
        first_report.display(),
        second_report.display()
    );
    judge(&first, &second)
}

struct Demo {
    program: PathBuf,
    storage: PathBuf,
    socket: PathBuf,
}

impl Demo {
    fn default_trace(&self, workspace: &Workspace, folder: &Path) -> Result<PathBuf, Failure> {
        let nearby = workspace.root.join(NEARBY_TRACE);
        if nearby.is_file() {
            return Ok(fs::canonicalize(nearby)?);
        }
        let generated = folder.join("generated.jsonl");
        let mut generate = Command::new(&self.program);
        generate
            .args([
                "trace",
                "generate",
                "--seed",
                SEED,
                "--requests",
                REQUESTS,
                "--output",
            ])
            .arg(&generated);
        process::run(&mut generate)?;
        Ok(generated)
    }

    fn serve_and_replay(&self, trace: &Path, report: &Path) -> Result<Value, Failure> {
        let mut serve = Command::new(&self.program);
        serve.args(["--pipeline", "Cache|Posix", "--http", "127.0.0.1:0"]);
        serve.arg("--storage-backends").arg(&self.storage);
        serve.args([
            "--cache-buffer-capacity",
            CACHE_CAPACITY,
            "--posix-capacity-gb",
            POSIX_CAPACITY_GB,
        ]);
        serve
            .arg("--listen")
            .arg(format!("unix:{}", self.socket.display()));
        eprintln!("\n$ {}", process::spelled(&serve));
        let mut daemon = Guarded::spawn(&mut serve)?;
        daemon.wait_until(READY_LIMIT, || UnixStream::connect(&self.socket).is_ok())?;

        let mut replay = Command::new(&self.program);
        replay.arg("replay").arg(trace).arg("--socket").arg(&self.socket);
        replay
            .args(["--limit", REQUESTS, "--json", "--report"])
            .arg(report);
        eprintln!("\n$ {}", process::spelled(&replay));
        let text = process::output(&mut replay)?;
        let result =
            serde_json::from_str(&text).map_err(|error| format!("the replay's JSON: {error}: {text}"))?;
        daemon.terminate(DRAIN_LIMIT)?;
        Ok(result)
    }
}

/// Fails when a run returned wrong bytes or errors, or when the second found nothing on disk.
fn judge(first: &Value, second: &Value) -> Outcome {
    for (name, result) in [("first", first), ("second", second)] {
        for key in ["corrupt_blocks", "errors"] {
            match result[key].as_u64() {
                Some(0) => {}
                Some(count) => return Err(format!("the {name} run counted {count} {key}").into()),
                None => return Err(format!("the {name} run's JSON has no {key}").into()),
            }
        }
    }
    if hits_by_tier(second)
        .iter()
        .any(|(tier, hits)| tier.eq_ignore_ascii_case("posix") && *hits > 0)
    {
        return Ok(());
    }
    Err("the second run found no block on disk".into())
}

fn hits_by_tier(result: &Value) -> Vec<(String, u64)> {
    let tiers = result["hits_by_tier"].as_object();
    tiers
        .into_iter()
        .flatten()
        .map(|(tier, hits)| (tier.clone(), hits.as_u64().unwrap_or(0)))
        .collect()
}

/// What one row shows of a run.
type Show = fn(&Value) -> String;

/// The rows of the table.
const ROWS: [(&str, Show); 13] = [
    ("requests", |run| count(&run["requests"])),
    ("prompt blocks", |run| count(&run["prompt_blocks"])),
    ("hit ratio", |run| decimal(&run["hit_ratio"], 3)),
    ("hits by tier", hits),
    ("loaded", |run| bytes(&run["loaded_bytes"])),
    ("dumped", |run| bytes(&run["dumped_bytes"])),
    ("load, GB/s", |run| decimal(&run["load_gbps"], 2)),
    ("dump, GB/s", |run| decimal(&run["dump_gbps"], 2)),
    ("lookup p50, us", |run| decimal(&run["lookup_us"]["p50"], 1)),
    ("lookup p99, us", |run| decimal(&run["lookup_us"]["p99"], 1)),
    ("seconds", |run| decimal(&run["seconds"], 1)),
    ("corrupt blocks", |run| count(&run["corrupt_blocks"])),
    ("errors", |run| count(&run["errors"])),
];

/// One row a figure, one column a run.
fn table(runs: &[(&str, &Value)]) -> String {
    let heading = |title: &str| std::iter::once(title.to_owned());
    let mut columns = vec![
        heading("")
            .chain(ROWS.iter().map(|(name, _)| (*name).to_owned()))
            .collect(),
    ];
    for (title, run) in runs {
        columns.push(
            heading(title)
                .chain(ROWS.iter().map(|(_, show)| show(run)))
                .collect(),
        );
    }
    aligned(&columns)
}

fn count(value: &Value) -> String {
    value.as_u64().map_or_else(absent, grouped)
}

fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(absent, readable_bytes)
}

fn decimal(value: &Value, places: usize) -> String {
    value
        .as_f64()
        .map_or_else(absent, |number| format!("{number:.places$}"))
}

fn hits(run: &Value) -> String {
    let tiers = hits_by_tier(run);
    if tiers.is_empty() {
        return absent();
    }
    let shown: Vec<String> = tiers
        .iter()
        .map(|(tier, hits)| format!("{tier} {}", grouped(*hits)))
        .collect();
    shown.join(", ")
}

fn absent() -> String {
    "-".to_owned()
}

/// The first column to the left, the others to the right, a line under the heading.
fn aligned(columns: &[Vec<String>]) -> String {
    let widths: Vec<usize> = columns
        .iter()
        .map(|column| column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::from("\n");
    for row in 0..columns.first().map_or(0, Vec::len) {
        for (position, (column, width)) in columns.iter().zip(&widths).enumerate() {
            let cell = column.get(row).map_or("", String::as_str);
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            let parts = if position == 0 {
                ["", cell, padding.as_str()]
            } else {
                ["  ", padding.as_str(), cell]
            };
            text.extend(parts);
        }
        text.push('\n');
        if row == 0 {
            text.push_str(&"-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)));
            text.push('\n');
        }
    }
    text
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn readable_bytes(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    units.iter().find(|(_, size)| bytes >= *size).map_or_else(
        || format!("{bytes} B"),
        |(unit, size)| format!("{:.2} {unit}", bytes as f64 / *size as f64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result(posix: u64, corrupt: u64, errors: u64) -> Value {
        json!({
            "requests": 2000, "prompt_blocks": 1_234_567, "hit_ratio": 0.4567, "hits_by_tier": {"Cache": 10, "Posix": posix},
            "loaded_bytes": 3_221_225_472u64, "dumped_bytes": 512, "load_gbps": 1.5, "dump_gbps": 0.25,
            "lookup_us": {"p50": 12, "p99": 80.25}, "corrupt_blocks": corrupt, "errors": errors, "seconds": 3.25
        })
    }

    #[test]
    fn hits_from_disk_without_wrong_bytes_or_errors_are_a_success() {
        judge(&result(0, 0, 0), &result(5, 0, 0)).unwrap();
    }

    #[test]
    fn wrong_bytes_errors_a_cold_disk_and_missing_keys_are_failures() {
        let failure = |first: &Value, second: &Value| judge(first, second).unwrap_err().to_string();
        let good = result(5, 0, 0);
        assert_eq!(
            failure(&result(0, 2, 0), &good),
            "the first run counted 2 corrupt_blocks"
        );
        assert_eq!(
            failure(&good, &result(5, 0, 1)),
            "the second run counted 1 errors"
        );
        assert_eq!(
            failure(&good, &result(0, 0, 0)),
            "the second run found no block on disk"
        );
        assert_eq!(
            failure(&json!({}), &good),
            "the first run's JSON has no corrupt_blocks"
        );
    }

    #[test]
    fn the_table_has_a_column_a_run() {
        let text = table(&[("first run", &result(0, 0, 0)), ("after restart", &json!({}))]);
        assert!(text.contains("prompt blocks           1,234,567"), "{text}");
        assert!(text.contains("Cache 10, Posix 0"), "{text}");
        assert!(text.contains("3.00 GiB"), "{text}");
        let widths: Vec<usize> = text.lines().skip(1).map(str::len).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
