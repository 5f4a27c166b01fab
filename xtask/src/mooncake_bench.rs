//! `cargo xtask mooncake-bench`: our transfer engine and pool beside Mooncake's, both through the same Python API.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::process::{self, Outcome};
use crate::python;
use crate::workspace::Workspace;

/// Which figures, and where they go.
#[derive(Args)]
pub struct Options {
    /// engine, store, or both when left out
    name: Option<String>,
    /// Keep every measurement in this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Further arguments of the bench itself, as `--rounds 3`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds the program and the package for figures, and runs the bench, which makes the peer's environment.
pub fn run(workspace: &Workspace, options: &Options) -> Outcome {
    let mut build = Command::new(process::cargo());
    build
        .current_dir(&workspace.root)
        .args(["build", "--release", "--package", "kvstored"]);
    process::run(&mut build)?;
    let mut bench = Command::new(python::tools_for_figures(workspace)?);
    bench
        .arg(workspace.root.join("benches/vs_mooncake/run.py"))
        .arg("--target")
        .arg(&workspace.target);
    if let Some(json) = &options.json {
        bench.arg("--json").arg(json);
    }
    bench.args(&options.arguments).args(&options.name);
    bench
        .env_remove("PYTHONPATH")
        .env_remove("PYTHONDONTWRITEBYTECODE");
    process::run(&mut bench)
}
