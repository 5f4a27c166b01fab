//! The bound of the bytes below the prefix, and quotas.

use std::collections::HashMap;
use std::sync::Arc;

use kvstored_core::quota::{QuotaLedger, QuotaSettings};
use kvstored_core::{ErrorKind, Runtime, Tier};
use kvstored_object::{S3Settings, S3Tier};
use object_store::ObjectStore;

use crate::faulty::{Fault, Faulty, Request};
use crate::support::{assert_readable, eventually, found, namespace, open_with, settings, write, write_some};

fn small() -> S3Settings {
    S3Settings {
        capacity_bytes: 1 << 20,
        ..settings()
    }
}

#[test]
fn the_oldest_objects_make_room_and_the_bound_holds() {
    let store = Faulty::new();
    let tier = open_with(&store, small());
    let info = namespace(&*tier);
    // three times what fits
    for first in (0..150).step_by(5) {
        write(&*tier, &info, first..first + 5);
        assert!(store.object_bytes() <= 1 << 20);
        assert!(tier.statistics().allocated_bytes <= 1 << 20);
    }
    let statistics = tier.statistics();
    assert!(statistics.evicted_blocks >= 100, "{statistics:?}");
    assert_eq!(found(&*tier, &info, 0..50), 0);
    assert_readable(&*tier, &info, 140..150);
}

#[test]
fn two_writers_share_the_bound_and_evict_each_others_objects() {
    let store = Faulty::new();
    let tiers = [open_with(&store, small()), open_with(&store, small())];
    let infos = [namespace(&*tiers[0]), namespace(&*tiers[1])];
    write(&*tiers[0], &infos[0], 0..30);
    eventually("the other one knows", || {
        found(&*tiers[1], &infos[1], 0..30) == 30
    });
    for first in (100..200).step_by(5) {
        write(&*tiers[1], &infos[1], first..first + 5);
        assert!(store.object_bytes() <= 1 << 20);
    }
    assert_eq!(found(&*tiers[1], &infos[1], 0..20), 0);
    eventually("the first one hears of it", || {
        found(&*tiers[0], &infos[0], 0..20) == 0
    });
    eventually("and of the new ones", || {
        found(&*tiers[0], &infos[0], 195..200) == 5
    });
    assert_readable(&*tiers[0], &infos[0], 195..200);
}

#[test]
fn an_object_that_cannot_be_deleted_still_counts() {
    let store = Faulty::new();
    let tier = open_with(&store, small());
    let info = namespace(&*tier);
    for first in (0..40).step_by(5) {
        write(&*tier, &info, first..first + 5);
    }
    for _ in 0..200 {
        store.plan(Request::Delete, Fault::Error);
    }
    let mut refused = 0;
    for first in (40..100).step_by(5) {
        refused += write_some(&*tier, &info, first..first + 5)
            .iter()
            .filter(|result| result.is_err())
            .count();
        assert!(store.object_bytes() <= 1 << 20);
    }
    assert!(refused > 0, "room was found without deleting anything");
    assert!(tier.statistics().refused_writes > 0);
}

#[test]
fn a_tenants_quota_holds_and_is_given_back() {
    let store = Faulty::new();
    let quotas = QuotaSettings {
        tenants: HashMap::from([("tenant".to_owned(), 200_000)]),
        ..QuotaSettings::default()
    };
    let ledger = Arc::new(QuotaLedger::new(quotas));
    let dynamic: Arc<dyn ObjectStore> = store.clone();
    let tier = S3Tier::start(settings(), dynamic, Runtime::system(), Some(ledger.clone())).unwrap();
    let info = namespace(&*tier);
    let results = write_some(&*tier, &info, 0..12);
    let stored = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(stored, 200_000 / info.layout.image_bytes());
    for result in results.into_iter().filter_map(Result::err) {
        assert_eq!(result.kind(), ErrorKind::QuotaExceeded);
    }
    tier.purge(&info.namespace).unwrap();
    assert_eq!(ledger.tenant_usage()[0].used_bytes, 0);
    write(&*tier, &info, 100..104);
    assert_eq!(
        ledger.tenant_usage()[0].used_bytes,
        4 * info.layout.image_bytes() as u64
    );
}
