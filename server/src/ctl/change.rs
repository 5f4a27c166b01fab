//! `kvstored ctl evict`, `purge` and `drain`.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use kvstored_client::NamespaceHandle;
use kvstored_core::{BlockHash, Error, ErrorKind, Namespace, Result};
use serde_json::json;

use crate::output::{emit, emit_json};

use super::Context;

/// Arguments of `kvstored ctl evict`.
#[derive(Clone, Debug, clap::Args)]
pub struct EvictArguments {
    /// The blocks' namespace; the first digits are enough
    #[arg(long, value_name = "HEX")]
    namespace: String,

    /// Drop from this tier only [default: from all]
    #[arg(long, value_name = "NAME")]
    tier: Option<String>,

    /// Block hashes, 32 to 64 hexadecimal digits each
    #[arg(value_name = "HASH", required = true, value_parser = block_hash)]
    hashes: Vec<BlockHash>,
}

/// Arguments of `kvstored ctl purge`.
#[derive(Clone, Debug, clap::Args)]
pub struct PurgeArguments {
    /// The namespace to forget, all 64 digits
    #[arg(long, value_name = "HEX")]
    namespace: String,

    /// Don't ask
    #[arg(long)]
    yes: bool,
}

/// Arguments of `kvstored ctl drain`.
#[derive(Clone, Debug, clap::Args)]
pub struct DrainArguments {
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// Reads a block hash. Fails, quoting the text.
pub fn block_hash(text: &str) -> std::result::Result<BlockHash, String> {
    let wrong = || {
        format!("block hash \"{text}\" is not made of 32 to 64 hexadecimal digits, an even number of them")
    };
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let bytes: Vec<u8> = digits
        .ok_or_else(wrong)?
        .chunks_exact(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte * 16 + *digit) as u8)
        .collect();
    BlockHash::new(&bytes).map_err(|_| wrong())
}

/// Drops blocks.
pub fn evict(context: &Context, arguments: &EvictArguments) -> Result<ExitCode> {
    let tier = match &arguments.tier {
        Some(name) => context.client.tier_names().get(context.tier(name)?).cloned(),
        None => None,
    };
    let namespace = context.namespace(&arguments.namespace)?;
    let handle = open(context, &namespace)?;
    let dropped = context
        .client
        .evict(&handle, &arguments.hashes, tier.as_deref())?;
    if context.json {
        emit_json(&json!({ "dropped": dropped }))?;
    } else {
        emit(&format!("dropped from {dropped} places\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens a namespace of which only the digest is known. Fails with `NotFound` where the daemon knows no more either.
fn open(context: &Context, namespace: &Namespace) -> Result<NamespaceHandle> {
    let row = context
        .client
        .namespaces()?
        .into_iter()
        .find(|row| row.namespace == *namespace);
    let known = row.and_then(|row| Some((row.layout()?, row.identity?)));
    let (layout, identity) = known.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            "the daemon has no blocks of the namespace, or doesn't know what it stands for",
        )
        .with("namespace", namespace)
    })?;
    context.client.open_namespace(&identity, &layout)
}

/// Forgets a namespace, after asking.
pub fn purge(context: &Context, arguments: &PurgeArguments) -> Result<ExitCode> {
    let namespace = Namespace::from_hex(&arguments.namespace)?;
    if !arguments.yes && !confirmed(context, &namespace)? {
        eprintln!("kvstored: nothing was purged");
        return Ok(ExitCode::FAILURE);
    }
    let dropped = context.client.purge(&namespace)?;
    if context.json {
        emit_json(&json!({ "dropped_blocks": dropped }))?;
    } else {
        emit(&format!("purged; {dropped} blocks dropped\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn confirmed(context: &Context, namespace: &Namespace) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::invalid("a purge can't be undone; confirm it with --yes"));
    }
    let row = context
        .client
        .namespaces()?
        .into_iter()
        .find(|row| row.namespace == *namespace);
    let blocks: u64 = row.map_or(0, |row| row.blocks_by_tier.iter().sum());
    let failed = |error| Error::from_io(error, "the answer can't be read");
    let mut terminal = std::io::stderr().lock();
    write!(
        terminal,
        "purge {namespace} ({blocks} copies of blocks) for good? [y/N] "
    )
    .map_err(failed)?;
    terminal.flush().map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Waits until everything accepted is durable.
pub fn drain(context: &Context, arguments: &DrainArguments) -> Result<ExitCode> {
    context
        .client
        .drain(Duration::from_secs(arguments.timeout.min(86_400)))?;
    if context.json {
        emit_json(&json!({ "drained": true }))?;
    } else {
        emit("drained: everything accepted is stored durably\n")?;
    }
    Ok(ExitCode::SUCCESS)
}
