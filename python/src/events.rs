//! Which blocks became visible in a tier, and which left it.

use std::collections::HashMap;

use kvstored_core::{EventKind, Events as StoreEvents, Namespace};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

/// A run of events without a gap, oldest first: one entry per event in `kinds`, `tiers`, `namespace_indices`, `hashes`.
#[pyclass(frozen, get_all, module = "kvstored")]
pub struct Events {
    /// Number of the first event; one more than `next` if there are none.
    first: u64,
    /// Number of the last event: what to ask for the events after.
    next: u64,
    /// Whether events between the number asked with and `first` are gone.
    lost: bool,
    /// Digests of the namespaces that occur.
    namespaces: Py<PyList>,
    /// 0 for a block that became visible, 1 for one that left.
    kinds: Py<PyArray1<u8>>,
    /// Index of the tier; 0 is memory.
    tiers: Py<PyArray1<u8>>,
    /// Index in `namespaces`.
    namespace_indices: Py<PyArray1<u16>>,
    /// The blocks' hashes.
    hashes: Py<PyList>,
}

impl Events {
    pub fn new(py: Python<'_>, events: &StoreEvents) -> PyResult<Self> {
        let mut known: HashMap<Namespace, u16> = HashMap::new();
        let mut namespaces: Vec<Bound<'_, PyBytes>> = Vec::new();
        let mut indices = Vec::with_capacity(events.events.len());
        let hashes = PyList::new(
            py,
            events
                .events
                .iter()
                .map(|event| PyBytes::new(py, event.key.hash.as_bytes())),
        )?;
        for event in &events.events {
            let index = *known.entry(event.key.namespace).or_insert_with(|| {
                namespaces.push(PyBytes::new(py, &event.key.namespace.0));
                // an answer has fewer events than that
                (namespaces.len() - 1) as u16
            });
            indices.push(index);
        }
        let kinds = events.events.iter().map(|event| match event.kind {
            EventKind::Stored => 0u8,
            EventKind::Removed => 1,
        });
        let tiers = events.events.iter().map(|event| event.tier);
        Ok(Self {
            first: events.first,
            next: events.next,
            lost: events.lost,
            namespaces: PyList::new(py, namespaces)?.unbind(),
            kinds: kinds.collect::<Vec<_>>().into_pyarray(py).unbind(),
            tiers: tiers.collect::<Vec<_>>().into_pyarray(py).unbind(),
            namespace_indices: indices.into_pyarray(py).unbind(),
            hashes: hashes.unbind(),
        })
    }
}

#[pymethods]
impl Events {
    fn __len__(&self, py: Python<'_>) -> usize {
        self.hashes.bind(py).len()
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!(
            "Events(first={}, next={}, lost={}, events={})",
            self.first,
            self.next,
            self.lost,
            self.__len__(py)
        )
    }
}
