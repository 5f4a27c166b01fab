//! RDMA verbs, loaded at run time, and a link on them that moves bytes only where a grant was checked.
//!
//! libibverbs is opened with `dlopen` when it's first needed: where it isn't installed, or there is no device, everything
//! here fails with `Unavailable` and says why. Nothing polls: completions come as events on a descriptor.
//!
//! From the bottom up: [`Device`], [`Domain`], [`Registration`], [`Window`], [`QueuePair`] and [`Channel`] are the library's
//! objects, owned; a [`Nic`] is a port with the GID to send from; a [`RequestLink`] is one end of a connection on it, and a
//! [`Driver`] the thread that works for links.

mod address;
mod driver;
mod gid;
mod link;
mod nic;
mod sys;

pub use address::{LINK_ADDRESS_BYTES, LinkAddress};
pub use driver::Driver;
pub use gid::{Gid, choose};
/// The messages of a link, byte for byte.
pub use link::message as wire;
pub use link::{
    Admission, Direction, LinkSettings, MESSAGE_BYTES, MOST_GRANT_BYTES, NoService, Operation, Owner,
    Request, RequestLink, Service, Unconnected,
};
pub use nic::{Nic, NicChoice};
pub use sys::{
    Buffer, Channel, Completions, Device, DeviceEvent, Domain, Exposure, Finished, Limits, Port, QueuePair,
    Refused, Registration, Remote, Route, Slice, Success, Window, Work,
};
