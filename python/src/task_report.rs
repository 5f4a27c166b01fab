//! What became of a task's blocks.

use kvstored_client::{BlockOutcome, TaskReport as StoreReport};
use kvstored_core::ErrorKind;
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

/// Distinct error texts that a report keeps.
const MOST_ERRORS: usize = 8;

/// What became of a task's blocks, by their index in the request.
#[pyclass(frozen, get_all, module = "kvstored")]
pub struct TaskReport {
    /// Blocks of the request.
    blocks: usize,
    /// Blocks that were loaded, dumped or copied, or that were there already.
    done: usize,
    /// Indices of the others.
    failed: Py<PyArray1<i64>>,
    /// The tier each block was loaded from; -1 where it wasn't loaded.
    tiers: Py<PyArray1<i8>>,
    /// Blocks that a load didn't find.
    missing: usize,
    /// From the task's start until its last block ended, in seconds.
    seconds: f64,
    /// Some of the errors, each text once.
    errors: Vec<String>,
    /// Kinds of these errors.
    error_kinds: Vec<&'static str>,
}

impl TaskReport {
    pub fn new(py: Python<'_>, report: &StoreReport) -> Self {
        let mut failed = Vec::new();
        let mut tiers = Vec::with_capacity(report.blocks.len());
        let mut missing = 0;
        let (mut errors, mut error_kinds) = (Vec::new(), Vec::<&'static str>::new());
        let mut remember = |kind: ErrorKind, text: String| {
            if errors.len() < MOST_ERRORS && !errors.contains(&text) {
                errors.push(text);
                error_kinds.push(kind.name());
            }
        };
        for (index, outcome) in report.blocks.iter().enumerate() {
            let mut from = -1;
            match outcome {
                BlockOutcome::Loaded { tier } => from = i8::try_from(*tier).unwrap_or(i8::MAX),
                BlockOutcome::Dumped(_) | BlockOutcome::Present | BlockOutcome::Copied => {}
                BlockOutcome::Missing => {
                    missing += 1;
                    failed.push(index as i64);
                }
                BlockOutcome::Failed(error) => {
                    remember(error.kind(), error.to_string());
                    failed.push(index as i64);
                }
            }
            tiers.push(from);
        }
        Self {
            blocks: report.blocks.len(),
            done: report.blocks.len() - failed.len(),
            failed: failed.into_pyarray(py).unbind(),
            tiers: tiers.into_pyarray(py).unbind(),
            missing,
            seconds: report.elapsed.as_secs_f64(),
            errors,
            error_kinds,
        }
    }
}

#[pymethods]
impl TaskReport {
    /// Whether every block is done.
    #[getter]
    fn all_done(&self) -> bool {
        self.done == self.blocks
    }

    fn __repr__(&self) -> String {
        format!(
            "TaskReport(blocks={}, done={}, missing={}, errors={:?})",
            self.blocks, self.done, self.missing, self.errors
        )
    }
}
