//! Mounts of the emulator, and the plugin built beside the tests.
#![allow(unsafe_code)] // the emulator is a library with C functions

use std::ffi::{CString, c_char, c_int};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::memory::SlotOwner;
use kvstored_core::quota::QuotaLedger;
use kvstored_core::{Arena, Result, Runtime, SlotGuard};
use kvstored_plugin_host::{PluginDirectory, PluginSettings, PluginTier, Probe, run_probe};
use libloading::os::unix::Library;
use tempfile::TempDir;

/// Long enough that only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What cargo has built beside this test.
fn built(name: &str) -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name(name);
    assert!(path.exists(), "{} isn't built", path.display());
    path
}

/// The emulated library.
pub fn library() -> String {
    built("libhf3fs_api_shared.so").display().to_string()
}

/// A directory on the file system of the build directory, where the temporary directory may be memory.
pub fn directory() -> TempDir {
    let executable = std::env::current_exe().unwrap();
    tempfile::tempdir_in(executable.parent().unwrap()).unwrap()
}

/// A directory that the emulator takes for a mount.
pub struct Mounted {
    directory: TempDir,
}

impl Mounted {
    pub fn new() -> Self {
        let mounted = Self {
            directory: directory(),
        };
        let path = mounted.c_path();
        // SAFETY: loads the emulator, whose function takes a text that ends in a zero.
        let outcome = unsafe {
            let library = emulator();
            let mount =
                library.get::<unsafe extern "C" fn(*const c_char) -> c_int>(b"kvstored_usrbio_mount\0");
            mount.unwrap()(path.as_ptr())
        };
        assert_eq!(outcome, 0);
        mounted
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().canonicalize().unwrap()
    }

    fn c_path(&self) -> CString {
        CString::new(self.path().display().to_string()).unwrap()
    }

    /// Turns a switch of the emulator for this mount.
    pub fn set(&self, switch: &str, value: i64) {
        type Set = unsafe extern "C" fn(*const c_char, *const c_char, i64) -> c_int;
        let (path, switch) = (self.c_path(), CString::new(switch).unwrap());
        // SAFETY: as in `new`.
        let outcome = unsafe {
            let library = emulator();
            library.get::<Set>(b"kvstored_usrbio_set\0").unwrap()(path.as_ptr(), switch.as_ptr(), value)
        };
        assert_eq!(outcome, 0, "{switch:?}");
    }

    /// Names of the links to memory.
    pub fn links(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path().join("3fs-virt/iovs")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// The emulator, which stays loaded.
fn emulator() -> std::mem::ManuallyDrop<Library> {
    // SAFETY: it's ours.
    std::mem::ManuallyDrop::new(unsafe { Library::new(library()) }.unwrap())
}

struct Nobody;

impl SlotOwner for Nobody {
    fn release(&self, _slot: u32) {}
}

/// A buffer of an arena of its own.
pub fn slot(bytes: usize) -> SlotGuard {
    slot_in(&Arc::new(Arena::heap(bytes).unwrap()), 0, bytes)
}

/// A buffer in an arena.
pub fn slot_in(arena: &Arc<Arena>, offset: usize, bytes: usize) -> SlotGuard {
    SlotGuard::new(Arc::clone(arena), Arc::new(Nobody), 0, offset, bytes)
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| (seed.wrapping_add(at).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect()
}

/// A directory that plugins may be loaded from, with ours.
pub struct Plugins {
    directory: TempDir,
}

impl Plugins {
    pub fn new() -> Self {
        let directory = directory();
        let path = directory.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        let copy = path.join("ds3fs.so");
        fs::copy(built("libkvstored_ds3fs.so"), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        let listed = std::process::Command::new("sh")
            .args(["-c", "sha256sum *.so > SHA256SUMS && chmod 644 SHA256SUMS"])
            .current_dir(path)
            .status()
            .unwrap();
        assert!(listed.success());
        Self { directory }
    }

    /// Opens the tier as kvstored does.
    pub fn open(&self, settings: &[(&str, String)]) -> Result<Arc<PluginTier>> {
        self.open_with(settings, PATIENCE)
    }

    pub fn open_with(&self, settings: &[(&str, String)], timeout: Duration) -> Result<Arc<PluginTier>> {
        self.open_within(settings, timeout, None)
    }

    pub fn open_within(
        &self,
        settings: &[(&str, String)],
        timeout: Duration,
        quotas: Option<Arc<QuotaLedger>>,
    ) -> Result<Arc<PluginTier>> {
        let own = std::env::current_exe().unwrap();
        // this program tries plugins too, by the test below
        let probe = Probe::new(own, &["--exact", "--ignored", "support::tries_a_plugin"]);
        let settings = PluginSettings {
            settings: settings
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
            timeout,
            ..PluginSettings::default()
        };
        PluginDirectory::new(self.directory.path().to_owned(), probe).open(
            "ds3fs",
            settings,
            quotas,
            &Runtime::system(),
        )
    }
}

#[test]
#[ignore = "the body of a process that other tests start"]
fn tries_a_plugin() {
    let arguments: Vec<String> = std::env::args().collect();
    let [.., directory, name] = &arguments[..] else {
        panic!("no plugin")
    };
    run_probe(Path::new(directory), name).unwrap();
}

/// Settings of a small tier in a directory, on the emulator.
pub fn settings(directory: &Path) -> Vec<(&'static str, String)> {
    vec![
        ("directories", directory.display().to_string()),
        ("library", library()),
        ("capacity_bytes", (16 << 20).to_string()),
        ("segment_bytes", (1 << 20).to_string()),
    ]
}
