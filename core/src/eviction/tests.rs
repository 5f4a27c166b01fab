use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

mod traces;

/// A policy whose invariants can be checked.
trait Checked: EvictionPolicy {
    fn check_invariants(&self);
}

macro_rules! checked {
    ($($policy:ty),*) => {
        $(impl Checked for $policy {
            fn check_invariants(&self) {
                self.check();
            }
        })*
    };
}

checked!(AdaptiveReplacement, Lru, Fifo, S3Fifo);

fn all_policies() -> Vec<Box<dyn Checked>> {
    vec![
        Box::new(AdaptiveReplacement::new()),
        Box::new(Lru::new()),
        Box::new(Fifo::new()),
        Box::new(S3Fifo::new()),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u32, u64),
    Hit(u32),
    Refresh(u32),
    Remove(u32),
    Evict { pinned_one_in: u32 },
    SetCapacity(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u32..40, 0u64..80).prop_map(|(slot, fingerprint)| Step::Insert(slot, fingerprint)),
        6 => (0u32..50).prop_map(Step::Hit),
        3 => (0u32..50).prop_map(Step::Refresh),
        2 => (0u32..50).prop_map(Step::Remove),
        6 => (1u32..5).prop_map(|pinned_one_in| Step::Evict { pinned_one_in }),
        1 => (0usize..60).prop_map(Step::SetCapacity),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn policies_keep_track_of_resident_slots(steps in prop::collection::vec(any_step(), 0..400)) {
        for mut policy in all_policies() {
            let mut resident = HashSet::new();
            for step in &steps {
                match *step {
                    Step::Insert(slot, fingerprint) => {
                        policy.insert(slot, fingerprint);
                        resident.insert(slot);
                    }
                    Step::Hit(slot) => policy.hit(slot),
                    Step::Refresh(slot) => policy.refresh(slot),
                    Step::Remove(slot) => {
                        policy.remove(slot);
                        resident.remove(&slot);
                    }
                    Step::Evict { pinned_one_in } => {
                        let mut evictable = |slot: u32| !slot.is_multiple_of(pinned_one_in);
                        match policy.evict(&mut evictable) {
                            Some(victim) => {
                                prop_assert!(evictable(victim));
                                prop_assert!(resident.remove(&victim), "slot {victim} isn't resident");
                            }
                            None => prop_assert!(!resident.iter().any(|slot| evictable(*slot))),
                        }
                    }
                    Step::SetCapacity(blocks) => policy.set_capacity(blocks),
                }
                prop_assert_eq!(policy.len(), resident.len());
                prop_assert_eq!(policy.is_empty(), resident.is_empty());
                policy.check_invariants();
                prop_assert!(policy.memory_bytes() <= policy.most_bytes(60));
            }
        }
    }
}

#[test]
fn a_block_that_moves_on_while_it_is_looked_for_is_found() {
    for mut policy in all_policies() {
        policy.set_capacity(20);
        policy.insert(1, 0);
        policy.insert(5, 0);
        policy.hit(5);
        assert_eq!(policy.evict(&mut |_| true), Some(1));
        policy.hit(5);
        assert_eq!(policy.evict(&mut |_| true), Some(5));
    }
}

#[test]
fn pinned_slots_are_passed_over_and_keep_their_places() {
    for mut policy in all_policies() {
        (0..10).for_each(|slot| policy.insert(slot, u64::from(slot)));
        assert_eq!(policy.evict(&mut |slot| slot >= 3), Some(3));
        assert_eq!(policy.evict(&mut |_| false), None);
        assert_eq!(policy.evict(&mut |_| true), Some(0));
        assert_eq!(policy.evict(&mut |_| true), Some(1));
        assert_eq!(policy.len(), 7);
    }
}

#[test]
fn a_search_past_pinned_slots_is_bounded() {
    for mut policy in all_policies() {
        (0..2_000).for_each(|slot| policy.insert(slot, u64::from(slot)));
        let mut probes = 0;
        let victim = policy.evict(&mut |slot| {
            probes += 1;
            slot == 1_999
        });
        assert_eq!(victim, None);
        assert!(probes <= 2 * PROBES, "{probes}");
        assert_eq!(policy.len(), 2_000);
    }
}

#[test]
fn a_refresh_warms_without_counting_as_a_use() {
    let mut policy = AdaptiveReplacement::new();
    policy.set_capacity(4);
    (0..3).for_each(|slot| policy.insert(slot, u64::from(slot)));
    policy.hit(2);
    policy.refresh(0);
    // 2 is used twice; 1 is now the coldest of those used once, then 0
    let order: Vec<_> = std::iter::from_fn(|| policy.evict(&mut |_| true)).collect();
    assert_eq!(order, [1, 0, 2]);
}

#[test]
fn a_block_that_comes_back_soon_is_kept_longer() {
    for kind in [PolicyKind::Arc, PolicyKind::S3Fifo] {
        let mut policy = kind.build();
        policy.set_capacity(10);
        (0..10).for_each(|slot| policy.insert(slot, u64::from(slot)));
        assert_eq!(policy.evict(&mut |_| true), Some(0));
        policy.insert(0, 0);
        // new blocks push one another out; the one with a ghost stays
        for fingerprint in 100..130 {
            let victim = policy.evict(&mut |_| true).unwrap();
            assert_ne!(victim, 0, "{}", kind.name());
            policy.insert(victim, fingerprint);
        }
    }
}

#[test]
fn shadows_follow_a_change_of_capacity() {
    let run: Vec<u64> = (0..100).collect();
    let mut shadows = ShadowCaches::new(0, 1);
    shadows.set_capacity(100);
    (0..2).for_each(|_| shadows.access_run(&run));
    assert!(
        shadows
            .results()
            .into_iter()
            .all(|(_, hits, lookups)| (hits, lookups) == (100, 200))
    );
    shadows.set_capacity(10);
    let memory = shadows.memory_bytes();
    (0..50).for_each(|round| shadows.access_run(&(round * 100..round * 100 + 100).collect::<Vec<_>>()));
    assert!(shadows.memory_bytes() <= memory);
    assert!(
        ShadowCaches::new(1000, 0)
            .results()
            .iter()
            .all(|(_, hits, lookups)| *hits + *lookups == 0)
    );
}

#[test]
fn memory_stays_within_what_it_may_take_at_most() {
    const SLOTS: u32 = 3_000;
    for mut policy in all_policies() {
        policy.set_capacity(SLOTS as usize);
        let mut shadows = ShadowCaches::new(SLOTS as usize, 1);
        let mut free: Vec<u32> = (0..SLOTS).collect();
        for fingerprint in 0..40_000_u64 {
            // some come back while their ghosts are there
            let fingerprint = if fingerprint % 3 == 0 {
                fingerprint / 2
            } else {
                fingerprint
            };
            let slot = free.pop().or_else(|| policy.evict(&mut |_| true)).unwrap();
            policy.insert(slot, fingerprint);
            if fingerprint % 5 == 0 {
                policy.hit(slot);
            }
            shadows.access_run(&[fingerprint]);
            assert!(policy.memory_bytes() <= policy.most_bytes(SLOTS as usize));
        }
        let most = ShadowCaches::new(1, 1).most_bytes(SLOTS as usize);
        assert!(
            shadows.memory_bytes() <= most + 4096,
            "{} of {most}",
            shadows.memory_bytes()
        );
    }
}

#[test]
fn policies_have_names_in_settings() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.name().parse::<PolicyKind>().unwrap(), kind);
        assert!(kind.build().is_empty());
    }
    assert!(
        "random"
            .parse::<PolicyKind>()
            .unwrap_err()
            .to_string()
            .contains("s3-fifo")
    );
}
