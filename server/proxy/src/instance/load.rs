//! What an instance has to do at this moment. Whoever adds work holds it, and takes it back by letting go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Instance;

/// Work of one instance, in requests and prompt tokens.
#[derive(Debug, Default)]
pub struct Load {
    requests: AtomicU64,
    active_tokens: AtomicU64,
    held_tokens: AtomicU64,
}

impl Load {
    /// Requests under way.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Prompt tokens of requests under way.
    pub fn active_tokens(&self) -> u64 {
        self.active_tokens.load(Ordering::Relaxed)
    }

    /// Prompt tokens whose KV waits to be pulled.
    pub fn held_tokens(&self) -> u64 {
        self.held_tokens.load(Ordering::Relaxed)
    }
}

/// A request under way at an instance.
#[derive(Debug)]
pub struct Active {
    instance: Arc<Instance>,
    tokens: u64,
}

impl Active {
    /// Adds a request of that many prompt tokens.
    pub fn new(instance: Arc<Instance>, tokens: u64) -> Self {
        instance.load.requests.fetch_add(1, Ordering::Relaxed);
        instance.load.active_tokens.fetch_add(tokens, Ordering::Relaxed);
        Self { instance, tokens }
    }

    /// The instance.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.instance.load.requests.fetch_sub(1, Ordering::Relaxed);
        self.instance
            .load
            .active_tokens
            .fetch_sub(self.tokens, Ordering::Relaxed);
        self.instance.idle.notify_waiters();
    }
}

/// KV that a prefill instance holds until a decode instance has it.
#[derive(Debug)]
pub struct Held {
    instance: Arc<Instance>,
    tokens: u64,
}

impl Held {
    /// Adds the KV of that many prompt tokens.
    pub fn new(instance: Arc<Instance>, tokens: u64) -> Self {
        instance.load.held_tokens.fetch_add(tokens, Ordering::Relaxed);
        Self { instance, tokens }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.instance
            .load
            .held_tokens
            .fetch_sub(self.tokens, Ordering::Relaxed);
        self.instance.idle.notify_waiters();
    }
}
