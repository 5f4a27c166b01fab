//! The proxy between real sockets: scripted instances on one side, clients on the other.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // tests, helpers included
#![allow(clippy::float_cmp)] // metrics are counts written as floats

mod abandon;
mod admin;
mod client;
mod decode_faults;
mod input;
mod kv_events;
mod lifecycle;
mod mock;
mod overlap;
mod prefill_faults;
mod publisher;
mod recompute;
mod routing;
mod setup;
