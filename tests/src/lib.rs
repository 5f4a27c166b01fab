//! Helpers for the end-to-end tests and the crash rigs: daemon processes, and blocks whose contents follow from
//! their number.

pub mod blocks;
pub mod crash;
pub mod daemon;
