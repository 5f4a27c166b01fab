//! `kvstored bench`: how fast it is, beside what the machine itself could do in the same run.

mod cache;
mod cpu;
mod daemon;
mod direct;
mod echo;
mod figure;
mod geometry;
mod handoff;
mod lookup;
mod object;
mod posix;
mod restart;
mod scattered;
mod setup;
#[cfg(test)]
mod tests;
mod transfer;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kvstored_core::{Error, Result, Runtime};

use super::report::{self, Bars, Page};
use crate::output::{emit, emit_json};
use figure::Figure;
use setup::Setup;

/// `kvstored bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,

    /// Shape of the blocks: qwq-32b-tp4, qwen3-235b-tp4, deepseek-mla, tiny or blocks-1mib
    /// [default: each figure's own]
    #[arg(long, value_name = "NAME")]
    geometry: Option<String>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,

    /// Write an HTML report with charts
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Directory whose file system is measured; what is written there is removed afterwards
    /// [default: the current directory]
    #[arg(long, value_name = "DIR")]
    storage_backends: Option<PathBuf>,

    /// How often each figure is measured, in turn with its limit; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// Measure only these figures
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,

    /// Take the time for the long ones: 10 million blocks, a minute of idling
    #[arg(long)]
    full: bool,

    /// Answer on this socket as fast as the system can: the other side of a limit
    #[arg(long, value_name = "PATH", hide = true)]
    echo_socket: Option<PathBuf>,
}

/// What is measured instead of the store.
#[derive(Clone, Debug, clap::Subcommand)]
enum Other {
    /// Measure reads and writes between two processes
    Transfer(transfer::Args),
    /// Measure dumps to a bucket and loads from it
    Object(object::Args),
    /// Measure the hand-off of a prompt's KV between two processes
    Handoff(handoff::Args),
}

type Measure = fn(&Setup) -> Result<Vec<Figure>>;

/// What is measured together, by the names of the figures that come out.
const GROUPS: [(&[&str], Measure); 12] = [
    (&["load_cache"], cache::load_whole),
    (
        &["load_cache_layerwise", "first_layer_cache_layerwise"],
        cache::load_layerwise,
    ),
    (&["load_posix_cold"], posix::load_cold),
    (&["dump_sustained", "write_amplification"], posix::dump_sustained),
    (
        &["lookup_on_prefix_8192", "lookup_on_prefix_8192_disk"],
        lookup::embedded,
    ),
    (
        &[
            "lookup_on_prefix_8192_daemon",
            "lookup_on_prefix_8192_daemon_disk",
        ],
        lookup::through_daemon,
    ),
    (&["daemon_round_trip_p50"], daemon::round_trip_pinned),
    (&["daemon_round_trip_p50_unpinned"], daemon::round_trip_unpinned),
    (
        &["cpu_seconds_per_gb_cold_load", "cpu_seconds_per_gb_dump"],
        cpu::posix,
    ),
    (&["cpu_seconds_per_gb_warm_load"], cpu::warm_load),
    (
        &["restart_1m_blocks", "restart_10m_blocks", "index_bytes_per_block"],
        restart::restart,
    ),
    (&["idle_cpu_percent"], daemon::idle),
];

/// Runs `kvstored bench`.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.other {
        Some(Other::Transfer(args)) => return transfer::run(args),
        Some(Other::Object(args)) => return object::run(&args),
        Some(Other::Handoff(args)) => return handoff::run(args),
        None => {}
    }
    if let Some(socket) = &args.echo_socket {
        echo::serve(socket)?;
        return Ok(ExitCode::SUCCESS);
    }
    for name in &args.only {
        if !GROUPS.iter().any(|(names, _)| names.contains(&name.as_str())) {
            let known: Vec<&str> = GROUPS
                .iter()
                .flat_map(|(names, _)| names.iter().copied())
                .collect();
            return Err(Error::invalid(format!(
                "figure \"{name}\" is unknown; known are {}",
                known.join(", ")
            )));
        }
    }
    let setup = Setup::new(
        Runtime::system(),
        args.geometry.as_deref(),
        args.storage_backends.as_deref(),
        usize::from(args.rounds),
        args.full,
        args.only,
    )?;
    let mut figures = Vec::new();
    let mut failed = false;
    for (names, measure) in GROUPS {
        if !names.iter().any(|name| setup.wants(name)) {
            continue;
        }
        eprintln!("measuring {} …", names.join(", "));
        match measure(&setup) {
            Ok(measured) => {
                for figure in measured.into_iter().filter(|figure| setup.wants(&figure.name)) {
                    eprintln!("  {}", figure.line());
                    figures.push(figure);
                }
            }
            // the other figures are worth having all the same
            Err(error) => {
                eprintln!("  failed: {error}");
                failed = true;
            }
        }
    }
    show(&figures, args.report.as_deref(), args.json)?;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Writes the figures to standard output, and the report where one is asked for.
fn show(figures: &[Figure], report: Option<&Path>, json: bool) -> Result<()> {
    if let Some(path) = report {
        report::write(&page(figures), path)?;
    }
    if json {
        return emit_json(&serde_json::json!({ "results": figures }));
    }
    emit(
        &figures
            .iter()
            .map(|figure| figure.line() + "\n")
            .collect::<String>(),
    )
}

fn page(figures: &[Figure]) -> Page {
    let mut page = Page::new("kvstored bench");
    page.paragraph(
        "Each figure is the median of rounds that took turns with the limit beside it: what the machine does without \
         kvstored. The ratio is the median of the rounds' own ratios.",
    );
    let rows: Vec<Vec<String>> = figures.iter().map(Figure::cells).collect();
    page.table("Figures", &Figure::COLUMNS, &rows);
    let ratios = figures
        .iter()
        .filter_map(|figure| Some((figure.name.to_string(), figure.ratio?)));
    page.bars(&Bars {
        title: "Figure by limit".into(),
        unit: String::new(),
        bars: ratios.collect(),
    });
    for unit in ["GB/s", "us", "s/GB"] {
        let bars: Vec<(String, f64)> = figures
            .iter()
            .filter(|figure| figure.unit == unit)
            .flat_map(|figure| {
                let limit = figure
                    .limit
                    .map(|limit| (format!("{} (limit)", figure.name), limit));
                std::iter::once((figure.name.to_string(), figure.value)).chain(limit)
            })
            .collect();
        if !bars.is_empty() {
            page.bars(&Bars {
                title: format!("In {unit}"),
                unit: unit.to_owned(),
                bars,
            });
        }
    }
    page
}
