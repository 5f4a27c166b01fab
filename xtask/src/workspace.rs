//! Where the workspace lies and what is in it, as cargo tells.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::process::{self, Failure};

/// The cargo workspace that this program was built from.
pub struct Workspace {
    /// Folder of the root manifest.
    pub root: PathBuf,
    /// Where cargo puts what it builds.
    pub target: PathBuf,
    /// Every member.
    pub packages: Vec<Package>,
}

/// One member of the workspace.
pub struct Package {
    /// Folder relative to the root, with forward slashes.
    pub folder: String,
    /// The member's manifest.
    pub manifest: PathBuf,
    /// What it depends on.
    pub dependencies: Vec<Dependency>,
}

/// One entry of a member's dependency tables.
pub struct Dependency {
    /// The package's name in the registry or the workspace.
    pub name: String,
    /// Whether it's for tests and benches only.
    pub development: bool,
    /// For a dependency by path inside the workspace: its folder relative to the root.
    pub folder: Option<String>,
}

impl Workspace {
    /// Asks cargo.
    pub fn load() -> Result<Self, Failure> {
        let own = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = own
            .parent()
            .ok_or("this program's folder has no parent")?
            .to_path_buf();
        let text = process::output(Command::new(process::cargo()).current_dir(&root).args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
        ]))?;
        Self::parse(&text)
    }

    /// Parses what `cargo metadata --no-deps` prints.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let metadata: Value = serde_json::from_str(text)?;
        let root = PathBuf::from(string(&metadata, "workspace_root")?);
        let target = PathBuf::from(string(&metadata, "target_directory")?);
        let mut packages = Vec::new();
        for package in array(&metadata, "packages")? {
            let manifest = PathBuf::from(string(package, "manifest_path")?);
            let folder = relative(&root, manifest.parent().unwrap_or(&root))
                .ok_or_else(|| format!("{} lies outside the workspace", manifest.display()))?;
            let mut dependencies = Vec::new();
            for dependency in array(package, "dependencies")? {
                dependencies.push(Dependency {
                    name: string(dependency, "name")?.to_owned(),
                    development: dependency["kind"] == "dev",
                    folder: dependency["path"]
                        .as_str()
                        .and_then(|path| relative(&root, Path::new(path))),
                });
            }
            packages.push(Package {
                folder,
                manifest,
                dependencies,
            });
        }
        Ok(Self {
            root,
            target,
            packages,
        })
    }
}

fn relative(root: &Path, path: &Path) -> Option<String> {
    Some(path.strip_prefix(root).ok()?.to_str()?.to_owned())
}

fn string<'a>(value: &'a Value, key: &str) -> Result<&'a str, Failure> {
    Ok(value[key]
        .as_str()
        .ok_or_else(|| format!("cargo metadata has no {key}"))?)
}

fn array<'a>(value: &'a Value, key: &str) -> Result<&'a [Value], Failure> {
    Ok(value[key]
        .as_array()
        .ok_or_else(|| format!("cargo metadata has no {key}"))?)
}
