//! Which instance takes a leg: the one where the request costs least.
//!
//! Costs are prompt tokens. A prefill costs the tokens that the instance has to compute before this prompt is done, its own
//! less what the instance has in its prefix cache; a decode costs the tokens the instance already keeps for others.

use std::sync::Arc;

use crate::instance::{Fitness, Instance};

/// What a request costs besides its tokens: scheduling and launching take as long as so many tokens' prefill.
const REQUEST_TOKENS: u64 = 512;
/// The share of held KV in a prefill's cost, in tenths: it takes room, but no time.
const HELD_TENTHS: u64 = 3;
/// Bytes of a prompt's text that make a token, about.
pub const BYTES_PER_TOKEN: usize = 4;

/// Instances that one request has been tried on.
#[derive(Debug, Default)]
pub struct Tried {
    instances: Vec<Arc<Instance>>,
}

impl Tried {
    /// Adds one.
    pub fn note(&mut self, instance: &Arc<Instance>) {
        self.instances.push(Arc::clone(instance));
    }

    fn times(&self, instance: &Arc<Instance>) -> usize {
        self.instances
            .iter()
            .filter(|tried| Arc::ptr_eq(tried, instance))
            .count()
    }
}

/// The cost of a prompt's prefill at an instance that has so many of its tokens cached.
pub fn prefill_cost(instance: &Instance, tokens: u64, cached: u64) -> u64 {
    let load = &instance.load;
    let queue = load.active_tokens() + load.requests() * REQUEST_TOKENS;
    let held = load.held_tokens() * HELD_TENTHS / 10;
    queue + held + tokens.saturating_sub(cached)
}

/// The cost of one more answer at an instance.
pub fn decode_cost(instance: &Instance) -> u64 {
    instance.load.active_tokens() + instance.load.requests() * REQUEST_TOKENS
}

/// The usable instance with the least cost: first among those this request wasn't tried on and that don't rest. Equal ones
/// take turns, counted by `turn`.
pub fn choose(
    instances: &[Arc<Instance>],
    tried: &Tried,
    turn: usize,
    cost: impl Fn(&Instance) -> u64,
) -> Option<Arc<Instance>> {
    let first = turn.checked_rem(instances.len())?;
    let (before, after) = instances.split_at(first);
    after
        .iter()
        .chain(before)
        .filter_map(|instance| match instance.condition.fitness() {
            Fitness::Unusable => None,
            fitness => Some(((tried.times(instance), fitness, cost(instance)), instance)),
        })
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, instance)| Arc::clone(instance))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::address::Address;
    use crate::affinity::{History, PrefixChain, PrefixSource};
    use crate::instance::{Active, Held, Phase, Role};
    use crate::metrics::Metrics;

    fn fleet(count: u16) -> Vec<Arc<Instance>> {
        let metrics = Metrics::new();
        (1..=count)
            .map(|port| {
                let address = Address::new("10.0.0.1", port).unwrap();
                let times = metrics.times(Role::Prefill, &address.to_string());
                Arc::new(Instance::new(
                    Role::Prefill,
                    address,
                    Phase::Active,
                    u32::from(port),
                    Duration::from_secs(1),
                    times,
                ))
            })
            .collect()
    }

    fn port(chosen: Option<Arc<Instance>>) -> u16 {
        chosen.unwrap().address.port()
    }

    #[test]
    fn the_least_loaded_is_taken_and_equals_take_turns() {
        let fleet = fleet(3);
        let pick = |turn| port(choose(&fleet, &Tried::default(), turn, decode_cost));
        assert_eq!([pick(0), pick(1), pick(2), pick(3)], [1, 2, 3, 1]);
        let work = Active::new(Arc::clone(&fleet[0]), 10);
        assert_eq!([pick(0), pick(1), pick(2)], [2, 2, 3]);
        let _more = [
            Active::new(Arc::clone(&fleet[1]), 5000),
            Active::new(Arc::clone(&fleet[2]), 4000),
        ];
        assert_eq!(pick(0), 1);
        drop(work);
        assert_eq!(fleet[0].load.requests(), 0);
        assert_eq!(fleet[0].load.active_tokens(), 0);
    }

    #[test]
    fn held_kv_counts_against_a_prefill() {
        let fleet = fleet(2);
        let held = Held::new(Arc::clone(&fleet[0]), 1000);
        let cost = |instance: &Instance| prefill_cost(instance, 100, 0);
        assert_eq!(port(choose(&fleet, &Tried::default(), 0, cost)), 2);
        assert_eq!(cost(&fleet[0]), 400);
        assert!(!fleet[0].is_idle());
        drop(held);
        assert!(fleet[0].is_idle());
        assert_eq!(cost(&fleet[0]), 100);
    }

    #[test]
    fn a_computed_beginning_attracts_until_the_load_outweighs_it() {
        let fleet = fleet(2);
        let history = History::new(1000);
        let chain = PrefixChain::new(&[], &vec![b'a'; 40_000]);
        history.computed(&chain, fleet[1].cache_id());
        let matches = history.matches(&chain);
        let pick = || {
            port(choose(&fleet, &Tried::default(), 0, |instance| {
                prefill_cost(instance, 10_000, matches.tokens(instance.cache_id()))
            }))
        };
        assert_eq!(pick(), 2);
        let _some = Active::new(Arc::clone(&fleet[1]), 5000);
        assert_eq!(pick(), 2);
        let _much = Active::new(Arc::clone(&fleet[1]), 5000);
        assert_eq!(pick(), 1);
        fleet[1].set_cache_id(99);
        assert_eq!(
            prefill_cost(&fleet[1], 10_000, matches.tokens(fleet[1].cache_id())),
            10_000 + 10_000 + 2 * REQUEST_TOKENS,
            "a restarted instance has nothing cached"
        );
    }

    #[test]
    fn what_was_tried_rests_or_is_down_comes_last_or_never() {
        let fleet = fleet(3);
        let mut tried = Tried::default();
        tried.note(&fleet[0]);
        for _ in 0..3 {
            fleet[1].condition.failed();
        }
        let pick = |tried: &Tried| choose(&fleet, tried, 0, decode_cost).map(|chosen| chosen.address.port());
        assert_eq!(pick(&tried), Some(3));
        fleet[2].condition.set_reachable(false);
        assert_eq!(pick(&tried), Some(2), "resting, but not tried");
        fleet[1].condition.set_phase(Phase::Draining);
        assert_eq!(pick(&tried), Some(1), "tried is better than nothing");
        fleet[0].condition.set_phase(Phase::Leaving);
        assert_eq!(pick(&tried), None);
        assert!(choose(&[], &tried, 5, decode_cost).is_none());
    }
}
