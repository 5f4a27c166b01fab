//! The checks, one for each promise.

mod adverse;
mod basic;
mod whole;

use crate::Subject;
use crate::bench::Bench;

use adverse::{capacity, faulty, restart, shutdown};
use basic::{absent, batches, damaged, purged, removed, round_trip, small_buffer, writers};
use whole::{faults_below, given_up, shards_in_any_order};

/// What a check needs of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A tier.
    Tier,
    /// One that keeps blocks.
    Storage,
    /// One that keeps them across restarts.
    Restart,
    /// One that keeps them, and memory that may stand above it.
    Memory,
}

/// A promise and how it's tried.
pub(crate) struct Check {
    pub name: &'static str,
    pub needs: Needs,
    pub body: fn(&mut Bench, &mut dyn Subject) -> Result<(), String>,
}

impl Check {
    /// Why the check doesn't apply to a subject; `None` if it does.
    pub fn is_skipped(&self, subject: &mut dyn Subject) -> Option<&'static str> {
        let stores = self.needs == Needs::Tier || subject.stores();
        match self.needs {
            _ if !stores => Some("the tier keeps nothing"),
            Needs::Restart if !subject.survives_restart() => Some("the tier keeps nothing across restarts"),
            Needs::Memory if !matches!(subject.memory(), Ok(Some(_)) | Err(_)) => {
                Some("there's no memory to stand above the tier")
            }
            _ => None,
        }
    }
}

const fn check(
    name: &'static str,
    needs: Needs,
    body: fn(&mut Bench, &mut dyn Subject) -> Result<(), String>,
) -> Check {
    Check { name, needs, body }
}

pub(crate) const ALL: [Check; 15] = [
    check("an absent block is a miss", Needs::Tier, absent),
    check(
        "what is written is found and read whole",
        Needs::Storage,
        round_trip,
    ),
    check("every operation of a batch ends once", Needs::Tier, batches),
    check(
        "writers of one block at once leave one whole",
        Needs::Storage,
        writers,
    ),
    check("a removed block is a miss", Needs::Storage, removed),
    check(
        "a purged namespace is empty, and no other",
        Needs::Storage,
        purged,
    ),
    check("a buffer that is too small is refused", Needs::Tier, small_buffer),
    check("a damaged image is never read as good", Needs::Storage, damaged),
    check("shards may come in any order", Needs::Memory, shards_in_any_order),
    check("a dump that is given up leaves nothing", Needs::Memory, given_up),
    check(
        "what fails below memory is a miss, and heals",
        Needs::Memory,
        faults_below,
    ),
    check(
        "errors and short transfers are misses, and heal",
        Needs::Storage,
        faulty,
    ),
    check("the capacity bounds what is kept", Needs::Storage, capacity),
    check("operations under way at shutdown end", Needs::Tier, shutdown),
    check("blocks are found after a restart", Needs::Restart, restart),
];

fn ensure(condition: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what()) }
}
