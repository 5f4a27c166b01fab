//! Debian's stock kernel, downloaded and unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{self, Failure};

/// The package that depends on the current kernel.
const META_PACKAGE: &str = "linux-image-amd64";

/// An unpacked kernel.
pub struct Kernel {
    /// The file to boot.
    pub image: PathBuf,
    root: PathBuf,
    version: String,
}

impl Kernel {
    /// The kernel in `folder`, downloaded by the first call.
    pub fn fetch(folder: &Path) -> Result<Self, Failure> {
        let root = folder.join("kernel");
        if let Some(kernel) = Self::find(&root) {
            return Ok(kernel);
        }
        // a download that was interrupted leaves nothing that would be taken for a kernel
        let fresh = folder.join("kernel.new");
        let _ = fs::remove_dir_all(&fresh);
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(&fresh)?;
        let package = if let Ok(package) = current_package() {
            package
        } else {
            process::run(Command::new("apt-get").arg("update"))?;
            current_package()?
        };
        let download = || {
            process::run(
                Command::new("apt-get")
                    .current_dir(&fresh)
                    .args(["download", "-q", &package]),
            )
        };
        if download().is_err() {
            // the list names a version that the mirror has replaced
            process::run(Command::new("apt-get").arg("update"))?;
            download()?;
        }
        let archive = fs::read_dir(&fresh)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or("apt-get downloaded no package")?;
        process::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&fresh))?;
        fs::remove_file(&archive)?;
        let kernel = Self::find(&fresh).ok_or("the package holds no kernel")?;
        process::run(
            Command::new("/sbin/depmod")
                .arg("-b")
                .arg(&fresh)
                .arg(&kernel.version),
        )?;
        fs::rename(&fresh, &root)?;
        Ok(Self::find(&root).ok_or("the kernel went away")?)
    }

    fn find(root: &Path) -> Option<Self> {
        let entries = fs::read_dir(root.join("boot")).ok()?.filter_map(Result::ok);
        entries.map(|entry| entry.path()).find_map(|image| {
            let version = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
            Some(Self {
                root: root.to_path_buf(),
                version,
                image: image.clone(),
            })
        })
    }

    /// The files of modules and of what they depend on, in the order in which they are to be loaded.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>, Failure> {
        let mut files: Vec<PathBuf> = Vec::new();
        for name in names {
            let mut command = Command::new("/sbin/modprobe");
            command
                .arg("-d")
                .arg(&self.root)
                .args(["-S", &self.version, "--show-depends", name]);
            for line in process::output(&mut command)?.lines() {
                let file = insmod_path(line).map(PathBuf::from);
                if let Some(file) = file.filter(|file| !files.contains(file)) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }
}

fn current_package() -> Result<String, Failure> {
    let text = process::output(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    let found = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(found
        .map(str::to_owned)
        .ok_or_else(|| format!("{META_PACKAGE} depends on nothing"))?)
}

/// The file of a line "insmod PATH PARAMETERS"; the other kind is "builtin NAME".
fn insmod_path(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("insmod ")?;
    let from_suffix = rest.get(rest.find(".ko")?..)?;
    let suffix = from_suffix.split_whitespace().next()?;
    rest.get(..rest.len() - from_suffix.len() + suffix.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_modprobe_are_understood() {
        assert_eq!(
            insmod_path("insmod /a b/dummy.ko numdummies=0"),
            Some("/a b/dummy.ko")
        );
        assert_eq!(
            insmod_path("insmod /a/rdma_rxe.ko.xz "),
            Some("/a/rdma_rxe.ko.xz")
        );
        assert_eq!(insmod_path("builtin crc32_generic"), None);
    }
}
