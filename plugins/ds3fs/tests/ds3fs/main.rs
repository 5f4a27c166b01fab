//! The tier on the emulated library: its rules, the engine, the plugin as kvstored loads it, and the format it leaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod engine;
mod faults;
mod measure;
mod plugin;
mod quotas;
mod rules;
mod same_format;
mod support;
