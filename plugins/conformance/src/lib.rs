//! The contract of tiers as checks that run against any of them, built in or plugged in.
//!
//! A [`Subject`] opens the tier anew, over the same place, as often as it's asked; [`run`] asks it what the contract
//! promises and gives a [`Report`] that says of each check whether it passed, and if not, why.

mod bench;
mod checks;
mod faults;
mod model;
mod report;

use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{MemoryTier, Result, Runtime, Tier};

pub use faults::{Fault, FaultyTier};
pub use report::{Outcome, Report, Row};

use bench::Bench;

/// What is checked.
pub trait Subject {
    /// Opens the tier. Blocks of an earlier opening are there if the tier keeps them across restarts.
    fn open(&mut self) -> Result<Arc<dyn Tier>>;

    /// Whether the tier takes part in what only tiers can that keep blocks; `Empty` and `Fake` don't.
    fn stores(&self) -> bool {
        true
    }

    /// Whether blocks of an earlier opening are found again.
    fn survives_restart(&self) -> bool;

    /// Whether lookups go by what other nodes told a moment ago: a removed block may be found for that long, and a read
    /// misses it.
    fn lookups_are_hints(&self) -> bool {
        false
    }

    /// Memory to stand above the tier, a new one each time, for whole dumps and loads; called `Cache`. A tier that is memory
    /// itself has none above it.
    fn memory(&mut self) -> Result<Option<Arc<dyn MemoryTier>>> {
        Ok(None)
    }
}

/// How much is done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Steps of the comparison with a simple map.
    pub model_steps: usize,
    /// Where its randomness starts; a failure names it.
    pub seed: u64,
    /// How long any one thing may take.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model_steps: 400,
            seed: 1,
            patience: Duration::from_secs(30),
        }
    }
}

/// Runs every check that applies, each over namespaces of its own.
pub fn run(subject: &mut dyn Subject, options: &Options, runtime: &Runtime) -> Report {
    let mut report = Report::default();
    for (number, check) in checks::ALL.iter().enumerate() {
        if let Some(why) = check.is_skipped(subject) {
            report.push(check.name, Outcome::Skipped(why.to_owned()));
            continue;
        }
        let outcome = subject
            .open()
            .map_err(|error| format!("open: {error}"))
            .and_then(|tier| {
                let mut bench = Bench::new(tier, number as u8, options.clone(), runtime.clone())?;
                bench.lookups_are_hints = subject.lookups_are_hints();
                let outcome = (check.body)(&mut bench, subject);
                // nothing of a check stays behind; one that shut the tier down can't be cleaned up after here
                let _ = bench.tier.purge(&bench.namespace.namespace);
                bench.tier.shutdown();
                outcome
            });
        report.push(
            check.name,
            match outcome {
                Ok(()) => Outcome::Passed,
                Err(why) => Outcome::Failed(why),
            },
        );
    }
    report
}
