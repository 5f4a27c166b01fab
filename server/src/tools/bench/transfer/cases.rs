//! What is measured: a transport, a direction, the bytes of an entry and how many entries go at once.

use kvstored_core::{Error, Result};
use kvstored_transfer::TransportKind;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Sizes of entries, without `--full`.
const SIZES: [usize; 5] = [4 * KIB, 64 * KIB, MIB, 4 * MIB, 16 * MIB];
/// Sizes between them.
const MORE_SIZES: [usize; 2] = [16 * KIB, 256 * KIB];
/// Entries of a batch.
const BATCHES: [usize; 4] = [1, 8, 32, 128];

/// Which way bytes go, seen from the process that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the peer's memory to ours.
    Read,
    /// From our memory to the peer's.
    Write,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Read, Self::Write];

    /// Its word in names of figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// How bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Transport {
    /// Sockets.
    Tcp,
    /// Memory that both processes map.
    Shm,
    /// Verbs.
    Rdma,
}

impl Transport {
    /// All that this build knows.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Shm, Self::Rdma];

    /// Its word in names of figures, and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Shm => "shm",
            Self::Rdma => "rdma",
        }
    }

    /// The engine's.
    pub const fn kind(self) -> TransportKind {
        match self {
            Self::Tcp => TransportKind::Tcp,
            Self::Shm => TransportKind::Shm,
            Self::Rdma => TransportKind::Rdma,
        }
    }
}

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Case {
    /// How bytes go.
    pub transport: Transport,
    /// Which way.
    pub direction: Direction,
    /// Bytes of an entry.
    pub bytes: usize,
    /// Entries that go at once.
    pub entries: usize,
}

impl Case {
    /// The case's name, as in `tcp_read_1MiB_x32`; names of its other figures begin with it.
    pub fn name(&self) -> String {
        let (transport, direction) = (self.transport.name(), self.direction.name());
        format!("{transport}_{direction}_{}_x{}", size(self.bytes), self.entries)
    }

    /// Bytes of a batch.
    pub fn batch_bytes(&self) -> usize {
        self.bytes * self.entries
    }

    /// Every case of a transport.
    pub fn all(transport: Transport, full: bool) -> Vec<Self> {
        let mut sizes = SIZES.to_vec();
        if full {
            sizes.extend(MORE_SIZES);
            sizes.sort_unstable();
        }
        let mut cases = Vec::new();
        for direction in Direction::ALL {
            for bytes in &sizes {
                for entries in BATCHES {
                    cases.push(Self {
                        transport,
                        direction,
                        bytes: *bytes,
                        entries,
                    });
                }
            }
        }
        cases
    }
}

/// A size in the unit that makes it short.
fn size(bytes: usize) -> String {
    if bytes.is_multiple_of(MIB) {
        format!("{}MiB", bytes / MIB)
    } else {
        format!("{}KiB", bytes / KIB)
    }
}

/// Fails with `InvalidInput` when one of the names is none of a case's or of another figure's. A case's name stands for
/// all of its figures.
pub fn check_names(names: &[String], others: &[String]) -> Result<()> {
    let cases: Vec<String> = Transport::ALL
        .into_iter()
        .flat_map(|transport| Case::all(transport, true))
        .map(|case| case.name())
        .collect();
    let known = |name: &str| {
        let of_case = |case: &String| {
            name.strip_prefix(case.as_str())
                .is_some_and(|rest| rest.is_empty() || super::SUFFIXES.contains(&rest))
        };
        cases.iter().any(of_case) || others.iter().any(|other| other == name)
    };
    match names.iter().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => Err(Error::invalid(format!(
            "figure \"{name}\" is unknown; known are names such as tcp_read_1MiB_x32 and shm_write_4KiB_x1_p50 (sizes 4KiB \
             to 16MiB, batches 1, 8, 32 and 128), and {}",
            others.join(", ")
        ))),
    }
}

/// Whether a figure is asked for: by its own name or by its case's.
pub fn wanted(only: &[String], case: &str, figure: &str) -> bool {
    only.is_empty() || only.iter().any(|name| name == case || name == figure)
}
