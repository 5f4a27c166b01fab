//! `kvstored ctl pool drain`.

use std::process::ExitCode;
use std::time::Duration;

use kvstored_core::size::format_bytes;
use kvstored_core::{Error, ErrorKind, Result};
use kvstored_master::{Drained, NodeId, NodeStatus, parse_node};

use super::Context;
use crate::output::{emit, emit_json};

/// How often a drain that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Arguments of `kvstored ctl pool drain`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The node: its identity or the first few digits of it, or its name
    #[arg(value_name = "NODE")]
    node: String,

    /// Copy nothing, and take away also objects that have no copy elsewhere, as leases and pins run out: they are lost to
    /// the pool
    #[arg(long)]
    evict: bool,

    /// Wait until the node is empty, or nothing more can be copied, at most so long; if something is left then, the exit
    /// code is 1
    #[arg(long, value_name = "SECONDS", conflicts_with = "undo")]
    wait: Option<u64>,

    /// Use the node again; what was copied stays where it is
    #[arg(long, conflicts_with = "evict")]
    undo: bool,
}

pub fn run(context: &Context, arguments: &Arguments) -> Result<ExitCode> {
    let nodes = context.client.nodes(context.deadline())?;
    let node = find(&arguments.node, &nodes)?;
    let drain = || {
        let deadline = context.deadline();
        context
            .client
            .drain(&node, arguments.evict, arguments.undo, deadline)
    };
    let first = drain()?;
    let mut drained = first;
    if let Some(seconds) = arguments.wait {
        let until = context.runtime.deadline(Duration::from_secs(seconds));
        // what leaves goes by itself when its leases are over
        let goes_on =
            |drained: &Drained| !drained.is_settled(&first) || drained.progress.leaving_replicas > 0;
        while drained.replicas > 0 && goes_on(&drained) && context.runtime.clock.now() < until {
            std::thread::park_timeout(LOOK);
            drained = drain()?;
        }
    }
    if context.json {
        emit_json(&drained)?;
    } else {
        emit(&text(arguments, drained))?;
    }
    let left = arguments.wait.is_some() && drained.replicas > 0;
    Ok(if left {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn text(arguments: &Arguments, drained: Drained) -> String {
    if arguments.undo {
        return "the node is used again\n".to_owned();
    }
    let unplaced = match drained.progress.unplaced_objects {
        0 => String::new(),
        objects => format!(
            "; {objects} objects, {}, fit on no other node",
            format_bytes(drained.progress.unplaced_bytes)
        ),
    };
    format!(
        "nothing more is placed on the node; {} replicas, {}, are left there{unplaced}\n",
        drained.replicas,
        format_bytes(drained.used_bytes)
    )
}

fn find(text: &str, nodes: &[NodeStatus]) -> Result<NodeId> {
    let wanted = text.to_ascii_lowercase();
    let named: Vec<&NodeStatus> = nodes.iter().filter(|node| node.name == text).collect();
    let matching = if named.is_empty() {
        nodes
            .iter()
            .filter(|node| node.node.starts_with(&wanted))
            .collect()
    } else {
        named
    };
    match matching.as_slice() {
        [one] if !wanted.is_empty() => {
            parse_node(&one.node).ok_or_else(|| Error::internal("the master named a node wrongly"))
        }
        [] => Err(Error::new(
            ErrorKind::NotFound,
            format!("no node is called \"{text}\""),
        )),
        several => Err(Error::invalid(format!(
            "{} nodes match \"{text}\"; give more digits of the identity",
            several.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(identity: &str, name: &str) -> NodeStatus {
        NodeStatus {
            node: identity.to_owned(),
            name: name.to_owned(),
            control: String::new(),
            engine: String::new(),
            state: String::new(),
            segment_bytes: 0,
            used_bytes: 0,
            quarantined_bytes: 0,
            replicas: 0,
            silent_ms: 0,
            drain: None,
        }
    }

    #[test]
    fn nodes_are_found_by_name_or_digits() {
        let nodes = [
            node(&"ab".repeat(16), "one"),
            node(&"ac".repeat(16), "two"),
            node(&"cd".repeat(16), "ab"),
        ];
        assert_eq!(find("one", &nodes).unwrap(), [0xab; 16]);
        assert_eq!(find("AC", &nodes).unwrap(), [0xac; 16]);
        assert_eq!(
            find("ab", &nodes).unwrap(),
            [0xcd; 16],
            "a name counts before digits"
        );
        assert_eq!(find("a", &nodes).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(find("", &nodes).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(find("x", &nodes).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
