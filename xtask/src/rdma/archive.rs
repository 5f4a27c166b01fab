//! Archives in the format that the kernel unpacks as its first file system ("newc").

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const ALIGNMENT: usize = 4;

/// Writes an archive.
pub struct Archive<W> {
    out: W,
    written: usize,
    inodes: u32,
    names: BTreeSet<String>,
}

impl Archive<BufWriter<fs::File>> {
    /// A new file.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self::new(BufWriter::new(fs::File::create(path)?)))
    }
}

impl<W: Write> Archive<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            inodes: 0,
            names: BTreeSet::new(),
        }
    }

    /// Adds a file, and the folders above it. A name that is there already is left as it is.
    pub fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let name = name.trim_start_matches('/');
        for (end, _) in name.match_indices('/') {
            self.entry(name.get(..end).unwrap_or_default(), FOLDER, &[])?;
        }
        self.entry(name, PROGRAM, content)
    }

    /// Adds a file of this machine.
    pub fn add_file(&mut self, name: &str, source: &Path) -> io::Result<()> {
        let content = fs::read(source)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", source.display())))?;
        self.add(name, &content)
    }

    /// Writes the end.
    pub fn finish(mut self) -> io::Result<W> {
        self.raw("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        if self.names.insert(name.to_owned()) {
            self.raw(name, mode, content)
        } else {
            Ok(())
        }
    }

    fn raw(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "a file of 4 GiB or more");
        let (length, name_length) = (u32::try_from(content.len()).map_err(too_long)?, name.len() + 1);
        self.inodes += 1;
        let links = if mode == FOLDER { 2 } else { 1 };
        // inode, mode, owner, group, links, time, length, device, device, device, device, length of the name, checksum
        let fields = [
            self.inodes,
            mode,
            0,
            0,
            links,
            0,
            length,
            0,
            0,
            0,
            0,
            name_length as u32,
            0,
        ];
        self.put(b"070701")?;
        for field in fields {
            self.put(format!("{field:08x}").as_bytes())?;
        }
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let zeros = [0; ALIGNMENT];
        let missing = self.written.next_multiple_of(ALIGNMENT) - self.written;
        self.put(zeros.get(..missing).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::new(Vec::new());
        archive.add("/a/b/one", b"12345").unwrap();
        archive.add("a/b/two", b"").unwrap();
        archive.add("a/b/one", b"another").unwrap();
        let bytes = archive.finish().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<&str> = text.split("070701").skip(1).map(|entry| &entry[104..]).collect();
        let name = |entry: &str| entry.split('\0').next().unwrap().to_owned();
        let found: Vec<String> = names.iter().map(|entry| name(entry)).collect();
        assert_eq!(found, ["a", "a/b", "a/b/one", "a/b/two", "TRAILER!!!"]);
        assert!(names[2].contains("12345"));
        assert_eq!(bytes.len() % ALIGNMENT, 0);
    }

    #[test]
    fn a_header_is_110_bytes_with_the_length_in_hexadecimal() {
        let mut archive = Archive::new(Vec::new());
        archive.add("f", &[7; 300]).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[54..62], b"0000012c");
        assert_eq!(&bytes[110..112], b"f\0");
        assert_eq!(bytes[112], 7);
    }
}
