//! The rules of USRBIO that this plugin leans on, as checks against a library and a directory: the emulator's, or those of
//! a real mount.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use kvstored_core::Result;

use crate::usrbio::{Completion, Library3fs, Memory, Mount, Ring};

/// Bytes of a piece.
const PIECE: usize = 1 << 20;
/// Pieces of the memory.
const PIECES: usize = 8;
/// How long I/O may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing is waited for.
const MOMENT: Duration = Duration::from_millis(100);

/// A rule and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// The rule.
    pub rule: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Point {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.holds { "ok  " } else { "FAIL" };
        write!(formatter, "{verdict} {}: {}", self.rule, self.seen)
    }
}

struct Checker {
    points: Vec<Point>,
    mount: Mount,
    memory: Memory,
    file: File,
}

/// Checks a library on a directory, in which a file is made and removed. Fails where it can't even begin.
pub fn run(library: &str, directory: &Path) -> Result<Vec<Point>> {
    let library = Library3fs::load(library)?;
    let mount = Mount::around(&library, directory)?;
    let path = directory.join(format!("kvstored-usrbio-check-{}", std::process::id()));
    let failed = |error| kvstored_core::Error::from_io(error, "the checks' file");
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .to_owned();
    let file = options.open(&path).map_err(failed)?;
    let memory = Memory::create(&mount, PIECES * PIECE, PIECE);
    let mut checker = Checker {
        points: Vec::new(),
        memory: match memory {
            Ok(memory) => memory,
            Err(error) => {
                fs::remove_file(&path).map_err(failed)?;
                return Err(error);
            }
        },
        mount,
        file,
    };
    checker.mounts(&library, directory);
    let outcome = checker
        .files()
        .and_then(|()| checker.transfers())
        .and_then(|()| checker.batches());
    checker.mount.deregister(checker.file.as_raw_fd());
    fs::remove_file(&path).map_err(failed)?;
    outcome.map(|()| checker.points)
}

impl Checker {
    fn point(&mut self, rule: &'static str, holds: bool, seen: impl fmt::Debug) {
        self.points.push(Point {
            rule,
            holds,
            seen: format!("{seen:?}"),
        });
    }

    fn mounts(&mut self, library: &std::sync::Arc<Library3fs>, directory: &Path) {
        let name = self.mount.path();
        let around = directory.canonicalize().is_ok_and(|path| path.starts_with(&name));
        self.point("a directory's mount is found", around, name);
        let outside = Mount::around(library, Path::new("/proc")).map(|mount| mount.path());
        self.point("a directory outside has none", outside.is_err(), outside.err());
    }

    fn files(&mut self) -> Result<()> {
        let elsewhere = File::open("/proc/self/exe")
            .map_err(|error| kvstored_core::Error::from_io(error, "a file outside of the mount"))?;
        let outcome = self.mount.register(elsewhere.as_raw_fd());
        self.point(
            "a file elsewhere can't be registered",
            outcome.is_err(),
            outcome.err(),
        );
        let outcome = self.mount.register(self.file.as_raw_fd());
        self.point("a file of the mount can", outcome.is_ok(), outcome.err());
        let outcome = self.mount.register(self.file.as_raw_fd());
        self.point("and not twice", outcome.is_err(), outcome.err());
        let (bytes, whole) = (self.memory.length(), !self.memory.base().is_null());
        self.point(
            "memory is made in blocks",
            whole && bytes == PIECES * PIECE,
            bytes,
        );
        let larger = Memory::create(&self.mount, PIECE, 2 * PIECE).map(|memory| memory.length());
        self.point(
            "a block larger than the memory can't be",
            larger.is_err(),
            larger.ok(),
        );
        Ok(())
    }

    /// Prepares an I/O of part of the memory with a place in the file.
    fn prepare(
        &self,
        ring: &Ring,
        at: usize,
        length: usize,
        file: &File,
        offset: usize,
        userdata: usize,
    ) -> std::result::Result<usize, i32> {
        let address = self.memory.base().wrapping_add(at);
        // SAFETY: the memory lives until the checks are over, nobody else touches it, and one thread does all this.
        unsafe {
            ring.prepare(
                &self.memory,
                address,
                length,
                file.as_raw_fd(),
                offset as u64,
                userdata,
            )
        }
    }

    fn wait(ring: &Ring, least: usize, timeout: Duration) -> Result<Vec<Completion>> {
        // SAFETY: one thread does all this.
        unsafe { ring.wait(8, least, timeout) }
    }

    fn fill(&self, byte: u8) {
        // SAFETY: the memory is as long as that, and nothing is under way.
        unsafe {
            self.memory.base().write_bytes(byte, self.memory.length());
        }
    }

    fn all_are(&self, byte: u8, at: usize, length: usize) -> bool {
        let mut copy = vec![0; length];
        // SAFETY: as in `fill`; the copy is as long.
        unsafe {
            std::ptr::copy_nonoverlapping(self.memory.base().add(at), copy.as_mut_ptr(), length);
        }
        copy.iter().all(|found| *found == byte)
    }

    fn transfers(&mut self) -> Result<()> {
        let write = Ring::create(&self.mount, 4, false, 0);
        self.point("a ring for writing", write.is_ok(), write.as_ref().err());
        let read = Ring::create(&self.mount, 4, true, 0);
        self.point("a ring for reading", read.is_ok(), read.as_ref().err());
        let (write, read) = (write?, read?);
        let file = self
            .file
            .try_clone()
            .map_err(|error| kvstored_core::Error::from_io(error, "the checks' file"))?;
        let unregistered = file;
        self.fill(0x41);
        let own = &self.file;
        let places: Vec<_> = (0..4)
            .map(|piece| self.prepare(&write, piece * PIECE, PIECE, own, piece * PIECE, 100 + piece))
            .collect();
        let fifth = self.prepare(&write, 0, 1, own, 0, 0);
        let outside = self.prepare(&read, PIECES * PIECE - 1, 2, own, 0, 0);
        let unknown = self.prepare(&read, 0, 1, &unregistered, 0, 0);
        self.point(
            "as many fit as the ring has places",
            places.iter().all(Result::is_ok),
            &places,
        );
        self.point("one more is EAGAIN", fifth == Err(libc::EAGAIN), fifth);
        self.point(
            "outside of the memory is EINVAL",
            outside == Err(libc::EINVAL),
            outside,
        );
        self.point("an unknown file is EBADF", unknown == Err(libc::EBADF), unknown);
        write.submit()?;
        let mut ended = Self::wait(&write, 4, PATIENCE)?;
        ended.sort_by_key(|completion| completion.userdata);
        let expected: Vec<_> = (100..104)
            .map(|userdata| Completion {
                userdata,
                result: PIECE as i64,
            })
            .collect();
        self.point(
            "each completes once, with what it was given",
            ended == expected,
            &ended,
        );
        let mut bytes = vec![0; PIECE];
        let found = self.file.read_at(&mut bytes, 3 * PIECE as u64).ok();
        let written = found == Some(PIECE) && bytes.iter().all(|byte| *byte == 0x41);
        self.point("the file has the bytes", written, found);
        let nothing = Self::wait(&write, 1, MOMENT)?;
        self.point("waiting for nothing ends in time", nothing.is_empty(), &nothing);

        self.fill(0);
        let half = PIECE / 2;
        let prepared = self.prepare(&read, half, half, &self.file, 0, 1);
        read.submit()?;
        let ended = Self::wait(&read, 1, PATIENCE)?;
        let right = ended
            .first()
            .is_some_and(|completion| completion.result == half as i64)
            && self.all_are(0x41, half, half)
            && self.all_are(0, 0, half);
        self.point(
            "a read fills its part of the memory and no more",
            right,
            (prepared, &ended),
        );
        let prepared = self.prepare(&read, half, PIECE, &self.file, 0, 2);
        read.submit()?;
        let ended = Self::wait(&read, 1, PATIENCE)?;
        let refused = ended
            .first()
            .is_some_and(|completion| completion.result == -i64::from(libc::EINVAL));
        self.point(
            "across a block of memory completes with EINVAL",
            refused,
            (prepared, &ended),
        );
        let prepared = self.prepare(&read, 0, 100, &self.file, 4 * PIECE - 10, 3);
        read.submit()?;
        let ended = Self::wait(&read, 1, PATIENCE)?;
        let short = ended.first().is_some_and(|completion| completion.result == 10);
        self.point("a read over the end is short", short, (prepared, &ended));
        Ok(())
    }

    fn batches(&mut self) -> Result<()> {
        let ring = Ring::create(&self.mount, 8, true, 4)?;
        for place in 0..3 {
            let _ = self.prepare(&ring, 0, 8, &self.file, 0, place);
        }
        ring.submit()?;
        let held = Self::wait(&ring, 3, MOMENT)?;
        self.point(
            "a ring with batches of four holds three back",
            held.is_empty(),
            &held,
        );
        let _ = self.prepare(&ring, 0, 8, &self.file, 0, 3);
        ring.submit()?;
        let ended = Self::wait(&ring, 4, PATIENCE)?;
        self.point("and runs at four", ended.len() == 4, &ended);
        let single = Ring::create(&self.mount, 1, true, 0)?;
        let first = self.prepare(&single, 0, 8, &self.file, 0, 0);
        single.submit()?;
        let second = self.prepare(&single, 0, 8, &self.file, 0, 0);
        let ended = Self::wait(&single, 1, PATIENCE)?;
        let third = self.prepare(&single, 0, 8, &self.file, 0, 0);
        single.submit()?;
        let again = Self::wait(&single, 1, PATIENCE)?;
        self.point(
            "a place is taken until its completion is reaped",
            first.is_ok() && second == Err(libc::EAGAIN) && third.is_ok() && ended.len() + again.len() == 2,
            (first, second, third),
        );
        self.mount.deregister(self.file.as_raw_fd());
        let read = Ring::create(&self.mount, 1, true, 0)?;
        let gone = self.prepare(&read, 0, 1, &self.file, 0, 0);
        self.point(
            "a file that was given up is EBADF",
            gone == Err(libc::EBADF),
            gone,
        );
        Ok(())
    }
}
