//! The HTML report of a replay.

use std::path::Path;

use kvstored_core::EngineStatistics;
use kvstored_core::size::format_bytes;

use super::results::{ReplayResults, Tally, share};
use crate::tools::latency::Latencies;
use crate::tools::report::{Bars, Lines, Page, Series};
use crate::tools::timeline::{Interval, Timeline};

/// Composes the report.
pub(super) fn page(
    trace: &Path,
    results: &ReplayResults,
    tally: &Tally,
    statistics: &EngineStatistics,
) -> Page {
    let name = trace
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let mut page = Page::new(&format!("kvstored replay of {name}"));
    page.paragraph("Every loaded byte was compared with what was dumped.");
    let rows: Vec<Vec<String>> = results
        .rows()
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    page.table("Summary", &["figure", "value"], &rows);
    page.lines(&hit_ratio(&tally.timeline));
    let bars = tally
        .tier_names
        .iter()
        .cloned()
        .zip(tally.hits.iter().map(|hits| *hits as f64))
        .collect();
    page.bars(&Bars {
        title: "Hits by tier".into(),
        unit: "blocks".into(),
        bars,
    });
    page.bars(&latency("Latency of lookups, one a request", &tally.lookup));
    page.bars(&latency("Latency of loads, one a request with hits", &tally.load));
    page.lines(&throughput(&tally.timeline));
    tiers(&mut page, statistics);
    page
}

fn times(timeline: &Timeline) -> impl Iterator<Item = (f64, &Interval)> {
    let length = timeline.interval_seconds();
    timeline
        .intervals()
        .iter()
        .enumerate()
        .map(move |(index, interval)| ((index as f64 + 1.0) * length, interval))
}

fn hit_ratio(timeline: &Timeline) -> Lines {
    let (mut hits, mut blocks) = (0, 0);
    let so_far = times(timeline).map(|(time, interval)| {
        hits += interval.hit_blocks;
        blocks += interval.prompt_blocks;
        (time, share(hits, blocks))
    });
    let so_far = Series {
        name: "since the beginning".into(),
        points: so_far.collect(),
    };
    let each = times(timeline)
        .filter(|(_, interval)| interval.prompt_blocks > 0)
        .map(|(time, interval)| (time, share(interval.hit_blocks, interval.prompt_blocks)));
    let each = Series {
        name: "of each interval".into(),
        points: each.collect(),
    };
    Lines {
        title: "Hit ratio".into(),
        x_label: "seconds".into(),
        y_label: "hit blocks by prompt blocks".into(),
        series: vec![each, so_far],
    }
}

fn throughput(timeline: &Timeline) -> Lines {
    let rate = |bytes: fn(&Interval) -> u64| {
        times(timeline)
            .map(|(time, interval)| (time, bytes(interval) as f64 / timeline.interval_seconds() / 1e9))
            .collect()
    };
    Lines {
        title: "Throughput".into(),
        x_label: "seconds".into(),
        y_label: "GB/s".into(),
        series: vec![
            Series {
                name: "loaded".into(),
                points: rate(|interval| interval.loaded_bytes),
            },
            Series {
                name: "dumped".into(),
                points: rate(|interval| interval.dumped_bytes),
            },
        ],
    }
}

fn latency(title: &str, latencies: &Latencies) -> Bars {
    let bars = latencies
        .distribution()
        .into_iter()
        .map(|(bound, count)| (format!("up to {bound:.1} us"), count as f64));
    Bars {
        title: title.into(),
        unit: String::new(),
        bars: bars.collect(),
    }
}

/// Adds a table of what each tier says of itself.
pub(crate) fn tiers(page: &mut Page, statistics: &EngineStatistics) {
    type Show = fn(&kvstored_core::engine::TierReport) -> String;
    const COLUMNS: [(&str, Show); 9] = [
        ("hits", |tier| tier.counts.hits.to_string()),
        ("misses", |tier| tier.counts.misses.to_string()),
        ("blocks", |tier| tier.statistics.blocks.to_string()),
        ("allocated", |tier| format_bytes(tier.statistics.allocated_bytes)),
        ("capacity", |tier| format_bytes(tier.statistics.capacity_bytes)),
        ("read", |tier| format_bytes(tier.statistics.read_bytes)),
        ("written", |tier| format_bytes(tier.statistics.written_bytes)),
        ("evicted", |tier| tier.statistics.evicted_blocks.to_string()),
        ("quarantined", |tier| {
            tier.statistics.quarantined_blocks.to_string()
        }),
    ];
    let names: Vec<&str> = std::iter::once("tier")
        .chain(COLUMNS.iter().map(|(name, _)| *name))
        .collect();
    let row = |tier: &kvstored_core::engine::TierReport| {
        std::iter::once(tier.name.clone())
            .chain(COLUMNS.iter().map(|(_, show)| show(tier)))
            .collect()
    };
    let rows: Vec<Vec<String>> = statistics.tiers.iter().map(row).collect();
    page.table("Tiers at the end", &names, &rows);
}
