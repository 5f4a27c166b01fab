//! The process that something was made in.

use kvstored_core::{Error, ErrorKind, Result};

/// The process that an object was made in: its threads and locks are there and nowhere else.
#[derive(Clone, Copy, Debug)]
pub struct Home {
    process: u32,
}

impl Home {
    /// This process.
    pub fn here() -> Self {
        Self {
            process: std::process::id(),
        }
    }

    /// Whether this process is a fork of the one that the object was made in.
    pub fn is_left(self) -> bool {
        std::process::id() != self.process
    }

    /// Fails with `Unsupported` in a fork.
    pub fn check(self) -> Result<()> {
        if self.is_left() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the store was made before a fork; make one in the forked process",
            ));
        }
        Ok(())
    }
}
