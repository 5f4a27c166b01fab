//! Hit ratios on generated conversations.

use std::collections::HashMap;

use crate::eviction::{EvictionPolicy, PolicyKind, ShadowCaches};
use crate::runtime::{Random, SystemRandom};

/// A small cache of blocks around a policy, for traces.
struct Simulation {
    policy: Box<dyn EvictionPolicy>,
    capacity: usize,
    tail_first: bool,
    slots: HashMap<u64, u32>,
    fingerprints: HashMap<u32, u64>,
    hits: usize,
    lookups: usize,
}

impl Simulation {
    fn new(kind: PolicyKind, capacity: usize) -> Self {
        let mut policy = kind.build();
        policy.set_capacity(capacity);
        Self {
            policy,
            capacity,
            tail_first: true,
            slots: HashMap::new(),
            fingerprints: HashMap::new(),
            hits: 0,
            lookups: 0,
        }
    }

    fn run(mut self, trace: &[Vec<u64>]) -> Self {
        for run in trace {
            self.access(run);
        }
        self
    }

    fn hit_ratio(&self) -> f64 {
        self.hits as f64 / self.lookups as f64
    }

    fn access(&mut self, run: &[u64]) {
        let present = run
            .iter()
            .take_while(|block| self.slots.contains_key(*block))
            .count();
        self.hits += present;
        self.lookups += run.len();
        let mut prefix = run[..present].to_vec();
        let mut rest = run[present..].to_vec();
        if self.tail_first {
            prefix.reverse();
            rest.reverse();
        }
        for block in &prefix {
            self.policy.hit(self.slots[block]);
        }
        for block in rest {
            match self.slots.get(&block) {
                Some(slot) => self.policy.hit(*slot),
                None => self.insert(block),
            }
        }
        for slot in prefix.iter().filter_map(|block| self.slots.get(block)) {
            self.policy.refresh(*slot);
        }
        assert!(self.slots.len() <= self.capacity);
        assert_eq!(self.slots.len(), self.policy.len());
    }

    fn insert(&mut self, block: u64) {
        let slot = if self.slots.len() < self.capacity {
            self.slots.len() as u32
        } else {
            let victim = self.policy.evict(&mut |_| true).unwrap();
            self.slots.remove(&self.fingerprints[&victim]);
            victim
        };
        self.slots.insert(block, slot);
        self.fingerprints.insert(slot, block);
        self.policy.insert(slot, block);
    }
}

/// Conversations of several turns under one system prompt: each turn asks for all earlier blocks and some new ones.
/// `one_shot_percent` of the requests come once and never again.
fn conversations(requests: usize, one_shot_percent: u64, seed: u64) -> Vec<Vec<u64>> {
    let random = SystemRandom::seeded(seed);
    let below = |bound: u64| random.next_u64() % bound;
    let system_prompt = [random.next_u64(), random.next_u64()];
    let mut open: Vec<Vec<u64>> = Vec::new();
    let mut trace = Vec::with_capacity(requests);
    for _ in 0..requests {
        if below(100) < one_shot_percent {
            trace.push((0..=below(16)).map(|_| random.next_u64()).collect());
            continue;
        }
        if open.len() < 120 {
            open.push(system_prompt.to_vec());
        }
        // recent conversations go on more often
        let age = below(open.len() as u64).min(below(open.len() as u64));
        let chosen = open.len() - 1 - age as usize;
        let mut run = open.remove(chosen);
        run.extend((0..=below(6)).map(|_| random.next_u64()));
        trace.push(run.clone());
        if below(6) != 0 {
            open.push(run);
        }
    }
    trace
}

fn ratios(capacity: usize, trace: &[Vec<u64>]) -> HashMap<PolicyKind, f64> {
    PolicyKind::ALL
        .into_iter()
        .map(|kind| (kind, Simulation::new(kind, capacity).run(trace).hit_ratio()))
        .collect()
}

/// Hits of an order kept in a plain vector, coldest first.
fn plain_hits(capacity: usize, uses_count: bool, trace: &[Vec<u64>]) -> usize {
    let mut order: Vec<u64> = Vec::new();
    let mut hits = 0;
    for run in trace {
        let present = run.iter().take_while(|block| order.contains(block)).count();
        hits += present;
        let (prefix, rest) = run.split_at(present);
        let touches = prefix
            .iter()
            .rev()
            .chain(rest.iter().rev())
            .map(|block| (block, true));
        for (block, may_insert) in touches.chain(prefix.iter().rev().map(|block| (block, false))) {
            let resident = order.iter().position(|held| held == block);
            if let Some(position) = resident.filter(|_| uses_count) {
                order.remove(position);
                order.push(*block);
            } else if resident.is_none() && may_insert {
                if order.len() == capacity {
                    order.remove(0);
                }
                order.push(*block);
            }
        }
    }
    hits
}

#[test]
fn lru_and_fifo_hit_as_often_as_plain_vectors() {
    let trace = conversations(600, 30, 7);
    for capacity in [60, 200, 500] {
        let lru = Simulation::new(PolicyKind::Lru, capacity).run(&trace);
        assert_eq!(lru.hits, plain_hits(capacity, true, &trace));
        let fifo = Simulation::new(PolicyKind::Fifo, capacity).run(&trace);
        assert_eq!(fifo.hits, plain_hits(capacity, false, &trace));
    }
}

#[test]
fn adaptive_replacement_filters_one_shot_requests_and_costs_little_without_them() {
    use PolicyKind::{Arc, Fifo, Lru, S3Fifo};
    for seed in 1..3 {
        let mixed = ratios(1600, &conversations(4_000, 70, seed));
        assert!(
            mixed[&Arc] > mixed[&Lru] + 0.03 && mixed[&S3Fifo] > mixed[&Lru] + 0.01,
            "{mixed:?}"
        );
        assert!(mixed[&Lru] > mixed[&Fifo] + 0.01, "{mixed:?}");
        let agentic = ratios(800, &conversations(4_000, 0, seed));
        assert!(
            agentic[&Lru] >= agentic[&Arc] && agentic[&Arc] > agentic[&Lru] - 0.03,
            "{agentic:?}"
        );
        assert!(
            agentic[&Arc] > agentic[&Fifo] + 0.02 && agentic[&Arc] > agentic[&S3Fifo] + 0.02,
            "{agentic:?}"
        );
    }
}

#[test]
fn a_prefix_goes_tail_first_and_that_hits_more() {
    let trace = conversations(2_000, 20, 3);
    let mut head_first = Simulation::new(PolicyKind::Lru, 400);
    head_first.tail_first = false;
    let head_first = head_first.run(&trace).hit_ratio();
    let mut tail_first = Simulation::new(PolicyKind::Lru, 400);
    for run in &trace {
        let present = run.iter().map(|block| tail_first.slots.contains_key(block));
        assert!(
            present.is_sorted_by(|earlier, later| earlier >= later),
            "a block without its ancestors is resident"
        );
        tail_first.access(run);
    }
    assert!(
        tail_first.hit_ratio() > head_first,
        "{} {head_first}",
        tail_first.hit_ratio()
    );
}

#[test]
fn shadows_tell_the_hit_ratios_from_a_sample() {
    for (one_shot_percent, seed) in [(70, 1), (0, 2)] {
        let trace = conversations(4_000, one_shot_percent, seed);
        let exact = ratios(1600, &trace);
        for sample_one_in in [1, 8] {
            let mut shadows = ShadowCaches::new(1600, sample_one_in);
            for run in &trace {
                shadows.access_run(run);
            }
            let told: HashMap<_, _> = shadows
                .results()
                .into_iter()
                .map(|(kind, hits, lookups)| (kind, hits as f64 / lookups as f64))
                .collect();
            let tolerance = if sample_one_in == 1 { 1e-9 } else { 0.04 };
            for kind in PolicyKind::ALL {
                assert!(
                    (told[&kind] - exact[&kind]).abs() < tolerance,
                    "{exact:?} {told:?}"
                );
            }
            assert_eq!(
                told[&PolicyKind::Arc] > told[&PolicyKind::Lru],
                one_shot_percent > 0
            );
        }
    }
}
