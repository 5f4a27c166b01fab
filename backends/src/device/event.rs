//! An event of the host device: which of its records have been reached.

use std::time::Duration;

use kvstored_core::{Error, ErrorKind, Result, Runtime};
use parking_lot::{Condvar, Mutex};

#[derive(Default)]
struct Records {
    /// How often it was recorded.
    recorded: u64,
    /// The latest record that a stream has come to.
    reached: u64,
}

/// A point that streams come to. Each record has a number.
#[derive(Default)]
pub(super) struct HostEvent {
    records: Mutex<Records>,
    changed: Condvar,
}

impl HostEvent {
    /// A new record's number.
    pub(super) fn record(&self) -> u64 {
        let mut records = self.records.lock();
        records.recorded += 1;
        records.recorded
    }

    /// The latest record's number; 0 for none.
    pub(super) fn latest(&self) -> u64 {
        self.records.lock().recorded
    }

    /// A stream has come to a record.
    pub(super) fn reach(&self, record: u64) {
        let mut records = self.records.lock();
        records.reached = records.reached.max(record);
        drop(records);
        self.changed.notify_all();
    }

    /// Waits for a record, as a stream does: however long it takes.
    pub(super) fn wait(&self, record: u64) {
        let mut records = self.records.lock();
        while records.reached < record {
            self.changed.wait(&mut records);
        }
    }

    /// Whether the latest record has been reached.
    pub(super) fn is_reached(&self) -> bool {
        let records = self.records.lock();
        records.recorded > 0 && records.reached >= records.recorded
    }

    /// Waits for the latest record.
    pub(super) fn synchronize(&self, timeout: Duration, runtime: &Runtime) -> Result<()> {
        let deadline = runtime.deadline(timeout);
        let mut records = self.records.lock();
        let wanted = records.recorded.max(1);
        while records.reached < wanted {
            let left = deadline.saturating_duration_since(runtime.clock.now());
            if left.is_zero() {
                let what = format!("an event was not reached in {} ms", timeout.as_millis());
                return Err(Error::new(ErrorKind::TimedOut, what));
            }
            self.changed.wait_for(&mut records, left);
        }
        Ok(())
    }
}
