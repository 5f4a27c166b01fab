//! A bucket that doesn't answer, or answers late.

use std::time::Duration;

use kvstored_core::{ErrorKind, Tier};
use kvstored_object::S3Settings;

use crate::faulty::{Fault, Faulty, Request};
use crate::support::{
    assert_readable, eventually, found, namespace, open, open_with, read, settings, write, write_some,
};

#[test]
fn an_outage_turns_everything_into_misses_and_heals() {
    for fault in [Fault::Error, Fault::Hang] {
        let store = Faulty::new();
        let tier = open_with(
            &store,
            S3Settings {
                read_timeout: Duration::from_secs(1),
                ..settings()
            },
        );
        let info = namespace(&*tier);
        write(&*tier, &info, 0..4);
        store.always(Some(fault));
        eventually("the tier is degraded", || {
            for result in read(&*tier, &info, 0..4) {
                let kind = result.unwrap_err().kind();
                assert!(
                    matches!(
                        kind,
                        ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::NotFound
                    ),
                    "{kind}"
                );
            }
            tier.statistics().degraded
        });
        assert!(!tier.statistics().degraded_reason.is_empty());
        // nothing is tried now, and nothing is promised
        assert_eq!(found(&*tier, &info, 0..4), 0);
        assert_eq!(tier.lookup_on_prefix(&info, &[crate::support::hash(0)]), 0);
        assert!(read(&*tier, &info, 0..4).iter().all(Result::is_err));
        assert!(write_some(&*tier, &info, 100..104).iter().all(Result::is_err));
        store.always(None);
        eventually("the tier heals", || !tier.statistics().degraded);
        assert_eq!(found(&*tier, &info, 0..4), 4);
        assert_readable(&*tier, &info, 0..4);
        write(&*tier, &info, 200..204);
    }
}

#[test]
fn a_bucket_that_comes_up_later_is_found() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..4);
    tier.shutdown();
    store.always(Some(Fault::Error));
    let tier = open(&store);
    let info = namespace(&*tier);
    eventually("the tier is degraded", || tier.statistics().degraded);
    store.always(None);
    eventually("the blocks are found", || found(&*tier, &info, 0..4) == 4);
    assert_readable(&*tier, &info, 0..4);
}

#[test]
fn a_late_answer_is_asked_for_twice_but_not_always() {
    let store = Faulty::new();
    let tier = open_with(
        &store,
        S3Settings {
            hedge_percent: 50,
            read_timeout: Duration::from_secs(20),
            ..settings()
        },
    );
    let info = namespace(&*tier);
    write(&*tier, &info, 0..1);
    // the budget is earned by requests that needed no second one
    for _ in 0..40 {
        assert_readable(&*tier, &info, 0..1);
    }
    let before = tier.hedged_reads();
    store.plan(Request::Get, Fault::Hang);
    assert_readable(&*tier, &info, 0..1);
    assert!(tier.hedged_reads() > before);
}

#[test]
fn a_store_that_fails_now_and_then_loses_nothing() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    for number in 0..12 {
        store.plan(
            Request::Get,
            if number % 2 == 0 { Fault::Error } else { Fault::Cut },
        );
        write(&*tier, &info, number..number + 1);
        assert_readable(&*tier, &info, number..number + 1);
    }
    assert_eq!(found(&*tier, &info, 0..12), 12);
}

#[test]
fn a_late_answer_that_comes_in_time_is_an_answer() {
    let store = Faulty::new();
    let tier = open_with(
        &store,
        S3Settings {
            hedge_percent: 0,
            read_timeout: Duration::from_secs(20),
            ..settings()
        },
    );
    let info = namespace(&*tier);
    store.plan(Request::Put, Fault::Late(Duration::from_millis(60)));
    write(&*tier, &info, 0..3);
    store.plan(Request::Get, Fault::Late(Duration::from_millis(60)));
    assert_readable(&*tier, &info, 0..3);
    assert_eq!(tier.hedged_reads(), 0);
}

#[test]
fn a_bucket_that_only_gives_is_read_and_heals_when_it_takes() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..4);
    store.always_for(Request::Put, Fault::Error);
    let mut next = 100;
    eventually("dumps are refused", || {
        next += 1;
        assert!(write_some(&*tier, &info, next..next + 1)[0].is_err());
        tier.statistics().degraded
    });
    // loads go on all the while
    for _ in 0..20 {
        assert_readable(&*tier, &info, 0..4);
    }
    assert!(tier.statistics().degraded_reason.contains("Slow Down"));
    store.always(None);
    eventually("a trial succeeds", || {
        next += 1;
        write_some(&*tier, &info, next..next + 1)[0].is_ok()
    });
    assert!(!tier.statistics().degraded);
}

#[test]
fn a_bucket_that_lists_and_does_not_give_stays_degraded() {
    let store = Faulty::new();
    let tier = open(&store);
    let info = namespace(&*tier);
    write(&*tier, &info, 0..4);
    store.always_for(Request::Get, Fault::Error);
    eventually("the tier is degraded", || {
        assert!(read(&*tier, &info, 0..4).iter().all(Result::is_err));
        tier.statistics().degraded
    });
    let (_sender, never) = std::sync::mpsc::channel::<()>();
    for _ in 0..30 {
        assert_eq!(found(&*tier, &info, 0..4), 0, "healed by a listing alone");
        let _ = never.recv_timeout(Duration::from_millis(10));
    }
    store.always(None);
    eventually("the tier heals", || found(&*tier, &info, 0..4) == 4);
    assert_readable(&*tier, &info, 0..4);
}
