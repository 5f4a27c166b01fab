//! Real shared objects, loaded as the daemon loads them: the examples in Rust and C, and one that breaks every rule.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // fixtures of tests

mod containment;
mod contract;
mod cuda;
mod devices;
mod hbm;
mod header;
mod hixl;
mod measure;
mod quotas;
mod sharing;
mod support;
mod transports;
mod trust;
