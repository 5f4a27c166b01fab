//! The proxy's numbers as OpenMetrics text. Each scrape reads one snapshot; nothing is registered globally.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::fleet::Fleet;
use crate::instance::{Instance, Role};

/// From 0.1 ms, doubling, to seven minutes.
const FIRST_BUCKET_SECONDS: f64 = 1e-4;
const BUCKETS: u16 = 23;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByInstance {
    instance: String,
}

/// Labels of finished requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    /// The route's last word.
    pub route: &'static str,
    /// How it ended.
    pub outcome: &'static str,
    /// The status sent.
    pub code: u32,
}

/// Labels of tries that were followed by another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByReason {
    /// The leg.
    pub leg: &'static str,
    /// What was wrong with the try before.
    pub reason: &'static str,
}

/// Labels of messages sent in the background.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByResult {
    /// What came of it.
    pub result: &'static str,
}

/// Labels of batches of KV events.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByBatch {
    instance: String,
    result: &'static str,
}

/// What may come of a batch of KV events.
const BATCH_RESULTS: [&str; 4] = ["applied", "replayed", "unreadable", "lost"];

/// Histograms of one instance.
#[derive(Clone, Debug)]
pub struct InstanceTimes {
    /// Queueing before a prefill; for a decode instance the transfer, until its first event.
    pub before: Histogram,
    /// The prefill; for a decode instance the decode, from its first event to the last.
    pub during: Histogram,
}

type Times = Family<ByInstance, Histogram, fn() -> Histogram>;

fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(FIRST_BUCKET_SECONDS, 2.0, BUCKETS))
}

fn times() -> Times {
    Family::new_with_constructor(histogram)
}

/// All metrics of a proxy.
#[derive(Clone, Debug)]
pub struct Metrics {
    queue: Times,
    prefill: Times,
    transfer: Times,
    decode: Times,
    /// Finished requests.
    pub requests: Family<ByOutcome, Counter>,
    /// Tries that were followed by another.
    pub retries: Family<ByReason, Counter>,
    /// Requests that a decode instance gave back to be prefilled again.
    pub recomputed: Counter,
    /// Prompts whose KV nobody pulled, by whether its keeper was told.
    pub abandoned: Family<ByResult, Counter>,
    /// Prompt tokens (estimated) of prefills.
    pub prompt_tokens: Counter,
    /// Those of them that the chosen instance had, going by the affinity's source.
    pub affinity_tokens: Counter,
    kv_event_batches: Family<ByBatch, Counter>,
    /// Requests under way.
    pub in_flight: Gauge<i64, std::sync::atomic::AtomicI64>,
    /// Connections of clients.
    pub connections: Gauge<i64, std::sync::atomic::AtomicI64>,
    /// Bytes of request bodies held.
    pub held_bytes: Gauge<u64, AtomicU64>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        Self {
            queue: times(),
            prefill: times(),
            transfer: times(),
            decode: times(),
            requests: Family::default(),
            retries: Family::default(),
            recomputed: Counter::default(),
            abandoned: Family::default(),
            prompt_tokens: Counter::default(),
            affinity_tokens: Counter::default(),
            kv_event_batches: Family::default(),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            held_bytes: Gauge::default(),
        }
    }

    /// The histograms of an instance.
    pub fn times(&self, role: Role, instance: &str) -> InstanceTimes {
        let label = ByInstance {
            instance: instance.to_owned(),
        };
        let (before, during) = self.families(role);
        InstanceTimes {
            before: before.get_or_create_owned(&label),
            during: during.get_or_create_owned(&label),
        }
    }

    /// Forgets the histograms of an instance that is gone.
    pub fn forget(&self, role: Role, instance: &str) {
        let label = ByInstance {
            instance: instance.to_owned(),
        };
        let (before, during) = self.families(role);
        before.remove(&label);
        during.remove(&label);
        if role == Role::Prefill {
            for result in BATCH_RESULTS {
                self.kv_event_batches.remove(&ByBatch {
                    instance: instance.to_owned(),
                    result,
                });
            }
        }
    }

    /// Counts a batch of KV events of an instance.
    pub fn count_batch(&self, instance: &str, result: &'static str) {
        self.kv_event_batches
            .get_or_create(&ByBatch {
                instance: instance.to_owned(),
                result,
            })
            .inc();
    }

    fn families(&self, role: Role) -> (&Times, &Times) {
        match role {
            Role::Prefill => (&self.queue, &self.prefill),
            Role::Decode => (&self.transfer, &self.decode),
        }
    }

    /// Everything as text.
    pub fn render(&self, fleet: &Arc<Fleet>) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("kvstored_proxy");
        let seconds = [
            ("queue", "From a request's last byte to its prefill", &self.queue),
            ("prefill", "From sending a prefill to its answer", &self.prefill),
            (
                "transfer",
                "From sending a decode to its first event",
                &self.transfer,
            ),
            ("decode", "From a decode's first event to its last", &self.decode),
        ];
        for (name, help, family) in seconds {
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        registry.register("requests", "Finished requests", self.requests.clone());
        registry.register(
            "retries",
            "Tries of a leg that followed a failed one",
            self.retries.clone(),
        );
        registry.register(
            "recomputed",
            "Requests that a decode instance gave back",
            self.recomputed.clone(),
        );
        registry.register(
            "abandoned",
            "Prompts whose KV nobody pulled",
            self.abandoned.clone(),
        );
        registry.register(
            "prompt_tokens",
            "Prompt tokens of prefills, estimated",
            self.prompt_tokens.clone(),
        );
        registry.register(
            "affinity_tokens",
            "Prompt tokens sent to where they had been computed, estimated",
            self.affinity_tokens.clone(),
        );
        registry.register(
            "kv_event_batches",
            "Batches of KV events of an instance",
            self.kv_event_batches.clone(),
        );
        registry.register("in_flight", "Requests under way", self.in_flight.clone());
        registry.register("connections", "Connections of clients", self.connections.clone());
        registry.register_with_unit(
            "held",
            "Request bodies in memory",
            Unit::Bytes,
            self.held_bytes.clone(),
        );
        registry.register_collector(Box::new(Instances {
            fleet: Arc::clone(fleet),
        }));
        let mut text = String::with_capacity(16 << 10);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

struct Instances {
    fleet: Arc<Fleet>,
}

impl fmt::Debug for Instances {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Instances")
    }
}

/// Takes one number out of an instance.
type Level = fn(&Instance) -> u64;

impl Collector for Instances {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let levels: [(&str, &str, Level); 5] = [
            (
                "instance_up",
                "1 while the instance is reachable and takes requests",
                |instance| u64::from(instance.condition.fitness() != crate::instance::Fitness::Unusable),
            ),
            (
                "instance_requests",
                "Requests under way at the instance",
                |instance| instance.load.requests(),
            ),
            (
                "instance_active_tokens",
                "Prompt tokens of requests under way at the instance, estimated",
                |instance| instance.load.active_tokens(),
            ),
            (
                "instance_held_tokens",
                "Prompt tokens whose KV the instance holds for a decode instance, estimated",
                |instance| instance.load.held_tokens(),
            ),
            (
                "instance_known_blocks",
                "Blocks in the instance's prefix cache, by its KV events",
                |instance| instance.blocks.known_blocks() as u64,
            ),
        ];
        for (name, help, level) in levels {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for role in Role::ALL {
                for instance in self.fleet.instances(role).iter() {
                    let labels = [("role", role.name()), ("instance", instance.name.as_str())];
                    metric
                        .encode_family(&labels)?
                        .encode_gauge(&(level(instance) as f64))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::address::Address;
    use crate::instance::Phase;

    #[test]
    fn every_metric_is_documented() {
        let metrics = Metrics::new();
        let fleet = Arc::new(Fleet::new(metrics.clone(), Duration::from_secs(1)));
        for role in Role::ALL {
            fleet
                .add(role, &Address::new("h", 1).unwrap(), Phase::Active)
                .unwrap();
        }
        let text = metrics.render(&fleet).unwrap();
        let page = include_str!("../../../docs/guides/proxy.md");
        for line in text.lines() {
            let Some(name) = line
                .strip_prefix("# TYPE ")
                .and_then(|rest| rest.split(' ').next())
            else {
                continue;
            };
            assert!(page.contains(&format!("`{name}")), "{name} is not in the guide");
        }
        assert!(text.contains("kvstored_proxy_instance_up{role=\"decode\",instance=\"h:1\"} 1"));
        assert!(text.contains("kvstored_proxy_prefill_seconds_count{instance=\"h:1\"} 0"));
        metrics.forget(Role::Prefill, "h:1");
        let text = metrics.render(&fleet).unwrap();
        assert!(!text.contains("kvstored_proxy_prefill_seconds_count{instance"));
    }
}
