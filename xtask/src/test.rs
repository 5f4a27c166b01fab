//! `cargo xtask test`: everything that continuous integration runs.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::counts::Counts;
use crate::process::{self, Failure, Outcome};
use crate::workspace::Workspace;
use crate::{crash, fuzz, lint, prepare, python, rdma, setup};

const FUZZ_SECONDS: u64 = 4;
const POWER_CUT_ROUNDS: u32 = 3;
/// Several masters elect their leader on a real one: the program, and Debian's package that has it.
pub const ETCD: (&str, &str) = ("etcd", "etcd-server");
/// Held by a slow test before it is ended, so that one that hangs can't hold up everything.
const NEXTEST_SETTINGS: &str = "xtask/nextest.toml";
/// Whether cargo keeps what lets it build a changed crate again more quickly.
const INCREMENTAL: &str = "CARGO_INCREMENTAL";

/// Runs every step, also after a failed one, sums up the test runners' own counts and fails if anything failed.
pub fn run(workspace: &Workspace) -> Outcome {
    if std::env::var_os(INCREMENTAL).is_none() && is_fresh(&workspace.target) {
        return Err(run_again_without_increments()?);
    }
    std::thread::scope(|scope| {
        prepare::start(scope, workspace);
        run_steps(workspace)
    })
}

/// Whether none of our crates was built there yet.
fn is_fresh(target: &Path) -> bool {
    let built = std::fs::read_dir(target.join("debug/incremental"));
    !built.is_ok_and(|entries| {
        entries
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"kvstored"))
    })
}

/// On a machine that builds everything once, as those of continuous integration do, what is kept for the next build costs
/// time only. Returns why it couldn't be done; otherwise this process goes on as another.
fn run_again_without_increments() -> Result<Failure, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).env(INCREMENTAL, "0");
    Ok(command.exec().into())
}

fn run_steps(workspace: &Workspace) -> Outcome {
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
    setup::debian_program(ETCD.0, ETCD.1)?;
    // builds the programs too, which these tests and others start
    let mut command = cargo(workspace);
    let nextest = process::succeeds(cargo(workspace).args(["nextest", "--version"]));
    if nextest {
        command.args(["nextest", "run", "--config-file", NEXTEST_SETTINGS]);
        // most of them wait for something rather than compute
        let processors = std::thread::available_parallelism()?.get();
        command.arg(format!("--test-threads={}", processors + 1));
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
