//! `kvstored replay`: a trace through the engine or a daemon, every loaded byte checked.

mod page;
mod results;
mod runner;
#[cfg(test)]
mod tests;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use kvstored_client::{Client, ClientSettings};
use kvstored_core::eviction::PolicyKind;
use kvstored_core::size::parse_bytes;
use kvstored_core::{Durability, Error, Layout, Pipeline, Result, Runtime, TierKind};
use tempfile::TempDir;

use super::embedded::{Embedded, EmbeddedSettings};
use super::{progress, report, trace::TraceReader};
use crate::output::{emit, emit_json};
use kvstored_host::config::{Directories, Policy, Word};

pub use results::{ReplayResults, Tally};
pub use runner::{ReplaySettings, replay};

/// Capacity of the cache of an embedded engine where none is given.
const DEFAULT_CACHE_BYTES: u64 = 1 << 30;
/// Capacity of a temporary storage directory where none is given.
const TEMPORARY_POSIX_BYTES: u64 = 8 << 30;

/// `kvstored replay`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// One JSON object a line with timestamp, input_length, output_length and hash_ids
    trace: PathBuf,

    /// Replay through the daemon that listens here
    #[arg(long, value_name = "PATH", conflicts_with_all = ["embedded", "pipeline", "storage_backends", "cache_buffer_capacity", "hbm_capacity", "posix_capacity", "eviction_policy"])]
    socket: Option<PathBuf>,

    /// Replay through an engine inside this process; what happens without --socket
    #[arg(long)]
    embedded: bool,

    /// Tiers from fast to durable [default: Cache|Posix]
    #[arg(long, value_name = "TIERS")]
    pipeline: Option<Word<Pipeline>>,

    /// Storage directories of the Posix tier [default: a temporary one, removed afterwards]
    #[arg(long, value_name = "DIR[:DIR]")]
    storage_backends: Option<Directories>,

    /// Bound of the DRAM of the cache [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    cache_buffer_capacity: Option<u64>,

    /// Host memory that stands for a device's in a pipeline with Hbm
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    hbm_capacity: Option<u64>,

    /// Bound of the bytes in the storage directories [default: 8GiB]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    posix_capacity: Option<u64>,

    /// Which block leaves the cache first: arc, lru, fifo or s3-fifo [default: arc]
    #[arg(long, value_name = "POLICY")]
    eviction_policy: Option<Word<Policy>>,

    /// Bytes of KV in a block
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = size, allow_hyphen_values = true)]
    block_bytes: u64,

    /// Replay only so many requests
    #[arg(long, value_name = "N")]
    limit: Option<u64>,

    /// 0 replays as fast as it goes, 1 at the trace's own pace, 2 twice as fast
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = speed, allow_negative_numbers = true)]
    speed: f64,

    /// Requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,

    /// When a block counts as dumped: memory, tier or durable
    #[arg(long, value_name = "LEVEL", default_value = "tier", value_parser = durability)]
    durability: Durability,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,

    /// Write an HTML report with charts
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).map_err(|error| error.message().to_owned())
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed >= 0.0 => Ok(speed),
        _ => Err(format!("speed \"{text}\" is not a number from 0 up")),
    }
}

fn durability(text: &str) -> Result<Durability, String> {
    match text {
        "memory" => Ok(Durability::Memory),
        "tier" => Ok(Durability::Tier),
        "durable" => Ok(Durability::Durable),
        _ => Err(format!(
            "durability \"{text}\" is unknown; known are memory, tier and durable"
        )),
    }
}

/// What the requests go to.
struct Target {
    client: Arc<Client>,
    // dropped in this order: the engine is closed before its directory goes
    _embedded: Option<Embedded>,
    _temporary: Option<TempDir>,
}

impl Target {
    fn open(args: &Args, runtime: &Runtime) -> Result<Self> {
        let settings = ClientSettings::default();
        if let Some(socket) = &args.socket {
            let client = Arc::new(Client::connect(socket, settings, runtime.clone())?);
            return Ok(Self {
                client,
                _embedded: None,
                _temporary: None,
            });
        }
        let pipeline = match args.pipeline.clone() {
            Some(pipeline) => pipeline.0,
            None => "Cache|Posix".parse()?,
        };
        let mut directories = args
            .storage_backends
            .clone()
            .map(|directories| directories.0)
            .unwrap_or_default();
        let mut temporary = None;
        if pipeline.contains(&TierKind::Posix) && directories.is_empty() {
            let directory = tempfile::Builder::new()
                .prefix(".kvstored-replay-")
                .tempdir_in(".")
                .map_err(|error| Error::from_io(error, "no temporary directory in the current one"))?;
            directories.push(directory.path().to_owned());
            temporary = Some(directory);
        }
        let embedded = EmbeddedSettings {
            pipeline,
            directories,
            cache_capacity_bytes: args.cache_buffer_capacity.unwrap_or(DEFAULT_CACHE_BYTES),
            posix_capacity_bytes: args.posix_capacity.unwrap_or(TEMPORARY_POSIX_BYTES),
            hbm_capacity_bytes: args.hbm_capacity,
            policy: args
                .eviction_policy
                .clone()
                .map_or_else(PolicyKind::default, |policy| policy.0.0),
        };
        let embedded = Embedded::open(embedded, settings, runtime)?;
        Ok(Self {
            client: embedded.client.clone(),
            _embedded: Some(embedded),
            _temporary: temporary,
        })
    }
}

/// Runs `kvstored replay`. The exit code is 1 when a block was corrupt or anything failed.
pub fn run(args: Args) -> Result<ExitCode> {
    let runtime = Runtime::system();
    let reader = TraceReader::open(&args.trace)?;
    let block_bytes = u32::try_from(args.block_bytes).map_err(|_| {
        Error::invalid(format!(
            "block-bytes {} is more than a block may have",
            args.block_bytes
        ))
    })?;
    let settings = ReplaySettings {
        layout: Layout::uniform(1, 1, block_bytes)?,
        limit: args.limit.unwrap_or(u64::MAX),
        speed: args.speed,
        concurrency: usize::from(args.concurrency),
        durability: args.durability,
        timeout: Duration::from_mins(1),
    };
    let target = Target::open(&args, &runtime)?;
    let bar = progress::bar(
        reader.total_bytes(),
        "{elapsed_precise} {wide_bar} {percent}% of the trace, {eta} left  {msg}",
    );
    let tally = replay(&target.client, reader, &settings, &runtime, &bar);
    bar.finish_and_clear();
    let tally = tally?;
    let results = tally.results();
    if let Some(path) = &args.report {
        let statistics = target.client.statistics()?;
        report::write(&page::page(&args.trace, &results, &tally, &statistics), path)?;
    }
    if args.json {
        emit_json(&results)?;
    } else {
        let line = |(name, value): (&str, String)| format!("{name:<16} {value}\n");
        emit(&results.rows().into_iter().map(line).collect::<String>())?;
    }
    for example in &tally.error_examples {
        eprintln!("error: {example}");
    }
    Ok(if results.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
