//! What goes when room is needed.

use kvstored_core::ErrorKind;

use super::super::State;
use super::super::ranges::GRANULE;
use super::{id, is_there, key, pool, put, try_put};
use crate::settings::MasterSettings;
use crate::types::*;

#[test]
fn the_least_recently_used_goes_first_and_never_a_leased_one() {
    let settings = MasterSettings {
        eviction_high_watermark_ratio: 0.5,
        eviction_ratio: 0.1,
        ..MasterSettings::default()
    };
    let (mut state, now) = pool(settings, 1, 100 * GRANULE);
    for number in 0..50 {
        put(&mut state, &format!("{number}"), GRANULE, now);
    }
    state.get(&key("0"), now).unwrap();
    let after = now + state.settings.lease / 2;
    put(&mut state, "50", GRANULE, after);
    // 11 go: down to a tenth below the watermark
    assert!(is_there(&mut state, "0", after), "leased");
    for number in 1..=11 {
        assert!(!is_there(&mut state, &format!("{number}"), after), "{number}");
    }
    for number in 12..=50 {
        assert!(is_there(&mut state, &format!("{number}"), after), "{number}");
    }
    assert_eq!(state.counters().evicted_bytes, 11 * GRANULE);
}

#[test]
fn soft_pinned_objects_go_last_and_only_if_allowed() {
    for allowed in [true, false] {
        let settings = MasterSettings {
            eviction_high_watermark_ratio: 1.0,
            eviction_ratio: 0.0,
            allow_evict_soft_pinned: allowed,
            ..MasterSettings::default()
        };
        let (mut state, now) = pool(settings, 1, 2 * GRANULE);
        let pinned = PutOptions {
            soft_pin: true,
            ..PutOptions::default()
        };
        try_put(&mut state, "pinned", GRANULE, &pinned, now).unwrap();
        put(&mut state, "plain", GRANULE, now);
        assert!(try_put(&mut state, "c", GRANULE, &pinned, now).is_err());
        assert!(is_there(&mut state, "pinned", now) && !is_there(&mut state, "plain", now));
        let orders = state.orders(&id(1), 100, now).release;
        state.heartbeat(&id(1), 100, &orders, now);
        try_put(&mut state, "c", GRANULE, &pinned, now).unwrap();
        assert!(try_put(&mut state, "d", GRANULE, &pinned, now).is_err());
        assert_eq!(is_there(&mut state, "pinned", now), !allowed);
        // a pin that ran out pins no more
        let later = now + state.settings.soft_pin;
        state.heartbeat(&id(1), 100, &[], later);
        assert!(try_put(&mut state, "e", 2 * GRANULE, &pinned, later).is_err());
        assert!(!is_there(&mut state, "c", later));
    }
}

#[test]
fn a_tenant_stays_below_its_quota_by_its_own_objects() {
    let mut settings = MasterSettings {
        eviction_ratio: 0.0,
        ..MasterSettings::default()
    };
    settings.quotas.tenants.insert("t".to_owned(), 2 * GRANULE);
    let (mut state, now) = pool(settings, 1, 1 << 20);
    put(&mut state, "other", GRANULE, now);
    let try_tenant = |state: &mut State, name: &str, length: u64| {
        let key = whole_key("t", name.as_bytes()).unwrap();
        let ticket = state.start_put(&NewObject { key: &key, length }, 1, &PutOptions::default(), now)?;
        let finished = Finished {
            key: &key,
            put: ticket.put,
            checksum: 0,
            nodes: &[id(1)],
            master_epoch: 100,
        };
        state.end_put(&finished, now)
    };
    try_tenant(&mut state, "a", GRANULE).unwrap();
    try_tenant(&mut state, "b", GRANULE).unwrap();
    let refused = try_tenant(&mut state, "c", 1).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
    let orders = state.orders(&id(1), 100, now).release;
    assert_eq!(orders.len(), 1, "one object of the tenant's own goes");
    state.heartbeat(&id(1), 100, &orders, now);
    try_tenant(&mut state, "c", 1).unwrap();
    assert_eq!(
        try_tenant(&mut state, "d", 3 * GRANULE).unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    assert!(is_there(&mut state, "other", now));
}
