//! Linting and testing the Python package.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::environment::{self, Environment, Kind};
use super::wheel::{self, Profile};
use crate::counts::Counts;
use crate::process::{self, Failure, Outcome};
use crate::setup;
use crate::workspace::Workspace;

/// The package's folder, relative to the root.
const PACKAGE: &str = "python";
/// Other folders with Python code.
const OTHER_FOLDERS: [&str; 4] = [
    "xtask/python",
    "benches/vllm",
    "benches/vs_mooncake",
    "benches/vs_router",
];
const SETTINGS: &str = "python/pyproject.toml";
/// Folders of tests, relative to the package's, that run where there is no engine …
const UNIT_TESTS: [&str; 2] = ["tests/unit", "tests/lab"];
/// … where torch and engines' own interfaces are …
const FACE_TESTS: [&str; 1] = ["tests/faces"];
/// … and with a real vLLM from end to end.
const VLLM_TESTS: [&str; 1] = ["tests/vllm"];

/// How far a run goes.
struct Extent {
    /// How long one test may take.
    test_limit_seconds: u32,
    /// How long all of them may take.
    limit: Duration,
    /// Whether tests run that take long.
    long_tests: bool,
}

const QUICK: Extent = Extent {
    test_limit_seconds: 60,
    limit: Duration::from_mins(10),
    long_tests: false,
};
const WITH_ENGINES: Extent = Extent {
    test_limit_seconds: 300,
    limit: Duration::from_mins(35),
    long_tests: false,
};
/// A developer's own run is ended by hand.
const DEVELOPER: Extent = Extent {
    test_limit_seconds: 600,
    limit: Duration::from_hours(24),
    long_tests: true,
};
/// Says the tests that long ones are wanted.
const LONG_TESTS: &str = "KVSTORED_LONG_TESTS";

/// So that whoever wants the tests to be quicker sees where the time goes.
const SHOW_SLOWEST: &str = "--durations=10";

/// Makes the certificates of the tests over TLS, which are left out without it: the program, and Debian's package.
pub const OPENSSL: (&str, &str) = ("openssl", "openssl");

/// Formatting and lints of everything written in Python.
pub fn lint(workspace: &Workspace) -> Outcome {
    let tools = environment::ready(workspace, Kind::Tools)?;
    let ruff = |arguments: &[&str], folders: &[PathBuf]| {
        let mut command = Command::new(tools.program("ruff"));
        command
            .current_dir(&workspace.root)
            .args(arguments)
            .arg("--no-cache");
        process::run(command.args(folders))
    };
    let package = [PathBuf::from(PACKAGE)];
    let others = existing(&workspace.root, &OTHER_FOLDERS);
    // the package's settings lie in it, with exceptions for some of its folders; elsewhere they have to be named
    let settings = ["--config", SETTINGS];
    let outcomes = [
        ruff(&["check"], &package),
        ruff(&["format", "--check"], &package),
        ruff(&[&["check"], &settings[..]].concat(), &others),
        ruff(&[&["format", "--check"], &settings[..]].concat(), &others),
    ];
    outcomes.into_iter().collect()
}

/// Tests of the package: without torch, then with it.
pub fn run_tests(workspace: &Workspace, counts: &Counts) -> Outcome {
    setup::debian_program(OPENSSL.0, OPENSSL.1)?;
    let wheel = wheel::build(workspace, Profile::Development)?;
    let mut outcome = Ok(());
    for (kind, folders, extent) in [
        (Kind::Tools, &UNIT_TESTS[..], QUICK),
        (Kind::Vllm, &FACE_TESTS, WITH_ENGINES),
    ] {
        let environment = environment::ready(workspace, kind)?;
        environment.install(workspace, &wheel)?;
        let arguments = existing(&workspace.root.join(PACKAGE), folders);
        if !arguments.is_empty() {
            outcome = outcome.and(pytest(workspace, &environment, &arguments, &extent, counts));
        }
    }
    outcome
}

/// Tests with real engines.
pub fn run_vllm_tests(workspace: &Workspace, counts: &Counts) -> Outcome {
    let environment = vllm_with_package(workspace)?;
    let arguments = existing(&workspace.root.join(PACKAGE), &VLLM_TESTS);
    pytest(workspace, &environment, &arguments, &WITH_ENGINES, counts)
}

/// The same for a developer, those included that take long: with arguments of pytest, whose paths are relative to the
/// package's folder.
pub fn run_vllm_tests_with(workspace: &Workspace, arguments: &[PathBuf]) -> Outcome {
    let environment = vllm_with_package(workspace)?;
    let mut command = Command::new(process::cargo());
    command
        .current_dir(&workspace.root)
        .args(["build", "--workspace", "--bins"]);
    process::run(&mut command)?;
    let all = VLLM_TESTS.map(PathBuf::from);
    let names_files = arguments
        .iter()
        .any(|argument| workspace.root.join(PACKAGE).join(test_file(argument)).exists());
    let arguments = [if names_files { &[] } else { &all[..] }, arguments].concat();
    pytest(
        workspace,
        &environment,
        &arguments,
        &DEVELOPER,
        &Counts::default(),
    )
}

fn vllm_with_package(workspace: &Workspace) -> Result<Environment, Failure> {
    let wheel = wheel::build(workspace, Profile::Development)?;
    let environment = environment::ready(workspace, Kind::Vllm)?;
    environment.install(workspace, &wheel)?;
    Ok(environment)
}

fn pytest(
    workspace: &Workspace,
    environment: &Environment,
    arguments: &[PathBuf],
    extent: &Extent,
    counts: &Counts,
) -> Outcome {
    let package = workspace.root.join(PACKAGE);
    let mut command = Command::new(environment.python());
    // it ends when we do, though Ctrl-C doesn't reach it
    command
        .arg(package.join("tests/lab/leash.py"))
        .arg(std::process::id().to_string())
        .arg(environment.python());
    // not the folder that we're in: the package there has no native module
    command
        .current_dir(&package)
        .args([
            "-P",
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            SHOW_SLOWEST,
            "--timeout",
        ])
        .arg(extent.test_limit_seconds.to_string())
        .args(arguments);
    command
        .env("KVSTORED_BINARY", workspace.target.join("debug").join("kvstored"))
        // nor in the programs that tests start
        .env("PYTHONSAFEPATH", "1")
        .env("COLUMNS", "120")
        .env_remove("PYTHONPATH")
        // a real vLLM would be compiled again at each start
        .env_remove("PYTHONDONTWRITEBYTECODE")
        // of others' plug-ins, only what the tests ask for
        .env_remove("PYTEST_ADDOPTS");
    if extent.long_tests {
        command.env(LONG_TESTS, "1");
    }
    process::run_limited(&mut command, extent.limit, |line| counts.add(line))
}

/// The file or folder of an argument such as `tests/vllm/test_environment.py::test_name`.
fn test_file(argument: &Path) -> PathBuf {
    let text = argument.to_string_lossy();
    PathBuf::from(text.split("::").next().unwrap_or(&text))
}

fn existing(root: &Path, folders: &[&str]) -> Vec<PathBuf> {
    folders
        .iter()
        .filter(|folder| root.join(folder).is_dir())
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tests_name_is_taken_off_its_file() {
        let file = |argument: &str| test_file(Path::new(argument));
        assert_eq!(
            file("tests/vllm/test_a.py::test_b[c]"),
            Path::new("tests/vllm/test_a.py")
        );
        assert_eq!(file("tests/vllm"), Path::new("tests/vllm"));
    }

    #[test]
    fn only_folders_that_are_there_are_tested() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("here")).unwrap();
        assert_eq!(existing(root.path(), &["here", "gone"]), [PathBuf::from("here")]);
    }
}
