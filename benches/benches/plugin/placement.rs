//! Which CPUs the caller and the tiers' threads run on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where threads run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Wherever the scheduler puts them.
    Any,
    /// All on one CPU.
    Together,
    /// The caller on one CPU, the tiers' threads on another.
    Apart,
}

/// The CPUs there are.
pub struct Cpus {
    all: CpuSet,
}

impl Cpus {
    /// Those of the calling thread.
    pub fn new() -> Self {
        Self {
            all: sched_getaffinity(None).expect("this thread's CPUs"),
        }
    }

    /// Puts the calling thread where the tiers' threads are to run, which run where whoever started them did.
    pub fn place_tiers(&self, placement: Placement) {
        Self::run_on(match placement {
            Placement::Any => self.all,
            Placement::Together | Placement::Apart => self.only(usize::MAX),
        });
    }

    /// Puts the calling thread where the caller is to run. Where there's one CPU, nothing is ever apart.
    pub fn place_caller(&self, placement: Placement) {
        Self::run_on(match placement {
            Placement::Any => self.all,
            Placement::Together => self.only(usize::MAX),
            Placement::Apart => self.only(0),
        });
    }

    /// The one at that place, or the last.
    fn only(&self, place: usize) -> CpuSet {
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| self.all.is_set(*cpu));
        let last = cpus.clone().next_back();
        let mut one = CpuSet::new();
        one.set(cpus.nth(place).or(last).expect("a CPU"));
        one
    }

    fn run_on(cpus: CpuSet) {
        sched_setaffinity(None, &cpus).expect("this thread's CPUs");
    }
}
