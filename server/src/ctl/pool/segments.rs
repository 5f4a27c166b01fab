//! `kvstored ctl pool segments`.

use std::fmt::Write;
use std::process::ExitCode;

use kvstored_core::Result;
use kvstored_core::size::format_bytes;
use kvstored_master::{DrainProgress, NodeStatus};

use super::Context;
use crate::ctl::table::table;
use crate::output::{emit, emit_json};

pub fn run(context: &Context) -> Result<ExitCode> {
    let nodes = context.client.nodes(context.deadline())?;
    if context.json {
        emit_json(&nodes)?;
    } else {
        let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
        let headings = [
            "node",
            "name",
            "state",
            "lent",
            "used",
            "quarantined",
            "replicas",
            "silent ms",
            "engine",
            "drain",
        ];
        emit(&table(&headings, &rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(node: &NodeStatus) -> Vec<String> {
    vec![
        node.node.clone(),
        node.name.clone(),
        node.state.clone(),
        format_bytes(node.segment_bytes),
        format_bytes(node.used_bytes),
        format_bytes(node.quarantined_bytes),
        node.replicas.to_string(),
        node.silent_ms.to_string(),
        node.engine.clone(),
        node.drain.map(|drain| progress(&drain)).unwrap_or_default(),
    ]
}

/// How far the emptying of a node is, in words.
fn progress(drain: &DrainProgress) -> String {
    let mut text = format!(
        "{} moved ({})",
        drain.moved_objects,
        format_bytes(drain.moved_bytes)
    );
    for (count, what) in [
        (drain.moving_objects, "being copied"),
        (drain.leaving_replicas, "leased for a while"),
    ] {
        if count > 0 {
            // writing to a string can't fail
            let _ = write!(text, ", {count} {what}");
        }
    }
    if drain.unplaced_objects > 0 {
        let bytes = format_bytes(drain.unplaced_bytes);
        let _ = write!(text, ", {} fit nowhere ({bytes})", drain.unplaced_objects);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_is_told_in_words() {
        let mut drain = DrainProgress {
            moved_objects: 3,
            moved_bytes: 3 << 20,
            ..DrainProgress::default()
        };
        assert_eq!(progress(&drain), "3 moved (3MiB)");
        drain.moving_objects = 2;
        drain.leaving_replicas = 1;
        drain.unplaced_objects = 4;
        drain.unplaced_bytes = 1 << 30;
        assert_eq!(
            progress(&drain),
            "3 moved (3MiB), 2 being copied, 1 leased for a while, 4 fit nowhere (1GiB)"
        );
    }
}
