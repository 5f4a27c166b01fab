//! What a process needs to host an engine: its configuration, its tiers from settings, and the listener that serves
//! other processes of the node. The binary uses it, and so does every program that embeds the engine.

mod build;
pub mod config;
pub mod daemon;

pub use build::{BuiltEngine, build, build_engine, build_tier, open_device, plugged_transport};
