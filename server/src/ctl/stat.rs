//! `kvstored ctl stat`.

use std::process::ExitCode;

use kvstored_core::Result;
use kvstored_core::engine::{EngineStatistics, HistogramSnapshot, TierReport};
use kvstored_core::size::format_bytes;

use crate::output::{emit, emit_json};

use super::Context;
use super::table::table;

/// Prints the daemon's numbers.
pub fn run(context: &Context) -> Result<ExitCode> {
    let statistics = context.client.statistics()?;
    if context.json {
        emit_json(&statistics)?;
    } else {
        emit(&text(&statistics))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The numbers for people.
pub fn text(statistics: &EngineStatistics) -> String {
    let headings = [
        "tier",
        "blocks",
        "allocated",
        "capacity",
        "index",
        "hits",
        "misses",
        "hit ratio",
        "evicted",
        "quarantined",
        "refused",
        "pending",
        "state",
    ];
    let rows: Vec<Vec<String>> = statistics.tiers.iter().map(row).collect();
    let tiers = table(&headings, &rows);
    let quotas = quotas(&statistics.tiers);
    let dumped = format!(
        "dumped {} blocks, {}",
        statistics.dumped_blocks,
        format_bytes(statistics.dumped_bytes)
    );
    let under_way = format!(
        "{} namespaces open, {} blocks being promoted, {} dumps waiting for room",
        statistics.namespaces, statistics.promotions_in_flight, statistics.parked_requests,
    );
    let timings = [
        ("lookup", &statistics.lookup),
        ("acquire", &statistics.acquire),
        ("commit", &statistics.commit),
    ];
    let timings = table(
        &["time in us", "count", "p50", "p99", "mean"],
        &timings.map(|(name, timing)| timing_row(name, timing)),
    );
    let counted = statistics.errors.iter().filter(|(_, count)| *count > 0);
    let errors: Vec<String> = counted.map(|(kind, count)| format!("{kind} {count}")).collect();
    let errors = if errors.is_empty() {
        "none".to_owned()
    } else {
        errors.join(", ")
    };
    format!("{tiers}{quotas}\n{dumped}; {under_way}\n\n{timings}\nerrors: {errors}\n")
}

fn row(tier: &TierReport) -> Vec<String> {
    let (own, counts) = (&tier.statistics, &tier.counts);
    let asked = counts.hits + counts.misses;
    let ratio = if asked == 0 {
        "-".to_owned()
    } else {
        format!("{:.3}", counts.hits as f64 / asked as f64)
    };
    let state = if own.degraded {
        format!("degraded: {}", own.degraded_reason)
    } else {
        "ok".to_owned()
    };
    vec![
        tier.name.clone(),
        own.blocks.to_string(),
        format_bytes(own.allocated_bytes),
        format_bytes(own.capacity_bytes),
        format_bytes(own.index_bytes),
        counts.hits.to_string(),
        counts.misses.to_string(),
        ratio,
        own.evicted_blocks.to_string(),
        own.quarantined_blocks.to_string(),
        own.refused_writes.to_string(),
        tier.pending_writes.to_string(),
        state,
    ]
}

/// What tenants and namespaces take of their quotas; empty where there are none.
fn quotas(tiers: &[TierReport]) -> String {
    let rows: Vec<Vec<String>> = tiers
        .iter()
        .flat_map(|tier| {
            let own = &tier.statistics;
            let tenants = own.tenants.iter().map(|usage| ("tenant", usage));
            let namespaces = own.limited_namespaces.iter().map(|usage| ("namespace", usage));
            tenants.chain(namespaces).map(|(kind, usage)| {
                vec![
                    tier.name.clone(),
                    format!("{kind} {}", usage.name),
                    format_bytes(usage.used_bytes),
                    usage.limit_bytes.map_or_else(|| "-".to_owned(), format_bytes),
                ]
            })
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}", table(&["tier", "of", "used", "quota"], &rows))
}

fn timing_row(name: &str, timing: &HistogramSnapshot) -> Vec<String> {
    let count = timing.count();
    let mean = if count == 0 {
        0.0
    } else {
        timing.sum_us / count as f64
    };
    vec![
        name.to_owned(),
        count.to_string(),
        format!("{:.1}", timing.quantile_us(0.5)),
        format!("{:.1}", timing.quantile_us(0.99)),
        format!("{mean:.1}"),
    ]
}
