//! How often the library was asked to copy, and for how much.

use std::sync::atomic::{AtomicU64, Ordering};

use kvstored_plugin::{Copy, DeviceStatistics};

#[derive(Default)]
pub(crate) struct Counts {
    batch_calls: AtomicU64,
    single_calls: AtomicU64,
    copies: AtomicU64,
    copied_bytes: AtomicU64,
}

impl Counts {
    pub fn batch(&self, copies: &[Copy]) {
        self.batch_calls.fetch_add(1, Ordering::Relaxed);
        self.copies(copies);
    }

    pub fn single(&self, copy: &Copy) {
        self.single_calls.fetch_add(1, Ordering::Relaxed);
        self.copies(std::slice::from_ref(copy));
    }

    fn copies(&self, copies: &[Copy]) {
        let bytes = copies.iter().map(|copy| copy.bytes).sum();
        self.copies.fetch_add(copies.len() as u64, Ordering::Relaxed);
        self.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn fill(&self, statistics: &mut DeviceStatistics) {
        statistics.batch_calls = self.batch_calls.load(Ordering::Relaxed);
        statistics.single_calls = self.single_calls.load(Ordering::Relaxed);
        statistics.copies = self.copies.load(Ordering::Relaxed);
        statistics.copied_bytes = self.copied_bytes.load(Ordering::Relaxed);
    }
}
