//! `cargo xtask fuzz`: builds the fuzz targets with coverage feedback and AddressSanitizer, and runs each for a while.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::process::{self, Failure, Outcome};
use crate::setup;
use crate::workspace::Workspace;

/// Sanitizers need an explicit target, so that build scripts and procedural macros stay uninstrumented.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};
/// Edge counters, their table and comparisons: what the fuzzer steers by.
const INSTRUMENTATION: [&str; 8] = [
    "--cfg=fuzzing",
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// libFuzzer is built from source: the program, and Debian's package that has it.
pub const COMPILER: (&str, &str) = ("c++", "g++");
const INPUT_BYTES_LIMIT: u64 = 16 * 1024;
const ONE_INPUT_SECONDS_LIMIT: u64 = 10;
const QUIET_SECONDS: u64 = 30;
const MEMORY_LIMIT_MB: u64 = 4096;

/// The manifest of the fuzz targets' own workspace.
pub fn manifest(workspace: &Workspace) -> PathBuf {
    workspace.root.join("fuzz").join("Cargo.toml")
}

/// Builds them, then runs each target, or the named one. Goes on after a failure and fails at the end.
pub fn run(workspace: &Workspace, seconds: u64, only: Option<&str>) -> Outcome {
    let targets: Vec<String> = targets(workspace)?
        .into_iter()
        .filter(|name| only.is_none_or(|wanted| wanted == name))
        .collect();
    if targets.is_empty() {
        return Err(format!("no fuzz target {}", only.unwrap_or("at all")).into());
    }
    setup::debian_program(COMPILER.0, COMPILER.1)?;
    build(workspace)?;
    let failed: Vec<&str> = targets
        .iter()
        .filter(|name| {
            fuzz(workspace, name, seconds)
                .inspect_err(|error| eprintln!("{name}: {error}"))
                .is_err()
        })
        .map(String::as_str)
        .collect();
    if failed.is_empty() {
        eprintln!(
            "\nfuzz: {} targets, {seconds} s each, nothing found",
            targets.len()
        );
        return Ok(());
    }
    Err(format!(
        "fuzz targets failed: {}; the inputs lie in fuzz/artifacts",
        failed.join(", ")
    )
    .into())
}

fn targets(workspace: &Workspace) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for entry in fs::read_dir(workspace.root.join("fuzz").join("fuzz_targets"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn target_directory(workspace: &Workspace) -> PathBuf {
    workspace.target.join("fuzz")
}

fn build(workspace: &Workspace) -> Outcome {
    let mut command = Command::new(process::cargo());
    command
        .args([
            "build",
            "--release",
            "--bins",
            "--target",
            PLATFORM,
            "--manifest-path",
        ])
        .arg(manifest(workspace));
    command.arg("--target-dir").arg(target_directory(workspace));
    // the sanitizer's runtime comes with the stable toolchain, but its flag has to be unlocked
    command.env("RUSTC_BOOTSTRAP", "1");
    command
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
    process::run(&mut command)
}

fn fuzz(workspace: &Workspace, name: &str, seconds: u64) -> Outcome {
    let folder = workspace.root.join("fuzz");
    let corpus = folder.join("corpus").join(name);
    let artifacts = folder.join("artifacts").join(name);
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let mut command = Command::new(
        target_directory(workspace)
            .join(PLATFORM)
            .join("release")
            .join(name),
    );
    command.current_dir(&folder).arg(&corpus);
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-max_len={INPUT_BYTES_LIMIT}"));
    command.arg(format!("-timeout={ONE_INPUT_SECONDS_LIMIT}"));
    command.arg(format!("-rss_limit_mb={MEMORY_LIMIT_MB}"));
    // a line for each new input is for those who watch a long run
    command
        .arg(format!("-verbosity={}", u8::from(seconds > QUIET_SECONDS)))
        .args(["-print_final_stats=1", "-print_funcs=0"]);
    process::run(&mut command)
}
