//! `kvstored ctl verify`: a scrub of what is stored, at a rate that leaves room for others.

use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kvstored_core::engine::VerifyReport;
use kvstored_core::{BlockKey, Namespace, Result};
use parking_lot::{Condvar, Mutex};
use serde_json::{Map, Value, json};

use crate::output::{emit, emit_json};

use super::Context;
use super::table::table;

/// Blocks checked in one request: few, because each takes a slot of the cache buffer meanwhile.
const BATCH: usize = 32;
/// Exit code when blocks couldn't be read, and none of the others is corrupt.
const UNREAD_EXIT: u8 = 4;

/// Arguments of `kvstored ctl verify`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Check this tier [default: all below memory]
    #[arg(long, value_name = "NAME")]
    tier: Option<String>,

    /// Check this namespace; the first digits are enough [default: all]
    #[arg(long, value_name = "HEX")]
    namespace: Option<String>,

    /// Blocks to check per second at most; 0 for as fast as it goes
    #[arg(long, value_name = "BLOCKS", default_value_t = 0)]
    rate: u32,
}

/// Checks blocks and reports; corrupt ones are quarantined by the daemon.
pub fn run(context: &Context, arguments: &Arguments) -> Result<ExitCode> {
    let namespace = arguments
        .namespace
        .as_deref()
        .map(|text| context.namespace(text))
        .transpose()?;
    let names = context.client.tier_names();
    let tiers: Vec<usize> = match &arguments.tier {
        Some(name) => vec![context.tier(name)?],
        None => (1..names.len()).collect(),
    };
    let totals = expected(context, namespace.as_ref())?;
    let mut reports = Vec::new();
    for tier in tiers {
        let name = names.get(tier).cloned().unwrap_or_default();
        let total = totals.get(tier).copied().unwrap_or(0);
        let report = scrub(context, tier, &name, total, namespace.as_ref(), arguments.rate)?;
        reports.push((name, report));
    }
    print(context, &reports)?;
    let sum = |count: fn(&VerifyReport) -> u64| reports.iter().map(|(_, report)| count(report)).sum::<u64>();
    Ok(if sum(|report| report.corrupt_blocks) > 0 {
        ExitCode::FAILURE
    } else if sum(|report| report.unread_blocks) > 0 {
        ExitCode::from(UNREAD_EXIT)
    } else {
        ExitCode::SUCCESS
    })
}

/// How many blocks each tier has, for the progress bar.
fn expected(context: &Context, namespace: Option<&Namespace>) -> Result<Vec<u64>> {
    match namespace {
        None => Ok(context
            .client
            .statistics()?
            .tiers
            .iter()
            .map(|tier| tier.statistics.blocks)
            .collect()),
        Some(wanted) => {
            let rows = context.client.namespaces()?;
            let row = rows.into_iter().find(|row| row.namespace == *wanted);
            Ok(row.map(|row| row.blocks_by_tier).unwrap_or_default())
        }
    }
}

fn scrub(
    context: &Context,
    tier: usize,
    name: &str,
    total: u64,
    namespace: Option<&Namespace>,
    rate: u32,
) -> Result<VerifyReport> {
    let bar = progress(context.json, name, total);
    let started = context.runtime.clock.now();
    let mut sum = VerifyReport::default();
    let mut after: Option<BlockKey> = None;
    let mut seen = 0u64;
    loop {
        let (report, last) = context.client.verify(tier, namespace, after.as_ref(), BATCH)?;
        sum.checked_blocks += report.checked_blocks;
        sum.corrupt_blocks += report.corrupt_blocks;
        sum.vanished_blocks += report.vanished_blocks;
        sum.unread_blocks += report.unread_blocks;
        let Some(last) = last else { break };
        after = Some(last);
        seen += report.checked_blocks + report.vanished_blocks + report.unread_blocks;
        bar.set_position(seen);
        bar.set_message(format!("{} corrupt", sum.corrupt_blocks));
        if rate > 0 {
            let due = started + Duration::from_secs_f64(seen as f64 / f64::from(rate));
            pause(due.saturating_duration_since(context.runtime.clock.now()));
        }
    }
    bar.finish_and_clear();
    Ok(sum)
}

/// Waits; nobody wakes it early.
fn pause(duration: Duration) {
    if !duration.is_zero() {
        Condvar::new().wait_for(&mut Mutex::new(()).lock(), duration);
    }
}

fn progress(json: bool, name: &str, total: u64) -> ProgressBar {
    // indicatif draws nothing where standard error is no terminal
    let bar = if json {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(total)
    };
    if let Ok(style) =
        ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} blocks, {per_sec}, {eta} left, {msg}")
    {
        bar.set_style(style);
    }
    bar.set_prefix(name.to_owned());
    bar
}

fn print(context: &Context, reports: &[(String, VerifyReport)]) -> Result<()> {
    if context.json {
        let tiers: Map<String, Value> = reports
            .iter()
            .map(|(name, report)| (name.clone(), json!(report)))
            .collect();
        return emit_json(&json!({ "tiers": tiers }));
    }
    let rows: Vec<Vec<String>> = reports
        .iter()
        .map(|(name, report)| {
            let counts = [
                report.checked_blocks,
                report.corrupt_blocks,
                report.vanished_blocks,
                report.unread_blocks,
            ];
            std::iter::once(name.clone())
                .chain(counts.iter().map(u64::to_string))
                .collect()
        })
        .collect();
    emit(&table(
        &["tier", "checked", "corrupt", "vanished", "unread"],
        &rows,
    ))
}
