//! What a fresh machine may lack: installed here when needed, without touching anything global but Debian packages.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::process::{self, Failure, Outcome};
use crate::workspace::Workspace;

/// Held while packages are installed: steps may run beside each other, and apt's own lock turns the second away.
static INSTALLING: Mutex<()> = Mutex::new(());
/// Held while a tool is built: whoever needs it too waits for it.
static BUILDING: Mutex<()> = Mutex::new(());

/// The path of a cargo subcommand's program: the one on PATH, or one built into the target directory.
///
/// It is built without optimisation: it runs for seconds, and building it faster saves minutes.
pub fn cargo_tool(workspace: &Workspace, name: &str) -> Result<PathBuf, Failure> {
    if has_program(name) {
        return Ok(PathBuf::from(name));
    }
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let root = workspace.target.join("tools");
    let program = root.join("bin").join(name);
    if !program.exists() {
        eprintln!("{name} isn't installed; building it once into {}", root.display());
        let mut command = Command::new(process::cargo());
        command
            .args(["install", name, "--locked", "--profile", "dev", "--root"])
            .arg(&root);
        command
            .env("CARGO_TARGET_DIR", root.join("build"))
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_INCREMENTAL", "0");
        process::run(&mut command)?;
        // hundreds of megabytes that nobody needs again
        let _ = std::fs::remove_dir_all(root.join("build"));
    }
    Ok(program)
}

/// Makes sure that a program is there, from the Debian package that has it if need be.
pub fn debian_program(name: &str, package: &str) -> Outcome {
    if has_program(name) {
        return Ok(());
    }
    eprintln!("{name} isn't installed; installing the package {package}");
    debian_package(package).map_err(|error| format!("{name} is missing: {error}").into())
}

/// Whether Debian packages can be installed here.
pub fn may_install() -> bool {
    rustix::process::geteuid().is_root() && has_program("apt-get")
}

/// Installs a Debian package, or says that somebody else must.
pub fn debian_package(package: &str) -> Outcome {
    if !may_install() {
        return Err(format!("install the package {package}").into());
    }
    // whatever a panicking thread left half installed is for apt to find out
    let _installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let install = || {
        let mut command = Command::new("apt-get");
        command
            .args(["install", "-y", "--no-install-recommends", package])
            .env("DEBIAN_FRONTEND", "noninteractive");
        process::run(&mut command)
    };
    if install().is_ok() {
        return Ok(());
    }
    process::run(Command::new("apt-get").arg("update"))?;
    install()
}

fn has_program(name: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    // administration programs are often outside an ordinary user's PATH
    let administration = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&folders)
        .chain(administration)
        .any(|folder| folder.join(name).is_file())
}
