//! The numbers as OpenMetrics text. Each scrape reads one snapshot; nothing is registered globally.

use std::fmt;
use std::sync::Arc;

use kvstored_core::engine::{EngineStatistics, HistogramSnapshot};
use kvstored_core::eviction::PolicyKind;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::state::{AdminState, Phase};
use super::tier_metrics::tiers;

/// All metrics of a daemon; before its parts are there only what is known of it already.
pub fn render(state: &Arc<AdminState>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("kvstored");
    registry.register_collector(Box::new(Daemon {
        state: Arc::clone(state),
    }));
    let mut text = String::with_capacity(16 << 10);
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Daemon {
    state: Arc<AdminState>,
}

impl Collector for Daemon {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut writer = Writer { encoder };
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        writer.gauges(
            "build_info",
            "The running version; always 1",
            None,
            [(version, 1.0)],
        )?;
        let ready = f64::from(u8::from(self.state.phase() == Phase::Ready));
        writer.gauge(
            "ready",
            "1 while the daemon serves, 0 while it starts or drains",
            None,
            ready,
        )?;
        let started = self.state.start_unix_ms() as f64 / 1e3;
        writer.gauge(
            "start_time",
            "When the daemon started, since the Unix epoch",
            Some(&Unit::Seconds),
            started,
        )?;
        let Some(parts) = self.state.parts() else {
            return Ok(());
        };
        let statistics = (parts.statistics)();
        tiers(&mut writer, &statistics.tiers)?;
        engine(&mut writer, &statistics)?;
        shadows(&mut writer, &(parts.shadows)())
    }
}

fn engine(writer: &mut Writer<'_>, statistics: &EngineStatistics) -> fmt::Result {
    writer.counter(
        "dumped_blocks",
        "Blocks dumped by clients",
        None,
        statistics.dumped_blocks,
    )?;
    writer.counter(
        "dumped",
        "Bytes of KV dumped by clients",
        Some(&Unit::Bytes),
        statistics.dumped_bytes,
    )?;
    let errors = statistics
        .errors
        .iter()
        .map(|(kind, count)| ([("kind", kind.as_str())], *count));
    writer.counters("errors", "Errors by kind; a plain miss is none", None, errors)?;
    let levels = [
        (
            "promotions_in_flight",
            "Blocks being read from lower tiers",
            statistics.promotions_in_flight,
        ),
        (
            "parked_requests",
            "Dumps waiting for room in the cache buffer",
            statistics.parked_requests,
        ),
        ("namespaces", "Open namespaces", statistics.namespaces),
    ];
    for (name, help, level) in levels {
        writer.gauge(name, help, None, level as f64)?;
    }
    writer.histogram("lookup", "Time of lookups", &statistics.lookup)?;
    writer.histogram(
        "acquire",
        "Time from asking for blocks to having them pinned in memory",
        &statistics.acquire,
    )?;
    writer.histogram(
        "commit",
        "Time from a block's last byte to its acknowledgement",
        &statistics.commit,
    )
}

fn shadows(writer: &mut Writer<'_>, shadows: &[(PolicyKind, u64, u64)]) -> fmt::Result {
    let hits = shadows
        .iter()
        .map(|(policy, hits, _)| ([("policy", policy.name())], *hits));
    writer.counters(
        "shadow_hits",
        "Sampled blocks that the cache would have hit under the policy",
        None,
        hits,
    )?;
    let lookups = shadows
        .iter()
        .map(|(policy, _, lookups)| ([("policy", policy.name())], *lookups));
    writer.counters(
        "shadow_lookups",
        "Sampled blocks that were looked up",
        None,
        lookups,
    )
}

/// Writes one family after the other; the library appends `_total` to counters and the unit to names.
pub(crate) struct Writer<'a> {
    encoder: DescriptorEncoder<'a>,
}

/// The labels of a sample.
pub(crate) type Labels<'a, const COUNT: usize = 1> = [(&'static str, &'a str); COUNT];

impl<'a> Writer<'a> {
    pub(crate) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self { encoder }
    }

    pub(crate) fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> fmt::Result {
        self.encoder
            .encode_descriptor(name, help, unit, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    pub(crate) fn gauges<'s, const COUNT: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (Labels<'s, COUNT>, f64)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut metric = self
            .encoder
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in samples {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    pub(crate) fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let mut metric = self
            .encoder
            .encode_descriptor(name, help, unit, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, u64, f64>(&value, None)
    }

    pub(crate) fn counters<'s, const COUNT: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        samples: impl IntoIterator<Item = (Labels<'s, COUNT>, u64)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut metric = self
            .encoder
            .encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in samples {
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, snapshot: &HistogramSnapshot) -> fmt::Result {
        let last = snapshot.buckets.len().saturating_sub(1);
        let mut buckets: Vec<(f64, u64)> = snapshot
            .buckets
            .iter()
            .enumerate()
            .map(|(index, (bound_us, count))| {
                (
                    if index == last {
                        f64::INFINITY
                    } else {
                        bound_us / 1e6
                    },
                    *count,
                )
            })
            .collect();
        if buckets.is_empty() {
            buckets.push((f64::INFINITY, 0));
        }
        let mut metric =
            self.encoder
                .encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(snapshot.sum_us / 1e6, snapshot.count(), &buckets, None)
    }
}
