//! The Python package: its environments below the target directory, its wheel, its tests and its demonstration.

mod checks;
mod demo;
mod environment;
mod interpreter;
mod wheel;

use std::path::PathBuf;

use crate::process::{Failure, Outcome};
use crate::workspace::Workspace;

pub use checks::{OPENSSL, lint, run_tests, run_vllm_tests, run_vllm_tests_with};
pub use demo::{Options as DemoOptions, run as run_demo};

use environment::Kind;

/// An interpreter of this machine, without packages of its own.
pub fn interpreter() -> Result<PathBuf, Failure> {
    interpreter::find()
}

/// The interpreter of vLLM's environment with the package in it, built for figures.
pub fn vllm_for_figures(workspace: &Workspace) -> Result<PathBuf, Failure> {
    for_figures(workspace, Kind::Vllm)
}

/// The interpreter of the environment without vLLM, with the package in it, built for figures.
pub fn tools_for_figures(workspace: &Workspace) -> Result<PathBuf, Failure> {
    for_figures(workspace, Kind::Tools)
}

fn for_figures(workspace: &Workspace, kind: Kind) -> Result<PathBuf, Failure> {
    let wheel = wheel::build(workspace, wheel::Profile::Release)?;
    let environment = environment::ready(workspace, kind)?;
    environment.install(workspace, &wheel)?;
    Ok(environment.python())
}

/// Sets up both environments, without the package.
pub fn prepare(workspace: &Workspace) -> Outcome {
    for kind in [Kind::Tools, Kind::Vllm] {
        environment::ready(workspace, kind)?;
    }
    Ok(())
}

/// Sets up both environments with the package in them, and says where they are.
pub fn set_up(workspace: &Workspace) -> Outcome {
    let environments = [Kind::Tools, Kind::Vllm]
        .into_iter()
        .map(|kind| Ok((kind, environment::ready(workspace, kind)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let wheel = wheel::build(workspace, wheel::Profile::Development)?;
    for (kind, environment) in environments {
        environment.install(workspace, &wheel)?;
        println!("{:<8}{}", kind.name(), environment.python().display());
    }
    println!("{:<8}{}", "wheel", wheel.display());
    Ok(())
}
