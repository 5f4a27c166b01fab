//! A transport for kvstored over the C interface of CANN's HIXL, `libcann_hixl.so`, which is loaded when the transport is
//! opened.
//!
//! HIXL's server only exposes memory; its client moves bytes, from and to what a server has exposed at the time when they
//! connected. So an engine that asks is a server here, and the one that serves it, having checked the right to the bytes,
//! a client.
//!
//! Settings: `address` is the IP address of the network card that moves the bytes, `listen` the `IP:PORT` where other
//! engines' clients connect (without it, this engine serves others over HIXL and asks them over something else).
//! `placement` is `host` for a card of the host and `device` for an NPU's own; then `device` is the NPU's number and
//! `physical_device` its physical one. `traffic_class` and `service_level` mark packets. `library` and `acl_library` are
//! paths or file names where the libraries aren't found by themselves.
#![allow(unsafe_code)] // a foreign library is all that this crate is about

mod acl;
mod address;
mod connection;
mod failures;
mod library;
mod settings;
mod symbols;
mod transport;
mod watcher;

pub use symbols::{
    ClientConfiguration, ClientDescription, Endpoint, EndpointAddress, EndpointPlace, Memory, OneSided,
    ServerDescription,
};
pub use transport::HixlTransport;

kvstored_plugin::kvstored_plugin! { name: "hixl", version: "0.1.0", transport: HixlTransport }
