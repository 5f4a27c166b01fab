//! A CUDA GPU's memory for kvstored, over the driver's library `libcuda.so.1`, which is loaded when the device is opened.
//!
//! Settings: `device` (0) is the GPU's number, `library` a path or file name of the library where it isn't found by
//! itself.
#![allow(unsafe_code)] // a foreign library is all that this crate is about

mod batches;
mod device;
mod failures;
mod signal;
mod symbols;

pub use device::CudaDevice;

kvstored_plugin::kvstored_plugin! { name: "cuda", version: "0.1.0", device: CudaDevice }
