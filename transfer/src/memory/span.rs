//! A range of memory that one operation touches, held in place by guards.

use std::sync::Arc;

use super::region::{PublicationState, RegionState};

/// Counts an operation in at a region, and at a publication where a peer asked for it. While it lives, neither release
/// nor unregister returns.
#[derive(Debug)]
pub(crate) struct Guard {
    region: Arc<RegionState>,
    publication: Option<Arc<PublicationState>>,
}

impl Guard {
    /// For an operation of this process. `None` once the region is closed.
    pub fn local(region: &Arc<RegionState>) -> Option<Self> {
        region.usage.enter().then(|| Self {
            region: region.clone(),
            publication: None,
        })
    }

    /// For a peer's operation. `None` once the publication or its region is closed.
    pub fn served(publication: &Arc<PublicationState>) -> Option<Self> {
        let region = publication.region.clone();
        if !region.usage.enter() {
            return None;
        }
        if !publication.usage.enter() {
            region.usage.leave();
            return None;
        }
        Some(Self {
            region,
            publication: Some(publication.clone()),
        })
    }

    /// Whether somebody waits for this guard to go.
    pub fn is_closed(&self) -> bool {
        let publication = self.publication.as_ref();
        self.region.usage.is_closed() || publication.is_some_and(|state| state.usage.is_closed())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(publication) = &self.publication {
            publication.usage.leave();
        }
        self.region.usage.leave();
    }
}

/// A range of guarded memory.
#[derive(Debug)]
pub(crate) struct Span {
    address: usize,
    length: usize,
    guard: Guard,
}

impl Span {
    /// A range of a process's own region. `None` once the region is closed. The caller has checked the range.
    pub fn local(region: &Arc<RegionState>, offset: u64, length: usize) -> Option<Self> {
        debug_assert!(region.contains(offset, length as u64));
        Some(Self {
            address: region.base() + offset as usize,
            length,
            guard: Guard::local(region)?,
        })
    }

    /// A range of a publication. `None` once it's closed. The caller has checked the range.
    pub fn served(publication: &Arc<PublicationState>, offset_in_region: u64, length: usize) -> Option<Self> {
        debug_assert!(publication.region.contains(offset_in_region, length as u64));
        Some(Self {
            address: publication.region.base() + offset_in_region as usize,
            length,
            guard: Guard::served(publication)?,
        })
    }

    /// Address of the first byte.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether the operation must stop touching it.
    pub fn is_closed(&self) -> bool {
        self.guard.is_closed()
    }
}
