//! `cargo xtask router-bench`: our proxy beside vllm-router and vLLM-Ascend's example, before instances that compute nothing.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::process::{self, Outcome};
use crate::python;
use crate::workspace::Workspace;

/// Which figures, and where they go.
#[derive(Args)]
pub struct Options {
    /// rate, added, held, killed; all when left out
    names: Vec<String>,
    /// Keep every measurement in this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Further arguments of the bench itself, as `--rounds 3`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds the program and the load for figures, and runs the bench, which makes the peers' environment.
pub fn run(workspace: &Workspace, options: &Options) -> Outcome {
    let mut build = Command::new(process::cargo());
    build
        .current_dir(&workspace.root)
        .args(["build", "--release", "--package", "kvstored"])
        .args(["--package", "kvstored-benches", "--bins"]);
    process::run(&mut build)?;
    let mut bench = Command::new(python::interpreter()?);
    bench
        .arg(workspace.root.join("benches/vs_router/run.py"))
        .arg("--target")
        .arg(&workspace.target);
    if let Some(json) = &options.json {
        bench.arg("--json").arg(json);
    }
    bench
        .args(&options.names)
        .args(&options.arguments)
        .env_remove("PYTHONPATH");
    process::run(&mut bench)
}
