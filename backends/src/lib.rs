//! The built-in tiers: `cache` (shared host DRAM), `posix` (segment log over io_uring) and `null`.

pub mod cache;
pub mod io;
pub mod null;
pub mod posix;
