//! `cargo xtask vllm-demo`: a real vLLM in front of the daemon, from nothing to a table.

use std::process::Command;

use clap::Args;

use super::environment::{self, Kind};
use super::wheel::{self, Profile};
use crate::process::{self, Outcome};
use crate::workspace::Workspace;

/// What is asked of vLLM.
#[derive(Args)]
pub struct Options {
    /// Size of the made model: tiny, small or medium
    #[arg(long, default_value = "small")]
    preset: String,
    /// How many prompts
    #[arg(long, default_value_t = 10)]
    prompts: u32,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 4000)]
    input_tokens: u32,
    /// Tokens generated for each prompt
    #[arg(long, default_value_t = 8)]
    output_tokens: u32,
}

/// Builds the daemon and the package for figures, and runs the demonstration in vLLM's environment.
pub fn run(workspace: &Workspace, options: &Options) -> Outcome {
    let mut build = Command::new(process::cargo());
    build
        .current_dir(&workspace.root)
        .args(["build", "--release", "--package", "kvstored"]);
    process::run(&mut build)?;
    let wheel = wheel::build(workspace, Profile::Release)?;
    let environment = environment::ready(workspace, Kind::Vllm)?;
    environment.install(workspace, &wheel)?;

    let tests = workspace.root.join("python").join("tests");
    let mut demo = Command::new(environment.python());
    demo.arg("-P")
        .arg(workspace.root.join("xtask/python/vllm_demo.py"))
        .arg("--binary")
        .arg(workspace.target.join("release").join("kvstored"))
        .arg("--models")
        .arg(workspace.target.join("python").join("models"))
        .args(["--preset", &options.preset])
        .args(["--prompts", &options.prompts.to_string()])
        .args(["--input-tokens", &options.input_tokens.to_string()])
        .args(["--output-tokens", &options.output_tokens.to_string()]);
    demo.env("PYTHONPATH", tests)
        .env_remove("PYTHONDONTWRITEBYTECODE");
    process::run(&mut demo)
}
