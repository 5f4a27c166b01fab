//! What tenants and namespaces occupy in a plugged-in tier, held against their quotas.
//!
//! A write is charged before the plugin gets it and keeps its charge until the plugin is done with it; then the block has
//! it, or it's given back. Blocks that the plugin told of are there already: they are charged as far as they fit, once
//! it's known whose they are. What wasn't charged is what leaves first.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use kvstored_core::quota::QuotaLedger;
use kvstored_core::{BlockKey, Namespace, NamespaceInfo, Result};
use parking_lot::Mutex;

/// The books, if there are quotas. Calls about blocks come in the order in which the index changes.
pub(crate) struct Quotas {
    ledger: Option<Arc<QuotaLedger>>,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    accounts: HashMap<Namespace, Account>,
    /// Blocks that are being written.
    writes: HashMap<BlockKey, Write>,
}

/// A namespace's.
#[derive(Default)]
struct Account {
    /// Whose it is and how large its blocks are, once that's known.
    owner: Option<Owner>,
    /// Blocks that are here and aren't charged.
    uncharged: u64,
}

struct Owner {
    tenant: String,
    namespace: Namespace,
    block_bytes: u64,
}

/// The charge of an operation that writes a block; ends with it.
pub(crate) struct Charge {
    quotas: Arc<Quotas>,
    key: BlockKey,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.quotas.settle(&self.key);
    }
}

/// One charge for a block, however many operations write it.
struct Write {
    operations: usize,
    /// The block is here meanwhile, and the charge is its own.
    here: bool,
}

impl Owner {
    fn reserve(&self, ledger: &QuotaLedger, blocks: u64) -> Result<()> {
        ledger.reserve(
            &self.tenant,
            &self.namespace,
            blocks.saturating_mul(self.block_bytes),
        )
    }

    fn release(&self, ledger: &QuotaLedger, blocks: u64) {
        ledger.release(
            &self.tenant,
            &self.namespace,
            blocks.saturating_mul(self.block_bytes),
        );
    }
}

impl Account {
    /// One block more is here, which may not be refused.
    fn adopt(&mut self, ledger: &QuotaLedger) {
        let owner = self.owner.as_ref();
        if owner.is_none_or(|owner| owner.reserve(ledger, 1).is_err()) {
            self.uncharged += 1;
        }
    }

    /// So many blocks are gone.
    fn drop_blocks(&mut self, ledger: &QuotaLedger, blocks: u64) {
        let uncharged = blocks.min(self.uncharged);
        self.uncharged -= uncharged;
        if let Some(owner) = &self.owner
            && blocks > uncharged
        {
            owner.release(ledger, blocks - uncharged);
        }
    }

    /// It's known whose the blocks are: as many are charged as fit.
    fn belongs(&mut self, ledger: &QuotaLedger, info: &NamespaceInfo) -> &Owner {
        let uncharged = &mut self.uncharged;
        self.owner.get_or_insert_with(|| {
            let owner = Owner {
                tenant: info.identity.tenant.clone(),
                namespace: info.namespace,
                block_bytes: info.layout.image_bytes() as u64,
            };
            let mut blocks = *uncharged;
            while blocks > 0 {
                if owner.reserve(ledger, blocks).is_ok() {
                    *uncharged -= blocks;
                    blocks = blocks.min(*uncharged);
                } else {
                    blocks /= 2;
                }
            }
            owner
        })
    }
}

impl Quotas {
    /// Books over that ledger.
    pub fn new(ledger: Option<Arc<QuotaLedger>>) -> Arc<Self> {
        Arc::new(Self {
            ledger,
            books: Mutex::default(),
        })
    }

    /// The ledger, if there are quotas.
    pub fn ledger(&self) -> Option<&QuotaLedger> {
        self.ledger.as_deref()
    }

    /// Charges a write until the plugin is done with it; nothing where there are no quotas. Fails with `QuotaExceeded`.
    pub fn charge(self: &Arc<Self>, info: &NamespaceInfo, key: BlockKey) -> Result<Option<Box<Charge>>> {
        let Some(ledger) = &self.ledger else {
            return Ok(None);
        };
        let mut books = self.books.lock();
        let Books { accounts, writes } = &mut *books;
        match writes.entry(key) {
            Entry::Occupied(mut write) => write.get_mut().operations += 1,
            Entry::Vacant(place) => {
                let account = accounts.entry(info.namespace).or_default();
                account.belongs(ledger, info).reserve(ledger, 1)?;
                place.insert(Write {
                    operations: 1,
                    here: false,
                });
            }
        }
        drop(books);
        let quotas = self.clone();
        Ok(Some(Box::new(Charge { quotas, key })))
    }

    /// The plugin is done with a write that was charged.
    fn settle(&self, key: &BlockKey) {
        let Some(ledger) = &self.ledger else { return };
        let mut books = self.books.lock();
        let Entry::Occupied(mut write) = books.writes.entry(*key) else {
            return;
        };
        write.get_mut().operations -= 1;
        if write.get().operations > 0 {
            return;
        }
        let here = write.remove().here;
        let account = books.accounts.get(&key.namespace);
        if let (false, Some(owner)) = (here, account.and_then(|account| account.owner.as_ref())) {
            owner.release(ledger, 1);
        }
    }

    /// A block is here that wasn't.
    pub fn came(&self, key: &BlockKey) {
        let Some(ledger) = &self.ledger else { return };
        let mut books = self.books.lock();
        match books.writes.get_mut(key) {
            Some(write) if !write.here => write.here = true,
            _ => books.accounts.entry(key.namespace).or_default().adopt(ledger),
        }
    }

    /// A block that was here is gone.
    pub fn left(&self, key: &BlockKey) {
        let Some(ledger) = &self.ledger else { return };
        let mut books = self.books.lock();
        match books.writes.get_mut(key) {
            // the operation has its charge back
            Some(write) if write.here => write.here = false,
            _ => books
                .accounts
                .entry(key.namespace)
                .or_default()
                .drop_blocks(ledger, 1),
        }
    }

    /// All blocks of a namespace are gone, so many.
    pub fn left_all(&self, namespace: &Namespace, blocks: u64) {
        let Some(ledger) = &self.ledger else { return };
        let mut books = self.books.lock();
        let mut charged_to_writes = 0;
        let writes = books.writes.iter_mut();
        for (_, write) in writes.filter(|(key, write)| key.namespace == *namespace && write.here) {
            write.here = false;
            charged_to_writes += 1;
        }
        let account = books.accounts.entry(*namespace).or_default();
        account.drop_blocks(ledger, blocks.saturating_sub(charged_to_writes));
    }

    /// It's known what a namespace is.
    pub fn belongs(&self, info: &NamespaceInfo) {
        let Some(ledger) = &self.ledger else { return };
        let mut books = self.books.lock();
        let account = books.accounts.entry(info.namespace).or_default();
        account.belongs(ledger, info);
    }
}

#[cfg(test)]
mod tests {
    use kvstored_core::quota::QuotaSettings;
    use kvstored_core::{BlockHash, ErrorKind, Identity, Layout};

    use super::*;

    struct Bed {
        ledger: Arc<QuotaLedger>,
        quotas: Arc<Quotas>,
        info: NamespaceInfo,
    }

    /// A tenant that may have so many blocks.
    fn bed(blocks: u64) -> Bed {
        let identity = Identity {
            tenant: "bounded".into(),
            ..Identity::default()
        };
        let info = NamespaceInfo::new(identity, Layout::uniform(1, 1, 4096).unwrap()).unwrap();
        let mut settings = QuotaSettings::default();
        let bytes = blocks * info.layout.image_bytes() as u64;
        settings.tenants.insert("bounded".into(), bytes);
        let ledger = Arc::new(QuotaLedger::new(settings));
        Bed {
            quotas: Quotas::new(Some(ledger.clone())),
            ledger,
            info,
        }
    }

    impl Bed {
        fn key(&self, number: u8) -> BlockKey {
            self.info.key(BlockHash::new(&[number; 16]).unwrap())
        }

        fn charge(&self, number: u8) -> Result<Option<Box<Charge>>> {
            self.quotas.charge(&self.info, self.key(number))
        }

        fn blocks(&self) -> u64 {
            self.ledger.tenant_usage()[0].used_bytes / self.info.layout.image_bytes() as u64
        }
    }

    #[test]
    fn a_write_is_charged_once_and_its_charge_is_the_blocks() {
        let bed = bed(2);
        let first = bed.charge(1).unwrap();
        let again = bed.charge(1).unwrap();
        let other = bed.charge(2).unwrap();
        let refused = bed.charge(3).err().map(|error| error.kind());
        assert_eq!(refused, Some(ErrorKind::QuotaExceeded));
        // the plugin tells of one before it ends the operation, and the other fails
        bed.quotas.came(&bed.key(1));
        drop(first);
        drop(other);
        drop(again);
        assert_eq!(bed.blocks(), 1);
        bed.quotas.left(&bed.key(1));
        assert_eq!(bed.blocks(), 0);
    }

    #[test]
    fn a_block_that_is_here_already_is_charged_once() {
        let bed = bed(2);
        bed.quotas.belongs(&bed.info);
        bed.quotas.came(&bed.key(1));
        let charge = bed.charge(1).unwrap();
        assert_eq!(bed.blocks(), 2);
        drop(charge);
        assert_eq!(bed.blocks(), 1);
    }

    #[test]
    fn a_block_that_leaves_while_it_is_written_leaves_no_trace() {
        let bed = bed(2);
        let first = bed.charge(1).unwrap();
        bed.quotas.came(&bed.key(1));
        bed.quotas.left(&bed.key(1));
        assert_eq!(bed.blocks(), 1);
        bed.quotas.came(&bed.key(1));
        let second = bed.charge(2).unwrap();
        bed.quotas.came(&bed.key(2));
        drop(second);
        // all of the namespace goes, a block with an operation too
        bed.quotas.left_all(&bed.info.namespace, 2);
        assert_eq!(bed.blocks(), 1);
        drop(first);
        assert_eq!(bed.blocks(), 0);
    }

    #[test]
    fn blocks_from_before_count_once_it_is_known_whose_they_are() {
        let bed = bed(5);
        (0..9).for_each(|number| bed.quotas.came(&bed.key(number)));
        assert_eq!(bed.blocks(), 0);
        bed.quotas.belongs(&bed.info);
        assert_eq!(bed.blocks(), 5);
        bed.quotas.belongs(&bed.info);
        assert!(bed.charge(20).is_err());
        // the four too many go first
        (0..4).for_each(|number| bed.quotas.left(&bed.key(number)));
        assert_eq!(bed.blocks(), 5);
        assert!(bed.charge(20).is_err());
        bed.quotas.left(&bed.key(4));
        drop(bed.charge(20).unwrap());
        bed.quotas.left_all(&bed.info.namespace, 4);
        assert_eq!(bed.blocks(), 0);
    }

    #[test]
    fn without_quotas_nothing_is_counted() {
        let (quotas, bed) = (Quotas::new(None), bed(0));
        assert!(quotas.charge(&bed.info, bed.key(1)).unwrap().is_none());
        quotas.came(&bed.key(1));
        assert!(quotas.books.lock().accounts.is_empty());
    }
}
