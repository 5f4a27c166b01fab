//! The package as a wheel, built by maturin from the workspace's own build directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::environment::{self, Environment, Kind};
use crate::process::{self, Failure};
use crate::workspace::Workspace;

/// Lists what a wheel holds with checksums, without the bill of materials, which carries the time it was written.
const LIST: &str = "
import sys, zipfile
for file in sorted(zipfile.ZipFile(sys.argv[1]).infolist(), key=lambda file: file.filename):
    if '.dist-info/sboms/' not in file.filename and not file.filename.endswith('/RECORD'):
        print(file.filename, file.file_size, file.CRC)
";

/// Which of cargo's profiles.
#[derive(Clone, Copy)]
pub enum Profile {
    /// The one that everything else is tested in, so that little has to be compiled.
    Development,
    /// For figures.
    Release,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Development => "dev",
            Self::Release => "release",
        }
    }
}

/// Builds the wheel and returns where it lies.
pub fn build(workspace: &Workspace, profile: Profile) -> Result<PathBuf, Failure> {
    let tools = environment::ready(workspace, Kind::Tools)?;
    let folder = workspace
        .target
        .join("python")
        .join("wheels")
        .join(profile.name());
    let _lock = environment::lock(&folder)?;
    // a wheel of another version must not be taken for this one
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let mut command = Command::new(tools.program("maturin"));
    command
        .current_dir(workspace.root.join("python"))
        .args([
            "build",
            "--quiet",
            "--auditwheel",
            "skip",
            "--profile",
            profile.name(),
        ])
        .arg("--interpreter")
        .arg(tools.python())
        .arg("--out")
        .arg(&folder)
        .env("CARGO", process::cargo());
    process::run(&mut command)?;
    let wheels: Vec<PathBuf> = fs::read_dir(&folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .collect();
    match wheels.as_slice() {
        [wheel] => Ok(wheel.clone()),
        _ => Err(format!(
            "{} holds {} wheels instead of one",
            folder.display(),
            wheels.len()
        )
        .into()),
    }
}

/// Names and checksums of what the wheel holds: equal for wheels that install the same.
pub fn contents(environment: &Environment, wheel: &Path) -> Result<String, Failure> {
    process::output(
        Command::new(environment.python())
            .args(["-I", "-c", LIST])
            .arg(wheel),
    )
}
