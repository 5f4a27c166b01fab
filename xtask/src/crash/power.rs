//! Power cuts without a machine to switch off: a file system on a loop device is shut down in place, and from then on
//! nothing reaches its image until it is unmounted and mounted again.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::ioctl::{Setter, ioctl};

use super::Victim;
use crate::process::{self, Failure, Outcome};
use crate::setup;

const IMAGE_BYTES: u64 = 1 << 30;
/// EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN: the same number, `_IOR('X', 125, u32)`.
const SHUTDOWN: u32 = 0x8004_587D;
/// Commit the journal, then cut: metadata may be newer than data.
const FLUSH_JOURNAL: u32 = 1;
/// Cut at once: the hardest.
const FLUSH_NOTHING: u32 = 2;
/// The kernel finishes a killed process's input and output a little later.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, ValueEnum)]
pub enum FileSystem {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
}

impl FileSystem {
    /// The program that makes one, its Debian package, and its flags.
    fn maker(self) -> (&'static str, &'static str, [&'static str; 2]) {
        match self {
            Self::Ext4 => ("mkfs.ext4", "e2fsprogs", ["-q", "-F"]),
            Self::Xfs => ("mkfs.xfs", "xfsprogs", ["-q", "-f"]),
        }
    }
}

/// A file system whose power can be cut.
pub struct Disk {
    image: PathBuf,
    mount_point: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Why there can't be one here, or nothing if there can.
    pub fn unavailable(file_system: FileSystem) -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("mounting a loop device needs root".to_owned());
        }
        let (program, package, _) = file_system.maker();
        let probe = || -> Outcome {
            setup::debian_program(program, package)?;
            let temporary = tempfile::tempdir()?;
            Self::create(file_system, temporary.path()).map(drop)
        };
        probe()
            .err()
            .map(|error| format!("no loop-mounted file system here: {error}"))
    }

    /// Makes one inside the folder and mounts it there.
    pub fn create(file_system: FileSystem, folder: &Path) -> Result<Self, Failure> {
        let mut disk = Self {
            image: folder.join("image"),
            mount_point: folder.join("mounted"),
            mounted: false,
        };
        File::create(&disk.image)?.set_len(IMAGE_BYTES)?;
        fs::create_dir_all(&disk.mount_point)?;
        let (program, _, flags) = file_system.maker();
        let mut make = Command::new(program);
        process::output(make.args(flags).arg(&disk.image))?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&mut self) -> Outcome {
        let mut mount = Command::new("mount");
        process::output(mount.args(["-o", "loop"]).arg(&self.image).arg(&self.mount_point))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Outcome {
        let deadline = Instant::now() + UNMOUNT_LIMIT;
        while !process::succeeds(Command::new("umount").arg(&self.mount_point)) {
            if Instant::now() > deadline {
                return Err(format!("{} stays busy", self.mount_point.display()).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.mounted = false;
        Ok(())
    }
}

impl Victim for Disk {
    fn name(&self) -> &'static str {
        "power cuts"
    }

    fn directory(&self) -> &Path {
        &self.mount_point
    }

    fn surviving_level(&self) -> &'static str {
        "durable"
    }

    fn before_kill(&mut self, choice: u64) -> Outcome {
        let root = File::open(&self.mount_point)?;
        let how = if choice.is_multiple_of(2) {
            FLUSH_JOURNAL
        } else {
            FLUSH_NOTHING
        };
        // SAFETY: this request reads one u32 through the pointer that `Setter` passes and touches no other memory.
        unsafe { ioctl(&root, Setter::<SHUTDOWN, u32>::new(how)) }?;
        Ok(())
    }

    fn after_kill(&mut self) -> Outcome {
        self.unmount()?;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted && self.unmount().is_err() {
            let _ = process::succeeds(Command::new("umount").arg("--lazy").arg(&self.mount_point));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_cut_keeps_what_was_flushed_and_loses_what_was_not() {
        if let Some(reason) = Disk::unavailable(FileSystem::Ext4) {
            eprintln!("SKIPPED: {reason}");
            return;
        }
        let temporary = tempfile::tempdir().unwrap();
        let mut disk = Disk::create(FileSystem::Ext4, temporary.path()).unwrap();
        let (kept, lost) = (disk.directory().join("kept"), disk.directory().join("lost"));
        let mut file = File::create(&kept).unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        file.sync_all().unwrap();
        drop(file);
        fs::write(&lost, [8; 10_000]).unwrap();

        // an odd choice is the hardest cut
        disk.before_kill(1).unwrap();
        assert!(
            fs::write(disk.directory().join("late"), "x").is_err(),
            "a file system without power still writes"
        );
        disk.after_kill().unwrap();

        assert_eq!(fs::read(&kept).unwrap(), [7; 10_000]);
        assert_ne!(
            fs::read(&lost).unwrap_or_default(),
            [8; 10_000],
            "what was never flushed survived"
        );
    }
}
