//! `kvstored ctl`: looking at a running daemon and telling it things.

mod change;
mod list;
mod pool;
mod stat;
mod table;
#[cfg(test)]
mod tests;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use kvstored_client::{Client, ClientSettings};
use kvstored_core::{Error, ErrorKind, Namespace, Result, Runtime};

use kvstored_host::config::Environment;

/// Exit code when no daemon answers.
const UNREACHABLE_EXIT: u8 = 3;

/// Arguments of `kvstored ctl`.
#[derive(Clone, Debug, clap::Args)]
pub struct CtlArguments {
    /// The daemon's socket [default: as `kvstored serve` chooses it]
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,

    /// Write JSON
    #[arg(long, global = true)]
    json: bool,

    /// How long to wait for an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, global = true)]
    answer_timeout_seconds: u64,

    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    #[command(flatten)]
    Daemon(DaemonCommand),
    /// Look at the memory pool of several nodes, or tell it something
    Pool(Box<pool::Arguments>),
}

/// What a daemon is asked over its socket.
#[derive(Clone, Debug, clap::Subcommand)]
enum DaemonCommand {
    /// The daemon's numbers, by tier
    Stat,
    /// Namespaces, or the blocks of one
    Ls(list::Arguments),
    /// Read stored blocks and check every byte; exit code 1 if one is corrupt, 4 if one couldn't be read
    Verify(verify::Arguments),
    /// Drop blocks
    Evict(change::EvictArguments),
    /// Forget a namespace in every tier, for good
    Purge(change::PurgeArguments),
    /// Wait until everything accepted is stored durably
    Drain(change::DrainArguments),
}

/// What every subcommand works with.
struct Context {
    client: Client,
    json: bool,
    runtime: Runtime,
}

/// Runs `kvstored ctl`. The exit code is 3 when no daemon answers.
pub fn run(arguments: CtlArguments, environment: &Environment) -> Result<ExitCode> {
    let timeout = Duration::from_secs(arguments.answer_timeout_seconds.clamp(1, 86_400));
    let command = match arguments.command {
        Command::Pool(pool) => return pool::run(*pool, arguments.json, timeout, environment),
        Command::Daemon(command) => command,
    };
    let socket = arguments
        .socket
        .map_or_else(|| environment.default_socket(), plain_path);
    let runtime = Runtime::system();
    let settings = ClientSettings {
        streams: 1,
        timeout,
        ..ClientSettings::default()
    };
    let client = match Client::connect(&socket, settings, runtime.clone()) {
        Ok(client) => client,
        // a daemon that speaks another version is there
        Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
        Err(error) => {
            eprintln!("kvstored: the daemon can't be reached: {error}");
            return Ok(ExitCode::from(UNREACHABLE_EXIT));
        }
    };
    let context = Context {
        client,
        json: arguments.json,
        runtime,
    };
    let done = match command {
        DaemonCommand::Stat => stat::run(&context),
        DaemonCommand::Ls(arguments) => list::run(&context, &arguments),
        DaemonCommand::Verify(arguments) => verify::run(&context, &arguments),
        DaemonCommand::Evict(arguments) => change::evict(&context, &arguments),
        DaemonCommand::Purge(arguments) => change::purge(&context, &arguments),
        DaemonCommand::Drain(arguments) => change::drain(&context, &arguments),
    };
    match done {
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            eprintln!("kvstored: the daemon at {} went away: {error}", socket.display());
            Ok(ExitCode::from(UNREACHABLE_EXIT))
        }
        other => other,
    }
}

/// `unix:PATH`, as the daemon writes its address, means the same as the path.
fn plain_path(socket: PathBuf) -> PathBuf {
    match socket.to_str().and_then(|text| text.strip_prefix("unix:")) {
        Some(path) => path.into(),
        None => socket,
    }
}

impl Context {
    /// The index of a tier by its name. Fails with `InvalidInput`, naming those there are.
    fn tier(&self, name: &str) -> Result<usize> {
        let names = self.client.tier_names();
        names
            .iter()
            .position(|known| known.eq_ignore_ascii_case(name))
            .ok_or_else(|| Error::invalid(format!("tier \"{name}\" is not one of {}", names.join(", "))))
    }

    /// A namespace by its digits, or by the first few where no other begins with them.
    fn namespace(&self, text: &str) -> Result<Namespace> {
        if text.len() >= 64 {
            return Namespace::from_hex(text);
        }
        let all: Vec<Namespace> = self
            .client
            .namespaces()?
            .into_iter()
            .map(|row| row.namespace)
            .collect();
        by_prefix(text, &all)
    }
}

fn by_prefix(text: &str, all: &[Namespace]) -> Result<Namespace> {
    let wanted = text.to_ascii_lowercase();
    let matching: Vec<&Namespace> = all
        .iter()
        .filter(|namespace| namespace.to_string().starts_with(&wanted))
        .collect();
    match matching.as_slice() {
        [one] if !wanted.is_empty() => Ok(**one),
        [] => Err(Error::new(
            ErrorKind::NotFound,
            format!("no namespace with blocks begins with \"{text}\""),
        )),
        several => Err(Error::invalid(format!(
            "{} namespaces begin with \"{text}\"; give more digits",
            several.len()
        ))),
    }
}
