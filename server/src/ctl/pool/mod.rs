//! `kvstored ctl pool`: looking at the memory pool through its master, and telling it things.

mod arguments;
mod drain;
mod list;
mod segments;
mod stat;

use std::process::ExitCode;
use std::time::Duration;

use kvstored_core::{ErrorKind, Result, Runtime};
use kvstored_host::config::Environment;
use kvstored_master::client::blocking::MasterClient;

pub use arguments::Arguments;
use arguments::Command;

use super::UNREACHABLE_EXIT;

/// What every subcommand works with.
struct Context {
    client: MasterClient,
    json: bool,
    timeout: Duration,
    runtime: Runtime,
}

impl Context {
    fn deadline(&self) -> std::time::Instant {
        self.runtime.deadline(self.timeout)
    }
}

/// Runs `kvstored ctl pool`. The exit code is 3 when no master answers.
pub fn run(
    arguments: Arguments,
    json: bool,
    timeout: Duration,
    environment: &Environment,
) -> Result<ExitCode> {
    let runtime = Runtime::system();
    let settings = arguments.client_settings(environment)?;
    let endpoints = settings.endpoints.join(", ");
    let context = Context {
        client: MasterClient::new(settings, runtime.clone())?,
        json,
        timeout,
        runtime,
    };
    let done = match arguments.command {
        Command::Stat => stat::run(&context),
        Command::Ls(arguments) => list::run(&context, &arguments),
        Command::Segments => segments::run(&context),
        Command::Drain(arguments) => drain::run(&context, &arguments),
    };
    match done {
        Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut) => {
            eprintln!("kvstored: no master answers at {endpoints}: {error}");
            Ok(ExitCode::from(UNREACHABLE_EXIT))
        }
        other => other,
    }
}
