//! Arguments as Python gives them.

use std::ops::Range;
use std::time::Duration;

use kvstored_core::{BlockHash, Durability, Error, Result};

/// A timeout longer than this means the same.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// A timeout in seconds. Fails with `InvalidInput` when it's negative or no number.
pub fn seconds(timeout: f64) -> Result<Duration> {
    if timeout.is_nan() || timeout < 0.0 {
        return Err(Error::invalid(format!(
            "a timeout of {timeout} seconds; 0 or more are accepted"
        )));
    }
    Ok(Duration::try_from_secs_f64(timeout).map_or(LONGEST, |timeout| timeout.min(LONGEST)))
}

/// A timeout in milliseconds, where one is given.
pub fn milliseconds(timeout: Option<u64>) -> Option<Duration> {
    timeout.map(|timeout| Duration::from_millis(timeout).min(LONGEST))
}

/// How safe a dump shall be. Fails with `InvalidInput`, naming the words.
pub fn durability(word: &str) -> Result<Durability> {
    match word {
        "memory" => Ok(Durability::Memory),
        "tier" => Ok(Durability::Tier),
        "durable" => Ok(Durability::Durable),
        _ => Err(Error::invalid(format!(
            "durability \"{word}\"; memory, tier or durable are accepted"
        ))),
    }
}

/// The block in front of a run, where one is given.
pub fn parent(hash: Option<&[u8]>) -> Result<Option<BlockHash>> {
    hash.map(BlockHash::new).transpose()
}

/// Shards of a request: from the first to before the last, all of them where none are named.
pub fn shards(range: Option<(usize, usize)>, count: usize) -> Result<Range<usize>> {
    let (first, end) = range.unwrap_or((0, count));
    if first >= end || end > count {
        return Err(Error::invalid(format!(
            "shards {first} to {end} (exclusive) are not within the layout's {count}"
        )));
    }
    Ok(first..end)
}
