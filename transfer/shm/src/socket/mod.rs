//! Messages with descriptors between processes of one user, over Unix sockets.
//!
//! A [`Listener`] takes connections, a [`Channel`] is one of them. Messages keep their bounds
//! (`SOCK_SEQPACKET`), carry at most [`MAX_MESSAGE_BYTES`] and [`MAX_DESCRIPTORS`], and are refused past that
//! with what came along closed. Both ends learn from the kernel who the other is, and refuse another user.

mod address;
mod channel;
mod listener;
mod peer;

pub use address::SocketAddress;
pub use channel::{Channel, Message};
pub use listener::Listener;
pub use peer::Credentials;

/// Bytes of one message.
pub const MAX_MESSAGE_BYTES: usize = 4096;
/// Descriptors that one message carries.
pub const MAX_DESCRIPTORS: usize = 16;
