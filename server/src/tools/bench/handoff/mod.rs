//! `kvstored bench handoff`: a prompt's KV from one process to another, beside plain reads of the same bytes.

mod prompt;
mod pulling;
mod serving;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result, Runtime};

use super::figure::{Figure, Samples, Side};
use super::geometry::Geometry;
use super::transfer::cases::Transport;
use prompt::{Prompt, Spread};
use pulling::Pulling;

/// Tokens of a block in every geometry.
const BLOCK_TOKENS: u32 = 128;

/// `kvstored bench handoff`.
#[allow(clippy::struct_excessive_bools)] // each is a flag of its own
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Measure this transport alone [default: every one that works here]
    #[arg(long, value_enum, value_name = "NAME")]
    transport: Option<Transport>,

    /// Shape of the blocks: qwq-32b-tp4, qwen3-235b-tp4, deepseek-mla, tiny or blocks-1mib
    #[arg(long, value_name = "NAME", default_value = "qwq-32b-tp4")]
    geometry: String,

    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tokens: u32,

    /// KV in memory of the process's own, as engines have it, instead of memory that processes can share
    #[arg(long)]
    registered: bool,

    /// Compare no checksums
    #[arg(long)]
    no_verify: bool,

    /// How long a prompt is held before it's pulled, in milliseconds, as the way from one engine to the other takes its time
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    held_ms: u64,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,

    /// Write an HTML report with charts
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// How often each figure is measured, in turn with its limit; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// Measure only these figures
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,

    /// Be the other side
    #[arg(long, hide = true)]
    serve: bool,
}

/// What a case's figures are called, behind its name, and their units.
const SUFFIXES: [(&str, &str); 3] = [("", "GB/s"), ("_cpu", "s/GB"), ("_release", "us")];

/// Runs `kvstored bench handoff`.
pub fn run(args: Args) -> Result<ExitCode> {
    let runtime = Runtime::system();
    let prompt = Prompt {
        geometry: Geometry::named(&args.geometry)?,
        blocks: args.tokens.div_ceil(BLOCK_TOKENS),
        block_tokens: BLOCK_TOKENS,
        registered: args.registered,
    };
    if args.serve {
        serving::run(
            &prompt,
            args.transport.unwrap_or(Transport::Tcp),
            !args.no_verify,
            &runtime,
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    check_names(&args.only)?;
    let mut figures = Vec::new();
    let mut failed = false;
    let transports = args.transport.map_or_else(
        || vec![Transport::Shm, Transport::Tcp, Transport::Rdma],
        |one| vec![one],
    );
    for transport in transports {
        match measure_transport(transport, &prompt, &args, &runtime, &mut figures) {
            Ok(()) => {}
            // a device that few machines have
            Err(error)
                if error.kind() == ErrorKind::Unsupported
                    && transport == Transport::Rdma
                    && args.transport.is_none() =>
            {
                eprintln!("{} is left out: {error}", transport.name());
            }
            // the other figures are worth having all the same
            Err(error) => {
                eprintln!("  {} failed: {error}", transport.name());
                failed = true;
            }
        }
    }
    super::show(&figures, args.report.as_deref(), args.json)?;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn measure_transport(
    transport: Transport,
    prompt: &Prompt,
    args: &Args,
    runtime: &Runtime,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    let wanted = |figure: &str| args.only.is_empty() || args.only.iter().any(|only| only == figure);
    let spreads: Vec<Spread> = Spread::ALL
        .into_iter()
        .filter(|spread| names(transport, *spread).iter().any(|name| wanted(name)))
        .collect();
    if spreads.is_empty() {
        return Ok(());
    }
    let held = Duration::from_millis(args.held_ms);
    let mut pulling = Pulling::connect(prompt, transport, !args.no_verify, held, runtime)?;
    for spread in spreads {
        eprintln!("measuring {} …", names(transport, spread)[0]);
        pulling.check(spread)?;
        let mut releases = Vec::new();
        let [speed, cpu] = Samples::take_each(usize::from(args.rounds), |side| match side {
            Side::Ours => {
                let pulls = pulling.pulls(spread)?;
                releases.push(pulls.release_us);
                Ok([pulls.speed, pulls.cpu])
            }
            Side::Limit => pulling.reads(spread).map(|reads| [reads.speed, reads.cpu]),
        })?;
        // the first try doesn't count
        let mut counted = releases.into_iter().skip(1);
        let release = Samples::alone(usize::from(args.rounds), || Ok(counted.next().unwrap_or(0.0)))?;
        let note = note(prompt, args, spread);
        for ((name, (_, unit)), samples) in names(transport, spread)
            .into_iter()
            .zip(SUFFIXES)
            .zip([speed, cpu, release])
        {
            if wanted(&name) {
                let figure = Figure::new(name, unit, &samples, note.clone());
                eprintln!("  {}", figure.line());
                figures.push(figure);
            }
        }
    }
    Ok(())
}

fn names(transport: Transport, spread: Spread) -> [String; 3] {
    SUFFIXES.map(|(suffix, _)| format!("{}_pull_{}{suffix}", transport.name(), spread.name()))
}

fn note(prompt: &Prompt, args: &Args, spread: Spread) -> String {
    let memory = if args.registered {
        "registered"
    } else {
        "the engines' own"
    };
    let sums = if args.no_verify {
        "without checksums"
    } else {
        "checksums compared"
    };
    format!(
        "{} tokens of {} ({} bytes in {} blocks, {}), {sums}, pulled {} ms after it was held, memory {memory}, all bytes over this transport as the engine \
         counts; release: from the pull's end until the producer has its blocks back; limit: the engine's plain reads of the \
         same runs of bytes, all at once under one grant",
        args.tokens,
        prompt.geometry.name,
        prompt.bytes(),
        prompt.blocks,
        spread.words(),
        args.held_ms,
    )
}

/// Fails with `InvalidInput` when one of the names is no figure's.
fn check_names(only: &[String]) -> Result<()> {
    let known: Vec<String> = Transport::ALL
        .into_iter()
        .flat_map(|transport| Spread::ALL.map(|spread| names(transport, spread)))
        .flatten()
        .collect();
    match only.iter().find(|name| !known.contains(name)) {
        None => Ok(()),
        Some(name) => Err(Error::invalid(format!(
            "figure \"{name}\" is unknown; known are {}",
            known.join(", ")
        ))),
    }
}
