//! A plugged-in transport, for the interconnect of Ascend devices: a [`kvstored_core::MemoryTransport`] that whoever makes
//! the engine has given.
//!
//! The asker never touches a peer's memory. It registers its own with the transport, asks over the connection that shows
//! whether the peer lives, and the serving side checks the grants and moves the bytes by itself, from or to the asker's
//! memory. So every request is checked before a byte moves, and what is released or revoked is safe, as over sockets.
//!
//! - **The serving side gives up**: past the deadline, or when its memory is being released, it ends the transport's
//!   connection to that peer, and answers when the transport says that nothing is touched any more.
//! - **The asker gives up**: when no answer comes, it takes the registration of its memory back, which ends what any peer
//!   does to it, and registers it anew with the next transfer.
//!
//! What the transport can't refuse: memory that the asker has registered is open to whatever its library lets connect.
//! That's why this transport is used only where the settings name it.

mod batch;
mod desk;
mod host;
mod job;
mod link;
mod port;
mod serving;
mod worker;

pub(crate) use desk::Desk;
pub(crate) use host::AscendHost;
pub(crate) use link::AscendLink;
