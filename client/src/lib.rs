//! Client of kvstored: a daemon over its Unix socket, or an engine in this process, behind one API.
//!
//! [`Client`] opens namespaces, looks blocks up and starts tasks; a task moves blocks between engine memory and
//! the arena that daemon and clients share, checks every byte on its way, and reports an outcome per block.
//! [`wire`] is the protocol and [`service`] what answers it, for the daemon's side.

mod admin;
mod client;
mod copy;
mod device;
mod dump_session;
mod lookups;
mod mapping;
mod on_device;
mod request;
pub mod service;
mod session;
mod settings;
mod task;
#[cfg(test)]
mod tests;
pub mod wire;
mod work;

pub use admin::NamespaceRow;
pub use client::Client;
pub use copy::TensorAddress;
pub use device::DeviceHandle;
pub use dump_session::DumpSession;
pub use request::{DumpRequest, LoadOrder, LoadRequest, NamespaceHandle};
pub use settings::ClientSettings;
pub use task::{BlockOutcome, Task, TaskReport};
