//! The tier `S3`: blocks batched into objects of a bucket that many writers share.
//!
//! `docs/object-format.md` fixes every byte. Blocks of one namespace are gathered into one object, their images one
//! behind the other and a footer at the end that lists them. An object's name begins with its time, so one listing per
//! interval shows what all other writers stored since. Lookups ask an index in memory and nobody else; a hit may turn
//! out to be a miss when it's read.

mod batch;
mod claims;
mod evict;
mod follow;
pub mod format;
mod health;
mod hedge;
mod index;
mod memory;
mod namespaces;
mod objects;
mod paths;
mod pending;
mod purge;
mod read;
mod retry;
mod settings;
mod shared;
mod store;
mod tier;
mod upload;
mod uploads;

pub use self::settings::S3Settings;
pub use self::store::connect;
pub use self::tier::S3Tier;
