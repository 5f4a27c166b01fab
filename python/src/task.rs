//! Loads and dumps under way, and the memory they use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstored_client::Task as StoreTask;
use kvstored_core::device::Event;
use kvstored_core::{ErrorKind, Result, Runtime};
use numpy::{IntoPyArray, PyArray1};
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::{PyTraverseError, PyVisit};

use crate::arguments::seconds;
use crate::failure::Outcome;
use crate::home::Home;
use crate::store::OpenStore;
use crate::task_report::TaskReport;

/// How long a wait goes without asking whether a signal came in.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);
/// How much longer than a task's deadline a wait goes by default: the task ends by itself until then.
const GRACE: Duration = Duration::from_secs(1);
/// How long dropping a task waits for its end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What must live as long as a task is under way.
pub struct Needed {
    /// Whose threads copy.
    pub store: Arc<OpenStore>,
    /// The tensors, where they aren't somebody else's care.
    pub tensors: Option<Py<PyAny>>,
    /// What copies on a device wait for, where it isn't the engine's own.
    pub event: Option<Arc<Event>>,
}

/// Tasks that were dropped but hadn't ended in time, with what they need.
static LEFT_BEHIND: Mutex<Vec<(StoreTask, Needed)>> = Mutex::new(Vec::new());

/// A task and what it needs until its end. Dropped before, it is cancelled and waited for.
pub struct Running {
    task: StoreTask,
    runtime: Runtime,
    home: Home,
    deadline: Mutex<Instant>,
    /// Until the task is seen to have ended.
    needed: Mutex<Option<Needed>>,
}

impl Running {
    pub fn new(task: StoreTask, deadline: Instant, needed: Needed) -> Arc<Self> {
        release_left_behind();
        Arc::new(Self {
            task,
            runtime: needed.store.runtime.clone(),
            home: needed.store.home,
            deadline: Mutex::new(deadline),
            needed: Mutex::new(Some(needed)),
        })
    }

    pub fn has_ended(&self) -> bool {
        self.task.poll().is_some()
    }

    pub fn cancel(&self) {
        self.task.cancel();
    }

    /// Cancels the task and waits for its end, so that nobody touches its memory any more.
    fn settle(&self) {
        if self.home.is_left() {
            // its threads are in another process, and their copy of the memory too; whoever held the lock may be as well
            if let Some(mut needed) = self.needed.try_lock() {
                std::mem::forget(needed.take());
            }
            return;
        }
        if !self.has_ended() {
            self.task.cancel();
            let wait = || self.task.wait(END_TIMEOUT).is_ok();
            let ended = Python::try_attach(|py| py.detach(wait)).unwrap_or_else(wait);
            if !ended {
                let timeout_ms = END_TIMEOUT.as_millis() as u64;
                tracing::error!(
                    timeout_ms,
                    "a dropped task has not ended; its memory is kept until then"
                );
                let needed = self.needed.lock().take();
                LEFT_BEHIND
                    .lock()
                    .extend(needed.map(|needed| (self.task.clone(), needed)));
            }
        }
        self.release();
    }

    /// Lets go of what an ended task needed.
    fn release(&self) {
        // not under the lock: dropping may run Python code
        let needed = self.needed.lock().take();
        drop(needed);
    }

    /// Lets other Python threads run while `step` waits, in slices, until it stops timing out or `until` has come.
    fn wait_in_slices<T: Send>(
        &self,
        py: Python<'_>,
        until: Instant,
        step: impl Fn(&StoreTask, Duration) -> Result<T> + Sync,
    ) -> Outcome<T> {
        self.home.check()?;
        loop {
            let left = until.saturating_duration_since(self.runtime.clock.now());
            let slice = left.min(SIGNAL_INTERVAL);
            match py.detach(|| step(&self.task, slice)) {
                Err(error) if error.kind() == ErrorKind::TimedOut && left > slice => py.check_signals()?,
                result => return Ok(result?),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Lets go of the memory of tasks that have ended since they were dropped.
fn release_left_behind() {
    if let Some(mut tasks) = LEFT_BEHIND.try_lock()
        && !tasks.is_empty()
    {
        let ended: Vec<_> = tasks.extract_if(.., |(task, _)| task.poll().is_some()).collect();
        drop(tasks);
        drop(ended);
    }
}

/// A load or dump under way.
///
/// Dropped before its end, it is cancelled, and dropping waits (a few milliseconds as a rule) until nobody touches its
/// memory any more.
#[pyclass(frozen, module = "kvstored")]
pub struct Task {
    blocks: usize,
    running: Arc<Running>,
    report: PyOnceLock<Py<TaskReport>>,
}

impl Task {
    pub fn new(blocks: usize, running: Arc<Running>) -> Self {
        Self {
            blocks,
            running,
            report: PyOnceLock::new(),
        }
    }

    /// Gives the task more time.
    pub fn extend(&self, deadline: Instant) {
        *self.running.deadline.lock() = deadline;
    }

    fn until(&self, timeout: Option<f64>) -> Result<Instant> {
        match timeout {
            Some(timeout) => Ok(self.running.runtime.deadline(seconds(timeout)?)),
            None => Ok(*self.running.deadline.lock() + GRACE),
        }
    }

    /// Keeps the report of an ended task and lets go of its memory.
    fn ended(&self, py: Python<'_>, report: &kvstored_client::TaskReport) -> PyResult<Py<TaskReport>> {
        self.running.release();
        let report = self
            .report
            .get_or_try_init(py, || Py::new(py, TaskReport::new(py, report)))?;
        Ok(report.clone_ref(py))
    }
}

#[pymethods]
impl Task {
    /// Blocks of the request.
    #[getter]
    fn blocks(&self) -> usize {
        self.blocks
    }

    /// Waits for the end, at most `timeout` seconds, or a second longer than the task's own deadline.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> Outcome<Py<TaskReport>> {
        if let Some(report) = self.report.get(py) {
            return Ok(report.clone_ref(py));
        }
        let until = self.until(timeout)?;
        let report = self.running.wait_in_slices(py, until, StoreTask::wait)?;
        Ok(self.ended(py, &report)?)
    }

    /// Whether the task has ended.
    fn check(&self, py: Python<'_>) -> Outcome<bool> {
        Ok(self.report(py)?.is_some())
    }

    /// The report, if the task has ended.
    fn report(&self, py: Python<'_>) -> Outcome<Option<Py<TaskReport>>> {
        if let Some(report) = self.report.get(py) {
            return Ok(Some(report.clone_ref(py)));
        }
        self.running.home.check()?;
        match py.detach(|| self.running.task.poll()).transpose()? {
            Some(report) => Ok(Some(self.ended(py, &report)?)),
            None => Ok(None),
        }
    }

    /// Waits until a shard is there for every block that could be loaded.
    fn wait_shard(&self, py: Python<'_>, shard: usize, timeout: f64) -> Outcome<()> {
        let until = self.until(Some(timeout))?;
        self.running
            .wait_in_slices(py, until, |task, slice| task.wait_shard(shard, slice))
    }

    /// Indices of the blocks that are known by now not to be loaded or dumped.
    fn failed_blocks<'py>(&self, py: Python<'py>) -> Outcome<Bound<'py, PyArray1<i64>>> {
        self.running.home.check()?;
        let failed = py.detach(|| self.running.task.failed_blocks());
        let failed: Vec<i64> = failed.into_iter().map(|index| index as i64).collect();
        Ok(failed.into_pyarray(py))
    }

    /// Asks the task to stop; it has stopped when it has ended.
    fn cancel(&self) {
        self.running.cancel();
    }

    fn __repr__(&self) -> String {
        format!("Task(blocks={}, ended={})", self.blocks, self.running.has_ended())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.running.needed.try_lock() {
            Some(needed) => visit.call(needed.as_ref().and_then(|needed| needed.tensors.as_ref())),
            None => Ok(()),
        }
    }

    fn __clear__(&self) {
        self.running.settle();
    }
}
