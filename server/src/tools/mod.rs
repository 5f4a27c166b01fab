//! The tools of the `kvstored` command: replaying traces, measuring, generating traces.

pub mod bench;
pub mod buffer;
pub mod content;
mod embedded;
mod latency;
mod progress;
mod registered;
pub mod replay;
pub mod report;
mod timeline;
pub mod trace;
