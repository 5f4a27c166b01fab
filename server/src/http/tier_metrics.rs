//! The numbers of the tiers.

use std::fmt;

use kvstored_core::TransportStatistics;
use kvstored_core::engine::TierReport;
use kvstored_core::quota::QuotaUsage;
use prometheus_client::registry::Unit;

use super::metrics::Writer;

/// Takes one number out of a tier's report.
type Level = fn(&TierReport) -> u64;

/// What each tier has, did and moved.
pub(super) fn tiers(writer: &mut Writer<'_>, tiers: &[TierReport]) -> fmt::Result {
    let bytes = Some(&Unit::Bytes);
    let levels: [(&str, &str, Option<&Unit>, Level); 8] = [
        (
            "tier_allocated",
            "Physical bytes the tier occupies: files, memory, metadata",
            bytes,
            |tier| tier.statistics.allocated_bytes,
        ),
        (
            "tier_capacity",
            "Configured bound of the allocated bytes",
            bytes,
            |tier| tier.statistics.capacity_bytes,
        ),
        (
            "tier_index",
            "Memory that the tier's index takes",
            bytes,
            |tier| tier.statistics.index_bytes,
        ),
        (
            "tier_blocks",
            "Blocks that lookups find in the tier",
            None,
            |tier| tier.statistics.blocks,
        ),
        (
            "tier_queue_depth",
            "Operations of the tier waiting or under way",
            None,
            |tier| tier.statistics.queue_depth,
        ),
        (
            "tier_pending_writes",
            "Blocks on their way to the tier",
            None,
            |tier| tier.pending_writes,
        ),
        (
            "tier_held",
            "Bytes of buffers that a plugged-in tier or a device keeps past its deadline",
            bytes,
            |tier| tier.statistics.held_bytes,
        ),
        (
            "tier_degraded",
            "1 while the tier answers misses because it doesn't work",
            None,
            |tier| u64::from(tier.statistics.degraded),
        ),
    ];
    for (name, help, unit, level) in levels {
        writer.gauges(
            name,
            help,
            unit,
            tiers
                .iter()
                .map(|tier| ([("tier", tier.name.as_str())], level(tier) as f64)),
        )?;
    }
    let counts: [(&str, &str, Option<&Unit>, Level); 12] = [
        ("tier_hits", "Blocks that loads found in the tier", None, |tier| {
            tier.counts.hits
        }),
        (
            "tier_misses",
            "Blocks that loads asked the tier for in vain",
            None,
            |tier| tier.counts.misses,
        ),
        ("tier_loaded", "Bytes of KV in the tier's hits", bytes, |tier| {
            tier.counts.loaded_bytes
        }),
        ("tier_read", "Bytes read from the medium", bytes, |tier| {
            tier.statistics.read_bytes
        }),
        (
            "tier_written",
            "Bytes written to the medium, journal and padding included",
            bytes,
            |tier| tier.statistics.written_bytes,
        ),
        (
            "tier_evicted_blocks",
            "Blocks evicted to make room",
            None,
            |tier| tier.statistics.evicted_blocks,
        ),
        (
            "tier_reinserted_blocks",
            "Hot blocks written again during eviction",
            None,
            |tier| tier.statistics.reinserted_blocks,
        ),
        (
            "tier_quarantined_blocks",
            "Blocks that failed verification and are never served again",
            None,
            |tier| tier.statistics.quarantined_blocks,
        ),
        (
            "tier_refused_writes",
            "Writes refused for want of space or quota",
            None,
            |tier| tier.statistics.refused_writes,
        ),
        (
            "tier_faults",
            "Breaches of the contract and deadlines missed by a plugged-in tier or a device",
            None,
            |tier| tier.statistics.faults,
        ),
        (
            "tier_device_calls",
            "Calls that handed copies to a device; a batch is one",
            None,
            |tier| tier.statistics.device_calls,
        ),
        ("tier_device_copies", "Copies in those calls", None, |tier| {
            tier.statistics.device_copies
        }),
    ];
    for (name, help, unit, count) in counts {
        writer.counters(
            name,
            help,
            unit,
            tiers
                .iter()
                .map(|tier| ([("tier", tier.name.as_str())], count(tier))),
        )?;
    }
    transports(writer, tiers)?;
    quotas(writer, tiers)
}

/// What tiers moved between nodes.
fn transports(writer: &mut Writer<'_>, tiers: &[TierReport]) -> fmt::Result {
    type Count = fn(&TransportStatistics) -> u64;
    let bytes = Some(&Unit::Bytes);
    let counts: [(&str, &str, Option<&Unit>, Count); 3] = [
        (
            "tier_transport_read",
            "Bytes that whoever asked read over the transport",
            bytes,
            |moved| moved.read_bytes,
        ),
        (
            "tier_transport_written",
            "Bytes that whoever asked wrote over the transport",
            bytes,
            |moved| moved.written_bytes,
        ),
        (
            "tier_transport_failures",
            "Operations over the transport that failed, refused ones among them",
            None,
            |moved| moved.failures,
        ),
    ];
    for (name, help, unit, count) in counts {
        let samples = tiers.iter().flat_map(|tier| {
            tier.statistics.transports.iter().map(move |moved| {
                let side = if moved.served { "served" } else { "requested" };
                let labels = [
                    ("tier", tier.name.as_str()),
                    ("transport", moved.transport.as_str()),
                    ("side", side),
                ];
                (labels, count(moved))
            })
        });
        writer.counters(name, help, unit, samples)?;
    }
    Ok(())
}

/// What tenants and namespaces take of the tiers and may take.
fn quotas(writer: &mut Writer<'_>, tiers: &[TierReport]) -> fmt::Result {
    type Whose = fn(&TierReport) -> &[QuotaUsage];
    type Bytes = fn(&QuotaUsage) -> u64;
    let tenants: Whose = |tier| &tier.statistics.tenants;
    let namespaces: Whose = |tier| &tier.statistics.limited_namespaces;
    let used: Bytes = |usage| usage.used_bytes;
    let limit: Bytes = |usage| usage.limit_bytes.unwrap_or(0);
    let levels = [
        (
            "tier_tenant_used",
            "Bytes of a tenant's blocks in the tier",
            "tenant",
            tenants,
            used,
        ),
        (
            "tier_tenant_quota",
            "A tenant's limit in the tier; 0 for none",
            "tenant",
            tenants,
            limit,
        ),
        (
            "tier_namespace_used",
            "Bytes of the blocks in the tier of a namespace with a limit",
            "namespace",
            namespaces,
            used,
        ),
        (
            "tier_namespace_quota",
            "A namespace's limit in the tier",
            "namespace",
            namespaces,
            limit,
        ),
    ];
    for (name, help, label, whose, bytes) in levels {
        let samples = tiers.iter().flat_map(|tier| {
            whose(tier).iter().map(move |usage| {
                let labels = [("tier", tier.name.as_str()), (label, usage.name.as_str())];
                (labels, bytes(usage) as f64)
            })
        });
        writer.gauges(name, help, Some(&Unit::Bytes), samples)?;
    }
    Ok(())
}
