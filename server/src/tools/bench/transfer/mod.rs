//! `kvstored bench transfer`: reads and writes between two processes, beside raw sockets and plain copies.

pub mod asking;
pub mod cases;
pub mod child;
mod copying;
mod faults;
mod measure;
mod memory;
mod raw;
mod serving;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use kvstored_master::client::ClientSettings;
use kvstored_master::client::blocking::MasterClient;

use super::figure::{Figure, Samples, Side};
use asking::Asking;
use cases::{Case, Transport};
use child::Served;
use copying::Copying;
use faults::Fault;
use measure::{Values, measure};
use raw::RawClient;

/// `kvstored bench transfer`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Measure this transport alone [default: every one that works here]
    #[arg(long, value_enum, value_name = "NAME")]
    transport: Option<Transport>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,

    /// Write an HTML report with charts
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// How often each figure is measured, in turn with its limit; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// Measure only these figures; a case's name (tcp_read_1MiB_x32) stands for all of its figures
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,

    /// Take the time for more sizes, and for a minute of idling
    #[arg(long)]
    full: bool,

    /// Memory on each side, in MiB; entries of a batch that don't fit share places
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=65536))]
    memory_mib: u32,

    /// Be the other side
    #[arg(long, value_enum, value_name = "SIDE", hide = true)]
    serve: Option<serving::Role>,
}

/// What a case's other figures are called, behind its name; its own is the speed.
const SUFFIXES: [&str; 5] = ["_p50", "_p99", "_cpu", "_cpu_requester", "_cpu_server"];
/// Units of the speed and of the other figures.
const UNITS: [&str; 6] = ["GB/s", "us", "us", "s/GB", "s/GB", "s/GB"];
/// What is measured besides cases, behind the transport's name.
const OTHERS: [&str; 3] = [IDLE, STOPPED, KILLED];
/// Measured beside all transports.
const MASTER_IDLE: &str = "master_idle_cpu_percent";
const IDLE: &str = "idle_cpu_percent";
const STOPPED: &str = "others_p99_peer_stopped";
const KILLED: &str = "others_p99_peer_killed";
/// What a serving process takes that needs none.
const LEAST_MEMORY_BYTES: usize = 16 << 20;

/// Runs `kvstored bench transfer`.
pub fn run(args: Args) -> Result<ExitCode> {
    let runtime = Runtime::system();
    let memory_bytes = args.memory_mib as usize * (1 << 20);
    if let Some(role) = args.serve {
        serving::run(
            role,
            args.transport.unwrap_or(Transport::Tcp),
            memory_bytes,
            &runtime,
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let others: Vec<String> = Transport::ALL
        .iter()
        .flat_map(|transport| OTHERS.map(|other| format!("{}_{other}", transport.name())))
        .chain([MASTER_IDLE.to_owned()])
        .collect();
    cases::check_names(&args.only, &others)?;
    let mut figures = Vec::new();
    let mut failed = false;
    let transports = args
        .transport
        .map_or_else(|| Transport::ALL.to_vec(), |one| vec![one]);
    for transport in transports {
        match measure_transport(transport, memory_bytes, &args, &runtime, &mut figures) {
            Ok(()) => {}
            // a device that few machines have; the others work everywhere
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
    if args.transport.is_none() && cases::wanted(&args.only, MASTER_IDLE, MASTER_IDLE) {
        match measure_master(args.full, &runtime) {
            Ok(figure) => {
                eprintln!("  {}", figure.line());
                figures.push(figure);
            }
            Err(error) => {
                eprintln!("  {MASTER_IDLE} failed: {error}");
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

/// What a transport is measured beside.
enum Limit {
    /// Sockets without anything around them.
    Raw(Box<(RawClient, Served)>),
    /// Copies in this process.
    Copies(Box<Copying>),
    /// Nothing that this machine has.
    None,
}

impl Limit {
    fn of(transport: Transport, memory_bytes: usize, runtime: &Runtime) -> Result<Self> {
        Ok(match transport {
            Transport::Tcp => {
                let served = Served::start(serving::Role::Raw, transport, memory_bytes, runtime)?;
                let client = RawClient::connect(served.address(), memory_bytes)?;
                Self::Raw(Box::new((client, served)))
            }
            Transport::Shm => Self::Copies(Box::new(Copying::new(memory_bytes, runtime)?)),
            Transport::Rdma => Self::None,
        })
    }

    fn measure(&mut self, case: &Case, runtime: &Runtime) -> Result<Values> {
        let bytes = case.batch_bytes();
        match self {
            Self::Raw(both) => {
                let (client, served) = &mut **both;
                let batch = || client.transfer(case.direction, bytes);
                measure(runtime, bytes, || served.cpu_seconds(), batch)
            }
            Self::Copies(copying) => measure(
                runtime,
                bytes,
                || Ok(0.0),
                || copying.batch(case.bytes, case.entries),
            ),
            Self::None => Err(Error::internal("there is no limit to measure")),
        }
    }

    const fn words(&self) -> Option<&'static str> {
        match self {
            Self::Raw(_) => Some("one raw socket between two processes, 1 MiB a send"),
            Self::Copies(_) => Some(
                "memcpy by one thread of the same places, between two regions of an engine (memfd, the same pages)",
            ),
            Self::None => None,
        }
    }
}

fn measure_transport(
    transport: Transport,
    memory_bytes: usize,
    args: &Args,
    runtime: &Runtime,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    let cases: Vec<Case> = Case::all(transport, args.full || !args.only.is_empty())
        .into_iter()
        .filter(|case| names(case).any(|figure| cases::wanted(&args.only, &case.name(), &figure)))
        .collect();
    let others: Vec<(&str, String)> = OTHERS
        .into_iter()
        .map(|other| (other, format!("{}_{other}", transport.name())))
        .filter(|(_, name)| cases::wanted(&args.only, name, name))
        .collect();
    if cases.is_empty() && others.is_empty() {
        return Ok(());
    }
    let mut served = Served::start(serving::Role::Engine, transport, memory_bytes, runtime)?;
    let mut asking = Asking::connect(&mut served, transport, memory_bytes, runtime)?;
    asking.check(&mut served)?;
    let mut add = |figure: Figure| {
        eprintln!("  {}", figure.line());
        figures.push(figure);
    };
    // a row that can't be measured over this transport is left out, and the others are worth having all the same
    let mut failures = Vec::new();
    if !cases.is_empty() {
        let mut limit = Limit::of(transport, memory_bytes, runtime)?;
        for case in cases {
            eprintln!("measuring {} …", case.name());
            let measured = measure_case(&case, &mut asking, &mut served, &mut limit, args, runtime);
            let samples = match measured {
                Ok(samples) => samples,
                Err(error) => {
                    eprintln!("  {} failed: {error}", case.name());
                    failures.push(case.name());
                    continue;
                }
            };
            for figure in figures_of(&case, &samples, limit.words()) {
                if cases::wanted(&args.only, &case.name(), &figure.name) {
                    add(figure);
                }
            }
        }
    }
    for (other, name) in others {
        eprintln!("measuring {name} …");
        let rounds = usize::from(args.rounds);
        add(match other {
            STOPPED => faults::others_p99(name, Fault::Stopped, transport, rounds, runtime)?,
            KILLED => faults::others_p99(name, Fault::Killed, transport, rounds, runtime)?,
            _ => idle_figure(name, "peer", &mut served, args.full, runtime)?,
        });
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(Error::internal(format!("no figures of {}", failures.join(", "))))
}

fn measure_case(
    case: &Case,
    asking: &mut Asking,
    served: &mut Served,
    limit: &mut Limit,
    args: &Args,
    runtime: &Runtime,
) -> Result<[Samples; 6]> {
    let mut ours = || {
        let (before, mut batches) = (asking.carried(), 0);
        let batch = || {
            batches += 1;
            asking.batch(case.direction, case.bytes, case.entries)
        };
        let values = measure(runtime, case.batch_bytes(), || served.cpu_seconds(), batch)?;
        asking.prove(before, batches * case.batch_bytes() as u64)?;
        Ok(values)
    };
    let rounds = usize::from(args.rounds);
    if limit.words().is_none() {
        return Samples::each_alone(rounds, ours);
    }
    Samples::take_each(rounds, |side| match side {
        Side::Ours => ours(),
        Side::Limit => limit.measure(case, runtime),
    })
}

/// Names of a case's figures, in the order of a measurement's values.
fn names(case: &Case) -> impl Iterator<Item = String> {
    let name = case.name();
    std::iter::once("")
        .chain(SUFFIXES)
        .map(move |suffix| format!("{name}{suffix}"))
}

fn figures_of(case: &Case, samples: &[Samples; 6], limit: Option<&str>) -> Vec<Figure> {
    let what = format!(
        "{} entries of {} bytes at once, one batch after the other, all of them over {} as the engine counts",
        case.entries,
        case.bytes,
        case.transport.name()
    );
    let note = limit.map_or_else(|| what.clone(), |limit| format!("{what}; limit: {limit}"));
    names(case)
        .zip(UNITS)
        .zip(samples)
        .map(|((name, unit), samples)| Figure::new(name, unit, samples, note.clone()))
        .collect()
}

/// CPU time of a master with one connected client that asks nothing of it.
fn measure_master(full: bool, runtime: &Runtime) -> Result<Figure> {
    eprintln!("measuring {MASTER_IDLE} …");
    let mut served = Served::start(serving::Role::Master, Transport::Tcp, LEAST_MEMORY_BYTES, runtime)?;
    let settings = ClientSettings {
        endpoints: vec![served.address().to_string()],
        ..ClientSettings::default()
    };
    let client = MasterClient::new(settings, runtime.clone())?;
    client.status(runtime.deadline(Duration::from_secs(10)))?;
    idle_figure(MASTER_IDLE.to_owned(), "client", &mut served, full, runtime)
}

/// CPU time of a serving process with one connected peer or client that asks nothing of it.
fn idle_figure(
    name: String,
    guest: &str,
    served: &mut Served,
    full: bool,
    runtime: &Runtime,
) -> Result<Figure> {
    let seconds = if full { 60 } else { 10 };
    super::setup::pause(runtime, Duration::from_secs(1));
    let samples = Samples::alone(1, || {
        let (before, started) = (served.cpu_seconds()?, runtime.clock.now());
        super::setup::pause(runtime, Duration::from_secs(seconds));
        let used = served.cpu_seconds()? - before;
        let passed = runtime.clock.now().saturating_duration_since(started);
        Ok(used / passed.as_secs_f64() * 100.0)
    })?;
    let note = format!("the serving side, of one processor, in {seconds} s, one {guest} connected");
    Ok(Figure::new(name, "%", &samples, note))
}

/// Where the entries of a batch lie: one behind the other, sharing places where there isn't enough memory for all.
fn places(bytes: usize, entries: usize, memory_bytes: usize) -> impl Iterator<Item = usize> {
    let slots = (memory_bytes / bytes.max(1)).max(1);
    (0..entries).map(move |index| index % slots * bytes)
}
