//! The objects below the prefix that this process knows of, oldest first, and the bytes they take.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvstored_core::quota::QuotaLedger;
use parking_lot::{Mutex, RwLock};

use crate::format::ObjectName;
use crate::index::NamespaceIndex;

/// What an entry takes in both tables, with their slack.
const ENTRY_MEMORY_BYTES: u64 = 240;

/// One object.
pub struct StoredObject {
    /// Its handle: never used again for another.
    pub handle: u32,
    /// Its name.
    pub name: ObjectName,
    /// Its bytes in the bucket.
    pub bytes: u64,
    /// Those of them that are images of blocks, which quotas count.
    pub image_bytes: u64,
    /// The blocks' namespace; `None` if its footer is bad.
    pub index: Option<Arc<NamespaceIndex>>,
    /// The listing during which it became known.
    pub round: u64,
    /// The tenant whose quota it counts against.
    charged: Mutex<Option<String>>,
}

#[derive(Default)]
struct Tables {
    by_name: BTreeMap<ObjectName, Arc<StoredObject>>,
    by_handle: HashMap<u32, Arc<StoredObject>>,
    next: u32,
    bytes: u64,
    /// Objects that this process is putting.
    coming: HashSet<ObjectName>,
    /// Objects that nobody reads any more and that are still to be deleted.
    doomed: BTreeMap<ObjectName, u64>,
    doomed_bytes: u64,
}

/// All objects.
pub struct Objects {
    tables: RwLock<Tables>,
    ledger: Option<Arc<QuotaLedger>>,
    /// Bytes of objects on their way up.
    reserved: AtomicU64,
    round: AtomicU64,
}

impl Objects {
    /// None yet; their bytes count against the quotas of that ledger.
    pub fn new(ledger: Option<Arc<QuotaLedger>>) -> Self {
        Self {
            tables: RwLock::default(),
            ledger,
            reserved: AtomicU64::new(0),
            round: AtomicU64::new(1),
        }
    }

    /// Begins a listing of everything; returns its number.
    pub fn begin_round(&self) -> u64 {
        self.round.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Bytes in the bucket and on their way there.
    pub fn allocated_bytes(&self) -> u64 {
        let tables = self.tables.read();
        tables.bytes + tables.doomed_bytes + self.reserved.load(Ordering::Acquire)
    }

    /// Takes note of an object that this process begins to put.
    pub fn begin(&self, name: ObjectName, bytes: u64) {
        self.tables.write().coming.insert(name);
        self.reserved.fetch_add(bytes, Ordering::AcqRel);
    }

    /// It's there, or won't be.
    pub fn end(&self, name: &ObjectName, bytes: u64) {
        self.tables.write().coming.remove(name);
        self.reserved.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Memory that the tables take.
    pub fn memory_bytes(&self) -> u64 {
        self.tables.read().by_name.len() as u64 * ENTRY_MEMORY_BYTES
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tables.read().by_name.len()
    }

    /// Whether it's known, being put by this process, or about to be deleted.
    pub fn knows(&self, name: &ObjectName) -> bool {
        let tables = self.tables.read();
        let (known, doomed) = (
            tables.by_name.contains_key(name),
            tables.doomed.contains_key(name),
        );
        known || doomed || tables.coming.contains(name)
    }

    /// The object with that handle.
    pub fn get(&self, handle: u32) -> Option<Arc<StoredObject>> {
        self.tables.read().by_handle.get(&handle).cloned()
    }

    /// Adds an object; `charged` names the tenant whose quota has taken its images already. `None` if it's known.
    pub fn add(
        &self,
        name: ObjectName,
        (bytes, image_bytes): (u64, u64),
        index: Option<Arc<NamespaceIndex>>,
        charged: Option<String>,
    ) -> Option<Arc<StoredObject>> {
        let mut tables = self.tables.write();
        if tables.by_name.contains_key(&name) || tables.doomed.contains_key(&name) {
            return None;
        }
        let handle = tables.next;
        // four thousand million objects of one process: no more are taken
        tables.next = tables.next.checked_add(1)?;
        tables.bytes += bytes;
        let object = Arc::new(StoredObject {
            handle,
            name,
            bytes,
            image_bytes,
            index,
            round: self.round.load(Ordering::Acquire),
            charged: Mutex::new(charged),
        });
        tables.by_name.insert(name, Arc::clone(&object));
        tables.by_handle.insert(handle, Arc::clone(&object));
        Some(object)
    }

    /// Counts an object that was found against its tenant's quota, whose limit it may exceed: it's there already.
    pub fn charge(&self, object: &StoredObject) {
        let (Some(ledger), Some(index)) = (&self.ledger, &object.index) else {
            return;
        };
        let Some(info) = index.info() else { return };
        let tenant = &info.identity.tenant;
        if ledger
            .reserve(tenant, &index.namespace, object.image_bytes)
            .is_ok()
        {
            *object.charged.lock() = Some(tenant.clone());
        }
    }

    /// Forgets objects together with their blocks, and returns how many blocks went. With `doom` their bytes count until
    /// they are deleted.
    pub fn forget(&self, objects: &[Arc<StoredObject>], doom: bool) -> u64 {
        let mut by_namespace: HashMap<_, (Arc<NamespaceIndex>, HashSet<u32>)> = HashMap::new();
        for object in objects {
            if let Some(index) = &object.index {
                let entry = by_namespace.entry(index.namespace);
                let (_, handles) = entry.or_insert_with(|| (Arc::clone(index), HashSet::new()));
                handles.insert(object.handle);
            }
        }
        let dropped = by_namespace
            .values()
            .map(|(index, handles)| index.drop_objects(handles))
            .sum();
        let mut tables = self.tables.write();
        for object in objects {
            if tables.by_name.remove(&object.name).is_none() {
                continue;
            }
            tables.by_handle.remove(&object.handle);
            tables.bytes -= object.bytes;
            if doom && tables.doomed.insert(object.name, object.bytes).is_none() {
                tables.doomed_bytes += object.bytes;
            }
            if let (Some(tenant), Some(ledger), Some(index)) =
                (object.charged.lock().take(), &self.ledger, &object.index)
            {
                ledger.release(&tenant, &index.namespace, object.image_bytes);
            }
        }
        dropped
    }

    /// An object is deleted.
    pub fn deleted(&self, name: &ObjectName) {
        let mut tables = self.tables.write();
        if let Some(bytes) = tables.doomed.remove(name) {
            tables.doomed_bytes -= bytes;
        }
    }

    /// Objects still to be deleted.
    pub fn doomed(&self) -> Vec<ObjectName> {
        self.tables.read().doomed.keys().copied().collect()
    }

    /// The oldest objects that together have at least so many bytes.
    pub fn oldest(&self, bytes: u64) -> Vec<Arc<StoredObject>> {
        let tables = self.tables.read();
        let mut sum = 0;
        let mut oldest = Vec::new();
        for object in tables.by_name.values() {
            if sum >= bytes {
                break;
            }
            sum += object.bytes;
            oldest.push(Arc::clone(object));
        }
        oldest
    }

    /// The newest object.
    pub fn newest(&self) -> Option<Arc<StoredObject>> {
        self.tables.read().by_name.values().next_back().cloned()
    }

    /// Those for which `choose` says yes.
    pub fn filtered(&self, choose: impl Fn(&StoredObject) -> bool) -> Vec<Arc<StoredObject>> {
        let tables = self.tables.read();
        tables
            .by_name
            .values()
            .filter(|object| choose(object))
            .cloned()
            .collect()
    }
}
