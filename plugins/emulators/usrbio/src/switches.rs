//! What goes wrong on purpose, and how often.

use std::sync::atomic::{AtomicI64, Ordering};

const PREFIX: &str = "KVSTORED_USRBIO_";

/// The switches of one mount. All may be turned at any time.
pub struct Switches {
    values: [AtomicI64; NAMES.len()],
    done: AtomicI64,
    prepared: AtomicI64,
}

const NAMES: [(&str, i64); 10] = [
    ("THREADS", 4),
    ("LATENCY_US", 0),
    ("FAIL_EVERY", 0),
    ("FAIL_ERRNO", libc::EIO as i64),
    ("SHORT_EVERY", 0),
    ("HANG_EVERY", 0),
    ("FULL_EVERY", 0),
    ("RINGS", 4096),
    ("REORDER", 0),
    ("EAGER", 0),
];

/// What happens to one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It's done.
    Done,
    /// It fails with this error number.
    Fails(i32),
    /// It moves half its bytes.
    Short,
    /// It never completes.
    Hangs,
}

impl Switches {
    /// As the environment has them.
    pub fn from_environment() -> Self {
        let values = NAMES.map(|(name, default)| {
            let given = std::env::var(format!("{PREFIX}{name}")).ok();
            AtomicI64::new(given.and_then(|text| text.parse().ok()).unwrap_or(default))
        });
        Self {
            values,
            done: AtomicI64::new(0),
            prepared: AtomicI64::new(0),
        }
    }

    /// Turns one. Returns whether there is such a one.
    pub fn set(&self, name: &str, value: i64) -> bool {
        let place = NAMES.iter().position(|(known, _)| *known == name);
        let Some(switch) = place.and_then(|place| self.values.get(place)) else {
            return false;
        };
        switch.store(value, Ordering::SeqCst);
        // every n-th counts from here
        self.done.store(0, Ordering::SeqCst);
        self.prepared.store(0, Ordering::SeqCst);
        true
    }

    /// A switch's value; 0 for one that there isn't.
    pub fn get(&self, name: &str) -> i64 {
        let place = NAMES.iter().position(|(known, _)| *known == name);
        place
            .and_then(|place| self.values.get(place))
            .map_or(0, |value| value.load(Ordering::SeqCst))
    }

    /// Draws the fate of the next I/O.
    pub fn fate(&self) -> Fate {
        let number = self.done.fetch_add(1, Ordering::SeqCst) + 1;
        let every = |name: &str| {
            let interval = self.get(name);
            interval > 0 && number % interval == 0
        };
        if every("HANG_EVERY") {
            Fate::Hangs
        } else if every("FAIL_EVERY") {
            Fate::Fails(self.get("FAIL_ERRNO") as i32)
        } else if every("SHORT_EVERY") {
            Fate::Short
        } else {
            Fate::Done
        }
    }

    /// Whether the next preparation finds the ring full.
    pub fn finds_full(&self) -> bool {
        let interval = self.get("FULL_EVERY");
        interval > 0 && (self.prepared.fetch_add(1, Ordering::SeqCst) + 1) % interval == 0
    }
}
