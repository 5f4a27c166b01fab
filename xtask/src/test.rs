//! `cargo xtask test`: everything that continuous integration runs.

use std::process::Command;
use std::time::Instant;

use crate::counts::Counts;
use crate::process::{self, Outcome};
use crate::workspace::Workspace;
use crate::{crash, fuzz, lint, python, rdma, setup};

const FUZZ_SECONDS: u64 = 10;
const POWER_CUT_ROUNDS: u32 = 3;
/// Held by a slow test before it is ended, so that one that hangs can't hold up everything.
const NEXTEST_SETTINGS: &str = "xtask/nextest.toml";

/// Runs every step, also after a failed one, sums up the test runners' own counts and fails if anything failed.
pub fn run(workspace: &Workspace) -> Outcome {
    let counts = Counts::default();
    let unit_tests = |workspace: &Workspace| tests(workspace, &counts);
    let documentation_tests = |workspace: &Workspace| doc_tests(workspace, &counts);
    let python_tests = |workspace: &Workspace| python::run_tests(workspace, &counts);
    let vllm_tests = |workspace: &Workspace| python::run_vllm_tests(workspace, &counts);
    let fuzzing = |workspace: &Workspace| fuzz::run(workspace, FUZZ_SECONDS, None);
    let power_cuts = |workspace: &Workspace| crash::run(workspace, &crash::Options::short(POWER_CUT_ROUNDS));
    let rdma_checks = |workspace: &Workspace| rdma::run_if_possible(workspace, |line| counts.add(line));
    let steps: [Step; 13] = [
        ("format", &lint::format),
        ("dependency edges", &lint::dependency_edges),
        ("clippy", &lint::clippy),
        ("licences and bans", &lint::deny),
        ("python lint", &python::lint),
        ("tests", &unit_tests),
        ("documentation tests", &documentation_tests),
        ("python tests", &python_tests),
        ("vLLM tests", &vllm_tests),
        ("benches, one round each", &benches),
        ("fuzz targets, briefly", &fuzzing),
        ("power cuts, briefly", &power_cuts),
        ("RDMA in a virtual machine", &rdma_checks),
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
    let (passed, failed) = counts.sums();
    println!("{passed} passed, {failed} failed");
    if failed_steps.is_empty() && failed == 0 && passed > 0 {
        return Ok(());
    }
    Err(format!("failed: {}", failed_steps.join(", ")).into())
}

type Step<'a> = (&'static str, &'a dyn Fn(&Workspace) -> Outcome);

fn tests(workspace: &Workspace, counts: &Counts) -> Outcome {
    // several masters elect their leader on a real etcd
    setup::debian_program("etcd", "etcd-server")?;
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
