//! Generating traces of multi-turn conversations.
//!
//! Conversations start at random times, each with one of a few system prompts; every turn's prompt is all that
//! was said before plus a new message. Blocks are runs of 512 tokens; a block's id stands for all tokens up to
//! its end, so conversations share ids exactly as far as they share whole blocks of their system prompt.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use kvstored_core::runtime::{Random, SystemRandom};

use super::reader::TraceRequest;

/// Tokens of a block.
pub const BLOCK_TOKENS: u64 = 512;
/// Where a conversation ends even if its user had more to say.
const MAX_PROMPT_TOKENS: u64 = 128 * 1024;
/// Tokens of the system prompts, the most popular first; the last one stands for none at all.
const SYSTEM_PROMPT_TOKENS: [u64; 6] = [1_900, 4_600, 700, 9_300, 2_800, 0];
/// Mean time between the starts of two conversations.
const ARRIVAL_MEAN_MS: f64 = 700.0;
const THINK_MEDIAN_MS: f64 = 25_000.0;
const MESSAGE_MEDIAN_TOKENS: f64 = 350.0;
/// Now and then somebody pastes a document.
const DOCUMENT_MEDIAN_TOKENS: f64 = 9_000.0;
const DOCUMENT_SHARE: f64 = 0.12;
const ANSWER_MEDIAN_TOKENS: f64 = 280.0;
const ANSWER_TOKENS_PER_MS: f64 = 0.03;
/// How likely a user goes on after an answer.
const NEXT_TURN_SHARE: f64 = 0.72;

struct Conversation {
    /// Ids of the blocks that are full of tokens.
    ids: Vec<u64>,
    prompt_tokens: u64,
}

/// What happens next: `None` starts a conversation.
type Event = (Reverse<u64>, u64, Option<Box<Conversation>>);

struct ByTime(Event);

impl PartialEq for ByTime {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for ByTime {}
impl PartialOrd for ByTime {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ByTime {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.0, Reverse(self.0.1)).cmp(&(other.0.0, Reverse(other.0.1)))
    }
}

/// An endless, repeatable stream of requests in the order of their timestamps.
pub struct Generator {
    random: SystemRandom,
    events: BinaryHeap<ByTime>,
    event_number: u64,
    next_id: u64,
    system_prompts: Vec<SystemPrompt>,
}

struct SystemPrompt {
    tokens: u64,
    ids: Vec<u64>,
    weight: f64,
}

impl Generator {
    /// The stream that belongs to a seed.
    pub fn new(seed: u64) -> Self {
        let system_prompts = SYSTEM_PROMPT_TOKENS
            .iter()
            .enumerate()
            .map(|(rank, tokens)| SystemPrompt {
                tokens: *tokens,
                ids: Vec::new(),
                weight: 1.0 / (rank as f64 + 1.0),
            })
            .collect();
        let mut generator = Self {
            random: SystemRandom::seeded(seed),
            events: BinaryHeap::new(),
            event_number: 0,
            next_id: 0,
            system_prompts,
        };
        generator.schedule(0, None);
        generator
    }

    fn schedule(&mut self, at_ms: u64, conversation: Option<Box<Conversation>>) {
        self.event_number += 1;
        self.events
            .push(ByTime((Reverse(at_ms), self.event_number, conversation)));
    }

    /// Uniform in (0, 1].
    fn uniform(&self) -> f64 {
        ((self.random.next_u64() >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }

    fn exponential(&self, mean: f64) -> f64 {
        -self.uniform().ln() * mean
    }

    /// Log-normal around a median, by Box and Muller.
    fn around(&self, median: f64, spread: f64) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.uniform()).cos();
        median * (normal * spread).exp()
    }

    fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn start(&mut self) -> Conversation {
        let total: f64 = self.system_prompts.iter().map(|prompt| prompt.weight).sum();
        let mut left = self.uniform() * total;
        let chosen = self.system_prompts.iter().position(|prompt| {
            left -= prompt.weight;
            left <= 0.0
        });
        let Some(prompt) = self.system_prompts.get_mut(chosen.unwrap_or(0)) else {
            return Conversation {
                ids: Vec::new(),
                prompt_tokens: 0,
            };
        };
        while (prompt.ids.len() as u64) < prompt.tokens / BLOCK_TOKENS {
            prompt.ids.push(self.next_id);
            self.next_id += 1;
        }
        Conversation {
            ids: prompt.ids.clone(),
            prompt_tokens: prompt.tokens,
        }
    }

    fn turn(&mut self, now_ms: u64, mut conversation: Box<Conversation>) -> TraceRequest {
        let message = if self.uniform() < DOCUMENT_SHARE {
            self.around(DOCUMENT_MEDIAN_TOKENS, 0.7)
        } else {
            self.around(MESSAGE_MEDIAN_TOKENS, 1.0)
        };
        let input_length = (conversation.prompt_tokens + (message as u64).max(1)).min(MAX_PROMPT_TOKENS);
        let output_length = (self.around(ANSWER_MEDIAN_TOKENS, 0.8) as u64).clamp(1, 8_192);
        while (conversation.ids.len() as u64) < input_length / BLOCK_TOKENS {
            let id = self.fresh_id();
            conversation.ids.push(id);
        }
        let mut hash_ids = conversation.ids.clone();
        if !input_length.is_multiple_of(BLOCK_TOKENS) {
            // a block that isn't full yet holds other tokens than it will in the next turn
            hash_ids.push(self.fresh_id());
        }
        conversation.prompt_tokens = input_length + output_length;
        if self.uniform() < NEXT_TURN_SHARE && conversation.prompt_tokens < MAX_PROMPT_TOKENS {
            let answered_ms = output_length as f64 / ANSWER_TOKENS_PER_MS;
            let think_ms = self.around(THINK_MEDIAN_MS, 1.2).min(3_600_000.0);
            self.schedule(now_ms + (answered_ms + think_ms) as u64, Some(conversation));
        }
        TraceRequest {
            timestamp_ms: now_ms as f64,
            input_length,
            output_length,
            hash_ids,
        }
    }
}

impl Iterator for Generator {
    type Item = TraceRequest;

    fn next(&mut self) -> Option<TraceRequest> {
        let ByTime((Reverse(now_ms), _, conversation)) = self.events.pop()?;
        let conversation = if let Some(conversation) = conversation {
            conversation
        } else {
            let pause_ms = self.exponential(ARRIVAL_MEAN_MS) as u64;
            self.schedule(now_ms + pause_ms, None);
            Box::new(self.start())
        };
        Some(self.turn(now_ms, conversation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn a_seed_gives_one_trace() {
        let first: Vec<TraceRequest> = Generator::new(5).take(500).collect();
        assert_eq!(first, Generator::new(5).take(500).collect::<Vec<_>>());
        assert_ne!(first, Generator::new(6).take(500).collect::<Vec<_>>());
    }

    #[test]
    fn timestamps_never_go_back_and_lengths_agree_with_ids() {
        let mut last = 0.0;
        for request in Generator::new(1).take(3000) {
            assert!(request.timestamp_ms >= last);
            last = request.timestamp_ms;
            assert_eq!(
                request.hash_ids.len() as u64,
                request.input_length.div_ceil(BLOCK_TOKENS)
            );
            assert!(request.input_length <= MAX_PROMPT_TOKENS && request.output_length > 0);
        }
        assert!(last > 60_000.0);
    }

    #[test]
    fn an_id_always_follows_the_same_prefix() {
        let mut before: HashMap<u64, Option<u64>> = HashMap::new();
        for request in Generator::new(2).take(3000) {
            let mut previous = None;
            for id in request.hash_ids {
                assert_eq!(*before.entry(id).or_insert(previous), previous, "id {id}");
                previous = Some(id);
            }
        }
    }

    #[test]
    fn turns_grow_and_system_prompts_are_shared() {
        let requests: Vec<TraceRequest> = Generator::new(3).take(3000).collect();
        let mut uses: HashMap<u64, usize> = HashMap::new();
        let (mut hits, mut total) = (0, 0);
        for request in &requests {
            total += request.hash_ids.len();
            hits += request
                .hash_ids
                .iter()
                .take_while(|id| uses.contains_key(id))
                .count();
            for id in &request.hash_ids {
                *uses.entry(*id).or_default() += 1;
            }
        }
        let ratio = hits as f64 / total as f64;
        assert!((0.3..0.9).contains(&ratio), "{ratio}");
        let most = uses.values().max().unwrap();
        assert!(
            *most > 200,
            "the most popular system prompt was used {most} times"
        );
        assert!(requests.iter().any(|request| request.hash_ids.len() > 20));
    }
}
