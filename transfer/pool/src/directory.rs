//! What the pool asks of a master, apart from how it is carried. Keys are whole keys, with their tenants.

use std::time::{Duration, Instant};

use kvstored_core::Result;
use kvstored_master::{
    Drained, Finished, Found, Holding, Lender, Location, Mounted, Moves, NewObject, NodeId, ObjectPage,
    Orders, PutOptions, Ticket,
};

/// A master. Every call has a deadline; `Unavailable` and `TimedOut` mean that none could be reached.
pub trait Directory: Send + Sync + 'static {
    /// Begins puts: one outcome each. `AlreadyExists` for an object that is there or being put, `NoSpace`, `QuotaExceeded`.
    fn start_puts(
        &self,
        puts: &[NewObject<'_>],
        options: &PutOptions,
        deadline: Instant,
    ) -> Result<Vec<Result<Ticket>>>;

    /// Makes complete objects visible. `Fenced` for a put that was revoked meanwhile.
    fn end_puts(&self, puts: &[Finished<'_>], deadline: Instant) -> Result<Vec<Result<()>>>;

    /// Gives puts up.
    fn revoke_puts(&self, puts: &[(&[u8], u64)], deadline: Instant) -> Result<()>;

    /// Where objects are, with a lease on each. `NotFound` for one that isn't there.
    fn locate(&self, keys: &[&[u8]], deadline: Instant) -> Result<Vec<Result<Found>>>;

    /// Which objects are there, and for how long at least.
    fn exist(&self, keys: &[&[u8]], deadline: Instant) -> Result<Vec<Option<Duration>>>;

    /// Removes objects. `NotFound`, or `Busy` for a leased one unless forced.
    fn remove(&self, keys: &[&[u8]], force: bool, deadline: Instant) -> Result<Vec<Result<()>>>;

    /// Removes every object of a tenant, or of all, that isn't leased; leased ones too if forced. Returns how many.
    fn remove_all(&self, tenant: Option<&str>, force: bool, deadline: Instant) -> Result<u64>;

    /// Objects, page by page: from the beginning with 0, then from each page's `next`.
    fn list(&self, after: u64, limit: u32, deadline: Instant) -> Result<ObjectPage>;

    /// The nodes that lend memory, and whether those are all: a master that has just begun to lead may not know of some yet.
    /// Puts, offsets and tokens mean nothing.
    fn nodes(&self, deadline: Instant) -> Result<(Vec<Location>, bool)>;

    /// Whether a master answers.
    fn ping(&self, deadline: Instant) -> Result<()>;

    /// A node lends its memory. The master gives none of it away until the node has announced what it holds.
    fn mount(&self, lender: &Lender, deadline: Instant) -> Result<Mounted>;

    /// A node that obeys the master with that epoch announces everything that it holds.
    fn announce(&self, node: &NodeId, epoch: u64, holdings: &[Holding], deadline: Instant) -> Result<()>;

    /// A node that obeys the master with that epoch shows that it's alive, confirms releases and takes orders. The master
    /// may wait so long for an order before it answers.
    fn heartbeat(
        &self,
        node: &NodeId,
        epoch: u64,
        released: &[u64],
        wait: Duration,
        deadline: Instant,
    ) -> Result<Orders>;

    /// What a node that is being emptied is to copy where. The copies are puts, ended or revoked like others.
    fn start_moves(&self, node: &NodeId, epoch: u64, avoid: &[NodeId], deadline: Instant) -> Result<Moves>;

    /// Has a node emptied by copying what it holds, if that hasn't begun; how far it is.
    fn drain(&self, node: &NodeId, deadline: Instant) -> Result<Drained>;

    /// A node takes its memory back.
    fn unmount(&self, node: &NodeId, deadline: Instant) -> Result<()>;
}
