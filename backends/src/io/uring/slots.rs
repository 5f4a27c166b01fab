//! The requests that the kernel works on.

use super::super::error::Progress;
use super::IoRequest;

/// A request in flight.
pub(super) struct Running {
    pub request: IoRequest,
    pub progress: Progress,
}

/// A fixed number of places for requests in flight.
///
/// What is still in flight when the table goes is leaked: the kernel may yet write to its buffer, so nobody
/// may get that buffer again.
pub(super) struct Slots {
    entries: Vec<Option<Running>>,
    free: Vec<usize>,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self {
            entries: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    /// Gives the request a place; hands it back if there's none.
    pub(super) fn insert(&mut self, request: IoRequest) -> Result<usize, Box<IoRequest>> {
        let Some(index) = self.free.pop() else {
            return Err(Box::new(request));
        };
        match self.entries.get_mut(index) {
            Some(entry) => {
                *entry = Some(Running {
                    request,
                    progress: Progress::default(),
                });
                Ok(index)
            }
            None => Err(Box::new(request)),
        }
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Running> {
        self.entries.get_mut(index)?.as_mut()
    }

    /// Takes a request out that the kernel is done with.
    pub(super) fn remove(&mut self, index: usize) -> Option<Running> {
        let running = self.entries.get_mut(index)?.take()?;
        self.free.push(index);
        Some(running)
    }

    /// Takes everything out although the kernel may not be done, keeping every buffer from ever being reused.
    pub(super) fn abandon(&mut self) -> Vec<IoRequest> {
        let mut abandoned = Vec::new();
        for index in 0..self.entries.len() {
            if let Some(running) = self.remove(index) {
                std::mem::forget(running.request.buffer.clone());
                abandoned.push(running.request);
            }
        }
        abandoned
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for running in self.entries.iter_mut().filter_map(Option::take) {
            std::mem::forget(running);
        }
    }
}
