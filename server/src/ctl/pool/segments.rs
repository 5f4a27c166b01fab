//! `kvstored ctl pool segments`.

use std::process::ExitCode;

use kvstored_core::Result;
use kvstored_core::size::format_bytes;
use kvstored_master::NodeStatus;

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
    ]
}
