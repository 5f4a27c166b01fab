//! End-to-end tests: real daemons, real files, real kills.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests

mod bad_files;
mod clients;
mod ds3fs;
mod hbm;
mod kills;
mod plugins;
mod s3;
mod sharing;

use kvstored_core::Layout;

/// Small blocks of three shards with two tensors each.
fn small_layout() -> Layout {
    Layout::uniform(3, 2, 2048).unwrap()
}
