//! Messages about nodes that are being emptied, and the plain types.

use std::time::Duration;

use kvstored_core::{Error, Result};
use prost::bytes::Bytes;

use super::{NodeTable, Nodes, millis, proto};
use crate::types::{DrainProgress, Drained, Move, Moves};

pub(crate) fn from_moves(moves: Moves) -> proto::MoveStartResponse {
    let mut nodes = NodeTable::default();
    let one = |one: Move| proto::Move {
        key: Bytes::from(one.key.into_vec()),
        from_put: one.from_put,
        length: one.length,
        checksum: one.checksum,
        ticket: Some(nodes.ticket(one.ticket)),
    };
    proto::MoveStartResponse {
        moves: moves.moves.into_iter().map(one).collect(),
        nodes: nodes.into_nodes(),
        wait_ms: millis(moves.wait),
    }
}

pub(crate) fn to_moves(response: proto::MoveStartResponse) -> Result<Moves> {
    let nodes = Nodes::new(response.nodes)?;
    let one = |one: proto::Move| {
        let placeless = || Error::internal("a copy without a place");
        Ok(Move {
            key: one.key.as_ref().into(),
            from_put: one.from_put,
            length: one.length,
            checksum: one.checksum,
            ticket: nodes.ticket(one.ticket.ok_or_else(placeless)?)?,
        })
    };
    Ok(Moves {
        moves: response.moves.into_iter().map(one).collect::<Result<_>>()?,
        wait: Duration::from_millis(u64::from(response.wait_ms)),
    })
}

pub(super) fn from_progress(progress: DrainProgress) -> proto::DrainProgress {
    proto::DrainProgress {
        moved_objects: progress.moved_objects,
        moved_bytes: progress.moved_bytes,
        moving_objects: progress.moving_objects,
        leaving_replicas: progress.leaving_replicas,
        unplaced_objects: progress.unplaced_objects,
        unplaced_bytes: progress.unplaced_bytes,
        passes: progress.passes,
    }
}

pub(super) fn to_progress(progress: proto::DrainProgress) -> DrainProgress {
    DrainProgress {
        moved_objects: progress.moved_objects,
        moved_bytes: progress.moved_bytes,
        moving_objects: progress.moving_objects,
        leaving_replicas: progress.leaving_replicas,
        unplaced_objects: progress.unplaced_objects,
        unplaced_bytes: progress.unplaced_bytes,
        passes: progress.passes,
    }
}

pub(crate) fn from_drained(drained: Drained) -> proto::DrainResponse {
    proto::DrainResponse {
        replicas: drained.replicas,
        used_bytes: drained.used_bytes,
        progress: Some(from_progress(drained.progress)),
    }
}

pub(crate) fn to_drained(response: proto::DrainResponse) -> Drained {
    Drained {
        replicas: response.replicas,
        used_bytes: response.used_bytes,
        progress: response.progress.map(to_progress).unwrap_or_default(),
    }
}
