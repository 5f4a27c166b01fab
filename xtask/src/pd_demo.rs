//! `cargo xtask pd-demo`: prefill apart from decode, in real vLLM instances on this machine, from nothing to a table.

use std::process::Command;

use clap::{Args, ValueEnum};

use crate::process::{self, Outcome};
use crate::python;
use crate::workspace::Workspace;

/// What is deployed, and what is asked of it.
#[derive(Args)]
pub struct Options {
    /// Only this deployment; all when left out
    #[arg(long, value_enum)]
    scenario: Option<Scenario>,
    /// Size of the made models: tiny, small or medium
    #[arg(long, default_value = "small")]
    preset: String,
    /// How many prompts
    #[arg(long, default_value_t = 10)]
    prompts: u32,
    /// Tokens of each prompt
    #[arg(long, default_value_t = 2000)]
    input_tokens: u32,
    /// Tokens generated for each prompt
    #[arg(long, default_value_t = 32)]
    output_tokens: u32,
}

/// A deployment's shape.
#[derive(Clone, Copy, ValueEnum)]
enum Scenario {
    /// Two prefill and two decode instances of a dense model
    Dense,
    /// A model with experts, each role an instance of two data-parallel ranks
    Moe,
    /// Two tensor-parallel ranks on one side only: first where prompts are computed, then where answers are
    Hetero,
}

/// Builds the program and the package for figures, and runs the demonstration in vLLM's environment.
pub fn run(workspace: &Workspace, options: &Options) -> Outcome {
    let mut build = Command::new(process::cargo());
    build
        .current_dir(&workspace.root)
        .args(["build", "--release", "--package", "kvstored"]);
    process::run(&mut build)?;
    let mut demo = Command::new(python::vllm_for_figures(workspace)?);
    demo.arg("-P")
        .arg(workspace.root.join("xtask/python/pd_demo.py"))
        .arg("--binary")
        .arg(workspace.target.join("release").join("kvstored"))
        .arg("--models")
        .arg(workspace.target.join("python").join("models"))
        .args(["--preset", &options.preset])
        .args(["--prompts", &options.prompts.to_string()])
        .args(["--input-tokens", &options.input_tokens.to_string()])
        .args(["--output-tokens", &options.output_tokens.to_string()]);
    if let Some(scenario) = options.scenario.and_then(|scenario| scenario.to_possible_value()) {
        demo.args(["--scenario", scenario.get_name()]);
    }
    demo.env("PYTHONPATH", workspace.root.join("python").join("tests"))
        .env_remove("PYTHONDONTWRITEBYTECODE");
    process::run(&mut demo)
}
