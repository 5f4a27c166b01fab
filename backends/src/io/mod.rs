//! Completion-style file I/O: io_uring, with positioned system calls as the fallback.
//!
//! A caller hands over a batch of [`IoRequest`]s and hears about each one through its completion. The engine
//! owns a request's buffer from the submission to the completion, whatever the caller drops meanwhile, so the
//! kernel never touches memory that somebody else may have got.

mod error;
pub mod faults;
pub mod files;
mod inbox;
pub mod psync;
mod request;
mod settings;
pub mod uring;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use kvstored_core::{Error, ErrorKind, Result, Runtime};

pub use error::{Progress, Step, busy, cancelled};
pub use inbox::admit;
pub use request::{Direction, IoCompletion, IoRequest};
pub use settings::{IoPreference, IoSettings};

/// Moves bytes between files and slots.
///
/// Completions run on a thread of the engine, or on the submitting thread for a request that is refused at
/// once. They must not block; they may submit more requests.
pub trait IoEngine: Send + Sync + 'static {
    /// `"io_uring"`, `"psync"`, or another engine's name; for logs and metrics.
    fn name(&self) -> &'static str;

    /// Hands a batch over and returns without waiting for any of it.
    ///
    /// Every completion is called exactly once. A request that isn't valid completes with `InvalidInput`, one
    /// that doesn't fit the bounded queue with `Busy`, one that comes after [`IoEngine::shutdown`] with
    /// `Cancelled`; these complete before the call returns. A file that ends before `length` bytes were read
    /// gives `Io` with the message "short read", a full file system `NoSpace`, a file that isn't open for
    /// that direction `PermissionDenied`, and any other failure what [`Error::from_io`] makes of it.
    fn submit(&self, batch: Vec<IoRequest>);

    /// Requests accepted and not yet completed: waiting and in flight.
    fn queue_depth(&self) -> usize;

    /// Stops the engine: requests that are still waiting, and later ones, complete with `Cancelled`; those in
    /// flight are awaited (except when called from a completion, which can't wait for itself). Idempotent.
    fn shutdown(&self);
}

/// Starts an engine; `name` names its threads.
///
/// With [`IoPreference::Auto`] a system without io_uring gets the psync engine, and the reason is logged.
/// Fails with `InvalidInput` for settings out of range, and with `Unsupported` where io_uring was asked for and
/// the system refuses it.
pub fn open_io_engine(settings: &IoSettings, runtime: &Runtime, name: &str) -> Result<Arc<dyn IoEngine>> {
    settings.validate()?;
    match settings.preference {
        IoPreference::Psync => open_psync(settings, runtime, name),
        IoPreference::Uring => open_uring(settings, runtime, name)
            .map_err(|error| Error::new(ErrorKind::Unsupported, format!("io_uring is refused: {error}"))),
        IoPreference::Auto => open_uring(settings, runtime, name).or_else(|error| {
            tracing::warn!(%error, engine = name, "io_uring is refused, using positioned system calls");
            open_psync(settings, runtime, name)
        }),
    }
}

fn open_uring(settings: &IoSettings, runtime: &Runtime, name: &str) -> Result<Arc<dyn IoEngine>> {
    Ok(Arc::new(uring::UringEngine::open(settings, runtime, name)?))
}

fn open_psync(settings: &IoSettings, runtime: &Runtime, name: &str) -> Result<Arc<dyn IoEngine>> {
    Ok(Arc::new(psync::PsyncEngine::open(settings, runtime, name)?))
}
