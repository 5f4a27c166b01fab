//! The blocks that one instance has.
//!
//! Engines name a block by a hash of their own making, which nobody else can compute without knowing how. But an event of a
//! stored block says its tokens and its parent too. So each block gets a second hash here, over its tokens and its parent's
//! second hash, and that one can be computed from any prompt of token ids.

use std::collections::HashMap;

use parking_lot::RwLock;
use twox_hash::XxHash3_64;

use super::batch::{Event, Removed, Stored};

/// The most blocks known of an instance, which fill a table of 2^20 places: about 48 bytes each.
const MAX_BLOCKS: usize = (1 << 20) / 8 * 7;

/// How much of an instance's blocks is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Knowledge {
    /// Nothing: its events aren't followed, or not now.
    #[default]
    None,
    /// Blocks stored since the events are followed.
    Some,
    /// All of them.
    All,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct BlockIndex {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    knowledge: Knowledge,
    block_tokens: usize,
    /// By the engine's hash.
    blocks: HashMap<u64, Block>,
    /// By ours: how many of the engine's blocks have it.
    chains: HashMap<u64, u32>,
}

#[derive(Debug)]
struct Block {
    chain: u64,
    media: u8,
}

impl BlockIndex {
    /// How many of a prompt's first tokens the instance has. None where its blocks aren't known well enough to tell: some
    /// may be there that were stored before its events were followed.
    pub fn cached_tokens(&self, prompt: &PromptBlocks) -> Option<u64> {
        let state = self.state.read();
        if state.knowledge == Knowledge::None {
            return None;
        }
        let mut found = 0;
        if state.block_tokens > 0 {
            let chains = prompt.chains(state.block_tokens)?;
            let known = chains.iter().take_while(|chain| state.chains.contains_key(chain));
            found = (known.count() * state.block_tokens) as u64;
        }
        (found > 0 || state.knowledge == Knowledge::All).then_some(found)
    }

    /// Tokens of its blocks, as far as that's known.
    pub fn block_tokens(&self) -> Option<usize> {
        let size = self.state.read().block_tokens;
        (size > 0).then_some(size)
    }

    /// Blocks known at this moment.
    pub fn known_blocks(&self) -> usize {
        self.state.read().blocks.len()
    }

    /// Forgets everything; nothing is known from now on.
    pub fn forget(&self) {
        *self.state.write() = State::default();
    }

    /// Forgets everything; from now on all events come, from the very first one on if `is_all`.
    pub fn begin(&self, is_all: bool) {
        *self.state.write() = State {
            knowledge: if is_all { Knowledge::All } else { Knowledge::Some },
            ..State::default()
        };
    }

    /// Takes in what happened. True if all blocks were cleared.
    pub fn apply(&self, events: Vec<Event>) -> bool {
        let mut state = self.state.write();
        let mut cleared = false;
        for event in events {
            match event {
                Event::Stored(stored) => state.store(&stored),
                Event::Removed(removed) => state.remove(&removed),
                Event::Cleared => {
                    // whatever was there before is gone too
                    *state = State {
                        knowledge: Knowledge::All,
                        ..State::default()
                    };
                    cleared = true;
                }
                Event::Unknown => {}
            }
        }
        cleared
    }
}

/// A prompt's tokens, and the hashes of its blocks for every size that instances have: computed once for all of them.
#[derive(Debug)]
pub struct PromptBlocks {
    tokens: Vec<u32>,
    chains: Vec<(usize, Vec<u64>)>,
}

impl PromptBlocks {
    /// Of that prompt, not cut yet.
    pub fn new(tokens: Vec<u32>) -> Self {
        Self {
            tokens,
            chains: Vec::new(),
        }
    }

    /// Cuts it into blocks of so many tokens, if it isn't yet.
    pub fn cut(&mut self, block_tokens: usize) {
        if self.chains(block_tokens).is_none() {
            let mut chain = 0;
            let blocks = self.tokens.chunks_exact(block_tokens);
            let chains = blocks.map(|block| {
                chain = next_chain(chain, block);
                chain
            });
            self.chains.push((block_tokens, chains.collect()));
        }
    }

    fn chains(&self, block_tokens: usize) -> Option<&[u64]> {
        let cut = self.chains.iter().find(|(size, _)| *size == block_tokens)?;
        Some(&cut.1)
    }
}

impl State {
    fn store(&mut self, stored: &Stored) {
        if !stored.is_first_group {
            return;
        }
        if stored.has_extras {
            // a prompt that has them too can't be told not to be there
            self.knowledge = self.knowledge.min(Knowledge::Some);
            return;
        }
        let medium = stored.medium as u8;
        let mut chain = match stored.parent {
            None => 0,
            Some(parent) => match self.blocks.get(&parent) {
                Some(block) => block.chain,
                // its beginning isn't known, so no prompt could be told to have it
                None => return,
            },
        };
        let size = stored.block_tokens;
        if size == 0 || stored.tokens.len() != stored.hashes.len().saturating_mul(size) {
            // blocks that move to another medium come without their tokens
            for hash in &stored.hashes {
                if let Some(block) = self.blocks.get_mut(hash) {
                    block.media |= medium;
                }
            }
            return;
        }
        self.block_tokens = size;
        for (hash, tokens) in stored.hashes.iter().zip(stored.tokens.chunks_exact(size)) {
            chain = next_chain(chain, tokens);
            if let Some(block) = self.blocks.get_mut(hash) {
                block.media |= medium;
                continue;
            }
            if self.blocks.len() >= MAX_BLOCKS {
                // the rest isn't known any more
                self.knowledge = Knowledge::Some;
                return;
            }
            self.blocks.insert(*hash, Block { chain, media: medium });
            *self.chains.entry(chain).or_default() += 1;
        }
    }

    fn remove(&mut self, removed: &Removed) {
        if !removed.is_first_group {
            return;
        }
        for hash in &removed.hashes {
            let Some(block) = self.blocks.get_mut(hash) else {
                continue;
            };
            block.media &= !(removed.medium as u8);
            if block.media != 0 {
                continue;
            }
            let chain = block.chain;
            self.blocks.remove(hash);
            if let Some(count) = self.chains.get_mut(&chain) {
                *count -= 1;
                if *count == 0 {
                    self.chains.remove(&chain);
                }
            }
        }
    }
}

/// The hash of a block with those tokens behind the one with that hash.
fn next_chain(chain: u64, tokens: &[u32]) -> u64 {
    let mut bytes = [0; 4 * 64];
    let mut hash = chain;
    // in runs, so that nothing is allocated for a block
    for run in tokens.chunks(64) {
        for (place, token) in bytes.chunks_exact_mut(4).zip(run) {
            place.copy_from_slice(&token.to_le_bytes());
        }
        hash = XxHash3_64::oneshot_with_seed(hash, bytes.get(..4 * run.len()).unwrap_or_default());
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::super::batch::Medium;
    use super::*;

    fn stored(hashes: &[u64], parent: Option<u64>, tokens: std::ops::Range<u32>) -> Stored {
        Stored {
            hashes: hashes.to_vec(),
            parent,
            tokens: tokens.collect(),
            block_tokens: 4,
            is_first_group: true,
            ..Stored::default()
        }
    }

    fn removed(hash: u64, medium: Medium) -> Event {
        Event::Removed(Removed {
            hashes: vec![hash],
            medium,
            is_first_group: true,
        })
    }

    fn index(events: Vec<Event>) -> BlockIndex {
        let index = BlockIndex::default();
        index.begin(true);
        index.apply(events);
        index
    }

    fn cut(tokens: Vec<u32>) -> PromptBlocks {
        let mut prompt = PromptBlocks::new(tokens);
        prompt.cut(4);
        prompt
    }

    fn prompt(tokens: u32) -> PromptBlocks {
        cut((0..tokens).collect())
    }

    #[test]
    fn a_prompt_is_found_as_far_as_its_blocks_are_there() {
        let index = index(vec![
            Event::Stored(stored(&[1, 2], None, 0..8)),
            Event::Stored(stored(&[3], Some(2), 8..12)),
        ]);
        assert_eq!(index.cached_tokens(&prompt(3)), Some(0));
        assert_eq!(index.cached_tokens(&prompt(11)), Some(8));
        assert_eq!(index.cached_tokens(&prompt(99)), Some(12));
        let mut other: Vec<u32> = (0..12).collect();
        other[5] = 99;
        assert_eq!(index.cached_tokens(&cut(other)), Some(4));
        index.apply(vec![removed(2, Medium::Device)]);
        assert_eq!(index.cached_tokens(&prompt(99)), Some(4));
        assert!(index.apply(vec![Event::Cleared]));
        assert_eq!(
            (index.cached_tokens(&prompt(99)), index.known_blocks()),
            (Some(0), 0)
        );
    }

    #[test]
    fn what_was_not_heard_of_is_not_denied() {
        let index = BlockIndex::default();
        assert_eq!(index.cached_tokens(&prompt(8)), None);
        index.begin(false);
        index.apply(vec![Event::Stored(stored(&[2], Some(1), 4..8))]);
        assert_eq!(index.cached_tokens(&prompt(8)), None, "its parent isn't known");
        index.apply(vec![Event::Stored(stored(&[1], None, 0..4))]);
        assert_eq!(index.cached_tokens(&prompt(8)), Some(4));
        index.forget();
        assert_eq!(index.cached_tokens(&prompt(8)), None);
    }

    #[test]
    fn a_block_is_there_until_it_is_nowhere() {
        let moved = Stored {
            medium: Medium::Host,
            tokens: vec![],
            ..stored(&[1], None, 0..0)
        };
        let index = index(vec![
            Event::Stored(stored(&[1], None, 0..4)),
            Event::Stored(moved),
            removed(1, Medium::Device),
        ]);
        assert_eq!(index.cached_tokens(&prompt(4)), Some(4));
        index.apply(vec![removed(1, Medium::Host), removed(1, Medium::Host)]);
        assert_eq!(index.cached_tokens(&prompt(4)), Some(0));
    }

    #[test]
    fn what_tokens_alone_do_not_decide_is_left_out() {
        let adapter = Stored {
            has_extras: true,
            ..stored(&[1], None, 0..4)
        };
        let group = Stored {
            is_first_group: false,
            ..stored(&[2], None, 0..4)
        };
        let torn = stored(&[3, 4], None, 0..4);
        let index = index([adapter, group, torn].into_iter().map(Event::Stored).collect());
        assert_eq!(index.known_blocks(), 0);
        assert_eq!(
            index.cached_tokens(&prompt(4)),
            None,
            "the adapter's may be there"
        );
    }

    #[test]
    fn memory_is_bounded() {
        let index = index(vec![]);
        let count = MAX_BLOCKS as u64 + 10;
        let events = (0..count)
            .map(|hash| {
                let token = hash as u32;
                Event::Stored(stored(&[hash], None, token..token + 4))
            })
            .collect();
        index.apply(events);
        assert_eq!(index.known_blocks(), MAX_BLOCKS);
        assert_eq!(
            index.cached_tokens(&cut(vec![u32::MAX; 4])),
            None,
            "there may be more"
        );
    }
}
