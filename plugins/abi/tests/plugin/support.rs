//! Plugin directories with plugins built for the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kvstored_core::{Result, Runtime};
use kvstored_plugin_host::{PluginDirectory, PluginSettings, PluginTier, Probe};

/// Where the plugins' sources are.
pub fn plugins() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A directory that may be loaded from.
pub struct Directory {
    pub root: tempfile::TempDir,
}

impl Directory {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        Self { root }
    }

    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Compiles a C plugin into the directory.
    pub fn compile(&self, source: &Path, name: &str, flags: &[&str]) {
        let output = self.path().join(format!("{name}.so"));
        let done = Command::new("cc")
            .args([
                "-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-pthread",
            ])
            .args(flags)
            .arg("-I")
            .arg(plugins().join("abi/include"))
            .arg(source)
            .arg("-o")
            .arg(&output)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::set_permissions(&output, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Puts the example in Rust there, which cargo has built beside this test.
    pub fn copy_memory(&self) {
        let tests = std::env::current_exe().unwrap();
        let built = tests.parent().unwrap().join("libkvstored_plugin_memory.so");
        let copy = self.path().join("memory.so");
        fs::copy(&built, &copy).unwrap_or_else(|error| panic!("{}: {error}", built.display()));
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Lists what is there, as an operator would.
    pub fn list(&self) {
        let done = Command::new("sh")
            .args(["-c", "sha256sum *.so > SHA256SUMS && chmod 644 SHA256SUMS"])
            .current_dir(self.path())
            .status()
            .unwrap();
        assert!(done.success());
    }

    pub fn open(&self, name: &str, timeout: Duration, settings: &[(&str, &str)]) -> Result<Arc<PluginTier>> {
        let probe = Probe {
            timeout: Duration::from_secs(10),
            ..Probe::new(env!("CARGO_BIN_EXE_kvstored-plugin-probe").into(), &[])
        };
        let settings = PluginSettings {
            settings: settings
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            timeout,
            ..PluginSettings::default()
        };
        PluginDirectory::new(self.path().to_owned(), probe).open(name, settings, &Runtime::system())
    }
}
