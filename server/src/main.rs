//! The `kvstored` command.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kvstored::check_config::{CheckArguments, check_config};
use kvstored::conformance::ConformanceArguments;
use kvstored::ctl::CtlArguments;
use kvstored::master::{self, MasterArguments};
use kvstored::{conformance, ctl, output, serve, tools};
use kvstored_core::Runtime;
use kvstored_host::config::{self, Environment, ServeArguments};
use kvstored_proxy::ProxyArguments;

/// A store of KV cache blocks for LLM engines: serves local clients over tiers of memory and storage.
///
/// Without a command it serves. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no daemon answers.
#[derive(Parser)]
#[command(name = "kvstored", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    serve: ServeArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Serve local clients until told to stop (the default)
    Serve(Box<ServeArguments>),
    /// Keep which node of a memory pool holds which object (takes the flags of `mooncake_master`)
    Master(Box<MasterArguments>),
    /// Look at a running daemon, or tell it something
    Ctl(CtlArguments),
    /// Route completion requests to prefill and decode instances
    Proxy(Box<ProxyArguments>),
    /// Replay a trace of requests and check every loaded byte
    Replay(tools::replay::Args),
    /// Measure, beside the machine's own limits
    Bench(tools::bench::Args),
    /// Make traces
    Trace(tools::trace::Args),
    /// Check a configuration file; exit code 1 if it has a problem, an unknown key included
    CheckConfig(CheckArguments),
    /// Check whether a plugin, or the tiers of a pipeline, keep the contract of tiers
    Conformance(Box<ConformanceArguments>),
    /// Print the JSON schema of the configuration file
    ConfigSchema,
    /// Load a plugin and say what it is; `serve` runs this in a process of its own before it loads one
    PluginProbe(PluginProbeArguments),
}

/// Arguments of `kvstored plugin-probe`.
#[derive(clap::Args)]
struct PluginProbeArguments {
    /// The plugin directory
    directory: PathBuf,
    /// The plugin's name
    name: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let environment = Environment::current();
    let done = match cli.command {
        None => serve::run(cli.serve, &environment),
        Some(Command::Serve(arguments)) => serve::run(*arguments, &environment),
        Some(Command::Master(arguments)) => master::run(*arguments, &environment),
        Some(Command::Proxy(arguments)) => run_proxy(&arguments),
        Some(other) => {
            serve::start_for_tool(environment.log_level.as_deref());
            run_tool(other, &environment)
        }
    };
    done.unwrap_or_else(|error| {
        eprintln!("kvstored: {error}");
        ExitCode::FAILURE
    })
}

fn run_proxy(arguments: &ProxyArguments) -> kvstored_core::Result<ExitCode> {
    let settings = kvstored_proxy::Settings::new(arguments)?;
    serve::start_for_tool(Some(settings.log_filter));
    kvstored_proxy::run(settings, Runtime::system())
}

fn run_tool(command: Command, environment: &Environment) -> kvstored_core::Result<ExitCode> {
    match command {
        Command::Serve(arguments) => serve::run(*arguments, environment),
        Command::Master(arguments) => master::run(*arguments, environment),
        Command::Proxy(arguments) => run_proxy(&arguments),
        Command::Ctl(arguments) => ctl::run(arguments, environment),
        Command::Replay(arguments) => tools::replay::run(arguments),
        Command::Bench(arguments) => tools::bench::run(arguments),
        Command::Trace(arguments) => tools::trace::run(arguments),
        Command::CheckConfig(arguments) => check_config(&arguments, environment),
        Command::Conformance(arguments) => conformance::run(*arguments, environment),
        Command::PluginProbe(arguments) => {
            let facts = kvstored_plugin_host::run_probe(&arguments.directory, &arguments.name)?;
            output::emit_json(&serde_json::json!({
                "name": facts.name,
                "version": facts.version,
                "abi_version": format!("{}.{}", facts.abi_version >> 16, facts.abi_version & 0xFFFF),
                "keeps": facts.keeps,
            }))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::ConfigSchema => output::emit_json(&config::schema()).map(|()| ExitCode::SUCCESS),
    }
}
