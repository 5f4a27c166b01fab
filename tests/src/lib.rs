//! Helpers for the end-to-end tests and the crash rigs: daemon processes, plugins, an S3 service, a bad network, and
//! blocks whose contents follow from their number.

pub mod blocks;
pub mod crash;
pub mod daemon;
pub mod network;
pub mod plugins;
pub mod seaweed;
