//! The tier over a store with faults, over a real S3 server, and over that server with a bad network in between.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic
)] // helpers of tests

mod basic;
mod capacity;
mod contract;
mod corruption;
mod faulty;
mod outage;
mod purge;
mod sharing;
mod support;
