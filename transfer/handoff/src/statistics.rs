//! What happened so far.

use std::sync::atomic::{AtomicU64, Ordering};

use kvstored_core::ErrorKind;

/// Counts at one moment. All but the last four only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes that pulls brought, by transport: tcp.
    pub pulled_bytes_tcp: u64,
    /// Bytes that pulls brought through shared memory.
    pub pulled_bytes_shm: u64,
    /// Bytes that pulls brought over RDMA.
    pub pulled_bytes_rdma: u64,
    /// Bytes that pulls brought over a plugged-in transport.
    pub pulled_bytes_ascend: u64,
    /// Bytes that this side sent to consumers over sockets; over `shm` and `rdma`, consumers read by themselves.
    pub served_bytes_tcp: u64,
    /// Bytes that this side sent to consumers over a plugged-in transport.
    pub served_bytes_ascend: u64,
    /// Bytes of them that came while the producer still computed their request.
    pub overlapped_bytes: u64,
    /// Pulls whose blocks all came.
    pub pulls_ok: u64,
    /// Pulls that failed as the producer doesn't hold the request any more, or never did.
    pub pulls_gone: u64,
    /// Pulls that failed as the two sides don't fit together.
    pub pulls_mismatched: u64,
    /// Pulls that failed as their time was over.
    pub pulls_timed_out: u64,
    /// Pulls that were cancelled.
    pub pulls_cancelled: u64,
    /// Pulls that failed as a producer wasn't reachable.
    pub pulls_unavailable: u64,
    /// Pulls of which blocks had another checksum than at the producer.
    pub pulls_corrupt: u64,
    /// Pulls that failed otherwise.
    pub pulls_failed_otherwise: u64,
    /// Holds that ended as all consumers were done.
    pub holds_taken: u64,
    /// Holds that ended with their lease.
    pub holds_expired: u64,
    /// Holds that were dropped.
    pub holds_dropped: u64,
    /// Words to producers that couldn't be delivered in time.
    pub undelivered_endings: u64,
    /// Requests held now, with those whose release isn't complete.
    pub held_requests: u64,
    /// Blocks of them.
    pub held_blocks: u64,
    /// Ranges that are published to consumers now.
    pub publications: u64,
    /// Pulls that aren't over.
    pub pending_pulls: u64,
}

/// The counts of pulls, as they change.
#[derive(Debug, Default)]
pub(crate) struct PullCounts {
    pub ok: AtomicU64,
    pub gone: AtomicU64,
    pub mismatched: AtomicU64,
    pub timed_out: AtomicU64,
    pub cancelled: AtomicU64,
    pub unavailable: AtomicU64,
    pub corrupt: AtomicU64,
    pub otherwise: AtomicU64,
    pub undelivered: AtomicU64,
    pub overlapped_bytes: AtomicU64,
}

impl PullCounts {
    /// Counts a pull that failed.
    pub fn failed(&self, kind: ErrorKind) {
        let count = match kind {
            ErrorKind::NotFound | ErrorKind::Fenced => &self.gone,
            ErrorKind::Mismatch => &self.mismatched,
            ErrorKind::TimedOut => &self.timed_out,
            ErrorKind::Cancelled => &self.cancelled,
            ErrorKind::Unavailable => &self.unavailable,
            ErrorKind::Corrupt => &self.corrupt,
            _ => &self.otherwise,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub fn add_to(&self, statistics: &mut Statistics) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        statistics.pulls_ok = read(&self.ok);
        statistics.pulls_gone = read(&self.gone);
        statistics.pulls_mismatched = read(&self.mismatched);
        statistics.pulls_timed_out = read(&self.timed_out);
        statistics.pulls_cancelled = read(&self.cancelled);
        statistics.pulls_unavailable = read(&self.unavailable);
        statistics.pulls_corrupt = read(&self.corrupt);
        statistics.pulls_failed_otherwise = read(&self.otherwise);
        statistics.undelivered_endings = read(&self.undelivered);
        statistics.overlapped_bytes = read(&self.overlapped_bytes);
    }
}
