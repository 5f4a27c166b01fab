//! Byte limits per tenant and per namespace.

use std::cmp::Reverse;
use std::collections::HashMap;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::block::Namespace;
use crate::error::{Error, ErrorKind, Result};

/// Tenants without a limit of their own that are told of: clients name them, so there may be any number.
const MOST_OTHERS: usize = 100;

/// Limits in bytes. Plain data; nothing is limited by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QuotaSettings {
    /// Limit of each named tenant.
    pub tenants: HashMap<String, u64>,
    /// Limit of every tenant that has none of its own.
    pub default_tenant_bytes: Option<u64>,
    /// Limit of single namespaces, by 64 hexadecimal digits.
    pub namespaces: HashMap<String, u64>,
}

impl QuotaSettings {
    /// Checks the names of namespaces. Fails with `InvalidInput`, naming the wrong one.
    pub fn validate(&self) -> Result<()> {
        for name in self.namespaces.keys() {
            Namespace::from_hex(name).map_err(|error| error.with("setting", "quota namespaces"))?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Usage {
    tenants: HashMap<String, u64>,
    namespaces: HashMap<Namespace, u64>,
}

/// Bytes in use per tenant and namespace, held against their limits.
pub struct QuotaLedger {
    tenant_limits: HashMap<String, u64>,
    default_tenant_limit: Option<u64>,
    namespace_limits: HashMap<Namespace, u64>,
    usage: Mutex<Usage>,
}

/// What a tenant or a namespace takes of a tier, and what it may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QuotaUsage {
    /// The tenant's name, or the namespace's digest.
    pub name: String,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Its limit, if it has one.
    pub limit_bytes: Option<u64>,
}

impl QuotaLedger {
    /// A ledger with nothing in use. Limits that [`QuotaSettings::validate`] refuses are logged and ignored.
    pub fn new(settings: QuotaSettings) -> Self {
        let mut namespace_limits = HashMap::new();
        for (name, limit) in &settings.namespaces {
            match Namespace::from_hex(name) {
                Ok(namespace) => drop(namespace_limits.insert(namespace, *limit)),
                Err(error) => tracing::warn!(%error, "quota of an unknown namespace is ignored"),
            }
        }
        Self {
            tenant_limits: settings.tenants,
            default_tenant_limit: settings.default_tenant_bytes,
            namespace_limits,
            usage: Mutex::default(),
        }
    }

    /// Charges bytes to a tenant and a namespace, or to neither.
    ///
    /// Fails with `QuotaExceeded`, naming whose limit it is, the limit and the usage.
    pub fn reserve(&self, tenant: &str, namespace: &Namespace, bytes: u64) -> Result<()> {
        let mut usage = self.usage.lock();
        let of_tenant = usage.tenants.get(tenant).copied().unwrap_or(0);
        let of_namespace = usage.namespaces.get(namespace).copied().unwrap_or(0);
        if let Some(limit) = self.tenant_limit(tenant) {
            within(of_tenant, bytes, limit, || format!("tenant \"{tenant}\""))?;
        }
        if let Some(limit) = self.namespace_limits.get(namespace) {
            within(of_namespace, bytes, *limit, || format!("namespace {namespace}"))?;
        }
        if bytes == 0 {
            return Ok(());
        }
        match usage.tenants.get_mut(tenant) {
            Some(used) => *used = of_tenant.saturating_add(bytes),
            None => drop(usage.tenants.insert(tenant.to_owned(), bytes)),
        }
        usage
            .namespaces
            .insert(*namespace, of_namespace.saturating_add(bytes));
        Ok(())
    }

    /// Gives bytes back that were reserved under the same names. What's in use never falls below zero.
    pub fn release(&self, tenant: &str, namespace: &Namespace, bytes: u64) {
        let mut usage = self.usage.lock();
        if let Some(of_tenant) = usage.tenants.get_mut(tenant) {
            *of_tenant = of_tenant.saturating_sub(bytes);
            if *of_tenant == 0 {
                usage.tenants.remove(tenant);
            }
        }
        if let Some(of_namespace) = usage.namespaces.get_mut(namespace) {
            *of_namespace = of_namespace.saturating_sub(bytes);
            if *of_namespace == 0 {
                usage.namespaces.remove(namespace);
            }
        }
    }

    /// Usage of the tenants that have a limit of their own and of those others that use most, in the order of their names.
    pub fn tenant_usage(&self) -> Vec<QuotaUsage> {
        let usage = self.usage.lock();
        let named = self.tenant_limits.keys().map(String::as_str);
        let mut others: Vec<(&str, u64)> = usage
            .tenants
            .iter()
            .filter(|(name, _)| !self.tenant_limits.contains_key(*name))
            .map(|(name, used)| (name.as_str(), *used))
            .collect();
        others.sort_unstable_by_key(|(name, used)| (Reverse(*used), *name));
        let others = others.into_iter().take(MOST_OTHERS).map(|(name, _)| name);
        let mut told: Vec<QuotaUsage> = named
            .chain(others)
            .map(|name| QuotaUsage {
                name: name.to_owned(),
                used_bytes: usage.tenants.get(name).copied().unwrap_or(0),
                limit_bytes: self.tenant_limit(name),
            })
            .collect();
        told.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        told
    }

    /// Usage of the namespaces that have a limit, in the order of their digests.
    pub fn namespace_usage(&self) -> Vec<QuotaUsage> {
        let usage = self.usage.lock();
        let mut told: Vec<QuotaUsage> = self
            .namespace_limits
            .iter()
            .map(|(namespace, limit)| QuotaUsage {
                name: namespace.to_string(),
                used_bytes: usage.namespaces.get(namespace).copied().unwrap_or(0),
                limit_bytes: Some(*limit),
            })
            .collect();
        told.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        told
    }

    fn tenant_limit(&self, tenant: &str) -> Option<u64> {
        self.tenant_limits
            .get(tenant)
            .copied()
            .or(self.default_tenant_limit)
    }
}

fn within(used: u64, bytes: u64, limit: u64, whose: impl Fn() -> String) -> Result<()> {
    if used.saturating_add(bytes) > limit {
        return Err(Error::new(
            ErrorKind::QuotaExceeded,
            format!("{} uses {used} of {limit} bytes; {bytes} more don't fit", whose()),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(name: &str, used_bytes: u64, limit_bytes: Option<u64>) -> QuotaUsage {
        QuotaUsage {
            name: name.into(),
            used_bytes,
            limit_bytes,
        }
    }

    #[test]
    fn of_many_tenants_those_are_told_that_use_most_and_those_that_are_named() {
        let settings = QuotaSettings {
            tenants: HashMap::from([("named".into(), 10)]),
            ..QuotaSettings::default()
        };
        let ledger = QuotaLedger::new(settings);
        let namespace = Namespace([1; 32]);
        for number in 0..2 * MOST_OTHERS as u64 {
            ledger
                .reserve(&format!("{number:04}"), &namespace, number + 1)
                .unwrap();
        }
        let told = ledger.tenant_usage();
        assert_eq!(told.len(), MOST_OTHERS + 1);
        assert_eq!(told[0], usage("0100", 101, None));
        assert_eq!(told[MOST_OTHERS], usage("named", 0, Some(10)));
    }

    #[test]
    fn both_limits_hold_and_a_refusal_charges_neither() {
        let (a, b) = (Namespace([1; 32]), Namespace([2; 32]));
        let mut settings = QuotaSettings {
            default_tenant_bytes: Some(100),
            ..QuotaSettings::default()
        };
        settings.namespaces.insert(a.to_string(), 30);
        let ledger = QuotaLedger::new(settings);
        ledger.reserve("x", &a, 30).unwrap();
        let error = ledger.reserve("x", &a, 1).unwrap_err();
        assert!(error.to_string().contains("uses 30 of 30"), "{error}");
        ledger.reserve("x", &b, 70).unwrap();
        assert!(
            ledger
                .reserve("x", &b, 1)
                .unwrap_err()
                .to_string()
                .contains("tenant \"x\"")
        );
        ledger.reserve("y", &b, 100).unwrap();
        ledger.release("x", &a, 30);
        ledger.reserve("x", &b, 30).unwrap();
        assert_eq!(
            ledger.tenant_usage(),
            [usage("x", 100, Some(100)), usage("y", 100, Some(100))]
        );
    }

    #[test]
    fn concurrent_charges_never_pass_the_limit() {
        let ledger = QuotaLedger::new(QuotaSettings {
            default_tenant_bytes: Some(1000),
            ..QuotaSettings::default()
        });
        let namespace = Namespace([1; 32]);
        let granted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..500)
                            .filter(|_| ledger.reserve("t", &namespace, 1).is_ok())
                            .count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted, 1000);
    }

    #[test]
    fn what_is_given_back_leaves_no_trace_and_limits_are_listed() {
        let namespace = Namespace([0xAB; 32]);
        let settings = QuotaSettings {
            tenants: HashMap::from([("named".into(), 10)]),
            default_tenant_bytes: None,
            namespaces: HashMap::from([(namespace.to_string().to_uppercase(), 5)]),
        };
        settings.validate().unwrap();
        let ledger = QuotaLedger::new(settings);
        assert!(ledger.reserve("other", &namespace, 6).is_err());
        ledger.reserve("other", &namespace, 4).unwrap();
        let name = namespace.to_string();
        assert_eq!(ledger.namespace_usage(), [usage(&name, 4, Some(5))]);
        ledger.release("other", &namespace, 9);
        assert_eq!(ledger.tenant_usage(), [usage("named", 0, Some(10))]);
        assert_eq!(ledger.namespace_usage(), [usage(&name, 0, Some(5))]);
    }

    #[test]
    fn huge_charges_are_refused_and_nothing_is_limited_by_default() {
        let namespace = Namespace([1; 32]);
        let free = QuotaLedger::new(QuotaSettings::default());
        free.reserve("t", &namespace, u64::MAX).unwrap();
        free.reserve("t", &namespace, u64::MAX).unwrap();
        let bounded = QuotaLedger::new(QuotaSettings {
            default_tenant_bytes: Some(10),
            ..QuotaSettings::default()
        });
        bounded.reserve("t", &namespace, 1).unwrap();
        let error = bounded.reserve("t", &namespace, u64::MAX).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
        assert_eq!(bounded.tenant_usage(), [usage("t", 1, Some(10))]);
    }

    #[test]
    fn a_malformed_namespace_is_refused_by_name() {
        let settings = QuotaSettings {
            namespaces: HashMap::from([("zz".into(), 1)]),
            ..QuotaSettings::default()
        };
        assert!(settings.validate().unwrap_err().to_string().contains("\"zz\""));
        QuotaLedger::new(settings)
            .reserve("t", &Namespace([0; 32]), 5)
            .unwrap();
    }
}
