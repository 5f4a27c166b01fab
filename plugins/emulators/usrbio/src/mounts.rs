//! Directories that play mounts, each with threads that do its I/O.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::iovs::Iovs;
use crate::rings::Ring;
use crate::switches::Switches;

/// An I/O to be done: its ring and its place there.
pub struct Job {
    pub ring: Arc<Ring>,
    pub place: usize,
}

/// A directory that plays a mount.
pub struct Mount {
    pub path: PathBuf,
    pub switches: Switches,
    pub iovs: Iovs,
    pub rings: Mutex<usize>,
    jobs: Mutex<VecDeque<Job>>,
    job_came: Condvar,
}

/// Whatever a panic left behind is as good as before: every critical section here is a few assignments.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

static MOUNTS: LazyLock<Mutex<Vec<Arc<Mount>>>> = LazyLock::new(|| {
    let given = std::env::var_os("KVSTORED_USRBIO_MOUNT").unwrap_or_default();
    let paths = std::env::split_paths(&given).filter(|path| !path.as_os_str().is_empty());
    Mutex::new(paths.filter_map(|path| Mount::open(&path)).collect())
});

impl Mount {
    fn open(path: &Path) -> Option<Arc<Self>> {
        let path = path.canonicalize().ok()?;
        std::fs::create_dir_all(path.join("3fs-virt/iovs")).ok()?;
        let mount = Arc::new(Self {
            iovs: Iovs::new(path.join("3fs-virt/iovs")),
            path,
            switches: Switches::from_environment(),
            rings: Mutex::new(0),
            jobs: Mutex::default(),
            job_came: Condvar::new(),
        });
        for number in 0..mount.switches.get("THREADS").clamp(1, 64) {
            let working = Arc::clone(&mount);
            std::thread::Builder::new()
                .name(format!("usrbio-{number}"))
                .spawn(move || working.work())
                .ok()?;
        }
        Some(mount)
    }

    /// Makes a directory play a mount, if it doesn't yet.
    pub fn add(path: &Path) -> Option<Arc<Self>> {
        let resolved = path.canonicalize().ok()?;
        let mut mounts = lock(&MOUNTS);
        if let Some(known) = mounts.iter().find(|mount| mount.path == resolved) {
            return Some(Arc::clone(known));
        }
        let mount = Self::open(&resolved)?;
        mounts.push(Arc::clone(&mount));
        Some(mount)
    }

    /// The mount that a path lies in.
    pub fn around(path: &Path) -> Option<Arc<Self>> {
        let resolved = path.canonicalize().ok()?;
        let mounts = lock(&MOUNTS);
        mounts
            .iter()
            .find(|mount| resolved.starts_with(&mount.path))
            .cloned()
    }

    /// The mount of that name.
    pub fn named(name: &str) -> Option<Arc<Self>> {
        let mounts = lock(&MOUNTS);
        mounts
            .iter()
            .find(|mount| mount.path.as_os_str() == name)
            .cloned()
    }

    /// Has I/O done.
    pub fn start(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut waiting = lock(&self.jobs);
        let before = waiting.len();
        waiting.extend(jobs);
        let came = waiting.len() - before;
        drop(waiting);
        for _ in 0..came {
            self.job_came.notify_one();
        }
    }

    fn work(&self) {
        loop {
            let job = {
                let mut jobs = lock(&self.jobs);
                loop {
                    match jobs.pop_front() {
                        Some(job) => break job,
                        None => jobs = self.job_came.wait(jobs).unwrap_or_else(PoisonError::into_inner),
                    }
                }
            };
            job.ring.perform(job.place);
        }
    }
}
