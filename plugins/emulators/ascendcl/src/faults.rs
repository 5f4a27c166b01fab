//! What goes wrong on purpose. Each switch is an environment variable, a number, read at `aclInit`.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `KVSTORED_EMULATOR_DEVICES` | devices; 2 |
//! | `KVSTORED_EMULATOR_MEMORY_MIB` | memory of each; 1024 |
//! | `KVSTORED_EMULATOR_NO_BATCH` | 1: batches are not supported (207000) |
//! | `KVSTORED_EMULATOR_MOST_BATCH` | copies in a batch; 4096. More give 107000 |
//! | `KVSTORED_EMULATOR_FAIL_EVERY` | every n-th copy task fails, which shows at the next synchronization (507899) |
//! | `KVSTORED_EMULATOR_STALL_MS` | every copy task takes that long at least |
//! | `KVSTORED_EMULATOR_BANDWIDTH_MIB` | MiB a second of each stream; as fast as memory if not given |
//! | `KVSTORED_EMULATOR_STRICT` | 1: asynchronous copies with host memory that isn't registered give 107000 instead of running at once |

use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that may be changed at any time.
pub(crate) struct Switch {
    name: &'static str,
    default: u64,
    value: AtomicU64,
}

impl Switch {
    const fn new(name: &'static str, default: u64) -> Self {
        Self {
            name,
            default,
            value: AtomicU64::new(default),
        }
    }

    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

pub(crate) static DEVICES: Switch = Switch::new("DEVICES", 2);
pub(crate) static MEMORY_MIB: Switch = Switch::new("MEMORY_MIB", 1024);
pub(crate) static NO_BATCH: Switch = Switch::new("NO_BATCH", 0);
pub(crate) static MOST_BATCH: Switch = Switch::new("MOST_BATCH", 4096);
pub(crate) static FAIL_EVERY: Switch = Switch::new("FAIL_EVERY", 0);
pub(crate) static STALL_MS: Switch = Switch::new("STALL_MS", 0);
pub(crate) static BANDWIDTH_MIB: Switch = Switch::new("BANDWIDTH_MIB", 0);
pub(crate) static STRICT: Switch = Switch::new("STRICT", 0);

static ALL: [&Switch; 8] = [
    &DEVICES,
    &MEMORY_MIB,
    &NO_BATCH,
    &MOST_BATCH,
    &FAIL_EVERY,
    &STALL_MS,
    &BANDWIDTH_MIB,
    &STRICT,
];

/// Calls that took a batch, calls that took one copy, and copies.
pub(crate) static BATCH_CALLS: AtomicU64 = AtomicU64::new(0);
pub(crate) static SINGLE_CALLS: AtomicU64 = AtomicU64::new(0);
pub(crate) static COPIES: AtomicU64 = AtomicU64::new(0);

/// Whether batches are not supported, for emulators over this one.
pub fn has_no_batches() -> bool {
    NO_BATCH.get() > 0
}

/// Reads the environment.
pub(crate) fn read_environment() {
    for switch in ALL {
        let given = std::env::var(format!("KVSTORED_EMULATOR_{}", switch.name)).ok();
        let value = given.and_then(|text| text.parse().ok()).unwrap_or(switch.default);
        switch.value.store(value, Ordering::Relaxed);
    }
}

/// Sets a switch by its name without `KVSTORED_EMULATOR_`. Returns 0, or 1 for a name that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvstored_emulator_set(name: *const c_char, value: u64) -> i32 {
    // SAFETY: the caller passes a text that is ended by a zero.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    match ALL.iter().find(|switch| switch.name.as_bytes() == name) {
        Some(switch) => {
            switch.value.store(value, Ordering::Relaxed);
            0
        }
        None => 1,
    }
}

/// Counts since the library was loaded: 0 batch calls, 1 single calls, 2 copies.
#[unsafe(no_mangle)]
pub extern "C" fn kvstored_emulator_count(which: u32) -> u64 {
    let count = match which {
        0 => &BATCH_CALLS,
        1 => &SINGLE_CALLS,
        _ => &COPIES,
    };
    count.load(Ordering::Relaxed)
}
