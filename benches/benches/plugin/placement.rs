//! Which CPUs the caller and the tiers' threads run on.

use std::sync::Arc;

use kvstored_core::runtime::{Spawner, ThreadHandle};
use kvstored_core::{Result, Runtime};
use parking_lot::Mutex;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

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

/// The threads that tiers have started, and the CPUs there are.
pub struct Threads {
    started: Arc<Mutex<Vec<Pid>>>,
    all: CpuSet,
}

struct Noting {
    spawner: Arc<dyn Spawner>,
    started: Arc<Mutex<Vec<Pid>>>,
}

impl Spawner for Noting {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> Result<ThreadHandle> {
        let started = self.started.clone();
        let noted = move || {
            started.lock().push(gettid());
            body();
        };
        self.spawner.spawn(name, Box::new(noted))
    }
}

impl Threads {
    /// None yet, and the CPUs of the calling thread.
    pub fn new() -> Self {
        Self {
            started: Arc::default(),
            all: sched_getaffinity(None).expect("this thread's CPUs"),
        }
    }

    /// The operating system's runtime, whose threads are noted here.
    pub fn runtime(&self) -> Runtime {
        let system = Runtime::system();
        let spawner = Arc::new(Noting {
            spawner: system.spawner.clone(),
            started: self.started.clone(),
        });
        Runtime { spawner, ..system }
    }

    /// Puts the caller and those threads where they are to run. Where there's one CPU, nothing is ever apart.
    pub fn place(&self, placement: Placement) {
        let all = self.all;
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
        let only = |cpu: Option<&usize>| {
            let mut one = CpuSet::new();
            one.set(*cpu.expect("a CPU"));
            one
        };
        let (caller, tiers) = match placement {
            Placement::Any => (all, all),
            Placement::Together => (only(cpus.last()), only(cpus.last())),
            Placement::Apart => (only(cpus.first()), only(cpus.last())),
        };
        sched_setaffinity(None, &caller).expect("the caller's CPUs");
        for thread in self.started.lock().iter() {
            sched_setaffinity(Some(*thread), &tiers).expect("a thread's CPUs");
        }
    }
}
