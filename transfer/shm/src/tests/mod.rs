//! Tests with processes of their own, and the model of the protocol.

mod child;
mod control;
mod descriptors;
mod foreign;
mod liveness;
mod memory;
mod model;
mod races;
mod sockets;
