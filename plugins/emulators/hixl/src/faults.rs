//! What goes wrong on purpose. Each switch is an environment variable, a number, read at the first call.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `KVSTORED_EMULATOR_HIXL_REFUSE` | 1: no client connects |
//! | `KVSTORED_EMULATOR_HIXL_HANG` | 1: tasks never end |
//! | `KVSTORED_EMULATOR_HIXL_SHORT` | 1: tasks move half of their bytes and fail |
//! | `KVSTORED_EMULATOR_HIXL_FAIL_EVERY` | every n-th task fails |
//! | `KVSTORED_EMULATOR_HIXL_SUBMIT` | 1: a task is begun and the call fails, so that there is no handle |
//! | `KVSTORED_EMULATOR_HIXL_QUERY` | 1: asking about tasks fails |
//! | `KVSTORED_EMULATOR_HIXL_DESTROY` | 1: clients can't be destroyed |
//! | `KVSTORED_EMULATOR_HIXL_STALL_MS` | every task takes that long at least |

use std::ffi::{CStr, c_char};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that may be changed at any time.
pub(crate) struct Switch {
    name: &'static str,
    value: AtomicU64,
}

impl Switch {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            value: AtomicU64::new(0),
        }
    }

    pub fn get(&self) -> u64 {
        read_environment();
        self.value.load(Ordering::Relaxed)
    }

    pub fn is_on(&self) -> bool {
        self.get() > 0
    }
}

pub(crate) static REFUSE: Switch = Switch::new("REFUSE");
pub(crate) static HANG: Switch = Switch::new("HANG");
pub(crate) static SHORT: Switch = Switch::new("SHORT");
pub(crate) static FAIL_EVERY: Switch = Switch::new("FAIL_EVERY");
pub(crate) static SUBMIT: Switch = Switch::new("SUBMIT");
pub(crate) static QUERY: Switch = Switch::new("QUERY");
pub(crate) static DESTROY: Switch = Switch::new("DESTROY");
pub(crate) static STALL_MS: Switch = Switch::new("STALL_MS");

static ALL: [&Switch; 8] = [
    &REFUSE,
    &HANG,
    &SHORT,
    &FAIL_EVERY,
    &SUBMIT,
    &QUERY,
    &DESTROY,
    &STALL_MS,
];

static READ: Once = Once::new();

fn read_environment() {
    READ.call_once(|| {
        for switch in ALL {
            let given = std::env::var(format!("KVSTORED_EMULATOR_HIXL_{}", switch.name)).ok();
            let value = given.and_then(|text| text.parse().ok()).unwrap_or(0);
            switch.value.store(value, Ordering::Relaxed);
        }
    });
}

/// Sets a switch by its name without `KVSTORED_EMULATOR_HIXL_`. Returns 0, or 1 for a name that is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvstored_emulator_hixl_set(name: *const c_char, value: u64) -> i32 {
    read_environment();
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
