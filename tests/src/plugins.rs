//! Plugin directories with the examples, as an operator would fill them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvstored_core::{Error, Result};

use crate::daemon::run;

/// The examples' sources and the header.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins")
}

/// A library that cargo has built beside the running test.
pub fn beside(file: &str) -> Result<PathBuf> {
    let failed = |error| Error::from_io(error, "current executable");
    Ok(std::env::current_exe().map_err(failed)?.with_file_name(file))
}

/// A new directory with the examples: `files.so`, compiled from C, and `memory.so`, which cargo builds from Rust beside the
/// running test. It lies in the system's folder for such, since those above a target directory may be a group's to write.
pub fn directory() -> Result<tempfile::TempDir> {
    let directory = temporary()?;
    let mut compile = Command::new("cc");
    compile
        .args(["-std=c11", "-O2", "-shared", "-fPIC", "-pthread", "-I"])
        .arg(sources().join("abi/include"))
        .arg(sources().join("examples/c/files.c"))
        .arg("-o")
        .arg(directory.path().join("files.so"));
    run(&mut compile)?;
    copy(directory.path(), "memory")?;
    list(directory.path(), &["files", "memory"])?;
    Ok(directory)
}

/// A new directory with one plugin, which cargo builds beside the running test.
pub fn directory_with(name: &str) -> Result<tempfile::TempDir> {
    let directory = temporary()?;
    copy(directory.path(), name)?;
    list(directory.path(), &[name])?;
    Ok(directory)
}

fn failed(error: std::io::Error) -> Error {
    Error::from_io(error, "the plugin directory")
}

fn temporary() -> Result<tempfile::TempDir> {
    tempfile::tempdir().map_err(failed)
}

fn copy(directory: &Path, name: &str) -> Result<()> {
    let built = beside(&format!("libkvstored_plugin_{name}.so"))?;
    fs::copy(built, directory.join(format!("{name}.so")))
        .map(drop)
        .map_err(failed)
}

/// Makes the plugins what may be loaded.
fn list(directory: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let file = directory.join(format!("{name}.so"));
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    let mut list = Command::new("sh");
    list.current_dir(directory)
        .args(["-c", "umask 022 && sha256sum *.so > SHA256SUMS"]);
    run(&mut list)
}
