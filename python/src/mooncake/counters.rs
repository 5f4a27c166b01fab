//! What an engine moved, for Python.

use kvstored_core::{Error, Result};
use kvstored_transfer::{PeerCounters, Side, TransferEngine};

/// What was moved, by peer and transport, as JSON.
pub fn moved(engine: &TransferEngine) -> Result<String> {
    let rows: Vec<_> = engine.counters().iter().map(row).collect();
    serde_json::to_string(&rows).map_err(|error| Error::internal(format!("counters can't be told: {error}")))
}

fn row(counters: &PeerCounters) -> serde_json::Value {
    serde_json::json!({
        "peer": counters.peer.to_string(),
        "transport": counters.transport.name(),
        "served": counters.side == Side::Served,
        "reads": counters.reads,
        "read_bytes": counters.read_bytes,
        "writes": counters.writes,
        "written_bytes": counters.written_bytes,
        "failures": counters.failures,
        "refused": counters.refused,
    })
}
