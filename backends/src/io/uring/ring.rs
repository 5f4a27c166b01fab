//! Making a ring with what the kernel offers.

use io_uring::{IoUring, Probe, opcode};
use kvstored_core::{Error, ErrorKind, Result};

/// A ring with at least that many submission entries, belonging to the calling thread where the kernel can.
pub(super) fn build(entries: u32) -> Result<IoUring> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(entries)
        .or_else(|_| IoUring::builder().build(entries))
        .map_err(|error| Error::from_io(error, "can't set a ring up"))?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| Error::from_io(error, "can't probe the ring"))?;
    let needed = [opcode::Read::CODE, opcode::Write::CODE];
    if needed.iter().all(|code| probe.is_supported(*code)) {
        Ok(ring)
    } else {
        Err(Error::new(
            ErrorKind::Unsupported,
            "the kernel's io_uring can't read and write",
        ))
    }
}
