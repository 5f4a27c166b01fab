//! What `/proc/PID/stat` says of a process.

use std::fs::File;
use std::io::Read;

use kvstored_core::{Error, ErrorKind, Result};

/// More than the file ever has.
const MOST_BYTES: u64 = 4096;
/// Where the start time is among the fields behind the name.
const START_TIME: usize = 19;

/// When a process started, in clock ticks since the system's boot. Together with its number it names a
/// process for good, while numbers alone come round again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StartTime(u64);

impl StartTime {
    /// This process's, to be told to peers. Fails as reading `/proc` does.
    pub fn own() -> Result<Self> {
        Ok(Stat::read("/proc/self/stat")?.started)
    }

    /// From what a peer told.
    pub const fn from_ticks(ticks: u64) -> Self {
        Self(ticks)
    }

    /// The ticks, to be told to a peer.
    pub const fn ticks(self) -> u64 {
        self.0
    }
}

/// The two fields of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// The state's letter.
    pub state: u8,
    pub started: StartTime,
}

impl Stat {
    /// Fails with `Unavailable` where there is no such process.
    pub fn of(pid: i32) -> Result<Self> {
        Self::read(&format!("/proc/{pid}/stat"))
    }

    fn read(path: &str) -> Result<Self> {
        let gone = |error: std::io::Error| {
            Error::new(ErrorKind::Unavailable, "there is no such process").with("reason", error)
        };
        let mut text = Vec::new();
        let file = File::open(path).map_err(gone)?;
        file.take(MOST_BYTES).read_to_end(&mut text).map_err(gone)?;
        Self::parse(&text).ok_or_else(|| Error::new(ErrorKind::Unsupported, "unknown form of /proc/PID/stat"))
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // the name may hold blanks and parentheses, so what follows it begins behind the last of those
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let fields = std::str::from_utf8(text.get(end + 1..)?).ok()?;
        let mut fields = fields.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let started = fields.nth(START_TIME - 1)?.parse().ok()?;
        Some(Self {
            state,
            started: StartTime(started),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_blanks_is_passed_over() {
        let text = b"71 (a) T (b c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.started), (b'S', StartTime(4242)));
        for length in 0..text.len() - 13 {
            assert_eq!(Stat::parse(&text[..length]), None, "{length}");
        }
    }

    #[test]
    fn this_process_has_started() {
        let own = StartTime::own().unwrap();
        assert!(own.ticks() > 0);
        assert_eq!(Stat::of(std::process::id() as i32).unwrap().started, own);
    }
}
