//! The kvstored binary's parts: serving, HTTP admin, and tools.

pub mod check_config;
pub mod conformance;
pub mod ctl;
pub mod http;
pub mod master;
pub mod output;
pub mod serve;
pub mod tools;
