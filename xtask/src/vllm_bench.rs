//! `cargo xtask vllm-bench`: the figures of the prefix cache in real vLLM servers, from nothing to tables.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::process::{self, Outcome};
use crate::python;
use crate::workspace::Workspace;

/// Which figures, and where they go.
#[derive(Args)]
pub struct Options {
    /// ttft, lookup, decode, replay or all
    #[arg(default_value = "all")]
    name: String,
    /// Keep every measurement in this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Further arguments of the bench itself, as `--rounds 3`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds the package for figures, and runs the benches in vLLM's environment.
pub fn run(workspace: &Workspace, options: &Options) -> Outcome {
    let interpreter = python::vllm_for_figures(workspace)?;
    let mut bench = Command::new(interpreter);
    bench
        .arg("-W")
        .arg("ignore")
        .arg(workspace.root.join("benches/vllm/run.py"))
        .arg("--models")
        .arg(workspace.target.join("python").join("models"));
    if let Some(json) = &options.json {
        bench.arg("--json").arg(json);
    }
    bench.arg(&options.name).args(&options.arguments);
    bench
        .env_remove("PYTHONPATH")
        .env_remove("PYTHONDONTWRITEBYTECODE");
    process::run(&mut bench)
}
