//! Hands the requests of a trace to streams, at the pace asked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use kvstored_client::{Client, NamespaceHandle};
use kvstored_core::{Durability, Error, Identity, Layout, Result, Runtime};
use parking_lot::Mutex;

use super::results::{Tally, share};
use super::worker::Worker;
use crate::tools::timeline::{Interval, Timeline};
use crate::tools::trace::{TraceReader, TraceRequest};

/// Calls that may fail before the replay is given up: something is wrong with the store, not with a request.
const MAX_FAILED_CALLS: u64 = 100;

/// How to replay. Plain data.
#[derive(Clone, Debug)]
pub struct ReplaySettings {
    /// One shard of one tensor.
    pub layout: Layout,
    /// Most requests.
    pub limit: u64,
    /// By how much timestamps are divided; 0 for as fast as possible.
    pub speed: f64,
    /// Requests under way at a time.
    pub concurrency: usize,
    /// When a block counts as dumped.
    pub durability: Durability,
    /// Deadline of each load and dump.
    pub timeout: Duration,
}

/// What the streams share.
struct Shared {
    client: Arc<Client>,
    namespace: NamespaceHandle,
    settings: ReplaySettings,
    runtime: Runtime,
    started: Instant,
    bar: ProgressBar,
    state: Mutex<State>,
}

struct State {
    reader: TraceReader,
    handed_out: u64,
    failed_calls: u64,
    failure: Option<Error>,
    prompt_blocks: u64,
    hit_blocks: u64,
    timeline: Timeline,
    tallies: Vec<Tally>,
}

/// Replays a trace to its end or the limit.
///
/// Fails on a broken line, and when call after call fails; failures of single blocks are counted.
pub fn replay(
    client: &Arc<Client>,
    reader: TraceReader,
    settings: &ReplaySettings,
    runtime: &Runtime,
    bar: &ProgressBar,
) -> Result<Tally> {
    let identity = Identity {
        model: "kvstored replay".into(),
        block_tokens: 512,
        ..Identity::default()
    };
    let shared = Arc::new(Shared {
        namespace: client.open_namespace(&identity, &settings.layout)?,
        client: client.clone(),
        settings: settings.clone(),
        runtime: runtime.clone(),
        started: runtime.clock.now(),
        bar: bar.clone(),
        state: Mutex::new(State {
            reader,
            handed_out: 0,
            failed_calls: 0,
            failure: None,
            prompt_blocks: 0,
            hit_blocks: 0,
            timeline: Timeline::new(),
            tallies: Vec::new(),
        }),
    });
    let mut threads = Vec::new();
    for number in 1..settings.concurrency {
        let shared = shared.clone();
        threads.push(
            runtime
                .spawner
                .spawn(&format!("replay-{number}"), Box::new(move || shared.stream()))?,
        );
    }
    shared.stream();
    for thread in threads {
        thread.join();
    }
    let elapsed = runtime.clock.now().saturating_duration_since(shared.started);
    let mut state = shared.state.lock();
    if let Some(failure) = state.failure.take() {
        return Err(failure);
    }
    let mut total = Tally::new(client.tier_names())?;
    for tally in &state.tallies {
        total.add(tally);
    }
    total.elapsed = elapsed;
    total.timeline = state.timeline.clone();
    Ok(total)
}

impl Shared {
    fn stream(&self) {
        let worker = Worker::new(
            &self.client,
            &self.namespace,
            &self.settings,
            &*self.runtime.clock,
        );
        match worker {
            Ok(mut worker) => {
                while let Some(request) = self.next() {
                    self.wait_for(&request);
                    let result = worker.replay(&request);
                    self.done(result);
                }
                self.state.lock().tallies.push(worker.tally);
            }
            Err(error) => self.fail(error),
        }
    }

    fn fail(&self, error: Error) {
        self.state.lock().failure.get_or_insert(error);
    }

    fn next(&self) -> Option<TraceRequest> {
        let mut state = self.state.lock();
        if state.failure.is_some() || state.handed_out >= self.settings.limit {
            return None;
        }
        match state.reader.next_request() {
            Ok(request) => {
                state.handed_out += 1;
                self.bar.set_position(state.reader.read_bytes());
                request
            }
            Err(error) => {
                state.failure = Some(error);
                None
            }
        }
    }

    /// Waits until the request's time has come.
    fn wait_for(&self, request: &TraceRequest) {
        if self.settings.speed <= 0.0 {
            return;
        }
        let after = Duration::try_from_secs_f64(request.timestamp_ms / 1e3 / self.settings.speed);
        let Some(due) = after.ok().and_then(|after| self.started.checked_add(after)) else {
            return;
        };
        loop {
            let left = due.saturating_duration_since(self.runtime.clock.now());
            if left.is_zero() || self.state.lock().failure.is_some() {
                return;
            }
            std::thread::park_timeout(left.min(Duration::from_secs(1)));
        }
    }

    fn done(&self, result: Result<Interval>) {
        let at = self.runtime.clock.now().saturating_duration_since(self.started);
        let mut state = self.state.lock();
        match result {
            Ok(happened) => {
                state.failed_calls = 0;
                state.prompt_blocks += happened.prompt_blocks;
                state.hit_blocks += happened.hit_blocks;
                state.timeline.record(at, &happened);
                if !self.bar.is_hidden() {
                    let ratio = share(state.hit_blocks, state.prompt_blocks);
                    self.bar.set_message(format!("hit ratio {ratio:.3}"));
                }
            }
            Err(error) => {
                state.failed_calls += 1;
                if state.failed_calls > MAX_FAILED_CALLS {
                    state.failure.get_or_insert(error);
                }
            }
        }
    }
}
