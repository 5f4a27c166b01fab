//! Memory shared with processes of the same host: the asker copies by itself, counted in at the serving side's control page.
//!
//! The serving side's [`ShmHost`] says, over a Unix socket, what a grant is worth: a region's descriptor, the range, and the
//! slot and epoch to be counted in at. The asker's [`ShmLink`] keeps that for the next time. Releasing or revoking advances
//! the epoch: nobody gets in any more who was told the old one, and has to ask again.

mod admissions;
mod host;
mod job;
mod link;
mod moving;

pub(crate) use host::{ShmHost, run as run_host};
pub(crate) use job::Job;
pub(crate) use link::ShmLink;
