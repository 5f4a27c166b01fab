//! A plugged-in tier, loaded as the daemon loads it, beside the same tier built in: the Posix tier, and blocks in a map,
//! where nothing but the interface itself takes time. They take turns; medians count, with the lower and the upper quartile.
//! Single operations are measured with the caller and the tiers' threads on one CPU and on two, since where the scheduler
//! puts threads that wake each other costs more than all else.
//!
//! `cargo bench --bench plugin`; `ROUNDS` sets the rounds, `ONLY` a part of the names of what is measured.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // inputs are made here
#![allow(clippy::print_stdout)] // what a bench is for

mod fixture;
mod loads;
mod placement;
mod tiers;
mod twin;

use std::path::Path;
use std::process::ExitCode;

use kvstored_core::Runtime;
use kvstored_plugin_host::run_probe;

use fixture::Fixture;
use loads::{LOADS, Load};
use placement::Cpus;

/// What this program does when it's started to try the plugin first.
const PROBE: &str = "plugin-probe";

/// Sorts and gives the lower quartile, the median and the upper quartile.
fn quartiles(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| {
        let at = (values.len() * quarter / 4).min(values.len().saturating_sub(1));
        values.get(at).copied().unwrap_or_default()
    })
}

/// Runs this program with an allocator that gives nothing back to the kernel: otherwise it's chance whether the memory of
/// blocks that are written has to be faulted in again, on either side.
fn keeping_memory(arguments: &[String]) -> ExitCode {
    let kept = [
        ("MALLOC_ARENA_MAX", "16"),
        ("MALLOC_TRIM_THRESHOLD_", "8000000000"),
        ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ];
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .envs(kept)
        .status();
    if status.unwrap().success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, directory, name] = arguments.as_slice()
        && first == PROBE
    {
        return match run_probe(Path::new(directory), name) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => panic!("{error}"),
        };
    }
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        return keeping_memory(&arguments);
    }
    // `cargo test --benches` only wants to know whether it works
    let measures = arguments.iter().any(|argument| argument == "--bench");
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok());
    let rounds: usize = rounds.unwrap_or(if measures { 15 } else { 1 });
    let runtime = Runtime::system();
    if !measures {
        // a twin that doesn't keep the contract is none
        tiers::check_twin(&runtime);
    }
    println!("microseconds per operation, medians of {rounds} rounds in turns");
    println!(
        "{:<32} {:<6} {:>24} {:>24} {:>8} {:>22}",
        "", "", "plugged in", "built in", "more", "ratio"
    );
    let cpus = Cpus::new();
    let only = std::env::var("ONLY").unwrap_or_default();
    for load in LOADS.iter().filter(|load| load.name.contains(&only)) {
        measure(load, rounds, &cpus, &runtime);
    }
    ExitCode::SUCCESS
}

/// Microseconds per operation, by tier and action.
type Samples = [[Vec<f64>; 2]; 2];

/// Measures both tiers and prints a row for writes and one for reads.
///
/// Which tier was opened first, and so has which part of the disk and of the memory, can cost one of them half its speed:
/// they are opened once in either order.
fn measure(load: &Load, rounds: usize, cpus: &Cpus, runtime: &Runtime) {
    let orders = [0, 1].map(|first| take_turns(load, rounds, first, cpus, runtime));
    for (action, name) in ["write", "read"].into_iter().enumerate() {
        let times = [0, 1].map(|side: usize| {
            let of_both = orders.iter().flat_map(|samples| &samples[side][action]);
            quartiles(&mut of_both.copied().collect::<Vec<f64>>())
        });
        let ratio_of =
            |samples: &Samples, round: usize| samples[1][action][round] / samples[0][action][round];
        let rounds = 0..orders[0][0][action].len();
        let mut ratios: Vec<f64> = rounds
            .map(|round| (ratio_of(&orders[0], round) * ratio_of(&orders[1], round)).sqrt())
            .collect();
        let ratio = quartiles(&mut ratios);
        let [plugged, built] = times.map(|[low, median, high]| format!("{median:.2} ({low:.2}-{high:.2})"));
        let ratio = format!("{:.3} ({:.3}-{:.3})", ratio[1], ratio[0], ratio[2]);
        let more = times[0][1] - times[1][1];
        println!(
            "{:<32} {name:<6} {plugged:>24} {built:>24} {more:>8.2} {ratio:>22}",
            load.name
        );
    }
}

/// Opens both tiers and lets them take turns.
fn take_turns(load: &Load, rounds: usize, first: usize, cpus: &Cpus, runtime: &Runtime) -> Samples {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    cpus.place_tiers(load.placement);
    let tiers = tiers::open(load.kind, first, directory.path(), runtime);
    cpus.place_caller(load.placement);
    let fixture = Fixture::new(load, runtime);
    let mut samples = Samples::default();
    // the first round of each doesn't count
    for round in 0..=rounds {
        for turn in 0..2 {
            let side = (first + round + turn) % 2;
            let values = fixture.round(&*tiers[side], load);
            if round > 0 || rounds == 1 {
                for (kept, value) in samples[side].iter_mut().zip(values) {
                    kept.push(value);
                }
            }
        }
    }
    for tier in tiers {
        tier.shutdown();
    }
    samples
}
