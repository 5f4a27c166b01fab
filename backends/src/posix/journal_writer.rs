//! Appending to a writer's journal.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvstored_core::Result;

use super::directory::{failed, sync_directory};
use super::format::journal::{HEADER_BYTES, JournalHeader, RECORD_BYTES, Record};

/// The name of a journal.
pub fn journal_name(sequence: u64) -> String {
    format!("journal-{sequence:016x}")
}

/// The sequence in a journal's name.
pub fn parse_journal_name(name: &str) -> Option<u64> {
    let hex = name.strip_prefix("journal-")?;
    (hex.len() == 16 && !hex.contains('+'))
        .then(|| u64::from_str_radix(hex, 16).ok())
        .flatten()
}

/// An open journal with its known end.
pub struct JournalWriter {
    file: Arc<File>,
    path: PathBuf,
    end: u64,
    sequence: u64,
    prologue_bytes: u64,
}

impl JournalWriter {
    /// Starts a journal with its prologue (without the end record), durably.
    pub fn start(directory: &Path, header: &JournalHeader, prologue: &[Record]) -> Result<Self> {
        let path = directory.join(journal_name(header.sequence));
        let temporary = directory.join(format!("{}.new", journal_name(header.sequence)));
        let mut bytes = Vec::with_capacity(HEADER_BYTES + (prologue.len() + 1) * RECORD_BYTES);
        bytes.extend_from_slice(&header.encode());
        for record in prologue {
            bytes.extend_from_slice(&record.encode());
        }
        bytes.extend_from_slice(&Record::PrologueEnd.encode());
        let write = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&temporary)?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            Ok(file)
        };
        let file = write().map_err(|error| failed(error, "can't start a journal", &path));
        if file.is_err() {
            // an unfinished file takes space that is short perhaps
            let _ = fs::remove_file(&temporary);
        }
        let file = file?;
        sync_directory(directory)?;
        let end = bytes.len() as u64;
        Ok(Self {
            file: Arc::new(file),
            path,
            end,
            sequence: header.sequence,
            prologue_bytes: end,
        })
    }

    /// Its place among the writer's journals.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The file, for flushing without a lock.
    pub fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Bytes so far, and how many of them the prologue took.
    pub fn bytes(&self) -> (u64, u64) {
        (self.end, self.prologue_bytes)
    }

    /// Appends records with one write. After a failure nothing counts as appended: the next append
    /// overwrites what got there.
    pub fn append(&mut self, records: &[Record]) -> Result<u64> {
        let mut bytes = Vec::with_capacity(records.len() * RECORD_BYTES);
        for record in records {
            bytes.extend_from_slice(&record.encode());
        }
        if let Err(error) = self.file.write_all_at(&bytes, self.end) {
            // readers must not take half of the batch for committed
            if let Err(cut) = self.file.set_len(self.end) {
                return Err(failed(error, "can't append to the journal", &self.path).with("cut", cut));
            }
            return Err(failed(error, "can't append to the journal", &self.path));
        }
        self.end += bytes.len() as u64;
        Ok(bytes.len() as u64)
    }
}
