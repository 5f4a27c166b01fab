//! The tiers that are compared, opened for one load.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstored_backends::posix::{PosixSettings, PosixTier};
use kvstored_conformance::{Options, Subject};
use kvstored_core::{Result, Runtime, Tier};
use kvstored_plugin_host::{PluginDirectory, PluginSettings, Probe};

use crate::PROBE;
use crate::twin::Twin;

const MEMORY_BYTES: u64 = 512 << 20;
const STORAGE_BYTES: u64 = 4 << 30;

/// What is plugged in and built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The example in Rust, blocks in a map.
    Memory,
    /// The Posix tier, which the plugin `ds3fs` is where 3FS's library is missing; with direct I/O or through the page
    /// cache.
    Posix { direct: bool },
}

/// A tier plugged in, and the same built in; the one at that place is opened first.
pub fn open(kind: Kind, first: usize, directory: &Path, runtime: &Runtime) -> [Arc<dyn Tier>; 2] {
    let one = open_one(kind, first, directory, runtime);
    let other = open_one(kind, 1 - first, directory, runtime);
    if first == 0 { [one, other] } else { [other, one] }
}

fn open_one(kind: Kind, place: usize, directory: &Path, runtime: &Runtime) -> Arc<dyn Tier> {
    let storage = directory.join(["plugged-in", "built-in"][place]);
    std::fs::create_dir_all(&storage).expect("a directory");
    match (kind, place) {
        (Kind::Memory, 0) => {
            let settings = vec![("capacity_bytes", MEMORY_BYTES.to_string())];
            plugged(directory, "memory", settings, runtime)
        }
        (Kind::Memory, _) => Twin::start(MEMORY_BYTES, runtime),
        (Kind::Posix { direct }, 0) => {
            let settings = vec![
                ("directories", storage.display().to_string()),
                ("capacity_bytes", STORAGE_BYTES.to_string()),
                ("direct", direct.to_string()),
                ("force_sync", "false".into()),
                ("library", "none.so".into()),
            ];
            plugged(directory, "ds3fs", settings, runtime)
        }
        (Kind::Posix { direct }, _) => built_in_posix(storage, direct, runtime),
    }
}

fn built_in_posix(directory: PathBuf, direct: bool, runtime: &Runtime) -> Arc<dyn Tier> {
    let settings = PosixSettings {
        directories: vec![directory],
        capacity_bytes: STORAGE_BYTES,
        direct,
        ..PosixSettings::default()
    };
    PosixTier::open(settings, runtime.clone(), None).unwrap()
}

/// A plugin built beside this program, loaded as the daemon loads it.
fn plugged(directory: &Path, name: &str, settings: Vec<(&str, String)>, runtime: &Runtime) -> Arc<dyn Tier> {
    let program = std::env::current_exe().unwrap();
    let library = match name {
        "memory" => "libkvstored_plugin_memory.so".to_owned(),
        _ => format!("libkvstored_{name}.so"),
    };
    let built = program.parent().unwrap().join(library);
    let file = directory.join(format!("{name}.so"));
    std::fs::copy(&built, &file).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
    let listed = std::process::Command::new("sha256sum")
        .arg(format!("{name}.so"))
        .current_dir(directory)
        .output();
    let sums = directory.join("SHA256SUMS");
    std::fs::write(&sums, listed.unwrap().stdout).unwrap();
    for (path, mode) in [(directory, 0o700), (&file, 0o755), (&sums, 0o644)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let settings = PluginSettings {
        settings: settings
            .into_iter()
            .map(|(key, value)| (key.into(), value))
            .collect(),
        ..PluginSettings::default()
    };
    let plugins = PluginDirectory::new(directory.to_owned(), Probe::new(program, &[PROBE]));
    plugins.open(name, settings, None, runtime).unwrap()
}

struct TwinTier(Runtime);

impl Subject for TwinTier {
    fn open(&mut self) -> Result<Arc<dyn Tier>> {
        Ok(Twin::start(8 << 20, &self.0))
    }

    fn survives_restart(&self) -> bool {
        false
    }
}

/// Runs the conformance kit on the twin.
pub fn check_twin(runtime: &Runtime) {
    let report = kvstored_conformance::run(&mut TwinTier(runtime.clone()), &Options::default(), runtime);
    assert!(report.passed(), "{report}");
}
