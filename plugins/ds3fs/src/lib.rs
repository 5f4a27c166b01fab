//! The tier `Ds3fs`: the Posix tier's log in a directory on 3FS, with blocks moved through USRBIO, 3FS's interface for
//! memory that its client process shares.
//!
//! Format, journal, eviction, recovery and everything else are the Posix tier's own code; what is here is an I/O engine
//! for it ([`engine`]) over the vendor's library ([`usrbio`]), and the plugin around both ([`tier`]). Where the library
//! is missing, the directory isn't on 3FS, or no ring can be had, the Posix tier's own engines do the I/O on the mount.

pub mod check;
pub mod engine;
mod lend;
mod log;
mod settings;
mod tier;
pub mod usrbio;

kvstored_plugin::kvstored_plugin! { name: "ds3fs", version: env!("CARGO_PKG_VERSION"), tier: tier::Ds3fs }
