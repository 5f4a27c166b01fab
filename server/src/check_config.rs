//! `kvstored check-config FILE`: every problem of a configuration file at once.

use std::path::PathBuf;
use std::process::ExitCode;

use kvstored_core::Result;
use kvstored_host::config::{Environment, FileReport, Problem, ServeOptions, ServeSettings, Severity};
use serde_json::json;

use crate::output::{emit, emit_json};

/// Arguments of `kvstored check-config`.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArguments {
    /// The file to check
    pub file: PathBuf,

    /// Write the findings as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Checks a file and prints what it finds. The exit code is 1 when the file has a problem, an unknown key included.
pub fn check_config(arguments: &CheckArguments, environment: &Environment) -> Result<ExitCode> {
    let file = arguments.file.display();
    let report = FileReport::read(&arguments.file).map_err(|error| error.with("file", &file))?;
    let problems = all_problems(&report, environment);
    let valid = problems.is_empty();
    if arguments.json {
        emit_json(&json!({
            "valid": valid,
            "problems": problems.iter().map(|problem| json!({
                "key": problem.key,
                "line": problem.line,
                "value": problem.value,
                "message": problem.message,
                "kind": if problem.severity == Severity::Unknown { "unknown" } else { "wrong" },
            })).collect::<Vec<_>>(),
            "remarks": report.remarks.iter().map(|remark| json!({
                "key": remark.key,
                "line": remark.line,
                "message": remark.message,
            })).collect::<Vec<_>>(),
        }))?;
    } else {
        let remarks = report.remarks.iter();
        let mut lines: Vec<String> = remarks
            .map(|remark| {
                format!(
                    "{file}: line {}: note: {}: {}",
                    remark.line, remark.key, remark.message
                )
            })
            .collect();
        lines.extend(problems.iter().map(|problem| format!("{file}: {problem}")));
        lines.push(match problems.len() {
            0 => format!("{file}: valid"),
            1 => format!("{file}: 1 problem"),
            count => format!("{file}: {count} problems"),
        });
        emit(&(lines.join("\n") + "\n"))?;
    }
    Ok(if valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Problems of single keys, and of the settings as a whole, in the file's order.
fn all_problems(report: &FileReport, environment: &Environment) -> Vec<Problem> {
    let mut problems = report.problems.clone();
    if let Err(more) = ServeSettings::resolve(ServeOptions::default(), report, environment) {
        problems.extend(more);
    }
    problems.sort_by_key(|problem| problem.line);
    problems
}
