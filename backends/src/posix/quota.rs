//! Accounting of this process's own blocks with the quotas of tenants and namespaces.

use std::collections::HashMap;
use std::sync::Arc;

use kvstored_core::quota::QuotaLedger;
use kvstored_core::{Namespace, Result};
use parking_lot::Mutex;

use super::index::NamespaceIndex;

/// Quotas, if there are any.
#[derive(Default)]
pub struct Quotas {
    ledger: Option<Arc<QuotaLedger>>,
    /// Bytes found at the start that didn't fit a quota: there, but not charged.
    uncharged: Mutex<HashMap<Namespace, u64>>,
}

impl Quotas {
    /// Accounting with that ledger.
    pub fn new(ledger: Option<Arc<QuotaLedger>>) -> Self {
        Self {
            ledger,
            uncharged: Mutex::default(),
        }
    }

    /// The ledger, if there are quotas.
    pub fn ledger(&self) -> Option<&QuotaLedger> {
        self.ledger.as_deref()
    }

    /// Takes a block's bytes before they are accepted. Fails with `QuotaExceeded`.
    pub fn reserve(&self, index: &NamespaceIndex, bytes: u64) -> Result<()> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        ledger.reserve(&tenant(index), &index.shape.namespace, bytes)
    }

    /// Counts blocks that are there already, whatever the quota says.
    pub fn adopt(&self, index: &NamespaceIndex, bytes: u64) {
        if self.ledger.is_some() && (index.info().is_none() || self.reserve(index, bytes).is_err()) {
            *self.uncharged.lock().entry(index.shape.namespace).or_default() += bytes;
        }
    }

    /// Gives bytes back.
    pub fn release(&self, index: &NamespaceIndex, bytes: u64) {
        let Some(ledger) = &self.ledger else { return };
        let charged = {
            let mut uncharged = self.uncharged.lock();
            let free = uncharged.get_mut(&index.shape.namespace);
            free.map_or(bytes, |free| {
                let part = bytes.min(*free);
                *free -= part;
                bytes - part
            })
        };
        if charged > 0 {
            ledger.release(&tenant(index), &index.shape.namespace, charged);
        }
    }
}

fn tenant(index: &NamespaceIndex) -> String {
    index
        .info()
        .map(|info| info.identity.tenant.clone())
        .unwrap_or_default()
}
