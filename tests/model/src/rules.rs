//! What can be switched off, and how large the model is.

/// The clock by which a master decides that a lease is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseClock {
    /// Never jumps.
    Steady,
    /// Is set forward at some moment by more than a lease.
    Wall,
}

/// The protocol's rules; all of them hold by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each rule can be left out by itself"
)]
pub struct Rules {
    /// Nodes compare the epoch that a right to read names with the range's.
    pub read_epochs: bool,
    /// Nodes compare the epoch that a right to write names with the range's.
    pub write_epochs: bool,
    /// What leases are measured by.
    pub lease_clock: LeaseClock,
    /// Nodes refuse orders and put tokens of an earlier master.
    pub fencing: bool,
    /// Nodes confirm a release only when nothing under way touches the range.
    pub drain: bool,
    /// A new master treats what nodes announce as leased.
    pub grace: bool,
    /// A put is acknowledged only after the node holds its descriptor.
    pub sealed_first: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            read_epochs: true,
            write_epochs: true,
            lease_clock: LeaseClock::Steady,
            fencing: true,
            drain: true,
            grace: true,
            sealed_first: true,
        }
    }
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Objects; each is put once, by a writer of its own.
    pub objects: u8,
    /// Storage nodes.
    pub nodes: u8,
    /// Ranges that each node lends. Fewer than objects, so that they are reused.
    pub ranges_per_node: u8,
    /// Readers; each gets one object.
    pub readers: u8,
    /// The last moment of the steady clock.
    pub last_tick: u8,
}

impl Size {
    /// All ranges of all nodes.
    pub fn ranges(self) -> usize {
        usize::from(self.nodes) * usize::from(self.ranges_per_node)
    }

    /// The node that a range belongs to.
    pub fn node_of(self, range: usize) -> usize {
        range / usize::from(self.ranges_per_node.max(1))
    }
}

/// How long a lease runs, in ticks: longer than a session, so that a leader's leases may outlive its term.
pub const LEASE: u8 = 2;
/// How long a leader may lead without renewing its session, in ticks.
pub const SESSION: u8 = 1;
/// How far the wall clock jumps, in ticks.
pub const JUMP: u8 = LEASE + 1;
