//! Tenants: what each uses, and which of its objects may go.

use std::collections::{BTreeMap, HashMap};

use kvstored_core::quota::QuotaSettings;
use kvstored_core::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
pub(super) struct Tenant {
    pub name: Box<str>,
    /// Bytes of replicas, until their nodes have confirmed that they are free.
    pub used_bytes: u64,
    /// Those of `used_bytes` that wait for the confirmation.
    pub quarantined_bytes: u64,
    pub objects: u64,
    /// Objects that may be evicted, the least recently used first: their numbers by their stamps.
    pub evictable: BTreeMap<u64, u32>,
    /// Soft-pinned ones that aren't leased, likewise.
    pub pinned: BTreeMap<u64, u32>,
    pub quota: Option<u64>,
}

/// All tenants; they are never forgotten, and their number is bounded.
#[derive(Debug)]
pub(super) struct Tenants {
    all: Vec<Tenant>,
    by_name: HashMap<Box<str>, u32>,
    quotas: QuotaSettings,
    most: usize,
}

impl Tenants {
    pub fn new(quotas: QuotaSettings, most: usize) -> Self {
        Self {
            all: Vec::new(),
            by_name: HashMap::new(),
            quotas,
            most,
        }
    }

    pub fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The tenant's number. Fails with `QuotaExceeded` when there are too many.
    pub fn number(&mut self, name: &str) -> Result<u32> {
        if let Some(number) = self.find(name) {
            return Ok(number);
        }
        // the default tenant always has a place
        if self.all.len() >= self.most && !name.is_empty() {
            let message = format!("there are {} tenants already", self.most);
            return Err(Error::new(ErrorKind::QuotaExceeded, message));
        }
        let number = self.all.len() as u32;
        let own = self.quotas.tenants.get(name).copied();
        self.all.push(Tenant {
            name: name.into(),
            quota: own.or(self.quotas.default_tenant_bytes),
            ..Tenant::default()
        });
        self.by_name.insert(name.into(), number);
        Ok(number)
    }

    pub fn get(&self, number: u32) -> Option<&Tenant> {
        self.all.get(number as usize)
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut Tenant> {
        self.all.get_mut(number as usize)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Tenant)> {
        self.all
            .iter()
            .enumerate()
            .map(|(number, tenant)| (number as u32, tenant))
    }

    pub fn charge(&mut self, number: u32, bytes: u64) {
        if let Some(tenant) = self.get_mut(number) {
            tenant.used_bytes += bytes;
        }
    }

    pub fn quarantine(&mut self, number: u32, bytes: u64) {
        if let Some(tenant) = self.get_mut(number) {
            tenant.quarantined_bytes += bytes;
        }
    }

    /// Ranges that waited for it are free.
    pub fn confirm(&mut self, number: u32, bytes: u64) {
        if let Some(tenant) = self.get_mut(number) {
            tenant.quarantined_bytes = tenant.quarantined_bytes.saturating_sub(bytes);
        }
        self.discharge(number, bytes);
    }

    pub fn discharge(&mut self, number: u32, bytes: u64) {
        if let Some(tenant) = self.get_mut(number) {
            tenant.used_bytes = tenant.used_bytes.saturating_sub(bytes);
        }
    }
}
