//! Real shared objects, loaded as the daemon loads them: the examples in Rust and C, and one that breaks every rule.

mod containment;
mod contract;
mod header;
mod support;
mod trust;
