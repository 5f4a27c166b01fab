//! Several doubly linked lists of slots over one array of links: every operation takes constant time.

use super::most_array_bytes;

/// No slot.
const NONE: u32 = u32::MAX;
/// The slot is in no list.
const UNLINKED: u8 = u8::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    warmer: u32,
    colder: u32,
    list: u8,
}

const FREE_LINK: Link = Link {
    warmer: NONE,
    colder: NONE,
    list: UNLINKED,
};

#[derive(Clone, Copy, Debug)]
struct Ends {
    hot: u32,
    cold: u32,
    count: usize,
}

/// `LISTS` lists; a slot is in at most one of them. Operations on slots that aren't linked do nothing.
#[derive(Debug)]
pub(super) struct Lists<const LISTS: usize> {
    links: Vec<Link>,
    ends: [Ends; LISTS],
}

impl<const LISTS: usize> Lists<LISTS> {
    pub(super) fn new() -> Self {
        Self {
            links: Vec::new(),
            ends: [Ends {
                hot: NONE,
                cold: NONE,
                count: 0,
            }; LISTS],
        }
    }

    /// Slots in one list.
    pub(super) fn len(&self, list: usize) -> usize {
        self.ends[list].count
    }

    /// Slots in all lists.
    pub(super) fn total(&self) -> usize {
        self.ends.iter().map(|ends| ends.count).sum()
    }

    /// The list a slot is in.
    pub(super) fn list_of(&self, slot: u32) -> Option<usize> {
        let list = self.links.get(slot as usize)?.list;
        (list != UNLINKED).then_some(usize::from(list))
    }

    /// The coldest slot of a list.
    pub(super) fn coldest(&self, list: usize) -> Option<u32> {
        some(self.ends[list].cold)
    }

    /// The next warmer slot of the same list.
    pub(super) fn warmer(&self, slot: u32) -> Option<u32> {
        some(self.links.get(slot as usize)?.warmer)
    }

    /// Puts a slot at the hot end of a list, taking it out of the list it was in.
    pub(super) fn push_hot(&mut self, list: usize, slot: u32) {
        debug_assert_ne!(slot, NONE, "slots are dense and small");
        self.unlink(slot);
        let index = slot as usize;
        if index >= self.links.len() {
            self.links.resize(index + 1, FREE_LINK);
        }
        let old_hot = self.ends[list].hot;
        self.links[index] = Link {
            warmer: NONE,
            colder: old_hot,
            list: list as u8,
        };
        match self.links.get_mut(old_hot as usize) {
            Some(link) => link.warmer = slot,
            None => self.ends[list].cold = slot,
        }
        self.ends[list].hot = slot;
        self.ends[list].count += 1;
    }

    /// Takes a slot out of its list. Returns the list it was in.
    pub(super) fn unlink(&mut self, slot: u32) -> Option<usize> {
        let list = self.list_of(slot)?;
        let link = std::mem::replace(&mut self.links[slot as usize], FREE_LINK);
        match self.links.get_mut(link.warmer as usize) {
            Some(warmer) => warmer.colder = link.colder,
            None => self.ends[list].hot = link.colder,
        }
        match self.links.get_mut(link.colder as usize) {
            Some(colder) => colder.warmer = link.warmer,
            None => self.ends[list].cold = link.warmer,
        }
        self.ends[list].count -= 1;
        Some(list)
    }

    /// The coldest slot of a list that `evictable` accepts, among the `limit` coldest; nothing moves.
    pub(super) fn find_cold(
        &self,
        list: usize,
        limit: usize,
        evictable: &mut dyn FnMut(u32) -> bool,
    ) -> Option<u32> {
        std::iter::successors(self.coldest(list), |slot| self.warmer(*slot))
            .take(limit)
            .find(|slot| evictable(*slot))
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>()
    }

    /// The most bytes of memory while its slots are numbers below `slots`.
    pub(super) fn most_bytes(slots: usize) -> usize {
        most_array_bytes::<Link>(slots)
    }

    /// Walks every list both ways and compares with the counts and memberships.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut linked = 0;
        for (list, ends) in self.ends.iter().enumerate() {
            let mut warmer = NONE;
            let mut slot = ends.hot;
            let mut count = 0;
            while slot != NONE {
                let link = self.links[slot as usize];
                assert_eq!(usize::from(link.list), list);
                assert_eq!(link.warmer, warmer);
                count += 1;
                assert!(count <= ends.count, "list {list} is longer than its count");
                warmer = slot;
                slot = link.colder;
            }
            assert_eq!(ends.cold, warmer);
            assert_eq!(count, ends.count);
            linked += count;
        }
        assert_eq!(
            linked,
            self.links.iter().filter(|link| link.list != UNLINKED).count()
        );
    }
}

fn some(slot: u32) -> Option<u32> {
    (slot != NONE).then_some(slot)
}
