//! All regions and publications of an engine.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvstored_core::{Error, ErrorKind, Result};
use parking_lot::RwLock;

use super::region::{PublicationState, RegionState};
use crate::identity::{PublicationId, RegionId};

/// What is registered and published. Numbers are given out once, and serve as epochs too.
#[derive(Debug)]
pub(crate) struct Table {
    regions: RwLock<BTreeMap<RegionId, Arc<RegionState>>>,
    publications: RwLock<HashMap<PublicationId, Arc<PublicationState>>>,
    next: AtomicU64,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            regions: RwLock::default(),
            publications: RwLock::default(),
            next: AtomicU64::new(1),
        }
    }
}

impl Table {
    /// A number that was never given out before.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub fn allocate(&self, length: usize) -> Result<Arc<RegionState>> {
        Ok(self.insert(RegionState::own(RegionId(self.number()), length)?))
    }

    pub fn register(&self, address: *mut u8, length: usize) -> Result<Arc<RegionState>> {
        Ok(self.insert(RegionState::foreign(RegionId(self.number()), address, length)?))
    }

    fn insert(&self, region: RegionState) -> Arc<RegionState> {
        let region = Arc::new(region);
        self.regions.write().insert(region.id(), region.clone());
        region
    }

    /// Fails with `NotFound`.
    pub fn region(&self, id: RegionId) -> Result<Arc<RegionState>> {
        let found = self.regions.read().get(&id).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such region").with("region", id.value()))
    }

    /// The open region that holds those addresses.
    pub fn region_at(&self, address: u64, length: u64) -> Option<Arc<RegionState>> {
        let regions = self.regions.read();
        let holds = |region: &&Arc<RegionState>| {
            let offset = address.checked_sub(region.base() as u64);
            offset.is_some_and(|offset| region.contains(offset, length)) && !region.usage.is_closed()
        };
        regions.values().find(holds).cloned()
    }

    /// The open region that was registered first.
    pub fn first_region(&self) -> Option<Arc<RegionState>> {
        let regions = self.regions.read();
        regions.values().find(|region| !region.usage.is_closed()).cloned()
    }

    pub fn remove_region(&self, id: RegionId) {
        self.publications
            .write()
            .retain(|_, publication| publication.region.id() != id);
        self.regions.write().remove(&id);
    }

    /// Publishes a range. Fails with `NotFound` for an unknown region, `Fenced` for one that is being unregistered, and
    /// `InvalidInput` for a range that is empty or outside.
    pub fn publish(&self, region: RegionId, offset: u64, length: u64) -> Result<Arc<PublicationState>> {
        let region = self.region(region)?;
        if length == 0 || !region.contains(offset, length) {
            return Err(Error::invalid(format!(
                "bytes {offset}+{length} are outside a region of {} bytes",
                region.length()
            )));
        }
        let number = self.number();
        let state = Arc::new(PublicationState {
            id: PublicationId(number),
            epoch: number,
            region,
            offset,
            length,
            usage: super::usage::Usage::default(),
            slot: parking_lot::Mutex::default(),
        });
        self.publications.write().insert(state.id, state.clone());
        // looked at afterwards, so that nothing stays behind when the region goes meanwhile
        if state.region.usage.is_closed() {
            self.remove_publication(state.id);
            return Err(Error::new(ErrorKind::Fenced, "the region is being unregistered"));
        }
        Ok(state)
    }

    /// The publication of all of a region, made when it's first asked for.
    pub fn publish_whole(&self, region: &Arc<RegionState>) -> Result<Arc<PublicationState>> {
        let mut whole = region.whole.lock();
        if let Some(known) = whole.and_then(|id| self.publication(id)) {
            return Ok(known);
        }
        let new = self.publish(region.id(), 0, region.length() as u64)?;
        *whole = Some(new.id);
        Ok(new)
    }

    /// The publication, if it's known and not yet released completely.
    pub fn publication(&self, id: PublicationId) -> Option<Arc<PublicationState>> {
        self.publications.read().get(&id).cloned()
    }

    /// All publications of a region.
    pub fn publications_of(&self, region: RegionId) -> Vec<Arc<PublicationState>> {
        let publications = self.publications.read();
        let of = publications.values().filter(|state| state.region.id() == region);
        of.cloned().collect()
    }

    pub fn remove_publication(&self, id: PublicationId) {
        self.publications.write().remove(&id);
    }

    /// Whether that number may have been given out.
    pub fn knew(&self, number: u64) -> bool {
        number > 0 && number < self.next.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_near_the_end_of_numbers_are_refused() {
        let table = Table::default();
        let region = table.allocate(8192).unwrap();
        for (offset, length) in [
            (0, 0),
            (8192, 1),
            (1, 8192),
            (u64::MAX, 1),
            (1, u64::MAX),
            (u64::MAX, u64::MAX),
        ] {
            let error = table.publish(region.id(), offset, length).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{offset}+{length}");
            assert!(
                table
                    .region_at((region.base() as u64).wrapping_add(offset), length)
                    .is_none()
                    || length == 0
            );
        }
        assert!(table.publish(region.id(), 8191, 1).is_ok());
        assert!(table.region_at(region.base() as u64 + 8191, 1).is_some());
    }

    #[test]
    fn memory_that_cannot_exist_is_refused() {
        let table = Table::default();
        for (address, length) in [(0usize, 10usize), (4096, 0), (usize::MAX, 2)] {
            let address = std::ptr::without_provenance_mut(address);
            assert_eq!(
                table.register(address, length).unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
        }
        assert!(table.allocate(0).is_err());
        assert!(table.allocate(usize::MAX).is_err());
    }

    #[test]
    fn what_is_published_of_a_region_goes_with_it() {
        let table = Table::default();
        let region = table.allocate(4096).unwrap();
        let publication = table.publish(region.id(), 0, 1).unwrap();
        table.remove_region(region.id());
        assert!(table.publication(publication.id).is_none());
        assert!(table.knew(publication.id.value()));
        assert_eq!(
            table.publish(region.id(), 0, 1).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
}
