//! Which blocks are there, and where. Memory only: nothing here waits for I/O.

use std::borrow::Cow;

use crate::block::BlockHash;
use crate::tier::NamespaceInfo;

use super::Engine;

/// Blocks that are located together; those behind a gap are looked up for nothing.
const LOCATE_PART_BLOCKS: usize = 512;
/// No tier has the block.
const NOWHERE: u8 = u8::MAX;

impl Engine {
    /// Sets `present[i]` for every block that some tier has. Memory only: no I/O.
    pub fn lookup(&self, namespace: &NamespaceInfo, hashes: &[BlockHash], present: &mut [bool]) {
        let started = self.runtime.clock.now();
        self.memory.lookup(namespace, hashes, present);
        for tier in &self.lower {
            if present.iter().all(|found| *found) {
                break;
            }
            tier.lookup(namespace, hashes, present);
        }
        self.counters
            .lookup
            .record(self.runtime.clock.now().saturating_duration_since(started));
    }

    /// How many blocks at the start of `hashes` are there without a gap, whichever tiers have them.
    pub fn lookup_on_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> usize {
        let started = self.runtime.clock.now();
        let mut found = 0;
        // tiers take turns extending the prefix until none can
        loop {
            let before = found;
            found += self.memory.lookup_on_prefix(namespace, &hashes[found..]);
            for tier in &self.lower {
                if found == hashes.len() {
                    break;
                }
                found += tier.lookup_on_prefix(namespace, &hashes[found..]);
            }
            if found == before || found == hashes.len() {
                break;
            }
        }
        self.counters
            .lookup
            .record(self.runtime.clock.now().saturating_duration_since(started));
        found
    }

    /// For each present block at the start of `hashes`, the index in the pipeline of the fastest tier that has it.
    /// As many as [`Engine::lookup_on_prefix`] would count. Memory only: no I/O.
    pub fn locate_prefix(&self, namespace: &NamespaceInfo, hashes: &[BlockHash]) -> Vec<u8> {
        let started = self.runtime.clock.now();
        let mut located = Vec::with_capacity(hashes.len());
        // a gap ends it: what lies further on isn't looked up in vain
        for part in hashes.chunks(LOCATE_PART_BLOCKS) {
            let before = located.len();
            self.locate(namespace, part, &mut located);
            if located.len() - before < part.len() {
                break;
            }
        }
        self.counters
            .lookup
            .record(self.runtime.clock.now().saturating_duration_since(started));
        located
    }

    /// Appends the tiers of the blocks in front of the first that nobody has.
    fn locate(&self, namespace: &NamespaceInfo, part: &[BlockHash], located: &mut Vec<u8>) {
        let begin = located.len();
        located.resize(begin + part.len(), NOWHERE);
        let places = located.get_mut(begin..).unwrap_or_default();
        let mut present = [false; LOCATE_PART_BLOCKS];
        // each tier is asked for what the faster ones don't have
        let mut open: Vec<usize> = (0..part.len()).collect();
        let mut wanted = Cow::Borrowed(part);
        for (index, tier) in self.all_tiers().enumerate() {
            let present = present.get_mut(..wanted.len()).unwrap_or_default();
            present.fill(false);
            tier.lookup(namespace, &wanted, present);
            for (at, found) in open.iter().zip(&*present) {
                if *found && let Some(place) = places.get_mut(*at) {
                    *place = index as u8;
                }
            }
            if !present.contains(&true) {
                continue;
            }
            open.retain(|at| places.get(*at) == Some(&NOWHERE));
            if open.is_empty() {
                return;
            }
            wanted = open.iter().filter_map(|at| part.get(*at).copied()).collect();
        }
        let found = places.iter().take_while(|place| **place != NOWHERE).count();
        located.truncate(begin + found);
    }
}
