//! A Python to make environments with.

use std::path::PathBuf;
use std::process::Command;

use crate::process::{self, Failure};
use crate::setup;

/// Names another interpreter than those that are looked for.
const VARIABLE: &str = "KVSTORED_PYTHON";
const NAMES: [&str; 4] = ["python3.11", "python3.12", "python3.13", "python3"];
/// Exits with 0 where environments with everything that the pinned packages need can be made.
const CHECK: &str =
    "import sys, venv, ensurepip; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else 1)";
const DEBIAN_PACKAGE: &str = "python3-venv";

/// The first interpreter that will do; Debian's is installed where there is none and we may.
pub fn find() -> Result<PathBuf, Failure> {
    if let Some(named) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        if serves(&named) {
            return Ok(named);
        }
        return Err(format!(
            "{VARIABLE}: {} isn't a Python 3.11 to 3.13 with venv and ensurepip",
            named.display()
        )
        .into());
    }
    if let Some(found) = search() {
        return Ok(found);
    }
    eprintln!("no Python 3.11 to 3.13 with venv is installed; installing the package {DEBIAN_PACKAGE}");
    setup::debian_package(DEBIAN_PACKAGE)?;
    search().ok_or_else(|| {
        format!("no Python 3.11 to 3.13 with venv and ensurepip: install one, or name it in {VARIABLE}")
            .into()
    })
}

fn search() -> Option<PathBuf> {
    // by absolute path too: an administrator's PATH may lead to something else first
    let everywhere = |name: &'static str| [PathBuf::from(name), PathBuf::from("/usr/bin").join(name)];
    NAMES.into_iter().flat_map(everywhere).find(serves)
}

fn serves(program: &PathBuf) -> bool {
    process::succeeds(Command::new(program).args(["-c", CHECK]))
}
