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

/// A new directory with the examples: `files.so`, compiled from C, and `memory.so`, which cargo builds from Rust beside the
/// running test. It lies in the system's folder for such, since those above a target directory may be a group's to write.
pub fn directory() -> Result<tempfile::TempDir> {
    let failed = |error| Error::from_io(error, "the plugin directory");
    let directory = tempfile::tempdir().map_err(failed)?;
    let path = directory.path();
    let files = path.join("files.so");
    let mut compile = Command::new("cc");
    compile
        .args(["-std=c11", "-O2", "-shared", "-fPIC", "-pthread", "-I"])
        .arg(sources().join("abi/include"))
        .arg(sources().join("examples/c/files.c"))
        .arg("-o")
        .arg(&files);
    run(&mut compile)?;
    let test = std::env::current_exe().map_err(failed)?;
    let memory = test.with_file_name("libkvstored_plugin_memory.so");
    fs::copy(memory, path.join("memory.so")).map_err(failed)?;
    for name in ["files.so", "memory.so"] {
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    let mut list = Command::new("sh");
    list.current_dir(path)
        .args(["-c", "umask 022 && sha256sum *.so > SHA256SUMS"]);
    run(&mut list)?;
    Ok(directory)
}
