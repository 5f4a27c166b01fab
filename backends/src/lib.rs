//! The built-in tiers: `cache` (shared host DRAM), `posix` (segment log over io_uring), `hbm` (device memory) and `null`;
//! and the built-in device.

pub mod cache;
pub mod device;
pub mod hbm;
pub mod io;
pub mod null;
pub mod posix;
mod slots;
