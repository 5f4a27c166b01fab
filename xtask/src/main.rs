//! Developer commands: `cargo xtask demo | vllm-demo | pd-demo | test | vllm-test | python | lint | fuzz | malformed | crash |
//! rdma`, and `vllm-bench | mooncake-bench | router-bench`.
//!
//! Each command sets up by itself whatever a fresh machine lacks, says what it does, and exits with a non-zero
//! status when anything failed.
#![allow(
    clippy::disallowed_methods,
    reason = "developer commands wait for real processes in real time; nothing here is simulated"
)]

mod counts;
mod crash;
mod demo;
mod edges;
mod fuzz;
mod lint;
mod malformed;
mod manifest;
mod mooncake_bench;
mod pd_demo;
mod prepare;
mod process;
mod python;
mod rdma;
mod router_bench;
mod setup;
mod test;
mod vllm_bench;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::process::Outcome;
use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of kvstored")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a trace from a daemon twice, restarting it in between, and show what hit where
    Demo {
        /// Trace to replay, one JSON object a line
        #[arg(long)]
        trace: Option<PathBuf>,
    },
    /// Serve prompts from a real vLLM over the daemon twice, restarting vLLM in between, and compare the times
    VllmDemo(python::DemoOptions),
    /// Compute prompts in some real vLLM instances and answers in others, and compare tokens and times with one instance
    PdDemo(pd_demo::Options),
    /// Everything that continuous integration runs: lint, tests, benches, short fuzzing, short power cuts
    Test,
    /// Figures of the prefix cache in real vLLM servers, beside no cache and two peers
    VllmBench(vllm_bench::Options),
    /// Figures of the transfer engine and the pool, beside Mooncake's
    MooncakeBench(mooncake_bench::Options),
    /// Figures of the proxy, beside vllm-router's and the example's that it stands in for
    RouterBench(router_bench::Options),
    /// The Python tests with a real vLLM, those included that take long, or those that the arguments name
    VllmTest {
        /// Arguments of pytest; paths are relative to the folder `python`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<PathBuf>,
    },
    /// Set up the Python environments with the package in them, and say where they are
    Python,
    /// Formatting, dependency edges, clippy, licences and bans, and the Python code's formatting and lints
    Lint,
    /// Run every fuzz target for a while
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Only this target
        #[arg(long)]
        target: Option<String>,
    },
    /// Send a great many malformed frames to everything that listens
    Malformed {
        /// Frames for each
        #[arg(long, default_value_t = 1_000_000)]
        frames: u64,
    },
    /// Cut the power under a writer, or kill it, and check that what was acknowledged is still there
    Crash(crash::Options),
    /// Run the RDMA checks over soft-RoCE in a virtual machine
    Rdma(rdma::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Outcome {
    let workspace = Workspace::load()?;
    match command {
        Command::Demo { trace } => demo::run(&workspace, trace),
        Command::VllmDemo(options) => python::run_demo(&workspace, &options),
        Command::PdDemo(options) => pd_demo::run(&workspace, &options),
        Command::Test => test::run(&workspace),
        Command::VllmBench(options) => vllm_bench::run(&workspace, &options),
        Command::MooncakeBench(options) => mooncake_bench::run(&workspace, &options),
        Command::RouterBench(options) => router_bench::run(&workspace, &options),
        Command::VllmTest { arguments } => python::run_vllm_tests_with(&workspace, &arguments),
        Command::Python => python::set_up(&workspace),
        Command::Lint => lint::run(&workspace),
        Command::Fuzz { seconds, target } => fuzz::run(&workspace, seconds, target.as_deref()),
        Command::Malformed { frames } => malformed::run(&workspace, frames),
        Command::Crash(options) => crash::run(&workspace, &options),
        Command::Rdma(options) => rdma::run(&workspace, &options, |_| ()),
    }
}
