//! From the store's errors to Python's exceptions, one class per kind.

use kvstored_core::{Error, Result as StoreResult};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// What a call of the module fails with.
pub enum Failure {
    /// The store's own error.
    Store(Error),
    /// An exception of Python's.
    Python(PyErr),
}

/// The result of a call of the module.
pub type Outcome<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Python(error) => error,
            Failure::Store(error) => Python::attach(|py| exception(py, &error)),
        }
    }
}

/// The function `kvstored.errors.from_kind`.
static FROM_KIND: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let made = FROM_KIND
        .get_or_try_init(py, || {
            Ok(py.import("kvstored.errors")?.getattr("from_kind")?.unbind())
        })
        .and_then(|from_kind| from_kind.bind(py).call1((error.kind().name(), error.to_string())));
    match made {
        Ok(value) => PyErr::from_value(value),
        // the interpreter is ending and its modules are gone
        Err(_) => PyRuntimeError::new_err(error.to_string()),
    }
}

/// Runs what may wait or copy while other Python threads go on.
pub fn detached<T: Send>(py: Python<'_>, body: impl FnOnce() -> StoreResult<T> + Send) -> Outcome<T> {
    Ok(py.detach(body)?)
}
