//! `kvstored ctl ls`.

use std::process::ExitCode;

use kvstored_client::NamespaceRow;
use kvstored_core::{BlockKey, Namespace, Result};
use serde_json::json;

use crate::output::{emit, emit_json};

use super::Context;
use super::table::table;

/// Keys asked for in one message.
const PAGE: usize = 4096;

/// Arguments of `kvstored ctl ls`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// List the blocks of this namespace; the first digits are enough
    #[arg(long, value_name = "HEX")]
    namespace: Option<String>,

    /// List the blocks of this tier [default: all tiers]
    #[arg(long, value_name = "NAME")]
    tier: Option<String>,

    /// The most blocks to list of each tier
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

/// Lists namespaces, or blocks where a namespace or a tier is named.
pub fn run(context: &Context, arguments: &Arguments) -> Result<ExitCode> {
    if arguments.namespace.is_none() && arguments.tier.is_none() {
        namespaces(context)?;
    } else {
        blocks(context, arguments)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn namespaces(context: &Context) -> Result<()> {
    let mut rows = context.client.namespaces()?;
    rows.retain(|row| row.blocks_by_tier.iter().any(|blocks| *blocks > 0));
    if context.json {
        return emit_json(&json!({ "tiers": context.client.tier_names(), "namespaces": rows }));
    }
    let tiers = context.client.tier_names().iter().map(String::as_str);
    let headings: Vec<&str> = ["namespace", "tenant", "model", "dtype", "rank"]
        .into_iter()
        .chain(tiers)
        .collect();
    let rows: Vec<Vec<String>> = rows.iter().map(namespace_row).collect();
    emit(&table(&headings, &rows))
}

fn namespace_row(row: &NamespaceRow) -> Vec<String> {
    let unknown = || "?".to_owned();
    let identity = row.identity.as_ref();
    let mut cells = vec![
        row.namespace.to_string(),
        identity.map_or_else(unknown, |identity| identity.tenant.clone()),
        identity.map_or_else(unknown, |identity| identity.model.clone()),
        identity.map_or_else(unknown, |identity| identity.dtype.clone()),
        identity.map_or_else(unknown, |identity| {
            let shape = &identity.parallel;
            format!(
                "tp {}/{} pp {}/{}",
                shape.tensor_parallel_rank,
                shape.tensor_parallel_size,
                shape.pipeline_parallel_rank,
                shape.pipeline_parallel_size
            )
        }),
    ];
    cells.extend(row.blocks_by_tier.iter().map(u64::to_string));
    cells
}

fn blocks(context: &Context, arguments: &Arguments) -> Result<()> {
    let namespace = arguments
        .namespace
        .as_deref()
        .map(|text| context.namespace(text))
        .transpose()?;
    let names = context.client.tier_names();
    let tiers: Vec<usize> = match &arguments.tier {
        Some(name) => vec![context.tier(name)?],
        None => (0..names.len()).collect(),
    };
    let mut found = Vec::new();
    for tier in tiers {
        let name = names.get(tier).cloned().unwrap_or_default();
        for key in keys(context, tier, namespace.as_ref(), arguments.limit)? {
            found.push((name.clone(), key));
        }
    }
    if context.json {
        let rows = found.iter().map(|(tier, key)| {
            json!({ "tier": tier, "namespace": key.namespace.to_string(), "hash": key.hash.to_string() })
        });
        return emit_json(&json!({ "blocks": rows.collect::<Vec<_>>() }));
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|(tier, key)| vec![tier.clone(), key.namespace.to_string(), key.hash.to_string()])
        .collect();
    emit(&table(&["tier", "namespace", "hash"], &rows))
}

fn keys(
    context: &Context,
    tier: usize,
    namespace: Option<&Namespace>,
    limit: usize,
) -> Result<Vec<BlockKey>> {
    let mut keys: Vec<BlockKey> = Vec::new();
    while keys.len() < limit {
        let page = context
            .client
            .list(tier, namespace, keys.last(), PAGE.min(limit - keys.len()))?;
        if page.is_empty() {
            break;
        }
        keys.extend(page);
    }
    Ok(keys)
}
