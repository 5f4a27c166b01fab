//! A stand-in for `libhf3fs_api_shared.so`: 3FS's USRBIO interface over an ordinary directory. For tests only.
//!
//! It behaves as the rules of that interface say where they are strict, so that a client that breaks one notices here:
//! a ring has one direction, one thread that prepares and one that waits (two at once end the process); a place in it
//! comes back only when its completion is reaped; memory is reached through the links below `3fs-virt/iovs` and mapped
//! a second time, as another process would.
//!
//! Settings come from the environment, or for one mount through [`kvstored_usrbio_set`](exports::kvstored_usrbio_set):
//!
//! | variable | what it does |
//! | --- | --- |
//! | `KVSTORED_USRBIO_MOUNT` | directories that play mounts, `:` between them |
//! | `KVSTORED_USRBIO_THREADS` | threads that do the I/O of a mount; 4 |
//! | `KVSTORED_USRBIO_LATENCY_US` | added to every I/O |
//! | `KVSTORED_USRBIO_FAIL_EVERY` | every so manieth I/O fails, with `KVSTORED_USRBIO_FAIL_ERRNO` (EIO) |
//! | `KVSTORED_USRBIO_SHORT_EVERY` | every so manieth I/O moves half its bytes |
//! | `KVSTORED_USRBIO_HANG_EVERY` | every so manieth I/O never completes |
//! | `KVSTORED_USRBIO_FULL_EVERY` | every so manieth `prep_io` says EAGAIN though there's room |
//! | `KVSTORED_USRBIO_RINGS` | rings that a mount has at most; 0 for none |
//! | `KVSTORED_USRBIO_REORDER` | 1: what completes later is reaped first |
//! | `KVSTORED_USRBIO_EAGER` | 1: I/O starts when it's prepared, not when it's submitted |
#![allow(unsafe_code)] // the boundary to C is what this crate is for
#![allow(clippy::too_many_arguments)] // the interface has them
#![allow(clippy::disallowed_methods)] // it stands for a program of somebody else: nothing is injected into it

pub mod abi;
pub mod exports;
mod files;
mod iovs;
mod mounts;
pub mod ring_exports;
mod rings;
mod switches;
