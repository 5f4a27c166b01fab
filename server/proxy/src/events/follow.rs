//! Listening to one instance's events for as long as it is one of ours.
//!
//! Batches are numbered. A number that was skipped is asked for from the replay socket; where that isn't possible, what is
//! known is thrown away, because a block that was removed in between would be believed to be there for ever. A connection
//! that breaks is opened again and everything begins anew: the instance was restarted, most likely.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::EventSource;
use super::batch;
use super::zmtp::{Kind, Link};
use crate::address::Address;
use crate::instance::Instance;
use crate::proxy::Proxy;

/// The pause before a connection is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A connection that lasted so long was a good one.
const GOOD_TIME: Duration = Duration::from_secs(10);
/// How often it is looked whether the instance is still one of ours.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a replay may take in all.
const REPLAY_LIMIT: Duration = Duration::from_mins(1);
/// The number that ends a replay.
const END: u64 = u64::MAX;
/// Batches taken in before others get their turn.
const RUN: usize = 32;

/// Follows an instance's events from now on, in a task of its own.
pub fn follow(proxy: &Arc<Proxy>, instance: &Arc<Instance>) {
    let Some(source) = instance.events.clone() else {
        return;
    };
    let follower = Follower {
        proxy: Arc::downgrade(proxy),
        instance: Arc::clone(instance),
        source,
        limit: proxy.settings.connect_timeout,
    };
    tokio::spawn(follower.run());
}

struct Follower {
    proxy: Weak<Proxy>,
    instance: Arc<Instance>,
    source: EventSource,
    limit: Duration,
}

/// A connection to the events, and what was heard.
struct Heard {
    link: Link,
    /// The number of the batch that comes next, once that is known.
    next: Option<u64>,
    /// A batch came that no replay had brought: from now on numbers only rise.
    is_settled: bool,
}

impl Follower {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        let mut is_known_to_fail = false;
        while self.is_wanted() {
            let began = Instant::now();
            let mut has_heard = false;
            let Err(error) = self.listen(&mut has_heard).await else {
                break;
            };
            self.instance.blocks.forget();
            if has_heard {
                self.lost_cache();
                is_known_to_fail = false;
            }
            if !is_known_to_fail {
                tracing::warn!(instance = %self.instance.name, events = %self.source.events, %error, "KV events end");
                is_known_to_fail = true;
            }
            if began.elapsed() >= GOOD_TIME {
                pause = FIRST_PAUSE;
            }
            sleep(pause).await;
            pause = (2 * pause).min(MAX_PAUSE);
        }
        self.instance.blocks.forget();
    }

    fn is_wanted(&self) -> bool {
        self.proxy
            .upgrade()
            .is_some_and(|proxy| proxy.fleet.contains(&self.instance))
    }

    /// Ends well when the instance is no longer ours.
    async fn listen(&self, has_heard: &mut bool) -> io::Result<()> {
        let link = Link::connect(&self.source.events, Kind::Subscriber, self.limit).await?;
        let mut heard = Heard {
            link,
            next: None,
            is_settled: false,
        };
        self.instance.blocks.begin(false);
        // subscribed before, so that nothing falls in between
        if let Some(replay) = &self.source.replay {
            match self.replay(replay, 0).await {
                Ok(next) => heard.next = Some(next),
                // what comes from now on is worth having all the same
                Err(error) => {
                    tracing::warn!(instance = %self.instance.name, %replay, %error, "past KV events can't be had");
                    self.instance.blocks.begin(false);
                }
            }
        }
        tracing::info!(instance = %self.instance.name, events = %self.source.events, "KV events are followed");
        *has_heard = true;
        let mut run = 0;
        let mut next_check = Instant::now() + CHECK_INTERVAL;
        loop {
            // by the clock, since an instance that is somebody else's now may have news without end
            if Instant::now() >= next_check {
                if !self.is_wanted() {
                    return Ok(());
                }
                next_check = Instant::now() + CHECK_INTERVAL;
            }
            let Ok(message) = timeout_at(next_check, heard.link.receive()).await else {
                continue;
            };
            // topic, number, batch
            match numbered(&message?, 0) {
                Some((number, payload)) => self.take(&mut heard, number, &payload).await?,
                None => self.count("unreadable"),
            }
            run += 1;
            if run % RUN == 0 {
                yield_now().await;
            }
        }
    }

    async fn take(&self, heard: &mut Heard, number: u64, payload: &[u8]) -> io::Result<()> {
        match heard.next {
            None => self.instance.blocks.begin(number == 0),
            Some(next) if number == next => {}
            // the replay had it already
            Some(next) if number < next && !heard.is_settled => return Ok(()),
            Some(next) if number < next => return Err(io::Error::other("its numbers went back")),
            Some(next) => {
                let after = self.fill_gap(next, number).await?;
                heard.next = Some(after);
                if number < after {
                    heard.is_settled = false;
                    return Ok(());
                }
            }
        }
        heard.is_settled = true;
        heard.next = Some(number.wrapping_add(1));
        self.apply(payload, "applied", true);
        Ok(())
    }

    /// Batches from `from` on were missed, and `number` came. Returns the number that is to come next.
    async fn fill_gap(&self, from: u64, number: u64) -> io::Result<u64> {
        if let Some(replay) = &self.source.replay {
            match self.replay(replay, from).await {
                Ok(after) if after >= number => return Ok(after),
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(instance = %self.instance.name, %error, "missed KV events can't be had");
                }
            }
        }
        self.count("lost");
        tracing::warn!(instance = %self.instance.name, from, number, "KV events were missed: what is known is thrown away");
        self.instance.blocks.begin(false);
        Ok(number)
    }

    /// Asks for all batches from that number on. Returns the number that comes next.
    async fn replay(&self, address: &Address, from: u64) -> io::Result<u64> {
        timeout(REPLAY_LIMIT, async {
            let mut link = Link::connect(address, Kind::Dealer, self.limit).await?;
            link.send(&[b"", &from.to_be_bytes()]).await?;
            let mut next = from;
            let mut run = 0;
            loop {
                let message = link.receive().await?;
                // an empty frame, topic, number, batch
                let (number, payload) =
                    numbered(&message, 1).ok_or_else(|| io::Error::other("a replay can't be read"))?;
                if number == END {
                    break;
                }
                if run == 0 && from == 0 {
                    // older ones than the first may be gone
                    self.instance.blocks.begin(number == 0);
                    next = number;
                }
                if number != next && from > 0 {
                    return Err(io::Error::other("a replay has a gap"));
                }
                if number != next {
                    // its sender drops what its socket has no room for
                    self.instance.blocks.begin(false);
                }
                next = number.wrapping_add(1);
                self.apply(&payload, "replayed", from > 0);
                run += 1;
                if run % RUN == 0 {
                    yield_now().await;
                }
            }
            if run == 0 && from == 0 {
                // nothing has happened yet
                self.instance.blocks.begin(true);
            }
            Ok(next)
        })
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    fn apply(&self, payload: &[u8], result: &'static str, is_news: bool) {
        let Some(events) = batch::read(payload) else {
            // it may have said that blocks are gone
            self.count("unreadable");
            self.instance.blocks.begin(false);
            return;
        };
        self.count(result);
        if self.instance.blocks.apply(events) && is_news {
            self.lost_cache();
        }
    }

    /// What was learned from requests sent there is no longer true.
    fn lost_cache(&self) {
        if let Some(proxy) = self.proxy.upgrade() {
            self.instance.set_cache_id(proxy.fleet.next_cache_id());
        }
    }

    fn count(&self, result: &'static str) {
        if let Some(proxy) = self.proxy.upgrade()
            // its numbers went with it
            && proxy.fleet.contains(&self.instance)
        {
            proxy.metrics.count_batch(&self.instance.name, result);
        }
    }
}

/// The number and the batch of a message of three frames behind `skipped` others.
fn numbered(message: &[Bytes], skipped: usize) -> Option<(u64, Bytes)> {
    match message.get(skipped..)? {
        [_, number, payload] => {
            let number = <[u8; 8]>::try_from(number.as_ref()).ok()?;
            Some((u64::from_be_bytes(number), payload.clone()))
        }
        _ => None,
    }
}
