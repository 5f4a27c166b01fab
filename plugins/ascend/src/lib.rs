//! An Ascend NPU's memory for kvstored, over `libascendcl.so`, which is loaded when the device is opened.
//!
//! Settings: `device` (0) is the NPU's number, `library` a path or file name of the library where it isn't found by
//! itself.
#![allow(unsafe_code)] // a foreign library is all that this crate is about

mod batches;
mod counts;
mod device;
mod failures;
mod library;
mod symbols;
#[cfg(test)]
mod tests;

pub use device::AscendDevice;
pub use symbols::{BatchAttribute, Location};

kvstored_plugin::kvstored_plugin! { name: "ascend", version: "0.1.0", device: AscendDevice }
