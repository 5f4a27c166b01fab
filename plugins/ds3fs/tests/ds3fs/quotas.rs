//! Quotas of tenants hold over restarts, and for blocks that the tier evicts.

use std::ops::Range;
use std::sync::Arc;

use kvstored_core::quota::{QuotaLedger, QuotaSettings};
use kvstored_core::{Action, Durability, ErrorKind, NamespaceInfo, Runtime, Tier};

use crate::same_format::{hash, image, namespace, one};
use crate::support::{Mounted, PATIENCE, Plugins, settings, slot};

/// A ledger where the tenant of [`namespace`] may have that many blocks.
fn ledger(blocks: u64) -> Arc<QuotaLedger> {
    let mut settings = QuotaSettings::default();
    let bytes = blocks * namespace("").layout.image_bytes() as u64;
    settings.tenants.insert("tests".into(), bytes);
    Arc::new(QuotaLedger::new(settings))
}

fn charged(ledger: &QuotaLedger) -> u64 {
    let usage = ledger.tenant_usage();
    let of_tenant = usage.iter().find(|usage| usage.name == "tests").unwrap();
    of_tenant.used_bytes / namespace("").layout.image_bytes() as u64
}

/// How many of those blocks were taken; the others were over the quota.
fn write_some(tier: &dyn Tier, namespace: &Arc<NamespaceInfo>, numbers: Range<u64>) -> usize {
    let taken = numbers.filter(|number| {
        let buffer = slot(namespace.layout.image_bytes());
        image(namespace, *number, &buffer);
        let write = Action::Write(Durability::Tier);
        match one(tier, namespace, *number, write, buffer).1 {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
                false
            }
        }
    });
    taken.count()
}

#[test]
fn a_quota_holds_over_restarts_for_namespaces_that_nobody_opens() {
    let mount = Mounted::new();
    let plugins = Plugins::new();
    let settings = settings(&mount.path().join("blocks"));
    let (before, after) = (namespace("before"), namespace("after"));
    let quotas = ledger(10);
    let tier = plugins
        .open_within(&settings, PATIENCE, Some(quotas.clone()))
        .unwrap();
    assert_eq!(write_some(&*tier, &before, 0..30), 10);
    assert_eq!(tier.statistics().refused_writes, 20);
    assert_eq!(tier.remove(&before, &[hash(0), hash(1)]), 2);
    assert_eq!(charged(&quotas), 8);
    tier.drain(Runtime::system().deadline(PATIENCE)).unwrap();
    tier.shutdown();
    let quotas = ledger(10);
    let tier = plugins
        .open_within(&settings, PATIENCE, Some(quotas.clone()))
        .unwrap();
    assert_eq!(tier.stored_namespace(&before.namespace).unwrap(), before);
    assert_eq!(charged(&quotas), 8);
    assert_eq!(write_some(&*tier, &after, 0..5), 2);
    assert_eq!(tier.purge(&before.namespace).unwrap(), 8);
    assert_eq!(charged(&quotas), 2);
    assert_eq!(write_some(&*tier, &after, 10..30), 8);
    tier.shutdown();
}

#[test]
fn what_the_tier_evicts_is_given_back() {
    let mount = Mounted::new();
    // more than fits, in a tier of 16 MiB
    let quotas = ledger(2_000);
    let tier = Plugins::new()
        .open_within(
            &settings(&mount.path().join("blocks")),
            PATIENCE,
            Some(quotas.clone()),
        )
        .unwrap();
    let namespace = namespace("evicted");
    tier.open_namespace(&namespace).unwrap();
    let runtime = Runtime::system();
    let deadline = runtime.deadline(PATIENCE);
    let mut number = 0;
    while tier.statistics().evicted_blocks == 0 {
        assert!(runtime.clock.now() < deadline, "nothing is evicted");
        let buffer = slot(namespace.layout.image_bytes());
        image(&namespace, number, &buffer);
        // may be refused while the tier makes room
        let _ = one(
            &*tier,
            &namespace,
            number,
            Action::Write(Durability::Tier),
            buffer,
        );
        number += 1;
    }
    tier.drain(deadline).unwrap();
    while charged(&quotas) != tier.statistics().blocks {
        assert!(runtime.clock.now() < deadline, "{:?}", tier.statistics());
    }
    assert!(charged(&quotas) < number);
    tier.shutdown();
}
