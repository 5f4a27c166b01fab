//! The kvstored binary's parts: configuration, daemon, HTTP admin, and tools.

pub mod config;
pub mod ctl;
pub mod daemon;
pub mod http;
pub mod output;
pub mod serve;
pub mod tools;
