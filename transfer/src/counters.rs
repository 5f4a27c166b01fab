//! What was moved, by peer and transport.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::identity::EngineId;
use crate::settings::TransportKind;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// This engine asked the peer.
    Requested,
    /// The peer asked this engine.
    Served,
}

/// What was moved between this engine and one peer over one transport. Counts only grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCounters {
    /// The peer; [`EngineId::NOBODY`] stands for all that have gone.
    pub peer: EngineId,
    /// The transport.
    pub transport: TransportKind,
    /// Who asked.
    pub side: Side,
    /// Reads that succeeded, in operations of at most 1 MiB.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes that succeeded, in operations of at most 1 MiB.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Operations that failed, refused ones among them.
    pub failures: u64,
    /// Operations refused for their grant (served side).
    pub refused: u64,
}

/// The counts of one row, as they change.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    failures: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    pub fn read(&self, bytes: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn written(&self, bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.failed();
    }

    /// Adds another row's counts, when its peer has gone.
    pub fn absorb(&self, other: &Self) {
        let pairs = [
            (&self.reads, &other.reads),
            (&self.read_bytes, &other.read_bytes),
            (&self.writes, &other.writes),
            (&self.written_bytes, &other.written_bytes),
            (&self.failures, &other.failures),
            (&self.refused, &other.refused),
        ];
        for (sum, part) in pairs {
            sum.fetch_add(part.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    pub fn row(&self, peer: EngineId, transport: TransportKind, side: Side) -> PeerCounters {
        PeerCounters {
            peer,
            transport,
            side,
            reads: self.reads.load(Ordering::Relaxed),
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

type Row = (EngineId, TransportKind, Side);

/// All rows of an engine. A row lives as long as somebody counts in it, and is then added to that of those who have gone.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    rows: Mutex<BTreeMap<Row, Arc<Counts>>>,
}

impl Ledger {
    /// The row of that peer, new if need be.
    pub fn tally(self: &Arc<Self>, peer: EngineId, transport: TransportKind, side: Side) -> Tally {
        let row = (peer, transport, side);
        let counts = self.rows.lock().entry(row).or_default().clone();
        Tally {
            ledger: self.clone(),
            row,
            counts,
        }
    }

    pub fn rows(&self) -> Vec<PeerCounters> {
        let rows = self.rows.lock();
        rows.iter()
            .map(|((peer, transport, side), counts)| counts.row(*peer, *transport, *side))
            .collect()
    }
}

/// A right to count in one row.
#[derive(Debug)]
pub(crate) struct Tally {
    ledger: Arc<Ledger>,
    row: Row,
    counts: Arc<Counts>,
}

impl std::ops::Deref for Tally {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.counts
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let mut rows = self.ledger.rows.lock();
        let (_, transport, side) = self.row;
        // the map's and this one
        if Arc::strong_count(&self.counts) == 2 && rows.remove(&self.row).is_some() {
            let gone = rows.entry((EngineId::NOBODY, transport, side)).or_default();
            gone.absorb(&self.counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_peers_that_went_are_kept_together() {
        let ledger = Arc::new(Ledger::default());
        let peers = [1, 2].map(|byte| EngineId::from_bytes([byte; 16]));
        for peer in peers {
            let one = ledger.tally(peer, TransportKind::Tcp, Side::Served);
            let same = ledger.tally(peer, TransportKind::Tcp, Side::Served);
            one.read(10);
            drop(one);
            same.refused();
            assert_eq!(ledger.rows().iter().filter(|row| row.peer == peer).count(), 1);
        }
        let rows = ledger.rows();
        assert_eq!(rows.len(), 1);
        let (reads, bytes, refused) = (rows[0].reads, rows[0].read_bytes, rows[0].refused);
        assert_eq!(
            (rows[0].peer, reads, bytes, refused),
            (EngineId::NOBODY, 2, 20, 2)
        );
    }
}
