//! What memory sharing between processes of one host stands on. Nothing here knows of engines, grants or
//! frames.
//!
//! | module | what |
//! | --- | --- |
//! | [`memory`] | memory that can be shared ([`SharedMemory`]), and a peer's mapped here ([`PeerMemory`]) |
//! | [`socket`] | handing descriptors to a process of the same user |
//! | [`control`] | who is at work on which range: epochs, and counts of operations under way |
//! | [`copy`] | moving bytes between local and mapped memory |
//! | [`foreign`] | reading and writing memory of a peer that isn't shared |
//! | [`process`] | whether a peer's process lives |
//!
//! # What is trusted
//!
//! Peers run as the same user, which the socket checks. The kernel lets processes of one user open each
//! other's descriptors (`/proc/PID/fd`) and, unless a security module forbids it, read and write each other's
//! memory. So these parts keep a peer's *mistakes* from doing harm, and keep what a peer writes into shared
//! pages from doing more than to harm itself or to make the owner's [`control::ControlPage::wait_idle`]
//! answer `Busy`. They don't make a wall between processes of one user; where one is needed, peers must run
//! as different users and use sockets.

pub mod control;
pub mod copy;
pub mod foreign;
pub mod memory;
pub mod process;
pub mod socket;
mod time;

#[cfg(test)]
mod tests;

pub use control::{Attached, AttachmentId, ControlPage, InFlight, PeerControl};
pub use foreign::ForeignMemory;
pub use memory::{PeerMemory, SharedMemory, Sharing};
pub use process::{LivenessWatch, PeerProcess, ProcessState, StartTime};
pub use socket::{Channel, Credentials, Listener, Message, SocketAddress};
