//! Whether a peer's process lives, is stopped, or has exited.

mod peer;
mod stat;
mod watch;

pub use peer::{PeerProcess, ProcessState};
pub use stat::StartTime;
pub use watch::LivenessWatch;
