//! Stands in for `libcann_hixl.so` in tests, as far as kvstored uses it: the same functions by name, between processes of
//! one machine.
//!
//! A server's threads stand for its network card: they read and write what is registered at that moment, and nothing
//! else, while the server's own process does nothing. A client's thread stands for the other card; the two talk over a
//! Unix socket. What the real library asks of its callers is checked: memory registered on both sides before they
//! connect, no ranges that overlap, at most 4,096 tasks that nobody asked about.
//!
//! Faults are switched by the environment at the first call, or later by [`kvstored_emulator_hixl_set`]: see [`faults`].
#![allow(unsafe_code)] // a C library
#![allow(non_snake_case)] // with names of its own
#![allow(clippy::missing_safety_doc)] // which its vendor documents

mod card;
mod client;
pub mod faults;
mod frames;
mod layout;
mod server;
mod statuses;

pub use client::*;
pub use faults::kvstored_emulator_hixl_set;
pub use server::*;
