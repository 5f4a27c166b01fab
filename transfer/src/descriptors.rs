//! The process's table of descriptors.

use kvstored_core::Runtime;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, getrlimit};

/// Descriptors that there's room for afterwards, where the process may have as many: some 64 KiB of the kernel's memory.
const MOST: u64 = 8192;

/// Makes the table as large as it will be wanted, in a thread of its own that nobody waits for. Where that can't be done, descriptors
/// cost what they cost without it.
///
/// Linux doubles the table when it's full. A process with several threads then waits for a grace period of RCU inside the
/// call that wanted a descriptor: some 10 ms, and seconds on a busy virtual machine. If that call takes in a connection,
/// nobody is served meanwhile; if it opens a file, a read waits.
pub fn reserve_descriptors(runtime: &Runtime) {
    let body = || {
        if let Err(errno) = reserve() {
            tracing::debug!(%errno, "the table of descriptors stays as it is");
        }
    };
    if let Err(error) = runtime.spawner.spawn("descriptors", Box::new(body)) {
        tracing::debug!(%error, "the table of descriptors stays as it is");
    }
}

fn reserve() -> Result<(), Errno> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(MOST).min(MOST);
    let one = eventfd(0, EventfdFlags::CLOEXEC)?;
    // the table grows to hold a number, and doesn't shrink when that is free again
    fcntl_dupfd_cloexec(&one, limit.saturating_sub(1) as i32).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_room_afterwards() {
        reserve().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        let size: u64 = size.unwrap().trim().parse().unwrap();
        let wanted = getrlimit(Resource::Nofile).current.unwrap_or(MOST).min(MOST);
        assert!(size >= wanted, "{size} of {wanted}");
    }
}
