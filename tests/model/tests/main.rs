//! The rules hold at a bounded size, and leaving out any of them is noticed.

use std::collections::BTreeSet;

use kvstored_model::{
    KEEPS_ACKNOWLEDGED, KEEPS_LEASED, LeaseClock, ONE_OWNER, OWN_BYTES, PoolModel, Rules, Size,
    UNTOUCHED_AFTER_REUSE,
};
use stateright::{Checker, HasDiscoveries, Model};

const ONE_RANGE: Size = Size {
    objects: 2,
    nodes: 1,
    ranges_per_node: 1,
    readers: 1,
    last_tick: 3,
};

/// Explores every state, and expects every property to hold or to be seen.
fn holds(size: Size) {
    let rules = Rules::default();
    let checker = PoolModel { rules, size }.checker().threads(2).spawn_bfs().join();
    println!(
        "{size:?}: {} states, depth {}",
        checker.unique_state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

/// Expects a counterexample to the property, and prints it.
fn breaks(rules: Rules, property: &'static str) {
    let wanted = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = PoolModel {
        rules,
        size: ONE_RANGE,
    }
    .checker()
    .threads(2)
    .finish_when(wanted)
    .spawn_bfs()
    .join();
    let path = checker.assert_any_discovery(property);
    println!("{property}: broken after");
    for action in path.into_actions() {
        println!("    {action:?}");
    }
}

#[test]
fn all_rules_together_are_safe_in_one_range() {
    holds(ONE_RANGE);
}

#[test]
fn all_rules_together_are_safe_on_two_nodes() {
    holds(Size {
        nodes: 2,
        readers: 0,
        last_tick: 2,
        ..ONE_RANGE
    });
}

#[test]
fn without_epochs_a_late_reader_gets_another_object() {
    let rules = Rules {
        read_epochs: false,
        ..Rules::default()
    };
    breaks(rules, OWN_BYTES);
}

#[test]
fn without_epochs_a_late_writer_changes_a_reused_range() {
    let rules = Rules {
        write_epochs: false,
        ..Rules::default()
    };
    breaks(rules, UNTOUCHED_AFTER_REUSE);
    breaks(rules, ONE_OWNER);
}

#[test]
fn on_the_wall_clock_a_leased_object_goes() {
    let rules = Rules {
        lease_clock: LeaseClock::Wall,
        ..Rules::default()
    };
    breaks(rules, KEEPS_LEASED);
}

#[test]
fn without_fencing_an_old_master_destroys_what_the_new_one_keeps() {
    let rules = Rules {
        fencing: false,
        ..Rules::default()
    };
    breaks(rules, KEEPS_ACKNOWLEDGED);
}

#[test]
fn without_draining_a_write_under_way_lands_in_a_reused_range() {
    let rules = Rules {
        drain: false,
        ..Rules::default()
    };
    breaks(rules, UNTOUCHED_AFTER_REUSE);
    breaks(rules, OWN_BYTES);
}

#[test]
fn without_grace_a_new_master_breaks_its_predecessors_leases() {
    let rules = Rules {
        grace: false,
        ..Rules::default()
    };
    breaks(rules, KEEPS_LEASED);
}

#[test]
fn acknowledged_before_it_is_sealed_an_object_is_lost_with_its_master() {
    let rules = Rules {
        sealed_first: false,
        ..Rules::default()
    };
    breaks(rules, KEEPS_ACKNOWLEDGED);
}
