//! RDMA: the asker sends its grant by a message, and the serving side moves the bytes by itself.
//!
//! The link of the crate `kvstored-verbs` does the work; here are its two ends. The serving side checks each request as it
//! does over sockets and holds the memory in place while the device is at work on it. Queue pairs are told to each other
//! over the connection that also shows whether the peer lives, so that nobody gets one whose handshake isn't done.
//!
//! What goes over the wire isn't encrypted, so that an engine with TLS uses RDMA only if its settings name it.

mod host;
mod link;
mod port;

pub(crate) use host::RdmaHost;
pub(crate) use link::RdmaLink;
